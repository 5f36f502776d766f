//! Zero clusters and discards.

use super::map::Entry;
use super::refcount::OFFSET_MASK;
use super::{COMPRESSED, COPIED, Qcow2, SUBCLUSTERS, ZERO};
use crate::driver::{WriteFlags, errno};
use crate::requests::RequestKind;
use std::io;

/// All subclusters zero.
const ZERO_BITMAP: u64 = !0 << SUBCLUSTERS;

impl Qcow2 {
    /// Makes a guest range read as zeroes.
    pub(super) async fn zero_guest(&self, offset: u64, len: u64, flags: WriteFlags) -> io::Result<()> {
        self.check_not_corrupt()?;
        let size = self.cluster_size();
        let end = offset + len;
        let (first, last) = (offset.next_multiple_of(size), end - end % size);
        // The image's last cluster may reach beyond its end: nothing there is worth keeping.
        let last = if end == self.size() { end.next_multiple_of(size) } else { last };
        if self.header.borrow().version < 3 && (self.backing().is_some() || first >= last) {
            return Err(errno(libc::ENOTSUP));
        }
        if first >= last {
            if flags.contains(WriteFlags::NO_FALLBACK) {
                return Err(errno(libc::ENOTSUP));
            }
            return self.write_zero_bytes(offset, len).await;
        }
        if first > offset {
            self.write_zero_bytes(offset, first - offset).await?;
        }
        if end > last {
            self.write_zero_bytes(last, end - last).await?;
        }
        self.change_entries(first, last, |image, old| image.zeroed(old, flags.contains(WriteFlags::MAY_UNMAP))).await
    }

    /// Less than a cluster: data, unless it is zero already.
    async fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        let run = self.lookup(offset, len).await?;
        if run.len >= len && matches!(run.kind, super::map::Kind::Zero { .. }) {
            return Ok(());
        }
        self.write_guest(offset, &vec![0; len as usize]).await
    }

    /// The entry that makes a cluster read as zeroes.
    fn zeroed(&self, old: Entry, unmap: bool) -> Entry {
        let allocated = old.word & OFFSET_MASK != 0;
        let drop = old.word & COMPRESSED != 0 || unmap && allocated;
        let kept = if drop { 0 } else { old.word & (OFFSET_MASK | COPIED) };
        if self.is_extended() {
            Entry { word: kept, bitmap: ZERO_BITMAP }
        } else if self.header.borrow().version < 3 {
            // Without a backing file an unallocated cluster is a zero cluster.
            Entry { word: 0, bitmap: 0 }
        } else {
            Entry { word: kept | ZERO, bitmap: 0 }
        }
    }

    /// Forgets a guest range; it reads as zeroes afterwards where the format can say so.
    pub(super) async fn discard_guest(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_not_corrupt()?;
        let size = self.cluster_size();
        let end = offset + len;
        let first = offset.next_multiple_of(size);
        let last = if end == self.size() { end.next_multiple_of(size) } else { end - end % size };
        if first >= last {
            return Err(errno(libc::ENOTSUP));
        }
        let has_backing = self.backing().is_some();
        self.change_entries(first, last, |image, old| image.discarded(old, has_backing)).await
    }

    fn discarded(&self, old: Entry, has_backing: bool) -> Entry {
        let allocated = old.word & (OFFSET_MASK | COMPRESSED) != 0;
        if !allocated && !has_backing {
            return old;
        }
        if self.header.borrow().version < 3 {
            return Entry { word: 0, bitmap: 0 };
        }
        let keep = self.runtime.get().discard_no_unref && old.word & COMPRESSED == 0;
        let kept = if keep { old.word & (OFFSET_MASK | COPIED) } else { 0 };
        if self.is_extended() {
            Entry { word: kept, bitmap: ZERO_BITMAP }
        } else {
            Entry { word: kept | ZERO, bitmap: 0 }
        }
    }

    /// Cuts guest clusters off for good: nothing is left in the table (shrinking).
    pub(super) async fn drop_guest(&self, first: u64, last: u64) -> io::Result<()> {
        self.change_entries(first, last, |_, _| Entry { word: 0, bitmap: 0 }).await
    }

    /// Replaces the entries of whole clusters and frees what they referred to and no longer do.
    async fn change_entries(&self, first: u64, last: u64, new: impl Fn(&Self, Entry) -> Entry) -> io::Result<()> {
        let _range = self.ranges.begin(RequestKind::Exclusive, first, last - first).await;
        let _meta = self.meta.lock().await;
        let span = self.table_span();
        let mut at = first;
        while at < last {
            let stop = (at - at % span + span).min(last);
            let clusters = ((stop - at) >> self.cluster_bits) as usize;
            // An absent table may not have to be made: ask what an empty entry would become.
            let empty = Entry { word: 0, bitmap: 0 };
            if self.l2_table_locked(at).await?.is_none() && new(self, empty) == empty {
                at = stop;
                continue;
            }
            self.mark_dirty_if_lazy().await?;
            self.limit_deferred_frees().await?;
            let table = self.l2_for_change(at).await?;
            let start = self.l2_index(at);
            for index in start..start + clusters {
                let old = self.entry(&table, index);
                let entry = new(self, old);
                if old == entry {
                    continue;
                }
                self.set_entry(&table, index, entry);
                let still = old.word & COMPRESSED == 0 && entry.word & OFFSET_MASK == old.word & OFFSET_MASK;
                if !still {
                    self.free_entry(old, true);
                }
            }
            at = stop;
        }
        *self.decompressed.borrow_mut() = None;
        Ok(())
    }
}
