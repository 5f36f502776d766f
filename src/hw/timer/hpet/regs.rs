//! Registers of the HPET (IA-PC HPET Specification 1.0a).

use lockstep_vmstate::Timer;

use super::vmstate::{HpetState, HpetTimerState, OffsetState, RtcLevelState};

pub(super) const TIMERS: usize = 3;
/// Lower half of the capabilities: revision 1, three timers, a 64-bit counter, legacy replacement, vendor 8086h.
pub const HPET_BLOCK_ID: u32 = 0x8086_a201;
/// Upper half: the period, 10 ns in femtoseconds.
const PERIOD_FS: u64 = 10_000_000;
const NS_PER_TICK: i128 = 10;
/// Periodic interrupts come at most this often, in nanoseconds: a guest cannot keep the host busy with nothing else.
const SHORTEST_PERIOD: i64 = 100_000;

const CONFIG_ENABLE: u64 = 1;
const CONFIG_LEGACY: u64 = 2;

const TN_LEVEL: u64 = 1 << 1;
const TN_ENABLE: u64 = 1 << 2;
const TN_PERIODIC: u64 = 1 << 3;
const TN_CAN_PERIODIC: u64 = 1 << 4;
const TN_64_BIT: u64 = 1 << 5;
const TN_SET_VALUE: u64 = 1 << 6;
const TN_32_BIT: u64 = 1 << 8;
const TN_WRITABLE: u64 = 0x7f4e;
/// Interrupts that a timer may be routed to: I/O APIC input 2.
const ROUTES: u64 = 1 << 2;

/// A change of an interrupt: a level, or a pulse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IrqChange {
    pub(super) route: usize,
    pub(super) level: Option<bool>,
}

#[derive(Clone, Debug, PartialEq)]
struct Comparator {
    config: u64,
    value: u64,
    fsb: u64,
    period: u64,
    /// A 32-bit one-shot timer also interrupts when the counter wraps.
    wrap: bool,
    /// The counter's value to wait for.
    target: u64,
    deadline: Option<i64>,
    last: i64,
}

/// The registers.
#[derive(Clone, Debug, PartialEq)]
pub struct HpetRegs {
    config: u64,
    status: u64,
    /// The counter while it stands.
    counter: u64,
    /// While it counts: its time less the clock's, in nanoseconds.
    offset: i128,
    timers: [Comparator; TIMERS],
    irqs: Vec<IrqChange>,
}

impl Default for HpetRegs {
    fn default() -> Self {
        let comparator = Comparator {
            config: TN_CAN_PERIODIC | TN_64_BIT | ROUTES << 32,
            value: u64::MAX,
            fsb: 0,
            period: 0,
            wrap: false,
            target: u64::MAX,
            deadline: None,
            last: 0,
        };
        Self {
            config: 0,
            status: 0,
            counter: 0,
            offset: 0,
            timers: std::array::from_fn(|_| comparator.clone()),
            irqs: vec![],
        }
    }
}

/// Replaces `len` bytes at byte `shift` of a value.
fn deposit(old: u64, at: u64, len: u32, value: u64) -> u64 {
    if len >= 8 {
        return value;
    }
    let (shift, mask) = (at * 8, (1u64 << (len * 8)) - 1);
    old & !(mask << shift) | (value & mask) << shift
}

impl HpetRegs {
    fn enabled(&self) -> bool {
        self.config & CONFIG_ENABLE != 0
    }

    pub(super) fn legacy(&self) -> bool {
        self.config & CONFIG_LEGACY != 0
    }

    pub(super) fn take_irqs(&mut self) -> Vec<IrqChange> {
        std::mem::take(&mut self.irqs)
    }

    pub(super) fn deadline(&self, n: usize) -> Option<i64> {
        self.timers[n].deadline
    }

    fn ticks(&self, now: i64) -> u64 {
        if self.enabled() { ((i128::from(now) + self.offset) / NS_PER_TICK) as u64 } else { self.counter }
    }

