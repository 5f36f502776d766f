//! What the machine is made of: devices, the PCI bus, CPUs, memory.

use std::{fmt::Write, rc::Rc};

use lockstep_accel::cpu_state::msr;
use lockstep_block::text::human_size;
use lockstep_hw::{
    core::{BusNode, DeviceNode, Property, PropertyKind, PropertyValue},
    irqchip::apic,
    pci::{PciBus, qtree_lines},
    usb::bus::UsbBus,
};
use lockstep_util::{Result, err};

use super::{Args, HmpCommand, args::Param, prefixed};
use crate::{
    machine_options::MachineKind,
    objects::LocalFuture,
    qmp::{cpus, pci},
    vm::Vm,
};

const fn plain(names: &'static str, help: &'static str, run: super::Handler) -> HmpCommand {
    HmpCommand { names, params: &[], usage: "", help, run }
}

pub(super) static INFO: &[HmpCommand] = &[
    plain("cpus", "show infos for each CPU", info_cpus),
    plain("hotpluggable-cpus", "Show information about hotpluggable CPUs", info_places),
    plain("irq", "show the interrupts statistics (if available)", info_irq),
    HmpCommand {
        names: "lapic",
        params: &[Param::OptionalNumber("apic-id")],
        usage: "[apic-id]",
        help: "show local apic state (apic-id: local apic to read, default is which of current CPU)",
        run: info_lapic,
    },
    plain("memdev", "show memory backends", info_memdev),
    plain(
        "memory_size_summary",
        "show the amount of initially allocated and present hotpluggable (if enabled) memory in bytes.",
        info_memory_size,
    ),
    plain("mice", "show which guest mouse is receiving events", info_mice),
    plain("pci", "show PCI info", info_pci),
    plain("pic", "show PIC state", info_pic),
    plain("numa", "show NUMA information", info_numa),
    plain("qtree", "show device tree", info_qtree),
    plain("usb", "show guest USB devices", info_usb),
    plain("vnc", "show the vnc server status", info_vnc),
];

fn info_cpus<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let Some(vcpus) = vm.vcpus() else { return Ok(()) };
        for index in 0..vcpus.len() {
            let mark = if index == 0 { '*' } else { ' ' };
            let _ = writeln!(out, "{mark} CPU #{index}: thread_id={}", vcpus.thread_id(index));
        }
        Ok(())
    })
}

fn info_places<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        if vm.options.machine.kind == MachineKind::None {
            out.push_str("Error: machine does not support hot-plugging CPUs\n");
            return Ok(());
        }
        out.push_str("Hotpluggable CPUs:\n");
        for place in cpus::places(vm) {
            let _ = writeln!(out, "  type: \"{}\"\n  vcpus_count: \"{}\"", place.type_, place.vcpus_count);
            if let Some(path) = &place.qom_path {
                let _ = writeln!(out, "  qom_path: \"{path}\"");
            }
            out.push_str("  CPUInstance Properties:\n");
            let p = &place.props;
            for (name, value) in [("socket-id", p.socket_id), ("core-id", p.core_id), ("thread-id", p.thread_id)] {
                if let Some(value) = value {
                    let _ = writeln!(out, "    {name}: \"{value}\"");
                }
            }
        }
        Ok(())
    })
}

fn info_memdev<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        for m in cpus::memory_backends(vm) {
            let _ = writeln!(
                out,
                "memory backend: {}\n  size:  {}\n  merge: {}\n  dump: {}\n  prealloc: {}\n  share: {}\n  reserve: {}\n  \
                 policy: {}\n  host nodes: ",
                m.id.unwrap_or_default(),
                m.size,
                m.merge,
                m.dump,
                m.prealloc,
                m.share,
                m.reserve.unwrap_or(true),
                m.policy.as_str()
            );
        }
        out.push('\n');
        Ok(())
    })
}

fn info_memory_size<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let _ = writeln!(out, "base memory: {}\nplugged memory: 0", vm.base_memory());
        Ok(())
    })
}

