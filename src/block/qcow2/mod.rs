//! `qcow2`: sparse images with backing files, internal snapshots and compression.
//!
//! How the parts work together: `header` parses, `cache` holds metadata tables, `refcount` allocates, `map` translates guest
//! offsets, `write` and `zero` change the mapping, `order` says in which order things reach the disk, `empty` forgets
//! everything in no time, `check` finds and repairs damage, `create` and `resize` lay images out.

pub mod amend;
mod cache;
pub mod check;
mod compress;
pub mod create;
mod empty;
pub mod header;
mod map;
mod open;
mod order;
mod refcount;
mod resize;
pub mod snapshot;
mod write;
mod zero;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;

use crate::child::{Child, ChildRole};
use crate::driver::{
    BlockDriver, DriverDef, DriverKind, Extent, FormatInfo, Limits, LocalBoxFuture, Preallocation, Status, WriteFlags,
    errno,
};
use crate::node::Node;
use crate::open::OpenFlags;
use crate::requests::Requests;
use cache::TableCache;
use header::{Header, incompatible};
use lockstep_util::{Error, Result};
use refcount::Refcounts;
use serde_json::{Value, json};
use snapshot::Snapshot;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::rc::{Rc, Weak};

/// The driver's row.
pub static QCOW2: DriverDef = DriverDef {
    name: "qcow2",
    kind: DriverKind::Format,
    protocols: &[],
    needs_filename: false,
    supports_backing: true,
    probe: Some(|head, _| {
        let magic = head.get(..8).is_some_and(|h| h[..4] == header::MAGIC.to_be_bytes() && h[4..8] >= [0, 0, 0, 2][..]);
        if magic { 100 } else { 0 }
    }),
    parse_filename: None,
    strong_options: &[],
    open: |cx| Box::pin(open::open(cx)),
};

/// L1, L2 entry: the cluster is used once, so it may be changed in place.
pub(crate) const COPIED: u64 = 1 << 63;
/// L2 entry: the cluster is compressed.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// L2 entry: the cluster reads as zeroes.
pub(crate) const ZERO: u64 = 1;
/// Subclusters of a cluster with extended L2 entries.
pub(crate) const SUBCLUSTERS: u64 = 32;

/// Clusters to give back once the removal of what referred to them is stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeferredFree {
    offset: u64,
    clusters: u64,
    /// The user discarded the contents: the file may drop them too.
    discard: bool,
}

/// Options that are not in the image.
#[derive(Clone, Copy, Debug)]
struct Runtime {
    /// Pass a guest's discards on to the file.
    pass_discard: bool,
    /// Discarded clusters stay allocated as zeroes.
    discard_no_unref: bool,
    /// Refcount updates wait under the dirty bit.
    lazy_refcounts: bool,
    /// The user's word on lazy refcounts; without one the image's feature bit rules.
    lazy_override: Option<bool>,
}

/// The active L1 table.
struct L1 {
    entries: Vec<u64>,
    /// Entries changed and not written: first and end.
    dirty: Option<(usize, usize)>,
}

/// An open image.
pub struct Qcow2 {
    node: Weak<Node>,
    file: Rc<Child>,
    cluster_bits: u32,
    header: RefCell<Header>,
    l1: RefCell<L1>,
    l2: TableCache,
    refs: Refcounts,
    /// Held by whoever changes metadata across awaits.
    meta: tokio::sync::Mutex<()>,
    /// Guest ranges being written, for order between overlapping ones (cluster-aligned).
    ranges: Rc<Requests>,
    /// Something was written that metadata to come must not overtake.
    unsynced: Cell<bool>,
    frees: RefCell<Vec<DeferredFree>>,
    /// Clusters taken by requests that failed or were dropped: offset and number.
    abandoned: RefCell<Vec<(u64, u64)>>,
    /// Clusters that hold refcount blocks and active L2 tables.
    metadata_clusters: RefCell<HashSet<u64>>,
    /// First cluster that was never allocated.
    end_cluster: Cell<u64>,
    emptied: empty::Emptied,
    snapshots: RefCell<Vec<Snapshot>>,
    runtime: Cell<Runtime>,
    /// Refuse writes that would hit metadata (`overlap-check`).
    check_overlap: bool,
    /// Damage was found: no more writes.
    corrupt: Cell<bool>,
    /// The decompressed cluster used last: its L2 entry and contents.
    decompressed: RefCell<Option<(u64, Rc<Vec<u8>>)>>,
    /// How often a compressed cluster was given up.
    compressed_freed: Cell<u64>,
    /// Where the next compressed cluster may go on within the last one's host cluster.
    compressed_tail: Cell<u64>,
}

