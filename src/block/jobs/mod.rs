//! Long-running block operations.

pub mod dirty;
pub mod state;
