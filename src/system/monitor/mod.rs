//! The monitors.

pub mod qmp;
