//! Registers of PCI hot-plug (QEMU's `docs/specs/acpi_pci_hotplug.rst`): which slots of a bus were plugged, which are to be unplugged.

use super::vmstate::{PmState, SlotStatus};

/// Size of the registers, in bytes.
pub(super) const SIZE: u64 = 0x18;
/// Buses that could have a selector.
const BUSES: usize = 256;

const UP: u64 = 0;
const DOWN: u64 = 4;
const EJECT: u64 = 8;
const REMOVABLE: u64 = 0xc;
const SELECT: u64 = 0x10;
const INDEX: u64 = 0x14;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hotplug {
    select: u32,
    status: [SlotStatus; BUSES],
    index: u32,
}

impl Default for Hotplug {
    fn default() -> Self {
        Self { select: 0, status: [SlotStatus { up: 0, down: 0 }; BUSES], index: 0 }
    }
}

impl Hotplug {
    pub(super) fn read(&mut self, offset: u64) -> u32 {
        let Some(bus) = self.status.get_mut(self.select as usize) else { return 0 };
        match offset {
            UP => std::mem::take(&mut bus.up),
            DOWN => bus.down,
            // Features: this machine ejects nothing and has no names for its devices.
            EJECT | REMOVABLE => 0,
            SELECT => self.select,
            INDEX => self.index,
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32) {
        match offset {
            SELECT => self.select = value & 0xff,
            INDEX => self.index = 0,
            _ => {}
        }
    }

    pub(super) fn save(&self) -> ([SlotStatus; BUSES], u32, u32) {
        (self.status, self.select, self.index)
    }

    pub(super) fn load(&mut self, wire: &PmState) {
        *self = Self { select: wire.hotplug_select & 0xff, status: wire.acpi_pcihp_pci_status, index: wire.acpi_index };
    }
}
