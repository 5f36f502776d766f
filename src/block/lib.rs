//! The block layer: a graph of nodes (protocols, formats, filters) with the backends that devices hold on top.
//!
//! The graph and everything in it is `!Send` and lives on one thread, the main context. Devices reach it through
//! [`BlockBackend`]. See `node` for the life of a node, `driver` for what formats implement, `open` for options.

mod activate;
pub mod backend;
pub mod child;
pub mod commands;
pub mod drain;
pub mod driver;
mod drivers;
pub mod export;
pub mod file;
pub mod graph;
pub mod hmp;
pub mod image;
pub mod info;
pub mod io;
pub mod jobs;
mod join;
pub mod json;
pub mod medium;
pub mod nbd;
pub mod node;
pub mod null;
pub mod open;
pub mod options;
pub mod perm;
pub mod qcow2;
pub mod qemu_io;
pub mod quorum;
pub mod raw;
pub mod replication;
pub mod requests;
pub mod stats;
pub mod text;
pub mod throttle;

pub use backend::{Backend, BlockBackend, BlockOp, GuestDevice, IoStatus, MediumChange};
pub use child::{Child, ChildRole, Parent, Perm};
pub use drain::DrainGuard;
pub use driver::{BlockDriver, DriverDef, DriverKind, Extent, LocalBoxFuture, Preallocation, Status, WriteFlags};
pub use drivers::driver_names;
pub use graph::Graph;
pub use node::{Node, WriteHook};
pub use open::{OpenContext, OpenFlags};
pub use options::{ChildSpec, Options};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

/// A message for the person who started the program, on the standard error stream as QEMU prints it.
pub(crate) fn warn_user(text: &str) {
    eprintln!("{text}");
}
