//! Commands that start jobs, with QEMU's checks and error texts.

use std::rc::Rc;

use lockstep_util::{Error, Result, bail};

use super::job::{JobOptions, OnError};
use super::mirror::{DEFAULT_BUF_SIZE, Engine, Mirror, MirrorParts, SyncMode};
use super::{JobEdge, JobType, Jobs, target};
use crate::child::{ChildRole, Perm};
use crate::driver::LocalBoxFuture;
use crate::graph::Graph;
use crate::node::{BlockOp, Node};
use crate::open::OpenFlags;

/// Name of a mirror's edge to what it reads.
const MIRROR_SOURCE: &str = "mirror source";

/// What the arguments of all block jobs have in common.
#[derive(Clone, Debug)]
pub struct CommonArgs {
    /// `job-id`; the device's id if absent.
    pub job_id: Option<String>,
    /// `speed` in bytes a second.
    pub speed: i64,
    /// `auto-finalize`
    pub auto_finalize: bool,
    /// `auto-dismiss`
    pub auto_dismiss: bool,
}

impl Default for CommonArgs {
    fn default() -> Self {
        Self { job_id: None, speed: 0, auto_finalize: true, auto_dismiss: true }
    }
}

impl CommonArgs {
    /// Settles id and speed for a job on `node`.
    pub(super) fn options(&self, graph: &Graph, node: &Node) -> Result<JobOptions> {
        let id = match &self.job_id {
            Some(id) => id.clone(),
            None => node.device_name().ok_or_else(|| Error::new("An explicit job ID is required for this node"))?,
        };
        Jobs::of(graph).check_id(&id)?;
        let Ok(speed) = u64::try_from(self.speed) else { bail!("Parameter 'speed' expects a non-negative value") };
        Ok(JobOptions { id: Some(id), speed, auto_finalize: self.auto_finalize, auto_dismiss: self.auto_dismiss })
    }
}

/// How a target named by a filename comes to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewImageMode {
    /// It is there already.
    Existing,
    /// It is created.
    #[default]
    AbsolutePaths,
}

impl NewImageMode {
    /// Names as arguments have them.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("existing", Self::Existing), ("absolute-paths", Self::AbsolutePaths)];
}

/// Arguments that `drive-mirror` and `blockdev-mirror` share.
#[derive(Clone, Debug)]
pub struct MirrorArgs {
    /// Id, speed and such.
    pub common: CommonArgs,
    /// `device`: what is copied.
    pub device: String,
    /// `sync`
    pub sync: SyncMode,
    /// `replaces`: the node whose users get the copy on completion.
    pub replaces: Option<String>,
    /// `granularity` in bytes, 0 for the default.
    pub granularity: u32,
    /// `buf-size` in bytes, 0 for the default.
    pub buf_size: i64,
    /// `on-source-error`
    pub on_source_error: OnError,
    /// `on-target-error`
    pub on_target_error: OnError,
    /// `unmap` (always on for `blockdev-mirror`).
    pub unmap: bool,
    /// `copy-mode` is `write-blocking`.
    pub write_blocking: bool,
}

impl MirrorArgs {
    /// Defaults for a device and a sync mode.
    pub fn new(device: &str, sync: SyncMode) -> Self {
        Self {
            common: CommonArgs::default(),
            device: device.to_owned(),
            sync,
            replaces: None,
            granularity: 0,
            buf_size: 0,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
            unmap: true,
            write_blocking: false,
        }
    }
}

/// The node `device`, which must be the root of a device or of nothing.
pub(super) fn root_node(graph: &Graph, device: &str) -> Result<Rc<Node>> {
    let node = graph.lookup(device)?;
    let edges = node.parent_edges();
    let inner = edges.iter().any(|e| e.parent().is_some_and(|p| p.as_node().is_some()));
    if inner || edges.iter().any(|e| e.name() == MIRROR_SOURCE) {
        bail!("Need a root block node");
    }
    Ok(node)
}

/// `drive-mirror`: the target is a filename.
pub async fn drive_mirror(
    graph: &Graph,
    args: MirrorArgs,
    target: &str,
    format: Option<&str>,
    mode: NewImageMode,
    node_name: Option<&str>,
) -> Result<()> {
    Jobs::of(graph).settle().await;
    let source = root_node(graph, &args.device)?;
    source.check_op(BlockOp::MirrorSource)?;
    check_mirror_args(&args)?;
    args.common.options(graph, &source)?;
    let wanted = target::Target { filename: target, format, mode, node_name };
    let flags = OpenFlags { read_only: false, unmap: args.unmap, ..OpenFlags::default() };
    let target = target::open(graph, wanted, &source, args.sync, flags).await?;
    let result = start_mirror(graph, args, &source, &target);
    drop(target);
    if result.is_err() {
        graph.collect().await;
    }
    result
}

