//! `filter-buffer`: keeps packets and lets them go all at once, every so often.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use lockstep_event::{Clock, Clocks, Timer};
use parking_lot::Mutex;

use super::{Action, FilterNode};
use crate::netdev::{Direction, Netdev};
use crate::packet::Frame;

/// Packets kept; more are lost.
const MAX_KEPT: usize = 10_000;

/// A buffer.
pub(crate) struct Buffer {
    interval_us: AtomicU32,
    kept: Mutex<Vec<(Frame, Direction)>>,
    lost: AtomicU64,
    timer: Mutex<Option<Timer>>,
}

impl Buffer {
    pub fn new(interval_us: u32) -> Self {
        Self {
            interval_us: AtomicU32::new(interval_us),
            kept: Mutex::default(),
            lost: AtomicU64::new(0),
            timer: Mutex::default(),
        }
    }

    pub fn interval(&self) -> u32 {
        self.interval_us.load(Ordering::Relaxed)
    }

    pub fn set_interval(&self, us: u32) {
        self.interval_us.store(us, Ordering::Relaxed);
    }

    pub fn keep(&self, frame: Frame, direction: Direction) {
        let mut kept = self.kept.lock();
        if kept.len() < MAX_KEPT {
            kept.push((frame, direction));
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets everything go.
    pub fn release(&self, node: &FilterNode, netdev: &Arc<Netdev>) {
        let kept = std::mem::take(&mut *self.kept.lock());
        for (frame, direction) in kept {
            netdev.pass_on(frame, direction, node);
        }
    }

    /// Starts the clock (guest time: a stopped machine's packets stay).
    pub fn start(node: &Arc<FilterNode>, netdev: &Arc<Netdev>, clocks: &Clocks) {
        let Action::Buffer(buffer) = &node.action else { return };
        let (weak, target, clock): (Weak<FilterNode>, _, _) = (Arc::downgrade(node), netdev.clone(), clocks.clone());
        let timer = clocks.timer(Clock::Virtual, move || {
            let Some(node) = weak.upgrade() else { return };
            let Action::Buffer(buffer) = &node.action else { return };
            buffer.release(&node, &target);
            buffer.arm(&clock);
        });
        *buffer.timer.lock() = Some(timer);
        buffer.arm(clocks);
    }

    fn arm(&self, clocks: &Clocks) {
        if let Some(timer) = &*self.timer.lock() {
            timer.arm(clocks.now_ns(Clock::Virtual) + i64::from(self.interval()) * 1000);
        }
    }

    pub fn stop(&self) {
        // Taken out first: dropping waits for nothing, but must not happen under the lock that a callback takes.
        let timer = self.timer.lock().take();
        drop(timer);
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("kept", &self.kept.lock().len()).finish_non_exhaustive()
    }
}
