//! What the programs share: their option parser, their version line.

pub mod getopt;

/// The version of the QEMU whose interfaces are spoken.
pub const QEMU_VERSION: &str = "10.0.2";

/// `10.0.2 (Lockstep X.Y.Z)`, as every program's `--version` shows it.
pub fn version() -> String {
    format!("{QEMU_VERSION} (Lockstep {})", env!("CARGO_PKG_VERSION"))
}
