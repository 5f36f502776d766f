//! Writing guest data: in place where the cluster is ours alone, else into new clusters.
//!
//! Requests that change the mapping of a cluster hold its guest range exclusively; writes in place share it. Data is
//! written before the mapping leads to it.

use super::cache::Table;
use super::map::{Entry, Kind};
use super::refcount::{Allocation, OFFSET_MASK};
use super::{COMPRESSED, COPIED, Qcow2, SUBCLUSTERS};
use crate::driver::{WriteFlags, errno};
use crate::requests::RequestKind;
use std::io;
use std::rc::Rc;

/// Most guest bytes that are allocated in one go.
const MAX_RUN: u64 = 32 << 20;
/// All subclusters allocated, none zero.
const FULL_BITMAP: u64 = (1 << SUBCLUSTERS) - 1;

impl Qcow2 {
    pub(super) async fn write_guest(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            self.check_not_corrupt()?;
            let at = offset + done as u64;
            let rest = &data[done..];
            let run = self.lookup(at, rest.len() as u64).await?;
            done += if matches!(run.kind, Kind::Data { copied: true, .. }) {
                self.write_in_place(at, &rest[..run.len as usize]).await?
            } else {
                self.write_new(at, rest).await?
            };
        }
        Ok(())
    }

    /// The whole clusters that a guest range touches.
    pub(super) fn cluster_span(&self, offset: u64, len: u64) -> (u64, u64) {
        let size = self.cluster_size();
        let start = offset - offset % size;
        (start, (offset + len).next_multiple_of(size) - start)
    }

    /// Writes as much as still is in place; 0 if nothing is.
    async fn write_in_place(&self, at: u64, data: &[u8]) -> io::Result<usize> {
        let (start, span) = self.cluster_span(at, data.len() as u64);
        // Shared with other writes in place; whoever wants to change the mapping waits.
        let _range = self.ranges.begin(RequestKind::Read, start, span).await;
        let run = self.lookup(at, data.len() as u64).await?;
        let Kind::Data { host, copied: true } = run.kind else { return Ok(0) };
        let n = run.len as usize;
        if self.check_overlap && self.overlaps_metadata(host, run.len).is_some() {
            return Err(self.prevented_overlap(host, run.len).await);
        }
        self.file().write(host, &data[..n], WriteFlags::empty()).await?;
        Ok(n)
    }

    async fn prevented_overlap(&self, host: u64, len: u64) -> io::Error {
        let what = self.overlaps_metadata(host, len).unwrap_or("metadata");
        self.signal_corruption(&format!("Preventing invalid write on metadata (overlaps with {what})")).await
    }

    /// Writes into new clusters (or kept ones that are not data yet); returns the number of guest bytes written, 0 if the
    /// mapping has changed and the caller should look again.
    async fn write_new(&self, at: u64, data: &[u8]) -> io::Result<usize> {
        let cluster_size = self.cluster_size();
        let to_table_end = self.table_span() - at % self.table_span();
        let wanted = (data.len() as u64).min(to_table_end).min(MAX_RUN);
        let (start, span) = self.cluster_span(at, wanted);
        let _range = self.ranges.begin(RequestKind::Exclusive, start, span).await;

        let place = {
            let _meta = self.meta.lock().await;
            self.limit_deferred_frees().await?;
            let table = self.l2_for_change(start).await?;
            self.choose_place(&table, start, span >> self.cluster_bits).await?
        };
        let Some(place) = place else { return Ok(0) };
        let end = start + (place.clusters << self.cluster_bits);
        let n = (end - at).min(wanted);
        let data = &data[..n as usize];

        let unused = place.offset >= self.file().len()?;
        self.write_with_edges(start, at, data, end, place.offset, unused && place.fresh.is_some()).await?;

        let _meta = self.meta.lock().await;
        let table = self.l2_for_change(start).await?;
        self.unsynced.set(true);
        for i in 0..place.clusters {
            let index = self.l2_index(start) + i as usize;
            let old = self.entry(&table, index);
            let host = place.offset + (i << self.cluster_bits);
            self.set_entry(&table, index, Entry { word: host | COPIED, bitmap: self.full_bitmap() });
            if old.word & COMPRESSED != 0 || old.word & OFFSET_MASK != host {
                self.free_entry(old, false);
            }
        }
        debug_assert!(n <= place.clusters * cluster_size);
        if let Some(allocation) = place.fresh {
            allocation.keep();
        }
        Ok(n as usize)
    }

    fn full_bitmap(&self) -> u64 {
        if self.is_extended() { FULL_BITMAP } else { 0 }
    }

    /// Where the clusters from `start` on shall go: a place that is kept for them already, or new clusters. `None` if the
    /// first is data in place by now.
    async fn choose_place(&self, table: &Table, start: u64, clusters: u64) -> io::Result<Option<Place<'_>>> {
        let first = self.l2_index(start);
        let kept = |entry: Entry| {
            // Ours alone and not all data: a zero cluster that kept its place, or a cluster with holes.
            let host = entry.word & OFFSET_MASK;
            (entry.word & COMPRESSED == 0 && entry.word & COPIED != 0 && host != 0).then_some(host)
        };
        let is_data = |entry: Entry| {
            matches!(self.classify(entry, 0), Ok(run)
                if matches!(run.kind, Kind::Data { copied: true, .. }) && run.len == self.cluster_size())
        };
        if let Err(bad) = self.classify(self.entry(table, first), 0) {
            return Err(self.bad_entry(table, first, &bad).await);
        }
        let entry = self.entry(table, first);
        if is_data(entry) {
            return Ok(None);
        }
        if let Some(host) = kept(entry) {
            if self.check_overlap && self.overlaps_metadata(host, self.cluster_size()).is_some() {
                return Err(self.prevented_overlap(host, self.cluster_size()).await);
            }
            let follows = |i: &u64| {
                let entry = self.entry(table, first + *i as usize);
                !is_data(entry)
                    && kept(entry) == Some(host + (i << self.cluster_bits))
                    && self.overlaps_metadata(host + (i << self.cluster_bits), self.cluster_size()).is_none()
            };
            let clusters = 1 + (1..clusters).take_while(follows).count() as u64;
            return Ok(Some(Place { offset: host, clusters, fresh: None }));
        }
        let needs_new = |i: &u64| kept(self.entry(table, first + *i as usize)).is_none();
        let clusters = 1 + (1..clusters).take_while(needs_new).count() as u64;
        let allocation = self.allocate(clusters).await?;
        Ok(Some(Place { offset: allocation.offset, clusters: allocation.clusters, fresh: Some(allocation) }))
    }

    /// Writes `data` for guest offset `at` to where the clusters from `start` to `end` go, with what was around it before.
    /// `unused`: the place lies behind the file's end and reads as zeroes.
    async fn write_with_edges(
        &self,
        start: u64,
        at: u64,
        data: &[u8],
        end: u64,
        place: u64,
        unused: bool,
    ) -> io::Result<()> {
        let data_end = at + data.len() as u64;
        let (head, tail) = (at - start, end - data_end);
        let file = self.file();
        let head_zero = head == 0 || unused && self.reads_as_zero(start, head).await?;
        let tail_zero = tail == 0 || unused && self.reads_as_zero(data_end, tail).await?;
        if head_zero && tail_zero {
            return file.write(place + head, data, WriteFlags::empty()).await;
        }
        let mut whole = Vec::with_capacity((end - start) as usize);
        whole.resize(head as usize, 0);
        self.read_guest(start, &mut whole).await?;
        whole.extend_from_slice(data);
        let tail_at = whole.len();
        whole.resize(tail_at + tail as usize, 0);
        self.read_guest(data_end, &mut whole[tail_at..]).await?;
        file.write(place, &whole, WriteFlags::empty()).await
    }

    /// Whether a guest range is zero as far as the mapping tells.
    async fn reads_as_zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mut at = offset;
        let end = (offset + len).min(self.size());
        while at < end {
            let run = self.lookup(at, end - at).await?;
            match run.kind {
                Kind::Zero { .. } => {}
                Kind::Unallocated => match self.backing() {
                    None => {}
                    Some(backing) if at >= backing.len()? => {}
                    Some(_) => return Ok(false),
                },
                Kind::Data { .. } | Kind::Compressed { .. } => return Ok(false),
            }
            at += run.len;
        }
        Ok(true)
    }

    /// The L2 table for a guest offset, made or unshared if need be. Runs under the metadata lock.
    pub(super) async fn l2_for_change(&self, offset: u64) -> io::Result<Rc<Table>> {
        let index = self.l1_index(offset);
        let Some(old) = self.l1.borrow().entries.get(index).copied() else { return Err(errno(libc::EIO)) };
        let present = self.l2_table_locked(offset).await?;
        if let Some(table) = &present
            && old & COPIED != 0
        {
            return Ok(table.clone());
        }
        let place = self.allocate_exact(1).await?;
        let bytes = match &present {
            Some(table) => table.bytes().clone(),
            None => vec![0; self.cluster_size() as usize],
        };
        let table = Table::new(place.offset, bytes);
        table.mark_all_dirty();
        self.l2.insert(table.clone());
        self.set_l1(index, place.offset | COPIED);
        if present.is_some() {
            // A snapshot has the old table too.
            self.defer_free(old & OFFSET_MASK, 1, false);
        }
        place.keep();
        Ok(table)
    }

    /// Notes the clusters an entry referred to for freeing.
    pub(super) fn free_entry(&self, entry: Entry, discard: bool) {
        if entry.word & COMPRESSED != 0 {
            self.compressed_freed.set(self.compressed_freed.get() + 1);
            *self.decompressed.borrow_mut() = None;
            let (offset, len) = self.compressed_place(entry.word);
            let (start, span) = self.cluster_span(offset, len);
            self.defer_free(start, span >> self.cluster_bits, false);
        } else if entry.word & OFFSET_MASK != 0 {
            self.defer_free(entry.word & OFFSET_MASK, 1, discard && self.runtime.get().pass_discard);
        }
    }
}

struct Place<'a> {
    offset: u64,
    clusters: u64,
    fresh: Option<Allocation<'a>>,
}
