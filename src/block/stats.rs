//! Counters of requests: what a guest asked of its disk, and what each node can tell of itself.

use crate::child::ChildRole;
use crate::graph::Graph;
use crate::node::Node;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What kind of request is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read.
    Read,
    /// A write, also of zeroes.
    Write,
    /// A flush.
    Flush,
    /// A discard.
    Unmap,
}

/// The counters of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    bytes: u64,
    done: u64,
    failed: u64,
    invalid: u64,
    time: Duration,
}

/// The requests of a guest to one disk.
#[derive(Debug, Default)]
pub struct Accounting {
    counters: RefCell<[Counter; 4]>,
    last: RefCell<Option<Instant>>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It worked.
    Done,
    /// It failed.
    Failed,
    /// It could not even be tried: it lies outside the disk, or there is none.
    Invalid,
}

impl Accounting {
    /// Counts a request of `bytes` that began at `began`.
    pub fn count(&self, kind: Kind, bytes: u64, began: Instant, outcome: Outcome) {
        let now = Instant::now();
        let mut counters = self.counters.borrow_mut();
        let counter = &mut counters[kind as usize];
        match outcome {
            Outcome::Invalid => {
                counter.invalid += 1;
                return;
            }
            Outcome::Failed => counter.failed += 1,
            Outcome::Done => {
                counter.bytes += bytes;
                counter.done += 1;
            }
        }
        counter.time += now - began;
        *self.last.borrow_mut() = Some(now);
    }

    /// The members of `BlockDeviceStats`; `of_disk`: not of a node below one, where failed requests are not counted.
    fn members(&self, highest_write: u64, of_disk: bool) -> Map<String, Value> {
        let mut stats = Map::new();
        let mut put = |name: String, value: Value| drop(stats.insert(name, value));
        let counters = self.counters.borrow();
        let of = |kind: Kind| counters[kind as usize];
        let kinds = [
            ("rd", of(Kind::Read)),
            ("wr", of(Kind::Write)),
            // There are no zoned disks.
            ("zone_append", Counter::default()),
            ("flush", of(Kind::Flush)),
            ("unmap", of(Kind::Unmap)),
        ];
        for (name, c) in kinds {
            put(format!("{name}_operations"), c.done.into());
            put(format!("{name}_total_time_ns"), u64::try_from(c.time.as_nanos()).unwrap_or(u64::MAX).into());
            put(format!("failed_{name}_operations"), c.failed.into());
            put(format!("invalid_{name}_operations"), c.invalid.into());
            if name != "flush" {
                put(format!("{name}_bytes"), c.bytes.into());
                put(format!("{name}_merged"), 0.into());
            }
        }
        if let Some(last) = *self.last.borrow() {
            put("idle_time_ns".into(), u64::try_from(last.elapsed().as_nanos()).unwrap_or(u64::MAX).into());
        }
        put("wr_highest_offset".into(), highest_write.into());
        put("account_failed".into(), of_disk.into());
        put("account_invalid".into(), of_disk.into());
        put("timed_stats".into(), json!([]));
        stats
    }
}

impl Graph {
    /// `query-blockstats`: of every disk with the nodes below it, or of every node.
    pub fn query_blockstats(&self, nodes: bool) -> Vec<Value> {
        if nodes {
            let nodes = self.nodes().into_iter().filter(|n| n.try_driver().is_some());
            return nodes.map(|node| node_stats(&node, false).into()).collect();
        }
        let of_backend = |backend: Rc<crate::Backend>| {
            let mut info = backend.node().map_or_else(Map::new, |node| node_stats(&node, true));
            let highest = backend.node().map_or(0, |node| node.highest_write.get());
            info.insert("stats".into(), backend.accounting().members(highest, true).into());
            info.insert("device".into(), backend.name().into());
            if let Some(guest) = backend.guest() {
                info.insert("qdev".into(), guest.path.into());
            }
            Value::Object(info)
        };
        self.devices().into_iter().map(of_backend).collect()
    }
}

/// A node and those below it: the one with its data, and below a disk also the one that it is laid over.
fn node_stats(node: &Rc<Node>, below_disk: bool) -> Map<String, Value> {
    let mut info = Map::new();
    info.insert("node-name".into(), node.name().into());
    info.insert("stats".into(), Accounting::default().members(node.highest_write.get(), false).into());
    if let Some(specific) = node.try_driver().and_then(|driver| driver.specific_stats()) {
        info.insert("driver-specific".into(), specific);
    }
    if let Some(data) = data_child(node) {
        info.insert("parent".into(), node_stats(&data, below_disk).into());
    }
    let under = node.filtered_child().or_else(|| node.cow_child()).filter(|_| below_disk);
    if let Some(under) = under {
        info.insert("backing".into(), node_stats(&under.node(), below_disk).into());
    }
    info
}

/// The child that holds a node's data, if there is one such.
fn data_child(node: &Node) -> Option<Rc<Node>> {
    let data = ChildRole::DATA | ChildRole::FILTERED;
    if let Some(child) = node.primary_child().filter(|c| c.role().intersects(data)) {
        return Some(child.node());
    }
    let mut all = node.child_edges().into_iter().filter(|c| c.role().intersects(data));
    let first = all.next()?;
    all.next().is_none().then(|| first.node())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_apart_and_invalid_requests_take_no_time() {
        let a = Accounting::default();
        a.count(Kind::Read, 512, Instant::now(), Outcome::Invalid);
        assert!(!a.members(0, true).contains_key("idle_time_ns"), "nothing was done yet");
        a.count(Kind::Write, 4096, Instant::now(), Outcome::Done);
        a.count(Kind::Write, 4096, Instant::now(), Outcome::Failed);
        a.count(Kind::Flush, 0, Instant::now(), Outcome::Done);
        let m = a.members(9, true);
        let number = |name: &str| m[name].as_u64().unwrap();
        assert_eq!((number("wr_operations"), number("wr_bytes"), number("failed_wr_operations")), (1, 4096, 1));
        assert_eq!((number("invalid_rd_operations"), number("rd_operations")), (1, 0));
        assert_eq!((number("flush_operations"), number("wr_highest_offset")), (1, 9));
        assert!(m.contains_key("idle_time_ns"));
        assert_eq!(m.len(), 33, "the 32 that QEMU always tells, and the idle time");
    }
}
