//! Who may speak for the VM: a primary that was frozen and wakes up must not answer ARP for an address that its old
//! secondary has taken over.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

type Probe = Box<dyn Fn() -> bool + Send + Sync>;

/// Whether this side holds the VM's identity on the network. Compared packets need no gate, since they need the
/// secondary's word; ARP, neighbour discovery and frames that nobody compares do.
///
/// Open at first. COLO closes it when the channel to the secondary is lost and nobody has decided yet who goes on, and
/// sets a probe that looks at the channel itself, because a frozen process wakes up in the middle of everything.
pub struct IdentityGate {
    open: AtomicBool,
    probe: RwLock<Option<Probe>>,
}

impl Default for IdentityGate {
    fn default() -> Self {
        Self { open: AtomicBool::new(true), probe: RwLock::new(None) }
    }
}

impl IdentityGate {
    /// Opens or closes the gate.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Release);
    }

    /// Sets a question that is asked for every frame at the gate (these are rare): whether the peer is still there, for
    /// instance by polling the channel's socket for a hang-up. `None` removes it.
    pub fn set_probe(&self, probe: Option<Probe>) {
        *self.probe.write() = probe;
    }

    /// Whether a frame may pass now.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire) && self.probe.read().as_ref().is_none_or(|probe| probe())
    }
}

impl fmt::Debug for IdentityGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityGate").field("open", &self.open).finish_non_exhaustive()
    }
}