impl Qcow2 {
    fn file(&self) -> Rc<Node> {
        self.file.node()
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn size(&self) -> u64 {
        self.header.borrow().size
    }

    fn entry_size(&self) -> u64 {
        self.header.borrow().l2_entry_size()
    }

    fn entries_per_table(&self) -> u64 {
        self.cluster_size() / self.entry_size()
    }

    /// Guest bytes that one L2 table maps.
    fn table_span(&self) -> u64 {
        self.entries_per_table() << self.cluster_bits
    }

    fn is_extended(&self) -> bool {
        self.header.borrow().incompatible & incompatible::EXTENDED_L2 != 0
    }

    fn backing(&self) -> Option<Rc<Node>> {
        self.node.upgrade()?.cow_child().map(|c| c.node())
    }

    fn flags(&self) -> OpenFlags {
        self.node.upgrade().map(|n| n.flags()).unwrap_or_default()
    }

    /// Which metadata a range of the file holds, if any.
    fn overlaps_metadata(&self, offset: u64, len: u64) -> Option<&'static str> {
        let end = offset + len;
        let cluster_size = self.cluster_size();
        let header = self.header.borrow();
        let overlaps = |start: u64, bytes: u64| bytes > 0 && offset < start + bytes && start < end;
        if offset < cluster_size {
            return Some("qcow2_header");
        }
        if overlaps(header.l1_offset, u64::from(header.l1_size) * 8) {
            return Some("active L1 table");
        }
        if overlaps(header.reftable_offset, u64::from(header.reftable_clusters) * cluster_size) {
            return Some("refcount table");
        }
        let known = self.metadata_clusters.borrow();
        let first = offset - offset % cluster_size;
        if (first..end).step_by(cluster_size as usize).any(|c| known.contains(&c)) {
            return Some("L2 table or refcount block");
        }
        None
    }

    /// Collects where refcount blocks and L2 tables lie.
    fn rebuild_metadata_clusters(&self) {
        let mut set = self.metadata_clusters.borrow_mut();
        set.clear();
        let mask = refcount::OFFSET_MASK;
        set.extend(self.refs.table.borrow().iter().map(|e| e & mask).filter(|o| *o != 0));
        set.extend(self.l1.borrow().entries.iter().map(|e| e & mask).filter(|o| *o != 0));
    }

    fn note_allocated(&self, offset: u64, clusters: u64) {
        let end = (offset >> self.cluster_bits) + clusters;
        self.end_cluster.set(self.end_cluster.get().max(end));
    }

    /// Writes the header with a change, stable when it returns.
    async fn update_header(&self, change: impl FnOnce(&mut Header)) -> io::Result<()> {
        let mut header = self.header.borrow().clone();
        change(&mut header);
        let mut bytes = header.to_bytes().map_err(crate::driver::to_io)?;
        bytes.resize(bytes.len().next_multiple_of(512).min(self.cluster_size() as usize), 0);
        let file = self.file();
        file.write(0, &bytes, WriteFlags::empty()).await?;
        file.flush().await?;
        *self.header.borrow_mut() = header;
        Ok(())
    }

    /// Reports damage once, marks the image and stops writing to it.
    async fn signal_corruption(&self, text: &str) -> io::Error {
        if !self.corrupt.replace(true) {
            let writable = self.node.upgrade().is_some_and(|n| n.is_writable());
            let v3 = self.header.borrow().version >= 3;
            if writable {
                crate::warn_user(&format!(
                    "qcow2: Marking image as corrupt: {text}; further corruption events will be suppressed"
                ));
                if v3 && let Err(e) = self.update_header(|h| h.incompatible |= incompatible::CORRUPT).await {
                    tracing::warn!("marking an image as corrupt: {e}");
                }
            } else {
                crate::warn_user(&format!(
                    "qcow2: Image is corrupt: {text}; further non-fatal corruption events will be suppressed"
                ));
            }
        }
        errno(libc::EIO)
    }

    fn specific_info(&self) -> Value {
        let header = self.header.borrow();
        let mut data = serde_json::Map::new();
        let v3 = header.version >= 3;
        data.insert("compat".into(), if v3 { "1.1" } else { "0.10" }.into());
        data.insert("compression-type".into(), header.compression.as_str().into());
        if v3 {
            let lazy = header.compatible & header::compatible::LAZY_REFCOUNTS != 0;
            data.insert("lazy-refcounts".into(), lazy.into());
        }
        data.insert("refcount-bits".into(), (1u32 << header.refcount_order).into());
        if v3 {
            let corrupt = header.incompatible & incompatible::CORRUPT != 0;
            data.insert("corrupt".into(), corrupt.into());
            data.insert("extended-l2".into(), (header.incompatible & incompatible::EXTENDED_L2 != 0).into());
        }
        json!({"type": "qcow2", "data": data})
    }
}

