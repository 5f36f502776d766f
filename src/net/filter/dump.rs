//! `filter-dump`: writes packets to a file in pcap format.

use std::fs::File;
use std::io::Write;

use lockstep_event::{Clock, Clocks};
use lockstep_util::{Result, ResultExt, report};
use parking_lot::Mutex;

use crate::packet::Frame;

/// Ethernet, in the list of link types.
const LINKTYPE_ETHERNET: u32 = 1;

/// A dump.
pub(crate) struct Dump {
    pub path: String,
    pub max_len: u32,
    file: Mutex<Option<File>>,
    clocks: Clocks,
    start_us: i64,
}

impl Dump {
    pub fn new(path: &str, max_len: u32, clocks: Clocks) -> Result<Self> {
        let mut file = File::create(path).context(format!("net dump: can't open {path}"))?;
        let mut header = Vec::with_capacity(24);
        header.extend(0xa1b2_c3d4u32.to_ne_bytes());
        header.extend(2u16.to_ne_bytes());
        header.extend(4u16.to_ne_bytes());
        header.extend([0; 8]);
        header.extend(max_len.to_ne_bytes());
        header.extend(LINKTYPE_ETHERNET.to_ne_bytes());
        file.write_all(&header).context("net dump write error")?;
        // Guest time, counted from the wall clock of the beginning.
        let start_us = (clocks.now_ns(Clock::Host) - clocks.now_ns(Clock::Virtual)) / 1000;
        Ok(Self { path: path.to_owned(), max_len, file: Mutex::new(Some(file)), clocks, start_us })
    }

    pub fn write(&self, frame: &Frame) {
        let mut slot = self.file.lock();
        let Some(file) = slot.as_mut() else { return };
        let data = &frame.data[frame.vnet_len..];
        let kept = data.len().min(self.max_len as usize);
        let us = self.start_us + self.clocks.now_ns(Clock::Virtual) / 1000;
        let mut record = Vec::with_capacity(16 + kept);
        for word in [(us / 1_000_000) as u32, (us % 1_000_000) as u32, kept as u32, data.len() as u32] {
            record.extend(word.to_ne_bytes());
        }
        record.extend(&data[..kept]);
        if file.write_all(&record).is_err() {
            report::error("network dump write error - stopping dump");
            *slot = None;
        }
    }
}

impl std::fmt::Debug for Dump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dump").field("path", &self.path).finish_non_exhaustive()
    }
}
