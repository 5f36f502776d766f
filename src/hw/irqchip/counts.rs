//! How often each global system interrupt was raised (`info irq`).

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use super::gsi::GSI_COUNT;
use crate::core::IrqSink;

/// The 8259 pair has as many inputs.
const ISA_COUNT: usize = 16;

/// Counts what it hands on.
pub struct IrqCounts {
    to: Arc<dyn IrqSink>,
    levels: AtomicU32,
    counts: [AtomicU64; GSI_COUNT as usize],
}

impl IrqCounts {
    /// Counts before `to`.
    pub fn new(to: Arc<dyn IrqSink>) -> Arc<Self> {
        Arc::new(Self { to, levels: AtomicU32::new(0), counts: std::array::from_fn(|_| AtomicU64::new(0)) })
    }

    /// As `info irq` shows it of controllers with these names: the I/O APIC hears all, the 8259 pair those of ISA.
    pub fn describe(&self, ioapic: &str, pic: &str) -> String {
        let mut text = String::new();
        for (name, inputs) in [(ioapic, self.counts.len()), (pic, ISA_COUNT)] {
            let _ = writeln!(text, "IRQ statistics for {name}:");
            for (n, count) in self.counts[..inputs].iter().enumerate() {
                let count = count.load(Ordering::Relaxed);
                if count != 0 {
                    let _ = writeln!(text, "{n:2}: {count}");
                }
            }
        }
        text
    }
}

impl IrqSink for IrqCounts {
    fn set_irq(&self, n: u32, level: bool) {
        if let Some(count) = self.counts.get(n as usize) {
            let bit = 1 << n;
            let before = if level {
                self.levels.fetch_or(bit, Ordering::Relaxed)
            } else {
                self.levels.fetch_and(!bit, Ordering::Relaxed)
            };
            if level && before & bit == 0 {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.to.set_irq(n, level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raising_counts_and_staying_high_does_not() {
        let counts = IrqCounts::new(Arc::new(|_: u32, _: bool| ()));
        for (n, level) in [(0, true), (0, true), (0, false), (0, true), (17, true), (1, false), (40, true)] {
            counts.set_irq(n, level);
        }
        assert_eq!(
            counts.describe("ioapic", "isa-i8259"),
            "IRQ statistics for ioapic:\n 0: 2\n17: 1\nIRQ statistics for isa-i8259:\n 0: 2\n"
        );
    }
}
