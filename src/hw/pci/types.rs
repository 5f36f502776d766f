//! The properties of every PCI device.

use crate::core::{Property, PropertyKind};

/// Ancestors of a conventional PCI device's type, nearest first.
pub const PCI_PARENTS: &[&str] = &["pci-device", "device", "object"];

/// Properties of `pci-device`. A type whose ROM or `multifunction` differs overrides the default in its own table, which comes first.
pub const PCI_DEVICE_PROPERTIES: &[Property] = &[
    Property::new("addr", PropertyKind::PciAddress, "-1"),
    Property::unset("romfile", PropertyKind::Str),
    Property::new("romsize", PropertyKind::U32, "4294967295"),
    Property::new("rombar", PropertyKind::I32, "-1"),
    Property::new("multifunction", PropertyKind::Bool, "off"),
    Property::unset("bootindex", PropertyKind::I32).hidden(),
];
