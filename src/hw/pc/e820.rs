//! The memory map that firmware hands on (`etc/e820`).

use super::PcConfig;

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum E820Kind {
    /// RAM.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// What it is.
    pub kind: E820Kind,
}

/// AMD's HyperTransport has the last 12 GiB below 1 TiB (AMD BKDG, "Memory map").
const HYPERTRANSPORT: (u64, u64) = (0xfd_0000_0000, 0x3_0000_0000);

/// The map of a machine.
pub(super) fn entries(config: &PcConfig) -> Vec<E820Entry> {
    let mut entries = vec![];
    if config.amd {
        let (start, length) = HYPERTRANSPORT;
        entries.push(E820Entry { start, length, kind: E820Kind::Reserved });
    }
    entries.push(E820Entry { start: 0, length: config.below_4g(), kind: E820Kind::Ram });
    if config.above_4g() > 0 {
        entries.push(E820Entry { start: 1 << 32, length: config.above_4g(), kind: E820Kind::Ram });
    }
    entries
}

/// The file.
pub(super) fn encode(entries: &[E820Entry]) -> Vec<u8> {
    let bytes = entries.iter().flat_map(|e| {
        let mut record = e.start.to_le_bytes().to_vec();
        record.extend(e.length.to_le_bytes());
        record.extend((e.kind as u32).to_le_bytes());
        record
    });
    bytes.collect()
}
