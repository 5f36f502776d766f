//! `backup`: copies a disk as it was at one moment while it goes on changing.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use lockstep_util::{Error, Result, bail};

use super::commands::{CommonArgs, NewImageMode};
use super::copy_before_write::CopyBeforeWrite;
use super::edge::JobEdge;
use super::job::{ErrorAction, Job, JobDriver, OnError};
use super::mirror::SyncMode;
use super::{JobType, Jobs, target};
use crate::child::{Child, Perm};
use crate::driver::LocalBoxFuture;
use crate::graph::{Graph, WeakGraph};
use crate::node::{BlockOp, Node, OpBlockGuard};
use crate::open::OpenFlags;

/// How long a job that only copies before writes sleeps without being woken.
const IDLE: Duration = Duration::from_secs(1);

/// Arguments that `drive-backup` and `blockdev-backup` share.
#[derive(Clone, Debug)]
pub struct BackupArgs {
    /// Id, speed and such.
    pub common: CommonArgs,
    /// `device`: what is copied.
    pub device: String,
    /// `sync`
    pub sync: SyncMode,
    /// `on-source-error`
    pub on_source_error: OnError,
    /// `on-target-error`
    pub on_target_error: OnError,
}

impl BackupArgs {
    /// Defaults for a device and a sync mode.
    pub fn new(device: &str, sync: SyncMode) -> Self {
        Self {
            common: CommonArgs::default(),
            device: device.to_owned(),
            sync,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
        }
    }
}

struct Backup {
    graph: WeakGraph,
    edge: Rc<JobEdge>,
    /// Source and target, until the job lets go of them.
    ends: RefCell<Option<[Rc<Child>; 2]>>,
    sync: SyncMode,
    on_error: OnError,
    copy: RefCell<Option<Rc<CopyBeforeWrite>>>,
    _blockers: [OpBlockGuard; 2],
}

/// `drive-backup`: the target is a filename.
pub async fn drive_backup(
    graph: &Graph,
    args: BackupArgs,
    target: &str,
    format: Option<&str>,
    mode: NewImageMode,
) -> Result<()> {
    Jobs::of(graph).settle().await;
    let source = graph.lookup(&args.device)?;
    source.check_op(BlockOp::BackupSource)?;
    args.common.options(graph, &source)?;
    let wanted = target::Target { filename: target, format, mode, node_name: None };
    let target = target::open(graph, wanted, &source, args.sync, OpenFlags::default()).await?;
    let result = start(graph, args, &source, &target).await;
    drop(target);
    if result.is_err() {
        graph.collect().await;
    }
    result
}

/// `blockdev-backup`: the target is a node.
pub async fn blockdev_backup(graph: &Graph, args: BackupArgs, target: &str) -> Result<()> {
    Jobs::of(graph).settle().await;
    let source = graph.lookup(&args.device)?;
    let target = graph.lookup(target)?;
    start(graph, args, &source, &target).await
}

async fn start(graph: &Graph, args: BackupArgs, source: &Rc<Node>, target: &Rc<Node>) -> Result<()> {
    if Rc::ptr_eq(source, target) {
        bail!("Source and target cannot be the same");
    }
    source.check_op(BlockOp::BackupSource)?;
    target.check_op(BlockOp::BackupTarget)?;
    let length = |n: &Rc<Node>, what: &str| {
        n.len().map_err(|e| Error::with_errno(format_args!("Unable to get length for '{what}'"), &e))
    };
    if length(source, &args.device)? != length(target, target.name())? {
        bail!("Source and target image have different sizes");
    }
    let options = args.common.options(graph, source)?;
    let edge = JobEdge::new(options.id.as_deref().unwrap_or(""));
    // Nothing may be under way when the moment is taken.
    let _quiet = source.drain().await;
    let source_edge = edge.attach("source", source, Perm::CONSISTENT_READ, Perm::all())?;
    let target_edge = match edge.attach("target", target, Perm::WRITE, Perm::all()) {
        Ok(edge) => edge,
        Err(e) => {
            source_edge.detach();
            return Err(e);
        }
    };
    let copy = CopyBeforeWrite::start(source, target)?;
    let reason = format!("block device is in use by block job: {}", JobType::Backup.as_str());
    let all: Vec<BlockOp> = BlockOp::ALL.iter().copied().filter(|op| *op != BlockOp::Dataplane).collect();
    let backup = Backup {
        graph: graph.downgrade(),
        edge,
        ends: RefCell::new(Some([source_edge, target_edge])),
        sync: args.sync,
        on_error: args.on_target_error,
        copy: RefCell::new(Some(copy)),
        _blockers: [source.block_ops(&[BlockOp::Resize], &reason), target.block_ops(&all, &reason)],
    };
    Jobs::of(graph).start(graph, JobType::Backup, options, Box::new(backup))?;
    Ok(())
}

