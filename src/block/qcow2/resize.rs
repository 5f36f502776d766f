//! Changing the virtual length, preallocation, and what the header says about the backing file.

use super::cache::Table;
use super::header::extension;
use super::map::Entry;
use super::open::MAX_L1_BYTES;
use super::refcount::OFFSET_MASK;
use super::{COPIED, Qcow2};
use crate::driver::{Preallocation, WriteFlags, errno};
use lockstep_util::{Error, Result, ResultExt, bail};
use std::io;

const SECTOR: u64 = 512;

impl Qcow2 {
    pub(super) async fn resize(&self, len: u64, _exact: bool, prealloc: Preallocation) -> Result<()> {
        self.check_not_corrupt()?;
        if !len.is_multiple_of(SECTOR) {
            bail!("The new size must be a multiple of {SECTOR}");
        }
        let old = self.size();
        {
            let header = self.header.borrow();
            if header.snapshot_count > 0 && header.version < 3 {
                bail!("Can't resize a version 2 image which has snapshots");
            }
            if header.extension(extension::BITMAPS).is_some() && header.autoclear & 1 != 0 {
                bail!("Cannot resize qcow2 with persistent bitmaps that were not loaded into memory");
            }
        }
        if len < old {
            if prealloc != Preallocation::Off {
                bail!("Preallocation can't be used for shrinking an image");
            }
            self.cut(len, old).await.context("Failed to discard cropped clusters")?;
        } else if len > old {
            let needed = self.header.borrow().l1_entries_for(len);
            self.grow_l1(needed).await.context("Failed to grow the L1 table")?;
            self.hide_old_tail(old, len).await.context("Failed to zero out new clusters")?;
            if prealloc != Preallocation::Off {
                self.preallocate(old, len, prealloc).await?;
            }
        }
        let _meta = self.meta.lock().await;
        self.flush_locked().await.context("Failed to flush the L2 table cache")?;
        self.update_header(|h| h.size = len).await.context("Failed to update the image size")?;
        Ok(())
    }

    async fn cut(&self, len: u64, old: u64) -> io::Result<()> {
        let size = self.cluster_size();
        let (first, last) = (len.next_multiple_of(size), old.next_multiple_of(size));
        if first < last {
            self.drop_guest(first, last).await?;
        }
        let _meta = self.meta.lock().await;
        let keep = self.header.borrow().l1_entries_for(len) as usize;
        let count = self.l1.borrow().entries.len();
        for index in keep..count {
            let entry = self.l1.borrow().entries[index];
            if entry & OFFSET_MASK != 0 {
                self.set_l1(index, 0);
                self.l2.forget(entry & OFFSET_MASK);
                self.defer_free(entry & OFFSET_MASK, 1, false);
            }
        }
        self.rebuild_metadata_clusters();
        Ok(())
    }

    /// Moves the L1 table to a larger place if it has fewer entries than needed.
    async fn grow_l1(&self, needed: u64) -> io::Result<()> {
        let old_size = self.l1.borrow().entries.len() as u64;
        if needed <= old_size {
            return Ok(());
        }
        if needed * 8 > MAX_L1_BYTES {
            return Err(errno(libc::EFBIG));
        }
        let _meta = self.meta.lock().await;
        let clusters = (needed * 8).div_ceil(self.cluster_size());
        let place = self.allocate_exact(clusters).await?;
        // Everything the old table leads to must be stable before a copy of it is.
        self.flush_locked().await?;
        let mut entries = self.l1.borrow().entries.clone();
        entries.resize(needed as usize, 0);
        let mut bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
        bytes.resize((clusters << self.cluster_bits) as usize, 0);
        let file = self.file();
        file.write(place.offset, &bytes, WriteFlags::empty()).await?;
        self.write_metadata().await?;
        file.flush().await?;
        let old_offset = self.header.borrow().l1_offset;
        let offset = place.offset;
        self.update_header(|h| {
            h.l1_offset = offset;
            h.l1_size = needed as u32;
        })
        .await?;
        self.l1.borrow_mut().entries = entries;
        place.keep();
        self.defer_free(old_offset, (old_size * 8).div_ceil(self.cluster_size()), false);
        Ok(())
    }

