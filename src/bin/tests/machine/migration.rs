//! A guest goes on where it was, whoever runs it.

use serde_json::json;
use tempfile::TempDir;

use crate::{
    guest,
    vm::{LOCKSTEP, Vm, accelerators, qemu},
};

/// Moves a counting guest, which must go on without a gap and without a repetition.
fn moves(from: (&str, &str), to: (&str, &str), machine: &str, cpus: &str) {
    let dir = TempDir::new().expect("a folder");
    let (firmware, socket) = (dir.path().join("guest.bin"), dir.path().join("migration"));
    guest::write(&firmware);
    let uri = format!("unix:{}", socket.display());
    let start = |(program, accelerator): (&str, &str), name: &str, incoming: Option<&str>| {
        let (serial, disk) = (dir.path().join(format!("{name}.txt")), dir.path().join(format!("{name}.img")));
        std::fs::write(&disk, [0; 1 << 20]).expect("a disk");
        let serial_option = format!("file:{}", serial.display());
        let drive = format!("if=ide,id=colo-disk0,format=raw,file={}", disk.display());
        let cpu = if accelerator == "kvm" { "qemu64,kvmclock=on" } else { "qemu64" };
        let firmware = firmware.to_str().expect("a path");
        let mut arguments = vec!["-M", machine, "-accel", accelerator, "-cpu", cpu, "-m", "64", "-smp", cpus];
        arguments.extend(["-bios", firmware, "-vga", "none", "-nic", "none", "-serial", &serial_option]);
        arguments.extend(["-drive", &drive, "-device", "piix3-usb-uhci", "-device", "usb-tablet"]);
        arguments.extend(incoming.into_iter().flat_map(|uri| ["-incoming", uri]));
        (Vm::start(program, &arguments), serial)
    };
    let (mut source, before) = start(from, "source", None);
    source.wait("the guest counts", |_| guest::numbers(&before).len() >= 12);
    let (mut target, after) = start(to, "target", Some(&uri));
    source.migrate(&uri);
    target.wait("the guest goes on", |_| guest::numbers(&after).len() >= 12);
    assert_eq!(target.ask("query-status", json!({}))["status"], "running");
    let mut told = guest::numbers(&before);
    told.extend(guest::numbers(&after));
    // A number that was being written when the guest moved has a part in either file, and is in none of the lists.
    let steps: Vec<u64> = told.windows(2).map(|w| w[1].wrapping_sub(w[0])).collect();
    assert!(steps.iter().all(|&s| s == 1 || s == 2), "{from:?} to {to:?}: {told:?}");
    assert!(steps.iter().filter(|&&s| s == 2).count() <= 1, "{from:?} to {to:?}: {told:?}");
}

#[test]
fn between_engines_of_lockstep() {
    for &from in accelerators() {
        for &to in accelerators() {
            moves((LOCKSTEP, from), (LOCKSTEP, to), "pc", "1");
        }
    }
}

#[test]
fn to_qemu_and_from_it() {
    let Some(qemu) = qemu() else { return };
    for &accelerator in accelerators() {
        for cpus in ["1", "2"] {
            moves((LOCKSTEP, accelerator), (qemu, accelerator), "pc-i440fx-10.0", cpus);
            moves((qemu, accelerator), (LOCKSTEP, accelerator), "pc-i440fx-10.0", cpus);
        }
    }
}
