//! The machine `pc-i440fx-10.0`: what is where, and what firmware is told of it.
//!
//! [`PcMachine::build`] makes the board's own devices in QEMU's order, so that sections, paths and slots come out as in QEMU; what
//! a user asks for with `-device` is made after it; [`PcMachine::finish`] then writes the tables.

mod boot;
mod build;
mod cmos;
mod config;
mod e820;
mod firmware;
mod kernel;
mod parts;
mod smbios;
mod types;

#[cfg(test)]
mod tests;

pub use boot::BootEntry;
pub use build::{PcHooks, PcMachine, Stage};
pub use cmos::DiskCmos;
pub use config::{BootConfig, CpuSlot, KernelConfig, PcConfig};
pub use e820::{E820Entry, E820Kind};
pub use parts::IsaBus;
pub use types::BOARD_TYPES;
