//! Blocks of guest RAM (and ROM, and video memory) with their dirty bitmaps.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use lockstep_util::{Result, err};
use parking_lot::Mutex;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use crate::{DirtyBitmap, MemTxError};

/// The page size of dirty tracking and of the migration stream, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Who wants to know which pages were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirtyClient {
    /// Migration and checkpoints.
    Migration,
    /// A display that redraws what changed.
    Vga,
    /// A software CPU that has translated code.
    Code,
}

const CLIENTS: [DirtyClient; 3] = [DirtyClient::Migration, DirtyClient::Vga, DirtyClient::Code];

/// A block of guest memory, zeroed at first. Cheap to clone: all clones are the same memory.
#[derive(Clone)]
pub struct RamBlock {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    memory: MmapRegion,
    dirty: [DirtyBitmap; 3],
    unseen: DirtyBitmap,
    logging: AtomicU8,
}

impl RamBlock {
    /// Allocates `size` bytes (rounded up to pages) of address space; the host backs a page when it is touched.
    ///
    /// # Errors
    /// When the host has no such address space.
    pub fn new(name: impl Into<String>, size: u64) -> Result<Self> {
        let name = name.into();
        let rounded = size.checked_next_multiple_of(PAGE_SIZE).filter(|&s| s > 0);
        let memory = rounded
            .and_then(|s| usize::try_from(s).ok())
            .and_then(|s| MmapRegion::new(s).ok())
            .ok_or_else(|| err!("cannot set up guest memory '{name}': Cannot allocate memory"))?;
        let pages = memory.size() as u64 / PAGE_SIZE;
        let dirty = CLIENTS.map(|_| DirtyBitmap::new(pages));
        let unseen = DirtyBitmap::new(pages);
        Ok(Self { inner: Arc::new(Inner { name, memory, dirty, unseen, logging: AtomicU8::new(0) }) })
    }

    /// The name in the migration stream.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Size in bytes, a multiple of the page size.
    pub fn size(&self) -> u64 {
        self.inner.memory.size() as u64
    }

    /// Where the block is mapped in this process, for `KVM_SET_USER_MEMORY_REGION` and software CPUs. It stays valid while
    /// any clone of the block lives. The guest may write there at any time: access it volatile or atomic only.
    pub fn host_address(&self) -> *mut u8 {
        self.inner.memory.as_ptr()
    }

    /// Keeps the block out of core dumps of this process (`MADV_DONTDUMP`).
    ///
    /// # Errors
    /// Those of madvise(2).
    pub fn keep_out_of_core_dumps(&self) -> std::io::Result<()> {
        let advice = rustix::mm::Advice::LinuxDontDump;
        // SAFETY: the range is the block's own mapping, and the advice changes none of its contents.
        unsafe { rustix::mm::madvise(self.host_address().cast(), self.size() as usize, advice)? };
        Ok(())
    }

