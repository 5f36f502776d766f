//! The table of block drivers.

use crate::driver::DriverDef;

/// All drivers. Probing takes the surest, and the first of equals.
#[rustfmt::skip]
pub static TABLE: &[&DriverDef] = &[
    &crate::file::FILE,
    &crate::nbd::driver::NBD,
    &crate::null::NULL_AIO,
    &crate::null::NULL_CO,
    &crate::qcow2::QCOW2,
    &crate::quorum::QUORUM,
    &crate::raw::RAW,
    &crate::replication::REPLICATION,
    &crate::throttle::THROTTLE,
];

/// The names of all drivers.
pub fn driver_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|def| def.name)
}

/// The protocol for a path without a prefix.
pub fn host_protocol(_path: &str) -> &'static str {
    "file"
}
