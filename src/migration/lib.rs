//! Migration and COLO: the stream, how it travels, the sender, the receiver, and the checkpoints of a pair.
//!
//! The system crate makes one [`Migration`] on the main context, with an [`Environment`] that says what the machine is made of, and
//! gives the monitors' commands to it. What a migration needs of the machine it asks through the traits of [`hooks`]. Control runs as
//! local tasks on the main context; RAM and everything else that blocks on a peer is moved by plain threads, whose every wait can be
//! broken off by [`MigrationYank`].

pub mod channel;
pub mod colo;
mod core;
mod globalstate;
pub mod hooks;
mod incoming;
mod outgoing;
pub mod ram;
mod reader;
mod settings;
mod status;
pub mod stream;
mod worker;

pub use core::{Environment, MigrateArguments, Migration, MigrationYank};
pub use globalstate::{
    ClockState, ClockWire, FoundShift, GlobalState, GlobalStateWire, InstructionCount, InstructionCounter,
};
pub use settings::{Capabilities, Parameters};
pub use status::{Counters, MigrationInfo, Status};

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_qemu;
