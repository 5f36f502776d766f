//! Guest networks: host backends, filters, and the comparing of two guests' output.
//!
//! A [`NetRegistry`] on the main context makes and removes everything. Frames themselves travel on any thread: a card
//! holds a [`NetPeer`], a backend reads on the main context, colo-compare works in its iothread.

mod announce;
mod backend;
mod checkpoint;
mod colo;
pub mod compare;
mod filter;
mod handover;
#[cfg(test)]
mod handover_model;
mod netdev;
mod nic;
mod objects;
pub mod packet;
mod queue;
#[cfg(test)]
mod queue_model;
#[cfg(test)]
mod queue_tests;
mod registry;
pub mod rewriter;
mod sync;
mod unheard;
pub mod wire;

pub use announce::AnnounceParameters;
pub use checkpoint::NetTables;
pub use colo::{CheckpointNotifier, ColoCompare, IoThreadRef, Need};
pub use netdev::NicReceiver;
pub use nic::{MacAddress, NetPeer, NicInfo, format_mac};
pub use objects::Filter;
pub use registry::{NetRegistry, PeerError};

#[cfg(test)]
mod tests;
