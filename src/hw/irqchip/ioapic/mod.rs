//! The I/O APIC.

mod regs;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock, Weak};

use lockstep_event::{Clock, Clocks, Timer};
use lockstep_memory::{AccessRules, Region};
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub(crate) use regs::KERNEL_VERSION;
pub use regs::{IoApicRegs, Message};
pub use vmstate::IoApicState;

use super::{MsiSink, pic::PicPair};
use crate::core::{Board, IrqSink, io_handler};

/// Where a PC's I/O APIC is.
pub const IOAPIC_ADDRESS: u64 = 0xfec0_0000;

/// How long a level waits that was sent again and again, in nanoseconds of the guest's time.
const PAUSE: i64 = 1_000_000;

/// An I/O APIC in this process.
pub struct IoApic {
    regs: Mutex<IoApicRegs>,
    clocks: Clocks,
    release: Timer,
    messages: OnceLock<Arc<dyn MsiSink>>,
    pic: OnceLock<Arc<PicPair>>,
}

impl IoApic {
    /// An I/O APIC at its usual address. [`connect`](Self::connect) it before interrupts happen.
    pub fn new(board: &Board) -> Arc<Self> {
        let ioapic = Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let released = move || {
                if let Some(ioapic) = this.upgrade() {
                    ioapic.with(IoApicRegs::release);
                }
            };
            Self {
                regs: Mutex::new(IoApicRegs::default()),
                clocks: board.clocks.clone(),
                release: board.clocks.timer(Clock::Virtual, released),
                messages: OnceLock::new(),
                pic: OnceLock::new(),
            }
        });
        let (reader, writer) = (ioapic.clone(), ioapic.clone());
        let handler = io_handler(
            AccessRules::default(),
            move |offset, size| reader.regs.lock().read(offset, size).into(),
            move |offset, size, value| writer.with(|r| r.write(offset, size, value as u32)),
        );
        board.memory.add(IOAPIC_ADDRESS, &Region::io("ioapic", 0x1000, handler));
        ioapic
    }

    /// Connects it to who delivers its messages, and to the 8259 pair that gives the vector of an ExtINT.
    pub fn connect(&self, messages: Arc<dyn MsiSink>, pic: Arc<PicPair>) {
        let _ = self.messages.set(messages);
        let _ = self.pic.set(pic);
    }

    /// A CPU has ended the service of a level triggered vector.
    pub fn end_of_interrupt(&self, vector: u8) {
        self.with(|r| {
            let held = r.holds();
            r.end_of_interrupt(vector);
            if r.holds() && !held {
                self.release.arm(self.clocks.now_ns(Clock::Virtual) + PAUSE);
            }
        });
    }

    /// Resets it.
    pub fn reset(&self) {
        *self.regs.lock() = IoApicRegs::default();
    }

    /// What `info pic` prints.
    pub fn describe(&self) -> String {
        self.regs.lock().describe(regs::VERSION)
    }

    /// Changes registers and sends what they then ask for. Messages go out under the lock, so that they keep their order; local
    /// APICs are leaves below it.
    fn with(&self, f: impl FnOnce(&mut IoApicRegs)) {
        let mut regs = self.regs.lock();
        f(&mut regs);
        for message in regs.service() {
            let Some(sink) = self.messages.get() else { return };
            let message = match self.pic.get() {
                Some(pic) if message.is_external() => message.with_vector(pic.acknowledge()),
                _ => message,
            };
            sink.send_msi(message.address, message.data);
        }
    }
}

impl IrqSink for IoApic {
    fn set_irq(&self, n: u32, level: bool) {
        self.with(|r| r.set_input(n, level));
    }
}

impl Snapshot for IoApic {
    type Wire = IoApicState;

    fn snapshot(&self) -> IoApicState {
        self.regs.lock().state()
    }

    fn validate(&self, wire: &IoApicState) -> Result<(), LoadError> {
        wire.validate()
    }

    fn restore(&self, wire: IoApicState) {
        let mut regs = self.regs.lock();
        regs.load(&wire);
        if regs.holds() {
            // As soon as the guest runs, whatever the time is then.
            self.release.arm(0);
        }
    }
}