    /// Whether two handles are the same memory.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Copies out of the block.
    ///
    /// # Errors
    /// `Decode` when the range is not inside; nothing is copied then.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), MemTxError> {
        let slice =
            self.inner.memory.get_slice(self.check(offset, to.len())?, to.len()).map_err(|_| MemTxError::Decode)?;
        slice.copy_to(to);
        Ok(())
    }

    /// Copies into the block and marks the pages dirty.
    ///
    /// # Errors
    /// `Decode` when the range is not inside; nothing is copied then.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), MemTxError> {
        let slice =
            self.inner.memory.get_slice(self.check(offset, from.len())?, from.len()).map_err(|_| MemTxError::Decode)?;
        slice.copy_from(from);
        self.mark_dirty(offset, from.len() as u64);
        Ok(())
    }

    /// Sets a range to a byte and marks the pages dirty.
    ///
    /// # Errors
    /// `Decode` when the range is not inside.
    pub fn fill(&self, offset: u64, len: u64, byte: u8) -> Result<(), MemTxError> {
        let chunk = [byte; PAGE_SIZE as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(PAGE_SIZE);
            self.write(offset + done, &chunk[..n as usize])?;
            done += n;
        }
        Ok(())
    }

    /// Stores an aligned 32-bit value atomically (a ring index that the guest polls).
    ///
    /// # Errors
    /// `Decode` when it is unaligned or not inside.
    pub fn store_u32(&self, offset: u64, value: u32) -> Result<(), MemTxError> {
        let at = self.check(offset, 4)?;
        let slice = self.inner.memory.as_volatile_slice();
        slice.store(value.to_le(), at, Ordering::SeqCst).map_err(|_| MemTxError::Decode)?;
        self.mark_dirty(offset, 4);
        Ok(())
    }

    fn check(&self, offset: u64, len: usize) -> Result<usize, MemTxError> {
        let end = offset.checked_add(len as u64).ok_or(MemTxError::Decode)?;
        if end > self.size() { Err(MemTxError::Decode) } else { Ok(offset as usize) }
    }

    /// Starts or stops collecting written pages for a client. Bits stay as they are.
    pub(crate) fn set_logging(&self, client: DirtyClient, on: bool) {
        let bit = 1 << client as u8;
        if on {
            self.inner.logging.fetch_or(bit, Ordering::SeqCst);
        } else {
            self.inner.logging.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Whether any client collects written pages.
    pub fn is_logged(&self) -> bool {
        self.inner.logging.load(Ordering::SeqCst) != 0
    }

    /// Whether a client other than the software CPUs' code caches collects written pages.
    pub fn is_logged_for_others(&self) -> bool {
        self.inner.logging.load(Ordering::SeqCst) & !(1 << DirtyClient::Code as u8) != 0
    }

    /// Records that bytes were written other than through this type (by the guest, or at [`host_address`](Self::host_address)).
    #[inline]
    pub fn mark_dirty(&self, offset: u64, len: u64) {
        let logging = self.inner.logging.load(Ordering::Acquire);
        if logging == 0 || len == 0 {
            return;
        }
        let first = offset / PAGE_SIZE;
        let count = (offset + len - 1) / PAGE_SIZE - first + 1;
        for client in CLIENTS {
            if logging & (1 << client as u8) != 0 {
                self.inner.dirty[client as usize].set(first, count);
            }
        }
    }

    /// Merges 64 pages' bits, as KVM's dirty log gives them, for all clients that collect.
    pub fn merge_dirty_word(&self, word: usize, bits: u64) {
        let logging = self.inner.logging.load(Ordering::Acquire);
        for client in CLIENTS {
            if logging & (1 << client as u8) != 0 {
                self.inner.dirty[client as usize].merge_word(word, bits);
            }
        }
    }

    /// Pages that a software CPU may write from now on without saying so each time: it sets a page's bit before its first write,
    /// and its [`DirtyLog`] takes the bits, has that right given back, and merges them.
    pub fn unseen_writes(&self) -> &DirtyBitmap {
        &self.inner.unseen
    }

    /// Merges 64 pages' bits of [`unseen_writes`](Self::unseen_writes) for all clients that collect but the software CPUs' code
    /// caches: a page with code is never among them.
    pub fn merge_unseen_word(&self, word: usize, bits: u64) {
        let logging = self.inner.logging.load(Ordering::Acquire);
        for client in CLIENTS {
            if logging & (1 << client as u8) != 0 && !matches!(client, DirtyClient::Code) {
                self.inner.dirty[client as usize].merge_word(word, bits);
            }
        }
    }

    /// The bitmap of a client. It collects only while the client's logging is on.
    pub fn dirty(&self, client: DirtyClient) -> &DirtyBitmap {
        &self.inner.dirty[client as usize]
    }
}

impl fmt::Debug for RamBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamBlock({}, {:#x})", self.name(), self.size())
    }
}

/// Who knows of guest writes that [`RamBlock::mark_dirty`] does not see: an accelerator.
pub trait DirtyLog: Send + Sync {
    /// A block's [`RamBlock::is_logged`] may have changed.
    ///
    /// # Errors
    /// When the host cannot track writes.
    fn logging_changed(&self, block: &RamBlock) -> Result<()>;
    /// Merges what the guest wrote since the last call into the blocks' bitmaps.
    fn sync(&self);
}

/// The machine's blocks in the order in which they were made: what migration and checkpoints carry.
#[derive(Clone, Default)]
pub struct RamList {
    shared: Arc<RamListShared>,
}

#[derive(Default)]
struct RamListShared {
    blocks: Mutex<Vec<RamBlock>>,
    logs: Mutex<Vec<Arc<dyn DirtyLog>>>,
}

impl RamList {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates a block and lists it.
    ///
    /// # Errors
    /// When the name is taken or the host has no such address space.
    pub fn allocate(&self, name: impl Into<String>, size: u64) -> Result<RamBlock> {
        let name = name.into();
        let mut blocks = self.shared.blocks.lock();
        if blocks.iter().any(|b| b.name() == name) {
            return Err(err!("RAMBlock \"{name}\" already registered, abort!"));
        }
        let block = RamBlock::new(name, size)?;
        blocks.push(block.clone());
        Ok(block)
    }

    /// Takes a block off the list (its device is gone).
    pub fn remove(&self, block: &RamBlock) {
        self.shared.blocks.lock().retain(|b| !b.same(block));
    }

    /// All blocks.
    pub fn blocks(&self) -> Vec<RamBlock> {
        self.shared.blocks.lock().clone()
    }

    /// The block of a name.
    pub fn find(&self, name: &str) -> Option<RamBlock> {
        self.shared.blocks.lock().iter().find(|b| b.name() == name).cloned()
    }

    /// Sum of all blocks, in bytes.
    pub fn total_size(&self) -> u64 {
        self.shared.blocks.lock().iter().map(RamBlock::size).sum()
    }

    /// Has an accelerator asked for the guest's writes from now on.
    pub fn add_dirty_log(&self, log: Arc<dyn DirtyLog>) {
        self.shared.logs.lock().push(log);
    }

    /// Starts or stops collecting written pages of all blocks for a client. Clear the bitmaps before starting.
    ///
    /// # Errors
    /// When the host cannot track writes.
    pub fn set_logging(&self, client: DirtyClient, on: bool) -> Result<()> {
        self.blocks().iter().try_for_each(|block| self.set_block_logging(block, client, on))
    }

    /// Starts or stops collecting written pages of one block for a client.
    ///
    /// # Errors
    /// When the host cannot track writes.
    pub fn set_block_logging(&self, block: &RamBlock, client: DirtyClient, on: bool) -> Result<()> {
        block.set_logging(client, on);
        let logs = self.shared.logs.lock().clone();
        logs.iter().try_for_each(|log| log.logging_changed(block))
    }

    /// Brings all bitmaps up to date with what the guest wrote.
    pub fn sync_dirty(&self) {
        let logs = self.shared.logs.lock().clone();
        logs.iter().for_each(|log| log.sync());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_outside_a_block_are_refused_whole() {
        let block = RamBlock::new("r", 100).unwrap();
        assert_eq!(block.size(), PAGE_SIZE);
        let mut buf = [1; 8];
        assert_eq!(block.read(PAGE_SIZE - 4, &mut buf), Err(MemTxError::Decode));
        assert_eq!(block.write(u64::MAX, &buf), Err(MemTxError::Decode));
        assert_eq!(block.write(PAGE_SIZE - 8, &buf), Ok(()));
        let mut back = [0; 8];
        block.read(PAGE_SIZE - 8, &mut back).unwrap();
        assert_eq!(back, buf);
    }

    #[test]
    fn writes_are_collected_for_the_clients_that_ask() {
        let list = RamList::new();
        let block = list.allocate("r", 8 * PAGE_SIZE).unwrap();
        block.write(0, &[1]).unwrap();
        list.set_logging(DirtyClient::Migration, true).unwrap();
        block.write(2 * PAGE_SIZE - 1, &[1, 2]).unwrap();
        assert_eq!(block.dirty(DirtyClient::Migration).word(0), 0b110);
        assert_eq!(block.dirty(DirtyClient::Vga).count(), 0);
        list.set_logging(DirtyClient::Migration, false).unwrap();
        block.write(0, &[1]).unwrap();
        assert_eq!(block.dirty(DirtyClient::Migration).word(0), 0b110);
    }

    #[test]
    fn a_name_is_given_once() {
        let list = RamList::new();
        let block = list.allocate("r", 1).unwrap();
        assert!(list.allocate("r", 1).is_err());
        list.remove(&block);
        assert!(list.allocate("r", 1).is_ok());
    }
}
