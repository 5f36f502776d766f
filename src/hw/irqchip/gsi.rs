//! Global system interrupts, as the controllers of this process see them.

use std::sync::Arc;

use super::{ioapic::IoApic, pic::PicPair};
use crate::core::IrqSink;

/// Number of global system interrupts.
pub const GSI_COUNT: u32 = 24;

/// Gives each GSI to the 8259 pair (if it is an ISA interrupt) and to the I/O APIC.
pub struct GsiRouter {
    pic: Arc<PicPair>,
    ioapic: Arc<IoApic>,
}

impl GsiRouter {
    /// A router to these two.
    pub fn new(pic: Arc<PicPair>, ioapic: Arc<IoApic>) -> Arc<Self> {
        Arc::new(Self { pic, ioapic })
    }
}

impl IrqSink for GsiRouter {
    fn set_irq(&self, n: u32, level: bool) {
        if n < 16 {
            self.pic.set_irq(n, level);
        }
        self.ioapic.set_irq(n, level);
    }
}
