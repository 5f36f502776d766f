//! What a stream travels on: sockets, pipes to a command, descriptors, files.

mod address;
mod connect;
mod listen;
mod transport;

pub use address::{Address, InetAddress};
pub use connect::{Opening, open};
pub use listen::{Incoming, Listener, listen};
pub use transport::{Channel, Yank};

use lockstep_util::Result;
use std::os::fd::OwnedFd;

/// Finds the descriptor that `fd:NAME` means: one given to the monitor by `getfd`, or a number. Takes it over.
pub trait FdSource {
    /// The descriptor of a name.
    ///
    /// # Errors
    /// `File descriptor named 'NAME' has not been found`, or as the monitor words it.
    fn take_fd(&self, name: &str) -> Result<OwnedFd>;
}

#[cfg(test)]
mod tests;
