//! From guest offsets to places in the image file: L1 and L2 tables, and reading through them.
//!
//! What is in memory is looked up without a lock: in-memory tables are whole at every await.

use super::cache::Table;
use super::refcount::OFFSET_MASK;
use super::{COMPRESSED, COPIED, Qcow2, SUBCLUSTERS, ZERO};
use crate::driver::errno;
use std::io;
use std::rc::Rc;

/// Where a run of guest bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// In the file at `host` (the first byte of the run).
    Data {
        /// File offset of the run's first byte.
        host: u64,
        /// May be written in place.
        copied: bool,
    },
    /// Reads as zeroes; a place in the file may be kept for it.
    Zero {
        /// File offset of the run's first byte.
        host: Option<u64>,
    },
    /// Read from the backing file.
    Unallocated,
    /// In a compressed cluster.
    Compressed {
        /// The L2 entry.
        entry: u64,
    },
}

/// A run of bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Where it is.
    pub kind: Kind,
    /// How long it is, in bytes; at least 1.
    pub len: u64,
}

/// An L2 entry with its subcluster bitmap (0 without extended entries).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The entry.
    pub word: u64,
    /// Allocated subclusters in the low half, zero subclusters in the high half.
    pub bitmap: u64,
}

/// What is wrong with an L2 entry.
pub(super) struct BadEntry(pub String);

impl Qcow2 {
    pub(super) fn l1_index(&self, offset: u64) -> usize {
        (offset / self.table_span()) as usize
    }

    pub(super) fn l2_index(&self, offset: u64) -> usize {
        ((offset >> self.cluster_bits) % self.entries_per_table()) as usize
    }

    pub(super) fn entry(&self, table: &Table, index: usize) -> Entry {
        if self.is_extended() {
            Entry { word: table.u64_at(index * 16), bitmap: table.u64_at(index * 16 + 8) }
        } else {
            Entry { word: table.u64_at(index * 8), bitmap: 0 }
        }
    }

    pub(super) fn set_entry(&self, table: &Table, index: usize, entry: Entry) {
        if self.is_extended() {
            table.set_u64_at(index * 16, entry.word);
            table.set_u64_at(index * 16 + 8, entry.bitmap);
        } else {
            table.set_u64_at(index * 8, entry.word);
        }
    }

    /// The kind of the bytes from `within` (an offset in the cluster) on, and how far it reaches in this cluster.
    pub(super) fn classify(&self, entry: Entry, within: u64) -> Result<Run, BadEntry> {
        let cluster_size = self.cluster_size();
        let rest = cluster_size - within;
        let word = entry.word;
        if word & COMPRESSED != 0 {
            return Ok(Run { kind: Kind::Compressed { entry: word }, len: rest });
        }
        let offset = word & OFFSET_MASK;
        if !offset.is_multiple_of(cluster_size) {
            return Err(BadEntry(format!("offset {offset:#x} unaligned")));
        }
        let copied = word & COPIED != 0;
        let host = (offset != 0).then_some(offset + within);
        if !self.is_extended() {
            let kind = match host {
                host if word & ZERO != 0 => {
                    if self.header.borrow().version < 3 {
                        return Err(BadEntry("Zero cluster entry found in pre-v3 image".to_owned()));
                    }
                    Kind::Zero { host }
                }
                Some(host) => Kind::Data { host, copied },
                None => Kind::Unallocated,
            };
            return Ok(Run { kind, len: rest });
        }
        let size = cluster_size / SUBCLUSTERS;
        let first = within / size;
        let state = |i: u64| (entry.bitmap >> i & 1 != 0, entry.bitmap >> (i + SUBCLUSTERS) & 1 != 0);
        let this = state(first);
        let end = (first..SUBCLUSTERS).find(|i| state(*i) != this).unwrap_or(SUBCLUSTERS) * size;
        let kind = match (this, host) {
            ((true, true), _) | ((true, false), None) => {
                return Err(BadEntry("Invalid cluster entry found".to_owned()));
            }
            ((true, false), Some(host)) => Kind::Data { host, copied },
            ((false, true), host) => Kind::Zero { host },
            ((false, false), _) => Kind::Unallocated,
        };
        Ok(Run { kind, len: end - within })
    }

    /// The L2 table for a guest offset: `None` if there is none.
    pub(super) async fn l2_table(&self, offset: u64) -> io::Result<Option<Rc<Table>>> {
        match self.l2_cached(offset)? {
            Cached::None => return Ok(None),
            Cached::Here(table) => return Ok(Some(table)),
            Cached::Elsewhere => {}
        }
        let _meta = self.meta.lock().await;
        self.l2_table_locked(offset).await
    }