impl BlockDriver for Qcow2 {
    fn format_name(&self) -> &'static str {
        "qcow2"
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.size())
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(self.read_guest(offset, buf))
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            if flags.contains(WriteFlags::COMPRESSED) {
                self.write_compressed(offset, data).await
            } else {
                self.write_guest(offset, data).await
            }
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(self.zero_guest(offset, len, flags))
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(self.discard_guest(offset, len))
    }

    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(self.flush_all())
    }

    fn write_back(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(self.flush_all())
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64, _want_zero: bool) -> LocalBoxFuture<'a, io::Result<Extent>> {
        Box::pin(async move {
            let run = self.lookup(offset, len).await?;
            let data = Status::DATA | Status::ALLOCATED;
            Ok(match run.kind {
                map::Kind::Data { host, .. } => {
                    Extent { status: data | Status::RECURSE, len: run.len, map: Some((self.file(), host)) }
                }
                map::Kind::Compressed { .. } => Extent::new(data | Status::COMPRESSED, run.len),
                map::Kind::Zero { host: Some(host) } => {
                    Extent { status: Status::ZERO | Status::ALLOCATED, len: run.len, map: Some((self.file(), host)) }
                }
                map::Kind::Zero { host: None } => Extent::new(Status::ZERO | Status::ALLOCATED, run.len),
                map::Kind::Unallocated => Extent::new(Status::empty(), run.len),
            })
        })
    }

    fn truncate<'a>(&'a self, len: u64, exact: bool, prealloc: Preallocation) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(self.resize(len, exact, prealloc))
    }

    fn make_empty(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(self.forget_all())
    }

    fn supports_make_empty(&self) -> bool {
        true
    }

    fn activate(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.l2.clear();
            self.refs.blocks.clear();
            self.frees.borrow_mut().clear();
            self.abandoned.borrow_mut().clear();
            *self.decompressed.borrow_mut() = None;
            self.reload().await.map_err(|e| e.prepend("Could not reopen qcow2 layer: "))
        })
    }

    fn inactivate(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.mark_clean().await.map_err(|e| Error::with_errno("Failed to inactivate the image", &e))?;
            self.l2.clear();
            self.refs.blocks.clear();
            Ok(())
        })
    }

    fn reopen(&self, flags: OpenFlags) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if flags.read_only {
                self.mark_clean().await.map_err(|e| Error::with_errno("Failed to flush the image", &e))?;
            } else if self.corrupt.get() {
                return Err(Error::new("qcow2: Image is corrupt; cannot be opened read/write"));
            }
            Ok(())
        })
    }

    fn close(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {
            if self.node.upgrade().is_some_and(|n| n.is_writable())
                && let Err(e) = self.mark_clean().await
            {
                tracing::warn!("closing a qcow2 image: {e}");
            }
        })
    }

    fn limits(&self) -> Limits {
        let cluster = self.cluster_size();
        Limits {
            request_alignment: 1,
            max_transfer: 1 << 30,
            zeroes_alignment: cluster,
            discard_alignment: cluster,
            max_zeroes: (1 << 30) - (1 << 30) % cluster,
        }
    }

    fn format_info(&self) -> FormatInfo {
        let header = self.header.borrow();
        let some = |s: &String| if s.is_empty() { None } else { Some(s.clone()) };
        FormatInfo {
            cluster_size: self.cluster_size(),
            dirty: header.incompatible & incompatible::DIRTY != 0,
            specific: Some(self.specific_info()),
            snapshots: self.snapshots.borrow().iter().map(Snapshot::to_info).collect(),
            backing_filename: some(&header.backing_file),
            backing_format: header.backing_format(),
            vm_state_offset: header.l1_entries_for(header.size) * self.table_span(),
            zero_init: true,
        }
    }

    fn plain_filename(&self, node: &Node) -> Option<String> {
        let given = node.given_options.borrow();
        // A backing file other than the image's own, or an option that changes what is read, needs more than a name.
        let overridden = given.contains_group("backing");
        if overridden { None } else { self.file().plain_filename() }
    }

    fn child_perms(
        &self,
        node: &Node,
        role: ChildRole,
        perm: crate::Perm,
        shared: crate::Perm,
    ) -> (crate::Perm, crate::Perm) {
        crate::perm::default_child_perms(node, role, perm, shared)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