    pub(super) fn read(&self, offset: u64, size: u32, now: i64) -> u64 {
        let (register, at) = (offset & !7, offset & 7);
        let value = match register {
            0x00 => u64::from(HPET_BLOCK_ID) | PERIOD_FS << 32,
            0x10 => self.config,
            0x20 => self.status,
            0xf0 => self.ticks(now),
            _ => match (self.timers.get((register.wrapping_sub(0x100) / 0x20) as usize), register & 0x18) {
                (Some(t), 0x00) => t.config,
                (Some(t), 0x08) => t.value,
                (Some(t), 0x10) => t.fsb,
                _ => 0,
            },
        };
        let value = value >> (at * 8);
        if size >= 8 { value } else { value & ((1 << (size * 8)) - 1) }
    }

    pub(super) fn write(&mut self, offset: u64, size: u32, value: u64, now: i64) {
        let (register, at) = (offset & !7, offset & 7);
        match register {
            0x10 => self.write_config(deposit(self.config, at, size, value), now),
            0x20 => {
                let cleared = deposit(0, at, size, value) & self.status;
                (0..TIMERS).filter(|n| cleared >> n & 1 != 0).for_each(|n| self.lower(n));
            }
            // The counter is set while it stands (section 2.3.7).
            0xf0 if !self.enabled() => self.counter = deposit(self.counter, at, size, value),
            0x100.. => {
                let n = ((register - 0x100) / 0x20) as usize;
                if n < TIMERS {
                    match register & 0x18 {
                        0x00 => self.write_timer_config(n, at, size, value, now),
                        0x08 => self.write_comparator(n, at, size, value, now),
                        0x10 => self.timers[n].fsb = deposit(self.timers[n].fsb, at, size, value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn write_config(&mut self, value: u64, now: i64) {
        let (was, is) = (self.enabled(), value & CONFIG_ENABLE != 0);
        if was && !is {
            self.counter = self.ticks(now);
            self.timers.iter_mut().for_each(|t| t.deadline = None);
        }
        self.config = value & (CONFIG_ENABLE | CONFIG_LEGACY);
        if !was && is {
            self.offset = i128::from(self.counter) * NS_PER_TICK - i128::from(now);
            (0..TIMERS).for_each(|n| self.start(n, now));
        }
    }

    fn write_timer_config(&mut self, n: usize, at: u64, size: u32, value: u64, now: i64) {
        let old = self.timers[n].config;
        let new = deposit(old, at, size, value) & TN_WRITABLE | old & !TN_WRITABLE;
        if old & !new & TN_LEVEL != 0 {
            self.lower(n);
        }
        let timer = &mut self.timers[n];
        timer.config = new;
        if new & TN_32_BIT != 0 {
            timer.value &= 0xffff_ffff;
            timer.period &= 0xffff_ffff;
        }
        if new & !old & TN_ENABLE != 0 && self.status >> n & 1 != 0 {
            self.raise(n);
        }
        if self.enabled() {
            self.start(n, now);
        }
    }

    fn write_comparator(&mut self, n: usize, at: u64, size: u32, value: u64, now: i64) {
        let timer = &mut self.timers[n];
        let (mut value, mut size) = (value, size);
        if timer.config & TN_32_BIT != 0 {
            if at != 0 {
                return;
            }
            (value, size) = (value & 0xffff_ffff, size.min(8));
        }
        let periodic = timer.config & TN_PERIODIC != 0;
        if !periodic || timer.config & TN_SET_VALUE != 0 {
            timer.value = deposit(timer.value, at, size, value);
        }
        if periodic {
            timer.period = deposit(timer.period, at, size, value);
        }
        timer.config &= !TN_SET_VALUE;
        if self.enabled() {
            self.start(n, now);
        }
    }

    /// Finds the counter's next value that matches the comparator.
    fn next_match(timer: &Comparator, ticks: u64) -> u64 {
        if timer.config & TN_32_BIT == 0 {
            return timer.value;
        }
        let same = ticks & !0xffff_ffff | timer.value & 0xffff_ffff;
        if same < ticks { same.wrapping_add(1 << 32) } else { same }
    }

    fn start(&mut self, n: usize, now: i64) {
        let ticks = self.ticks(now);
        let timer = &mut self.timers[n];
        timer.wrap = false;
        timer.target = Self::next_match(timer, ticks);
        if timer.config & (TN_32_BIT | TN_PERIODIC) == TN_32_BIT {
            let wrap = (ticks | 0xffff_ffff).wrapping_add(1);
            if timer.target > wrap {
                timer.wrap = true;
                timer.target = wrap;
            }
        }
        self.arm(n);
    }

    fn arm(&mut self, n: usize) {
        let offset = self.offset;
        let timer = &mut self.timers[n];
        let at = i128::from(timer.target) * NS_PER_TICK - offset;
        let mut at = i64::try_from(at).unwrap_or(i64::MAX);
        if timer.config & TN_PERIODIC != 0 && timer.period != 0 {
            at = at.max(timer.last.saturating_add(SHORTEST_PERIOD));
        }
        timer.deadline = Some(at);
    }

    pub(super) fn expired(&mut self, n: usize, now: i64) {
        if !self.enabled() || self.timers[n].deadline.is_none() {
            return;
        }
        let ticks = self.ticks(now);
        let timer = &mut self.timers[n];
        timer.deadline = None;
        timer.last = now;
        if timer.config & TN_PERIODIC != 0 && timer.period != 0 {
            let missed = if ticks >= timer.target { (ticks - timer.target) / timer.period + 1 } else { 0 };
            timer.target = timer.target.wrapping_add(missed.wrapping_mul(timer.period));
            timer.value = if timer.config & TN_32_BIT != 0 { timer.target & 0xffff_ffff } else { timer.target };
            self.arm(n);
        } else if timer.wrap {
            timer.wrap = false;
            timer.target = Self::next_match(timer, ticks);
            self.arm(n);
        }
        self.raise(n);
    }

    fn route(&self, n: usize) -> usize {
        match (self.legacy(), n) {
            (true, 0) => super::LEGACY_PIT,
            (true, 1) => super::LEGACY_RTC,
            _ => (self.timers[n].config >> 9 & 0x1f) as usize,
        }
    }

    fn raise(&mut self, n: usize) {
        let (config, route) = (self.timers[n].config, self.route(n));
        let level = config & TN_LEVEL != 0;
        if level {
            self.status |= 1 << n;
        }
        if config & TN_ENABLE != 0 && self.enabled() {
            self.irqs.push(IrqChange { route, level: level.then_some(true) });
        }
    }

    fn lower(&mut self, n: usize) {
        self.status &= !(1 << n);
        self.irqs.push(IrqChange { route: self.route(n), level: Some(false) });
    }

    pub(super) fn save(&self, now: i64, rtc_level: bool) -> HpetState {
        let timer = |(n, t): (usize, &Comparator)| HpetTimerState {
            tn: n as u8,
            config: t.config,
            cmp: t.value,
            fsb: t.fsb,
            period: t.period,
            wrap_flag: t.wrap.into(),
            qemu_timer: Timer(t.deadline),
        };
        HpetState {
            config: self.config,
            isr: self.status,
            hpet_counter: self.ticks(now),
            num_timers_save: TIMERS as u8,
            timer: self.timers.iter().enumerate().map(timer).collect(),
            rtc_irq_level: rtc_level.then_some(RtcLevelState { rtc_irq_level: 1 }),
            offset: self.enabled().then_some(OffsetState { hpet_offset: self.offset as u64 }),
        }
    }

    pub(super) fn load(&mut self, wire: &HpetState, now: i64) {
        *self = Self { config: wire.config & 3, status: wire.isr, counter: wire.hpet_counter, ..Self::default() };
        self.offset = match &wire.offset {
            Some(o) => i128::from(o.hpet_offset as i64),
            None => i128::from(wire.hpet_counter) * NS_PER_TICK - i128::from(now),
        };
        for (timer, saved) in self.timers.iter_mut().zip(&wire.timer) {
            timer.config = saved.config;
            timer.value = saved.cmp;
            timer.fsb = saved.fsb;
            timer.period = saved.period;
            timer.wrap = saved.wrap_flag != 0;
            timer.target = Self::next_match(timer, wire.hpet_counter);
            timer.deadline = saved.qemu_timer.0;
            timer.last = now.saturating_sub(SHORTEST_PERIOD);
        }
    }
}