/// `blockdev-mirror`: the target is a node.
pub async fn blockdev_mirror(graph: &Graph, args: MirrorArgs, target: &str) -> Result<()> {
    Jobs::of(graph).settle().await;
    let source = root_node(graph, &args.device)?;
    let target = graph.lookup(target)?;
    check_mirror_args(&args)?;
    start_mirror(graph, args, &source, &target)
}

fn check_mirror_args(args: &MirrorArgs) -> Result<()> {
    if args.granularity != 0 {
        if !(512..=64 << 20).contains(&args.granularity) {
            bail!("Parameter 'granularity' expects a value in range [512B, 64MB]");
        }
        if !args.granularity.is_power_of_two() {
            bail!("Parameter 'granularity' expects a power of 2");
        }
    }
    if args.buf_size < 0 {
        bail!("Invalid parameter 'buf-size'");
    }
    Ok(())
}

fn start_mirror(graph: &Graph, mut args: MirrorArgs, source: &Rc<Node>, target: &Rc<Node>) -> Result<()> {
    if args.sync == SyncMode::Top && source.skip_filters().backing().is_none() {
        args.sync = SyncMode::Full;
    }
    source.check_op(BlockOp::MirrorSource)?;
    target.check_op(BlockOp::MirrorTarget)?;
    if Rc::ptr_eq(source, target) {
        bail!("Can't mirror node into itself");
    }
    let options = args.common.options(graph, source)?;
    let replaces = match &args.replaces {
        Some(name) => {
            let node = graph.find_node(name).ok_or_else(|| Error::new(format!("Node name '{name}' not found")))?;
            node.check_op(BlockOp::Replace)?;
            let length = |n: &Rc<Node>| n.len().map_err(|e| Error::with_errno("Failed to get image size", &e));
            if length(&node)? != length(source)? {
                bail!("cannot replace image with a mirror image of different size");
            }
            Some(Rc::downgrade(&node))
        }
        None => None,
    };
    let edge = JobEdge::new(options.id.as_deref().unwrap_or(""));
    let source_edge = edge.attach(MIRROR_SOURCE, source, Perm::CONSISTENT_READ, Perm::all())?;
    let target_edge = match edge.attach("target", target, Perm::WRITE, Perm::all()) {
        Ok(edge) => edge,
        Err(e) => {
            source_edge.detach();
            return Err(e);
        }
    };
    let granularity = match args.granularity {
        0 => {
            let cluster = target.try_driver().map_or(0, |d| d.format_info().cluster_size);
            let cluster = if cluster.is_power_of_two() { cluster } else { 64 << 10 };
            cluster.clamp(4096, 64 << 10)
        }
        n => u64::from(n),
    };
    let sync = args.sync;
    let pivot = move |engine: &Engine| -> LocalBoxFuture<'static, Result<()>> {
        let (source, target, graph) = (engine.source(), engine.target(), engine.graph());
        let replaces = replaces.as_ref().map(|r| r.upgrade());
        Box::pin(async move {
            let graph = graph?;
            // What was not copied is read from where it is.
            let below = match sync {
                SyncMode::Full => None,
                SyncMode::Top => source.skip_filters().backing(),
                SyncMode::None => Some(source.clone()),
            };
            if let Some(below) = below
                && target.def().supports_backing
                && target.cow_child().is_none()
            {
                target.attach_child("backing", ChildRole::COW, &below)?;
            }
            let old = match replaces {
                None => source,
                Some(Some(node)) => node,
                Some(None) => bail!("The node to replace is gone"),
            };
            graph.replace_node(&old, &target)
        })
    };
    let reason = format!("block device is in use by block job: {}", JobType::Mirror.as_str());
    let operations: Vec<BlockOp> = BlockOp::ALL.iter().copied().filter(|op| *op != BlockOp::Dataplane).collect();
    let blockers = vec![target.block_ops(&operations, &reason)];
    let buf_size = match args.buf_size {
        0 => DEFAULT_BUF_SIZE,
        n => n as u64,
    };
    let parts = MirrorParts {
        edge,
        sync: args.sync,
        granularity,
        buf_size: buf_size.max(granularity),
        on_source_error: args.on_source_error,
        on_target_error: args.on_target_error,
        unmap: args.unmap,
        write_blocking: args.write_blocking,
        auto_complete: false,
        before_copy: None,
        pivot: Box::new(pivot),
        blockers,
        shared_below: Vec::new(),
        restore: None,
    };
    let mirror = Mirror::new(graph, source_edge, target_edge, None, parts)?;
    Jobs::of(graph).start(graph, JobType::Mirror, options, Box::new(mirror))?;
    Ok(())
}
