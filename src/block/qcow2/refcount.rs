//! Which clusters of the image file are in use, and how often: the refcount table and its blocks; allocating and freeing.
//!
//! Increments are written before what refers to the cluster, decrements are applied only after the reference's removal is
//! stable (see `order.rs`). So a crash leaks clusters at worst. Everything that waits here runs under the metadata lock.

use super::Qcow2;
use super::cache::{Table, TableCache};
use crate::driver::{WriteFlags, errno};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// Largest refcount table that is accepted, in bytes.
pub const MAX_TABLE_BYTES: u64 = 8 << 20;
/// Bits of an L1, L2 or refcount table entry that hold an offset.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Refcount blocks that may describe used clusters behind the file's end.
const MAX_BLOCKS_BEHIND_END: u64 = 16;
/// Highest offset a cluster can have and still be referred to.
const MAX_OFFSET: u64 = 1 << 56;

/// Refcounts in memory.
pub struct Refcounts {
    /// log2 of an entry's width in bits.
    pub order: u32,
    /// Offsets of the blocks, 0 where there is none.
    pub table: RefCell<Vec<u64>>,
    /// Entries of the table changed and not written.
    pub table_dirty: Cell<Option<(usize, usize)>>,
    /// Blocks in memory.
    pub blocks: TableCache,
    /// No cluster below this one is free.
    pub hint: Cell<u64>,
}

impl Refcounts {
    /// Largest refcount that an entry holds.
    pub fn max(&self) -> u64 {
        if self.order == 6 { u64::MAX } else { (1 << (1u64 << self.order)) - 1 }
    }
}

/// Entry `index` of a refcount block with entries of 2^`order` bits.
pub fn get_entry(bytes: &[u8], index: usize, order: u32) -> u64 {
    match order {
        0..=2 => {
            let bits = 1usize << order;
            let per_byte = 8 / bits;
            let shift = (index % per_byte) * bits;
            u64::from(bytes[index / per_byte] >> shift) & ((1 << bits) - 1)
        }
        _ => {
            let width = 1usize << (order - 3);
            bytes[index * width..(index + 1) * width].iter().fold(0, |v, b| v << 8 | u64::from(*b))
        }
    }
}

/// Sets entry `index`; the value fits (the caller checked against the maximum).
pub fn set_entry(bytes: &mut [u8], index: usize, order: u32, value: u64) {
    match order {
        0..=2 => {
            let bits = 1usize << order;
            let per_byte = 8 / bits;
            let shift = (index % per_byte) * bits;
            let mask = (((1u16 << bits) - 1) << shift) as u8;
            let byte = &mut bytes[index / per_byte];
            *byte = *byte & !mask | (value << shift) as u8 & mask;
        }
        _ => {
            let width = 1usize << (order - 3);
            bytes[index * width..(index + 1) * width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
    }
}

/// Clusters taken and not referred to yet. Unless kept, they are given back.
pub struct Allocation<'a> {
    image: &'a Qcow2,
    /// First byte.
    pub offset: u64,
    /// Number of clusters.
    pub clusters: u64,
    kept: bool,
}

impl Allocation<'_> {
    /// Something refers to the clusters now.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Allocation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.image.abandoned.borrow_mut().push((self.offset, self.clusters));
        }
    }
}

impl Qcow2 {
    /// Clusters that one refcount block describes.
    pub(super) fn clusters_per_block(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refs.order
    }

    fn block_entry(&self, cluster: u64) -> usize {
        (cluster % self.clusters_per_block()) as usize
    }

    /// The refcount block that describes a cluster, if there is one.
    pub(super) async fn refblock(&self, cluster: u64) -> io::Result<Option<Rc<Table>>> {
        let index = cluster / self.clusters_per_block();
        let entry = self.refs.table.borrow().get(index as usize).copied().unwrap_or(0);
        let offset = entry & OFFSET_MASK;
        if offset == 0 {
            return Ok(None);
        }
        if !offset.is_multiple_of(self.cluster_size()) {
            let text = format!("Refblock offset {offset:#x} unaligned (reftable index: {index:#x})");
            return Err(self.signal_corruption(&text).await);
        }
        if !self.refs.blocks.shrink() {
            self.refs.blocks.write_dirty(&self.file()).await?;
            self.unsynced.set(true);
            self.refs.blocks.shrink();
        }
        Ok(Some(self.refs.blocks.load(&self.file(), offset).await?))
    }

