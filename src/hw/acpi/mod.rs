//! Power management and the ACPI tables.

pub mod aml;
pub mod pm;
pub mod tables;
