//! Types of the board's own devices.

use crate::{
    core::{Category, DeviceType, Property, PropertyKind},
    pci::{PCI_DEVICE_PROPERTIES, PCI_PARENTS},
};

use PropertyKind::{AudioDev, Bool, I32, Size, Str, U8, U16, U32};

const SYSBUS: &[&str] = &["sys-bus-device", "device", "object"];
const ISA: &[&str] = &["isa-device", "device", "object"];

const PLAIN: &[&str] = &["device", "object"];

const fn kind(
    name: &'static str,
    bus: &'static str,
    parents: &'static [&'static str],
    properties: &'static [&'static [Property]],
) -> DeviceType {
    let (alias, category, description, create) = (None, Category::Misc, "", None);
    DeviceType { name, alias, parents, bus, category, description, properties, create }
}

const fn of(name: &'static str, kind: PropertyKind, default: &'static str) -> Property {
    Property::new(name, kind, default)
}

pub(super) static VAPIC: DeviceType = kind("kvmvapic", "System", SYSBUS, &[]);

pub(super) static KVMCLOCK: DeviceType =
    kind("kvmclock", "System", SYSBUS, &[&[of("x-mach-use-reliable-get-clock", Bool, "on")]]);

pub(super) static PCI_HOST: DeviceType = kind(
    "i440FX-pcihost",
    "System",
    &["pci-host-bridge", "sys-bus-device", "device", "object"],
    &[&[
        of("pci-hole64-size", Size, "2147483648"),
        of("below-4g-mem-size", Size, "0"),
        of("above-4g-mem-size", Size, "0"),
    ]],
);

pub(super) static I440FX: DeviceType = kind("i440FX", "PCI", PCI_PARENTS, &[PCI_DEVICE_PROPERTIES]);

pub(super) static PIIX3: DeviceType = kind(
    "PIIX3",
    "PCI",
    &["pci-piix3", "pci-device", "device", "object"],
    &[
        &[
            of("smb_io_base", U32, "45312"),
            of("has-acpi", Bool, "on"),
            of("has-pic", Bool, "off"),
            of("has-pit", Bool, "off"),
            of("has-usb", Bool, "off"),
            of("smm-enabled", Bool, "on"),
        ],
        PCI_DEVICE_PROPERTIES,
    ],
);

pub(super) static PIIX4_PM: DeviceType = kind(
    "PIIX4_PM",
    "PCI",
    PCI_PARENTS,
    &[
        &[
            of("smb_io_base", U32, "1792"),
            of("disable_s3", U8, "0"),
            of("disable_s4", U8, "0"),
            of("s4_val", U8, "2"),
            of("smm-enabled", Bool, "on"),
        ],
        PCI_DEVICE_PROPERTIES,
    ],
);

pub(super) static FW_CFG: DeviceType = kind(
    "fw_cfg_io",
    "System",
    &["fw_cfg", "sys-bus-device", "device", "object"],
    &[&[of("dma_enabled", Bool, "on"), of("x-file-slots", U16, "32"), of("acpi-mr-restore", Bool, "on")]],
);

pub(super) static IOAPIC: DeviceType =
    kind("ioapic", "System", &["ioapic-common", "sys-bus-device", "device", "object"], &[&[of("version", U8, "32")]]);

pub(super) static KVM_IOAPIC: DeviceType = kind(
    "kvm-ioapic",
    "System",
    &["ioapic-common", "sys-bus-device", "device", "object"],
    &[&[of("gsi_base", U32, "0")]],
);

pub(super) static HPET: DeviceType = kind(
    "hpet",
    "System",
    SYSBUS,
    &[&[
        of("timers", U8, "3"),
        of("msi", Bool, "off"),
        of("hpet-intcap", U32, "0"),
        of("hpet-offset-saved", Bool, "on"),
    ]],
);

const PIC_PROPERTIES: &[&[Property]] = &[&[
    of("iobase", U32, "4294967295"),
    of("elcr_addr", U32, "4294967295"),
    of("elcr_mask", U8, "255"),
    of("master", Bool, "off"),
]];

pub(super) static I8259: DeviceType =
    kind("isa-i8259", "ISA", &["pic-common", "isa-device", "device", "object"], PIC_PROPERTIES);

pub(super) static KVM_I8259: DeviceType =
    kind("kvm-i8259", "ISA", &["pic-common", "isa-device", "device", "object"], PIC_PROPERTIES);

pub(super) static PIT: DeviceType =
    kind("isa-pit", "ISA", &["pit-common", "isa-device", "device", "object"], &[&[of("iobase", U32, "4294967295")]]);

