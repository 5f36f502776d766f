//! The high precision event timer.

mod regs;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock, Weak};

use lockstep_event::{Clock, Clocks, Timer};
use lockstep_memory::{AccessRules, Region};
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub use regs::{HPET_BLOCK_ID, HpetRegs};
pub use vmstate::HpetState;

use super::pit::PitBackend;
use crate::core::{Board, IrqLine, IrqSink, io_handler};

/// Where it is.
pub const HPET_ADDRESS: u64 = 0xfed0_0000;
/// Size of its registers, in bytes.
pub const HPET_SIZE: u64 = 0x400;
/// Number of its timers.
pub const TIMERS: usize = regs::TIMERS;

/// Interrupts that timers 0 and 1 take from the 8254 and the clock.
const LEGACY_PIT: usize = 0;
const LEGACY_RTC: usize = 8;

/// The timer block. The clock's interrupt goes through it ([`rtc_line`](Self::rtc_line)).
pub struct Hpet {
    state: Mutex<State>,
    clocks: Clocks,
    gsis: Vec<IrqLine>,
    timers: [Timer; TIMERS],
    pit: OnceLock<Arc<dyn PitBackend>>,
}

struct State {
    regs: HpetRegs,
    rtc_level: bool,
}

impl Hpet {
    /// A timer block at its usual address that drives global system interrupts. It is not on the map until [`map`](Self::map).
    pub fn new(board: &Board, gsis: &[IrqLine]) -> Arc<Self> {
        let clocks = board.clocks.clone();
        Arc::new_cyclic(|this: &Weak<Self>| {
            let timer = |n: usize| {
                let this = this.clone();
                clocks.timer(Clock::Virtual, move || {
                    this.upgrade().iter().for_each(|h| h.with(|s, now| s.regs.expired(n, now)));
                })
            };
            Self {
                state: Mutex::new(State { regs: HpetRegs::default(), rtc_level: false }),
                clocks: clocks.clone(),
                gsis: gsis.to_vec(),
                timers: std::array::from_fn(timer),
                pit: OnceLock::new(),
            }
        })
    }

    /// Shows the registers, and takes `pit`, whose interrupt it may replace.
    pub fn map(self: &Arc<Self>, board: &Board, pit: Arc<dyn PitBackend>) {
        let _ = self.pit.set(pit);
        let (reader, writer) = (self.clone(), self.clone());
        let handler = io_handler(
            AccessRules::sizes(4, 8),
            move |offset, size| reader.with(|s, now| s.regs.read(offset, size, now)),
            move |offset, size, value| writer.write(offset, size, value),
        );
        board.memory.add(HPET_ADDRESS, &Region::io("hpet", HPET_SIZE, handler));
    }

    /// Where the clock's interrupt goes: on to ISA interrupt 8 unless timer 1 has it.
    pub fn rtc_line(self: &Arc<Self>) -> IrqLine {
        IrqLine::new(self.clone(), LEGACY_RTC as u32)
    }

    fn write(&self, offset: u64, size: u32, value: u64) {
        let legacy = self.with(|s, now| {
            let before = s.regs.legacy();
            s.regs.write(offset, size, value, now);
            (s.regs.legacy() != before).then(|| s.regs.legacy())
        });
        if let Some(replaced) = legacy {
            self.replace_legacy(replaced);
        }
    }

    /// The 8254's interrupt is taken from it, or given back.
    fn replace_legacy(&self, replaced: bool) {
        if let Some(pit) = self.pit.get() {
            pit.disable_irq(replaced);
        }
        let state = self.state.lock();
        self.gsis[LEGACY_RTC].set(!replaced && state.rtc_level);
    }

    fn with<T>(&self, f: impl FnOnce(&mut State, i64) -> T) -> T {
        let mut state = self.state.lock();
        let result = f(&mut state, self.clocks.now_ns(Clock::Virtual));
        for change in state.regs.take_irqs() {
            let Some(line) = self.gsis.get(change.route) else { continue };
            match change.level {
                Some(level) => line.set(level),
                None => line.pulse(),
            }
        }
        self.follow(&state.regs);
        result
    }

    fn follow(&self, regs: &HpetRegs) {
        for (n, timer) in self.timers.iter().enumerate() {
            if timer.deadline() != regs.deadline(n) {
                match regs.deadline(n) {
                    Some(at) => timer.arm(at),
                    None => timer.cancel(),
                }
            }
        }
    }

    /// Resets it.
    pub fn reset(&self) {
        let was_legacy = self.with(|s, _| {
            let was = s.regs.legacy();
            s.regs = HpetRegs::default();
            s.rtc_level = false;
            was
        });
        if was_legacy {
            self.replace_legacy(false);
        }
    }
}

impl IrqSink for Hpet {
    fn set_irq(&self, n: u32, level: bool) {
        // The clock holds its lock here; this lock is below it.
        let mut state = self.state.lock();
        if n as usize == LEGACY_RTC {
            state.rtc_level = level;
            if !state.regs.legacy() {
                self.gsis[LEGACY_RTC].set(level);
            }
        } else if !state.regs.legacy() {
            self.gsis[LEGACY_PIT].set(level);
        }
    }
}

impl Snapshot for Hpet {
    type Wire = HpetState;

    fn snapshot(&self) -> HpetState {
        let state = self.state.lock();
        state.regs.save(self.clocks.now_ns(Clock::Virtual), state.rtc_level)
    }

    fn validate(&self, wire: &HpetState) -> Result<(), LoadError> {
        wire.validate()
    }

    fn restore(&self, wire: HpetState) {
        let mut state = self.state.lock();
        state.regs.load(&wire, self.clocks.now_ns(Clock::Virtual));
        state.rtc_level = wire.rtc_irq_level.is_some_and(|r| r.rtc_irq_level != 0);
        self.follow(&state.regs);
    }
}
