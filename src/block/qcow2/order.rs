//! In which order things reach the disk.
//!
//! Data and refcount blocks, then the refcount table, then L2 tables, then the L1 table; a flush of the file lies between
//! a level that has changes and the next one. Freeing comes last, after everything is stable. Whatever is lost in a
//! crash, nothing on the disk refers to something that is not there, and no cluster is used twice.

use super::header::incompatible;
use super::{Qcow2, refcount};
use crate::driver::WriteFlags;
use std::io;

impl Qcow2 {
    async fn barrier(&self) -> io::Result<()> {
        if self.unsynced.get() {
            self.file().flush().await?;
            self.unsynced.set(false);
        }
        Ok(())
    }

    /// Writes all metadata, in order; the last level is not stable yet. Runs under the metadata lock.
    pub(super) async fn write_metadata(&self) -> io::Result<()> {
        let file = self.file();
        if !self.runtime.get().lazy_refcounts {
            self.write_refcounts().await?;
        }
        if self.l2.is_dirty() {
            self.barrier().await?;
            let written = self.l2.write_dirty(&file).await;
            self.unsynced.set(true);
            written?;
        }
        self.write_l1().await
    }

    async fn write_refcounts(&self) -> io::Result<()> {
        let file = self.file();
        if self.refs.blocks.is_dirty() {
            let written = self.refs.blocks.write_dirty(&file).await;
            self.unsynced.set(true);
            written?;
        }
        if let Some((start, end)) = self.refs.table_dirty.get() {
            self.barrier().await?;
            let bytes: Vec<u8> = self.refs.table.borrow()[start..end].iter().flat_map(|e| e.to_be_bytes()).collect();
            let at = self.header.borrow().reftable_offset + start as u64 * 8;
            let written = file.write(at, &bytes, WriteFlags::empty()).await;
            self.unsynced.set(true);
            written?;
            if self.refs.table_dirty.get() == Some((start, end)) {
                self.refs.table_dirty.set(None);
            }
        }
        Ok(())
    }

    async fn write_l1(&self) -> io::Result<()> {
        if self.l1.borrow().dirty.is_none() {
            return Ok(());
        }
        self.barrier().await?;
        // Taken after the wait: the image may have been emptied in between.
        let (start, bytes, generation): (usize, Vec<u8>, u64) = {
            let l1 = self.l1.borrow();
            let Some((start, end)) = l1.dirty else { return Ok(()) };
            let bytes = l1.entries[start..end].iter().flat_map(|e| e.to_be_bytes()).collect();
            (start, bytes, self.emptied.generation())
        };
        let at = self.header.borrow().l1_offset + start as u64 * 8;
        let written = self.file().write(at, &bytes, WriteFlags::empty()).await;
        self.unsynced.set(true);
        written?;
        if self.emptied.generation() == generation {
            self.l1.borrow_mut().dirty = None;
            self.emptied.l1_written(generation);
        }
        Ok(())
    }

    /// Makes everything stable, then gives back what was freed.
    pub(super) async fn flush_all(&self) -> io::Result<()> {
        let _meta = self.meta.lock().await;
        self.flush_locked().await
    }

    pub(super) async fn flush_locked(&self) -> io::Result<()> {
        self.write_metadata().await?;
        self.file().flush().await?;
        self.unsynced.set(false);
        self.emptied.file_flushed();
        self.apply_frees().await
    }

    /// Writes everything back, refcounts of frees included, and clears the dirty bit.
    pub(super) async fn mark_clean(&self) -> io::Result<()> {
        if self.corrupt.get() {
            return self.file().flush().await;
        }
        let _meta = self.meta.lock().await;
        self.reclaim_abandoned().await?;
        self.flush_locked().await?;
        self.write_refcounts().await?;
        self.file().flush().await?;
        self.unsynced.set(false);
        if self.header.borrow().incompatible & incompatible::DIRTY != 0 {
            self.update_header(|h| h.incompatible &= !incompatible::DIRTY).await?;
        }
        Ok(())
    }

    /// With lazy refcounts the dirty bit must be set before the first refcount is out of date.
    pub(super) async fn mark_dirty_if_lazy(&self) -> io::Result<()> {
        if self.runtime.get().lazy_refcounts && self.header.borrow().incompatible & incompatible::DIRTY == 0 {
            self.update_header(|h| h.incompatible |= incompatible::DIRTY).await?;
        }
        Ok(())
    }

    /// Frees pile up until a flush: when there are many, flush without being asked.
    pub(super) async fn limit_deferred_frees(&self) -> io::Result<()> {
        const MAX_RANGES: usize = 4096;
        const MAX_BYTES: u64 = 256 << 20;
        let (ranges, clusters) = {
            let frees = self.frees.borrow();
            (frees.len(), frees.iter().map(|f| f.clusters).sum::<u64>())
        };
        if ranges > MAX_RANGES
            || clusters << self.cluster_bits > MAX_BYTES
            || self.emptied.is_overdue(self.cluster_bits)
        {
            self.flush_locked().await?;
        }
        Ok(())
    }

    pub(super) fn set_l1(&self, index: usize, entry: u64) {
        let mut l1 = self.l1.borrow_mut();
        l1.entries[index] = entry;
        l1.dirty = Some(match l1.dirty {
            Some((s, e)) => (s.min(index), e.max(index + 1)),
            None => (index, index + 1),
        });
        let at = entry & refcount::OFFSET_MASK;
        if at != 0 {
            self.metadata_clusters.borrow_mut().insert(at);
        }
    }
}
