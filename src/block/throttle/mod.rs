//! `throttle`: a filter whose requests keep to the limits of a group, which several filters can share.

pub mod limits;

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use lockstep_util::{Result, bail};

use crate::child::{Child, ChildRole};
use crate::driver::{BlockDriver, DriverDef, DriverKind, Extent, LocalBoxFuture, Preallocation, Status, WriteFlags};
use crate::node::Node;
use crate::open::OpenContext;
use limits::Limits;

/// How often a request that waits looks whether its node is being drained; then it may go.
const LOOK: Duration = Duration::from_millis(20);

/// The driver's row.
pub static THROTTLE: DriverDef = DriverDef {
    name: "throttle",
    kind: DriverKind::Filter,
    protocols: &[],
    needs_filename: false,
    supports_backing: false,
    probe: None,
    parse_filename: None,
    strong_options: &["throttle-group"],
    open: |cx| Box::pin(open(cx)),
};

/// A group: limits that its members use together.
pub struct ThrottleGroup {
    limits: RefCell<Limits>,
    last: RefCell<Instant>,
    /// Reads and writes wait in two lines.
    lines: [tokio::sync::Mutex<()>; 2],
}

impl ThrottleGroup {
    /// Replaces the limits.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.borrow_mut() = limits;
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits.borrow().clone()
    }

    fn wait(&self, is_write: bool) -> Duration {
        let mut limits = self.limits.borrow_mut();
        let now = Instant::now();
        limits.leak(now - self.last.replace(now));
        limits.wait(is_write)
    }

    async fn enter(&self, node: &Weak<Node>, is_write: bool, bytes: u64) {
        let _turn = self.lines[usize::from(is_write)].lock().await;
        loop {
            let wait = self.wait(is_write);
            if wait.is_zero() || node.upgrade().is_none_or(|n| n.is_quiesced()) {
                break;
            }
            tokio::time::sleep(wait.min(LOOK)).await;
        }
        self.limits.borrow_mut().account(is_write, bytes);
    }
}

/// The groups of a graph, by their names.
#[derive(Default)]
pub struct ThrottleGroups {
    groups: RefCell<HashMap<String, Rc<ThrottleGroup>>>,
}

impl ThrottleGroups {
    /// Makes a group.
    pub fn add(&self, name: &str, limits: Limits) -> Result<Rc<ThrottleGroup>> {
        if self.groups.borrow().contains_key(name) {
            bail!("A group with this name already exists");
        }
        let group = Rc::new(ThrottleGroup {
            limits: RefCell::new(limits),
            last: RefCell::new(Instant::now()),
            lines: Default::default(),
        });
        self.groups.borrow_mut().insert(name.to_owned(), group.clone());
        Ok(group)
    }

    /// Forgets a group. `holders` is how many references its owner has beside this list's.
    pub fn remove(&self, name: &str, holders: usize) -> Result<()> {
        let mut groups = self.groups.borrow_mut();
        if groups.get(name).is_some_and(|g| Rc::strong_count(g) > 1 + holders) {
            bail!("object '{name}' is in use, can not be deleted");
        }
        groups.remove(name);
        Ok(())
    }

    fn find(&self, name: &str) -> Option<Rc<ThrottleGroup>> {
        self.groups.borrow().get(name).cloned()
    }
}

struct Throttle {
    node: Weak<Node>,
    file: Rc<Child>,
    group: Rc<ThrottleGroup>,
}

async fn open(cx: &mut OpenContext) -> Result<Box<dyn BlockDriver>> {
    let file = cx.open_file_child(ChildRole::FILTER).await?;
    let Some(name) = cx.options.take_str("throttle-group")? else { bail!("Please specify a throttle group") };
    let groups: Rc<ThrottleGroups> = cx.graph.extension();
    let Some(group) = groups.find(&name) else { bail!("Throttle group '{name}' does not exist") };
    Ok(Box::new(Throttle { node: cx.node.weak(), file, group }))
}

impl BlockDriver for Throttle {
    fn format_name(&self) -> &'static str {
        "throttle"
    }

    fn length(&self) -> io::Result<u64> {
        self.file.node().len()
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.group.enter(&self.node, false, buf.len() as u64).await;
            self.file.node().read(offset, buf).await
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.group.enter(&self.node, true, data.len() as u64).await;
            self.file.node().write(offset, data, flags).await
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.group.enter(&self.node, true, len).await;
            self.file.node().write_zeroes(offset, len, flags).await
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.group.enter(&self.node, true, len).await;
            self.file.node().discard(offset, len).await
        })
    }

    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async { self.file.node().flush().await })
    }

    fn supports_fua(&self) -> bool {
        true
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64, _want_zero: bool) -> LocalBoxFuture<'a, io::Result<Extent>> {
        Box::pin(async move {
            let status = Status::DATA | Status::ALLOCATED | Status::RECURSE;
            Ok(Extent { status, len, map: Some((self.file.node(), offset)) })
        })
    }

    fn truncate<'a>(&'a self, len: u64, exact: bool, prealloc: Preallocation) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move { self.file.node().truncate(len, exact, prealloc).await })
    }

    fn limits(&self) -> crate::driver::Limits {
        self.file.node().try_driver().map(|d| d.limits()).unwrap_or_default()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Graph, OpenFlags, Options};
    use lockstep_event::Context;
    use serde_json::json;

    #[test]
    fn requests_keep_to_the_limit_until_the_node_is_drained() {
        Context::new("test").unwrap().run(async {
            let graph = Graph::new();
            let open = async || {
                let pairs = [("driver", "throttle"), ("throttle-group", "g"), ("file.driver", "null-co")];
                graph.open(None, Options::from_pairs(pairs), OpenFlags::default()).await
            };
            assert_eq!(open().await.unwrap_err().message(), "Throttle group 'g' does not exist");
            let groups: Rc<ThrottleGroups> = graph.extension();
            let limits = Limits::from_members(json!({"iops-total": 20}).as_object().unwrap(), "").unwrap();
            drop(groups.add("g", limits).unwrap());
            let node = open().await.unwrap();
            assert_eq!(groups.remove("g", 0).unwrap_err().message(), "object 'g' is in use, can not be deleted");
            let started = Instant::now();
            for _ in 0..8 {
                node.read(0, &mut [0; 512]).await.unwrap();
            }
            assert!(started.elapsed() > Duration::from_millis(200));
            // Two hundred more would take ten seconds.
            let reads: Vec<_> = (0..200)
                .map(|_| {
                    let node = node.clone();
                    tokio::task::spawn_local(async move { node.read(0, &mut [0; 512]).await })
                })
                .collect();
            tokio::task::yield_now().await;
            let started = Instant::now();
            drop(node.drain().await);
            for read in reads {
                read.await.unwrap().unwrap();
            }
            assert!(started.elapsed() < Duration::from_secs(5));
        });
    }
}
