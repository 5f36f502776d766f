//! Forgetting everything at once (`make_empty`), in time that does not depend on how much there is.
//!
//! In memory the L1 table becomes empty and the L2 tables are dropped; that is all that happens in the call. On the disk
//! the old tables stay whole until the empty L1 table is written, so a crash finds the old contents or none. Until the
//! empty table is stable the old clusters stay counted as used; then all that were not taken since are free.

use super::Qcow2;
use super::cache::Table;
use super::refcount::{OFFSET_MASK, set_entry};
use crate::driver::Preallocation;
use crate::requests::RequestKind;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::time::Duration;

/// When an emptied image that is left alone makes its emptiness stable.
const SETTLE_AFTER: Duration = Duration::from_millis(500);
/// Bytes that may be taken before what is forgotten has to be made free.
const MAX_TAKEN: u64 = 64 << 20;

/// What is forgotten and not yet free.
#[derive(Default)]
pub(super) struct Emptied {
    /// Counts calls.
    generation: Cell<u64>,
    /// The call whose empty L1 table has been written.
    written: Cell<u64>,
    /// The call whose empty L1 table is stable.
    stable: Cell<u64>,
    /// Something is forgotten and not yet free.
    pending: Cell<bool>,
    /// Clusters taken since the last call: first and number. Everything else is forgotten.
    young: RefCell<Vec<(u64, u64)>>,
    /// Clusters taken since the first call that is pending.
    taken: Cell<u64>,
}

impl Emptied {
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    pub fn l1_written(&self, generation: u64) {
        self.written.set(generation);
    }

    pub fn file_flushed(&self) {
        self.stable.set(self.written.get());
    }

    /// Clusters were taken.
    pub fn note_taken(&self, first: u64, clusters: u64) {
        if !self.pending.get() {
            return;
        }
        self.taken.set(self.taken.get() + clusters);
        let mut young = self.young.borrow_mut();
        match young.last_mut() {
            Some((start, n)) if *start + *n == first => *n += clusters,
            _ => young.push((first, clusters)),
        }
    }

    /// Whether so much was taken that what is forgotten should be made free now.
    pub fn is_overdue(&self, cluster_bits: u32) -> bool {
        self.pending.get() && self.taken.get() << cluster_bits > MAX_TAKEN
    }

    fn begin(&self) {
        if !self.pending.replace(true) {
            self.taken.set(0);
        }
        self.young.borrow_mut().clear();
        self.generation.set(self.generation.get() + 1);
    }

    fn end(&self) {
        self.pending.set(false);
        self.young.borrow_mut().clear();
        self.taken.set(0);
    }

    /// The image was read anew.
    pub fn reset(&self) {
        self.end();
        self.generation.set(self.generation.get() + 1);
        self.written.set(self.generation.get());
        self.stable.set(self.generation.get());
    }
}

impl Qcow2 {
    /// `make_empty`.
    pub(super) async fn forget_all(&self) -> io::Result<()> {
        self.check_not_corrupt()?;
        if self.l1.borrow().entries.iter().all(|e| e & OFFSET_MASK == 0) {
            return Ok(());
        }
        let simple = {
            let header = self.header.borrow();
            header.snapshot_count == 0 && header.extension(super::header::extension::BITMAPS).is_none()
        };
        // The caller has drained the node, so nobody is writing; a dropped request of a layer above may still be.
        let _alone = self.ranges.begin(RequestKind::Exclusive, 0, u64::MAX).await;
        if !simple {
            return self.forget_one_by_one().await;
        }
        {
            let mut l1 = self.l1.borrow_mut();
            l1.entries.fill(0);
            l1.dirty = Some((0, l1.entries.len()));
        }
        self.l2.clear();
        // None of these is young: the reset counts them free.
        self.frees.borrow_mut().clear();
        self.abandoned.borrow_mut().clear();
        self.compressed_tail.set(0);
        self.compressed_freed.set(self.compressed_freed.get() + 1);
        *self.decompressed.borrow_mut() = None;
        self.emptied.begin();
        self.rebuild_metadata_clusters();
        self.settle_in_background();
        Ok(())
    }

