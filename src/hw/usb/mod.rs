//! USB: the bus, the UHCI host controller of the PIIX3, and devices for human input.

pub mod bus;
mod control;
pub mod hid;
pub mod uhci;

pub use bus::{Port, Refusal, Token, Upstream, UsbBus, UsbDevice};

/// The types of devices of this module.
pub const TYPES: &[&crate::core::DeviceType] = &[&uhci::PIIX3_UHCI, &hid::USB_TABLET, &hid::USB_MOUSE, &hid::USB_KBD];
