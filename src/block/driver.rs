//! The contract between a node and the driver behind it: what a format, protocol or filter must and may do.

use crate::child::{Child, ChildRole, Perm};
use crate::graph::Graph;
use crate::node::Node;
use crate::open::{OpenContext, OpenFlags};
use crate::options::Options;
use bitflags::bitflags;
use lockstep_util::{Error, Result, err};
use serde_json::Value;
use std::any::Any;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;

/// A future of the block graph's own thread.
pub type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

bitflags! {
    /// How a write, a write of zeroes or a discard is to be done.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WriteFlags: u32 {
        /// The data is on stable storage when the request ends.
        const FUA = 1 << 0;
        /// Zeroes may be written by deallocating.
        const MAY_UNMAP = 1 << 1;
        /// Zeroes must be quick: fail with `ENOTSUP` rather than write them out.
        const NO_FALLBACK = 1 << 2;
        /// The write does not change what readers see (copy on read, active commit).
        const UNCHANGED = 1 << 3;
        /// Store compressed (whole clusters only).
        const COMPRESSED = 1 << 4;
    }
}

bitflags! {
    /// What is known of a range of a node.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Status: u32 {
        /// The range is data (its reads go to storage).
        const DATA = 1 << 0;
        /// The range reads as zeroes.
        const ZERO = 1 << 1;
        /// This layer, not its backing file, says what is read here.
        const ALLOCATED = 1 << 2;
        /// The range goes up to the end of the node.
        const EOF = 1 << 3;
        /// The data is compressed.
        const COMPRESSED = 1 << 4;
        /// `map` is not the data itself: ask the node in `map` for its status there too.
        const RECURSE = 1 << 5;
    }
}

/// The answer to a status query: `len` bytes from the asked offset have the same status.
#[derive(Clone, Debug)]
pub struct Extent {
    /// What is known.
    pub status: Status,
    /// Bytes from the asked offset, at least 1 and at most what was asked.
    pub len: u64,
    /// Where the data lies, if it lies contiguously somewhere.
    pub map: Option<(Rc<Node>, u64)>,
}

impl Extent {
    /// An extent without a known place.
    pub fn new(status: Status, len: u64) -> Self {
        Self { status, len, map: None }
    }
}

/// How a resize fills the new part (`preallocation=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing is allocated.
    #[default]
    Off,
    /// Metadata only.
    Metadata,
    /// Space is reserved, not written.
    Falloc,
    /// Zeroes are written.
    Full,
}

impl Preallocation {
    /// Names as options have them.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("metadata", Self::Metadata), ("falloc", Self::Falloc), ("full", Self::Full)];
}

/// Sizes that a driver likes or needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Every request's offset and length must be a multiple of this (bytes, a power of two).
    pub request_alignment: u32,
    /// Longest read or write in one request, in bytes.
    pub max_transfer: u64,
    /// Zero writes are quickest in this granularity (bytes, 0: no preference).
    pub zeroes_alignment: u64,
    /// Discards work in this granularity (bytes, 0: no preference).
    pub discard_alignment: u64,
    /// Longest zero write or discard in one request, in bytes.
    pub max_zeroes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_alignment: 1,
            max_transfer: 1 << 30,
            zeroes_alignment: 0,
            discard_alignment: 0,
            max_zeroes: 1 << 30,
        }
    }
}

/// What `query-block` and `qemu-img info` want to know beside the length.
#[derive(Clone, Debug, Default)]
pub struct FormatInfo {
    /// Cluster size in bytes, 0 if the driver has none.
    pub cluster_size: u64,
    /// The image was not closed cleanly.
    pub dirty: bool,
    /// `format-specific`: the whole object `{type, data}`.
    pub specific: Option<Value>,
    /// `compat` level and such are inside `specific`; these are the internal snapshots (`SnapshotInfo`).
    pub snapshots: Vec<Value>,
    /// Backing file as written in the image.
    pub backing_filename: Option<String>,
    /// Backing format as written in the image.
    pub backing_format: Option<String>,
    /// Where a VM state would be kept, in bytes behind the disk's contents.
    pub vm_state_offset: u64,
    /// Unallocated blocks are known to read as zero.
    pub zero_init: bool,
}

/// A format, protocol or filter serving one node. Everything runs on the graph's thread; a future may be dropped at any
/// await, after which the driver must still be consistent.
pub trait BlockDriver: Any {
    /// The driver's name (`qcow2`).
    fn format_name(&self) -> &'static str;

    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Reads `buf.len()` bytes at `offset`. The node has checked the range against the length and the alignment.
    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>>;

    /// Writes `data` at `offset`. A driver that cannot do FUA leaves [`BlockDriver::supports_fua`] false; the node
    /// flushes then.
    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>>;

