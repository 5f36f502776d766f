//! The differentiated system description table: the devices that cannot be found otherwise, interrupt routing, sleep states.

use super::AcpiConfig;
use crate::{
    acpi::{
        aml::{self, Aml, resource as r},
        pm::{GPE_PORT, PCI_HOTPLUG_PORT},
    },
    timer::hpet::{HPET_ADDRESS, HPET_SIZE},
};

/// Where memory of the PCI bus ends below 4 GiB: the I/O APIC.
const PCI_HOLE_LAST: u32 = 0xfebf_ffff;
/// ISA interrupts that PCI interrupts may be routed to.
const LINK_IRQS: [u32; 3] = [5, 10, 11];
const LINKS: [&str; 4] = ["LNKA", "LNKB", "LNKC", "LNKD"];
/// The power management function's interrupt, which is not routed.
const LINK_SCI: &str = "LNKS";
const ROUTES: [&str; 4] = ["PRQ0", "PRQ1", "PRQ2", "PRQ3"];
/// A route that is off.
const ROUTE_OFF: u64 = 0x80;
/// `_STA`: present, enabled, shown, working; without being enabled.
const PRESENT: u64 = 0x0f;
const ENABLED_HIDDEN: u64 = 0x0b;
const DISABLED: u64 = 0x09;

pub(super) fn body(config: &AcpiConfig) -> Vec<u8> {
    aml::join([
        aml::scope("\\_SB", vec![pci(config), aml::join(links()), aml::join(cpus(config)), hpet(config)]),
        sleep_states(config),
        aml::scope("\\_GPE", vec![aml::named("_HID", aml::string("ACPI0006"))]),
    ])
}

fn hid(id: &str) -> Aml {
    aml::named("_HID", aml::eisa_id(id))
}

fn crs(descriptors: Vec<Aml>) -> Aml {
    aml::named("_CRS", r::template(descriptors))
}

fn pci(config: &AcpiConfig) -> Aml {
    aml::device(
        "PCI0",
        vec![
            hid("PNP0A03"),
            aml::named("_ADR", aml::int(0)),
            aml::named("_UID", aml::int(0)),
            crs(vec![
                r::buses(0, 0xff),
                r::io(0xcf8, 8),
                r::port_window(0, 0xcf7),
                r::port_window(0xd00, 0xffff),
                r::memory_window(0xa_0000, 0xb_ffff, true),
                r::memory_window(config.pci_hole, PCI_HOLE_LAST, false),
            ]),
            aml::named("_PRT", routing()),
            isa(config),
            board_ports("GPE0", "GPE0 resources", GPE_PORT, 4),
            board_ports("PHPR", "PCI Hotplug resources", PCI_HOTPLUG_PORT, 0x18),
            firmware_configuration(),
        ],
    )
}

/// Which link each pin of each slot is wired to. The power management function (slot 1, pin A) has the system control interrupt.
fn routing() -> Aml {
    let entry = |slot: u64, pin: u64| {
        let link = match (slot, pin) {
            (1, 0) => LINK_SCI,
            _ => LINKS[((slot + pin + 3) & 3) as usize],
        };
        aml::package(vec![aml::int(slot << 16 | 0xffff), aml::int(pin), aml::name(link), aml::int(0)])
    };
    aml::package((0..32).flat_map(|slot| (0..4).map(move |pin| entry(slot, pin))).collect())
}

/// Ports that belong to the board.
fn board_ports(name: &str, uid: &str, port: u16, length: u8) -> Aml {
    aml::device(
        name,
        vec![
            aml::named("_HID", aml::string("PNP0A06")),
            aml::named("_UID", aml::string(uid)),
            aml::named("_STA", aml::int(ENABLED_HIDDEN)),
            crs(vec![r::io(port, length)]),
        ],
    )
}

fn firmware_configuration() -> Aml {
    aml::device(
        "FWCF",
        vec![
            aml::named("_HID", aml::string("QEMU0002")),
            aml::named("_STA", aml::int(ENABLED_HIDDEN)),
            crs(vec![r::io(0x510, 0x0c)]),
        ],
    )
}

fn isa(config: &AcpiConfig) -> Aml {
    let mut body = vec![
        aml::named("_ADR", aml::int(1 << 16)),
        aml::pci_config_region("P40C", 0x60, 4),
        aml::byte_fields("P40C", &ROUTES),
        isa_device("RTC", "PNP0B00", None, vec![r::io(0x70, 8), r::irq(8)]),
    ];
    let ports = &config.ports;
    if ports.i8042 {
        body.push(isa_device("KBD", "PNP0303", None, vec![r::io(0x60, 1), r::io(0x64, 1), r::irq(1)]));
        body.push(isa_device("MOU", "PNP0F13", None, vec![r::irq(12)]));
    }
    if ports.floppy {
        let resources = vec![r::io(0x3f2, 4), r::io(0x3f7, 1), r::irq(6), r::dma(2)];
        body.push(isa_device("FDC0", "PNP0700", None, resources));
    }
    if ports.parallel {
        body.push(isa_device("LPT1", "PNP0400", Some(1), vec![r::io(0x378, 8), r::irq(7)]));
    }
    for (n, (name, port, irq)) in [("COM1", 0x3f8, 4), ("COM2", 0x2f8, 3)].into_iter().enumerate() {
        if ports.serial[n] {
            body.push(isa_device(name, "PNP0501", Some(n as u64 + 1), vec![r::io(port, 8), r::irq(irq)]));
        }
    }
    aml::device("ISA", body)
}

