//! Metadata tables (L2 tables, refcount blocks) in memory, each a cluster long.

use crate::driver::WriteFlags;
use crate::node::Node;
use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

/// Granularity of partial table writes, in bytes.
const WRITE_UNIT: usize = 512;

/// One table. Its bytes are big-endian as in the image.
pub struct Table {
    /// Where it lies in the image file.
    pub offset: u64,
    bytes: RefCell<Vec<u8>>,
    /// Bytes changed and not written: start and end.
    dirty: Cell<Option<(usize, usize)>>,
    used: Cell<u64>,
}

impl Table {
    /// A table with the given contents, clean.
    pub fn new(offset: u64, bytes: Vec<u8>) -> Rc<Self> {
        Rc::new(Self { offset, bytes: RefCell::new(bytes), dirty: Cell::new(None), used: Cell::new(0) })
    }

    /// The contents. Not to be held across an await.
    pub fn bytes(&self) -> Ref<'_, Vec<u8>> {
        self.bytes.borrow()
    }

    /// The 8 bytes at an offset as a number.
    pub fn u64_at(&self, at: usize) -> u64 {
        let bytes = self.bytes.borrow();
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_be_bytes(word)
    }

    /// Sets the 8 bytes at an offset.
    pub fn set_u64_at(&self, at: usize, value: u64) {
        self.bytes.borrow_mut()[at..at + 8].copy_from_slice(&value.to_be_bytes());
        self.mark_dirty(at, at + 8);
    }

    /// Changes the bytes from `start` to `end`.
    pub fn change<T>(&self, start: usize, end: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
        self.mark_dirty(start, end);
        f(&mut self.bytes.borrow_mut())
    }

    /// Marks everything as to be written.
    pub fn mark_all_dirty(&self) {
        let len = self.bytes.borrow().len();
        self.mark_dirty(0, len);
    }

    fn mark_dirty(&self, start: usize, end: usize) {
        self.dirty.set(Some(match self.dirty.get() {
            Some((s, e)) => (s.min(start), e.max(end)),
            None => (start, end),
        }));
    }

    /// Whether it has changes that are not written.
    pub fn is_dirty(&self) -> bool {
        self.dirty.get().is_some()
    }

    async fn write(&self, file: &Rc<Node>) -> io::Result<()> {
        let Some((start, end)) = self.dirty.take() else { return Ok(()) };
        // Dirty again unless the write ends well, also if the future is dropped.
        struct Restore<'a>(&'a Table, Option<(usize, usize)>);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                if let Some((start, end)) = self.1 {
                    self.0.mark_dirty(start, end);
                }
            }
        }
        let mut restore = Restore(self, Some((start, end)));
        let data = {
            let bytes = self.bytes.borrow();
            let start = start - start % WRITE_UNIT;
            let end = end.next_multiple_of(WRITE_UNIT).min(bytes.len());
            (start as u64, bytes[start..end].to_vec())
        };
        file.write(self.offset + data.0, &data.1, WriteFlags::empty()).await?;
        restore.1 = None;
        Ok(())
    }
}

/// Tables by their offset, the least recently used ones leaving first.
pub struct TableCache {
    tables: RefCell<HashMap<u64, Rc<Table>>>,
    clock: Cell<u64>,
    idle_mark: Cell<u64>,
    /// Tables kept, about.
    limit: usize,
    table_size: usize,
}

impl TableCache {
    /// A cache for about `limit` tables of `table_size` bytes.
    pub fn new(limit: usize, table_size: usize) -> Self {
        Self {
            tables: RefCell::default(),
            clock: Cell::new(0),
            idle_mark: Cell::new(0),
            limit: limit.max(4),
            table_size,
        }
    }

    /// The table, if it is in memory.
    pub fn get(&self, offset: u64) -> Option<Rc<Table>> {
        let tables = self.tables.borrow();
        let table = tables.get(&offset)?;
        self.clock.set(self.clock.get() + 1);
        table.used.set(self.clock.get());
        Some(table.clone())
    }

    /// Puts a table in.
    pub fn insert(&self, table: Rc<Table>) {
        self.clock.set(self.clock.get() + 1);
        table.used.set(self.clock.get());
        self.tables.borrow_mut().insert(table.offset, table);
    }

    /// The table, read from the file if it is not in memory.
    pub async fn load(&self, file: &Rc<Node>, offset: u64) -> io::Result<Rc<Table>> {
        if let Some(table) = self.get(offset) {
            return Ok(table);
        }
        let mut bytes = vec![0; self.table_size];
        file.read(offset, &mut bytes).await?;
        let table = Table::new(offset, bytes);
        self.insert(table.clone());
        Ok(table)
    }

    /// Forgets a table whatever its state: its place has another use now.
    pub fn forget(&self, offset: u64) {
        self.tables.borrow_mut().remove(&offset);
    }

    /// Forgets everything, changes included.
    pub fn clear(&self) {
        self.tables.borrow_mut().clear();
    }

    /// Whether any table has changes that are not written.
    pub fn is_dirty(&self) -> bool {
        self.tables.borrow().values().any(|t| t.is_dirty())
    }

    /// Makes room by dropping clean tables; `false` if too many dirty ones are left.
    pub fn shrink(&self) -> bool {
        let mut tables = self.tables.borrow_mut();
        if tables.len() <= self.limit {
            return true;
        }
        let mut clean: Vec<(u64, u64)> =
            tables.values().filter(|t| !t.is_dirty()).map(|t| (t.used.get(), t.offset)).collect();
        clean.sort_unstable();
        let excess = tables.len() - self.limit;
        for (_, offset) in clean.into_iter().take(excess) {
            tables.remove(&offset);
        }
        tables.len() <= self.limit
    }

    /// Drops clean tables that were not used since the last call.
    pub fn drop_idle(&self) {
        let since = self.idle_mark.replace(self.clock.get());
        self.tables.borrow_mut().retain(|_, t| t.is_dirty() || t.used.get() > since);
    }

    /// Writes all changes, in the order of the file. They are stable only after the file is flushed.
    pub async fn write_dirty(&self, file: &Rc<Node>) -> io::Result<()> {
        let mut dirty: Vec<Rc<Table>> = self.tables.borrow().values().filter(|t| t.is_dirty()).cloned().collect();
        dirty.sort_unstable_by_key(|t| t.offset);
        for table in dirty {
            table.write(file).await?;
        }
        Ok(())
    }
}
