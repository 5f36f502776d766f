//! The device model and the devices.
//!
//! A device is a pure register struct inside one mutex, with handles to what it drives: [`core::IrqLine`]s, timers, memory,
//! and the backends of disks, networks and character devices.

pub mod acpi;
pub mod char;
pub mod chipset;
pub mod core;
pub mod display;
pub mod dma;
pub mod fdc;
pub mod fw_cfg;
pub mod ide;
pub mod input;
pub mod irqchip;
pub mod net;
pub mod pc;
pub mod pci;
pub mod rtc;
pub mod timer;
pub mod usb;

#[cfg(test)]
mod testing;
