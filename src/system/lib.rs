//! The one room that knows everyone: the machine and its run state, the command line, the monitors' commands.

pub mod cmdline;
pub mod colo_net;
pub mod drive;
mod gdb;
pub mod machine;
pub mod machine_options;
pub mod migration;
pub mod monitor;
pub mod objects;
pub mod qmp;
pub mod qom;
pub mod qtest;
pub mod runstate;
pub mod startup;
pub mod types;
pub mod vm;
pub mod vnc;

/// The version of QEMU whose interfaces this program has.
pub const QEMU_VERSION: [u32; 3] = [10, 0, 2];

/// What `-version` says.
pub fn version_text() -> String {
    let [major, minor, micro] = QEMU_VERSION;
    format!("QEMU emulator version {major}.{minor}.{micro} (Lockstep {})", env!("CARGO_PKG_VERSION"))
}
