//! The PCI bus.

use lockstep_hw::pci::{Bar, BarKind, PciBus, PciDevice, class_name, offset};
use lockstep_qapi::{Registry, cmd, schema::*};

use super::Ctx;
use crate::vm::Vm;

pub(super) fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::QueryPci>(async |vm: Ctx, _| Ok(query(&vm)));
}

/// The buses with their devices, in the order of their places.
pub fn query(vm: &Vm) -> Vec<PciInfo> {
    let Some(bus) = vm.board.tree.find_bus(|b| b.kind == "PCI").and_then(|b| b.object::<PciBus>()) else {
        return vec![];
    };
    let mut devices = bus.devices();
    devices.sort_by_key(|(_, device)| device.function().devfn());
    vec![PciInfo { bus: 0, devices: devices.iter().map(|(id, d)| device(id.as_deref(), d.as_ref())).collect() }]
}

fn device(id: Option<&str>, device: &dyn PciDevice) -> PciDeviceInfo {
    let function = device.function();
    let word = |at| i64::from(function.with_config(|c| c.u16(at)));
    let byte = |at| i64::from(function.with_config(|c| c.u8(at)));
    let class = function.with_config(|c| c.u16(offset::CLASS));
    let desc = Some(class_name(class)).filter(|name| !name.starts_with("Class "));
    let pin = byte(offset::INTERRUPT_PIN);
    let region = |bar: &Bar| {
        let memory = bar.kind != BarKind::Io;
        PciMemoryRegion {
            bar: bar.number as i64,
            type_: if memory { "memory" } else { "io" }.to_owned(),
            address: bar.address.map_or(-1, |a| a as i64),
            size: bar.size as i64,
            prefetch: memory.then_some(bar.kind == BarKind::Memory { prefetchable: true }),
            mem_type_64: memory.then_some(false),
        }
    };
    PciDeviceInfo {
        bus: 0,
        slot: i64::from(function.devfn() >> 3),
        function: i64::from(function.devfn() & 7),
        class_info: PciDeviceClass { desc, class: class.into() },
        id: PciDeviceId {
            device: word(offset::DEVICE_ID),
            vendor: word(offset::VENDOR_ID),
            subsystem: Some(word(offset::SUBSYSTEM_ID)),
            subsystem_vendor: Some(word(offset::SUBSYSTEM_VENDOR)),
        },
        irq: (pin != 0).then(|| byte(offset::INTERRUPT_LINE)),
        irq_pin: pin,
        qdev_id: id.unwrap_or_default().to_owned(),
        pci_bridge: None,
        regions: function.bars().iter().map(region).collect(),
    }
}
