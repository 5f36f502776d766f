//! The MC146818A real-time clock with its 128 bytes of CMOS RAM.

mod calendar;
mod regs;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use lockstep_event::{Clock, Clocks, Timer};
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub use calendar::DateTime;
pub use regs::RtcRegs;
pub use vmstate::RtcState;

use crate::core::{Board, IrqLine, byte_registers};

/// What the clock starts with (`-rtc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtcConfig {
    /// The clock it counts with.
    pub clock: Clock,
    /// The guest's time at the start, in seconds since 1970.
    pub base: i64,
}

type ChangeHook = Box<dyn Fn(i64) + Send + Sync>;

/// The clock.
pub struct Rtc {
    regs: Mutex<RtcRegs>,
    clocks: Clocks,
    clock: Clock,
    irq: IrqLine,
    periodic: Timer,
    update: Timer,
    changed: Mutex<Option<ChangeHook>>,
}

impl Rtc {
    /// A clock at its usual ports.
    pub fn new(board: &Board, config: RtcConfig, irq: IrqLine) -> Arc<Self> {
        let clocks = board.clocks.clone();
        let rtc = Arc::new_cyclic(|this: &std::sync::Weak<Self>| {
            let timer = |expired: fn(&Self)| {
                let this = this.clone();
                clocks.timer(config.clock, move || this.upgrade().iter().for_each(|rtc| expired(rtc)))
            };
            let now = clocks.now_ns(config.clock);
            Self {
                regs: Mutex::new(RtcRegs::new(config.base, now)),
                clocks: clocks.clone(),
                clock: config.clock,
                irq,
                periodic: timer(|rtc| rtc.with(|r, _| r.periodic_expired())),
                update: timer(|rtc| rtc.with(|r, now| r.update_expired(now))),
                changed: Mutex::default(),
            }
        });
        rtc.with(|_, _| ());
        let index =
            byte_registers("rtc-index", 1, &rtc, |_: &Self, _| 0xff, |r: &Self, _, v| r.with(|r, _| r.select(v)));
        let data = byte_registers("rtc", 1, &rtc, |r: &Self, _| r.with(RtcRegs::read), |r: &Self, _, v| r.write(v));
        board.ports.add(0x70, &index);
        board.ports.add(0x71, &data);
        rtc
    }

    /// Sets a byte of CMOS RAM other than as a guest.
    pub fn set_cmos(&self, at: usize, value: u8) {
        self.regs.lock().set_cmos(at, value);
    }

    /// A byte of CMOS RAM.
    pub fn cmos(&self, at: usize) -> u8 {
        self.regs.lock().cmos(at)
    }

    /// The guest's date and time.
    pub fn guest_time(&self) -> DateTime {
        self.with(|r, now| r.guest_time(now))
    }

    /// Has `f` called with the guest's time in seconds when the guest sets its clock.
    pub fn on_change(&self, f: impl Fn(i64) + Send + Sync + 'static) {
        *self.changed.lock() = Some(Box::new(f));
    }

    /// Resets what a reset resets: interrupts, not the time.
    pub fn reset(&self) {
        self.with(|r, now| r.reset(now));
    }

    fn write(&self, value: u8) {
        let set = self.with(|r, now| r.write(value, now));
        if let (Some(seconds), Some(hook)) = (set, &*self.changed.lock()) {
            hook(seconds);
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut RtcRegs, i64) -> T) -> T {
        let mut regs = self.regs.lock();
        let result = f(&mut regs, self.clocks.now_ns(self.clock));
        self.follow(&regs);
        result
    }

    fn follow(&self, regs: &RtcRegs) {
        self.irq.set(regs.irq());
        self.follow_timers(regs);
    }

    fn follow_timers(&self, regs: &RtcRegs) {
        for (timer, deadline) in [(&self.periodic, regs.periodic_deadline()), (&self.update, regs.update_deadline())] {
            if timer.deadline() != deadline {
                match deadline {
                    Some(at) => timer.arm(at),
                    None => timer.cancel(),
                }
            }
        }
    }
}

impl Snapshot for Rtc {
    type Wire = RtcState;

    fn snapshot(&self) -> RtcState {
        self.regs.lock().save()
    }

    fn validate(&self, wire: &RtcState) -> Result<(), LoadError> {
        wire.validate()
    }

    fn restore(&self, wire: RtcState) {
        let mut regs = self.regs.lock();
        regs.load(&wire);
        // The interrupt controllers load their inputs themselves: a change now would be an interrupt that the guest did not have.
        self.follow_timers(&regs);
    }
}
