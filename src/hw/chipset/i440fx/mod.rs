//! The 82441FX host bridge: configuration ports, what C0000 to FFFFF show (PAM), system management RAM (Intel 290549-001).

mod host;
mod pam;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use lockstep_memory::{AddressSpace, RamBlock, Region, Transaction};
use lockstep_util::{Result, size::MIB};
use lockstep_vmstate::{LoadError, Snapshot, Unused, VmState};

pub use host::{PciHost, PciHostState};

use crate::{
    core::{Board, Device, ResetKind},
    pci::{PciBus, PciDevice, PciDeviceState, PciFunction, PciIdentity},
};

/// Attribute registers of the segments from C0000 on.
const PAM: usize = 0x59;
const PAM_COUNT: usize = 7;
/// System management RAM control.
const SMRAM: usize = 0x72;
const SMRAM_OPEN: u8 = 1 << 6;
const SMRAM_LOCK: u8 = 1 << 4;
const SMRAM_ENABLE: u8 = 1 << 3;
const SMRAM_AT_RESET: u8 = 0x02;
/// RAM size in units of 8 MiB, for coreboot.
const RAM_SIZE: usize = 0x57;

const IDENTITY: PciIdentity = PciIdentity {
    vendor: 0x8086,
    device: 0x1237,
    revision: 2,
    class: 0x0600,
    prog_if: 0,
    subsystem: PciIdentity::SUBSYSTEM,
    pin: 0,
};

/// The host bridge, with RAM as it shows it.
pub struct I440fx {
    function: PciFunction,
    pam: pam::Segments,
    /// The VGA window, hidden while SMRAM is open to all.
    smram_window: Region,
    /// SMRAM as CPUs in system management mode see it.
    smram: Region,
    smm_space: AddressSpace,
}

impl I440fx {
    /// The bridge at 00.0 of `bus`. `ram` is shown from 0 to `below_4g`, the rest from 4 GiB on; `pci` is the PCI memory space.
    ///
    /// # Errors
    /// When the place on the bus is taken.
    pub fn new(board: &Board, bus: &Arc<PciBus>, pci: &Region, ram: &RamBlock, below_4g: u64) -> Result<Arc<Self>> {
        let function = PciFunction::new(board, bus, Some(0), "i440FX", &IDENTITY, false)?;
        let ram_region = Region::ram("pc.ram", ram.clone());
        let _transaction = Transaction::begin();
        board.memory.add(0, &Region::alias("ram-below-4g", &ram_region, 0, below_4g));
        if ram.size() > below_4g {
            let above = Region::alias("ram-above-4g", &ram_region, below_4g, ram.size() - below_4g);
            board.memory.add(1 << 32, &above);
        }
        board.memory.add_overlap(0, pci, -1);
        let smram_window = Region::alias("smram-region", pci, 0xa_0000, 0x2_0000);
        board.memory.add_overlap(0xa_0000, &smram_window, 1);
        let smram = Region::alias("smram-low", &ram_region, 0xa_0000, 0x2_0000);
        smram.set_enabled(false);
        let smm = Region::whole_space("memory");
        smm.add(0, &Region::alias("memory", &board.memory, 0, u64::MAX));
        smm.add_overlap(0xa_0000, &smram, 1);
        function.with_config(|c| {
            c.set(RAM_SIZE, &[(ram.size() / (8 * MIB)).min(255) as u8]);
            c.set(SMRAM, &[SMRAM_AT_RESET]);
        });
        let bridge = Arc::new(Self {
            function,
            pam: pam::Segments::new(&board.memory, &ram_region, pci),
            smram_window,
            smram,
            smm_space: AddressSpace::memory("cpu-smm-0", &smm),
        });
        bus.plug(bridge.clone(), None);
        Ok(bridge)
    }

    /// Memory as CPUs in system management mode see it.
    pub fn smm_space(&self) -> &AddressSpace {
        &self.smm_space
    }

    fn apply(&self) {
        let (attributes, smram) =
            self.function.with_config(|c| (std::array::from_fn::<u8, PAM_COUNT, _>(|n| c.u8(PAM + n)), c.u8(SMRAM)));
        let _transaction = Transaction::begin();
        self.pam.apply(&attributes);
        self.smram_window.set_enabled(smram & SMRAM_OPEN == 0);
        self.smram.set_enabled(smram & SMRAM_ENABLE != 0);
    }
}

impl Device for I440fx {
    fn reset(&self, _: ResetKind) {
        self.function.with_config(|c| {
            c.set(PAM, &[0; PAM_COUNT]);
            c.set(SMRAM, &[SMRAM_AT_RESET]);
        });
        self.function.reset();
        self.apply();
    }

    fn qtree_lines(&self) -> Vec<String> {
        crate::pci::qtree_lines(&self.function)
    }
}

impl PciDevice for I440fx {
    fn function(&self) -> &PciFunction {
        &self.function
    }

    fn config_write(&self, at: usize, value: u32, len: usize) {
        let before = self.function.with_config(|c| c.u8(SMRAM));
        self.function.config_write(at, value, len);
        if before & SMRAM_LOCK != 0 {
            // Locked until reset, and closed (section 3.2.18).
            self.function.with_config(|c| c.set(SMRAM, &[before & !SMRAM_OPEN]));
        }
        if at < SMRAM + 1 && at + len > PAM {
            self.apply();
        }
    }
}

/// The section `I440FX`.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "I440FX", version = 3)]
#[allow(missing_docs)]
pub struct I440fxState {
    pub parent_obj: PciDeviceState,
    pub unused: Unused<1>,
}

impl Snapshot for I440fx {
    type Wire = I440fxState;

    fn snapshot(&self) -> I440fxState {
        I440fxState { parent_obj: self.function.save(), unused: Unused }
    }

    fn validate(&self, wire: &I440fxState) -> Result<(), LoadError> {
        self.function.validate(&wire.parent_obj)
    }

    fn restore(&self, wire: I440fxState) {
        self.function.load(&wire.parent_obj);
        self.apply();
    }
}