fn info_mice<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let mice = vm.board.input.mice();
        if mice.is_empty() {
            out.push_str("No mouse devices connected\n");
        }
        for m in mice.into_iter().rev() {
            let (mark, kind) = (if m.current { '*' } else { ' ' }, if m.absolute { " (absolute)" } else { "" });
            let _ = writeln!(out, "{mark} Mouse #{}: {}{kind}", m.index, m.name);
        }
        Ok(())
    })
}

fn info_pci<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let buses = pci::query(vm);
        if buses.is_empty() {
            out.push_str("PCI devices not supported\n");
        }
        for d in buses.iter().flat_map(|b| &b.devices) {
            let _ = writeln!(out, "  Bus {:2}, device {:3}, function {}:", d.bus, d.slot, d.function);
            match &d.class_info.desc {
                Some(desc) => out.push_str(&format!("    {desc}")),
                None => out.push_str(&format!("    Class {:04x}", d.class_info.class)),
            }
            let _ = writeln!(out, ": PCI device {:04x}:{:04x}", d.id.vendor, d.id.device);
            if let (Some(vendor), Some(device)) = (d.id.subsystem_vendor, d.id.subsystem) {
                let _ = writeln!(out, "      PCI subsystem {vendor:04x}:{device:04x}");
            }
            if let Some(irq) = d.irq {
                let pin = (b'A' + (d.irq_pin.clamp(1, 4) - 1) as u8) as char;
                let _ = writeln!(out, "      IRQ {irq}, pin {pin}");
            }
            for r in &d.regions {
                let (start, end) = (r.address as u64, (r.address as u64).wrapping_add(r.size as u64).wrapping_sub(1));
                if r.type_ == "io" {
                    let text = format!("I/O at 0x{:04x} [0x{:04x}]", start, end);
                    let text = if r.address == -1 { "I/O (not mapped)".to_owned() } else { text };
                    let _ = writeln!(out, "      BAR{}: {text}", r.bar);
                } else {
                    let kind = if r.prefetch == Some(true) { " prefetchable" } else { "" };
                    let place = if r.address == -1 {
                        "(not mapped)".to_owned()
                    } else {
                        format!("at 0x{start:08x} [0x{end:08x}]")
                    };
                    let _ = writeln!(out, "      BAR{}: 32 bit{kind} memory {place}", r.bar);
                }
            }
            let _ = writeln!(out, "      id \"{}\"", d.qdev_id);
        }
        Ok(())
    })
}

fn info_pic<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        if let Some(pc) = vm.pc() {
            out.push_str(&pc.machine.describe_interrupts());
        }
        Ok(())
    })
}

fn info_irq<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        if let Some(pc) = vm.pc() {
            out.push_str(&pc.machine.describe_irq_counts());
        }
        Ok(())
    })
}

fn info_lapic<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        /// In the APIC's base register: x2APIC mode.
        const X2APIC: u64 = 1 << 10;
        let wanted = match args.get("apic-id") {
            Some(text) => text.parse::<u32>().map_err(|_| err!("No CPU available"))?,
            None => 0,
        };
        let vcpus = vm.vcpus().filter(|v| !v.is_empty()).ok_or_else(|| err!("No CPU available"))?;
        let (index, state) = vm.while_paused(|| {
            let found = (0..vcpus.len()).find(|&i| vcpus.cpu(i).lock().id() == wanted);
            let index = found.ok_or_else(|| err!("No CPU available"))?;
            vcpus.cpu(index).lock().save().map(|state| (index, state))
        })?;
        let x2apic = state.msr(msr::APIC_BASE) & X2APIC != 0;
        let here = vm.pc().and_then(|pc| pc.machine.local_apics()?.apic(index).cloned());
        out.push_str(&match here {
            Some(apic) => apic::text(index as u32, x2apic, |at| apic.read(at)),
            None => apic::text(index as u32, x2apic, |at| state.apic.get(at as usize)),
        });
        Ok(())
    })
}

fn info_numa<'a>(_: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        out.push_str("0 nodes\n");
        Ok(())
    })
}

