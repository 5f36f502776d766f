//! What every room may use: the error type a user sees, sizes and names, messages, the log of the guest, descriptors that are
//! handed over, and the cutting of connections.
//!
//! Nothing here knows about virtual machines.

mod error;
pub mod fds;
pub mod log;
pub mod report;
mod scope;
pub mod size;
mod yank;

pub use error::{Error, ErrorClass, Result, ResultExt, errno_text};
pub use log::Log;
pub use yank::{YankGuard, YankInstance, YankRegistry};
