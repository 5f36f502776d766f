//! The three counters of an 8254 (Intel 231164-005).

use super::{ChannelInfo, PitChannelState, PitState};

/// The frequency of the counters' input, in Hz.
pub const PIT_HZ: u32 = 1_193_182;

const NS_PER_SECOND: i128 = 1_000_000_000;

/// How bytes of a count are transferred; 1 is the low byte alone.
const MSB: u8 = 2;
const WORD_FIRST: u8 = 3;
const WORD_SECOND: u8 = 4;

#[derive(Clone, Debug, PartialEq)]
struct Counter {
    state: PitChannelState,
}

impl Counter {
    fn new(gate: bool, now: i64) -> Self {
        let state = PitChannelState {
            count: 0x1_0000,
            mode: 3,
            gate: gate.into(),
            count_load_time: now,
            ..PitChannelState::default()
        };
        Self { state }
    }

    /// Modes 6 and 7 are 2 and 3.
    fn mode(&self) -> u8 {
        match self.state.mode & 7 {
            m @ 6..=7 => m - 4,
            m => m,
        }
    }

    fn count(&self) -> i64 {
        i64::from(self.state.count.clamp(1, 0x1_0000))
    }

    /// Input cycles since the count was loaded.
    fn elapsed(&self, now: i64) -> i64 {
        let ns = i128::from(now) - i128::from(self.state.count_load_time);
        (ns * i128::from(PIT_HZ) / NS_PER_SECOND) as i64
    }

    fn counting_element(&self, now: i64) -> u16 {
        let (d, count) = (self.elapsed(now), self.count());
        let value = match self.mode() {
            0 | 1 | 4 | 5 => count - d,
            3 => count - (2 * d).rem_euclid(count),
            _ => count - d.rem_euclid(count),
        };
        value as u16
    }

    fn output(&self, now: i64) -> bool {
        let (d, count) = (self.elapsed(now), self.count());
        match self.mode() {
            0 => d >= count,
            1 => d < count,
            2 => d != 0 && d.rem_euclid(count) == 0,
            3 => d.rem_euclid(count) < (count + 1) / 2,
            _ => d == count,
        }
    }

    /// When the output changes next after `now`.
    fn next_change(&self, now: i64) -> Option<i64> {
        let (d, count) = (self.elapsed(now), self.count());
        let next = match self.mode() {
            0 | 1 if d < count => count,
            0 | 1 => return None,
            2 => {
                let base = d - d.rem_euclid(count);
                if d == base && d != 0 { base + 1 } else { base + count }
            }
            3 => {
                let base = d - d.rem_euclid(count);
                let half = (count + 1) / 2;
                if d - base < half { base + half } else { base + count }
            }
            _ if d < count => count,
            _ if d == count => count + 1,
            _ => return None,
        };
        // Rounded up: at that time the cycle is complete.
        let ns = (i128::from(next) * NS_PER_SECOND + i128::from(PIT_HZ) - 1) / i128::from(PIT_HZ);
        let at = i128::from(self.state.count_load_time) + ns;
        i64::try_from(at).ok().map(|at| at.max(now.saturating_add(1)))
    }

    fn load(&mut self, count: u16, now: i64) {
        self.state.count = if count == 0 { 0x1_0000 } else { count.into() };
        self.state.count_load_time = now;
    }

    /// True when counting starts anew.
    fn set_gate(&mut self, level: bool, now: i64) -> bool {
        let rises = level && self.state.gate == 0;
        self.state.gate = level.into();
        let restarts = rises && matches!(self.mode(), 1 | 2 | 3 | 5);
        if restarts {
            self.state.count_load_time = now;
        }
        restarts
    }

    fn latch_count(&mut self, now: i64) {
        if self.state.count_latched == 0 {
            self.state.latched_count = self.counting_element(now);
            self.state.count_latched = self.state.rw_mode;
        }
    }

    fn latch_status(&mut self, now: i64) {
        let s = &mut self.state;
        if s.status_latched == 0 {
            s.status = s.rw_mode << 4 | s.mode << 1 | s.bcd;
            s.status_latched = 1;
            let output = self.output(now);
            self.state.status |= u8::from(output) << 7;
        }
    }

    fn control(&mut self, value: u8, now: i64) {
        let access = value >> 4 & 3;
        if access == 0 {
            return self.latch_count(now);
        }
        let s = &mut self.state;
        s.rw_mode = access;
        s.read_state = access;
        s.write_state = access;
        s.mode = value >> 1 & 7;
        s.bcd = value & 1;
    }

