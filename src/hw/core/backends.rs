//! Where devices find the backends that users name by id.

use std::sync::Arc;

use lockstep_block::BlockBackend;
use lockstep_chardev::CharFrontend;
use lockstep_event::ContextHandle;
use lockstep_net::{MacAddress, NetPeer};
use lockstep_util::{Result, err};
use parking_lot::Mutex;

/// What a device makes of a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveUser {
    /// The type of the device.
    pub type_name: &'static str,
    /// The device's id, or its place in the tree of objects.
    pub name: String,
    /// Its place in the tree of objects.
    pub path: String,
    /// Whether it writes: a disk does, a CD-ROM drive does not.
    pub writes: bool,
    /// Whether it goes on working when the medium grows or shrinks.
    pub resizable: bool,
    /// Whether media come and go by nature.
    pub removable: bool,
    /// Whether there is a tray, so that a user can change the medium.
    pub has_tray: bool,
    /// Whether requests are made at all, and may fail.
    pub reports_errors: bool,
    /// Whether others may write to the medium at the same time (`share-rw`).
    pub share_rw: bool,
}

/// What to do about a backend's error (QAPI's `BlockdevOnError`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The guest sees it.
    Report,
    /// Nobody sees it.
    Ignore,
    /// The machine stops, and the request is tried again when it goes on.
    Stop,
    /// `Stop` when space ran out, else `Report`.
    Enospc,
}

impl OnError {
    /// The policy that a word names; `None` for `auto`.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "report" => Some(Self::Report),
            "ignore" => Some(Self::Ignore),
            "stop" => Some(Self::Stop),
            "enospc" => Some(Self::Enospc),
            _ => None,
        }
    }

    /// What to do about an error number of the host.
    pub fn action(self, errno: i32) -> ErrorAction {
        match self {
            Self::Report => ErrorAction::Report,
            Self::Ignore => ErrorAction::Ignore,
            Self::Stop => ErrorAction::Stop,
            Self::Enospc if errno == libc::ENOSPC => ErrorAction::Stop,
            Self::Enospc => ErrorAction::Report,
        }
    }
}

/// What was done about a backend's error (QAPI's `BlockErrorAction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// The guest was told.
    Report,
    /// Ignored.
    Ignore,
    /// The machine must stop; the device tries again when it runs.
    Stop,
}

/// What a drive's device tells of its use. Called on any thread, without locks of the device.
pub trait DriveEvents: Send + Sync {
    /// A request failed (`BLOCK_IO_ERROR`). With [`ErrorAction::Stop`] the machine is to be stopped with status `io-error`.
    fn io_error(&self, is_read: bool, action: ErrorAction, errno: i32) {
        let _ = (is_read, action, errno);
    }
    /// The guest opened or closed the tray (`DEVICE_TRAY_MOVED`).
    fn tray_moved(&self, open: bool) {
        let _ = open;
    }
    /// The guest locked or unlocked the tray.
    fn tray_locked(&self, locked: bool) {
        let _ = locked;
    }
}

/// Says nothing to anybody.
pub struct NoEvents;

impl DriveEvents for NoEvents {}

/// A drive, given to a device.
pub struct DriveHandle {
    /// The backend.
    pub backend: BlockBackend,
    /// What happens on a read error where the device does not say (`-drive rerror=`).
    pub read_error: OnError,
    /// What happens on a write error where the device does not say (`-drive werror=`).
    pub write_error: OnError,
    /// Who hears of the drive's use.
    pub events: Arc<dyn DriveEvents>,
}

/// Who knows the backends.
pub trait BackendProvider: Send + Sync {
    /// Gives a drive to a device, which then holds it.
    ///
    /// # Errors
    /// When there is none of this id, it is in use, or its permissions forbid it.
    fn drive(&self, id: &str, user: &DriveUser) -> Result<DriveHandle>;

    /// Gives a character device to a device, which then holds it. `property` is what named it (`isa-parallel.chardev`).
    ///
    /// # Errors
    /// When there is none of this id, or it is in use.
    fn chardev(&self, id: &str, property: &str) -> Result<CharHandle> {
        Err(err!("Property '{property}' can't find value '{id}'"))
    }

    /// Makes a network card known, and gives it its backend if it has one.
    ///
    /// # Errors
    /// When there is no backend of this id, or it is in use.
    fn nic(&self, user: &NicUser) -> Result<NicHandle> {
        let NicUser { model, netdev, .. } = user;
        Err(err!("Property '{model}.netdev' can't find value '{}'", netdev.as_deref().unwrap_or_default()))
    }

    /// A network card is gone; its backend is free again.
    fn release_nic(&self, peer: &NetPeer) {
        let _ = peer;
    }
}

/// A network card that is being made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicUser {
    /// The device's id.
    pub id: Option<String>,
    /// The type of device.
    pub model: &'static str,
    /// Its hardware address; `None` takes a free one.
    pub mac: Option<MacAddress>,
    /// The backend's id.
    pub netdev: Option<String>,
}

/// A network, given to a card.
pub struct NicHandle {
    /// The card's end.
    pub peer: NetPeer,
    /// The card's hardware address.
    pub mac: MacAddress,
}

/// A character device, given to a device.
pub struct CharHandle {
    /// The device's end.
    pub frontend: CharFrontend,
    /// Where it is served.
    pub context: ContextHandle,
}

/// The board's way to its backends. Clones share the provider.
#[derive(Clone, Default)]
pub struct Backends {
    provider: Arc<Mutex<Option<Arc<dyn BackendProvider>>>>,
}

impl Backends {
    /// Sets who knows the backends.
    pub fn set_provider(&self, provider: Arc<dyn BackendProvider>) {
        *self.provider.lock() = Some(provider);
    }

    /// Gives a character device to a device.
    ///
    /// # Errors
    /// As [`BackendProvider::chardev`].
    pub fn chardev(&self, id: &str, property: &str) -> Result<CharHandle> {
        let provider = self.provider.lock().clone();
        provider.ok_or_else(|| err!("Property '{property}' can't find value '{id}'"))?.chardev(id, property)
    }

    /// Makes a network card known.
    ///
    /// # Errors
    /// As [`BackendProvider::nic`].
    pub fn nic(&self, user: &NicUser) -> Result<NicHandle> {
        let provider = self.provider.lock().clone();
        provider.ok_or_else(|| err!("There is no network for '{}'", user.model))?.nic(user)
    }

    /// A network card is gone.
    pub fn release_nic(&self, peer: &NetPeer) {
        let provider = self.provider.lock().clone();
        provider.inspect(|p| p.release_nic(peer));
    }

    /// Gives a drive to a device.
    ///
    /// # Errors
    /// As [`BackendProvider::drive`].
    pub fn drive(&self, id: &str, user: &DriveUser) -> Result<DriveHandle> {
        let provider = self.provider.lock().clone();
        provider.ok_or_else(|| err!("Property '{}.drive' can't find value '{id}'", user.name))?.drive(id, user)
    }
}