    /// How often a cluster is in use.
    pub(super) async fn refcount(&self, cluster: u64) -> io::Result<u64> {
        Ok(match self.refblock(cluster).await? {
            Some(block) => get_entry(&block.bytes(), self.block_entry(cluster), self.refs.order),
            None => 0,
        })
    }

    fn set_in_block(&self, block: &Table, cluster: u64, value: u64) {
        let index = self.block_entry(cluster);
        let at = (index << self.refs.order) / 8;
        let end = (((index + 1) << self.refs.order).div_ceil(8)).max(at + 1);
        block.change(at, end, |bytes| set_entry(bytes, index, self.refs.order, value));
    }

    /// Changes a cluster's refcount by `delta` (1 or -1).
    async fn adjust(&self, cluster: u64, delta: i64) -> io::Result<u64> {
        let block = match self.refblock(cluster).await? {
            Some(block) => block,
            None if delta > 0 => self.create_block(cluster).await?,
            None => return Err(errno(libc::EINVAL)),
        };
        let old = get_entry(&block.bytes(), self.block_entry(cluster), self.refs.order);
        let new = old.checked_add_signed(delta).filter(|n| *n <= self.refs.max()).ok_or_else(|| errno(libc::EINVAL))?;
        self.set_in_block(&block, cluster, new);
        if new == 0 {
            self.refs.hint.set(self.refs.hint.get().min(cluster));
        }
        Ok(new)
    }

