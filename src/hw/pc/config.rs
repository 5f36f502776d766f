//! What a user settles about the machine.

use lockstep_util::size::GIB;

use crate::rtc::RtcConfig;

/// A CPU's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuSlot {
    /// Its number.
    pub index: u32,
    /// Its APIC id.
    pub apic_id: u32,
}

/// What firmware is told of booting (`-boot`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootConfig {
    /// Letters of devices, in order: `a` floppy, `c` disk, `d` CD-ROM, `n` network.
    pub order: String,
    /// Whether to show a menu.
    pub menu: bool,
    /// How long a splash picture or the menu stays, in milliseconds.
    pub splash_time: Option<u16>,
    /// How long to wait before booting again when nothing was bootable, in milliseconds; -1 for ever.
    pub reboot_timeout: i32,
    /// Whether to boot from nothing but devices with a boot index.
    pub strict: bool,
    /// Whether a floppy must have a boot signature.
    pub floppy_check: bool,
}

impl Default for BootConfig {
    fn default() -> Self {
        Self {
            order: "cad".into(),
            menu: false,
            splash_time: None,
            reboot_timeout: -1,
            strict: false,
            floppy_check: true,
        }
    }
}

/// A Linux kernel to start without a boot loader (`-kernel`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    /// The file of the kernel.
    pub image: String,
    /// The file of the initial RAM disk.
    pub initrd: Option<String>,
    /// The command line.
    pub command_line: String,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct PcConfig {
    /// RAM, in bytes.
    pub ram_size: u64,
    /// Where the hole below 4 GiB begins at the latest, in bytes.
    pub max_ram_below_4g: Option<u64>,
    /// The CPUs.
    pub cpus: Vec<CpuSlot>,
    /// How many CPUs there may be.
    pub max_cpus: u32,
    /// Threads of a core, cores of a socket.
    pub topology: (u32, u32),
    /// CPUID leaf 1: EAX and EDX, for the tables.
    pub cpuid_1: (u32, u32),
    /// Whether the CPUs are AMD's, whose bus has a hole below 1 TiB.
    pub amd: bool,
    /// The machine's UUID.
    pub uuid: Option<[u8; 16]>,
    /// The BIOS image's name.
    pub bios: String,
    /// How it boots.
    pub boot: BootConfig,
    /// Whether there are ACPI tables and power management.
    pub acpi: bool,
    /// Whether there is a HPET.
    pub hpet: bool,
    /// USB controller in the PIIX3 (`usb`).
    pub usb: bool,
    /// Whether there is system management mode.
    pub smm: bool,
    /// Whether there is VMware's port with its mouse.
    pub vmport: bool,
    /// Whether there is a keyboard controller.
    pub i8042: bool,
    /// Whether the user sees a display; firmware uses the serial port otherwise.
    pub graphics: bool,
    /// The clock.
    pub rtc: RtcConfig,
    /// A kernel to start.
    pub kernel: Option<KernelConfig>,
    /// Whether there is an empty 2.88 MB floppy drive, as without `-nodefaults`.
    pub floppy_drive: bool,
    /// The drive that users see on it, if any. It never has a medium.
    pub floppy_backend: Option<String>,
    /// Whether serial ports 1 and 2 and the parallel port will be there.
    pub serial: [bool; 2],
    /// See `serial`.
    pub parallel: bool,
    /// The type's name (`pc-i440fx-10.0`).
    pub machine_name: String,
    /// Files for firmware that the user gave (`-fw_cfg`).
    pub files: Vec<(String, Vec<u8>)>,
}

/// RAM ends here at the latest if it does not all fit below.
const LOW_END: u64 = 3 * GIB + GIB / 2;
/// RAM ends here if some is above 4 GiB: a round number for large pages.
const LOW_END_SPLIT: u64 = 3 * GIB;

impl PcConfig {
    /// How much of RAM is below 4 GiB.
    pub fn below_4g(&self) -> u64 {
        let limit = self.max_ram_below_4g.unwrap_or(LOW_END).min(LOW_END);
        if self.ram_size < limit {
            return self.ram_size;
        }
        self.ram_size.min(limit.min(LOW_END_SPLIT))
    }

    /// How much of RAM is above 4 GiB.
    pub fn above_4g(&self) -> u64 {
        self.ram_size - self.below_4g()
    }

    /// One more than the largest APIC id.
    pub fn apic_id_limit(&self) -> u32 {
        let largest = self.cpus.iter().map(|c| c.apic_id).max().unwrap_or(0);
        largest.max(self.max_cpus.saturating_sub(1)) + 1
    }
}
