//! Opening an image: options, header, tables, all checked before they are believed.

use super::cache::TableCache;
use super::header::{Header, autoclear, compatible, incompatible};
use super::refcount::{MAX_TABLE_BYTES, Refcounts};
use super::{L1, Qcow2, Runtime, check, empty, snapshot};
use crate::child::ChildRole;
use crate::driver::BlockDriver;
use crate::node::Node;
use crate::open::OpenContext;
use lockstep_util::{Error, Result, bail};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Largest L1 table that is accepted, in bytes.
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
/// Memory for L2 tables unless the user says otherwise, in bytes.
const DEFAULT_L2_CACHE: u64 = 32 << 20;
/// Refcount blocks kept unless the user says otherwise.
const DEFAULT_REFCOUNT_BLOCKS: u64 = 16;

struct CacheOptions {
    l2_bytes: u64,
    refcount_bytes: Option<u64>,
    clean_interval: u64,
}

pub(super) async fn open(cx: &mut OpenContext) -> Result<Box<dyn BlockDriver>> {
    let file = cx.open_file_child(ChildRole::IMAGE).await?;
    let flags = cx.flags();
    let header = read_header(&file.node()).await?;
    check_corrupt(&header, !flags.read_only && !flags.inactive && !flags.check)?;
    let lazy_override = cx.options.take_bool("lazy-refcounts")?;
    if lazy_override == Some(true) && header.version < 3 {
        bail!("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
    }
    let discard_no_unref = cx.options.take_bool("discard-no-unref")?.unwrap_or(false);
    if discard_no_unref && header.version < 3 {
        bail!("discard-no-unref is only supported since qcow2 version 3");
    }
    let runtime = Runtime {
        pass_discard: cx.options.take_bool("pass-discard-request")?.unwrap_or(flags.unmap),
        discard_no_unref,
        lazy_refcounts: false,
        lazy_override,
    };
    let check_overlap = take_overlap_check(cx)?;
    let cluster_size = header.cluster_size();
    let caches = take_cache_options(cx, &header)?;
    let order = header.refcount_order;
    let table_size = cluster_size as usize;
    let l2_tables = (caches.l2_bytes / cluster_size) as usize;
    let blocks = caches.refcount_bytes.map_or(DEFAULT_REFCOUNT_BLOCKS, |b| b / cluster_size) as usize;
    let image = Qcow2 {
        node: cx.node.weak(),
        file,
        cluster_bits: header.cluster_bits,
        header: RefCell::new(header),
        l1: RefCell::new(L1 { entries: Vec::new(), dirty: None }),
        l2: TableCache::new(l2_tables, table_size),
        refs: Refcounts {
            order,
            table: RefCell::default(),
            table_dirty: Cell::new(None),
            blocks: TableCache::new(blocks, table_size),
            hint: Cell::new(0),
        },
        meta: tokio::sync::Mutex::new(()),
        ranges: Rc::default(),
        unsynced: Cell::new(false),
        frees: RefCell::default(),
        abandoned: RefCell::default(),
        metadata_clusters: RefCell::default(),
        end_cluster: Cell::new(0),
        emptied: empty::Emptied::default(),
        snapshots: RefCell::default(),
        runtime: Cell::new(runtime),
        check_overlap,
        corrupt: Cell::new(false),
        decompressed: RefCell::default(),
        compressed_freed: Cell::new(0),
        compressed_tail: Cell::new(0),
    };
    image.reload().await?;
    if caches.clean_interval > 0 {
        clean_caches(cx.node.weak(), Duration::from_secs(caches.clean_interval));
    }
    Ok(Box::new(image))
}

fn check_corrupt(header: &Header, writing: bool) -> Result<()> {
    if writing && header.incompatible & incompatible::CORRUPT != 0 {
        bail!("qcow2: Image is corrupt; cannot be opened read/write");
    }
    Ok(())
}

/// `overlap-check`: everything but `none` checks against the tables in memory, which are all that are cheap to know.
fn take_overlap_check(cx: &mut OpenContext) -> Result<bool> {
    let plain = cx.options.take_str("overlap-check")?;
    let template = cx.options.take_str("overlap-check.template")?;
    if let (Some(a), Some(b)) = (&plain, &template)
        && a != b
    {
        bail!("Conflicting values for qcow2 options 'overlap-check' ('{a}') and 'overlap-check.template' ('{b}')");
    }
    match plain.or(template).as_deref() {
        None | Some("constant" | "cached" | "all") => Ok(true),
        Some("none") => Ok(false),
        Some(other) => bail!(
            "Unsupported value '{other}' for qcow2 option 'overlap-check'. Allowed are any of the following: none, \
             constant, cached, all"
        ),
    }
}

fn take_cache_options(cx: &mut OpenContext, header: &Header) -> Result<CacheOptions> {
    let both = cx.options.take_size("cache-size")?;
    let l2 = cx.options.take_size("l2-cache-size")?;
    let refcount = cx.options.take_size("refcount-cache-size")?;
    let clean_interval = cx.options.take_u64("cache-clean-interval")?.unwrap_or(600);
    let entry_size = cx.options.take_size("l2-cache-entry-size")?;
    let cluster_size = header.cluster_size();
    if let Some(size) = entry_size
        && (!size.is_power_of_two() || !(512..=cluster_size).contains(&size))
    {
        bail!("L2 cache entry size must be a power of two between 512 and the cluster size ({cluster_size})");
    }
    if clean_interval > u64::from(u32::MAX) {
        bail!("Cache clean interval too big");
    }
    let (l2, refcount) = match (both, l2, refcount) {
        (Some(_), Some(_), Some(_)) => {
            bail!("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
        }
        (Some(both), Some(l2), None) if l2 > both => bail!("l2-cache-size may not exceed cache-size"),
        (Some(both), None, Some(r)) if r > both => bail!("refcount-cache-size may not exceed cache-size"),
        (Some(both), Some(l2), None) => (l2, Some(both - l2)),
        (Some(both), None, Some(r)) => (both - r, Some(r)),
        (Some(both), None, None) => (both - both / 8, Some(both / 8)),
        (None, l2, refcount) => (l2.unwrap_or(DEFAULT_L2_CACHE), refcount),
    };
    // More than the whole image's tables is never needed.
    let all = header.l1_entries_for(header.size).saturating_mul(cluster_size).max(cluster_size);
    Ok(CacheOptions { l2_bytes: l2.min(all), refcount_bytes: refcount, clean_interval })
}

/// Drops tables that nobody has used for a while.
fn clean_caches(node: Weak<Node>, interval: Duration) {
    if lockstep_event::Context::current().is_none() {
        return;
    }
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(interval).await;
            let Some(node) = node.upgrade() else { return };
            if let Some(image) = node.driver_as::<Qcow2>() {
                image.l2.drop_idle();
                image.refs.blocks.drop_idle();
            } else {
                return;
            }
        }
    });
}

