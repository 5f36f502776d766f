//! The 16550A serial port.

mod device;
mod regs;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use lockstep_event::{Clock, Clocks, Timer};
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub use device::ISA_SERIAL;
pub use regs::UartRegs;
pub use vmstate::SerialState;

use super::CharSink;
use crate::core::{Board, IrqLine, byte_registers};

/// A serial port.
pub struct Serial {
    regs: Mutex<UartRegs>,
    clocks: Clocks,
    irq: IrqLine,
    sink: Arc<dyn CharSink>,
    timeout: Timer,
}

impl Serial {
    /// A serial port at `base`, whose other end is `sink`.
    pub fn new(board: &Board, base: u16, irq: IrqLine, sink: Arc<dyn CharSink>) -> Arc<Self> {
        let clocks = board.clocks.clone();
        let serial = Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timeout = clocks.timer(Clock::Virtual, move || {
                this.upgrade().iter().for_each(|s| s.with(|r, _| r.timeout_expired()));
            });
            Self { regs: Mutex::default(), clocks: clocks.clone(), irq, sink, timeout }
        });
        let registers = byte_registers(
            "serial",
            8,
            &serial,
            |s: &Self, offset| s.with(|r, now| r.read(offset as u8, now)),
            |s: &Self, offset, value| s.with(|r, now| r.write(offset as u8, value, now)),
        );
        board.ports.add(base.into(), &registers);
        serial
    }

    fn with<T>(&self, f: impl FnOnce(&mut UartRegs, i64) -> T) -> T {
        let (result, sent, room) = {
            let mut regs = self.regs.lock();
            let could = regs.room();
            let result = f(&mut regs, self.clocks.now_ns(Clock::Virtual));
            self.irq.set(regs.irq());
            self.follow_timeout(&regs);
            (result, regs.take_sent(), regs.room() > could)
        };
        // The other side may be slow: it is called with the lock let go.
        if !sent.is_empty() {
            self.sink.send(&sent);
        }
        if room {
            self.sink.can_receive_more();
        }
        result
    }

    fn follow_timeout(&self, regs: &UartRegs) {
        if self.timeout.deadline() != regs.timeout_deadline() {
            match regs.timeout_deadline() {
                Some(at) => self.timeout.arm(at),
                None => self.timeout.cancel(),
            }
        }
    }

    /// How many bytes can be received now.
    pub fn can_receive(&self) -> usize {
        self.regs.lock().room()
    }

    /// Bytes arrive on the line. More than [`can_receive`](Self::can_receive) says overrun.
    pub fn receive(&self, bytes: &[u8]) {
        self.with(|r, now| bytes.iter().for_each(|&b| r.receive(b, now)));
    }

    /// A break arrives on the line.
    pub fn receive_break(&self) {
        self.with(|r, now| r.receive_break(now));
    }

    /// Resets it.
    pub fn reset(&self) {
        self.with(|r, _| *r = UartRegs::default());
    }
}

impl Snapshot for Serial {
    type Wire = SerialState;

    fn snapshot(&self) -> SerialState {
        self.regs.lock().save()
    }

    fn validate(&self, wire: &SerialState) -> Result<(), LoadError> {
        wire.validate()
    }

    fn restore(&self, wire: SerialState) {
        let mut regs = self.regs.lock();
        regs.load(&wire);
        self.follow_timeout(&regs);
    }
}