fn info_usb<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let buses = vm.board.tree.buses();
        let buses: Vec<_> = buses.iter().filter_map(|b| b.object::<UsbBus>()).collect();
        if buses.is_empty() {
            return Err(prefixed(err!("USB support not enabled")));
        }
        for line in buses.iter().flat_map(|b| b.info()) {
            let _ = writeln!(out, "{line}");
        }
        Ok(())
    })
}

fn info_qtree<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        bus(&vm.board.tree.root(), 0, out);
        Ok(())
    })
}

fn bus(bus: &BusNode, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    let _ = writeln!(out, "{pad}bus: {}\n{pad}  type {}", bus.name, bus.type_name);
    // Those that came last are shown first.
    for node in bus.children().iter().rev() {
        device(node, indent + 2, out);
    }
}

fn device(node: &DeviceNode, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    let _ = writeln!(out, "{pad}dev: {}, id \"{}\"", node.kind.name, node.id.as_deref().unwrap_or(""));
    let properties = node.properties();
    for (at, (property, value)) in properties.iter().enumerate() {
        // A default that a type overrides is shown in its ancestor's place.
        let again = properties[at + 1..].iter().any(|(p, _)| p.name == property.name);
        if property.in_qtree && !again {
            let _ = writeln!(out, "{pad}  {} = {}", property.name, value_text(property, value.as_ref()));
        }
    }
    for line in facts(node) {
        let _ = writeln!(out, "{pad}  {line}");
    }
    for child in node.buses() {
        bus(&child, indent + 2, out);
    }
}

/// What is shown after the properties.
fn facts(node: &DeviceNode) -> Vec<String> {
    let own = node.device.qtree_lines();
    let Some(bus) = node.bus.upgrade().and_then(|b| b.object::<PciBus>()).filter(|_| own.is_empty()) else {
        return own;
    };
    let Some(PropertyValue::Signed(at)) = node.property("addr") else { return own };
    let device = u8::try_from(at).ok().and_then(|devfn| bus.device(devfn));
    device.map_or(own, |d| qtree_lines(d.function()))
}

/// A value as QEMU prints it: numbers in both notations, sizes with their unit, text in quotes.
fn value_text(property: &Property, value: Option<&PropertyValue>) -> String {
    match (property.kind, value) {
        (_, None) => "\"\"".into(),
        (PropertyKind::PciAddress, Some(PropertyValue::Signed(at))) if *at >= 0 => {
            format!("{:02x}.{:x}", at >> 3, at & 7)
        }
        (PropertyKind::PciAddress, _) => "<unset>".into(),
        (PropertyKind::Size | PropertyKind::BlockSize, Some(PropertyValue::Unsigned(v))) => {
            format!("{v} ({})", human_size(*v))
        }
        (_, Some(PropertyValue::Bool(v))) => v.to_string(),
        (_, Some(PropertyValue::Unsigned(v))) => format!("{v} (0x{v:x})"),
        (_, Some(PropertyValue::Signed(v))) => format!("{v} (0x{v:x})"),
        (_, Some(PropertyValue::Str(v))) => format!("\"{v}\""),
    }
}

fn info_vnc<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let displays = vm.displays.list();
        if displays.is_empty() {
            out.push_str("None\n");
        }
        // The newest first, as in query-vnc-servers.
        for display in displays.iter().rev() {
            let password = if display.needs_password() { "vnc" } else { "none" };
            let end = |e: &lockstep_vnc::Endpoint| {
                let family = crate::vnc::basic(e).family;
                format!("{}:{} ({})", e.host, e.service, family.as_str())
            };
            let _ = writeln!(out, "{}:", display.id());
            let servers = display.servers();
            for server in servers.iter().rev() {
                let _ = writeln!(out, "  Server: {}\n    Auth: {password} (Sub: none)", end(server));
            }
            for client in display.clients().iter().rev() {
                let _ = writeln!(out, "  Client: {}\n    x509_dname: none\n    sasl_username: none", end(client));
            }
            if servers.is_empty() {
                let _ = writeln!(out, "  Auth: {password} (Sub: none)");
            }
        }
        Ok(())
    })
}
