//! The secondary's copy of the last checkpoint's RAM: what arrives of a checkpoint goes here, and into the guest only when all of it is
//! there.

use crate::stream::{BlockTable, PAGE};
use lockstep_memory::{DirtyClient, RamBlock, RamList};
use lockstep_util::{Result, err};

/// A copy of RAM, with the pages that have come since it was last applied.
pub struct RamCache {
    list: RamList,
    blocks: Vec<CachedBlock>,
    logging: bool,
}

struct CachedBlock {
    ram: RamBlock,
    copy: Vec<u8>,
    /// One bit a page.
    received: Vec<u64>,
}

impl std::fmt::Debug for RamCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RamCache({} blocks)", self.blocks.len())
    }
}

impl RamCache {
    /// A copy of zeroes. The host backs its pages as they are written.
    ///
    /// # Errors
    /// When the host has no such memory.
    pub fn new(list: &RamList) -> Result<Self> {
        let mut blocks = Vec::new();
        for ram in list.blocks() {
            let no_memory =
                |_| err!("Can't alloc memory for COLO cache of block {}, size {:#x}", ram.name(), ram.size());
            let len = usize::try_from(ram.size()).map_err(|_| err!("{} is too large", ram.name()))?;
            // Asked for in a way that may be refused; `vec!` then takes fresh zeroed pages.
            Vec::<u8>::new().try_reserve_exact(len).map_err(no_memory)?;
            let received = vec![0; (len / PAGE).div_ceil(64)];
            blocks.push(CachedBlock { copy: vec![0; len], received, ram });
        }
        Ok(Self { list: list.clone(), blocks, logging: false })
    }

    /// Names and lengths of the blocks.
    pub fn table(&self) -> BlockTable {
        BlockTable::new(self.blocks.iter().map(|b| (b.ram.name().to_owned(), b.ram.size())))
    }

    /// The copy of a page, to be changed. The record's numbers were checked against the table.
    pub fn page_mut(&mut self, block: usize, offset: u64) -> Option<&mut [u8; PAGE]> {
        self.blocks.get_mut(block)?.copy.get_mut(offset as usize..)?.first_chunk_mut()
    }

    /// Notes that a page came with the checkpoint that is arriving.
    pub fn mark_received(&mut self, block: usize, offset: u64) {
        let page = offset as usize / PAGE;
        if let Some(word) = self.blocks.get_mut(block).and_then(|b| b.received.get_mut(page / 64)) {
            *word |= 1 << (page % 64);
        }
    }

    /// Starts watching the guest's own writes; what it wrote before is taken as given.
    ///
    /// # Errors
    /// When the host cannot track writes.
    pub fn start_logging(&mut self) -> Result<()> {
        self.logging = true;
        self.list.set_logging(DirtyClient::Migration, true)?;
        self.forget_writes();
        Ok(())
    }

    /// Ends the logging of the guest's writes, before anybody else may want it.
    pub fn stop_logging(&mut self) {
        if std::mem::take(&mut self.logging) {
            // Nothing can be done about an accelerator that does not stop logging.
            let _ = self.list.set_logging(DirtyClient::Migration, false);
        }
    }

    /// Makes the guest's RAM what the copy is: every page that came or that the guest wrote is copied. The guest stands still.
    /// Returns the number of pages.
    ///
    /// # Errors
    /// When a block cannot be written, which its size excludes.
    pub fn apply(&mut self) -> Result<u64> {
        self.list.sync_dirty();
        let mut pages = 0;
        for block in &mut self.blocks {
            pages += block.apply()?;
        }
        // Copying was itself logged.
        self.forget_writes();
        Ok(pages)
    }

    fn forget_writes(&self) {
        self.list.sync_dirty();
        self.blocks.iter().for_each(|b| b.ram.dirty(DirtyClient::Migration).clear());
    }
}

impl CachedBlock {
    fn apply(&mut self) -> Result<u64> {
        let log = self.ram.dirty(DirtyClient::Migration);
        let mut pages = 0;
        for (at, received) in self.received.iter_mut().enumerate() {
            let mut bits = std::mem::take(received) | log.take_word(at);
            pages += u64::from(bits.count_ones());
            // Neighbours are copied together.
            while bits != 0 {
                let first = bits.trailing_zeros();
                let count = (bits >> first).trailing_ones();
                let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << first };
                bits &= !mask;
                let start = (at * 64 + first as usize) * PAGE;
                let from = self.copy.get(start..start + count as usize * PAGE);
                let copied = from.is_some_and(|from| self.ram.write(start as u64, from).is_ok());
                if !copied {
                    return Err(err!("Failed to load a page of {}", self.ram.name()));
                }
            }
        }
        Ok(pages)
    }
}

impl Drop for RamCache {
    fn drop(&mut self) {
        self.stop_logging();
    }
}
