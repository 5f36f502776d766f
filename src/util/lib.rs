//! What every room may use: the error type a user sees, sizes and names.
//!
//! Nothing here knows about virtual machines.

mod error;
pub mod size;

pub use error::{Error, ErrorClass, Result, ResultExt};
