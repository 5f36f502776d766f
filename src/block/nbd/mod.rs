//! Network block devices: the protocol, the client that is a block driver.
//!
//! The wire format and both halves of the negotiation know nothing of sockets; the server that speaks them is an export
//! (`crate::export`).

pub mod address;
pub mod client_handshake;
pub mod connection;
pub mod driver;
#[cfg(test)]
mod handshake_tests;
pub mod server_handshake;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod wire;
