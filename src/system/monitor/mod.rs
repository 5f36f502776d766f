//! The monitors.

pub mod attach;
pub mod hmp;
pub mod qmp;
pub mod readline;
