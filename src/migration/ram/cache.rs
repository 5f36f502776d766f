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
        let mut runs = Vec::new();
        for (at, block) in self.blocks.iter_mut().enumerate() {
            block.take_runs(|start, len| runs.push(Run { block: at, start, len }));
        }
        let pages = runs.iter().map(|run| run.len).sum();
        copy(&self.blocks, &runs, pages)?;
        // Copying was itself logged.
        self.forget_writes();
        Ok(pages as u64)
    }

    fn forget_writes(&self) {
        self.list.sync_dirty();
        self.blocks.iter().for_each(|b| b.ram.dirty(DirtyClient::Migration).clear());
    }
}

/// Pages that follow each other.
struct Run {
    block: usize,
    start: usize,
    len: usize,
}

/// So many pages are copied by several threads: one copies them in a millisecond.
const PARALLEL_WORTH: usize = 2500;
/// More threads than this find no more bandwidth.
const MOST_THREADS: usize = 4;

/// Copies runs of so many pages together into the guest. Its vCPUs stand, so that the host's processors are free.
fn copy(blocks: &[CachedBlock], runs: &[Run], pages: usize) -> Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (pages / PARALLEL_WORTH + 1).min(processors).min(MOST_THREADS);
    let copy_all = |runs: &[Run]| runs.iter().try_for_each(|run| blocks[run.block].copy(run));
    if threads == 1 {
        return copy_all(runs);
    }
    std::thread::scope(|scope| {
        let parts: Vec<_> =
            shares(runs, pages.div_ceil(threads)).map(|part| scope.spawn(move || copy_all(part))).collect();
        parts.into_iter().try_for_each(|part| part.join().unwrap_or_else(|_| Err(err!("Failed to load RAM"))))
    })
}

/// Divides runs into parts of so many pages, or a run more.
fn shares(mut runs: &[Run], pages: usize) -> impl Iterator<Item = &[Run]> {
    std::iter::from_fn(move || {
        let mut sum = 0;
        let enough = runs.iter().position(|run| {
            sum += run.len;
            sum >= pages
        });
        let (part, rest) = runs.split_at(enough.map_or(runs.len(), |at| at + 1));
        runs = rest;
        (!part.is_empty()).then_some(part)
    })
}

impl CachedBlock {
    /// Takes note of the pages that came or that the guest wrote, neighbours together: their number in the block and how many they are.
    fn take_runs(&mut self, mut take: impl FnMut(usize, usize)) {
        let log = self.ram.dirty(DirtyClient::Migration);
        for (at, received) in self.received.iter_mut().enumerate() {
            let mut bits = std::mem::take(received) | log.take_word(at);
            while bits != 0 {
                let first = bits.trailing_zeros();
                let count = (bits >> first).trailing_ones();
                let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << first };
                bits &= !mask;
                take(at * 64 + first as usize, count as usize);
            }
        }
    }

    fn copy(&self, run: &Run) -> Result<()> {
        let start = run.start * PAGE;
        let from = self.copy.get(start..start + run.len * PAGE);
        let copied = from.is_some_and(|from| self.ram.write(start as u64, from).is_ok());
        if copied { Ok(()) } else { Err(err!("Failed to load a page of {}", self.ram.name())) }
    }
}

impl Drop for RamCache {
    fn drop(&mut self) {
        self.stop_logging();
    }
}