    /// The same for a holder of the metadata lock.
    pub(super) async fn l2_table_locked(&self, offset: u64) -> io::Result<Option<Rc<Table>>> {
        match self.l2_cached(offset)? {
            Cached::None => return Ok(None),
            Cached::Here(table) => return Ok(Some(table)),
            Cached::Elsewhere => {}
        }
        let index = self.l1_index(offset);
        let entry = self.l1.borrow().entries[index];
        let at = entry & OFFSET_MASK;
        if !at.is_multiple_of(self.cluster_size()) {
            let text = format!("L2 table offset {at:#x} unaligned (L1 index: {index:#x})");
            return Err(self.signal_corruption(&text).await);
        }
        if self.is_other_metadata(at) {
            let text = format!("L2 table offset {at:#x} overlaps with other metadata (L1 index: {index:#x})");
            return Err(self.signal_corruption(&text).await);
        }
        if !self.l2.shrink() {
            self.write_metadata().await?;
            self.l2.shrink();
        }
        Ok(Some(self.l2.load(&self.file(), at).await?))
    }

    /// Whether a cluster that shall be an L2 table is part of the tables above it.
    fn is_other_metadata(&self, at: u64) -> bool {
        let header = self.header.borrow();
        let size = self.cluster_size();
        let within = |start: u64, bytes: u64| at < (start + bytes).next_multiple_of(size) && start < at + size;
        within(header.l1_offset, u64::from(header.l1_size) * 8)
            || within(header.reftable_offset, u64::from(header.reftable_clusters) * size)
            || self.refs.table.borrow().iter().any(|e| e & OFFSET_MASK == at)
    }

    fn l2_cached(&self, offset: u64) -> io::Result<Cached> {
        let l1 = self.l1.borrow();
        let Some(entry) = l1.entries.get(self.l1_index(offset)) else { return Ok(Cached::None) };
        let at = entry & OFFSET_MASK;
        if at == 0 {
            return Ok(Cached::None);
        }
        Ok(self.l2.get(at).map_or(Cached::Elsewhere, Cached::Here))
    }

    /// Where the bytes from `offset` on are, for at most `max` bytes (`max` > 0).
    pub(super) async fn lookup(&self, offset: u64, max: u64) -> io::Result<Run> {
        let Some(table) = self.l2_table(offset).await? else {
            let span = self.table_span();
            return Ok(Run { kind: Kind::Unallocated, len: (span - offset % span).min(max) });
        };
        self.lookup_in(&table, offset, max).await
    }

    /// The same in a table at hand.
    pub(super) async fn lookup_in(&self, table: &Table, offset: u64, max: u64) -> io::Result<Run> {
        let first = self.l2_index(offset);
        let run = match self.classify(self.entry(table, first), offset % self.cluster_size()) {
            Ok(run) => run,
            Err(bad) => return Err(self.bad_entry(table, first, &bad).await),
        };
        let mut len = run.len;
        let in_cluster_end = (offset % self.cluster_size() + len) == self.cluster_size();
        if in_cluster_end && !matches!(run.kind, Kind::Compressed { .. }) {
            let mut index = first + 1;
            while len < max && index < self.entries_per_table() as usize {
                let Ok(next) = self.classify(self.entry(table, index), 0) else { break };
                let goes_on = match (run.kind, next.kind) {
                    (Kind::Data { host, copied }, Kind::Data { host: h, copied: c }) => h == host + len && c == copied,
                    (Kind::Zero { host: None }, Kind::Zero { host: None }) => true,
                    (Kind::Zero { host: Some(host) }, Kind::Zero { host: Some(h) }) => h == host + len,
                    (Kind::Unallocated, Kind::Unallocated) => true,
                    _ => false,
                };
                if !goes_on {
                    break;
                }
                len += next.len;
                if next.len < self.cluster_size() {
                    break;
                }
                index += 1;
            }
        }
        Ok(Run { kind: run.kind, len: len.min(max) })
    }

    pub(super) async fn bad_entry(&self, table: &Table, index: usize, bad: &BadEntry) -> io::Error {
        let text = format!("Cluster allocation {} (L2 offset: {:#x}, L2 index: {index:#x})", bad.0, table.offset);
        self.signal_corruption(&text).await
    }

    /// Reads guest bytes. Beyond the virtual length (the rest of the last cluster) they are zeroes.
    pub(super) async fn read_guest(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let inside = self.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (buf, beyond) = buf.split_at_mut(inside);
        beyond.fill(0);
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let run = self.lookup(at, (buf.len() - done) as u64).await?;
            let part = &mut buf[done..done + run.len as usize];
            match run.kind {
                Kind::Data { host, .. } => self.file().read(host, part).await?,
                Kind::Zero { .. } => part.fill(0),
                Kind::Unallocated => match self.backing() {
                    Some(backing) => backing.read(at, part).await?,
                    None => part.fill(0),
                },
                Kind::Compressed { entry } => {
                    let cluster = self.decompress(entry).await?;
                    let within = (at % self.cluster_size()) as usize;
                    part.copy_from_slice(&cluster[within..within + part.len()]);
                }
            }
            done += run.len as usize;
        }
        Ok(())
    }

    pub(super) fn check_not_corrupt(&self) -> io::Result<()> {
        if self.corrupt.get() { Err(errno(libc::EIO)) } else { Ok(()) }
    }
}

enum Cached {
    None,
    Here(Rc<Table>),
    Elsewhere,
}
