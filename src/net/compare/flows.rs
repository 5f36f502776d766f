//! The flows that an engine knows: which of them a checkpoint concerns, and which have ended.
//!
//! Busy servers have thousands of connections behind them for each one that is open, so that neither a checkpoint nor the
//! periodic scan may look at all: a flow is *touched* by a packet, and untouched again by the checkpoint that makes both
//! sides equal. Ended connections stay for a while, because their last words may be repeated.

use std::collections::{HashMap, HashSet, VecDeque};

use super::datagram::DatagramConn;
use super::tcp::TcpConn;
use super::{Key, Load};

/// The most flows that are tracked at a time.
pub const MAX_CONNECTIONS: usize = 16384;
/// A flow without queued packets may be forgotten after this time, when room is needed.
const IDLE_NS: i64 = 60_000_000_000;
/// An ended connection is forgotten after so long a silence. The guest repeats a FIN that was lost, and the acknowledgement
/// of its peer's, at intervals that double from 200 ms (RFC 6298); each repetition counts anew. One that comes later still
/// is compared like the first word of an unknown connection.
pub(super) const LINGER_NS: i64 = 30_000_000_000;
/// The most ended connections that are kept; beyond that, the first to end go first.
pub(super) const MAX_ENDED: usize = 4096;

#[derive(Debug)]
pub(super) enum Flow {
    Tcp(Box<TcpConn>),
    Datagram(DatagramConn),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub flow: Flow,
    /// When a packet came last.
    pub used: i64,
    pub load: Load,
    /// The engine's timer will look at it, when its patience is over.
    pub armed: bool,
    /// The engine's timer will look at it, to see whether it gets on.
    pub watched: bool,
    /// It is in [`Flows::touched`].
    touched: bool,
    /// It is in [`Flows::ended`].
    lingers: bool,
}

impl Entry {
    fn has_ended(&self) -> bool {
        matches!(&self.flow, Flow::Tcp(conn) if conn.has_ended())
    }

    fn is_idle(&self) -> bool {
        self.load == Load::default()
    }
}

/// All flows.
#[derive(Debug, Default)]
pub(super) struct Flows {
    entries: HashMap<Key, Entry>,
    /// Those for which a packet has come since the last checkpoint. All others are alike on both sides, hold nothing and
    /// wait for nothing.
    touched: HashSet<Key>,
    /// Connections that have ended, with the time at which they may be forgotten if they were silent.
    ended: VecDeque<(i64, Key)>,
}

impl Flows {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    pub fn insert(&mut self, key: Key, flow: Flow, now: i64) {
        let entry = Entry {
            flow,
            used: now,
            load: Load::default(),
            armed: false,
            watched: false,
            touched: false,
            lingers: false,
        };
        self.entries.insert(key, entry);
    }

    /// A flow to work on. Followed by [`Flows::settle`].
    pub fn get_mut(&mut self, key: &Key) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(key)?;
        if !entry.touched {
            entry.touched = true;
            self.touched.insert(*key);
        }
        Some(entry)
    }

    /// Takes note of what the work on a flow has made of it.
    pub fn settle(&mut self, key: Key, now: i64) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if matches!(&entry.flow, Flow::Datagram(conn) if conn.is_settled()) {
            return self.remove(&key);
        }
        if entry.lingers || !entry.has_ended() {
            return;
        }
        entry.lingers = true;
        self.ended.push_back((now + LINGER_NS, key));
        if self.ended.len() > MAX_ENDED {
            self.forget_ended(now);
        }
    }

    /// All flows, in any order.
    pub fn all(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The flows that have changed since the last checkpoint, in any order.
    pub fn touched(&self) -> impl Iterator<Item = &Entry> {
        self.touched.iter().filter_map(|key| self.entries.get(key))
    }

    /// A checkpoint: `make_equal` is called for every touched flow. An aborted connection has no past then.
    pub fn untouch(&mut self, mut make_equal: impl FnMut(&mut Flow)) {
        for key in std::mem::take(&mut self.touched) {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            make_equal(&mut entry.flow);
            (entry.load, entry.touched) = (Load::default(), false);
            (entry.armed, entry.watched) = (false, false);
            match &entry.flow {
                Flow::Tcp(conn) if !conn.is_aborted() => {}
                _ => drop(self.entries.remove(&key)),
            }
        }
    }

    /// Forgets connections that ended long ago, and the first to end while there are too many.
    pub fn forget_ended(&mut self, now: i64) {
        while let Some(&(at, key)) = self.ended.front() {
            let crowded = self.ended.len() > MAX_ENDED;
            if at > now && !crowded {
                return;
            }
            self.ended.pop_front();
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.lingers = false;
            if !entry.has_ended() {
                continue;
            }
            let silent_at = entry.used + LINGER_NS;
            if silent_at > now && !crowded {
                entry.lingers = true;
                self.ended.push_back((silent_at, key));
            } else {
                self.remove(&key);
            }
        }
    }

    /// Makes room for one more: an ended connection, if there is any; or those without packets that were silent for long;
    /// or the silent half of them. Returns how many live ones were forgotten.
    pub fn make_room(&mut self, now: i64) -> usize {
        while let Some((_, key)) = self.ended.pop_front() {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.lingers = false;
            if entry.has_ended() {
                self.remove(&key);
                return 0;
            }
        }
        let before = self.entries.len();
        self.retain(|entry| !entry.is_idle() || now - entry.used < IDLE_NS);
        if self.entries.len() == before {
            let mut used: Vec<i64> = self.entries.values().filter(|e| e.is_idle()).map(|e| e.used).collect();
            if used.is_empty() {
                return 0;
            }
            let middle = used.len() / 2;
            let median = *used.select_nth_unstable(middle).1;
            self.retain(|entry| !entry.is_idle() || entry.used > median);
        }
        before - self.entries.len()
    }

    fn remove(&mut self, key: &Key) {
        if self.entries.remove(key).is_some_and(|entry| entry.touched) {
            self.touched.remove(key);
        }
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        let touched = &mut self.touched;
        self.entries.retain(|key, entry| {
            let kept = keep(entry);
            if !kept && entry.touched {
                touched.remove(key);
            }
            kept
        });
    }
}
