//! Network cards.

pub mod rtl8139;

use lockstep_net::NetPeer;

/// What a card needs of the network behind it. Any thread may use it.
pub trait Cable: Send + Sync {
    /// A frame from the guest, without its checksum.
    fn send(&self, frame: Vec<u8>);
    /// Frames that the guest sent at once, in their order.
    fn send_all(&self, frames: Vec<Vec<u8>>) {
        frames.into_iter().for_each(|frame| self.send(frame));
    }
    /// The card takes frames again.
    fn flush_queued(&self);
    /// The card was reset: frames that it has not taken are forgotten.
    fn purge_queued(&self) {}
}

impl Cable for NetPeer {
    fn send(&self, frame: Vec<u8>) {
        NetPeer::send(self, frame);
    }

    fn send_all(&self, frames: Vec<Vec<u8>>) {
        NetPeer::send_all(self, frames);
    }

    fn flush_queued(&self) {
        NetPeer::flush_queued(self);
    }

    fn purge_queued(&self) {
        NetPeer::purge_queued(self);
    }
}

/// The types of devices of this module.
pub const TYPES: &[&crate::core::DeviceType] = &[&rtl8139::RTL8139];