async fn read_header(file: &Rc<Node>) -> Result<Header> {
    let length = file.len().map_err(|e| Error::with_errno("Could not get image size", &e))?;
    let mut head = vec![0; length.min(512) as usize];
    let read_error = |e: std::io::Error| Error::with_errno("Could not read qcow2 header", &e);
    file.read(0, &mut head).await.map_err(read_error)?;
    // The first look gives the cluster size (or the error that there is none).
    let cluster_bits = match head.get(20..24) {
        Some(b) => u32::from_be_bytes([b[0], b[1], b[2], b[3]]),
        None => 0,
    };
    if (9..=21).contains(&cluster_bits) {
        head.resize(length.min(1 << cluster_bits) as usize, 0);
        file.read(0, &mut head).await.map_err(read_error)?;
    }
    Header::parse(&head)
}

fn validate_table(header: &Header, offset: u64, entries: u64, entry_size: u64, max: u64, name: &str) -> Result<()> {
    if entries > max / entry_size {
        bail!("{name} too large");
    }
    let bytes = entries * entry_size;
    if offset > i64::MAX as u64 - bytes || !offset.is_multiple_of(header.cluster_size()) {
        bail!("{name} offset invalid");
    }
    Ok(())
}

impl Qcow2 {
    /// Reads header and tables (again).
    pub(super) async fn reload(&self) -> Result<()> {
        let file = self.file();
        let flags = self.flags();
        let writable = !flags.read_only && !flags.inactive;
        let header = read_header(&file).await?;
        if header.cluster_bits != self.cluster_bits || header.refcount_order != self.refs.order {
            bail!("The image's layout has changed");
        }
        check_corrupt(&header, writable && !flags.check)?;
        let cluster_size = header.cluster_size();
        let table_entries = u64::from(header.reftable_clusters) * (cluster_size / 8);
        validate_table(&header, header.reftable_offset, table_entries, 8, MAX_TABLE_BYTES, "Reference count table")?;
        if header.reftable_clusters == 0 && !flags.check {
            bail!("Image does not contain a reference count table");
        }
        validate_table(
            &header,
            header.snapshots_offset,
            u64::from(header.snapshot_count),
            snapshot::HEADER_SIZE,
            snapshot::MAX_COUNT * snapshot::HEADER_SIZE,
            "Snapshot table",
        )?;
        let l1_size = u64::from(header.l1_size);
        validate_table(&header, header.l1_offset, l1_size, 8, MAX_L1_BYTES, "Active L1 table")?;
        let needed = header.l1_entries_for(header.size);
        if needed > i32::MAX as u64 || header.size > i64::MAX as u64 {
            bail!("Image is too big");
        }
        if l1_size < needed {
            bail!("L1 table is too small");
        }
        let l1 = read_words(&file, header.l1_offset, l1_size)
            .await
            .map_err(|e| Error::with_errno("Could not read L1 table", &e))?;
        let table = read_words(&file, header.reftable_offset, table_entries)
            .await
            .map_err(|e| Error::with_errno("Could not initialize refcount handling", &e))?;
        let snapshots = match snapshot::read_table(&file, &header).await {
            Ok(list) => list,
            Err(_) if flags.check => Vec::new(),
            Err(e) => return Err(e),
        };
        let mut runtime = self.runtime.get();
        let feature = header.compatible & compatible::LAZY_REFCOUNTS != 0;
        runtime.lazy_refcounts = runtime.lazy_override.unwrap_or(feature) && header.version >= 3;
        self.runtime.set(runtime);
        let length = file.len().map_err(|e| Error::with_errno("Could not get image size", &e))?;
        self.end_cluster.set(length.div_ceil(cluster_size));
        *self.header.borrow_mut() = header;
        *self.l1.borrow_mut() = L1 { entries: l1, dirty: None };
        *self.refs.table.borrow_mut() = table;
        self.refs.table_dirty.set(None);
        self.refs.hint.set(0);
        self.emptied.reset();
        *self.snapshots.borrow_mut() = snapshots;
        self.compressed_tail.set(0);
        self.rebuild_metadata_clusters();
        if writable && !flags.check {
            self.prepare_for_writing().await?;
        }
        Ok(())
    }

