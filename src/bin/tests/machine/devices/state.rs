//! Every device's state survives the way through a stream: what is loaded is saved again byte by byte as it came.

use tempfile::TempDir;

use crate::{
    stream::sections,
    vm::{Program, Vm},
};

/// Ports that a driver would write, so that little is as after reset.
const TOUCHED: &[(u16, u8)] = &[
    (0x20, 0x11),
    (0x21, 0x30),
    (0x21, 0x04),
    (0x21, 0x01),
    (0x21, 0xa4), // PIC
    (0xa0, 0x11),
    (0xa1, 0x38),
    (0xa1, 0x02),
    (0xa1, 0x01),
    (0x4d0, 0xa0),
    (0x43, 0x36),
    (0x40, 0x12),
    (0x40, 0x34),
    (0x43, 0xb6),
    (0x42, 0x78), // PIT, half written
    (0x70, 0x50),
    (0x71, 0x77),
    (0x70, 0x0a),
    (0x71, 0x26), // clock
    (0x60, 0xed),
    (0x64, 0xd4), // keyboard and mouse, in the middle of commands
    (0x3fb, 0x83),
    (0x3f8, 0x0c),
    (0x3fb, 0x03),
    (0x3f9, 0x05),
    (0x3fc, 0x0b), // serial
    (0x1f2, 0x03),
    (0x1f3, 0x44),
    (0x1f4, 0x55),
    (0x1f5, 0x66),
    (0x1f6, 0xe1), // IDE
    (0x3c4, 0x02),
    (0x3c5, 0x05),
    (0x3c8, 0x10),
    (0x3c9, 0x11),
    (0x3c9, 0x22), // VGA, a palette entry half written
    (0x0c, 0x00),
    (0x02, 0x34),
    (0x0b, 0x46),
    (0x81, 0x12),
    (0xd6, 0xc0), // DMA
    (0x3f2, 0x1c),
    (0x3f5, 0x03),
    (0x61, 0x03),
    (0xafe2, 0x0e),
    (0x92, 0x02),
    (0x378, 0x5a), // floppy, speaker, ACPI, ...
];

#[test]
fn what_is_loaded_is_saved_again_as_it_came() {
    let dir = TempDir::new().expect("a folder");
    let disk = dir.path().join("disk.raw");
    std::fs::write(&disk, vec![0; 1 << 20]).expect("a disk");
    let drive = format!("if=ide,format=raw,file={}", disk.display());
    let arguments = |more: &[&'static str]| {
        let machine =
            ["-M", "pc", "-accel", "qtest", "-m", "64", "-serial", "null", "-parallel", "null", "-vga", "std"];
        let devices = ["-device", "piix3-usb-uhci,addr=3", "-device", "usb-tablet", "-device", "rtl8139,addr=4"];
        let mut all: Vec<String> = machine.into_iter().chain(devices).map(str::to_owned).collect();
        all.extend(["-drive".into(), drive.clone()]);
        all.extend(more.iter().map(|&text| text.to_owned()));
        all
    };
    let start = |arguments: Vec<String>| {
        Vm::start(Program::Lockstep, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let socket = dir.path().join("qtest");
    let mut first_arguments = arguments(&["-qtest-log", "none"]);
    first_arguments.extend(["-qtest".into(), format!("unix:{},server=on,wait=off", socket.display())]);
    let mut first = start(first_arguments);
    let mut driver = crate::qtest::Qtest::connect(&socket);
    for (port, value) in TOUCHED {
        driver.ask(&format!("outb {port:#x} {value:#x}"));
    }
    driver.ask("clock_step 1234567");
    let saved = first.save(&dir.path().join("first"));
    drop(first);
    let mut second = start(arguments(&["-incoming", "defer"]));
    second.ask(
        "migrate-incoming",
        serde_json::json!({"uri": format!("exec:cat {}", dir.path().join("first").display())}),
    );
    second.wait("the machine is loaded", |vm| vm.ask("query-migrate", serde_json::json!({}))["status"] == "completed");
    let again = second.save(&dir.path().join("second"));
    let (before, after) = (sections(&saved), sections(&again));
    assert!(before.len() > 30, "{}", before.len());
    let names = |all: &[(String, Vec<u8>)]| all.iter().map(|s| s.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after));
    let wrong: Vec<_> = before
        .iter()
        .zip(&after)
        .filter(|(a, b)| a != b)
        .map(|(a, b)| {
            let at = a.1.iter().zip(&b.1).position(|(a, b)| a != b).unwrap_or(a.1.len().min(b.1.len()));
            format!("{}: byte {at} of {} (and {})", a.0, a.1.len(), b.1.len())
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
