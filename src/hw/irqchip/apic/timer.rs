//! The timer of a local APIC: it counts nanoseconds, divided.

use lockstep_vmstate::Wire;

use super::{regs::LVT_MASKED, vmstate::ApicState};

const MODE: u32 = 3 << 17;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 2 << 17;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ApicTimer {
    mode: u32,
    divide: u32,
    initial: u32,
    loaded_at: i64,
    next: i64,
    deadline: Option<i64>,
}

impl ApicTimer {
    /// The divisor as a power of two: the register's bits 3, 1 and 0, plus one (figure 11-10).
    fn shift(&self) -> u32 {
        ((self.divide & 3 | self.divide >> 1 & 4) + 1) & 7
    }

    fn elapsed(&self, now: i64) -> i64 {
        now.saturating_sub(self.loaded_at).max(0) >> self.shift()
    }

    pub(super) fn deadline(&self) -> Option<i64> {
        self.deadline
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    pub(super) fn initial_count(&self) -> u32 {
        self.initial
    }

    pub(super) fn current_count(&self, now: i64) -> u32 {
        let (elapsed, initial) = (self.elapsed(now), i64::from(self.initial));
        match self.mode {
            TSC_DEADLINE => 0,
            PERIODIC if initial > 0 => (initial - elapsed % (initial + 1)) as u32,
            _ => (initial - elapsed).max(0) as u32,
        }
    }

    pub(super) fn set_initial_count(&mut self, value: u32, now: i64) {
        if self.mode != TSC_DEADLINE {
            (self.initial, self.loaded_at) = (value, now);
        }
    }

    pub(super) fn set_divide(&mut self, value: u32, now: i64) {
        let left = self.current_count(now);
        self.divide = value & 0x0b;
        // Counting goes on from where it is.
        self.loaded_at = now.saturating_sub(i64::from(self.initial - left.min(self.initial)) << self.shift());
    }

    pub(super) fn set_mode(&mut self, entry: u32, now: i64) {
        let mode = entry & MODE;
        if (mode == TSC_DEADLINE) != (self.mode == TSC_DEADLINE) {
            // Changing to or from deadline mode disarms (section 11.5.4.1).
            (self.initial, self.deadline) = (0, None);
        }
        self.mode = mode;
        self.set_armed(entry, now);
    }

    /// Waits for the next time that the count reaches zero, if the entry is not masked.
    pub(super) fn set_armed(&mut self, entry: u32, now: i64) {
        if self.mode == TSC_DEADLINE {
            return;
        }
        let (elapsed, period) = (self.elapsed(now), i64::from(self.initial) + 1);
        let cycles = match self.mode {
            _ if self.initial == 0 || entry & LVT_MASKED != 0 => None,
            PERIODIC => Some((elapsed / period + 1) * period),
            _ if elapsed < period - 1 => Some(period),
            _ => None,
        };
        self.deadline = cycles.map(|c| self.loaded_at.saturating_add(c.saturating_mul(1 << self.shift())));
        if let Some(next) = self.deadline {
            self.next = next;
        }
    }

    pub(super) fn set_tsc_deadline(&mut self, at: Option<i64>) -> bool {
        if self.mode != TSC_DEADLINE {
            return false;
        }
        self.deadline = at;
        true
    }

    /// Whether it has come to its end.
    pub(super) fn expired(&mut self, now: i64) -> bool {
        let due = self.deadline.is_some_and(|at| at <= now);
        if due {
            self.deadline = None;
        }
        due
    }

    pub(super) fn save(&self) -> ApicState {
        ApicState {
            divide_conf: self.divide,
            count_shift: self.shift() as i32,
            initial_count: self.initial,
            initial_count_load_time: self.loaded_at,
            next_time: self.next,
            timer_expiry: self.deadline.unwrap_or(-1),
            ..Wire::absent()
        }
    }

    pub(super) fn load(wire: &ApicState) -> Self {
        Self {
            mode: wire.lvt[0] & MODE,
            divide: wire.divide_conf & 0x0b,
            initial: wire.initial_count,
            loaded_at: wire.initial_count_load_time,
            next: wire.next_time,
            deadline: (wire.timer_expiry != -1).then_some(wire.timer_expiry),
        }
    }
}
