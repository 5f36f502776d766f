//! `block-commit` and `block-stream`: moving data up and down a backing chain.

use std::cell::RefCell;
use std::rc::Rc;

use lockstep_util::{Error, Result, bail};

use super::commands::{CommonArgs, root_node};
use super::edge::JobEdge;
use super::job::{ErrorAction, Job, JobDriver, OnError};
use super::mirror::{DEFAULT_BUF_SIZE, Engine, Mirror, MirrorParts, SyncMode};
use super::{JobType, Jobs};
use crate::child::{Child, Perm};
use crate::driver::{LocalBoxFuture, WriteFlags};
use crate::graph::{Graph, WeakGraph};
use crate::node::{BlockOp, Node, OpBlockGuard};
use crate::open::OpenFlags;
use crate::qcow2::Qcow2;

/// Most bytes copied at once.
const CHUNK: u64 = 512 << 10;
/// Granularity of the dirty map of an active commit, in bytes.
const GRANULARITY: u64 = 64 << 10;

/// A layer of a backing chain, as arguments name it.
#[derive(Clone, Debug)]
pub enum LayerName {
    /// By its node name (`base-node`, `top-node`).
    Node(String),
    /// By its filename (`base`, `top`).
    File(String),
}

/// Arguments of `block-commit`.
#[derive(Clone, Debug)]
pub struct CommitArgs {
    /// Id, speed and such.
    pub common: CommonArgs,
    /// `device`: root of the chain.
    pub device: String,
    /// The uppermost layer that is merged; the root if absent.
    pub top: Option<LayerName>,
    /// The layer that gets the data; the last of the chain if absent.
    pub base: Option<LayerName>,
    /// `backing-file`: what the overlay's image says from then on, if not the base's own name.
    pub backing_file: Option<String>,
    /// `on-error`
    pub on_error: OnError,
}

/// Arguments of `block-stream`.
#[derive(Clone, Debug)]
pub struct StreamArgs {
    /// Id, speed and such.
    pub common: CommonArgs,
    /// `device`: the layer that gets the data.
    pub device: String,
    /// The layer that stays below; none if absent.
    pub base: Option<LayerName>,
    /// `backing-file`: what the image says from then on, if not the base's own name.
    pub backing_file: Option<String>,
    /// `on-error`
    pub on_error: OnError,
}

/// The layers from `top` down, filters left out.
fn layers(top: &Rc<Node>) -> Vec<Rc<Node>> {
    let mut out = vec![top.skip_filters()];
    while let Some(next) = out.last().and_then(|n| n.cow_child()) {
        out.push(next.node().skip_filters());
    }
    out
}

fn find_layer(graph: &Graph, chain: &[Rc<Node>], name: &LayerName) -> Result<usize> {
    match name {
        LayerName::Node(name) => {
            let Some(node) = graph.find_node(name) else { bail!("Cannot find device='' nor node-name='{name}'") };
            let node = node.skip_filters();
            match chain.iter().position(|n| Rc::ptr_eq(n, &node)) {
                Some(at) => Ok(at),
                None => bail!("'{name}' is not in this backing file chain"),
            }
        }
        LayerName::File(name) => match chain.iter().position(|n| n.filename() == *name) {
            Some(at) => Ok(at),
            None => bail!("Can't find '{name}' in the backing chain"),
        },
    }
}

