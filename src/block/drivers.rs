//! The table of block drivers.

use crate::driver::DriverDef;

/// All drivers. Probing takes the surest, and the first of equals.
pub static TABLE: &[&DriverDef] = &[
    &crate::file::FILE,
    &crate::null::NULL_CO,
    &crate::null::NULL_AIO,
    &crate::raw::RAW,
    &crate::nbd::driver::NBD,
    &crate::quorum::QUORUM,
    &crate::replication::REPLICATION,
];

/// The protocol for a path without a prefix.
pub fn host_protocol(_path: &str) -> &'static str {
    "file"
}
