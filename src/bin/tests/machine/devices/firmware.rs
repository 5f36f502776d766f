//! What firmware finds of the devices that a user made: CMOS RAM and `bootorder`.

use tempfile::TempDir;

use crate::{
    devices::fw_cfg::file,
    qtest::Qtest,
    vm::{Program, Vm},
};

/// An image of some mebibytes, without its data.
fn image(dir: &TempDir, name: &str, mebibytes: u64) -> String {
    let path = dir.path().join(name);
    std::fs::File::create(&path).and_then(|f| f.set_len(mebibytes << 20)).expect("an image");
    path.display().to_string()
}

fn cmos<const N: usize>(q: &mut Qtest, registers: [u8; N]) -> [u8; N] {
    registers.map(|register| {
        q.outb(0x70, register);
        q.inb(0x71)
    })
}

#[test]
fn cmos_ram_has_the_geometry_of_the_first_disks() {
    let dir = TempDir::new().expect("a folder");
    let drive = |name: &str, mebibytes: u64, index: u8| {
        format!("if=ide,index={index},format=raw,file={}", image(&dir, name, mebibytes))
    };
    let mut q = Qtest::start(&["-drive", &drive("a", 16, 0), "-drive", &drive("b", 1024, 1)]);
    // Both of the first channel have an extended type, and that says: see the geometry.
    assert_eq!(cmos(&mut q, [0x12, 0x19, 0x1a]), [0xff, 47, 47]);
    // 32 cylinders, 16 heads, 63 sectors; no precompensation; more than 8 heads; the landing zone.
    assert_eq!(
        cmos(&mut q, [0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23]),
        [32, 0, 16, 255, 255, 0xc8, 32, 0, 63]
    );
    // 1 GiB has 2080 cylinders, which the BIOS translates.
    assert_eq!(cmos(&mut q, [0x24, 0x25, 0x39]), [0x20, 0x08, 0x04]);
}

#[test]
fn devices_with_a_boot_index_are_in_the_boot_order() {
    let dir = TempDir::new().expect("a folder");
    let node = format!("driver=file,node-name=n,filename={}", image(&dir, "a", 1));
    let devices = ["-device", "ide-hd,drive=n,bus=ide.1,unit=1,bootindex=2", "-device", "rtl8139,addr=5,bootindex=1"];
    let mut q = Qtest::start(&[&["-blockdev", &node][..], &devices].concat());
    let order = file(&mut q, "bootorder").expect("the file");
    assert_eq!(order, b"/pci@i0cf8/ethernet@5\n/pci@i0cf8/ide@1,1/drive@1/disk@1\0");
}

#[test]
fn users_are_told_when_the_guest_sets_its_clock() {
    let dir = TempDir::new().expect("a folder");
    let socket = dir.path().join("qtest");
    let qtest = format!("unix:{},server=on,wait=off", socket.display());
    let arguments = ["-accel", "qtest", "-qtest", &qtest, "-qtest-log", "none", "-rtc", "base=2026-01-01T00:00:00"];
    let mut vm = Vm::start(Program::Lockstep, &arguments);
    let mut q = Qtest::connect(&socket);
    // An hour on.
    for (register, value) in [(0x0b, 0x82), (0x04, 0x01), (0x0b, 0x02)] {
        q.outb(0x70, register);
        q.outb(0x71, value);
    }
    let event = vm.event("RTC_CHANGE");
    let offset = event["data"]["offset"].as_i64().expect("a number");
    assert!((3598..=3600).contains(&offset), "{event}");
    assert!(event["data"]["qom-path"].as_str().is_some_and(|p| p.ends_with("/rtc")), "{event}");
}
