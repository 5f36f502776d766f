//! The section `piix4_pm`.
#![allow(missing_docs)]

use lockstep_vmstate::{LoadError, Timer, VmState};

use crate::pci::PciDeviceState;

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "piix4_pm", version = 3)]
pub struct PmState {
    pub parent_obj: PciDeviceState,
    #[vmstate(name = "ar.pm1.evt.sts")]
    pub sts: u16,
    #[vmstate(name = "ar.pm1.evt.en")]
    pub en: u16,
    #[vmstate(name = "ar.pm1.cnt.cnt")]
    pub cnt: u16,
    pub apm: ApmState,
    pub smb: SmbusState,
    #[vmstate(name = "ar.tmr.timer")]
    pub timer: Timer,
    #[vmstate(name = "ar.tmr.overflow_time")]
    pub overflow_time: i64,
    #[vmstate(name = "ar.gpe")]
    pub gpe: GpeState,
    #[vmstate(name = "acpi_pci_hotplug.hotplug_select")]
    pub hotplug_select: u32,
    #[vmstate(name = "acpi_pci_hotplug.acpi_pcihp_pci_status", each)]
    pub acpi_pcihp_pci_status: [SlotStatus; 256],
    #[vmstate(name = "acpi_pci_hotplug.acpi_index")]
    pub acpi_index: u32,
    #[vmstate(subsection)]
    pub memhp: Option<MemoryHotplugState>,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "APM State", version = 1)]
pub struct ApmState {
    pub apmc: u8,
    pub apms: u8,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "pmsmb", version = 1)]
pub struct SmbusState {
    pub smb_stat: u8,
    pub smb_ctl: u8,
    pub smb_cmd: u8,
    pub smb_addr: u8,
    pub smb_data0: u8,
    pub smb_data1: u8,
    pub smb_index: u32,
    pub smb_data: [u8; 32],
    pub smb_auxctl: u8,
    pub smb_blkdata: u8,
    pub i2c_enable: bool,
    pub op_done: bool,
    pub in_i2c_block_read: bool,
    pub start_transaction_on_status_read: bool,
}

/// The section `smbus-eeprom`: one memory of the SMBus.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "smbus-eeprom", version = 1)]
pub struct EepromState {
    pub smbusdev: SmbusDeviceState,
    pub data: [u8; 256],
    pub offset: u8,
    pub accessed: bool,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "smbus-device", version = 1)]
pub struct SmbusDeviceState {
    pub i2c: I2cSlaveState,
    /// A transfer under way: there is none, transfers finish at once.
    pub mode: i32,
    pub data_len: i32,
    pub data_buf: [u8; 34],
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "I2CSlave", version = 1)]
pub struct I2cSlaveState {
    pub address: u8,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "gpe", version = 1)]
pub struct GpeState {
    pub sts: u16,
    pub en: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, VmState)]
#[vmstate(name = "acpi_pcihp_pci_status", version = 1)]
pub struct SlotStatus {
    pub up: u32,
    pub down: u32,
}

/// Memory hot-plug, of which there is none on this machine.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "piix4_pm/memhp", version = 1)]
pub struct MemoryHotplugState {
    pub acpi_memory_hotplug: SelectorState,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "memory hotplug state", version = 1)]
pub struct SelectorState {
    pub selector: u32,
}

impl PmState {
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        if self.smb.smb_index > 32 {
            return Err(LoadError::invalid("pmsmb: smb_index is out of range"));
        }
        Ok(())
    }
}
