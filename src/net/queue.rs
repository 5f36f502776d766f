//! Frames on their way to a network card: delivered in order, kept while the card or the machine does not take them.

use std::collections::VecDeque;

use crate::packet::Frame;

use super::sync::Mutex;

/// Frames kept for a card that does not receive.
const MAX_FRAMES: usize = 10_000;
/// Bytes kept.
const MAX_BYTES: usize = 16 << 20;
/// With so many frames kept, sources that can wait should.
const HIGH_WATER: usize = 256;

/// A queue whose consumer may refuse.
#[derive(Debug, Default)]
pub(crate) struct PacketQueue {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    frames: VecDeque<Frame>,
    bytes: usize,
    delivering: bool,
    /// Someone has become ready while a delivery was under way.
    again: bool,
    /// How often everything was forgotten: a frame that was being delivered then is forgotten, too.
    epoch: u64,
    dropped: u64,
}

impl PacketQueue {
    /// Adds a frame and delivers what can be delivered.
    pub fn push(&self, frame: Frame, ready: impl Fn() -> bool, deliver: impl FnMut(&Frame) -> bool) {
        {
            let mut inner = self.inner.lock();
            if inner.frames.len() >= MAX_FRAMES || inner.bytes >= MAX_BYTES {
                inner.dropped += 1;
                return;
            }
            inner.bytes += frame.data.len();
            inner.frames.push_back(frame);
        }
        self.pump(ready, deliver);
    }

    /// Delivers while `ready` and `deliver` say yes. May be called from inside a delivery, and from any thread.
    pub fn pump(&self, ready: impl Fn() -> bool, mut deliver: impl FnMut(&Frame) -> bool) {
        let mut inner = self.inner.lock();
        if inner.delivering {
            inner.again = true;
            return;
        }
        loop {
            inner.again = false;
            if inner.frames.is_empty() {
                return;
            }
            inner.delivering = true;
            let Some(frame) = inner.frames.pop_front() else { return };
            let epoch = inner.epoch;
            drop(inner);
            // The card is asked with the lock free: it may call back.
            let taken = ready() && deliver(&frame);
            inner = self.inner.lock();
            inner.delivering = false;
            if inner.epoch != epoch {
                continue;
            }
            if taken {
                inner.bytes -= frame.data.len();
            } else {
                inner.frames.push_front(frame);
                if !inner.again {
                    return;
                }
            }
        }
    }

    /// Whether sources that can wait may send more.
    pub fn has_room(&self) -> bool {
        self.inner.lock().frames.len() < HIGH_WATER
    }

    /// Forgets all frames; how many there were.
    pub fn clear(&self) -> usize {
        let mut inner = self.inner.lock();
        inner.bytes = 0;
        inner.epoch += 1;
        std::mem::take(&mut inner.frames).len()
    }

    /// Copies of all frames, in order.
    pub fn snapshot(&self) -> Vec<Frame> {
        self.inner.lock().frames.iter().cloned().collect()
    }

    /// Frames refused for lack of room.
    pub fn dropped(&self) -> u64 {
        self.inner.lock().dropped
    }
}
