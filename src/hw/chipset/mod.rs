//! The i440FX host bridge and the PIIX3 ISA bridge.

pub mod i440fx;
mod misc;
pub mod piix3;

pub use misc::add_dummy_ports;
