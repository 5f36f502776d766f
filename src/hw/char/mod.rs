//! Serial ports, the parallel port and the debug console.

pub mod debugcon;
pub mod serial;

/// A character device as a port sees it: somewhere to send bytes. What arrives is given to the port's own methods.
pub trait CharSink: Send + Sync {
    /// Sends bytes. Never blocks: what cannot be sent now is kept or dropped by the other side.
    fn send(&self, bytes: &[u8]);
    /// The port can take more bytes than it could before.
    fn can_receive_more(&self) {}
}

/// Drops everything.
pub struct NullSink;

impl CharSink for NullSink {
    fn send(&self, _: &[u8]) {}
}