    /// Writes zeroes; `ENOTSUP` makes the node write them out.
    fn write_zeroes<'a>(&'a self, _offset: u64, _len: u64, _flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async { Err(errno(libc::ENOTSUP)) })
    }

    /// Tells that the contents are not needed any more; `ENOTSUP` is no error for the caller.
    fn discard<'a>(&'a self, _offset: u64, _len: u64) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async { Err(errno(libc::ENOTSUP)) })
    }

    /// Makes everything written before this call stable, children included.
    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Writes cached metadata to the children without making it stable (QEMU's "flush to OS").
    fn write_back(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Whether [`WriteFlags::FUA`] is done by the driver itself.
    fn supports_fua(&self) -> bool {
        false
    }

    /// The status of the start of a range (`len` > 0, within the length). `want_zero` false: only `ALLOCATED` matters.
    fn block_status<'a>(&'a self, _offset: u64, len: u64, _want_zero: bool) -> LocalBoxFuture<'a, io::Result<Extent>> {
        Box::pin(async move { Ok(Extent::new(Status::DATA | Status::ALLOCATED, len)) })
    }

    /// Changes the length. `exact` false: a larger result is fine.
    fn truncate<'a>(&'a self, _len: u64, _exact: bool, _prealloc: Preallocation) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async { Err(err!("Image format driver does not support resize")) })
    }

    /// Forgets all data of this layer, so that reads fall through to the backing file.
    fn make_empty(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async { Err(errno(libc::ENOTSUP)) })
    }

    /// Whether [`BlockDriver::make_empty`] works.
    fn supports_make_empty(&self) -> bool {
        false
    }

    /// Takes the image over after an incoming migration: what was cached of it is stale and is read again.
    fn activate(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Gives the image away before a migration's end: everything is written back and the image marked clean.
    fn inactivate(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Prepares for other flags (read-only or writable, cache mode); the node's flags change after success.
    fn reopen(&self, _flags: OpenFlags) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Last call: writes back, marks the image clean, releases what is held. Errors have nobody to go to.
    fn close(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// Makes requests that wait for a peer fail now (`yank`, removal of a child that hangs).
    fn cancel_in_flight(&self) {}

    /// Whether requests of another driver instance are still running behind dropped futures (drain waits for them).
    fn has_detached_requests(&self) -> bool {
        false
    }

    /// Adds a child at run time (`x-blockdev-change node=`).
    fn add_child<'a>(
        &'a self,
        _graph: &'a Graph,
        node: &'a Rc<Node>,
        _child: Rc<Node>,
    ) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move { Err(err!("The node {} does not support adding a child", node.device_or_node_name())) })
    }

    /// Removes a child at run time (`x-blockdev-change child=`).
    fn del_child<'a>(
        &'a self,
        _graph: &'a Graph,
        node: &'a Rc<Node>,
        _child: &'a Rc<Child>,
    ) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move { Err(err!("The node {} does not support removing a child", node.device_or_node_name())) })
    }

    /// What this node needs of a child and lets others do with it, when its own parents need `perm` and share `shared`.
    fn child_perms(&self, node: &Node, role: ChildRole, perm: Perm, shared: Perm) -> (Perm, Perm) {
        crate::perm::default_child_perms(node, role, perm, shared)
    }

    /// Tries to get what the parents now need (file locks). Either [`BlockDriver::set_perms`] or
    /// [`BlockDriver::abort_perms`] follows.
    fn check_perms(&self, _perm: Perm, _shared: Perm) -> Result<()> {
        Ok(())
    }

    /// The checked permissions are in force.
    fn set_perms(&self, _perm: Perm, _shared: Perm) {}

    /// The checked permissions were dropped again.
    fn abort_perms(&self) {}

    /// Sizes that requests should have.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Facts for `query-block` and `qemu-img info`.
    fn format_info(&self) -> FormatInfo {
        FormatInfo::default()
    }

    /// Counters of this driver alone for `query-blockstats`, as the schema's `BlockStatsSpecific` has them.
    fn specific_stats(&self) -> Option<serde_json::Value> {
        None
    }

    /// Bytes allocated on the host, `None` if the children's sum is right.
    fn allocated_size(&self) -> LocalBoxFuture<'_, Option<u64>> {
        Box::pin(async { None })
    }

    /// A plain filename that opens this very node, if there is one and no option beside it matters.
    fn plain_filename(&self, _node: &Node) -> Option<String> {
        None
    }

    /// For downcasts by code that knows the concrete driver.
    fn as_any(&self) -> &dyn Any;
}

/// What kind of node a driver makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// Bottom of the graph: a file, a socket, nothing.
    Protocol,
    /// Reads an image format from its child `file`.
    Format,
    /// Passes requests on to one child, whose data it shows.
    Filter,
    /// Several children (quorum), or one under conditions (replication).
    Composite,
}

/// A row of the driver table.
pub struct DriverDef {
    /// The name for `driver=`.
    pub name: &'static str,
    /// What it makes.
    pub kind: DriverKind,
    /// Prefix of filenames it serves (`nbd` for `nbd://…`).
    pub protocols: &'static [&'static str],
    /// Whether a filename is required.
    pub needs_filename: bool,
    /// Whether images can have a backing file.
    pub supports_backing: bool,
    /// How sure the driver is that the image's start (and name) is its own, 0 to 100.
    pub probe: Option<fn(head: &[u8], filename: &str) -> u32>,
    /// Makes options of a filename (`nbd:host:port`). Without it the name goes to the option `filename`.
    pub parse_filename: Option<fn(filename: &str, options: &mut Options) -> Result<()>>,
    /// Options that change what data is seen, beside the children; they show in `json:` names.
    pub strong_options: &'static [&'static str],
    /// Opens: takes its options out of the context, opens children, returns the driver.
    pub open: for<'a> fn(&'a mut OpenContext) -> LocalBoxFuture<'a, Result<Box<dyn BlockDriver>>>,
}

/// An I/O error of the given errno.
pub fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// An I/O error for a user error that has to travel an I/O path.
pub fn to_io(e: Error) -> io::Error {
    io::Error::other(e.message().to_owned())
}
