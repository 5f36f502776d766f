//! The sending side of RAM: which pages are dirty, and their records.

use crate::status::Counters;
use crate::stream::{BlockTable, PAGE, RecordWriter};
use lockstep_memory::{DirtyClient, RamBlock, RamList};
use lockstep_util::{Result, err};

/// Pages that are to be sent. While it lives, the guest's writes are logged.
#[derive(Debug)]
pub struct RamSender {
    list: RamListHandle,
    blocks: Vec<RamBlock>,
    table: BlockTable,
    /// One bit a page, a vector a block.
    dirty: Vec<Vec<u64>>,
    dirty_pages: u64,
    records: RecordWriter,
    /// The block and word at which encoding goes on.
    cursor: (usize, usize),
}

/// Ends the logging with the sender, at the latest.
struct RamListHandle {
    list: RamList,
    logging: bool,
}

impl std::fmt::Debug for RamListHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RamList")
    }
}

impl RamListHandle {
    fn stop_logging(&mut self) {
        if std::mem::take(&mut self.logging) {
            // Nothing can be done about an accelerator that does not stop logging.
            let _ = self.list.set_logging(DirtyClient::Migration, false);
        }
    }
}

impl Drop for RamListHandle {
    fn drop(&mut self) {
        self.stop_logging();
    }
}

impl RamSender {
    /// Starts logging the guest's writes and counts every page as dirty.
    ///
    /// # Errors
    /// When the host cannot track writes.
    pub fn start(list: &RamList) -> Result<Self> {
        let blocks = list.blocks();
        blocks.iter().for_each(|b| b.dirty(DirtyClient::Migration).clear());
        list.set_logging(DirtyClient::Migration, true)?;
        let mut sender = Self {
            list: RamListHandle { list: list.clone(), logging: true },
            table: BlockTable::of(&blocks),
            dirty: blocks.iter().map(|b| full(b.size() / PAGE as u64)).collect(),
            dirty_pages: 0,
            blocks,
            records: RecordWriter::default(),
            cursor: (0, 0),
        };
        sender.dirty_pages = sender.table.total() / PAGE as u64;
        Ok(sender)
    }

    /// Ends the logging of the guest's writes, before anybody else may want it.
    pub fn stop_logging(&mut self) {
        self.list.stop_logging();
    }

    /// Names and lengths of the blocks.
    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    /// Writes what begins the section: the blocks, and an end mark.
    pub fn setup(&mut self, out: &mut Vec<u8>) {
        self.records.sizes(&self.table, out);
        self.records.end(out);
    }

    /// Reads the log of the guest's writes. Returns how many pages were not known to be dirty.
    pub fn sync(&mut self) -> u64 {
        self.list.list.sync_dirty();
        let mut fresh = 0;
        for (block, dirty) in self.blocks.iter().zip(&mut self.dirty) {
            let log = block.dirty(DirtyClient::Migration);
            for (at, word) in dirty.iter_mut().enumerate() {
                let new = log.take_word(at) & !*word;
                fresh += u64::from(new.count_ones());
                *word |= new;
            }
        }
        self.dirty_pages += fresh;
        fresh
    }

    /// Bytes of the pages known to be dirty.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_pages * PAGE as u64
    }

    /// Begins a part of the section.
    pub fn begin_part(&mut self) {
        self.records.begin();
    }

    /// Ends a part of the section.
    pub fn end_part(&mut self, out: &mut Vec<u8>) {
        self.records.end(out);
    }

    /// Appends records of dirty pages until none is left or `out` is `limit` bytes long (one page may go beyond). Returns whether
    /// none is left.
    ///
    /// # Errors
    /// When a block cannot be read.
    pub fn encode(&mut self, out: &mut Vec<u8>, limit: usize, counters: &Counters) -> Result<bool> {
        let (mut zeroes, mut normals) = (0, 0);
        while self.dirty_pages > 0 && out.len() < limit {
            let Some((block, page)) = self.take_next() else {
                // The count and the bits agree, so this does not happen; a pass from the start would find any.
                self.dirty_pages = 0;
                break;
            };
            let (ram, offset) = (&self.blocks[block], page * PAGE as u64);
            let read = |to: &mut [u8]| ram.read(offset, to);
            let zero = self.records.page(&self.table, block, offset, out, read);
            match zero.map_err(|e| err!("Failed to read guest memory: {e:?}"))? {
                true => zeroes += 1,
                false => normals += 1,
            }
        }
        Counters::add(&counters.zero_pages, zeroes);
        Counters::add(&counters.normal_pages, normals);
        Ok(self.dirty_pages == 0)
    }

    /// The next dirty page from the cursor on, round and round; its bit is cleared before it is read, so that a write in between is
    /// seen by the next sync.
    fn take_next(&mut self) -> Option<(usize, u64)> {
        let (mut block, mut word) = self.cursor;
        for _ in 0..=self.blocks.len() {
            let words = self.dirty.get_mut(block).map_or(&mut [][..], |words| &mut words[word..]);
            if let Some(at) = words.iter().position(|w| *w != 0) {
                let bit = words[at].trailing_zeros();
                words[at] &= words[at] - 1;
                self.dirty_pages -= 1;
                self.cursor = (block, word + at);
                return Some((block, (word + at) as u64 * 64 + u64::from(bit)));
            }
            block = if block + 1 >= self.blocks.len() { 0 } else { block + 1 };
            word = 0;
        }
        None
    }
}

/// A bitmap with `pages` bits set.
fn full(pages: u64) -> Vec<u64> {
    let mut words = vec![u64::MAX; pages.div_ceil(64) as usize];
    if let (Some(last), rest @ 1..) = (words.last_mut(), pages % 64) {
        *last = (1 << rest) - 1;
    }
    words
}
