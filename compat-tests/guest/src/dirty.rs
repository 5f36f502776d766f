//! A loop that dirties pages at a set rate, for measuring what checkpoints cost.
use crate::heap;
use alloc::vec::Vec;

const PAGE: usize = 4096;
/// Most pages the loop can cycle through.
pub const MAX_PAGES: usize = 32 << 10;

/// The loop's state.
pub struct Dirtier {
    memory: Vec<u8>,
    /// Pages a second; 0 stops the loop.
    pub rate: u64,
    /// Pages written since boot: also the value written into each.
    pub counter: u64,
    started_us: u64,
    done: u64,
}

impl Dirtier {
    /// A loop that does nothing yet.
    pub fn new() -> Self {
        Self { memory: Vec::new(), rate: 0, counter: 0, started_us: 0, done: 0 }
    }

    /// Dirties `rate` pages a second from now on, going round through `pages` pages. False if there is no memory for them.
    pub fn set(&mut self, rate: u64, pages: usize, now_us: u64) -> bool {
        let bytes = pages.clamp(1, MAX_PAGES) * PAGE;
        if bytes != self.memory.len() {
            self.rate = 0;
            self.memory = Vec::new();
            let Some(memory) = heap::try_buffer(bytes) else { return false };
            self.memory = memory;
        }
        (self.rate, self.started_us, self.done) = (rate, now_us, 0);
        true
    }

    /// Dirties `pages` pages now, each once, and stops the loop. False if there is no memory for them.
    pub fn once(&mut self, pages: usize) -> bool {
        if !self.set(0, pages, 0) {
            return false;
        }
        for _ in 0..pages {
            self.write_next();
        }
        true
    }

    fn write_next(&mut self) {
        self.counter += 1;
        let page = (self.counter % self.pages() as u64) as usize;
        self.memory[page * PAGE..][..8].copy_from_slice(&self.counter.to_le_bytes());
    }

    /// Number of pages that the loop goes round through.
    pub fn pages(&self) -> usize {
        self.memory.len() / PAGE
    }

    /// Writes the pages that are due, at most 4096 at a time.
    pub fn run(&mut self, now_us: u64) {
        if self.rate == 0 {
            return;
        }
        let due = (u128::from(now_us - self.started_us) * u128::from(self.rate) / 1_000_000) as u64;
        for _ in 0..(due - self.done).min(4096) {
            self.write_next();
        }
        self.done = due;
    }
}
