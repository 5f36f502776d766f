//! A vCPU in the migration stream: the sections `cpu_common`, `cpu` and `apic`, in QEMU's layout.
//!
//! Three sections are one vCPU. Its registers are read once when the first is saved, and written once when the last is applied.

mod apic;
mod cpu;

use std::sync::Arc;

use lockstep_event::{Clock, Clocks};
use lockstep_util::Error;
use lockstep_vmstate::{LoadError, Snapshot, StateRegistry, VmState};
use parking_lot::Mutex;

use crate::{
    CpuState, Vcpu,
    cpu_state::{MpState, PendingEvents},
};
use apic::ApicWire;
use cpu::CpuWire;

/// The section `cpu_common`.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "cpu_common", version = 1)]
pub struct CpuCommonWire {
    /// Whether the vCPU waits in HLT (a software CPU; KVM says it in `mp_state`).
    pub halted: u32,
    /// Interrupts that wait (a software CPU): the bits below.
    pub interrupt_request: u32,
}

/// Bits of `interrupt_request`, by QEMU's numbers: an external interrupt, an SMI, an NMI.
const REQUEST_HARD: u32 = 0x2;
const REQUEST_SMI: u32 = 0x40;
const REQUEST_NMI: u32 = 0x200;

/// Registers the sections of vCPU `index`. `on_error` hears when an engine refuses registers that a stream brought.
pub fn register(
    states: &StateRegistry,
    index: u32,
    vcpu: Arc<Mutex<Box<dyn Vcpu>>>,
    clocks: &Clocks,
    on_error: impl Fn(Error) + Send + Sync + 'static,
) {
    let shared = Shared::new(vcpu, clocks, on_error, false);
    states.register_instance("cpu_common", index, Arc::new(Common(shared.clone())));
    states.register_instance("cpu", index, Arc::new(Cpu(shared.clone())));
    states.register_instance("apic", index, Arc::new(Apic(shared)));
}

/// As [`register`], for an engine whose local APICs are devices of the machine's.
pub fn register_without_apic(
    states: &StateRegistry,
    index: u32,
    vcpu: Arc<Mutex<Box<dyn Vcpu>>>,
    clocks: &Clocks,
    on_error: impl Fn(Error) + Send + Sync + 'static,
) {
    let shared = Shared::new(vcpu, clocks, on_error, true);
    states.register_instance("cpu_common", index, Arc::new(Common(shared.clone())));
    states.register_instance("cpu", index, Arc::new(Cpu(shared)));
}

struct Shared {
    vcpu: Arc<Mutex<Box<dyn Vcpu>>>,
    clocks: Clocks,
    on_error: Box<dyn Fn(Error) + Send + Sync>,
    state: Mutex<CpuState>,
    /// What the first section brought, for the second.
    waiting: Mutex<CpuCommonWire>,
    /// The registers are complete without the section of an APIC.
    apic_is_a_device: bool,
}

impl Shared {
    fn new(
        vcpu: Arc<Mutex<Box<dyn Vcpu>>>,
        clocks: &Clocks,
        on_error: impl Fn(Error) + Send + Sync + 'static,
        apic_is_a_device: bool,
    ) -> Arc<Self> {
        let (state, waiting) = (Mutex::default(), Mutex::default());
        Arc::new(Self { vcpu, clocks: clocks.clone(), on_error: Box::new(on_error), state, waiting, apic_is_a_device })
    }

    fn now(&self) -> i64 {
        self.clocks.now_ns(Clock::Virtual)
    }
}

struct Common(Arc<Shared>);
struct Cpu(Arc<Shared>);
struct Apic(Arc<Shared>);

impl Snapshot for Common {
    type Wire = CpuCommonWire;

    fn snapshot(&self) -> CpuCommonWire {
        match self.0.vcpu.lock().save() {
            Ok(state) => *self.0.state.lock() = state,
            Err(e) => (self.0.on_error)(e),
        }
        let state = self.0.state.lock();
        let halted = matches!(state.mp_state, MpState::Halted | MpState::Uninitialized | MpState::InitReceived);
        // With controllers in the kernel all of it is the kernel's.
        let e = if self.0.apic_is_a_device { state.events } else { PendingEvents::default() };
        let request = |is: bool, bit: u32| if is { bit } else { 0 };
        let interrupt_request = request(e.interrupt_waits, REQUEST_HARD)
            | request(state.events.smi_pending, REQUEST_SMI)
            | request(e.nmi_pending, REQUEST_NMI);
        CpuCommonWire { halted: halted.into(), interrupt_request }
    }

    fn restore(&self, wire: CpuCommonWire) {
        *self.0.waiting.lock() = wire;
    }
}

impl Snapshot for Cpu {
    type Wire = CpuWire;

    fn snapshot(&self) -> CpuWire {
        CpuWire::from_state(&self.0.state.lock())
    }

    fn validate(&self, wire: &CpuWire) -> Result<(), LoadError> {
        wire.check()
    }

    fn restore(&self, wire: CpuWire) {
        let mut state = self.0.state.lock();
        *state = wire.into_state(std::mem::take(&mut *state), &self.0.waiting.lock());
        if self.0.apic_is_a_device
            && let Err(e) = self.0.vcpu.lock().load(&state)
        {
            (self.0.on_error)(e);
        }
    }
}

impl Snapshot for Apic {
    type Wire = ApicWire;

    fn snapshot(&self) -> ApicWire {
        ApicWire::from_state(&self.0.state.lock(), self.0.now())
    }

    fn restore(&self, wire: ApicWire) {
        let mut state = self.0.state.lock();
        wire.apply(&mut state, self.0.now());
        if let Err(e) = self.0.vcpu.lock().load(&state) {
            (self.0.on_error)(e);
        }
    }
}

#[cfg(test)]
mod tests;
