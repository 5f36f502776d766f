//! The machine as firmware finds it.

use lockstep_event::{Clock, Clocks};
use lockstep_util::size::{GIB, MIB};
use lockstep_vmstate::{Snapshot, vmstate_roundtrip};

use super::*;
use crate::{core::Board, pci::PciDevice, rtc::RtcConfig};

struct Bare;

impl PcHooks for Bare {}

fn config() -> PcConfig {
    PcConfig {
        ram_size: 512 * MIB,
        max_ram_below_4g: None,
        cpus: vec![CpuSlot { index: 0, apic_id: 0 }],
        max_cpus: 1,
        topology: (1, 1),
        cpuid_1: (0x60fb1, 0x78b_fbfd),
        amd: true,
        uuid: None,
        bios: "bios.test".into(),
        boot: BootConfig::default(),
        acpi: true,
        hpet: true,
        usb: false,
        smm: true,
        vmport: true,
        i8042: true,
        graphics: true,
        rtc: RtcConfig { clock: Clock::Virtual, base: 0 },
        kernel: None,
        floppy_drive: true,
        floppy_backend: None,
        serial: [false; 2],
        parallel: true,
        machine_name: "pc-i440fx-10.0".into(),
        files: vec![],
    }
}

/// A BIOS of 256 KiB whose first and last bytes are known.
fn board() -> (Board, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut image = vec![0xf4; 0x4_0000];
    image[0] = 0xb1;
    image[0x2_0000] = 0xb2;
    std::fs::write(folder.path().join("bios.test"), image).unwrap();
    let board = Board::new(Clocks::manual());
    board.firmware.prepend(folder.path());
    (board, folder)
}

fn machine() -> PcMachine {
    let (board, _folder) = board();
    let machine = PcMachine::build(config(), &board, &mut Bare).unwrap();
    board.resets.reset(crate::core::ResetKind::Cold);
    machine
}

fn cmos(m: &PcMachine, at: u8) -> u8 {
    m.board.port_space.write_u8(0x70, at);
    m.board.port_space.read_u8(0x71)
}

#[test]
fn the_bios_is_at_both_ends_of_its_world() {
    let m = machine();
    let memory = &m.board.memory_space;
    assert_eq!([0xfffc_0000, 0xfffe_0000, 0xffff_fff0].map(|a| memory.read_u8(a)), [0xb1, 0xb2, 0xf4]);
    assert_eq!([0xe_0000, 0xf_fff0].map(|a| memory.read_u8(a)), [0xb2, 0xf4]);
    memory.write_u8(0xf_fff0, 0);
    assert_eq!(memory.read_u8(0xf_fff0), 0xf4);
    memory.write_u32(0x1fff_fffc, 0x1234);
    assert_eq!((memory.read_u32(0x1fff_fffc), memory.read_u32(0x2000_0000)), (0x1234, 0));
}

#[test]
fn cmos_is_that_of_the_documented_machine() {
    let m = machine();
    m.set_disk(0, 0, DiskCmos { cylinders: 16383, heads: 16, sectors: 63, translation: 2 });
    m.finish(&[]).unwrap();
    let wanted = "50 00 f0 00 06 80 02 ff ff 2f 00 ff 3f 10 ff ff c8 ff 3f 3f 00 00";
    let got: Vec<_> = (0x10..0x26).map(|at| format!("{:02x}", cmos(&m, at))).collect();
    assert_eq!(got.join(" "), wanted);
    let wanted = "ff ff 19 00 00 1f 00 19 30 01 00 00 00 12 00 00";
    let got: Vec<_> = (0x30..0x40).map(|at| format!("{:02x}", cmos(&m, at))).collect();
    assert_eq!(got.join(" "), wanted, "1970 is in century 19");
    assert_eq!(cmos(&m, 0x5f), 0);
}

#[test]
fn memory_beyond_the_hole_is_above_4_gib() {
    let (board, _folder) = board();
    let m = PcMachine::build(PcConfig { ram_size: 4 * GIB, ..config() }, &board, &mut Bare).unwrap();
    board.memory_space.write_u32(0x1_3fff_fffc, 7);
    assert_eq!(board.memory_space.read_u32(0x1_3fff_fffc), 7);
    assert_eq!(board.memory_space.ram_at(0xc000_0000).map(|r| r.1), None);
    assert_eq!((m.config.below_4g(), m.config.above_4g()), (3 * GIB, GIB));
    assert_eq!([cmos(&m, 0x5b), cmos(&m, 0x5c), cmos(&m, 0x5d)], [0, 0x40, 0]);
    assert_eq!(m.fw_cfg.file("etc/e820").unwrap().len(), 60);
}

#[test]
fn sections_come_in_qemus_order() {
    let m = machine();
    let sent = |e: &lockstep_vmstate::Entry| e.state.as_ref().is_some_and(|s| s.needed());
    let entries = m.board.states.entries();
    let names: Vec<_> = entries.iter().filter(|e| sent(e)).map(|e| format!("{}/{}", e.name, e.instance)).collect();
    let wanted = [
        "kvm-tpr-opt/0",
        "apic/0",
        "0000:00:00.0/I440FX/0",
        "PCIHost/0",
        "PCIBUS/0",
        "fw_cfg/0",
        "dma/0",
        "dma/1",
        "mc146818rtc/0",
        "0000:00:01.1/ide/0",
        "i2c_bus/0",
        "0000:00:01.3/piix4_pm/0",
        "0000:00:01.0/PIIX3/0",
        "i8259/0",
        "i8259/1",
        "ioapic/0",
        "hpet/0",
        "i8254/0",
        "pcspk/0",
        "fdc/0",
        "ps2kbd/0",
        "ps2mouse/0",
        "pckbd/0",
        "vmmouse/0",
        "port92/0",
    ];
    assert_eq!(names, wanted);
}

