//! What a PS/2 device has to say: replies to commands first, then its own data.

use std::collections::VecDeque;

use lockstep_vmstate::LoadError;

use super::vmstate::Ps2State;

/// A device keeps 16 bytes; when they are full, new data is lost.
const CAPACITY: usize = 16;
/// The ring on the wire.
const RING: usize = 256;
/// No command waits for its parameter.
pub(super) const NO_COMMAND: i32 = -1;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Queue {
    replies: VecDeque<u8>,
    data: VecDeque<u8>,
    /// What was read last, read again when there is nothing.
    last: u8,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.data.is_empty()
    }

    /// Replaces what an earlier command replied.
    pub(super) fn reply(&mut self, bytes: &[u8]) {
        self.replies.clear();
        self.replies.extend(bytes);
    }

    /// Adds data, all of it or none.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let fits = self.data.len() + bytes.len() <= CAPACITY;
        if fits {
            self.data.extend(bytes);
        }
        fits
    }

    pub(super) fn pop(&mut self) -> u8 {
        if let Some(byte) = self.replies.pop_front().or_else(|| self.data.pop_front()) {
            self.last = byte;
        }
        self.last
    }

    /// The wire form, and where replies end in it.
    pub(super) fn save(&self, write_cmd: i32) -> (Ps2State, Option<i32>) {
        let bytes: Vec<u8> = self.replies.iter().chain(&self.data).copied().collect();
        let mut ring = [0; RING];
        ring[..bytes.len()].copy_from_slice(&bytes);
        // Where nothing was queued the last byte stays in the ring before the read position.
        ring[RING - 1] = self.last;
        let count = bytes.len() as i32;
        let state = Ps2State { write_cmd, rptr: 0, wptr: count, count, data: ring.into() };
        let replies = (!self.replies.is_empty()).then_some(self.replies.len() as i32);
        (state, replies)
    }

    pub(super) fn load(wire: &Ps2State, replies: Option<i32>) -> Self {
        let start = wire.rptr as usize % RING;
        let at = |n: usize| wire.data[(start + n) % RING];
        let count = (wire.count.max(0) as usize).min(CAPACITY * 2);
        let replies = replies.filter(|&r| r >= 0).map_or(0, |r| (r as usize + RING - start) % RING).min(count);
        Self { replies: (0..replies).map(at).collect(), data: (replies..count).map(at).collect(), last: at(RING - 1) }
    }
}

impl Ps2State {
    pub(super) fn validate(&self, replies: Option<i32>) -> Result<(), LoadError> {
        let inside = |n: i32| (0..RING as i32).contains(&n);
        if !inside(self.rptr)
            || !inside(self.wptr)
            || !(0..=RING as i32).contains(&self.count)
            || replies.is_some_and(|r| !inside(r) && r != -1)
            || !(NO_COMMAND..=255).contains(&self.write_cmd)
        {
            return Err(LoadError::invalid("PS/2: the queue is out of range"));
        }
        Ok(())
    }
}