/// `block-commit`: of the active layer (ends ready, to be completed) or of layers below it.
pub async fn block_commit(graph: &Graph, args: CommitArgs) -> Result<()> {
    Jobs::of(graph).settle().await;
    let root = match root_node(graph, &args.device) {
        Ok(node) => node,
        Err(_) if graph.lookup(&args.device).is_err() => return Err(Error::device_not_found(&args.device)),
        Err(e) => return Err(e),
    };
    root.check_op(BlockOp::CommitSource)?;
    let chain = layers(&root);
    let top_at = match &args.top {
        Some(name) => find_layer(graph, &chain, name)?,
        None => 0,
    };
    let base_at = match &args.base {
        Some(name) => find_layer(graph, &chain, name)?,
        None => chain.len() - 1,
    };
    let (top, base) = (chain[top_at].clone(), chain[base_at].clone());
    if top_at == base_at {
        bail!("cannot commit an image into itself");
    }
    if base_at < top_at {
        bail!("'{}' is not a backing file of '{}'", base.name(), top.name());
    }
    for layer in &chain[top_at..=base_at] {
        layer.check_op(BlockOp::CommitTarget)?;
    }
    let options = args.common.options(graph, &root)?;
    let was_read_only = base.flags();
    graph.reopen(&base, OpenFlags { read_only: false, ..was_read_only }).await?;
    let edge = JobEdge::new(options.id.as_deref().unwrap_or(""));
    let shared_below = chain[top_at..base_at].iter().map(Node::share_below).collect::<Result<Vec<_>>>()?;
    let source = edge.attach("source", &top, Perm::CONSISTENT_READ, Perm::all())?;
    let target = match edge.attach("target", &base, Perm::CONSISTENT_READ | Perm::WRITE, Perm::all()) {
        Ok(target) => target,
        Err(e) => {
            source.detach();
            graph.reopen(&base, was_read_only).await?;
            return Err(e);
        }
    };
    let reason = format!("block device is in use by block job: {}", JobType::Commit.as_str());
    let operations: Vec<BlockOp> = BlockOp::ALL.iter().copied().filter(|op| *op != BlockOp::Dataplane).collect();
    let blockers = chain[top_at..=base_at].iter().map(|n| n.block_ops(&operations, &reason)).collect();
    let active = top_at == 0;
    if active && args.backing_file.is_some() {
        bail!("'backing-file' specified, but 'top' is the active layer");
    }
    let backing_file = args.backing_file.clone();
    let overlay = if active { None } else { Some(Rc::downgrade(&chain[top_at - 1])) };
    let pivot = move |engine: &Engine| -> LocalBoxFuture<'static, Result<()>> {
        let (top, base, graph) = (engine.source(), engine.target(), engine.graph());
        let (overlay, name) = (overlay.as_ref().map(|o| o.upgrade()), backing_file.clone());
        Box::pin(async move {
            match overlay {
                None => graph?.replace_node(&top, &base),
                Some(Some(overlay)) => rebase(&graph?, &overlay, Some(&base), name).await,
                Some(None) => bail!("The overlay of '{}' is gone", top.name()),
            }
        })
    };
    let parts = MirrorParts {
        edge,
        sync: SyncMode::Full,
        granularity: GRANULARITY,
        buf_size: DEFAULT_BUF_SIZE,
        on_source_error: args.on_error,
        on_target_error: args.on_error,
        unmap: false,
        write_blocking: false,
        // Below the active layer nobody writes: there is no steady state to wait in.
        auto_complete: !active,
        before_copy: None,
        pivot: Box::new(pivot),
        blockers,
        shared_below,
        restore: (!active).then(|| (base.clone(), was_read_only)),
    };
    let mirror = Mirror::new(graph, source, target, Some(base), parts)?;
    Jobs::of(graph).start(graph, JobType::Commit, options, Box::new(mirror))?;
    Ok(())
}

/// Puts a layer on another backing file (or none), in the graph and in the image. The contents must be equal.
async fn rebase(graph: &Graph, overlay: &Rc<Node>, base: Option<&Rc<Node>>, name: Option<String>) -> Result<()> {
    let flags = overlay.flags();
    graph.reopen(overlay, OpenFlags { read_only: false, ..flags }).await?;
    let Some(image) = overlay.driver_as::<Qcow2>() else {
        bail!("The image of '{}' does not support changing its backing file", overlay.name());
    };
    let name = base.map(|b| name.unwrap_or_else(|| b.filename()));
    let format = base.map(|b| b.def().name);
    image.change_backing(name.as_deref(), format).await?;
    if let Some(old) = overlay.cow_child() {
        match base {
            Some(base) => old.replace_node(base)?,
            None => overlay.detach_child(&old),
        }
    }
    graph.reopen(overlay, flags).await
}

struct Stream {
    graph: WeakGraph,
    edge: Rc<JobEdge>,
    top: RefCell<Option<Rc<Child>>>,
    base: RefCell<Option<Rc<Child>>>,
    on_error: OnError,
    backing_file: Option<String>,
    blockers: RefCell<Vec<OpBlockGuard>>,
}

