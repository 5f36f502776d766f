//! Serial ports, the parallel port and the debug console.

mod connect;
pub mod debugcon;
pub mod parallel;
pub mod serial;

pub use connect::{CharSink, NullSink};

/// The types of devices of this module.
pub const TYPES: &[&crate::core::DeviceType] = &[&serial::ISA_SERIAL, &parallel::ISA_PARALLEL, &debugcon::ISA_DEBUGCON];
