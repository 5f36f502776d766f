//! Conventional PCI: buses, functions, configuration space, base address registers, interrupt pins, bus-master access.
//!
//! A device makes a [`PciFunction`], which owns its configuration space, adds its BARs, and implements [`PciDevice`] over it.
//! [`PciBus::plug`] makes it visible to the guest.

mod bus;
mod config;
mod dma;
mod function;
mod plug;
mod qtree;
mod rom;
mod types;
mod vmstate;

#[cfg(test)]
mod tests;

pub use bus::{PciBus, PciBusState};
pub use config::ConfigSpace;
pub use dma::DmaSpace;
pub use function::{Bar, BarKind, PciDevice, PciFunction, PciIdentity};
pub use plug::PciPlace;
pub use qtree::{class_name, qtree_lines};
pub use rom::add_option_rom;
pub use types::{PCI_DEVICE_PROPERTIES, PCI_PARENTS};
pub use vmstate::PciDeviceState;

/// Offsets in configuration space (PCI Local Bus Specification 3.0, section 6.1).
#[allow(missing_docs)]
pub mod offset {
    pub const VENDOR_ID: usize = 0x00;
    pub const DEVICE_ID: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const PROG_IF: usize = 0x09;
    pub const CLASS: usize = 0x0a;
    pub const CACHE_LINE_SIZE: usize = 0x0c;
    pub const LATENCY_TIMER: usize = 0x0d;
    pub const HEADER_TYPE: usize = 0x0e;
    pub const BAR0: usize = 0x10;
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub const SUBSYSTEM_ID: usize = 0x2e;
    pub const ROM: usize = 0x30;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
}

/// Bits of the command register.
#[allow(missing_docs)]
pub mod command {
    pub const IO: u16 = 1 << 0;
    pub const MEMORY: u16 = 1 << 1;
    pub const MASTER: u16 = 1 << 2;
    pub const INVALIDATE: u16 = 1 << 4;
    pub const SERR: u16 = 1 << 8;
    pub const INTX_DISABLE: u16 = 1 << 10;
}
