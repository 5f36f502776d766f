//! `replication`: the block side of a lock-stepped pair.
//!
//! Primary: a write-only path to the secondary's disk, which the guest does not wait for. Writes that fail there are not
//! the guest's business; the error is kept and ends the lock-step before the next checkpoint.
//!
//! Secondary: the guest runs on `active disk -> hidden disk -> secondary disk`. The primary writes to the secondary disk
//! by NBD; what a write is going to change is first copied to the hidden disk, so that the guest's view stays that of
//! the last checkpoint. The guest's own writes go to the active disk. A checkpoint empties both overlays; a failover
//! commits them into the secondary disk while the guest runs, and they stay whole until that is done.

pub mod all;
#[cfg(test)]
mod crash_tests;
mod primary;
mod secondary;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};

use lockstep_util::{Error, Result, bail};

use crate::child::{Child, ChildRole, Perm};
use crate::driver::{BlockDriver, DriverDef, DriverKind, Extent, Limits, LocalBoxFuture, WriteFlags, errno};
use crate::export::Exports;
use crate::graph::WeakGraph;
use crate::node::Node;
use crate::open::OpenContext;
use primary::{Outgoing, Request};
use secondary::Running;

/// Requests are whole sectors of this many bytes.
const SECTOR: u32 = 512;

/// The driver's row.
pub static REPLICATION: DriverDef = DriverDef {
    name: "replication",
    kind: DriverKind::Filter,
    protocols: &[],
    needs_filename: false,
    supports_backing: false,
    probe: None,
    parse_filename: None,
    strong_options: &["mode", "top-id"],
    open: |cx| Box::pin(open(cx)),
};

/// Which side of the pair a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationMode {
    /// Sends writes.
    Primary,
    /// Receives writes and runs on overlays.
    Secondary,
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not started.
    None,
    /// In lock-step.
    Running,
    /// The overlays are being committed.
    Failover,
    /// The commit failed: overlays stay in use.
    FailoverFailed,
    /// Over; requests go straight to the disk.
    Done,
}

/// The driver.
pub struct Replication {
    graph: WeakGraph,
    node: Weak<Node>,
    mode: ReplicationMode,
    top_id: String,
    file: Rc<Child>,
    stage: Cell<Stage>,
    outgoing: Rc<Outgoing>,
    running: RefCell<Option<Rc<Running>>>,
}

async fn open(cx: &mut OpenContext) -> Result<Box<dyn BlockDriver>> {
    let file = cx.open_file_child(ChildRole::FILTER).await?;
    let mode = match cx.options.take_str("mode")?.as_deref() {
        None => bail!("Missing the option mode"),
        Some("primary") => ReplicationMode::Primary,
        Some("secondary") => ReplicationMode::Secondary,
        Some(_) => bail!("The option mode's value should be primary or secondary"),
    };
    let top_id = match (mode, cx.options.take_str("top-id")?) {
        (ReplicationMode::Primary, Some(_)) => bail!("The primary side does not support option top-id"),
        (ReplicationMode::Secondary, None) => bail!("Missing the option top-id"),
        (_, top_id) => top_id.unwrap_or_default(),
    };
    Ok(Box::new(Replication {
        graph: cx.graph.downgrade(),
        node: cx.node.weak(),
        mode,
        top_id,
        file,
        stage: Cell::new(Stage::None),
        outgoing: Rc::default(),
        running: RefCell::default(),
    }))
}

impl Replication {
    /// Which side it is.
    pub fn mode(&self) -> ReplicationMode {
        self.mode
    }

    /// Where it is in its life.
    pub fn stage(&self) -> Stage {
        self.stage.get()
    }

    /// The secondary disk while it is in lock-step.
    pub fn secondary_disk(&self) -> Option<Rc<Node>> {
        self.running.borrow().as_ref().map(|r| r.secondary())
    }

    /// See [`all::replication_peer_lost`].
    fn peer_lost(&self) {
        match self.mode {
            ReplicationMode::Primary => {
                self.outgoing.give_up();
                self.file.node().cancel_in_flight();
            }
            ReplicationMode::Secondary => {
                if let (Some(disk), Some(graph)) = (self.secondary_disk(), self.graph.upgrade()) {
                    Exports::of(&graph).cut_writers(&disk);
                }
            }
        }
    }

    fn check_io(&self) -> io::Result<()> {
        match (self.stage.get(), self.mode) {
            (Stage::Running, _) => Ok(()),
            (Stage::None, _) | (_, ReplicationMode::Primary) => Err(errno(libc::EIO)),
            (_, ReplicationMode::Secondary) => Ok(()),
        }
    }

    /// Keeps the secondary disk from changing under a request of the guest that may look at it.
    async fn fence(&self, offset: u64, len: u64) -> Option<crate::requests::RequestGuard> {
        let running = self.running.borrow().clone()?;
        Some(running.fence(offset, len).await)
    }
}

