//! The monitors.

pub mod hmp;
pub mod qmp;
