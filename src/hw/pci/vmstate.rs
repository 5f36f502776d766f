//! The part of a device's section that is its configuration space.

use lockstep_vmstate::VmState;

/// `PCIDevice`, the first field of every PCI device's state.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "PCIDevice", version = 2, minimum = 1)]
pub struct PciDeviceState {
    /// Version of this part: 2.
    #[vmstate(kind = "int32 le")]
    pub version_id: i32,
    /// Configuration space.
    #[vmstate(name = "config[0]", kind = "pci config")]
    pub config: [u8; 256],
    /// Levels of INTA to INTD.
    #[vmstate(kind = "pci irq state")]
    pub irq_state: [u32; 4],
}