impl BlockDriver for Replication {
    fn format_name(&self) -> &'static str {
        "replication"
    }

    fn length(&self) -> io::Result<u64> {
        self.file.node().len()
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            if self.mode == ReplicationMode::Primary {
                return Err(errno(libc::EIO));
            }
            self.check_io()?;
            let _fence = self.fence(offset, buf.len() as u64).await;
            self.file.node().read(offset, buf).await
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.check_io()?;
            let len = data.len() as u64;
            if self.stage.get() == Stage::FailoverFailed {
                return self.write_after_failure(offset, len, Some(data), flags).await;
            }
            if self.mode == ReplicationMode::Primary {
                let request = Request::Write(offset, data.to_vec(), flags);
                self.outgoing.put(request, self.file.node()).await;
                return Ok(());
            }
            let _fence = self.fence(offset, len).await;
            self.note_write();
            self.file.node().write(offset, data, flags).await
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.check_io()?;
            if self.stage.get() == Stage::FailoverFailed {
                return self.write_after_failure(offset, len, None, flags).await;
            }
            if self.mode == ReplicationMode::Primary {
                self.outgoing.put(Request::Zeroes(offset, len, flags), self.file.node()).await;
                return Ok(());
            }
            let _fence = self.fence(offset, len).await;
            self.note_write();
            self.file.node().write_zeroes(offset, len, flags).await
        })
    }

    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            match (self.mode, self.stage.get()) {
                // The overlays are thrown away at the next checkpoint; a failover makes them durable.
                (ReplicationMode::Secondary, Stage::Running) => Ok(()),
                (ReplicationMode::Secondary, Stage::Failover | Stage::FailoverFailed) => self.flush_chain().await,
                (ReplicationMode::Secondary, _) => self.file.node().flush().await,
                (ReplicationMode::Primary, Stage::Running) => {
                    // The first that fails cannot be told; all behind it are, as everybody is used to.
                    self.outgoing.put(Request::Flush, self.file.node()).await;
                    if self.outgoing.has_failed() { Err(errno(libc::EIO)) } else { Ok(()) }
                }
                (ReplicationMode::Primary, _) => self.file.node().flush().await,
            }
        })
    }

    fn supports_fua(&self) -> bool {
        self.mode == ReplicationMode::Secondary
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64, want_zero: bool) -> LocalBoxFuture<'a, io::Result<Extent>> {
        Box::pin(async move { self.file.node().block_status(offset, len, want_zero).await })
    }

    fn child_perms(&self, node: &Node, role: ChildRole, perm: Perm, _shared: Perm) -> (Perm, Perm) {
        let mut need = if role.contains(ChildRole::PRIMARY) { Perm::CONSISTENT_READ } else { Perm::empty() };
        // The overlays are written by the lock-step itself even before the guest asks.
        if node.is_writable() && (perm.contains(Perm::WRITE) || !role.contains(ChildRole::PRIMARY)) {
            need |= Perm::WRITE;
        }
        (need, Perm::CONSISTENT_READ | Perm::WRITE | Perm::WRITE_UNCHANGED)
    }

    fn limits(&self) -> Limits {
        let below = self.file.node().try_driver().map(|d| d.limits()).unwrap_or_default();
        Limits { request_alignment: below.request_alignment.max(SECTOR), ..below }
    }

    fn has_detached_requests(&self) -> bool {
        self.outgoing.is_busy()
    }

    fn close(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {
            self.outgoing.close(&self.file.node()).await;
            // As QEMU does: a secondary that is taken down while it runs is failed over on the spot.
            self.running.borrow_mut().take();
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The errors of the commands to one node.
impl Replication {
    fn expect_running(&self) -> Result<()> {
        match self.stage.get() {
            Stage::None => Err(Error::new("Block replication is not running")),
            _ => Ok(()),
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.stage.get(), Stage::Done | Stage::Failover | Stage::FailoverFailed)
    }

    /// Begins the lock-step. A node whose lock-step is over does not take part again.
    pub(crate) async fn start(&self, mode: ReplicationMode) -> Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        if self.stage.get() != Stage::None {
            bail!("Block replication is running or done");
        }
        if self.mode != mode {
            let number = |m| i32::from(m == ReplicationMode::Secondary);
            bail!("The parameter mode's value is invalid, needs {}, but got {}", number(self.mode), number(mode));
        }
        if mode == ReplicationMode::Secondary {
            let running = self.start_secondary().await?;
            *self.running.borrow_mut() = Some(running);
        }
        self.outgoing.reset();
        self.stage.set(Stage::Running);
        if mode == ReplicationMode::Secondary
            && let Err(e) = self.checkpoint_secondary().await
        {
            self.stop_copying();
            self.stage.set(Stage::None);
            return Err(e);
        }
        Ok(())
    }

    /// A checkpoint: the guest stands still, the secondary's overlays are emptied.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        self.expect_running()?;
        match self.mode {
            ReplicationMode::Primary => Ok(()),
            ReplicationMode::Secondary => self.checkpoint_secondary().await,
        }
    }

    /// Fails if something went wrong since the last checkpoint.
    pub(crate) fn get_error(&self) -> Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        self.expect_running()?;
        let copy_failed = self.running.borrow().as_ref().is_some_and(|r| r.copy.has_failed());
        if copy_failed || self.outgoing.has_failed() {
            bail!("I/O error occurred");
        }
        Ok(())
    }

    /// Ends the lock-step. `failover`: the guest's disk becomes the only truth, else it goes back to the checkpoint.
    pub(crate) async fn stop(&self, failover: bool) -> Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        self.expect_running()?;
        match self.mode {
            ReplicationMode::Primary => {
                self.stage.set(Stage::Done);
                Ok(())
            }
            ReplicationMode::Secondary if failover => self.failover().await,
            ReplicationMode::Secondary => {
                let result = self.checkpoint_secondary().await;
                self.stop_copying();
                self.stage.set(Stage::Done);
                result
            }
        }
    }
}
