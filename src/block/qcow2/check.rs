//! Checking an image: every reference is counted and compared with the refcounts; repairing on request.

use super::header::{Header, autoclear, extension, incompatible};
use super::map::Entry;
use super::open::{MAX_L1_BYTES, read_words};
use super::refcount::{MAX_TABLE_BYTES, OFFSET_MASK, set_entry};
use super::{COMPRESSED, COPIED, Qcow2, snapshot};
use crate::driver::WriteFlags;
use crate::driver::errno;
use std::collections::{BTreeMap, HashSet};
use std::io;

/// What to repair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fix {
    /// Clusters that are counted and not used.
    pub leaks: bool,
    /// Clusters that are used and not counted enough, wrong flags.
    pub errors: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckResult {
    /// Errors that endanger data and are still there.
    pub corruptions: u64,
    /// Clusters counted and not used, still there.
    pub leaks: u64,
    /// Things that could not be checked.
    pub check_errors: u64,
    /// Errors repaired.
    pub corruptions_fixed: u64,
    /// Leaks repaired.
    pub leaks_fixed: u64,
    /// Guest clusters of the image.
    pub total_clusters: u64,
    /// Of these, allocated.
    pub allocated_clusters: u64,
    /// Allocated clusters not directly behind their neighbour.
    pub fragmented_clusters: u64,
    /// Allocated clusters that are compressed.
    pub compressed_clusters: u64,
    /// End of the last cluster in use, in bytes.
    pub image_end_offset: u64,
    /// What a person wants to read about each finding.
    pub messages: Vec<String>,
}

/// Counts references sparsely: memory grows with what is referred to, not with what offsets claim.
#[derive(Default)]
struct References {
    pages: BTreeMap<u64, Box<[u32]>>,
}

const PAGE: u64 = 4096;

impl References {
    fn add(&mut self, cluster: u64) {
        let page = self.pages.entry(cluster / PAGE).or_insert_with(|| vec![0; PAGE as usize].into_boxed_slice());
        let slot = &mut page[(cluster % PAGE) as usize];
        *slot = slot.saturating_add(1);
    }

    fn get(&self, cluster: u64) -> u64 {
        self.pages.get(&(cluster / PAGE)).map_or(0, |p| u64::from(p[(cluster % PAGE) as usize]))
    }

    fn pages_with_any(&self) -> impl Iterator<Item = u64> {
        self.pages.keys().copied()
    }

    fn last(&self) -> Option<u64> {
        self.pages
            .iter()
            .rev()
            .find_map(|(page, counts)| counts.iter().rposition(|c| *c > 0).map(|i| page * PAGE + i as u64))
    }
}

/// L2 entries looked at in one check: more than any image has whose tables are its own.
const MAX_ENTRIES: u64 = 1 << 31;
/// Messages kept; a thoroughly broken image has one for every cluster.
const MAX_MESSAGES: usize = 100_000;

struct Checker<'a> {
    image: &'a Qcow2,
    fix: Fix,
    references: References,
    file_length: u64,
    result: CheckResult,
    /// Refcount blocks or their table are broken beyond single entries.
    rebuild: bool,
    /// L2 entries looked at.
    entries: u64,
}

/// Checks, and repairs what `fix` says. The image must not be in use otherwise.
pub async fn check(image: &Qcow2, fix: Fix) -> io::Result<CheckResult> {
    let _meta = image.meta.lock().await;
    let writable = image.node.upgrade().is_some_and(|n| n.is_writable());
    if writable && (fix.leaks || fix.errors) {
        image.reclaim_abandoned().await?;
        image.flush_locked().await?;
        image.file().flush().await?;
    }
    let file_length = image.file().len()?;
    let mut checker = Checker {
        image,
        fix,
        references: References::default(),
        file_length,
        result: CheckResult::default(),
        rebuild: false,
        entries: 0,
    };
    checker.result.total_clusters = image.size().div_ceil(image.cluster_size());
    checker.count_references().await?;
    checker.compare().await?;
    checker.check_copied_flags().await?;
    if fix.leaks || fix.errors {
        image.unsynced.set(true);
        image.flush_locked().await?;
        image.refs.hint.set(0);
        if checker.result.corruptions == 0 && checker.result.check_errors == 0 && fix.errors {
            image.corrupt.set(false);
            if image.header.borrow().incompatible & (incompatible::CORRUPT | incompatible::DIRTY) != 0 {
                image.update_header(|h| h.incompatible &= !(incompatible::CORRUPT | incompatible::DIRTY)).await?;
            }
        }
    }
    Ok(checker.result)
}

