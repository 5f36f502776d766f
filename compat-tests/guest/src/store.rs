//! The key-value store: an append-only log on disk, replayed at boot.
//!
//! A record starts at a sector: magic, checksum of all that follows, log id, sequence number, lengths, key, value. A write is
//! acknowledged after its data and a flush behind it are done. Writes that wait meanwhile go together in the next round.
use crate::crc32c;
use crate::header::Header;
use crate::ide::{Command, Disk, MAX_TRANSFER, SECTOR};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

/// Longest value in bytes.
pub const MAX_VALUE: usize = 1 << 20;
/// Longest key in bytes.
pub const MAX_KEY: usize = 255;

const MAGIC: [u8; 4] = *b"LSKV";
const HEAD: usize = 32;
const DELETE: u8 = 2;

/// A change that somebody waits for.
pub struct Change {
    /// Who waits: handed back when it is durable.
    pub ticket: u64,
    /// The key.
    pub key: String,
    /// The new value, or `None` to delete the key.
    pub value: Option<Vec<u8>>,
}

enum Phase {
    Idle,
    Writing { at: usize },
    Flushing,
}

/// The store.
pub struct Store {
    entries: BTreeMap<String, Vec<u8>>,
    log_lba: u32,
    log_sectors: u32,
    log_id: u64,
    /// Sectors of the log that hold records.
    pub used: u32,
    sequence: u64,
    waiting: VecDeque<Change>,
    batch: Vec<Change>,
    encoded: Vec<u8>,
    phase: Phase,
    /// Tickets answered: (ticket, done).
    pub finished: Vec<(u64, bool)>,
}

impl Store {
    /// Replays the log. `wait` returns when the disk has raised its interrupt.
    pub fn open(header: &Header, disk: &mut Disk, mut wait: impl FnMut()) -> Self {
        let mut store = Self {
            entries: BTreeMap::new(),
            log_lba: header.log_lba,
            log_sectors: header.log_sectors,
            log_id: header.log_id,
            used: 0,
            sequence: 0,
            waiting: VecDeque::new(),
            batch: Vec::new(),
            encoded: Vec::new(),
            phase: Phase::Idle,
            finished: Vec::new(),
        };
        let mut window = Vec::new();
        let mut next_sector = 0;
        loop {
            match store.replay_one(&window) {
                Replay::Record(sectors) => {
                    window.drain(..sectors * SECTOR);
                    store.used += sectors as u32;
                }
                Replay::End => return store,
                Replay::NeedMore => {
                    // A first read of one sector shows whether there is anything; then large ones.
                    let limit = if next_sector == 0 { SECTOR } else { MAX_TRANSFER };
                    let bytes = limit.min((store.log_sectors - next_sector) as usize * SECTOR);
                    if bytes == 0 {
                        return store;
                    }
                    disk.submit(Command::Read { lba: store.log_lba + next_sector, bytes });
                    let good = loop {
                        wait();
                        if let Some((_, good)) = disk.finish() {
                            break good;
                        }
                    };
                    if !good {
                        return store;
                    }
                    window.extend_from_slice(&disk.buffer[..bytes]);
                    next_sector += (bytes / SECTOR) as u32;
                }
            }
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Queues a change. Its ticket turns up in `finished`.
    pub fn submit(&mut self, change: Change) {
        self.waiting.push_back(change);
    }

    /// Starts the next disk command, if there is one to start.
    pub fn advance(&mut self, disk: &mut Disk) {
        if disk.is_busy() {
            return;
        }
        if matches!(self.phase, Phase::Idle) {
            if !self.fill_batch() {
                return;
            }
            self.phase = Phase::Writing { at: 0 };
        }
        match self.phase {
            Phase::Writing { at } if at < self.encoded.len() => {
                let bytes = (self.encoded.len() - at).min(MAX_TRANSFER);
                disk.buffer[..bytes].copy_from_slice(&self.encoded[at..at + bytes]);
                disk.submit(Command::Write { lba: self.log_lba + self.used + (at / SECTOR) as u32, bytes });
                self.phase = Phase::Writing { at: at + bytes };
            }
            _ => {
                disk.submit(Command::Flush);
                self.phase = Phase::Flushing;
            }
        }
    }

    /// Takes the result of a disk command.
    pub fn completed(&mut self, good: bool) {
        if good && matches!(self.phase, Phase::Writing { .. }) {
            return;
        }
        self.phase = Phase::Idle;
        if good {
            self.used += (self.encoded.len() / SECTOR) as u32;
            self.sequence += self.batch.len() as u64;
        }
        for change in self.batch.drain(..) {
            self.finished.push((change.ticket, good));
            if good {
                apply(&mut self.entries, change.key, change.value);
            }
        }
    }

    fn fill_batch(&mut self) -> bool {
        self.encoded.clear();
        while let Some(change) = self.waiting.pop_front() {
            let record = HEAD + change.key.len() + change.value.as_ref().map_or(0, Vec::len);
            let room = (self.log_sectors - self.used) as usize * SECTOR - self.encoded.len();
            if record.next_multiple_of(SECTOR) > room {
                self.finished.push((change.ticket, false));
                continue;
            }
            let sequence = self.sequence + self.batch.len() as u64;
            encode(&mut self.encoded, self.log_id, sequence, &change);
            self.batch.push(change);
            if self.encoded.len() >= MAX_TRANSFER {
                break;
            }
        }
        !self.batch.is_empty()
    }

    fn replay_one(&mut self, window: &[u8]) -> Replay {
        if window.len() < SECTOR {
            return Replay::NeedMore;
        }
        let field = |at: usize| u32::from_le_bytes(window[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from(field(at)) | u64::from(field(at + 4)) << 32;
        let (key_length, value_length) = (usize::from(window[24]), field(28) as usize);
        if window[..4] != MAGIC || long(8) != self.log_id || long(16) != self.sequence || value_length > MAX_VALUE {
            return Replay::End;
        }
        let total = HEAD + key_length + value_length;
        if window.len() < total {
            return Replay::NeedMore;
        }
        if crc32c::update(0, &window[8..total]) != field(4) {
            return Replay::End;
        }
        let Ok(key) = core::str::from_utf8(&window[HEAD..HEAD + key_length]) else { return Replay::End };
        let value = (window[25] != DELETE).then(|| window[HEAD + key_length..total].to_vec());
        apply(&mut self.entries, key.into(), value);
        self.sequence += 1;
        Replay::Record(total.div_ceil(SECTOR))
    }
}

enum Replay {
    Record(usize),
    NeedMore,
    End,
}

fn apply(entries: &mut BTreeMap<String, Vec<u8>>, key: String, value: Option<Vec<u8>>) {
    match value {
        Some(value) => entries.insert(key, value),
        None => entries.remove(&key),
    };
}

fn encode(into: &mut Vec<u8>, log_id: u64, sequence: u64, change: &Change) {
    let start = into.len();
    let value = change.value.as_deref();
    into.extend_from_slice(&MAGIC);
    into.extend_from_slice(&[0; 4]);
    into.extend_from_slice(&log_id.to_le_bytes());
    into.extend_from_slice(&sequence.to_le_bytes());
    into.extend_from_slice(&[change.key.len() as u8, if value.is_some() { 1 } else { DELETE }, 0, 0]);
    into.extend_from_slice(&(value.map_or(0, <[u8]>::len) as u32).to_le_bytes());
    into.extend_from_slice(change.key.as_bytes());
    into.extend_from_slice(value.unwrap_or_default());
    let crc = crc32c::update(0, &into[start + 8..]);
    into[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    into.resize(into.len().next_multiple_of(SECTOR), 0);
}
