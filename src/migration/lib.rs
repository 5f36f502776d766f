//! Migration and COLO: the stream, how it travels, the sender, the receiver, and the checkpoints of a pair.

pub mod channel;
pub mod stream;
mod worker;

pub mod hooks;
mod settings;
mod status;

pub use settings::{Capabilities, Parameters};
pub use status::{Counters, MigrationInfo, Status};