#[test]
fn a_missing_bios_is_reported_in_the_known_words() {
    let (board, _folder) = board();
    let e = PcMachine::build(PcConfig { bios: "nope".into(), ..config() }, &board, &mut Bare).err().unwrap();
    assert_eq!(e.message(), "could not load PC BIOS 'nope'");
}

#[test]
fn firmware_finds_its_files() {
    let m = machine();
    m.finish(&[BootEntry { index: 2, path: "/b".into() }, BootEntry { index: 1, path: "/a".into() }]).unwrap();
    let files = m.fw_cfg.files();
    let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    let wanted = [
        "bios-geometry",
        "bootorder",
        "etc/acpi/rsdp",
        "etc/acpi/tables",
        "etc/boot-fail-wait",
        "etc/e820",
        "etc/smbios/smbios-anchor",
        "etc/smbios/smbios-tables",
        "etc/system-states",
        "etc/table-loader",
    ];
    assert_eq!(names, wanted);
    assert_eq!(m.fw_cfg.file("bootorder").unwrap(), b"/a\n/b\0");
    assert_eq!(m.fw_cfg.file("etc/system-states").unwrap(), [0x80, 0, 0, 0x81, 0x82, 0x80]);
    assert_eq!(m.fw_cfg.file("etc/boot-fail-wait").unwrap(), [0xff; 4]);
    let e820 = m.fw_cfg.file("etc/e820").unwrap();
    assert_eq!(
        (e820.len(), &e820[20..], e820[16]),
        (40, &[&[0u8; 8][..], &[0, 0, 0, 0x20, 0, 0, 0, 0], &[1, 0, 0, 0]].concat()[..], 2)
    );
}

#[test]
fn the_machine_says_of_itself_what_the_documented_one_does() {
    let m = machine();
    m.finish(&[]).unwrap();
    let anchor = m.fw_cfg.file("etc/smbios/smbios-anchor").unwrap();
    let wanted = "5f534d5f001f020852000000000000005f444d495f00440100000000080028";
    assert_eq!(anchor.iter().map(|b| format!("{b:02x}")).collect::<String>(), wanted);
    let tables = m.fw_cfg.file("etc/smbios/smbios-tables").unwrap();
    let cpu = tables.windows(4).position(|w| w == [4, 0x2a, 0, 4]).unwrap();
    let wanted = [1, 3, 0xfe, 2, 0xb1, 0x0f, 6, 0, 0xfd, 0xfb, 0x8b, 7, 3, 0, 0, 0, 0xd0, 7, 0xd0, 7, 0x41, 1];
    assert_eq!(tables[cpu + 4..cpu + 26], wanted);
}

/// Also of the fields and subsections that a machine seldom sends. Needs an installed QEMU that has the machine type (10.0).
#[test]
fn the_declared_layouts_are_those_of_the_installed_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump.json");
    let mut qemu = std::process::Command::new("qemu-system-x86_64");
    let done = qemu.args(["-M", "pc-i440fx-10.0", "-dump-vmstate"]).arg(&dump).output();
    let Some(text) = done.ok().filter(|d| d.status.success()).and_then(|_| std::fs::read(&dump).ok()) else {
        eprintln!("skipped: no QEMU 10.0 or newer is installed");
        return;
    };
    let dump: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let m = machine();
    static TYPES: [&[&crate::core::DeviceType]; 3] = [crate::char::TYPES, crate::display::TYPES, crate::usb::TYPES];
    let types = crate::core::TypeTable(&TYPES);
    for name in ["piix3-usb-uhci", "usb-tablet", "usb-kbd", "VGA", "isa-serial"] {
        let kind = types.find(name).unwrap();
        crate::core::create_device(&m.board, kind, None, None, &[], crate::core::QomParent::User).unwrap();
    }
    let mut unknown = vec![];
    let mut wrong = vec![];
    for entry in m.board.states.entries() {
        let Some(layout) = entry.state.and_then(|s| s.layout()) else { continue };
        let of_name = |d: &&serde_json::Value| d["Description"]["name"] == layout.name;
        match dump.as_object().unwrap().values().find(of_name) {
            Some(device) => wrong.extend(layout.differences(&device["Description"])),
            None => unknown.push(layout.name),
        }
    }
    // Streams of versions before any machine type that there is here are not read.
    wrong.retain(|w| !w.contains(": since ") && !w.contains(": minimum_version_id "));
    // Arrays whose length QEMU keeps beside them, one that is empty, and a field in two forms for two versions.
    let of_variable_length =
        ["fdc.fifo: 512", "Fifo8.data: 16", "memory hotplug state: field devs", "fw_cfg: field cur_offset"];
    wrong.retain(|w| !of_variable_length.iter().any(|known| w.starts_with(known)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What QEMU does not list there: no devices, or devices with a list of their own.
    unknown.dedup();
    assert_eq!(unknown, ["apic", "PCIBUS", "i2c_bus"]);
}

vmstate_roundtrip!(
    a_memory_of_the_smbus_survives_the_wire,
    || {
        let m = machine();
        let pm = m.pm.unwrap();
        // Byte 10h of the second memory: write 5Ah by way of the host controller.
        let ports = &m.board.port_space;
        pm.config_write(0xd2, 0x09, 1);
        for (register, value) in [(4, 0xa2), (3, 0x10), (5, 0x5a), (2, 0x48)] {
            ports.write_u8(0xb100 + register, value);
        }
        let section = crate::acpi::pm::Eeprom::new(&pm, 1);
        assert!(section.is_needed(), "it was used");
        section
    },
    || crate::acpi::pm::Eeprom::new(&machine().pm.unwrap(), 1)
);
