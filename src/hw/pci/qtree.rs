//! What `info qtree` says of a PCI device after its properties.

use super::{BarKind, PciFunction, offset};

/// Class names by class code (PCI Code and ID Assignment Specification), as QEMU words them.
const CLASSES: [(u16, &str); 8] = [
    (0x0101, "IDE controller"),
    (0x0200, "Ethernet controller"),
    (0x0300, "VGA controller"),
    (0x0600, "Host bridge"),
    (0x0601, "ISA bridge"),
    (0x0680, "Bridge"),
    (0x0c03, "USB controller"),
    (0x0c05, "SMBus"),
];

/// The description of a class code, `Class XXXX` if it has none here.
pub fn class_name(class: u16) -> String {
    match CLASSES.iter().find(|(c, _)| *c == class) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("Class {class:04x}"),
    }
}

/// Class, address, identification and BARs.
pub fn qtree_lines(function: &PciFunction) -> Vec<String> {
    let id = |at| function.with_config(|c| c.u16(at));
    let class = class_name(id(offset::CLASS));
    let mut lines = vec![format!(
        "class {class}, addr 00:{}, pci id {:04x}:{:04x} (sub {:04x}:{:04x})",
        function.slot_text(),
        id(offset::VENDOR_ID),
        id(offset::DEVICE_ID),
        id(offset::SUBSYSTEM_VENDOR),
        id(offset::SUBSYSTEM_ID)
    )];
    lines.extend(function.bars().iter().map(|bar| {
        let kind = if bar.kind == BarKind::Io { "i/o" } else { "mem" };
        // An unmapped BAR is shown at the highest address, its end wrapped around.
        let start = bar.address.unwrap_or(u64::MAX);
        format!("bar {}: {kind} at 0x{start:x} [0x{:x}]", bar.number, start.wrapping_add(bar.size - 1))
    }));
    lines
}
