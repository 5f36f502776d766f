//! The secondary's side: overlays, copy before write, checkpoint, failover.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use lockstep_util::{Error, Result, bail};

use super::all::TakeoverSteps;
use super::{Replication, Stage};
use crate::child::{Child, ChildRole, Perm};
use crate::driver::{LocalBoxFuture, WriteFlags};
use crate::export::Exports;
use crate::graph::Graph;
use crate::jobs::copy_before_write::CopyBeforeWrite;
use crate::jobs::job::{JobOptions, OnError};
use crate::jobs::mirror::{BeforeCopy, DEFAULT_BUF_SIZE, Engine, Mirror, MirrorParts, SyncMode};
use crate::jobs::{JobEdge, JobType, Jobs};
use crate::node::{BlockOp, Node, OpBlockGuard};
use crate::open::OpenFlags;
use crate::requests::RequestGuard;

/// Smallest cluster of overlays that is reckoned with, in bytes.
const MIN_CLUSTER: u64 = 64 << 10;

/// A secondary in lock-step.
pub(super) struct Running {
    pub(super) hidden: Rc<Child>,
    pub(super) secondary: Rc<Child>,
    pub(super) copy: Rc<CopyBeforeWrite>,
    /// The guest has written since the last checkpoint.
    written: Cell<bool>,
    cluster: u64,
    _blocker: RefCell<Option<OpBlockGuard>>,
}

impl Running {
    pub(super) fn secondary(&self) -> Rc<Node> {
        self.secondary.node()
    }

    /// Keeps the part of the secondary disk that a request may look at from changing. A write to an overlay looks at
    /// whole clusters.
    pub(super) async fn fence(&self, offset: u64, len: u64) -> RequestGuard {
        let start = offset - offset % self.cluster;
        let end = offset.saturating_add(len).div_ceil(self.cluster).saturating_mul(self.cluster);
        self.secondary.node().fence(start, end - start).await
    }
}

impl Replication {
    fn graph(&self) -> Result<Graph> {
        self.graph.upgrade().ok_or_else(|| Error::new("The block graph is gone"))
    }

    fn own_node(&self) -> Result<Rc<Node>> {
        self.node.upgrade().ok_or_else(|| Error::new("The replication node is gone"))
    }

    pub(super) fn note_write(&self) {
        if let Some(running) = &*self.running.borrow() {
            running.written.set(true);
        }
    }

    /// The overlays and the disk below, checked.
    fn chain(&self) -> Result<(Rc<Node>, Rc<Node>, Rc<Node>)> {
        let active = self.file.node();
        let Some(hidden) = active.backing() else { bail!("Active disk doesn't have backing file") };
        let Some(secondary) = hidden.backing() else { bail!("Hidden disk doesn't have backing file") };
        if secondary.device_name().is_none() {
            bail!("The secondary disk doesn't have block backend");
        }
        let length = |node: &Rc<Node>| node.len().map_err(|e| Error::with_errno("Failed to get image size", &e));
        let lengths = [length(&active)?, length(&hidden)?, length(&secondary)?];
        if lengths[0] != lengths[1] || lengths[1] != lengths[2] {
            bail!("Active disk, hidden disk, secondary disk's length are not the same");
        }
        if !active.driver()?.supports_make_empty() || !hidden.driver()?.supports_make_empty() {
            bail!("Active disk or hidden disk doesn't support make_empty");
        }
        Ok((active, hidden, secondary))
    }

