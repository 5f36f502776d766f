//! `quorum`: one disk kept in several copies.
//!
//! Writes go to all children and succeed if `vote-threshold` of them do. Reads take the first child that answers
//! (`read-pattern=fifo`) or let all vote. Children come and go at run time (`x-blockdev-change`); one that hangs is cut
//! off before it can hold up its own removal.

#[cfg(test)]
mod tests;
pub mod vote;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use lockstep_util::{Error, Result, bail};
use serde_json::json;

use crate::child::{Child, ChildRole, Perm};
use crate::driver::{BlockDriver, DriverDef, DriverKind, Extent, Limits, LocalBoxFuture, Status, WriteFlags, errno};
use crate::graph::{Graph, WeakGraph};
use crate::join::join_all;
use crate::node::Node;
use crate::open::{OpenContext, open_child_spec};

/// How long a child that is being removed may take to finish what it has, and how often it is told to give up then.
const REMOVAL_GRACE: Duration = Duration::from_millis(200);
const REMOVAL_RETRY: Duration = Duration::from_millis(50);

/// The driver's row.
pub static QUORUM: DriverDef = DriverDef {
    name: "quorum",
    kind: DriverKind::Composite,
    protocols: &[],
    needs_filename: false,
    supports_backing: false,
    probe: None,
    parse_filename: None,
    strong_options: &["vote-threshold", "blkverify", "rewrite-corrupted", "read-pattern"],
    open: |cx| Box::pin(open(cx)),
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadPattern {
    Quorum,
    Fifo,
}

struct Quorum {
    graph: WeakGraph,
    node: Weak<Node>,
    children: RefCell<Vec<Rc<Child>>>,
    next_index: Cell<u32>,
    threshold: usize,
    pattern: ReadPattern,
    blkverify: bool,
    rewrite: bool,
    length: Cell<u64>,
}

async fn open(cx: &mut OpenContext) -> Result<Box<dyn BlockDriver>> {
    let Ok(indices) = cx.options.list_indices("children") else { bail!("Option children is not a valid array") };
    if indices.is_empty() {
        bail!("Number of provided children must be 1 or more");
    }
    let threshold = cx.options.take_u64("vote-threshold")?.unwrap_or(0);
    if threshold < 1 {
        bail!("Parameter 'vote-threshold' expects a value >= 1");
    }
    if threshold > indices.len() as u64 {
        bail!("threshold may not exceed children count");
    }
    let pattern = match cx.options.take_str("read-pattern")?.as_deref() {
        None | Some("quorum") => ReadPattern::Quorum,
        Some("fifo") => ReadPattern::Fifo,
        Some(_) => bail!("Please set read-pattern as fifo or quorum"),
    };
    let blkverify = cx.options.take_bool("blkverify")?.unwrap_or(false);
    let rewrite = cx.options.take_bool("rewrite-corrupted")?.unwrap_or(false);
    if pattern == ReadPattern::Quorum {
        if blkverify && (indices.len() != 2 || threshold != 2) {
            bail!("blkverify=on can only be set if there are exactly two files and vote-threshold is 2");
        }
        if rewrite && blkverify {
            bail!("rewrite-corrupted=on cannot be used with blkverify=on");
        }
    }
    let mut children = Vec::with_capacity(indices.len());
    for index in &indices {
        let name = format!("children.{index}");
        let Some(spec) = cx.options.take_child(&name)? else { bail!("Option children is not a valid array") };
        let below = open_child_spec(&cx.graph, &cx.node, spec, ChildRole::DATA).await?;
        children.push(cx.node.attach_child(&name, ChildRole::DATA, &below)?);
    }
    let quorum = Quorum {
        graph: cx.graph.downgrade(),
        node: cx.node.weak(),
        next_index: Cell::new(children.len() as u32),
        children: RefCell::new(children),
        threshold: threshold as usize,
        pattern,
        blkverify: blkverify && pattern == ReadPattern::Quorum,
        rewrite: rewrite && pattern == ReadPattern::Quorum,
        length: Cell::new(0),
    };
    quorum.refresh_length().map_err(|e| Error::with_errno("Could not refresh total sector count", &e))?;
    Ok(Box::new(quorum))
}

impl Quorum {
    fn nodes(&self) -> Vec<Rc<Node>> {
        self.children.borrow().iter().map(|c| c.node()).collect()
    }

    /// The length that all children have in common.
    fn refresh_length(&self) -> io::Result<()> {
        let mut common = None;
        for node in self.nodes() {
            let length = node.len()?;
            if *common.get_or_insert(length) != length {
                return Err(errno(libc::EIO));
            }
        }
        self.length.set(common.unwrap_or(0));
        Ok(())
    }

    fn emit(&self, name: &str, data: serde_json::Value) {
        if let Some(graph) = self.graph.upgrade() {
            graph.emit(name, data);
        }
    }

    fn report_bad(&self, kind: &str, node: &Node, offset: u64, len: u64, error: Option<&io::Error>) {
        let (sector, count) = sectors(offset, len);
        let mut data = json!({
            "type": kind, "node-name": node.name(), "sector-num": sector, "sectors-count": count,
        });
        if let Some(e) = error {
            data["error"] = json!(strerror(e));
        }
        self.emit("QUORUM_REPORT_BAD", data);
    }

    fn report_failure(&self, offset: u64, len: u64) {
        let (sector, count) = sectors(offset, len);
        let reference = self.node.upgrade().map(|n| n.device_or_node_name()).unwrap_or_default();
        self.emit("QUORUM_FAILURE", json!({"reference": reference, "sector-num": sector, "sectors-count": count}));
    }

    /// Counts results of one request to all children.
    fn settle(&self, kind: &str, results: &[(Rc<Node>, io::Result<()>)], offset: u64, len: u64) -> io::Result<()> {
        let mut errors = Vec::new();
        for (node, result) in results {
            if let Err(e) = result {
                self.report_bad(kind, node, offset, len, Some(e));
                errors.push(e.raw_os_error().unwrap_or(libc::EIO));
            }
        }
        if results.len() - errors.len() >= self.threshold {
            return Ok(());
        }
        if kind != "flush" {
            self.report_failure(offset, len);
        }
        Err(errno(vote::vote_errno(&errors)))
    }

    async fn write_all<'a, F>(&'a self, offset: u64, len: u64, request: F) -> io::Result<()>
    where
        F: Fn(Rc<Node>) -> LocalBoxFuture<'a, io::Result<()>>,
    {
        let nodes = self.nodes();
        // One child needs no machinery.
        let results = if let [only] = &nodes[..] {
            vec![request(only.clone()).await]
        } else {
            join_all(nodes.iter().map(|n| request(n.clone())).collect()).await
        };
        let results: Vec<_> = nodes.into_iter().zip(results).collect();
        self.settle("write", &results, offset, len)
    }

    async fn read_fifo(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut last = errno(libc::EIO);
        for node in self.nodes() {
            match node.read(offset, buf).await {
                Ok(()) => return Ok(()),
                Err(e) => {
                    self.report_bad("read", &node, offset, buf.len() as u64, Some(&e));
                    last = e;
                }
            }
        }
        Err(last)
    }

    async fn read_quorum(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let len = buf.len();
        let nodes = self.nodes();
        let reads = nodes
            .iter()
            .map(|node| {
                let node = node.clone();
                let read: LocalBoxFuture<'_, io::Result<Vec<u8>>> = Box::pin(async move {
                    let mut copy = vec![0; len];
                    node.read(offset, &mut copy).await.map(|()| copy)
                });
                read
            })
            .collect();
        let results = join_all(reads).await;
        let mut copies = Vec::new();
        let mut outcomes = Vec::new();
        for (index, (node, result)) in nodes.iter().zip(results).enumerate() {
            match result {
                Ok(copy) => {
                    copies.push((index, copy));
                    outcomes.push((node.clone(), Ok(())));
                }
                Err(e) => outcomes.push((node.clone(), Err(e))),
            }
        }
        self.settle("read", &outcomes, offset, len as u64)?;
        let verdict = vote::vote(&copies, self.threshold);
        let Some(winner) = verdict.winner else {
            if self.blkverify {
                tracing::error!("quorum: contents differ within {len} bytes at offset {offset}");
            }
            self.report_failure(offset, len as u64);
            return Err(errno(libc::EIO));
        };
        for index in &verdict.losers {
            self.report_bad("read", &nodes[*index], offset, len as u64, None);
        }
        if let Some((_, copy)) = copies.iter().find(|(i, _)| *i == winner) {
            buf.copy_from_slice(copy);
        }
        if self.rewrite {
            for index in &verdict.losers {
                // What cannot be repaired was reported; the read itself has succeeded.
                if let Err(e) = nodes[*index].write(offset, buf, WriteFlags::empty()).await {
                    self.report_bad("write", &nodes[*index], offset, len as u64, Some(&e));
                }
            }
        }
        Ok(())
    }
}

