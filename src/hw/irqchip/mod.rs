//! Interrupt controllers: the 8259 pair, the I/O APIC and the local APIC, here or in the host's kernel.
//!
//! Devices drive *global system interrupts* (GSIs): 0 to 15 are the ISA interrupts, wired to the 8259 pair and to the I/O APIC, 16 to
//! 23 to the I/O APIC only.

pub mod apic;
mod counts;
mod gsi;
pub mod ioapic;
mod kernel;
pub mod pic;
pub mod vapic;

pub use counts::IrqCounts;
pub use gsi::{GSI_COUNT, GsiRouter};
pub use kernel::{KernelIoApic, KernelIrqChip, KernelPic};

/// Who delivers message signalled interrupts (and the I/O APIC's).
pub trait MsiSink: Send + Sync {
    /// A write of `data` to `address` (0xfeexxxxx).
    fn send_msi(&self, address: u64, data: u32);
}