    pub(super) async fn start_secondary(&self) -> Result<Rc<Running>> {
        let graph = self.graph()?;
        let node = self.own_node()?;
        let (active, hidden, secondary) = self.chain()?;
        let top = graph.lookup(&self.top_id).ok().filter(|top| top.reaches(&node));
        let Some(top) = top else { bail!("No top_bs or it is invalid") };
        for overlay in [&active, &hidden, &secondary] {
            let flags = overlay.flags();
            graph.reopen(overlay, OpenFlags { read_only: false, ..flags }).await?;
        }
        // Nothing may change between the last look at the disk and the first copy.
        let _quiet = secondary.drain().await;
        let hidden_child = node.attach_child("hidden disk", ChildRole::DATA, &hidden)?;
        let secondary_child = match node.attach_child("secondary disk", ChildRole::DATA, &secondary) {
            Ok(child) => child,
            Err(e) => {
                node.detach_child(&hidden_child);
                return Err(e);
            }
        };
        let copy = match CopyBeforeWrite::start(&secondary, &hidden) {
            Ok(copy) => copy,
            Err(e) => {
                node.detach_child(&hidden_child);
                node.detach_child(&secondary_child);
                return Err(Error::from(e));
            }
        };
        let cluster = [&active, &hidden]
            .iter()
            .filter_map(|n| n.try_driver().map(|d| d.format_info().cluster_size))
            .fold(MIN_CLUSTER, u64::max);
        let operations: Vec<BlockOp> = BlockOp::ALL.iter().copied().filter(|op| *op != BlockOp::Dataplane).collect();
        let blocker = top.block_ops(&operations, "Block device is in use by internal backup job");
        Ok(Rc::new(Running {
            hidden: hidden_child,
            secondary: secondary_child,
            copy,
            // What the overlays hold from before is unknown: the first checkpoint empties them.
            written: Cell::new(true),
            cluster,
            _blocker: RefCell::new(Some(blocker)),
        }))
    }

    fn running(&self) -> Result<Rc<Running>> {
        self.running.borrow().clone().ok_or_else(|| Error::new("Block replication is not running"))
    }

    /// The guest's view becomes the secondary disk as it is now.
    pub(super) async fn checkpoint_secondary(&self) -> Result<()> {
        let running = self.running()?;
        if running.copy.has_failed() {
            bail!("Backup job was cancelled unexpectedly");
        }
        let secondary = running.secondary();
        let active = self.file.node();
        // Quiesces the primary's writers as well as the guest.
        let _quiet = secondary.drain().await;
        let first = running.copy.remaining() == secondary.len().unwrap_or(0) && running.written.get();
        if running.written.get() {
            active.make_empty().await.map_err(|e| Error::with_errno("Cannot make active disk empty", &e))?;
        }
        if running.copy.has_copied() || first {
            running
                .hidden
                .node()
                .make_empty()
                .await
                .map_err(|e| Error::with_errno("Cannot make hidden disk empty", &e))?;
        }
        running.copy.reset();
        running.written.set(false);
        Ok(())
    }

    /// Ends the copying before writes and gives the overlays' permissions back.
    pub(super) fn stop_copying(&self) {
        let running = self.running.borrow_mut().take();
        if let (Some(running), Some(node)) = (running, self.node.upgrade()) {
            node.detach_child(&running.hidden);
            node.detach_child(&running.secondary);
        }
    }

    /// Takes over: writers lose the disk, the copying stops, the overlays are made durable and committed behind the
    /// guest's back.
    pub(super) async fn failover(&self) -> Result<()> {
        let running = self.running()?;
        let graph = self.graph()?;
        let secondary = running.secondary();
        let active = self.file.node();
        let steps = TakeoverSteps::of(&graph);
        Exports::of(&graph).revoke_writers(&graph, &secondary).await;
        steps.at("secondary-failover-revoked").await;
        {
            let _quiet = secondary.drain().await;
            // No write to the secondary disk but the commit's from here on.
            self.stage.set(Stage::Failover);
            self.stop_copying();
            drop(running);
        }
        steps.at("secondary-failover-drained").await;
        // Flushes of the guest were not passed on until now; what it was told is true from here on. The disk below had
        // the primary's flushes already.
        for overlay in [Some(active.clone()), active.backing()].into_iter().flatten() {
            if let Err(e) = overlay.flush().await {
                tracing::warn!("flushing '{}' at failover failed: {e}", overlay.name());
            }
        }
        steps.at("secondary-failover-flushed").await;
        if let Err(e) = self.start_commit(&graph, &active, &secondary) {
            self.stage.set(Stage::FailoverFailed);
            return Err(e);
        }
        Ok(())
    }

