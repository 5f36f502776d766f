//! The machine's side of a network: what a card holds of its backend.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use crate::netdev::{Direction, Netdev, NicReceiver};
use crate::packet::Frame;

/// A hardware address.
pub type MacAddress = [u8; 6];

/// `52:54:00:12:34:56`.
pub fn format_mac(mac: &MacAddress) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// What is known of a card.
#[derive(Clone, Debug)]
pub struct NicInfo {
    /// Its name: the device's id, or the model with a number.
    pub name: String,
    /// The model (`rtl8139`).
    pub model: String,
    /// Its hardware address.
    pub mac: MacAddress,
}

pub(crate) struct NicShared {
    pub info: NicInfo,
    pub netdev: Option<Arc<Netdev>>,
    pub receiver: RwLock<Option<Weak<dyn NicReceiver>>>,
    pub link_down: AtomicBool,
}

impl NicShared {
    pub fn set_link(&self, up: bool) {
        self.link_down.store(!up, Ordering::Relaxed);
        if let Some(receiver) = self.receiver.read().as_ref().and_then(Weak::upgrade) {
            receiver.set_link(up);
        }
    }
}

/// A card's connection. Cheap to clone; any thread may use it.
#[derive(Clone)]
pub struct NetPeer {
    pub(crate) nic: Arc<NicShared>,
}

impl NetPeer {
    /// Names the card itself, once it is made; frames come from then on.
    pub fn connect(&self, receiver: Weak<dyn NicReceiver>) {
        *self.nic.receiver.write() = Some(receiver.clone());
        if let Some(netdev) = &self.nic.netdev {
            netdev.set_nic(Some(receiver));
        }
    }

    /// A frame from the guest.
    pub fn send(&self, frame: Vec<u8>) {
        if let Some(netdev) = self.cable() {
            netdev.enter(Frame::new(frame), Direction::Rx);
        }
    }

    /// Frames that the guest sent at once, in their order.
    pub fn send_all(&self, frames: Vec<Vec<u8>>) {
        if let Some(netdev) = self.cable() {
            netdev.enter_all(frames.into_iter().map(Frame::new).collect(), Direction::Rx);
        }
    }

    /// Where the cable leads, if it is in at both ends.
    fn cable(&self) -> Option<&Arc<Netdev>> {
        let netdev = self.nic.netdev.as_ref()?;
        let down = self.nic.link_down.load(Ordering::Relaxed) || netdev.link_down.load(Ordering::Relaxed);
        (!down).then_some(netdev)
    }

    /// The card takes frames again.
    pub fn flush_queued(&self) {
        if let Some(netdev) = &self.nic.netdev {
            netdev.flush_queued();
        }
    }

    /// Forgets frames that the card has not taken (a reset of the card).
    pub fn purge_queued(&self) {
        if let Some(netdev) = &self.nic.netdev {
            netdev.discard_queued();
        }
    }

    /// The name of the backend, if there is one.
    pub fn netdev(&self) -> Option<&str> {
        self.nic.netdev.as_ref().map(|n| n.id.as_str())
    }

    /// Whether the cable is in.
    pub fn is_link_up(&self) -> bool {
        !self.nic.link_down.load(Ordering::Relaxed)
            && self.nic.netdev.as_ref().is_none_or(|n| !n.link_down.load(Ordering::Relaxed))
    }
}

impl std::fmt::Debug for NetPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetPeer").field("nic", &self.nic.info).field("netdev", &self.netdev()).finish()
    }
}
