//! Global system interrupts, as the controllers of this process see them.

use std::sync::Arc;

use super::{ioapic::IoApic, pic::PicPair};
use crate::core::{IrqSink, IrqTap};

/// Number of global system interrupts.
pub const GSI_COUNT: u32 = 24;

/// Gives each GSI to the 8259 pair (if it is an ISA interrupt) and to the I/O APIC.
pub struct GsiRouter {
    pic: Arc<PicPair>,
    ioapic: Arc<IoApic>,
    tap: IrqTap,
}

impl GsiRouter {
    /// A router to these two.
    pub fn new(pic: Arc<PicPair>, ioapic: Arc<IoApic>) -> Arc<Self> {
        Arc::new(Self { pic, ioapic, tap: IrqTap::default() })
    }

    /// Has `tell` called for each change of the I/O APIC's inputs, which no longer reach it. False if that is so already.
    pub fn intercept_ioapic(&self, tell: Arc<dyn Fn(u32, bool) + Send + Sync>) -> bool {
        self.tap.open(tell)
    }

    /// Sets an input of the I/O APIC itself, intercepted or not. False if there is no such input.
    pub fn set_ioapic_input(&self, n: u32, level: bool) -> bool {
        if n < GSI_COUNT {
            self.ioapic.set_irq(n, level);
        }
        n < GSI_COUNT
    }
}

impl IrqSink for GsiRouter {
    fn set_irq(&self, n: u32, level: bool) {
        if n < 16 {
            self.pic.set_irq(n, level);
        }
        if !self.tap.takes(n, level) {
            self.ioapic.set_irq(n, level);
        }
    }
}
