//! Power management and the ACPI tables.

pub mod pm;
