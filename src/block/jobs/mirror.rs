//! The engine of mirror and active commit: copies what is dirty, keeps up with new writes, ends when both sides are
//! equal.
//!
//! Ranges that read as zeroes on both sides cost one status query; data goes in requests of a few megabytes, several at
//! a time. Two copies of the same range never overlap in time, so the target cannot end with older data.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use lockstep_util::{Error, Result, bail};
use tokio::sync::Notify;

use super::dirty::DirtyMap;
use super::edge::JobEdge;
use super::job::{ErrorAction, Job, JobDriver, OnError};
use crate::child::{Child, Perm};
use crate::driver::{LocalBoxFuture, Preallocation, Status, WriteFlags};
use crate::graph::WeakGraph;
use crate::node::{Node, OpBlockGuard, SharedBelow, WriteHook};
use crate::open::OpenFlags;

/// Most copies under way.
const MAX_IN_FLIGHT: usize = 16;
/// Most bytes of one copy.
const MAX_COPY: u64 = 4 << 20;
/// Most bytes whose status is asked for at once.
const MAX_STATUS: u64 = 1 << 30;
/// How long a ready job sleeps without being woken.
const IDLE: Duration = Duration::from_millis(100);
/// What may be left for the time when nobody writes, in bytes.
const FINAL: u64 = 8 << 20;
/// Default of `buf-size`, in bytes.
pub const DEFAULT_BUF_SIZE: u64 = 16 << 20;

/// What is copied at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// The whole disk.
    Full,
    /// What the top layer holds.
    Top,
    /// Only new writes.
    None,
}

impl SyncMode {
    /// Names as arguments have them.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("full", Self::Full), ("top", Self::Top), ("none", Self::None)];
}

/// What happens when a ready job is told to complete.
pub type Pivot = Box<dyn Fn(&Engine) -> LocalBoxFuture<'static, Result<()>>>;

/// What a copy waits for.
pub type BeforeCopy = Rc<dyn Fn() -> LocalBoxFuture<'static, ()>>;

/// What a mirror is made of.
pub struct MirrorParts {
    /// For the edges of the job.
    pub edge: Rc<JobEdge>,
    /// What is copied at the start.
    pub sync: SyncMode,
    /// Bytes for each bit of the dirty map (a power of two).
    pub granularity: u64,
    /// Most bytes under way.
    pub buf_size: u64,
    /// About errors of the source.
    pub on_source_error: OnError,
    /// About errors of the target.
    pub on_target_error: OnError,
    /// Zeroes may be written by unmapping.
    pub unmap: bool,
    /// A write of the guest ends when the target has it too (`copy-mode=write-blocking`).
    pub write_blocking: bool,
    /// Has no steady state: completes as soon as both sides are equal.
    pub auto_complete: bool,
    /// Waited for before each stretch is copied.
    pub before_copy: Option<BeforeCopy>,
    /// What completing does, under drain.
    pub pivot: Pivot,
    /// Operations kept from the nodes.
    pub blockers: Vec<OpBlockGuard>,
    /// Layers between the two ends, below which the job writes.
    pub shared_below: Vec<SharedBelow>,
    /// A node that gets these flags back in the end.
    pub restore: Option<(Rc<Node>, OpenFlags)>,
}

struct Ends {
    source: Rc<Child>,
    target: Rc<Child>,
    base: Option<Rc<Node>>,
}

/// The state of a running mirror.
pub struct Engine {
    graph: WeakGraph,
    parts: MirrorParts,
    blockers: RefCell<Vec<OpBlockGuard>>,
    shared_below: RefCell<Vec<SharedBelow>>,
    restore: RefCell<Option<(Rc<Node>, OpenFlags)>>,
    /// The nodes, until the job lets go of them.
    ends: RefCell<Option<Ends>>,
    dirty: RefCell<DirtyMap>,
    copying: RefCell<Vec<(u64, u64)>>,
    bytes_in_flight: Cell<u64>,
    /// Bytes of data under way.
    buffered: Cell<u64>,
    /// The source is known to have data from here to there.
    data_end: Cell<(u64, u64)>,
    cursor: Cell<u64>,
    failure: RefCell<Option<(bool, io::Error)>>,
    changed: Notify,
    job: RefCell<Option<Rc<Job>>>,
}