fn sectors(offset: u64, len: u64) -> (u64, u64) {
    let first = offset / 512;
    (first, (offset + len).div_ceil(512) - first)
}

fn strerror(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(_) => {
            Error::from(io::Error::from_raw_os_error(e.raw_os_error().unwrap_or(libc::EIO))).message().to_owned()
        }
        None => Error::from(errno(libc::EIO)).message().to_owned(),
    }
}

impl BlockDriver for Quorum {
    fn format_name(&self) -> &'static str {
        "quorum"
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.length.get())
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            match self.pattern {
                ReadPattern::Fifo => self.read_fifo(offset, buf).await,
                ReadPattern::Quorum => self.read_quorum(offset, buf).await,
            }
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(self.write_all(offset, data.len() as u64, move |node| {
            Box::pin(async move { node.write(offset, data, flags).await })
        }))
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(
            self.write_all(offset, len, move |node| {
                Box::pin(async move { node.write_zeroes(offset, len, flags).await })
            }),
        )
    }

    fn supports_fua(&self) -> bool {
        true
    }

    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let nodes = self.nodes();
            let flushes = nodes
                .iter()
                .map(|n| {
                    let n = n.clone();
                    let flush: LocalBoxFuture<'_, io::Result<()>> = Box::pin(async move { n.flush().await });
                    flush
                })
                .collect();
            let results = join_all(flushes).await;
            let results: Vec<_> = nodes.into_iter().zip(results).collect();
            self.settle("flush", &results, 0, 0)
        })
    }

    fn write_back(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        self.flush()
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64, _want_zero: bool) -> LocalBoxFuture<'a, io::Result<Extent>> {
        Box::pin(async move {
            let data = Status::DATA | Status::ALLOCATED;
            let mut zero = len;
            let nodes = self.nodes();
            // With fifo it is the first child that is read.
            let asked = if self.pattern == ReadPattern::Fifo { &nodes[..nodes.len().min(1)] } else { &nodes[..] };
            let mut longest_data = 0;
            for node in asked {
                match node.block_status_above(None, offset, len).await {
                    Ok((extent, _)) if extent.status.contains(Status::ZERO) => zero = zero.min(extent.len),
                    Ok((extent, _)) => longest_data = longest_data.max(extent.len),
                    Err(_) => return Ok(Extent::new(data, len)),
                }
            }
            if longest_data > 0 {
                Ok(Extent::new(data, longest_data))
            } else {
                Ok(Extent::new(Status::ZERO | Status::ALLOCATED, zero))
            }
        })
    }

    fn activate(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.refresh_length().map_err(|e| Error::with_errno("Could not refresh total sector count", &e))
        })
    }

    fn add_child<'a>(
        &'a self,
        _graph: &'a Graph,
        node: &'a Rc<Node>,
        child: Rc<Node>,
    ) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if self.blkverify {
                bail!("Cannot add a child to a quorum in blkverify mode");
            }
            let _quiet = node.drain().await;
            let index = self.next_index.get();
            let edge = node.attach_child(&format!("children.{index}"), ChildRole::DATA, &child)?;
            self.next_index.set(index + 1);
            self.children.borrow_mut().push(edge);
            Ok(())
        })
    }

    fn del_child<'a>(
        &'a self,
        _graph: &'a Graph,
        node: &'a Rc<Node>,
        child: &'a Rc<Child>,
    ) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let known = self.children.borrow().iter().any(|c| Rc::ptr_eq(c, child));
            if !known {
                bail!("The node {} does not have a child named {}", node.device_or_node_name(), child.name());
            }
            if self.children.borrow().len() <= self.threshold {
                bail!("The number of children cannot be lower than the vote threshold {}", self.threshold);
            }
            // A peer that is frozen would hold this drain forever.
            let mut drain = pin!(node.drain());
            let mut wait = REMOVAL_GRACE;
            let _quiet = loop {
                match tokio::time::timeout(wait, &mut drain).await {
                    Ok(guard) => break guard,
                    Err(_) => child.node().cancel_in_flight(),
                }
                wait = REMOVAL_RETRY;
            };
            if child.name() == format!("children.{}", self.next_index.get().wrapping_sub(1)) {
                self.next_index.set(self.next_index.get() - 1);
            }
            self.children.borrow_mut().retain(|c| !Rc::ptr_eq(c, child));
            node.detach_child(child);
            Ok(())
        })
    }

    fn child_perms(&self, _node: &Node, _role: ChildRole, perm: Perm, shared: Perm) -> (Perm, Perm) {
        let mut need = perm & (Perm::CONSISTENT_READ | Perm::WRITE | Perm::WRITE_UNCHANGED | Perm::RESIZE);
        if self.rewrite {
            need |= Perm::WRITE;
        }
        // Nobody else may write to one copy only.
        (need, shared & (Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED))
    }

    fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for node in self.nodes() {
            if let Some(below) = node.try_driver().map(|d| d.limits()) {
                limits.request_alignment = limits.request_alignment.max(below.request_alignment);
                limits.zeroes_alignment = limits.zeroes_alignment.max(below.zeroes_alignment);
            }
        }
        limits
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