impl Backup {
    fn ends(&self) -> Result<[Rc<Node>; 2]> {
        match &*self.ends.borrow() {
            Some([source, target]) => Ok([source.node(), target.node()]),
            None => Err(Error::new("The backup has ended")),
        }
    }

    fn copy(&self) -> Result<Rc<CopyBeforeWrite>> {
        self.copy.borrow().clone().ok_or_else(|| Error::new("The backup has ended"))
    }

    /// Leaves out what the top layer does not hold.
    async fn skip_below(&self, job: &Job, copy: &CopyBeforeWrite) -> Result<()> {
        let [source, _] = self.ends()?;
        let size = source.len()?;
        let base = source.skip_filters().backing();
        let mut at = 0;
        while at < size && !job.is_cancelled() {
            job.pause_point().await;
            let (allocated, n) = source.is_allocated_above(base.as_ref(), false, at, size - at).await?;
            if !allocated {
                copy.skip(at, n);
            }
            at += n.max(1);
        }
        Ok(())
    }
}

impl JobDriver for Backup {
    fn run<'a>(&'a self, job: &'a Rc<Job>) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.edge.set_job(job);
            let copy = self.copy()?;
            if self.sync == SyncMode::None {
                let size = self.ends()?[0].len()?;
                job.set_total(size);
                // Only writes copy: the job ends when it is cancelled.
                while !job.is_cancelled() {
                    if copy.has_failed() {
                        bail!("Input/output error");
                    }
                    job.sleep(IDLE).await;
                }
                return Ok(());
            }
            if self.sync == SyncMode::Top {
                self.skip_below(job, &copy).await?;
            }
            job.set_remaining(copy.remaining());
            let mut at = 0;
            while !job.is_cancelled() {
                job.pause_point().await;
                let Some((offset, len)) = copy.next_todo(at) else {
                    if at == 0 {
                        break;
                    }
                    at = 0;
                    continue;
                };
                self.edge.in_flight.set(1);
                let copied = copy.copy(offset, len).await;
                self.edge.in_flight.set(0);
                match copied {
                    Ok(n) => {
                        job.advance(n);
                        job.set_remaining(copy.remaining());
                        job.throttle(n).await;
                        at = offset + len;
                    }
                    Err(e) => match job.handle_error(self.on_error, false, &e) {
                        ErrorAction::Report => return Err(Error::from(e)),
                        ErrorAction::Ignore => at = offset + len,
                        ErrorAction::Stop => {}
                    },
                }
            }
            if !job.is_cancelled() {
                self.ends()?[1].flush().await?;
            }
            Ok(())
        })
    }

    fn cancel_in_flight(&self) {
        if let Ok([_, target]) = self.ends() {
            target.cancel_in_flight();
        }
    }

    fn clean(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {
            self.copy.borrow_mut().take();
            for end in self.ends.take().into_iter().flatten() {
                end.detach();
            }
            if let Some(graph) = self.graph.upgrade() {
                graph.collect().await;
            }
        })
    }
}
