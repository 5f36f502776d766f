//! Global system interrupts, as the controllers of this process see them.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use super::{ioapic::IoApic, pic::PicPair};
use crate::core::IrqSink;

/// Number of global system interrupts.
pub const GSI_COUNT: u32 = 24;

/// Gives each GSI to the 8259 pair (if it is an ISA interrupt) and to the I/O APIC.
pub struct GsiRouter {
    pic: Arc<PicPair>,
    ioapic: Arc<IoApic>,
    tap: OnceLock<Tap>,
}

/// Where a test has the I/O APIC's inputs go instead.
struct Tap {
    levels: AtomicU32,
    tell: Arc<dyn Fn(u32, bool) + Send + Sync>,
}

impl GsiRouter {
    /// A router to these two.
    pub fn new(pic: Arc<PicPair>, ioapic: Arc<IoApic>) -> Arc<Self> {
        Arc::new(Self { pic, ioapic, tap: OnceLock::new() })
    }

    /// Has `tell` called for each change of the I/O APIC's inputs, which no longer reach it. False if that is so already.
    pub fn intercept_ioapic(&self, tell: Arc<dyn Fn(u32, bool) + Send + Sync>) -> bool {
        self.tap.set(Tap { levels: AtomicU32::new(0), tell }).is_ok()
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
        let Some(tap) = self.tap.get() else { return self.ioapic.set_irq(n, level) };
        let bit = 1u32.checked_shl(n).unwrap_or(0);
        let old = match level {
            true => tap.levels.fetch_or(bit, Ordering::SeqCst),
            false => tap.levels.fetch_and(!bit, Ordering::SeqCst),
        };
        if (old & bit != 0) != level {
            (tap.tell)(n, level);
        }
    }
}
