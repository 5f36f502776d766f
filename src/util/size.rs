//! Powers of 1024 and rounding.

/// 1024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1024 KiB.
pub const MIB: u64 = 1 << 20;
/// 1024 MiB.
pub const GIB: u64 = 1 << 30;

/// Parses a size as QEMU's command line takes it: a decimal number, optionally with a fraction and one of the suffixes
/// `B K M G T P E` (either case); without a suffix the unit is `default_suffix`. Returns bytes, or `None` where QEMU
/// says that the value is not a size.
pub fn parse_size(text: &str, default_suffix: char) -> Option<u64> {
    let text = text.trim_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let suffix = match suffix.len() {
        0 => default_suffix,
        1 => suffix.chars().next()?,
        _ => return None,
    };
    let shift = match suffix.to_ascii_uppercase() {
        'B' => 0,
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        'P' => 50,
        'E' => 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut bytes = (whole as u128) << shift;
    if !fraction.is_empty() {
        let digits = &fraction[..fraction.len().min(18)];
        let numerator: u128 = digits.parse().ok()?;
        if shift == 0 && numerator != 0 {
            return None;
        }
        let denominator = 10u128.pow(digits.len() as u32);
        bytes += ((numerator << shift) + denominator / 2) / denominator;
    }
    u64::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_the_command_line_takes_them() {
        assert_eq!(parse_size("512", 'M'), Some(512 * MIB));
        assert_eq!(parse_size("10G", 'B'), Some(10 * GIB));
        assert_eq!(parse_size("1.5k", 'B'), Some(1536));
        assert_eq!(parse_size("0x10", 'B'), Some(16));
        assert_eq!(parse_size(" +.5k", 'B'), Some(512));
        assert_eq!(parse_size("1.k", 'B'), Some(1024));
        for bad in ["", "G", "1Q", "1GB", "-1", "16E", "1.5B", "1.5", ".", ".k", "1 ", "1e3", "0x10k"] {
            assert_eq!(parse_size(bad, 'B'), None, "{bad}");
        }
    }
}
