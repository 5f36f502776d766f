//! The receiving side of RAM.

use super::RamCache;
use crate::stream::{BlockTable, PAGE, RamRecord, apply_xbzrle, is_zero};
use lockstep_memory::{RamBlock, RamList};
use lockstep_util::{Result, err};

/// Where records go: into the guest's RAM, into a COLO secondary's copy, or both.
#[derive(Debug)]
pub struct RamReceiver {
    blocks: Vec<RamBlock>,
    table: BlockTable,
    cache: Option<RamCache>,
    /// Records go to the copy alone.
    checkpoints: bool,
}

impl RamReceiver {
    /// Records go into the guest's RAM.
    pub fn new(list: &RamList) -> Self {
        let blocks = list.blocks();
        Self { table: BlockTable::of(&blocks), blocks, cache: None, checkpoints: false }
    }

    /// Names and lengths of the blocks.
    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    /// Records go to a copy too. Asked for before the first record.
    ///
    /// # Errors
    /// When the host has no memory for it.
    pub fn enable_cache(&mut self, list: &RamList) -> Result<()> {
        let cache = RamCache::new(list)?;
        if cache.table() != self.table {
            return Err(err!("The machine's RAM changed during migration"));
        }
        self.cache = Some(cache);
        Ok(())
    }

    /// From now on records go to the copy alone, and the guest's writes are watched.
    ///
    /// # Errors
    /// When the host cannot track writes, or there is no copy.
    pub fn begin_checkpoints(&mut self) -> Result<()> {
        self.cache_mut()?.start_logging()?;
        self.checkpoints = true;
        Ok(())
    }

    /// Stops watching the guest's writes, before anybody else may want to.
    pub fn end_checkpoints(&mut self) {
        if let Some(cache) = &mut self.cache {
            cache.stop_logging();
        }
    }

    /// Makes the guest's RAM what the copy is. Returns the number of pages copied.
    ///
    /// # Errors
    /// When there is no copy.
    pub fn apply_checkpoint(&mut self) -> Result<u64> {
        self.cache_mut()?.apply()
    }

    /// Takes one record.
    ///
    /// # Errors
    /// When a difference does not fit.
    pub fn take(&mut self, record: &RamRecord<'_>) -> Result<()> {
        match *record {
            RamRecord::Sizes | RamRecord::End => Ok(()),
            RamRecord::Page { block, offset, data } => self.store(block, offset, data),
            RamRecord::Zero { block, offset, fill: 0 } => self.clear(block, offset),
            RamRecord::Zero { block, offset, fill } => self.store(block, offset, &[fill; PAGE]),
            RamRecord::Xbzrle { block, offset, delta } => {
                let mut page = [0; PAGE];
                match &mut self.cache {
                    Some(cache) if self.checkpoints => {
                        page = *cache.page_mut(block, offset).ok_or_else(|| outside(offset))?;
                    }
                    _ => self.blocks[block].read(offset, &mut page).map_err(|_| outside(offset))?,
                }
                apply_xbzrle(delta, &mut page)?;
                self.store(block, offset, &page)
            }
        }
    }

    fn store(&mut self, block: usize, offset: u64, data: &[u8; PAGE]) -> Result<()> {
        if let Some(cache) = &mut self.cache {
            *cache.page_mut(block, offset).ok_or_else(|| outside(offset))? = *data;
            if self.checkpoints {
                cache.mark_received(block, offset);
                return Ok(());
            }
        }
        self.blocks[block].write(offset, data).map_err(|_| outside(offset))
    }

    /// As storing zeroes, but pages that are zero already stay untouched, so that the host need not back them.
    fn clear(&mut self, block: usize, offset: u64) -> Result<()> {
        if let Some(cache) = &mut self.cache {
            let page = cache.page_mut(block, offset).ok_or_else(|| outside(offset))?;
            if !is_zero(page) {
                page.fill(0);
            }
            if self.checkpoints {
                cache.mark_received(block, offset);
                return Ok(());
            }
        }
        let mut page = [0; PAGE];
        self.blocks[block].read(offset, &mut page).map_err(|_| outside(offset))?;
        if is_zero(&page) {
            return Ok(());
        }
        self.blocks[block].write(offset, &[0; PAGE]).map_err(|_| outside(offset))
    }

    fn cache_mut(&mut self) -> Result<&mut RamCache> {
        self.cache.as_mut().ok_or_else(|| err!("The RAM of a checkpoint has no copy to go to"))
    }
}

fn outside(offset: u64) -> lockstep_util::Error {
    err!("Illegal RAM offset {offset:#018x}")
}