impl Checker<'_> {
    fn say(&mut self, text: String) {
        if self.result.messages.len() < MAX_MESSAGES {
            self.result.messages.push(text);
        }
    }

    fn corruption(&mut self, text: String) {
        self.result.corruptions += 1;
        self.say(text);
    }

    /// Counts one reference to each cluster of a range.
    fn refer(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let size = self.image.cluster_size();
        if (offset + len).saturating_sub(self.file_length) >= size {
            self.corruption(format!(
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset \
                 {offset:#x} size {len:#x}"
            ));
            return;
        }
        for cluster in offset / size..(offset + len).div_ceil(size) {
            self.references.add(cluster);
        }
    }

    /// Counts the header, and what the active table and those of the snapshots refer to.
    async fn count_tables(&mut self, header: &Header) -> io::Result<()> {
        let image = self.image;
        self.refer(0, image.cluster_size());
        let l1 = image.l1.borrow().entries.clone();
        self.refer(header.l1_offset, l1.len() as u64 * 8);
        self.count_l1(&l1, true).await?;
        let snapshots = image.snapshots.borrow().clone();
        for snapshot in snapshots {
            self.count_snapshot(&snapshot).await?;
        }
        Ok(())
    }

    async fn count_references(&mut self) -> io::Result<()> {
        let image = self.image;
        let size = image.cluster_size();
        let header = image.header.borrow().clone();
        self.count_tables(&header).await?;
        match snapshot::table_length(&image.file(), &header).await {
            Ok(len) => self.refer(header.snapshots_offset, len),
            Err(e) => {
                self.result.check_errors += 1;
                self.say(format!("ERROR {e}"));
            }
        }
        if header.autoclear & autoclear::BITMAPS != 0
            && let Some(data) = header.extension(extension::BITMAPS)
        {
            let data = data.to_vec();
            self.count_bitmaps(&data).await?;
        }
        self.refer(header.reftable_offset, u64::from(header.reftable_clusters) * size);
        self.count_refcount_blocks();
        Ok(())
    }

    async fn count_snapshot(&mut self, snapshot: &snapshot::Snapshot) -> io::Result<()> {
        let size = self.image.cluster_size();
        let (id, name) = (&snapshot.id, &snapshot.name);
        if !snapshot.l1_offset.is_multiple_of(size) || snapshot.l1_offset > i64::MAX as u64 {
            self.corruption(format!(
                "ERROR snapshot {id} ({name}) l1_offset={:#x}: L1 table is not cluster aligned; snapshot table entry \
                 corrupted",
                snapshot.l1_offset
            ));
            return Ok(());
        }
        let bytes = u64::from(snapshot.l1_size) * 8;
        if bytes > MAX_L1_BYTES {
            self.corruption(format!(
                "ERROR snapshot {id} ({name}) l1_size={:#x}: L1 table is too large; snapshot table entry corrupted",
                snapshot.l1_size
            ));
            return Ok(());
        }
        let l1 = read_words(&self.image.file(), snapshot.l1_offset, u64::from(snapshot.l1_size)).await?;
        self.refer(snapshot.l1_offset, bytes);
        self.count_l1(&l1, false).await
    }

    async fn count_l1(&mut self, l1: &[u64], active: bool) -> io::Result<()> {
        let size = self.image.cluster_size();
        let mut next = 0;
        let mut seen = HashSet::new();
        for entry in l1 {
            let offset = entry & OFFSET_MASK;
            if offset == 0 {
                continue;
            }
            self.refer(offset, size);
            if !seen.insert(offset) {
                self.corruption(format!("ERROR l2_offset={offset:x}: Table is used more than once"));
                continue;
            }
            self.entries += self.image.entries_per_table();
            if self.entries > MAX_ENTRIES {
                self.result.check_errors += 1;
                self.say("ERROR: too many L2 tables to check".to_owned());
                return Ok(());
            }
            if !offset.is_multiple_of(size) {
                self.corruption(format!(
                    "ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted"
                ));
                continue;
            }
            if offset >= self.file_length {
                continue;
            }
            let table = self.load_l2(offset).await?;
            for entry in table {
                self.count_entry(entry, active, &mut next);
            }
        }
        Ok(())
    }

    /// All entries of an L2 table, from memory if it is there (it may be newer than the file's).
    async fn load_l2(&self, offset: u64) -> io::Result<Vec<Entry>> {
        let image = self.image;
        let cached = image.l2.get(offset);
        let bytes = match cached {
            Some(table) => table.bytes().clone(),
            None => {
                let mut bytes = vec![0; image.cluster_size() as usize];
                image.file().read(offset, &mut bytes).await?;
                bytes
            }
        };
        let table = super::cache::Table::new(offset, bytes);
        Ok((0..image.entries_per_table() as usize).map(|i| image.entry(&table, i)).collect())
    }

    fn count_entry(&mut self, entry: Entry, active: bool, next: &mut u64) {
        let image = self.image;
        let size = image.cluster_size();
        if entry.word & COMPRESSED != 0 {
            if entry.word & COPIED != 0 {
                self.corruption(format!(
                    "ERROR: coffset=0x{:x}: copied flag must never be set for compressed clusters",
                    entry.word & OFFSET_MASK
                ));
            }
            let (offset, len) = image.compressed_place(entry.word);
            // The last sector of the file may be cut.
            self.refer(offset, len);
            if active {
                self.result.allocated_clusters += 1;
                self.result.compressed_clusters += 1;
                // Compressed clusters are never contiguous.
                self.result.fragmented_clusters += 1;
            }
            return;
        }
        let offset = entry.word & OFFSET_MASK;
        if let Err(bad) = image.classify(entry, 0) {
            if !offset.is_multiple_of(size) {
                self.corruption(format!(
                    "ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted."
                ));
            } else {
                self.corruption(format!("ERROR L2 entry {:x}: {}", entry.word, bad.0));
            }
            return;
        }
        if offset == 0 {
            return;
        }
        if active {
            self.result.allocated_clusters += 1;
            if *next != 0 && offset != *next {
                self.result.fragmented_clusters += 1;
            }
            *next = offset + size;
        }
        self.refer(offset, size);
    }

    /// Persistent bitmaps: directory, tables, data (specification, section "Bitmaps").
    async fn count_bitmaps(&mut self, data: &[u8]) -> io::Result<()> {
        let word =
            |at: usize, n: usize| data.get(at..at + n).map(|b| b.iter().fold(0u64, |v, x| v << 8 | u64::from(*x)));
        let (Some(count), Some(dir_size), Some(dir_offset)) = (word(0, 4), word(8, 8), word(16, 8)) else {
            self.corruption("ERROR bitmaps extension is too short".to_owned());
            return Ok(());
        };
        let file = self.image.file();
        if dir_size > 64 << 20 || dir_offset > i64::MAX as u64 - dir_size {
            self.corruption("ERROR bitmap directory is too large".to_owned());
            return Ok(());
        }
        self.refer(dir_offset, dir_size);
        let mut directory = vec![0; dir_size.min(self.file_length) as usize];
        file.read(dir_offset, &mut directory).await?;
        let mut at = 0;
        for _ in 0..count {
            let Some(fixed) = directory.get(at..at + 24) else {
                self.corruption("ERROR bitmap directory is cut".to_owned());
                return Ok(());
            };
            let be = |o: usize, n: usize| fixed[o..o + n].iter().fold(0u64, |v, x| v << 8 | u64::from(*x));
            let (table_offset, table_size) = (be(0, 8), be(8, 4));
            let (name_len, extra_len) = (be(18, 2) as usize, be(20, 4) as usize);
            if table_size > (8 << 20) / 8 || table_offset > i64::MAX as u64 >> 1 {
                self.corruption("ERROR bitmap table is too large".to_owned());
                return Ok(());
            }
            self.refer(table_offset, table_size * 8);
            for entry in read_words(&file, table_offset, table_size).await? {
                if entry & OFFSET_MASK != 0 {
                    self.refer(entry & OFFSET_MASK, self.image.cluster_size());
                }
            }
            at = at.saturating_add(24 + name_len).saturating_add(extra_len).next_multiple_of(8);
        }
        Ok(())
    }

    fn count_refcount_blocks(&mut self) {
        let size = self.image.cluster_size();
        let table = self.image.refs.table.borrow().clone();
        for (i, entry) in table.iter().enumerate() {
            let offset = entry & OFFSET_MASK;
            if offset == 0 {
                continue;
            }
            if !offset.is_multiple_of(size) {
                self.corruption(format!(
                    "ERROR refcount block {i} is not cluster aligned; refcount table entry corrupted"
                ));
                self.rebuild = true;
                continue;
            }
            if offset >= self.file_length.next_multiple_of(size) {
                self.corruption(format!("ERROR refcount block {i} is outside image"));
                self.rebuild = true;
                continue;
            }
            self.refer(offset, size);
            if self.references.get(offset / size) != 1 {
                let found = self.references.get(offset / size);
                self.corruption(format!("ERROR refcount block {i} refcount={found}"));
                self.rebuild = true;
            }
        }
    }

    /// Compares refcounts with references, cluster by cluster, wherever there is either.
    async fn compare(&mut self) -> io::Result<()> {
        let image = self.image;
        if self.rebuild {
            return self.rebuild_refcounts().await;
        }
        let per_block = image.clusters_per_block();
        let mut highest = self.references.last().unwrap_or(0);
        let blocks: Vec<u64> = {
            let table = image.refs.table.borrow();
            let counted = (0..table.len() as u64).filter(|i| table[*i as usize] & OFFSET_MASK != 0);
            let mut all: Vec<u64> = counted.collect();
            let of_page = |p: u64| (p * PAGE / per_block)..=((p * PAGE + PAGE - 1) / per_block);
            all.extend(self.references.pages_with_any().flat_map(of_page));
            all.sort_unstable();
            all.dedup();
            all
        };
        for index in blocks {
            let first = index * per_block;
            let block = image.refblock(first).await?;
            let mut repairs: Vec<(u64, u64)> = Vec::new();
            for cluster in first..first + per_block {
                let counted = match &block {
                    Some(b) => super::refcount::get_entry(&b.bytes(), (cluster - first) as usize, image.refs.order),
                    None => 0,
                };
                let used = self.references.get(cluster);
                if counted > 0 {
                    highest = highest.max(cluster);
                }
                if counted == used {
                    continue;
                }
                let error = counted < used;
                let repair = if error { self.fix.errors } else { self.fix.leaks };
                let word = match (repair, error) {
                    (true, _) => "Repairing",
                    (false, true) => "ERROR",
                    (false, false) => "Leaked",
                };
                self.say(format!("{word} cluster {cluster} refcount={counted} reference={used}"));
                if repair && used <= image.refs.max() {
                    repairs.push((cluster, used));
                    if error {
                        self.result.corruptions_fixed += 1;
                    } else {
                        self.result.leaks_fixed += 1;
                    }
                } else if error {
                    self.result.corruptions += 1;
                } else {
                    self.result.leaks += 1;
                }
            }
            if repairs.is_empty() {
                continue;
            }
            let Some(block) = block else {
                // A block is missing for clusters that are in use: its own place cannot be chosen among them.
                return self.rebuild_refcounts().await;
            };
            let order = image.refs.order;
            let length = image.cluster_size() as usize;
            block.change(0, length, |bytes| {
                for (cluster, used) in repairs {
                    set_entry(bytes, (cluster - first) as usize, order, used);
                }
            });
        }
        if self.fix.leaks {
            highest = self.references.last().unwrap_or(0);
        }
        self.result.image_end_offset = (highest + 1) << image.cluster_bits;
        Ok(())
    }

    /// Writes all refcounts anew, behind everything in use.
    async fn rebuild_refcounts(&mut self) -> io::Result<()> {
        let image = self.image;
        let last = self.references.last().unwrap_or(0);
        self.result.image_end_offset = (last + 1) << image.cluster_bits;
        if !self.fix.errors {
            self.result.check_errors += 1;
            return Ok(());
        }
        self.say("Rebuilding refcount structure".to_owned());
        // The old table and its blocks are not counted in the new one.
        self.references = References::default();
        let found = std::mem::take(&mut self.result);
        let fixed = found.corruptions;
        self.result =
            CheckResult { messages: found.messages, total_clusters: found.total_clusters, ..CheckResult::default() };
        let header = image.header.borrow().clone();
        let size = image.cluster_size();
        self.count_tables(&header).await?;
        let length = snapshot::table_length(&image.file(), &header).await.map_err(crate::driver::to_io)?;
        self.refer(header.snapshots_offset, length);

        let per_block = image.clusters_per_block();
        let start = (self.file_length.div_ceil(size)).max(self.references.last().unwrap_or(0) + 1);
        let (mut blocks, mut tables) = (1, 1);
        loop {
            let total = start + blocks + tables;
            let needed = total.div_ceil(per_block);
            let needed_tables = (needed * 8).div_ceil(size);
            if needed <= blocks && needed_tables <= tables {
                break;
            }
            (blocks, tables) = (blocks.max(needed), tables.max(needed_tables));
        }
        if tables * size > MAX_TABLE_BYTES {
            return Err(errno(libc::EFBIG));
        }
        for cluster in start..start + blocks + tables {
            self.references.add(cluster);
        }
        let file = image.file();
        let mut table = vec![0u64; (tables * size / 8) as usize];
        let mut content = vec![0; size as usize];
        for block in 0..blocks {
            content.fill(0);
            for cluster in block * per_block..((block + 1) * per_block).min(start + blocks + tables) {
                let used = self.references.get(cluster).min(image.refs.max());
                set_entry(&mut content, (cluster - block * per_block) as usize, image.refs.order, used);
            }
            let at = (start + block) << image.cluster_bits;
            file.write(at, &content, WriteFlags::empty()).await?;
            table[block as usize] = at;
        }
        let table_offset = (start + blocks) << image.cluster_bits;
        let bytes: Vec<u8> = table.iter().flat_map(|e| e.to_be_bytes()).collect();
        file.write(table_offset, &bytes, WriteFlags::empty()).await?;
        file.flush().await?;
        image
            .update_header(|h| {
                h.reftable_offset = table_offset;
                h.reftable_clusters = tables as u32;
            })
            .await?;
        image.refs.blocks.clear();
        *image.refs.table.borrow_mut() = table;
        image.refs.table_dirty.set(None);
        image.note_allocated(table_offset, tables);
        image.rebuild_metadata_clusters();
        self.result.corruptions_fixed = fixed;
        self.result.image_end_offset = (start + blocks + tables) << image.cluster_bits;
        Ok(())
    }

    /// A cluster that is used once must say so, and only such a one.
    async fn check_copied_flags(&mut self) -> io::Result<()> {
        let image = self.image;
        let size = image.cluster_size();
        let count = image.l1.borrow().entries.len();
        for index in 0..count {
            let entry = image.l1.borrow().entries[index];
            let offset = entry & OFFSET_MASK;
            if offset == 0 || !offset.is_multiple_of(size) || offset >= self.file_length {
                continue;
            }
            let used = self.known_refcount(offset / size).await?;
            if (used == 1) != (entry & COPIED != 0) {
                let word = self.flag_word();
                self.say(format!(
                    "{word} OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={used}"
                ));
                if self.fix.errors {
                    image.set_l1(index, if used == 1 { entry | COPIED } else { entry & !COPIED });
                }
            }
            let table = image.l2.load(&image.file(), offset).await?;
            for i in 0..image.entries_per_table() as usize {
                let old = image.entry(&table, i);
                let at = old.word & OFFSET_MASK;
                if old.word & COMPRESSED != 0 || at == 0 || !at.is_multiple_of(size) {
                    continue;
                }
                let used = self.known_refcount(at / size).await?;
                if (used == 1) != (old.word & COPIED != 0) {
                    let word = self.flag_word();
                    self.say(format!("{word} OFLAG_COPIED data cluster: l2_entry={:x} refcount={used}", old.word));
                    if self.fix.errors {
                        let word = if used == 1 { old.word | COPIED } else { old.word & !COPIED };
                        image.set_entry(&table, i, Entry { word, ..old });
                    }
                }
            }
            image.l2.shrink();
        }
        Ok(())
    }

    fn flag_word(&mut self) -> &'static str {
        if self.fix.errors {
            self.result.corruptions_fixed += 1;
            "Repairing"
        } else {
            self.result.corruptions += 1;
            "ERROR"
        }
    }

    async fn known_refcount(&self, cluster: u64) -> io::Result<u64> {
        // After an unrepaired rebuild case the blocks cannot be trusted to load.
        if self.rebuild && !self.fix.errors {
            return Ok(self.references.get(cluster));
        }
        self.image.refcount(cluster).await
    }
}