fn isa_device(name: &str, id: &str, uid: Option<u64>, resources: Vec<Aml>) -> Aml {
    let mut body = vec![hid(id)];
    body.extend(uid.map(|n| aml::named("_UID", aml::int(n))));
    body.push(aml::named("_STA", aml::int(PRESENT)));
    body.push(crs(resources));
    aml::device(name, body)
}

fn links() -> Vec<Aml> {
    let route = |n: usize| aml::name(&format!("\\_SB.PCI0.ISA.{}", ROUTES[n]));
    // Whether a route is on, and the resources of one.
    let status = aml::method(
        "IQST",
        1,
        false,
        vec![
            aml::if_then(aml::and(aml::int(ROUTE_OFF), aml::arg(0)), vec![aml::ret(aml::int(DISABLED))]),
            aml::ret(aml::int(ENABLED_HIDDEN)),
        ],
    );
    let current = aml::method(
        "IQCR",
        1,
        true,
        vec![
            aml::named("PRR0", r::template(vec![r::interrupt(&[0])])),
            aml::dword_field(aml::name("PRR0"), 5, "PRRI"),
            aml::if_then(aml::less(aml::arg(0), aml::int(ROUTE_OFF)), vec![aml::store(aml::arg(0), aml::name("PRRI"))]),
            aml::ret(aml::name("PRR0")),
        ],
    );
    let link = |n: usize| {
        aml::device(
            LINKS[n],
            vec![
                hid("PNP0C0F"),
                aml::named("_UID", aml::int(n as u64)),
                aml::named("_PRS", r::template(vec![r::interrupt(&LINK_IRQS)])),
                aml::method("_STA", 0, false, vec![aml::ret(aml::call("IQST", vec![route(n)]))]),
                aml::method("_DIS", 0, false, vec![aml::or_into(route(n), aml::int(ROUTE_OFF), route(n))]),
                aml::method("_CRS", 0, false, vec![aml::ret(aml::call("IQCR", vec![route(n)]))]),
                aml::method(
                    "_SRS",
                    1,
                    false,
                    vec![aml::dword_field(aml::arg(0), 5, "PRRI"), aml::store(aml::name("PRRI"), route(n))],
                ),
            ],
        )
    };
    let sci = aml::device(
        LINK_SCI,
        vec![
            hid("PNP0C0F"),
            aml::named("_UID", aml::int(4)),
            aml::named("_PRS", r::template(vec![r::interrupt(&[9])])),
            aml::method("_STA", 0, false, vec![aml::ret(aml::int(ENABLED_HIDDEN))]),
            aml::method("_DIS", 0, false, vec![]),
            aml::method("_CRS", 0, false, vec![aml::ret(aml::name("_PRS"))]),
            aml::method("_SRS", 1, false, vec![]),
        ],
    );
    let mut all = vec![status, current];
    all.extend((0..4).map(link));
    all.push(sci);
    all
}

fn cpus(config: &AcpiConfig) -> Vec<Aml> {
    let cpu = |n: usize| {
        let body = vec![
            aml::named("_HID", aml::string("ACPI0007")),
            aml::named("_UID", aml::int(n as u64)),
            aml::named("_STA", aml::int(PRESENT)),
        ];
        aml::device(&format!("C{n:03X}"), body)
    };
    (0..config.apic_ids.len()).map(cpu).collect()
}

fn hpet(config: &AcpiConfig) -> Aml {
    if !config.hpet {
        return vec![];
    }
    aml::device(
        "HPET",
        vec![
            hid("PNP0103"),
            aml::named("_UID", aml::int(0)),
            aml::named("_STA", aml::int(PRESENT)),
            crs(vec![r::memory_fixed(HPET_ADDRESS as u32, HPET_SIZE as u32)]),
        ],
    )
}

fn sleep_states(config: &AcpiConfig) -> Aml {
    let state = |name: &str, value: u8| {
        let value = aml::int(value.into());
        aml::named(name, aml::package(vec![value.clone(), value, aml::int(0), aml::int(0)]))
    };
    let mut states = vec![];
    if config.s3 {
        states.push(state("\\_S3", 1));
    }
    if config.s4 {
        states.push(state("\\_S4", config.s4_value));
    }
    states.push(state("\\_S5", 0));
    aml::join(states)
}