    /// What has to be put right before the first write.
    async fn prepare_for_writing(&self) -> Result<()> {
        let (autoclear_bits, dirty, bitmaps) = {
            let header = self.header.borrow();
            (
                header.autoclear,
                header.incompatible & incompatible::DIRTY != 0,
                header.autoclear & autoclear::BITMAPS != 0,
            )
        };
        if autoclear_bits != 0 {
            if bitmaps {
                tracing::info!("the image's persistent bitmaps are not kept up to date from now on");
            }
            self.update_header(|h| h.autoclear = 0)
                .await
                .map_err(|e| Error::with_errno("Could not update qcow2 header", &e))?;
        }
        if dirty {
            let found = check::check(self, check::Fix { leaks: true, errors: true }).await;
            let result = found.map_err(|e| Error::with_errno("Could not repair dirty image", &e))?;
            if result.corruptions > 0 || result.check_errors > 0 {
                bail!("Could not repair dirty image: Invalid argument");
            }
            self.update_header(|h| h.incompatible &= !incompatible::DIRTY)
                .await
                .map_err(|e| Error::with_errno("Could not repair dirty image", &e))?;
        }
        Ok(())
    }
}

pub(super) async fn read_words(file: &Rc<Node>, offset: u64, count: u64) -> std::io::Result<Vec<u64>> {
    let mut bytes = vec![0; (count * 8) as usize];
    file.read(offset, &mut bytes).await?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|b| u64::from_be_bytes(*b)).collect())
}
