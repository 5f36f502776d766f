//! Every engine executes every instruction: where the kernel cannot, the software CPU steps in.

use crate::{
    guest,
    vm::{Program, Vm, accelerators},
};

/// What the guest writes on any processor.
const RESULTS: &str = "0120000102 0221010204 0322020306 0423030408 052404050A 062505060C 072606070E 0827070810 ";

/// What a guest writes, as soon as it is as long as what is expected.
fn written(listing: &str, accelerator: &str, expected: &str) -> String {
    let dir = tempfile::TempDir::new().expect("a folder");
    let (firmware, serial) = (dir.path().join("guest.bin"), dir.path().join("serial.txt"));
    guest::write(&firmware, listing);
    let serial_option = format!("file:{}", serial.display());
    let firmware = firmware.to_str().expect("a path");
    let arguments = ["-accel", accelerator, "-m", "64", "-nodefaults", "-bios", firmware, "-serial", &serial_option];
    let mut vm = Vm::start(Program::Lockstep, &arguments);
    let text = || std::fs::read_to_string(&serial).unwrap_or_default();
    vm.wait("the guest is done", |_| text().len() >= expected.len());
    text()
}

#[test]
fn rare_instructions_have_the_same_results_with_every_engine() {
    for &accelerator in accelerators() {
        assert_eq!(written(guest::RARE, accelerator, RESULTS), RESULTS, "{accelerator}");
    }
}

#[test]
fn a_port_whose_arguments_are_in_registers_answers_in_them() {
    // Version 6, and the magic number.
    let answer = "00000006564D5868";
    for &accelerator in accelerators().iter().filter(|&&a| a == "kvm") {
        assert_eq!(written(guest::VMWARE, accelerator, answer), answer);
    }
}