pub(super) static KVM_PIT: DeviceType = kind(
    "kvm-pit",
    "ISA",
    &["pit-common", "isa-device", "device", "object"],
    &[&[of("lost_tick_policy", Str, "delay"), of("iobase", U32, "4294967295")]],
);

pub(super) static SPEAKER: DeviceType = kind(
    "isa-pcspk",
    "ISA",
    ISA,
    &[&[Property::unset("audiodev", AudioDev), of("iobase", U32, "97"), of("migrate", Bool, "on")]],
);

pub(super) static RTC: DeviceType = kind(
    "mc146818rtc",
    "ISA",
    ISA,
    &[&[
        of("base_year", I32, "0"),
        of("iobase", U16, "112"),
        of("irq", U8, "8"),
        of("lost_tick_policy", Str, "discard"),
    ]],
);

pub(super) static I8257: DeviceType = kind(
    "i8257",
    "ISA",
    ISA,
    &[&[of("base", I32, "0"), of("page-base", I32, "128"), of("pageh-base", I32, "-1"), of("dshift", I32, "0")]],
);

pub(super) static FDC: DeviceType = DeviceType {
    category: Category::Storage,
    description: "virtual floppy controller",
    ..kind(
        "isa-fdc",
        "ISA",
        ISA,
        &[&[
            of("iobase", U32, "1008"),
            of("irq", U32, "6"),
            of("dma", U32, "2"),
            of("fdtypeA", DRIVE_TYPE, "auto"),
            of("fdtypeB", DRIVE_TYPE, "auto"),
            of("fallback", DRIVE_TYPE, "288"),
        ]],
    )
};

const DRIVE_TYPE: PropertyKind = PropertyKind::Enum("FloppyDriveType", &["144", "288", "120", "none", "auto"]);

pub(super) static FLOPPY: DeviceType = DeviceType {
    category: Category::Storage,
    description: "virtual floppy drive",
    ..kind(
        "floppy",
        "floppy-bus",
        PLAIN,
        &[&[of("unit", U32, "4294967295")], crate::ide::types::DRIVE, &[of("drive-type", DRIVE_TYPE, "288")]],
    )
};

pub(super) static I8042: DeviceType = kind(
    "i8042",
    "ISA",
    ISA,
    &[&[
        of("extended-state", Bool, "on"),
        of("kbd-throttle", Bool, "off"),
        of("kbd-irq", U8, "1"),
        of("mouse-irq", U8, "12"),
    ]],
);

pub(super) static PS2_KEYBOARD: DeviceType =
    kind("ps2-kbd", "System", &["ps2-device", "sys-bus-device", "device", "object"], &[]);
pub(super) static PS2_MOUSE: DeviceType =
    kind("ps2-mouse", "System", &["ps2-device", "sys-bus-device", "device", "object"], &[]);

pub(super) static VMPORT: DeviceType = kind(
    "vmport",
    "ISA",
    ISA,
    &[&[
        of("x-read-set-eax", Bool, "on"),
        of("x-signal-unsupported-cmd", Bool, "on"),
        of("x-report-vmx-type", Bool, "on"),
        of("x-cmds-v2", Bool, "on"),
        of("vmware-vmx-version", U8, "6"),
        of("vmware-vmx-type", U8, "2"),
    ]],
);

pub(super) static VMMOUSE: DeviceType = kind("vmmouse", "ISA", ISA, &[]);

pub(super) static PORT92: DeviceType = kind("port92", "ISA", ISA, &[]);

pub(super) static SMBUS_EEPROM: DeviceType =
    kind("smbus-eeprom", "i2c-bus", &["smbus-device", "i2c-slave", "device", "object"], &[&[of("address", U8, "0")]]);

/// Types that only the board makes.
pub static BOARD_TYPES: &[&DeviceType] = &[
    &VAPIC,
    &KVMCLOCK,
    &PCI_HOST,
    &I440FX,
    &PIIX3,
    &PIIX4_PM,
    &FW_CFG,
    &IOAPIC,
    &KVM_IOAPIC,
    &HPET,
    &I8259,
    &KVM_I8259,
    &PIT,
    &KVM_PIT,
    &SPEAKER,
    &RTC,
    &I8257,
    &FDC,
    &FLOPPY,
    &I8042,
    &PS2_KEYBOARD,
    &PS2_MOUSE,
    &VMPORT,
    &VMMOUSE,
    &PORT92,
    &SMBUS_EEPROM,
];
