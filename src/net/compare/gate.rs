//! Who may speak for the VM: a primary that was frozen and wakes up must say nothing where its old secondary has taken
//! over.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

/// How long an answer of the probe holds for frames that the secondary has said too.
const SURE: Duration = Duration::from_micros(200);

type Probe = Box<dyn Fn() -> bool + Send + Sync>;

/// Whether this side holds the VM's identity on the network. ARP, neighbour discovery and frames that nobody compares wait
/// here; compared packets have the secondary's word, but a repetition, or one that was on its way when the process froze,
/// would still draw the network's attention to the wrong host: these are lost at the gate.
///
/// Open at first. COLO closes it when the channel to the secondary is lost and nobody has decided yet who goes on, and
/// sets a probe that looks at the channel itself, because a frozen process wakes up in the middle of everything.
pub struct IdentityGate {
    open: AtomicBool,
    probe: RwLock<Option<Probe>>,
    born: Instant,
    /// Nanoseconds since then until which the probe's last answer holds.
    sure_until: AtomicU64,
}

impl Default for IdentityGate {
    fn default() -> Self {
        Self {
            open: AtomicBool::new(true),
            probe: RwLock::new(None),
            born: Instant::now(),
            sure_until: AtomicU64::new(0),
        }
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
        self.sure_until.store(0, Ordering::Release);
    }

    /// Whether anything at all may be said. Asked for every frame, so that the probe's answer is used for a moment.
    pub fn may_speak(&self) -> bool {
        if !self.open.load(Ordering::Acquire) {
            return false;
        }
        let probe = self.probe.read();
        let Some(probe) = probe.as_ref() else { return true };
        // This clock goes on while the process is frozen.
        let now = self.born.elapsed();
        if now < Duration::from_nanos(self.sure_until.load(Ordering::Acquire)) {
            return true;
        }
        let there = probe();
        if there {
            self.sure_until.store((now + SURE).as_nanos() as u64, Ordering::Release);
        }
        there
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_closed_gate_lets_nothing_out_whatever_the_probe_says_and_an_open_one_as_much_as_it_says() {
        let (gate, there) = (IdentityGate::default(), Arc::new(AtomicBool::new(true)));
        assert!(gate.is_open() && gate.may_speak());
        let probe = there.clone();
        gate.set_probe(Some(Box::new(move || probe.load(Ordering::SeqCst))));
        assert!(gate.is_open() && gate.may_speak());
        gate.set_open(false);
        assert!(!gate.is_open() && !gate.may_speak());
        gate.set_open(true);
        there.store(false, Ordering::SeqCst);
        std::thread::sleep(2 * SURE);
        assert!(!gate.is_open() && !gate.may_speak());
        there.store(true, Ordering::SeqCst);
        gate.set_open(false);
        gate.set_probe(None);
        assert!(!gate.is_open() && !gate.may_speak());
    }
}
