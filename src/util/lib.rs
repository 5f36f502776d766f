//! What every room may use: the error type a user sees, sizes and names, messages, and the cutting of connections.
//!
//! Nothing here knows about virtual machines.

mod error;
pub mod report;
pub mod size;
mod yank;

pub use error::{Error, ErrorClass, Result, ResultExt, errno_text};
pub use yank::{YankGuard, YankInstance, YankRegistry};
