//! Internal snapshots: their table is read, listed and kept; their clusters count as used.

use super::header::Header;
use crate::node::Node;
use lockstep_util::{Error, Result, bail};
use serde_json::{Value, json};
use std::rc::Rc;

/// Bytes of a table entry without its variable parts.
pub const HEADER_SIZE: u64 = 40;
/// Snapshots at most.
pub const MAX_COUNT: u64 = 65536;
/// Bytes of the table at most.
const MAX_BYTES: u64 = 64 << 20;
/// Extra data of an entry at most.
const MAX_EXTRA: usize = 1024;

/// One internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Where its L1 table lies.
    pub l1_offset: u64,
    /// Its entries.
    pub l1_size: u32,
    /// Unique id.
    pub id: String,
    /// Name.
    pub name: String,
    /// When it was made: seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// The guest's clock, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Bytes of VM state.
    pub vm_state_size: u64,
    /// Virtual length then, if the entry has it.
    pub disk_size: Option<u64>,
    /// Instruction count for record/replay, if the entry has it.
    pub icount: Option<u64>,
}

impl Snapshot {
    /// As `SnapshotInfo` of the schema.
    pub fn to_info(&self) -> Value {
        let mut info = json!({
            "id": self.id,
            "name": self.name,
            "vm-state-size": self.vm_state_size,
            "date-sec": self.date_sec,
            "date-nsec": self.date_nsec,
            "vm-clock-sec": self.vm_clock_nsec / 1_000_000_000,
            "vm-clock-nsec": self.vm_clock_nsec % 1_000_000_000,
        });
        if let (Some(icount), Value::Object(map)) = (self.icount.filter(|i| *i != u64::MAX), &mut info) {
            map.insert("icount".into(), icount.into());
        }
        info
    }
}

/// Reads the table.
pub(super) async fn read_table(file: &Rc<Node>, header: &Header) -> Result<Vec<Snapshot>> {
    let count = u64::from(header.snapshot_count);
    if count == 0 {
        return Ok(Vec::new());
    }
    let length = file.len().map_err(|e| Error::with_errno("Failed to read snapshot table", &e))?;
    let bytes = MAX_BYTES.min(length.saturating_sub(header.snapshots_offset));
    // Entries are small: most tables fit into the first read.
    let mut table = vec![0; bytes.min((count * 4096).max(65536)) as usize];
    let error = |e: std::io::Error| Error::with_errno("Failed to read snapshot table", &e);
    file.read(header.snapshots_offset, &mut table).await.map_err(error)?;
    match parse_table(&table, count as usize) {
        Some(list) => Ok(list?.0),
        None if (table.len() as u64) < bytes => {
            table.resize(bytes as usize, 0);
            file.read(header.snapshots_offset, &mut table).await.map_err(error)?;
            match parse_table(&table, count as usize) {
                Some(list) => Ok(list?.0),
                None => bail!("Snapshot table is too big"),
            }
        }
        None => bail!("Failed to read snapshot table: Input/output error"),
    }
}

/// Bytes the table takes.
pub(super) async fn table_length(file: &Rc<Node>, header: &Header) -> Result<u64> {
    if header.snapshot_count == 0 {
        return Ok(0);
    }
    let length = file.len().map_err(|e| Error::with_errno("Failed to read snapshot table", &e))?;
    let mut table = vec![0; MAX_BYTES.min(length.saturating_sub(header.snapshots_offset)) as usize];
    file.read(header.snapshots_offset, &mut table)
        .await
        .map_err(|e| Error::with_errno("Failed to read snapshot table", &e))?;
    match parse_table(&table, header.snapshot_count as usize) {
        Some(list) => Ok(list?.1 as u64),
        None => bail!("Failed to read snapshot table: Input/output error"),
    }
}

/// `None` if the bytes end before the table does.
fn parse_table(bytes: &[u8], count: usize) -> Option<Result<(Vec<Snapshot>, usize)>> {
    let mut at = 0;
    let mut list = Vec::with_capacity(count.min(1024));
    for i in 0..count {
        let fixed = bytes.get(at..at + HEADER_SIZE as usize)?;
        let be16 = |o: usize| usize::from(u16::from_be_bytes([fixed[o], fixed[o + 1]]));
        let be32 = |o: usize| u32::from_be_bytes([fixed[o], fixed[o + 1], fixed[o + 2], fixed[o + 3]]);
        let be64 = |o: usize| u64::from(be32(o)) << 32 | u64::from(be32(o + 4));
        let extra_len = be32(36) as usize;
        if extra_len > MAX_EXTRA {
            return Some(Err(Error::new(format!("Too much extra metadata in snapshot table entry {i}"))));
        }
        let (id_len, name_len) = (be16(12), be16(14));
        let mut next = at + HEADER_SIZE as usize;
        let mut take = |n: usize| {
            let part = bytes.get(next..next + n);
            next += n;
            part
        };
        let extra = take(extra_len)?;
        let id = take(id_len)?;
        let name = take(name_len)?;
        let extra64 = |o: usize| extra.get(o..o + 8).map(|b| b.iter().fold(0u64, |v, x| v << 8 | u64::from(*x)));
        list.push(Snapshot {
            l1_offset: be64(0),
            l1_size: be32(8),
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            date_sec: be32(16),
            date_nsec: be32(20),
            vm_clock_nsec: be64(24),
            vm_state_size: extra64(0).unwrap_or_else(|| u64::from(be32(32))),
            disk_size: extra64(8),
            icount: extra64(16),
        });
        at = next.next_multiple_of(8);
    }
    Some(Ok((list, at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), count in 0usize..5) {
            let _ = parse_table(&bytes, count);
        }
    }
}
