//! What every room may use: the error type a user sees, sizes and names, messages, descriptors that are
//! handed over, and the cutting of connections.
//!
//! Nothing here knows about virtual machines.

mod error;
pub mod fds;
pub mod report;
mod scope;
pub mod size;
mod yank;

pub use error::{Error, ErrorClass, Result, ResultExt, errno_text};
pub use yank::{YankGuard, YankInstance, YankRegistry};