/// The job driver.
pub struct Mirror {
    engine: Rc<Engine>,
    /// Whether the pivot was done.
    hook: RefCell<Option<Rc<dyn WriteHook>>>,
}

impl Mirror {
    /// Reads from `source` and writes to `target`. With a `base` (which is the target, for a commit) only what is
    /// allocated above it is copied.
    pub fn new(
        graph: &crate::graph::Graph,
        source: Rc<Child>,
        target: Rc<Child>,
        base: Option<Rc<Node>>,
        mut parts: MirrorParts,
    ) -> Result<Self> {
        let size = source.node().len().map_err(|e| Error::with_errno("Failed to get image size", &e))?;
        let dirty = DirtyMap::new(size, parts.granularity);
        let engine = Rc::new(Engine {
            graph: graph.downgrade(),
            blockers: RefCell::new(std::mem::take(&mut parts.blockers)),
            shared_below: RefCell::new(std::mem::take(&mut parts.shared_below)),
            restore: RefCell::new(parts.restore.take()),
            parts,
            ends: RefCell::new(Some(Ends { source, target, base })),
            dirty: RefCell::new(dirty),
            copying: RefCell::default(),
            bytes_in_flight: Cell::new(0),
            buffered: Cell::new(0),
            data_end: Cell::new((0, 0)),
            cursor: Cell::new(0),
            failure: RefCell::default(),
            changed: Notify::new(),
            job: RefCell::default(),
        });
        let hook: Rc<dyn WriteHook> = engine.clone();
        engine.source().add_write_hook(Rc::downgrade(&hook));
        Ok(Self { engine, hook: RefCell::new(Some(hook)) })
    }
}

impl Engine {
    /// The node that is read.
    pub fn source(&self) -> Rc<Node> {
        match &*self.ends.borrow() {
            Some(ends) => ends.source.node(),
            None => unreachable!("a mirror that has let go copies nothing"),
        }
    }

    /// The node that is written.
    pub fn target(&self) -> Rc<Node> {
        match &*self.ends.borrow() {
            Some(ends) => ends.target.node(),
            None => unreachable!("a mirror that has let go copies nothing"),
        }
    }

    fn base(&self) -> Option<Rc<Node>> {
        self.ends.borrow().as_ref().and_then(|e| e.base.clone())
    }

    /// The graph, while it lives.
    pub fn graph(&self) -> Result<crate::graph::Graph> {
        self.graph.upgrade().ok_or_else(|| Error::new("The block graph is gone"))
    }

    fn is_equal(&self) -> bool {
        self.dirty.borrow().is_clean() && self.copying.borrow().is_empty()
    }

    fn remaining(&self) -> u64 {
        self.dirty.borrow().dirty_bytes() + self.bytes_in_flight.get()
    }

    async fn run(self: &Rc<Self>, job: &Rc<Job>) -> Result<()> {
        *self.job.borrow_mut() = Some(job.clone());
        self.parts.edge.set_job(job);
        self.check_lengths().await?;
        self.mark_initial(job).await?;
        let result = self.copy_until_done(job).await;
        // Copies still under way hold nothing that is freed here, but the target must not change after the end.
        while !self.copying.borrow().is_empty() {
            self.changed.notified().await;
        }
        result
    }

    async fn check_lengths(&self) -> Result<()> {
        let length = |node: Rc<Node>| node.len().map_err(Error::from);
        let (source, target) = (length(self.source())?, length(self.target())?);
        if self.base().is_some() {
            if source > target {
                self.target().truncate(source, false, Preallocation::Off).await?;
            }
        } else if source != target {
            bail!("Source and target image have different sizes");
        }
        Ok(())
    }

    async fn mark_initial(&self, job: &Rc<Job>) -> Result<()> {
        let source = self.source();
        let size = self.dirty.borrow().size();
        let base = match self.parts.sync {
            SyncMode::None => {
                job.set_remaining(0);
                return Ok(());
            }
            SyncMode::Full if self.base().is_none() => {
                self.dirty.borrow_mut().set(0, size);
                job.set_remaining(self.remaining());
                return Ok(());
            }
            SyncMode::Full => self.base(),
            SyncMode::Top => source.skip_filters().backing(),
        };
        let mut at = 0;
        while at < size {
            if job.is_cancelled() {
                return Ok(());
            }
            job.pause_point().await;
            let len = (size - at).min(MAX_STATUS);
            let (allocated, n) = source.is_allocated_above(base.as_ref(), false, at, len).await?;
            if allocated {
                self.dirty.borrow_mut().set(at, n);
            }
            at += n.max(1);
            job.set_remaining(self.remaining());
        }
        Ok(())
    }