    /// Takes up to `wanted` contiguous free clusters, at least one.
    pub(super) async fn allocate(&self, wanted: u64) -> io::Result<Allocation<'_>> {
        self.allocate_run(wanted, false).await
    }

    /// Takes exactly `wanted` contiguous free clusters.
    pub(super) async fn allocate_exact(&self, wanted: u64) -> io::Result<Allocation<'_>> {
        self.allocate_run(wanted, true).await
    }

    async fn allocate_run(&self, wanted: u64, exact: bool) -> io::Result<Allocation<'_>> {
        self.reclaim_abandoned().await?;
        self.mark_dirty_if_lazy().await?;
        loop {
            let (start, found) = self.find_free(wanted, exact).await?;
            if start.saturating_add(found) > MAX_OFFSET >> self.cluster_bits {
                return Err(errno(libc::EFBIG));
            }
            // Making a block can take one of the found clusters: look again then.
            let mut missing = false;
            let mut cluster = start;
            while cluster < start + found {
                if self.refblock(cluster).await?.is_none() {
                    self.create_block(cluster).await?;
                    missing = true;
                }
                cluster = (cluster / self.clusters_per_block() + 1) * self.clusters_per_block();
            }
            if missing {
                continue;
            }
            let allocation = Allocation { image: self, offset: start << self.cluster_bits, clusters: 0, kept: false };
            let mut allocation = allocation;
            for cluster in start..start + found {
                self.adjust(cluster, 1).await?;
                allocation.clusters += 1;
            }
            self.note_allocated(allocation.offset, found);
            self.emptied.note_taken(start, found);
            if self.refs.hint.get() == start {
                self.refs.hint.set(start + found);
            }
            if self.check_overlap && self.overlaps_metadata(allocation.offset, found << self.cluster_bits).is_some() {
                // Free according to the refcounts, and yet in use: never hand that out.
                std::mem::forget(allocation);
                return Err(self.signal_corruption("Preventing invalid allocation: refcounts are wrong").await);
            }
            return Ok(allocation);
        }
    }

    /// First free cluster and how many follow, at most `wanted`.
    async fn find_free(&self, wanted: u64, exact: bool) -> io::Result<(u64, u64)> {
        let per_block = self.clusters_per_block();
        let mut start = 0;
        let mut found = 0;
        let mut cluster = self.refs.hint.get();
        let mut first_free = None;
        // Blocks that say that everything is in use, far behind the file's end, are damaged or hostile.
        let believable = self.end_cluster.get().saturating_add(MAX_BLOCKS_BEHIND_END * per_block);
        loop {
            if cluster > believable && found == 0 {
                return Err(self.signal_corruption("Clusters behind the end of the file are counted as used").await);
            }
            let block_end = (cluster / per_block + 1) * per_block;
            match self.refblock(cluster).await? {
                None => {
                    if found == 0 {
                        start = cluster;
                    }
                    first_free.get_or_insert(start);
                    found = (found + block_end - cluster).min(wanted);
                    cluster = block_end;
                }
                Some(block) => {
                    let bytes = block.bytes();
                    while cluster < block_end && found < wanted {
                        if get_entry(&bytes, (cluster % per_block) as usize, self.refs.order) == 0 {
                            if found == 0 {
                                start = cluster;
                            }
                            first_free.get_or_insert(start);
                            found += 1;
                        } else {
                            if found > 0 && !exact {
                                break;
                            }
                            found = 0;
                        }
                        cluster += 1;
                    }
                    if found > 0 && cluster < block_end && !exact {
                        break;
                    }
                }
            }
            if found >= wanted {
                break;
            }
            if cluster > MAX_OFFSET >> self.cluster_bits {
                return Err(errno(libc::EFBIG));
            }
        }
        if let Some(first) = first_free {
            self.refs.hint.set(first);
        }
        Ok((start, found))
    }

    /// Makes the block that describes `cluster`. The block lies in the range it describes, at its first cluster, which is
    /// free as long as no block describes it.
    async fn create_block(&self, cluster: u64) -> io::Result<Rc<Table>> {
        let per_block = self.clusters_per_block();
        let index = (cluster / per_block) as usize;
        if index >= self.refs.table.borrow().len() {
            self.grow_table(index).await?;
            if let Some(block) = self.refblock(cluster).await? {
                return Ok(block);
            }
        }
        let home = index as u64 * per_block;
        let offset = home << self.cluster_bits;
        if offset >= MAX_OFFSET {
            return Err(errno(libc::EFBIG));
        }
        if self.overlaps_metadata(offset, self.cluster_size()).is_some() {
            return Err(self.signal_corruption("Preventing invalid allocation of a refcount block").await);
        }
        let block = Table::new(offset, vec![0; self.cluster_size() as usize]);
        block.mark_all_dirty();
        self.set_in_block(&block, home, 1);
        self.refs.blocks.insert(block.clone());
        self.refs.table.borrow_mut()[index] = offset;
        self.note_table_dirty(index);
        self.note_allocated(offset, 1);
        self.metadata_clusters.borrow_mut().insert(offset);
        Ok(block)
    }

    fn note_table_dirty(&self, index: usize) {
        let range = match self.refs.table_dirty.get() {
            Some((s, e)) => (s.min(index), e.max(index + 1)),
            None => (index, index + 1),
        };
        self.refs.table_dirty.set(Some(range));
    }

    /// Moves the refcount table to a larger place that lies, with the blocks it needs, behind everything described so far.
    async fn grow_table(&self, index: usize) -> io::Result<()> {
        let cluster_size = self.cluster_size();
        let per_block = self.clusters_per_block();
        let old_table = self.refs.table.borrow().clone();
        let per_cluster = cluster_size / 8;
        let start_block = old_table.len() as u64;
        let start = start_block * per_block;
        // Blocks and table describe themselves: grow both until they fit.
        let mut table_clusters = ((index as u64 + 1) * 3 / 2 + 1).div_ceil(per_cluster);
        let blocks = loop {
            let blocks = (table_clusters + 1).div_ceil(per_block.saturating_sub(1).max(1)).max(1);
            let entries = start_block + blocks;
            if entries <= table_clusters * per_cluster && blocks * per_block >= blocks + table_clusters {
                break blocks;
            }
            table_clusters += 1;
        };
        if table_clusters * cluster_size > MAX_TABLE_BYTES || (start + blocks) << self.cluster_bits >= MAX_OFFSET {
            return Err(errno(libc::EFBIG));
        }
        // Blocks first, each of which is counted in the block that describes its place, then the table.
        let file = self.file();
        let mut table = old_table.clone();
        table.resize((table_clusters * per_cluster) as usize, 0);
        let mut contents = vec![vec![0u8; cluster_size as usize]; blocks as usize];
        for used in 0..blocks + table_clusters {
            let block = (used / per_block) as usize;
            set_entry(&mut contents[block], (used % per_block) as usize, self.refs.order, 1);
        }
        for (i, content) in contents.iter().enumerate() {
            let offset = (start + i as u64) << self.cluster_bits;
            file.write(offset, content, WriteFlags::empty()).await?;
            table[start_block as usize + i] = offset;
        }
        let table_offset = (start + blocks) << self.cluster_bits;
        let bytes: Vec<u8> = table.iter().flat_map(|e| e.to_be_bytes()).collect();
        file.write(table_offset, &bytes, WriteFlags::empty()).await?;
        // The old table's own changes are in the new one; its blocks must be there before the header leads to it.
        self.refs.blocks.write_dirty(&file).await?;
        file.flush().await?;
        let (old_offset, old_clusters) = {
            let header = self.header.borrow();
            (header.reftable_offset, u64::from(header.reftable_clusters))
        };
        self.update_header(|h| {
            h.reftable_offset = table_offset;
            h.reftable_clusters = table_clusters as u32;
        })
        .await?;
        for (i, content) in contents.into_iter().enumerate() {
            self.refs.blocks.insert(Table::new((start + i as u64) << self.cluster_bits, content));
        }
        *self.refs.table.borrow_mut() = table;
        self.refs.table_dirty.set(None);
        self.note_allocated(start << self.cluster_bits, blocks + table_clusters);
        let homes = (start..start + blocks).map(|c| c << self.cluster_bits);
        self.metadata_clusters.borrow_mut().extend(homes);
        self.defer_free(old_offset, old_clusters, false);
        Ok(())
    }

    /// Gives back what futures that were dropped, or failed, had taken; nothing refers to it.
    pub(super) async fn reclaim_abandoned(&self) -> io::Result<()> {
        loop {
            let Some((offset, clusters)) = self.abandoned.borrow_mut().pop() else { return Ok(()) };
            for i in 0..clusters {
                self.adjust((offset >> self.cluster_bits) + i, -1).await?;
            }
        }
    }

    /// Notes clusters for freeing; it happens when the removal of their reference is stable.
    pub(super) fn defer_free(&self, offset: u64, clusters: u64, discard: bool) {
        if clusters == 0 {
            return;
        }
        let mut frees = self.frees.borrow_mut();
        if let Some(last) = frees.last_mut()
            && last.discard == discard
            && last.offset + (last.clusters << self.cluster_bits) == offset
        {
            last.clusters += clusters;
            return;
        }
        frees.push(super::DeferredFree { offset, clusters, discard });
    }

    /// Applies the frees noted so far: what referred to them is stably gone.
    pub(super) async fn apply_frees(&self) -> io::Result<()> {
        self.reset_after_emptying().await?;
        let frees = std::mem::take(&mut *self.frees.borrow_mut());
        for free in frees {
            let first = free.offset >> self.cluster_bits;
            for cluster in first..first + free.clusters {
                match self.adjust(cluster, -1).await {
                    Ok(0) => {
                        if self.compressed_tail.get() >> self.cluster_bits == cluster {
                            // The next compressed cluster begins somewhere else.
                            self.compressed_tail.set(0);
                        }
                        self.refs.blocks.forget(cluster << self.cluster_bits);
                        self.l2.forget(cluster << self.cluster_bits);
                        self.metadata_clusters.borrow_mut().remove(&(cluster << self.cluster_bits));
                        if free.discard {
                            let _ = self.file().discard(cluster << self.cluster_bits, self.cluster_size()).await;
                        }
                    }
                    Ok(_) => {}
                    Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                        // Freed more often than taken: the image's refcounts were wrong before.
                        return Err(self.signal_corruption("Refcount of a freed cluster is already 0").await);
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// One reference more to a cluster that is in use (compressed clusters share one).
    pub(super) async fn add_reference(&self, cluster: u64) -> io::Result<()> {
        self.adjust(cluster, 1).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_of_any_width_comes_back_and_leaves_its_neighbours(order in 0u32..7, index in 0usize..64, value: u64) {
            let mut bytes = vec![0xff; 1024];
            let max = if order == 6 { u64::MAX } else { (1u64 << (1 << order)) - 1 };
            set_entry(&mut bytes, index, order, value & max);
            prop_assert_eq!(get_entry(&bytes, index, order), value & max);
            for other in (0..64).filter(|o| *o != index) {
                prop_assert_eq!(get_entry(&bytes, other, order), max);
            }
        }
    }
}
