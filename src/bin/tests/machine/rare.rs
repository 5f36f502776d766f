//! Every engine executes every instruction: where the kernel cannot, the software CPU steps in.

use crate::{
    guest,
    vm::{Program, Vm, accelerators},
};

/// What the guest writes on any processor.
const RESULTS: &str = "0120000102 0221010204 0322020306 0423030408 052404050A 062505060C 072606070E 0827070810 ";

#[test]
fn rare_instructions_have_the_same_results_with_every_engine() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let firmware = dir.path().join("guest.bin");
    guest::write(&firmware, guest::RARE);
    for &accelerator in accelerators() {
        let serial = dir.path().join(format!("{accelerator}.txt"));
        let serial_option = format!("file:{}", serial.display());
        let firmware = firmware.to_str().expect("a path");
        let arguments =
            ["-accel", accelerator, "-m", "64", "-nodefaults", "-bios", firmware, "-serial", &serial_option];
        let mut vm = Vm::start(Program::Lockstep, &arguments);
        let written = || std::fs::read_to_string(&serial).unwrap_or_default();
        vm.wait("the guest is done", |_| written().len() >= RESULTS.len());
        assert_eq!(written(), RESULTS, "{accelerator}");
    }
}