    fn start_commit(&self, graph: &Graph, active: &Rc<Node>, secondary: &Rc<Node>) -> Result<()> {
        let edge = JobEdge::new("");
        let shared = Perm::all();
        let source = edge.attach("source", active, Perm::CONSISTENT_READ, shared)?;
        let target = edge.attach("target", secondary, Perm::CONSISTENT_READ | Perm::WRITE, shared)?;
        let node = self.node.clone();
        let steps = TakeoverSteps::of(graph);
        let before_copy = steps.is_told().then(|| -> BeforeCopy {
            let steps = steps.clone();
            Rc::new(move || {
                let steps = steps.clone();
                Box::pin(async move { steps.at("secondary-merge").await })
            })
        });
        let pivot = move |engine: &Engine| -> LocalBoxFuture<'static, Result<()>> {
            let (node, steps) = (node.clone(), steps.clone());
            let secondary = engine.target();
            Box::pin(async move {
                steps.at("secondary-merged").await;
                let Some(node) = node.upgrade() else { return Ok(()) };
                let Some(replication) = node.driver_as::<Replication>() else { return Ok(()) };
                replication.file.replace_node(&secondary)?;
                replication.stage.set(Stage::Done);
                Ok(())
            })
        };
        let parts = MirrorParts {
            edge,
            sync: SyncMode::Full,
            granularity: MIN_CLUSTER,
            buf_size: DEFAULT_BUF_SIZE,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
            unmap: false,
            write_blocking: false,
            auto_complete: true,
            before_copy,
            pivot: Box::new(pivot),
            blockers: Vec::new(),
            shared_below: Vec::new(),
            restore: None,
        };
        let mirror = Mirror::new(graph, source, target, Some(secondary.clone()), parts)?;
        let job = Jobs::of(graph).start(graph, JobType::Commit, JobOptions::internal(), Box::new(mirror))?;
        let node = self.node.clone();
        tokio::task::spawn_local(async move {
            job.finished().await;
            let Some(node) = node.upgrade() else { return };
            if let Some(replication) = node.driver_as::<Replication>()
                && replication.stage.get() == Stage::Failover
            {
                let why = job.error().map_or_else(String::new, |e| e.message().to_owned());
                tracing::error!("committing the overlays of '{}' failed: {why}", node.name());
                replication.stage.set(Stage::FailoverFailed);
            }
        });
        Ok(())
    }

    /// Makes the guest's disk stable while it is spread over the overlays and the disk below.
    pub(super) async fn flush_chain(&self) -> io::Result<()> {
        let mut layer = Some(self.file.node());
        let mut result = Ok(());
        while let Some(node) = layer {
            let flushed = node.flush().await;
            if result.is_ok() {
                result = flushed;
            }
            layer = node.backing();
        }
        result
    }

    /// After a commit that failed: what the overlays hold is written there, the rest straight to the disk, so that the
    /// overlays do not grow.
    pub(super) async fn write_after_failure(
        &self,
        offset: u64,
        len: u64,
        data: Option<&[u8]>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let active = self.file.node();
        let base = active.backing().and_then(|hidden| hidden.backing());
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let (allocated, n) = active.is_allocated_above(base.as_ref(), false, at, end - at).await?;
            let n = n.clamp(1, end - at);
            let to = match (&base, allocated) {
                (Some(base), false) => base,
                _ => &active,
            };
            match data {
                Some(data) => {
                    let from = (at - offset) as usize;
                    to.write(at, &data[from..from + n as usize], flags).await?;
                }
                None => to.write_zeroes(at, n, flags).await?,
            }
            at += n;
        }
        Ok(())
    }
}
