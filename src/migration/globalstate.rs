//! Two sections that belong to no device: the run state at the sender, and the clocks.

use lockstep_event::{Clock, Clocks};
use lockstep_util::Result;
use lockstep_vmstate::{Buffer, LoadError, Snapshot, Unused, VmState};
use parking_lot::Mutex;

/// `globalstate`: how the guest was doing when it was stopped for the migration. Registered last, as in QEMU.
#[derive(Debug, Default)]
pub struct GlobalState {
    current: Mutex<String>,
    received: Mutex<Option<String>>,
}

/// Its wire struct.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "globalstate", version = 1)]
pub struct GlobalStateWire {
    size: u32,
    runstate: Buffer<32>,
    has_vm_was_suspended: u8,
    vm_was_suspended: u8,
    #[vmstate(name = "unused")]
    unused: Buffer<66>,
}

/// The run states that a sender can have been in.
const RUN_STATES: [&str; 16] = [
    "debug",
    "inmigrate",
    "internal-error",
    "io-error",
    "paused",
    "postmigrate",
    "prelaunch",
    "finish-migrate",
    "restore-vm",
    "running",
    "save-vm",
    "shutdown",
    "suspended",
    "watchdog",
    "guest-panicked",
    "colo",
];

impl GlobalState {
    /// Notes the run state, before the guest is stopped.
    pub fn store(&self, run_state: &str) {
        *self.current.lock() = run_state.to_owned();
    }

    /// The run state that came with a migration.
    pub fn received(&self) -> Option<String> {
        self.received.lock().clone()
    }

    /// Forgets what came.
    pub fn forget(&self) {
        *self.received.lock() = None;
    }
}

impl GlobalStateWire {
    fn name(&self) -> Option<&str> {
        let end = self.runstate.iter().position(|b| *b == 0)?;
        std::str::from_utf8(&self.runstate[..end]).ok()
    }
}

impl Snapshot for GlobalState {
    type Wire = GlobalStateWire;

    fn snapshot(&self) -> GlobalStateWire {
        let current = self.current.lock();
        let mut runstate = Buffer::default();
        let len = current.len().min(31);
        runstate[..len].copy_from_slice(&current.as_bytes()[..len]);
        let unused = Buffer::default();
        GlobalStateWire { size: len as u32 + 1, runstate, has_vm_was_suspended: 1, vm_was_suspended: 0, unused }
    }

    fn validate(&self, wire: &GlobalStateWire) -> Result<(), LoadError> {
        match wire.name() {
            Some(name) if RUN_STATES.contains(&name) => Ok(()),
            _ => Err(LoadError::invalid("Runstate is corrupted")),
        }
    }

    fn restore(&self, wire: GlobalStateWire) {
        *self.received.lock() = wire.name().map(str::to_owned);
    }
}

/// `timer`: the guest's virtual clock. Registered first, as in QEMU.
pub struct ClockState {
    clocks: Clocks,
}

impl std::fmt::Debug for ClockState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClockState")
    }
}

/// Its wire struct.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "timer", version = 2, minimum = 1)]
pub struct ClockWire {
    cpu_ticks_offset: i64,
    unused: Unused<8>,
    #[vmstate(since = 2)]
    cpu_clock_offset: i64,
}

impl ClockState {
    /// For the machine's clocks.
    pub fn new(clocks: Clocks) -> Self {
        Self { clocks }
    }
}

impl Snapshot for ClockState {
    type Wire = ClockWire;

    fn snapshot(&self) -> ClockWire {
        let now = self.clocks.now_ns(Clock::Virtual);
        // Time stamp counters travel with the vCPUs; a receiver that has none of its own sees nanoseconds here.
        ClockWire { cpu_ticks_offset: now, unused: Unused, cpu_clock_offset: now }
    }

    fn validate(&self, wire: &ClockWire) -> Result<(), LoadError> {
        if wire.cpu_clock_offset < 0 {
            return Err(LoadError::invalid("The virtual clock is before its beginning"));
        }
        Ok(())
    }

    fn restore(&self, wire: ClockWire) {
        self.clocks.set_virtual_ns(wire.cpu_clock_offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_vmstate::{SaveState, vmstate_roundtrip};
    use std::sync::Arc;

    fn state(name: &str) -> Arc<GlobalState> {
        let state = Arc::new(GlobalState::default());
        state.store(name);
        state
    }

    #[test]
    fn the_run_state_travels_in_a_hundred_bytes() {
        let mut out = lockstep_vmstate::Encoder::new();
        state("running").save(&mut out).unwrap();
        assert_eq!(out.len(), 104);
        assert_eq!(out.bytes()[..12], *b"\0\0\0\x08running\0");
        let to = state("prelaunch");
        to.prepare(&mut lockstep_vmstate::Decoder::new(out.bytes()), 1).unwrap().commit();
        assert_eq!(to.received().as_deref(), Some("running"));
        let mut bad = out.into_bytes();
        bad[4] = b'x';
        assert!(to.prepare(&mut lockstep_vmstate::Decoder::new(&bad), 1).is_err());
    }

    vmstate_roundtrip!(the_clock_travels, || {
        let clocks = Clocks::manual();
        clocks.set_virtual_ns(123);
        Arc::new(ClockState::new(clocks))
    });
}
