//! The floppy disk controller with one 2.88 MB drive that never has a medium, as a PC has it that boots from elsewhere.

mod regs;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use lockstep_event::{Clock, Clocks, Timer};
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub use regs::FdcRegs;
pub use vmstate::FdcState;

use crate::core::{Board, IrqLine, byte_registers};

/// How long a drive looks for a sector's header, in nanoseconds.
const READ_ID_NS: i64 = 20_000_000;

/// The controller.
pub struct Fdc {
    regs: Mutex<FdcRegs>,
    clocks: Clocks,
    irq: IrqLine,
    timer: Timer,
}

impl Fdc {
    /// The controller at its usual ports.
    pub fn new(board: &Board, irq: IrqLine) -> Arc<Self> {
        let clocks = board.clocks.clone();
        let fdc = Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = clocks.timer(Clock::Virtual, move || {
                this.upgrade().iter().for_each(|f| f.with(FdcRegs::id_searched));
            });
            Self { regs: Mutex::default(), clocks: clocks.clone(), irq, timer }
        });
        // 3F6h is the disk controller's.
        for (port, size) in [(1, 5), (7, 1)] {
            let ports = byte_registers(
                "fdc",
                size,
                &fdc,
                move |f: &Self, at| f.with(|r| r.read(at + port)),
                move |f: &Self, at, value| f.with(|r| r.write(at + port, value)),
            );
            board.ports.add(0x3f0 + port, &ports);
        }
        fdc
    }

    fn with<T>(&self, f: impl FnOnce(&mut FdcRegs) -> T) -> T {
        let mut regs = self.regs.lock();
        let result = f(&mut regs);
        self.irq.set(regs.irq());
        match (regs.is_searching(), self.timer.deadline()) {
            (true, None) => self.timer.arm(self.clocks.now_ns(Clock::Virtual).saturating_add(READ_ID_NS)),
            (false, Some(_)) => self.timer.cancel(),
            _ => {}
        }
        result
    }

    /// Resets it.
    pub fn reset(&self) {
        self.with(|r| *r = FdcRegs::default());
    }
}

impl Snapshot for Fdc {
    type Wire = FdcState;

    fn snapshot(&self) -> FdcState {
        self.regs.lock().save(self.timer.deadline())
    }

    fn validate(&self, wire: &FdcState) -> Result<(), LoadError> {
        wire.validate()
    }

    fn restore(&self, wire: FdcState) {
        let mut regs = self.regs.lock();
        match regs.load(&wire) {
            Some(at) => self.timer.arm(at),
            None => self.timer.cancel(),
        }
    }
}
