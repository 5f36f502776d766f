//! Character devices: byte streams between the machine and the outside.
//!
//! A [`ChardevRegistry`] on the main context makes and removes devices. Each has at most one user, its
//! [`CharFrontend`], which may move to any context and write from any thread. No operation ever blocks on a peer: what a
//! peer does not take is queued up to a limit.

pub mod address;
mod backend;
mod frontend;
mod link;
mod memory;
mod mux;
pub mod options;
pub mod poll;
mod registry;
mod ringbuf;
mod shared;
mod telnet;

pub use backend::stdio::restore_terminal;
pub use frontend::{CharEvent, CharFrontend, CharHandlers, CharStream, CharWriter, StreamEvent};
pub use registry::ChardevRegistry;

#[cfg(test)]
mod tests;
