//! The management interface: its schema, the types generated from it, and the protocol that carries it.
//!
//! The schema (`schema/*.json`) is written in QEMU's schema language and has QEMU's types, so that tools made for QEMU
//! find what they know. Everything here is free of I/O: a monitor feeds bytes in and writes bytes out.
//!
//! - [`schema`] has the types, [`cmd`] the commands, [`event`] the events; with [`client`] they serve a client too.
//! - [`Registry`] takes handlers and becomes a [`Dispatcher`]; a [`Session`] is one connection.
//! - [`visit`] checks input, from JSON or from the command line.

#[macro_use]
mod wire;
pub mod cli;
pub mod client;
mod dispatch;
mod introspect;
pub mod json;
pub mod keyval;
mod message;
pub mod opts;
mod opts_visit;
pub mod schema;
mod session;
pub mod visit;

pub use dispatch::{Catalogue, Dispatcher, LocalBoxFuture, Registry};
pub use introspect::describe;
pub use message::{EventMessage, EventThrottle};
pub use opts_visit::{check_opts, from_opts};
pub use schema::{cmd, event};
pub use session::{Call, QUEUE_LENGTH, Session, SessionConfig};
pub use wire::{Arguments, Command, Enum, EventType, Field, Map, Members, NoArgs, Null, Reply, Wire};

/// The generator of the build script, compiled here too so that it can be tested.
#[cfg(test)]
#[path = "generator"]
mod generator {
    pub(crate) mod model;
    pub(crate) mod parse;
    mod rust;
    mod tests;
}
