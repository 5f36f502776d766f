//! How numbers, times and bytes are shown.

use std::fmt::Write;
use std::time::Duration;

/// A number of bytes: up to three decimals and a binary unit.
pub fn size(value: f64) -> String {
    const UNITS: [(u32, &str); 6] =
        [(60, " EiB"), (50, " PiB"), (40, " TiB"), (30, " GiB"), (20, " MiB"), (10, " KiB")];
    let unit = UNITS.iter().find(|(shift, _)| value >= (1u64 << shift) as f64);
    let (text, unit) = match unit {
        Some((shift, unit)) => (format!("{:.3}", value / (1u64 << shift) as f64), *unit),
        None => (format!("{value:.6}"), " bytes"),
    };
    match text.find(".000") {
        Some(at) => format!("{}{unit}", &text[..at]),
        None => format!("{text}{unit}"),
    }
}

fn time(elapsed: Duration) -> String {
    let (secs, hundredths) = (elapsed.as_secs(), elapsed.subsec_millis() / 10);
    let (hours, minutes, seconds) = (secs / 3600, secs / 60 % 60, secs % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}.{hundredths:02}")
    } else if minutes > 0 {
        format!("{minutes:02}:{seconds:02}.{hundredths:02}")
    } else {
        format!("{seconds:02}.{hundredths:02} sec")
    }
}

/// The lines about a request that has ended.
pub fn report(verb: &str, elapsed: Duration, offset: u64, asked: u64, done: u64, count: u32, compact: bool) -> String {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let (rate, operations) = (done as f64 / seconds, f64::from(count) / seconds);
    if compact {
        let (secs, hundredths) = (elapsed.as_secs(), elapsed.subsec_millis() / 10);
        let clock = format!("{}:{:02}:{:02}.{hundredths:02}", secs / 3600, secs / 60 % 60, secs % 60);
        return format!("{done},{count},{clock},{rate:.3},{operations:.3}\n");
    }
    format!(
        "{verb} {done}/{asked} bytes at offset {offset}\n{}, {count} ops; {} ({}/sec and {operations:.4} ops/sec)\n",
        size(done as f64),
        time(elapsed),
        size(rate)
    )
}

/// Bytes as hexadecimal and text, 16 a line.
pub fn dump(data: &[u8], offset: u64) -> String {
    let mut out = String::new();
    for (i, line) in data.chunks(16).enumerate() {
        let _ = write!(out, "{:08x}:  ", offset + i as u64 * 16);
        for byte in line {
            let _ = write!(out, "{byte:02x} ");
        }
        out.push(' ');
        out.extend(line.iter().map(|b| if b.is_ascii_alphanumeric() { char::from(*b) } else { '.' }));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        assert_eq!(size(65536.0), "64 KiB");
        assert_eq!(size(32.0), "32 bytes");
        assert_eq!(size(1024.0 * 1024.0 * 7.8231), "7.823 MiB");
        assert_eq!(time(Duration::from_millis(20)), "00.02 sec");
        assert_eq!(time(Duration::from_secs(3725)), "1:02:05.00");
        let text = report("wrote", Duration::from_millis(500), 0, 65536, 65536, 1, false);
        assert_eq!(
            text,
            "wrote 65536/65536 bytes at offset 0\n64 KiB, 1 ops; 00.50 sec (128 KiB/sec and 2.0000 ops/sec)\n"
        );
    }
}