    /// What lies behind the old end, in the last cluster or in the backing file, must not appear in the new part.
    async fn hide_old_tail(&self, old: u64, len: u64) -> io::Result<()> {
        let size = self.cluster_size();
        let tail_end = old.next_multiple_of(size).min(len);
        if tail_end > old {
            let run = self.lookup(old, tail_end - old).await?;
            let zero = matches!(run.kind, super::map::Kind::Zero { .. }) && run.len >= tail_end - old;
            let absent = matches!(run.kind, super::map::Kind::Unallocated) && self.backing().is_none();
            if !zero && !absent {
                self.write_guest(old, &vec![0; (tail_end - old) as usize]).await?;
            }
        }
        let Some(backing) = self.backing() else { return Ok(()) };
        let end = backing.len()?.min(len);
        if end > tail_end {
            // To the end of the cluster: behind the backing file's end there is nothing to hide.
            let end = end.next_multiple_of(size);
            if self.header.borrow().version >= 3 {
                self.zero_guest(tail_end, end - tail_end, WriteFlags::empty()).await?;
            } else {
                let zeroes = vec![0; size as usize];
                for at in (tail_end..end).step_by(size as usize) {
                    self.write_guest(at, &zeroes).await?;
                }
            }
        }
        Ok(())
    }

    /// Gives every cluster of a range a place. New places lie behind the file's end, so that they read as zeroes.
    pub(crate) async fn preallocate(&self, from: u64, to: u64, mode: Preallocation) -> Result<()> {
        let size = self.cluster_size();
        let file = self.file();
        let start_length = file.len().context("Failed to inquire current file length")?;
        let result = self.preallocate_tables(from - from % size, to.next_multiple_of(size)).await;
        result.context("Failed to allocate data clusters")?;
        let end = self.end_cluster.get() << self.cluster_bits;
        let below = if mode == Preallocation::Metadata { Preallocation::Off } else { mode };
        if end > start_length.max(file.len()?) || below != Preallocation::Off {
            // Table writes may have grown the file already; what they skipped is filled first.
            file.truncate(end.max(file.len()?), false, below).await?;
        }
        Ok(())
    }

    async fn preallocate_tables(&self, from: u64, to: u64) -> io::Result<()> {
        let _meta = self.meta.lock().await;
        let saved_hint = self.refs.hint.get();
        let mut at = from;
        while at < to {
            let table = self.l2_for_change(at).await?;
            let index = self.l2_index(at);
            let stop = (at - at % self.table_span() + self.table_span()).min(to);
            if !self.is_absent(&table, index) {
                at += self.cluster_size();
                continue;
            }
            let wanted = (stop - at) >> self.cluster_bits;
            let absent = (0..wanted).take_while(|i| self.is_absent(&table, index + *i as usize)).count() as u64;
            self.refs.hint.set(self.refs.hint.get().max(self.end_cluster.get()));
            let place = self.allocate(absent).await?;
            for i in 0..place.clusters {
                let word = (place.offset + (i << self.cluster_bits)) | COPIED;
                let bitmap = if self.is_extended() { u64::from(u32::MAX) } else { 0 };
                self.set_entry(&table, index + i as usize, Entry { word, bitmap });
            }
            at += place.clusters << self.cluster_bits;
            place.keep();
            self.unsynced.set(true);
        }
        self.refs.hint.set(saved_hint.min(self.refs.hint.get()));
        Ok(())
    }

    fn is_absent(&self, table: &Table, index: usize) -> bool {
        self.entry(table, index) == Entry { word: 0, bitmap: 0 }
    }

    /// Writes another backing file name and format into the header (`None`: no backing file).
    pub async fn change_backing(&self, name: Option<&str>, format: Option<&str>) -> Result<()> {
        if name.is_some_and(|n| n.len() > 1023) {
            bail!("Backing file name too long");
        }
        if format.is_some() && name.is_none() {
            bail!("Backing format cannot be used without backing file");
        }
        let mut changed = self.header.borrow().clone();
        changed.backing_file = name.unwrap_or_default().to_owned();
        changed.set_extension(extension::BACKING_FORMAT, format.map(|f| f.as_bytes().to_vec()));
        changed.to_bytes()?;
        self.update_header(|h| *h = changed).await.map_err(|e| Error::with_errno("Could not update qcow2 header", &e))
    }
}