    /// Makes the emptiness stable when there is time, so that the old clusters can be used again.
    fn settle_in_background(&self) {
        let node = self.node.clone();
        if lockstep_event::Context::current().is_none() {
            return;
        }
        let generation = self.emptied.generation();
        tokio::task::spawn_local(async move {
            // Whoever called may run things that matter more now, and may call again soon.
            tokio::time::sleep(SETTLE_AFTER).await;
            let Some(node) = node.upgrade() else { return };
            if !node.is_writable() {
                return;
            }
            if let Some(image) = node.driver_as::<Qcow2>()
                && image.emptied.generation() == generation
                && let Err(e) = image.flush_all().await
            {
                tracing::warn!("settling an emptied image: {e}");
            }
        });
    }

    /// Counts everything free that was not taken since, if the empty L1 table is stable.
    pub(super) async fn reset_after_emptying(&self) -> io::Result<()> {
        let generation = self.emptied.generation.get();
        if !self.emptied.pending.get() || self.emptied.stable.get() != generation {
            return Ok(());
        }
        let young: HashSet<u64> = self.emptied.young.borrow().iter().flat_map(|(s, n)| *s..*s + *n).collect();
        let kept = self.kept_clusters();
        let per_block = self.clusters_per_block();
        let blocks: Vec<u64> = {
            let table = self.refs.table.borrow();
            (0..table.len() as u64).filter(|i| table[*i as usize] != 0).collect()
        };
        for index in blocks {
            let first = index * per_block;
            let Some(block) = self.refblock(first).await? else { continue };
            if self.emptied.generation.get() != generation {
                // Emptied again meanwhile: the next flush does it all.
                return Ok(());
            }
            self.count_free(&block, first, first + per_block, &kept, &young);
        }
        // What was noted for freeing and is not young has been freed with all the rest.
        let frees = std::mem::take(&mut *self.frees.borrow_mut());
        for free in frees {
            for cluster in (0..free.clusters).map(|i| (free.offset >> self.cluster_bits) + i) {
                if young.contains(&cluster) {
                    self.defer_free(cluster << self.cluster_bits, 1, free.discard);
                }
            }
        }
        self.refs.hint.set(0);
        self.emptied.end();
        self.rebuild_metadata_clusters();
        let end = kept.iter().chain(&young).max().map_or(1, |c| c + 1);
        self.end_cluster.set(end);
        let length = end << self.cluster_bits;
        if self.file().len()? > length {
            // The space behind is free for the host too. A file that cannot shrink is no error.
            let _ = self.file().truncate(length, false, Preallocation::Off).await;
        }
        Ok(())
    }

    /// Counts clusters of one block: tables once, young clusters as they are, all others free.
    fn count_free(&self, block: &Table, first: u64, end: u64, kept: &HashSet<u64>, young: &HashSet<u64>) {
        let order = self.refs.order;
        let bytes = (((end - first) << order).div_ceil(8)) as usize;
        block.change(0, bytes, |b| {
            for cluster in first..end {
                let index = (cluster - first) as usize;
                if kept.contains(&cluster) {
                    set_entry(b, index, order, 1);
                } else if !young.contains(&cluster) {
                    set_entry(b, index, order, 0);
                }
            }
        });
    }

    /// Clusters of the header, the refcount table and blocks, and the L1 table.
    fn kept_clusters(&self) -> HashSet<u64> {
        let header = self.header.borrow();
        let bits = self.cluster_bits;
        let range = |offset: u64, bytes: u64| (offset >> bits)..(offset + bytes).div_ceil(1 << bits);
        let mut kept: HashSet<u64> = HashSet::from([0]);
        kept.extend(range(header.l1_offset, u64::from(header.l1_size) * 8));
        kept.extend(range(header.reftable_offset, u64::from(header.reftable_clusters) << bits));
        kept.extend(self.refs.table.borrow().iter().map(|e| (e & OFFSET_MASK) >> bits).filter(|c| *c != 0));
        kept
    }

    /// The way for images whose clusters are shared with snapshots: every reference is dropped by itself.
    async fn forget_one_by_one(&self) -> io::Result<()> {
        let _meta = self.meta.lock().await;
        let span = self.table_span();
        let count = self.l1.borrow().entries.len();
        for index in 0..count {
            let entry = self.l1.borrow().entries[index];
            if entry & OFFSET_MASK == 0 {
                continue;
            }
            if let Some(table) = self.l2_table_locked(index as u64 * span).await? {
                for i in 0..self.entries_per_table() as usize {
                    self.free_entry(self.entry(&table, i), false);
                }
            }
            self.set_l1(index, 0);
            self.defer_free(entry & OFFSET_MASK, 1, false);
            self.l2.forget(entry & OFFSET_MASK);
        }
        self.rebuild_metadata_clusters();
        self.flush_locked().await
    }
}
