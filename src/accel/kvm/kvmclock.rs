//! The section `kvmclock`.

use std::sync::Arc;

use lockstep_vmstate::{LoadError, Snapshot, VmState};

use super::KvmMachine;

/// The guest's paravirtual clock as QEMU's stream has it.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "kvmclock", version = 1)]
pub struct KvmClockWire {
    clock: u64,
    #[vmstate(subsection)]
    reliable: Option<Reliable>,
}

/// Whether the clock was read in a way that does not go backwards.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "kvmclock/clock_is_reliable", version = 1)]
pub struct Reliable {
    clock_is_reliable: bool,
}

/// The device whose state the clock is.
pub struct KvmClock(pub Arc<KvmMachine>);

impl Snapshot for KvmClock {
    type Wire = KvmClockWire;

    fn snapshot(&self) -> KvmClockWire {
        let clock = self.0.clock().unwrap_or_else(|e| {
            tracing::error!("{e}");
            0
        });
        KvmClockWire { clock, reliable: Some(Reliable { clock_is_reliable: true }) }
    }

    fn validate(&self, wire: &KvmClockWire) -> Result<(), LoadError> {
        if i64::try_from(wire.clock).is_err() { Err(LoadError::invalid("kvmclock is out of range")) } else { Ok(()) }
    }

    fn restore(&self, wire: KvmClockWire) {
        if let Err(e) = self.0.set_clock(wire.clock) {
            tracing::error!("{e}");
        }
    }
}

/// The section on an engine without the clock: a guest that came with it goes on by its other clocks.
pub struct NoKvmClock;

impl Snapshot for NoKvmClock {
    type Wire = KvmClockWire;

    fn snapshot(&self) -> KvmClockWire {
        KvmClockWire::default()
    }

    fn restore(&self, _: KvmClockWire) {}

    fn is_needed(&self) -> bool {
        false
    }
}