    async fn copy_until_done(self: &Rc<Self>, job: &Rc<Job>) -> Result<()> {
        loop {
            if job.is_cancelled() {
                return Ok(());
            }
            self.settle_failure(job)?;
            job.set_remaining(self.remaining());
            let changed = self.changed.notified();
            self.start_copies(job).await;
            // A guest that writes all the time is held for the last bit.
            if self.wants_end(job) && self.remaining() <= FINAL && self.failure.borrow().is_none() {
                return self.finish(job).await;
            }
            if !self.is_equal() || self.failure.borrow().is_some() {
                // All slots are taken, or what is left overlaps copies under way.
                job.pause_point().await;
                tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep(IDLE) => {}
                }
                continue;
            }
            // Both sides are equal at this moment.
            if !job.is_ready() && !self.parts.auto_complete {
                if let Err(e) = self.target().flush().await {
                    self.fail(false, e);
                    continue;
                }
                job.set_remaining(0);
                job.set_actively_synced(self.parts.write_blocking);
                job.become_ready();
                continue;
            }
            if !self.wants_end(job) {
                job.sleep(IDLE).await;
            }
        }
    }

    fn wants_end(&self, job: &Job) -> bool {
        self.parts.auto_complete || (job.is_ready() && (job.is_completing() || job.cancel_requested()))
    }

    /// With nobody writing: copies what is left, and pivots if that is asked.
    async fn finish(self: &Rc<Self>, job: &Rc<Job>) -> Result<()> {
        self.parts.edge.draining_itself.set(true);
        let _off = OnDrop(|| self.parts.edge.draining_itself.set(false));
        let _quiet = self.source().drain().await;
        while !self.is_equal() {
            if job.is_cancelled() {
                return Ok(());
            }
            self.settle_failure(job)?;
            job.pause_point().await;
            let changed = self.changed.notified();
            self.start_copies(job).await;
            if !self.is_equal() {
                tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep(IDLE) => {}
                }
            }
        }
        self.target().flush().await?;
        job.set_remaining(0);
        if self.parts.auto_complete || job.is_completing() {
            self.end_writing()?;
            (self.parts.pivot)(self).await?;
        }
        Ok(())
    }

    /// Both sides are equal and stay so. The source's users, who come to the target now, need not bear that anybody else writes there.
    fn end_writing(&self) -> Result<()> {
        match &*self.ends.borrow() {
            Some(ends) => ends.target.set_perms(Perm::empty(), Perm::all()),
            None => Ok(()),
        }
    }

    /// Starts as many copies as there is room for.
    async fn start_copies(self: &Rc<Self>, job: &Rc<Job>) {
        while !job.is_pausing() && self.copying.borrow().len() < MAX_IN_FLIGHT && self.failure.borrow().is_none() {
            let buffered = self.buffered.get();
            if buffered > 0 && buffered + self.granularity() > self.parts.buf_size {
                return;
            }
            if let Some(before_copy) = &self.parts.before_copy
                && !self.dirty.borrow().is_clean()
            {
                before_copy().await;
            }
            let Some((offset, len)) = self.next_range() else { return };
            // Unmarked first: whatever is written from now on is copied again.
            self.dirty.borrow_mut().clear(offset, len);
            let (n, zero) = match self.classify(offset, len).await {
                Ok(found) => found,
                Err(e) => {
                    self.dirty.borrow_mut().set(offset, len);
                    return self.fail(true, e);
                }
            };
            if n < len {
                self.dirty.borrow_mut().set(offset + n, len - n);
            }
            self.cursor.set(offset + n);
            self.begin(job, offset, n, zero);
            if !zero {
                job.throttle(n).await;
            }
        }
    }

    /// Copies what a write of the guest has just made dirty, before that write ends.
    async fn copy_behind_write(&self, offset: u64, len: u64) {
        let (granularity, size) = (self.granularity(), self.dirty.borrow().size());
        let end = offset.saturating_add(len).min(size).next_multiple_of(granularity).min(size);
        let mut at = offset - offset % granularity;
        while at < end && self.failure.borrow().is_none() && self.ends.borrow().is_some() {
            let changed = self.changed.notified();
            let next = self.dirty.borrow().next_dirty(at, MAX_COPY).filter(|(o, _)| *o < end);
            let (o, l) = next.map_or((end, 0), |(o, l)| (o, l.min(end - o)));
            // A copy under way may have older data and must not end behind this one.
            if self.copying.borrow().iter().any(|(from, n)| *from < o + l && at < from + n) {
                changed.await;
                continue;
            }
            if l == 0 {
                return;
            }
            self.dirty.borrow_mut().clear(o, l);
            self.enter(o, l, true);
            // Whoever drops the write half-way leaves the range to the background.
            let dropped = Cell::new(true);
            let _left = OnDrop(|| {
                if dropped.get() {
                    self.dirty.borrow_mut().set(o, l);
                    self.leave(o, l, true, Ok(()));
                }
            });
            let result = self.copy_data(o, l).await;
            dropped.set(false);
            self.leave(o, l, true, result);
            at = o + l;
        }
    }

    /// How much of the start of a range is to be copied at once, and whether it is all zeroes.
    async fn classify(&self, offset: u64, len: u64) -> io::Result<(u64, bool)> {
        let (granularity, size) = (self.granularity(), self.dirty.borrow().size());
        let whole = |n: u64| match n / granularity * granularity {
            _ if offset + n >= size => n,
            0 => granularity.min(len),
            n => n,
        };
        let room =
            self.parts.buf_size.saturating_sub(self.buffered.get()).clamp(granularity, MAX_COPY.max(granularity));
        let mut data_end = self.data_end.get();
        if !(data_end.0..data_end.1).contains(&offset) {
            let (extent, _) = self.source().block_status_above(None, offset, len).await?;
            let n = extent.len.clamp(1, len);
            if extent.status.contains(Status::ZERO) && (n >= granularity || n == len) {
                return Ok((whole(n), true));
            }
            data_end = (offset, offset + n);
            self.data_end.set(data_end);
        }
        Ok((whole((data_end.1 - offset).min(len).min(room)), false))
    }

    fn granularity(&self) -> u64 {
        self.dirty.borrow().granularity()
    }

    fn begin(self: &Rc<Self>, job: &Rc<Job>, offset: u64, len: u64, zero: bool) {
        self.enter(offset, len, !zero);
        let (engine, job) = (self.clone(), job.clone());
        tokio::task::spawn_local(async move {
            let result = if zero { engine.copy_zeroes(offset, len).await } else { engine.copy_data(offset, len).await };
            if result.is_ok() {
                job.advance(len);
            }
            engine.leave(offset, len, !zero, result);
        });
    }

    fn enter(&self, offset: u64, len: u64, buffered: bool) {
        self.copying.borrow_mut().push((offset, len));
        self.bytes_in_flight.set(self.bytes_in_flight.get() + len);
        if buffered {
            self.buffered.set(self.buffered.get() + len);
        }
        self.parts.edge.in_flight.set(self.parts.edge.in_flight.get() + 1);
    }

    fn leave(&self, offset: u64, len: u64, buffered: bool, result: std::result::Result<(), (bool, io::Error)>) {
        if let Err((is_read, e)) = result {
            self.dirty.borrow_mut().set(offset, len);
            self.fail(is_read, e);
        }
        self.copying.borrow_mut().retain(|r| *r != (offset, len));
        self.bytes_in_flight.set(self.bytes_in_flight.get() - len);
        if buffered {
            self.buffered.set(self.buffered.get() - len);
        }
        self.parts.edge.in_flight.set(self.parts.edge.in_flight.get() - 1);
        self.changed.notify_waiters();
        crate::drain::kick();
    }

    /// The next dirty range after the last one that overlaps no copy under way; goes round at the end.
    fn next_range(&self) -> Option<(u64, u64)> {
        let dirty = self.dirty.borrow();
        let mut from = self.cursor.get();
        let mut wrapped = false;
        loop {
            match dirty.next_dirty(from, MAX_STATUS) {
                Some((offset, len)) => {
                    let copying = self.copying.borrow();
                    let hit =
                        copying.iter().filter(|(o, l)| *o < offset + len && offset < o + l).min_by_key(|(o, _)| *o);
                    match hit {
                        None => return Some((offset, len)),
                        Some((o, _)) if *o > offset => return Some((offset, o - offset)),
                        Some((o, l)) => from = (o + l).next_multiple_of(dirty.granularity()),
                    }
                }
                None if wrapped => return None,
                None => {
                    wrapped = true;
                    from = 0;
                }
            }
            if from >= dirty.size() {
                if wrapped {
                    return None;
                }
                wrapped = true;
                from = 0;
            }
        }
    }

    fn fail(&self, is_read: bool, error: io::Error) {
        self.failure.borrow_mut().get_or_insert((is_read, error));
    }

    fn settle_failure(&self, job: &Rc<Job>) -> Result<()> {
        let Some((is_read, error)) = self.failure.take() else { return Ok(()) };
        let policy = if is_read { self.parts.on_source_error } else { self.parts.on_target_error };
        match job.handle_error(policy, is_read, &error) {
            ErrorAction::Report => Err(Error::from(error)),
            ErrorAction::Ignore | ErrorAction::Stop => Ok(()),
        }
    }

    async fn copy_data(&self, offset: u64, len: u64) -> std::result::Result<(), (bool, io::Error)> {
        let mut buf = vec![0; len as usize];
        self.source().read(offset, &mut buf).await.map_err(|e| (true, e))?;
        self.target().write(offset, &buf, WriteFlags::empty()).await.map_err(|e| (false, e))
    }

    async fn copy_zeroes(&self, offset: u64, len: u64) -> std::result::Result<(), (bool, io::Error)> {
        let target = self.target();
        let flags = if self.parts.unmap { WriteFlags::MAY_UNMAP } else { WriteFlags::empty() };
        let mut at = offset;
        while at < offset + len {
            let (there, _) = target.block_status_above(None, at, offset + len - at).await.map_err(|e| (false, e))?;
            let n = there.len.clamp(1, offset + len - at);
            // Without its backing file a new overlay reads as zeroes and yet has to say so itself.
            if !there.status.contains(Status::ZERO) || self.parts.sync != SyncMode::Full {
                target.write_zeroes(at, n, flags).await.map_err(|e| (false, e))?;
            }
            at += n;
        }
        Ok(())
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl WriteHook for Engine {
    fn after_write(&self, offset: u64, len: u64, _ok: bool) {
        self.dirty.borrow_mut().set(offset, len);
        self.changed.notify_waiters();
        if let Some(job) = &*self.job.borrow()
            && job.is_ready()
        {
            job.kick();
        }
    }

    fn settle_write<'a>(&'a self, offset: u64, len: u64) -> Option<LocalBoxFuture<'a, ()>> {
        self.parts.write_blocking.then(|| -> LocalBoxFuture<'a, ()> { Box::pin(self.copy_behind_write(offset, len)) })
    }
}

impl JobDriver for Mirror {
    fn run<'a>(&'a self, job: &'a Rc<Job>) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move { self.engine.run(job).await })
    }

    fn can_complete(&self) -> bool {
        true
    }

    fn cancel_aborts(&self, job: &Job) -> bool {
        !job.is_ready()
    }

    fn cancel_in_flight(&self) {
        if let Some(ends) = &*self.engine.ends.borrow() {
            ends.target.node().cancel_in_flight();
        }
    }

    fn clean(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async move {
            *self.hook.borrow_mut() = None;
            self.engine.job.borrow_mut().take();
            if let Some(ends) = self.engine.ends.take() {
                ends.source.detach();
                ends.target.detach();
            }
            self.engine.blockers.take();
            self.engine.shared_below.take();
            let restore = self.engine.restore.take();
            // The target's connection must be gone when the job is: commands behind it may want the export.
            if let Some(graph) = self.engine.graph.upgrade() {
                if let Some((node, flags)) = restore
                    && let Err(e) = graph.reopen(&node, flags).await
                {
                    tracing::warn!("opening '{}' as it was: {e}", node.name());
                }
                graph.collect().await;
            }
        })
    }
}