/// `block-stream`: the layer gets all data that is above `base` and stands on it from then on.
pub async fn block_stream(graph: &Graph, args: StreamArgs) -> Result<()> {
    Jobs::of(graph).settle().await;
    let root = graph.lookup(&args.device)?;
    root.check_op(BlockOp::Stream)?;
    let chain = layers(&root);
    let base = match &args.base {
        Some(name) => {
            let at = find_layer(graph, &chain, name)?;
            if at == 0 {
                bail!("Node '{}' is not a backing image of '{}'", root.name(), args.device);
            }
            Some(chain[at].clone())
        }
        None => None,
    };
    if base.is_none() && args.backing_file.is_some() {
        bail!("backing file specified, but streaming the entire chain");
    }
    let top = chain[0].clone();
    let options = args.common.options(graph, &root)?;
    let edge = JobEdge::new(options.id.as_deref().unwrap_or(""));
    let perm = Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED;
    let top_edge = edge.attach("source", &top, perm, Perm::all())?;
    let base_edge = match &base {
        Some(base) => match edge.attach("base", base, Perm::empty(), Perm::all() - Perm::RESIZE) {
            Ok(edge) => Some(edge),
            Err(e) => {
                top_edge.detach();
                return Err(e);
            }
        },
        None => None,
    };
    let reason = format!("block device is in use by block job: {}", JobType::Stream.as_str());
    let operations: Vec<BlockOp> = BlockOp::ALL.iter().copied().filter(|op| *op != BlockOp::Dataplane).collect();
    let used = chain.iter().take_while(|n| base.as_ref().is_none_or(|b| !Rc::ptr_eq(b, n)));
    let blockers = used.map(|n| n.block_ops(&operations, &reason)).collect();
    let stream = Stream {
        graph: graph.downgrade(),
        edge,
        top: RefCell::new(Some(top_edge)),
        base: RefCell::new(base_edge),
        on_error: args.on_error,
        backing_file: args.backing_file,
        blockers: RefCell::new(blockers),
    };
    Jobs::of(graph).start(graph, JobType::Stream, options, Box::new(stream))?;
    Ok(())
}

impl Stream {
    fn top(&self) -> Result<Rc<Node>> {
        match &*self.top.borrow() {
            Some(top) => Ok(top.node()),
            None => Err(Error::new("The stream has ended")),
        }
    }

    /// Copies the start of a range into the top layer, unless it is there. No guest write can come between.
    async fn pull(top: &Rc<Node>, base: Option<&Rc<Node>>, offset: u64, len: u64) -> std::io::Result<(u64, u64)> {
        let (in_top, n) = {
            let extent = top.block_status(offset, len, false).await?;
            (extent.status.contains(crate::driver::Status::ALLOCATED), extent.len.clamp(1, len))
        };
        if in_top {
            return Ok((n, 0));
        }
        let Some(below) = top.backing() else { return Ok((n, 0)) };
        if base.is_some_and(|b| Rc::ptr_eq(b, &below)) {
            return Ok((n, 0));
        }
        let (allocated, n) = below.is_allocated_above(base, false, offset, n).await?;
        let n = n.clamp(1, len);
        if !allocated {
            return Ok((n, 0));
        }
        let n = n.min(CHUNK);
        let guard = top.lock_range(offset, n).await;
        // The guest may have written here while we waited; its data is newer.
        let extent = top.block_status(offset, n, false).await?;
        let n = extent.len.clamp(1, n);
        if !extent.status.contains(crate::driver::Status::ALLOCATED) {
            let mut buf = vec![0; n as usize];
            top.read_locked(&guard, offset, &mut buf).await?;
            top.write_locked(&guard, offset, &buf, WriteFlags::UNCHANGED).await?;
            return Ok((n, n));
        }
        Ok((n, 0))
    }
}

impl JobDriver for Stream {
    fn run<'a>(&'a self, job: &'a Rc<Job>) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.edge.set_job(job);
            let top = self.top()?;
            let size = top.len()?;
            job.set_total(size);
            let base = self.base.borrow().as_ref().map(|b| b.node());
            let mut at = 0;
            while at < size && !job.is_cancelled() {
                job.pause_point().await;
                match Self::pull(&top, base.as_ref(), at, size - at).await {
                    Ok((n, copied)) => {
                        at += n;
                        job.advance(n);
                        job.throttle(copied).await;
                    }
                    Err(e) => match job.handle_error(self.on_error, true, &e) {
                        ErrorAction::Report => return Err(Error::from(e)),
                        ErrorAction::Ignore => at += CHUNK.min(size - at),
                        ErrorAction::Stop => {}
                    },
                }
                // The main context has others to serve.
                tokio::task::yield_now().await;
            }
            Ok(())
        })
    }

    fn prepare<'a>(&'a self, _job: &'a Rc<Job>) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let top = self.top()?;
            self.edge.draining_itself.set(true);
            let _quiet = top.drain().await;
            top.flush().await?;
            let base = self.base.borrow().as_ref().map(|b| b.node());
            let graph = self.graph.upgrade().ok_or_else(|| Error::new("The block graph is gone"))?;
            rebase(&graph, &top, base.as_ref(), self.backing_file.clone()).await?;
            Ok(())
        })
    }

    fn clean(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {
            self.edge.draining_itself.set(false);
            self.blockers.borrow_mut().clear();
            for edge in [self.top.take(), self.base.take()].into_iter().flatten() {
                edge.detach();
            }
            if let Some(graph) = self.graph.upgrade() {
                graph.collect().await;
            }
        })
    }
}
