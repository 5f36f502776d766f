//! Tables whose form is fixed: FADT, FACS, MADT, HPET, WAET (ACPI 1.0b and 6.5, sections 5.2.9 to 5.2.12; IA-PC HPET 1.0a;
//! Windows ACPI Emulated Devices Table).

use crate::{
    acpi::pm::GPE_PORT,
    irqchip::ioapic::IOAPIC_ADDRESS,
    timer::hpet::{HPET_ADDRESS, HPET_BLOCK_ID},
};

/// Size of a table's header, in bytes.
pub(super) const HEADER: usize = 36;
/// Offsets of pointers in the FADT.
pub(super) const FADT_FACS: usize = 36;
pub(super) const FADT_DSDT: usize = 40;

/// What the tables depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// APIC ids of the CPUs.
    pub apic_ids: Vec<u8>,
    /// Where memory of the PCI bus begins below 4 GiB.
    pub pci_hole: u32,
    /// Base of the power management ports.
    pub pm_base: u16,
    /// Whether there is a HPET.
    pub hpet: bool,
    /// Whether suspend to RAM and to disk are offered.
    pub s3: bool,
    /// See `s3`.
    pub s4: bool,
    /// The sleep type of suspend to disk.
    pub s4_value: u8,
    /// What is on the ISA bus.
    pub ports: Ports,
}

/// Devices on the ISA bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Keyboard and mouse.
    pub i8042: bool,
    /// The floppy controller.
    pub floppy: bool,
    /// The parallel port at 378h.
    pub parallel: bool,
    /// Serial ports at 3F8h and 2F8h.
    pub serial: [bool; 2],
}

const SCI: u16 = 9;
const SMI_COMMAND: u32 = 0xb2;
const ACPI_ENABLE: u8 = 0xf1;
const ACPI_DISABLE: u8 = 0xf0;
/// States C2 and C3 are not there.
const NO_C_STATE: u16 = 0x0fff;
const CENTURY: u8 = 0x32;
/// WBINVD works, C1 on all CPUs, no sleep button, the clock wakes from S4, the timer is the platform's clock.
const FADT_FLAGS: u32 = 1 | 1 << 2 | 1 << 5 | 1 << 7 | 1 << 15;

/// Bytes of a table, by appending.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn put(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend(bytes.as_ref());
        self
    }

    fn u16(self, value: u16) -> Self {
        self.put(value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.put(value.to_le_bytes())
    }
}

/// Firmware's control structure.
pub(super) fn facs() -> Vec<u8> {
    let mut facs = b"FACS".to_vec();
    facs.extend(64u32.to_le_bytes());
    facs.resize(64, 0);
    facs
}

/// The fixed description table, of ACPI 1.0.
pub(super) fn fadt_body(config: &AcpiConfig) -> Vec<u8> {
    let base = u32::from(config.pm_base);
    let head = Bytes::default()
        // FACS and DSDT are pointed to later; both interrupt models; no preferred profile.
        .put([0; 8])
        .put([1, 0])
        .u16(SCI)
        .u32(SMI_COMMAND)
        .put([ACPI_ENABLE, ACPI_DISABLE, 0, 0]);
    let blocks = head
        .u32(base)
        .u32(0)
        .u32(base + 4)
        .u32(0)
        .u32(0)
        .u32(base + 8)
        .u32(GPE_PORT.into())
        .u32(0)
        // Lengths of the blocks: events, control, second control, timer, GPE 0, GPE 1; base of GPE 1; no C-state command.
        .put([4, 2, 0, 4, 4, 0, 0, 0]);
    blocks
        .u16(NO_C_STATE)
        .u16(NO_C_STATE)
        // No cache flushing by strides, no duty cycle, no alarm for day or month.
        .put([0; 8])
        .put([CENTURY, 0, 0, 0])
        .u32(FADT_FLAGS)
        .0
}

/// CPUs and interrupt controllers.
pub(super) fn madt_body(config: &AcpiConfig) -> Vec<u8> {
    let mut bytes = Bytes::default().u32(0xfee0_0000).u32(1);
    for (n, id) in config.apic_ids.iter().enumerate() {
        bytes = bytes.put([0, 8, n as u8, *id]).u32(1);
    }
    bytes = bytes.put([1, 12, 0, 0]).u32(IOAPIC_ADDRESS as u32).u32(0);
    // The timer's ISA interrupt is at input 2; those that PCI uses are level triggered, active high.
    bytes = bytes.put([2, 10, 0, 0]).u32(2).u16(0);
    for irq in [5, 9, 10, 11] {
        bytes = bytes.put([2, 10, 0, irq]).u32(irq.into()).u16(0x0d);
    }
    // The NMI is at LINT1 of all CPUs.
    bytes.put([4, 6, 0xff]).u16(0).put([1]).0
}

pub(super) fn hpet_body() -> Vec<u8> {
    // In memory, at its address; number 0; no minimum tick, no page protection.
    let bytes = Bytes::default().u32(HPET_BLOCK_ID).put([0, 0, 0, 0]).u32(HPET_ADDRESS as u32).u32(0);
    bytes.put([0, 0, 0, 0]).0
}

pub(super) fn waet_body() -> Vec<u8> {
    // One read of the power management timer is enough.
    Bytes::default().u32(2).0
}
