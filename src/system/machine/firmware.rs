//! What firmware is told of devices that users made: the geometry of disks, and what to boot from.

use std::{collections::HashMap, sync::Arc};

use lockstep_hw::{
    core::DeviceNode,
    pc::{BootEntry, DiskCmos},
};
use lockstep_util::{Result, bail};

use crate::vm::Vm;

/// A number among a device's properties.
fn number(node: &DeviceNode, name: &str) -> Option<i64> {
    node.property(name)?.to_json().as_i64()
}

/// Channel and unit of an IDE drive.
fn ide_place(node: &DeviceNode) -> Option<(usize, usize)> {
    let bus = node.bus.upgrade()?;
    let channel = bus.name.strip_prefix("ide.")?.parse().ok()?;
    Some((channel, number(node, "unit")? as usize))
}

/// The IDE disks by channel and unit.
pub(super) fn disks(vm: &Vm) -> Vec<(usize, usize, DiskCmos)> {
    let nodes = vm.board.tree.devices();
    let disk = |node: &Arc<DeviceNode>| {
        let (channel, unit) = ide_place(node)?;
        let count = |name| number(node, name).map(|n| n as u32);
        let translation = match node.property("bios-chs-trans")?.to_json().as_str()? {
            "lba" => 2,
            "large" => 3,
            "rechs" => 4,
            _ => 1,
        };
        let (cylinders, heads, sectors) = (count("cyls")?, count("heads")?, count("secs")?);
        Some((channel, unit, DiskCmos { cylinders, heads, sectors, translation }))
    };
    nodes.iter().filter(|n| n.kind.name == "ide-hd").filter_map(disk).collect()
}

/// The devices with a `bootindex`.
///
/// # Errors
/// When two have the same.
pub(super) fn boot_entries(vm: &Vm) -> Result<Vec<BootEntry>> {
    let mut taken = HashMap::new();
    let mut entries = vec![];
    for node in vm.board.tree.devices() {
        let Some(index) = number(&node, "bootindex").filter(|&i| i >= 0) else { continue };
        if taken.insert(index, node.path.clone()).is_some() {
            bail!("The bootindex {index} has already been used");
        }
        if let Some(path) = firmware_path(&node) {
            entries.push(BootEntry { index: index as i32, path });
        }
    }
    Ok(entries)
}

/// A device as firmware names it (IEEE 1275 paths, as SeaBIOS reads them).
fn firmware_path(node: &DeviceNode) -> Option<String> {
    const PCI: &str = "/pci@i0cf8";
    if let Some((channel, unit)) = ide_place(node) {
        return Some(format!("{PCI}/ide@1,1/drive@{channel}/disk@{unit}"));
    }
    let place = number(node, "addr")?;
    let (slot, function) = (place >> 3, place & 7);
    let kind = match node.kind.name {
        "rtl8139" => "ethernet",
        _ => return None,
    };
    let function = if function == 0 { String::new() } else { format!(",{function:x}") };
    Some(format!("{PCI}/{kind}@{slot:x}{function}"))
}