    /// True when a count was loaded.
    fn write(&mut self, value: u8, now: i64) -> bool {
        let s = &mut self.state;
        let count = match s.write_state {
            MSB => u16::from(value) << 8,
            WORD_FIRST => {
                s.write_latch = value;
                s.write_state = WORD_SECOND;
                return false;
            }
            WORD_SECOND => {
                s.write_state = WORD_FIRST;
                u16::from_le_bytes([s.write_latch, value])
            }
            _ => value.into(),
        };
        self.load(count, now);
        true
    }

    fn read(&mut self, now: i64) -> u8 {
        if self.state.status_latched != 0 {
            self.state.status_latched = 0;
            return self.state.status;
        }
        if self.state.count_latched != 0 {
            let [low, high] = self.state.latched_count.to_le_bytes();
            let (byte, next) = match self.state.count_latched {
                MSB => (high, 0),
                WORD_FIRST => (low, MSB),
                _ => (low, 0),
            };
            self.state.count_latched = next;
            return byte;
        }
        let [low, high] = self.counting_element(now).to_le_bytes();
        match self.state.read_state {
            MSB => high,
            WORD_FIRST => {
                self.state.read_state = WORD_SECOND;
                low
            }
            WORD_SECOND => {
                self.state.read_state = WORD_FIRST;
                high
            }
            _ => low,
        }
    }
}

/// All registers. Times are in nanoseconds of the virtual clock.
#[derive(Clone, Debug, PartialEq)]
pub struct PitRegs {
    counters: [Counter; 3],
    irq_disabled: bool,
    next_change: Option<i64>,
    reload: bool,
}

impl PitRegs {
    /// As after a reset at a time.
    pub fn new(now: i64) -> Self {
        Self {
            counters: std::array::from_fn(|n| Counter::new(n != 2, now)),
            irq_disabled: false,
            next_change: None,
            reload: false,
        }
    }

    pub(super) fn read(&mut self, offset: usize, now: i64) -> u8 {
        // The control word cannot be read.
        self.counters.get_mut(offset).map_or(0, |c| c.read(now))
    }

    pub(super) fn write(&mut self, offset: usize, value: u8, now: i64) {
        match (offset, value >> 6) {
            (3, 3) => {
                for (n, counter) in self.counters.iter_mut().enumerate() {
                    if value & 2 << n != 0 {
                        if value & 0x20 == 0 {
                            counter.latch_count(now);
                        }
                        if value & 0x10 == 0 {
                            counter.latch_status(now);
                        }
                    }
                }
            }
            (3, channel) => self.counters[usize::from(channel)].control(value, now),
            (channel, _) => {
                let loaded = self.counters[channel].write(value, now);
                self.reload |= loaded && channel == 0;
            }
        }
    }

    /// Sets a channel's gate.
    pub fn set_gate(&mut self, channel: usize, level: bool, now: i64) {
        let restarted = self.counters[channel].set_gate(level, now);
        self.reload |= restarted && channel == 0;
    }

    /// What a channel does at a time.
    pub fn info(&self, channel: usize, now: i64) -> ChannelInfo {
        let counter = &self.counters[channel];
        ChannelInfo { gate: counter.state.gate != 0, output: counter.output(now), count: counter.count() as u32 }
    }

    /// Whether channel 0 began to count anew since this was asked last.
    pub(super) fn take_reload(&mut self) -> bool {
        std::mem::take(&mut self.reload)
    }

    pub(super) fn next_change(&self) -> Option<i64> {
        self.next_change
    }

    pub(super) fn irq_disabled(&self) -> bool {
        self.irq_disabled
    }

    pub(super) fn set_irq_disabled(&mut self, disabled: bool) {
        self.irq_disabled = disabled;
    }

    /// Channel 0's output at a time; finds when it changes next.
    pub(super) fn advance(&mut self, at: i64) -> bool {
        self.next_change = self.counters[0].next_change(at);
        self.counters[0].output(at)
    }

    /// The wire form.
    pub fn save(&self) -> PitState {
        let next = self.next_change.unwrap_or(-1);
        let mut channels = self.counters.clone().map(|c| c.state);
        channels[0].next_transition_time = next;
        PitState { irq_disabled: self.irq_disabled.into(), channels, next_transition_time: next }
    }

    /// From the wire form, which was validated.
    pub fn load(&mut self, wire: &PitState) {
        self.counters = wire.channels.clone().map(|state| Counter { state });
        self.irq_disabled = wire.irq_disabled != 0;
        self.next_change = (wire.next_transition_time != -1).then_some(wire.next_transition_time);
        self.reload = false;
    }
}
