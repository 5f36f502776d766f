//! The section of QEMU's patcher of task priority accesses (`kvmvapic`), which only 32-bit Windows XP needs. There is no patcher here:
//! its state passes through, so that a guest that goes on to QEMU finds it.

use lockstep_vmstate::{LoadError, Snapshot, Unused, VmState, Wire};
use parking_lot::Mutex;

/// Entry points of the patch.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "kvmvapic-handlers", version = 1)]
#[allow(missing_docs)]
pub struct Handlers {
    pub set_tpr: u32,
    pub set_tpr_eax: u32,
    pub get_tpr: [u32; 8],
    pub get_tpr_stack: u32,
}

/// What the guest's ROM says.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "kvmvapic-guest-rom", version = 1)]
#[allow(missing_docs)]
pub struct RomState {
    pub unused: Unused<8>,
    pub vaddr: u32,
    pub fixup_start: u32,
    pub fixup_end: u32,
    pub vapic_vaddr: u32,
    pub vapic_size: u32,
    pub vcpu_shift: u32,
    pub real_tpr_addr: u32,
    pub up: Handlers,
    pub mp: Handlers,
}

/// The section `kvm-tpr-opt`.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "kvm-tpr-opt", version = 1)]
#[allow(missing_docs)]
pub struct VapicState {
    pub rom_state: RomState,
    pub state: u32,
    pub real_tpr_addr: u32,
    pub rom_state_vaddr: u32,
    pub vapic_paddr: u32,
    pub rom_state_paddr: u32,
}

/// The state, kept.
#[derive(Default)]
pub struct Vapic(Mutex<VapicState>);

impl Vapic {
    /// Forgets it.
    pub fn reset(&self) {
        *self.0.lock() = Wire::absent();
    }
}

impl Snapshot for Vapic {
    type Wire = VapicState;

    fn snapshot(&self) -> VapicState {
        self.0.lock().clone()
    }

    fn validate(&self, wire: &VapicState) -> Result<(), LoadError> {
        // Inactive, standby, active.
        if wire.state > 2 {
            return Err(LoadError::invalid("kvm-tpr-opt: unknown state"));
        }
        Ok(())
    }

    fn restore(&self, wire: VapicState) {
        *self.0.lock() = wire;
    }
}
