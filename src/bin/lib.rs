//! What the programs share: their option parser, their version line, how they word sizes.

pub mod getopt;

/// The version of the QEMU whose interfaces are spoken.
pub const QEMU_VERSION: &str = "10.0.2";

/// `10.0.2 (Lockstep X.Y.Z)`, as every program's `--version` shows it.
pub fn version() -> String {
    format!("{QEMU_VERSION} (Lockstep {})", env!("CARGO_PKG_VERSION"))
}

/// A number of bytes for people: three significant digits and a binary unit (`192 KiB`).
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    // The next unit begins at 1000, so that three digits always suffice.
    let mut unit = 0;
    let mut value = bytes as f64;
    while value / (1000.0 / 1024.0) >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}B", significant(value), UNITS[unit])
}

/// `%0.3g` of a number from 0 to 1000.
fn significant(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else if value >= 1.0 || value == 0.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_a_binary_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1000, "0.977 KiB"),
            (197_120, "192 KiB"),
            (200_704, "196 KiB"),
            (1 << 30, "1 GiB"),
            (10 << 30, "10 GiB"),
            (1_500_000, "1.43 MiB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }
}
