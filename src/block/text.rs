//! What people read about images: sizes, facts, snapshots.

use crate::driver::DriverKind;
use crate::json;
use crate::open::find_driver;
use serde_json::Value;
use std::fmt::Write;

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

/// What a person reads about one image; `path` is the node's place below the image (`/` at the top).
pub fn image_text(info: &Value, indent: &str, path: &str) -> String {
    let mut out = String::new();
    let text = |key: &str| info.get(key).and_then(Value::as_str);
    let number = |key: &str| info.get(key).and_then(Value::as_u64);
    let top = path == "/";
    let kind = find_driver(text("format").unwrap_or("")).map(|d| d.kind);
    let protocol = !top && kind.is_ok_and(|k| k == DriverKind::Protocol);
    let size = number("virtual-size").unwrap_or(0);
    let _ = writeln!(out, "{indent}{}: {}", if top { "image" } else { "filename" }, text("filename").unwrap_or(""));
    let (format, length) = if protocol { ("protocol type", "file length") } else { ("file format", "virtual size") };
    let _ = writeln!(out, "{indent}{format}: {}", text("format").unwrap_or(""));
    let _ = writeln!(out, "{indent}{length}: {} ({size} bytes)", human_size(size));
    let disk = number("actual-size").map_or("unavailable".to_owned(), human_size);
    let _ = writeln!(out, "{indent}disk size: {disk}");
    if let Some(cluster) = number("cluster-size") {
        let _ = writeln!(out, "{indent}cluster_size: {cluster}");
    }
    if info.get("dirty-flag") == Some(&Value::Bool(true)) {
        let _ = writeln!(out, "{indent}cleanly shut down: no");
    }
    if let Some(backing) = text("backing-filename") {
        let _ = write!(out, "{indent}backing file: {backing}");
        match text("full-backing-filename") {
            None => out.push_str(" (cannot determine actual path)"),
            Some(full) if full != backing => {
                let _ = write!(out, " (actual path: {full})");
            }
            Some(_) => {}
        }
        out.push('\n');
    }
    if let Some(format) = text("backing-filename-format") {
        let _ = writeln!(out, "{indent}backing file format: {format}");
    }
    if let Some(Value::Array(snapshots)) = info.get("snapshots") {
        out.push_str(&snapshot_list(snapshots, indent));
    }
    if let Some(data) = info.get("format-specific").and_then(|s| s.get("data"))
        && data.as_object().is_some_and(|d| !d.is_empty())
    {
        let _ = writeln!(out, "{indent}Format specific information:");
        dump(&mut out, data, &format!("{indent}    "));
    }
    if let Some(Value::Array(children)) = info.get("children") {
        for child in children {
            let name = child.get("name").and_then(Value::as_str).unwrap_or("");
            let below = if top { format!("/{name}") } else { format!("{path}/{name}") };
            let _ = writeln!(out, "{indent}Child node '{below}':");
            if let Some(info) = child.get("info") {
                out.push_str(&image_text(info, &format!("{indent}    "), &below));
            }
        }
    }
    out
}

/// Members of format-specific data, dashes shown as blanks.
fn dump(out: &mut String, value: &Value, indent: &str) {
    let Value::Object(map) = value else { return };
    let mut members: Vec<(&String, &Value)> = map.iter().collect();
    json::sort_members(&mut members);
    for (key, value) in members {
        let key = key.replace('-', " ");
        match value {
            Value::Object(_) => {
                let _ = writeln!(out, "{indent}{key}:");
                dump(out, value, &format!("{indent}    "));
            }
            Value::String(s) => {
                let _ = writeln!(out, "{indent}{key}: {s}");
            }
            other => {
                let _ = writeln!(out, "{indent}{key}: {other}");
            }
        }
    }
}

/// The table of internal snapshots.
pub fn snapshot_list(snapshots: &[Value], indent: &str) -> String {
    let mut out = format!("{indent}Snapshot list:\n");
    out.push_str(&snapshot_rows(snapshots, indent));
    out
}

/// Head and rows of the table.
pub fn snapshot_rows(snapshots: &[Value], indent: &str) -> String {
    let mut out = format!(
        "{indent}{:<7} {:<16} {:>8} {:>19} {:>15} {:>10}\n",
        "ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"
    );
    for snapshot in snapshots {
        let text = |key: &str| snapshot.get(key).and_then(Value::as_str).unwrap_or("");
        let number = |key: &str| snapshot.get(key).and_then(Value::as_u64).unwrap_or(0);
        let secs = number("vm-clock-sec");
        let clock = format!(
            "{:04}:{:02}:{:02}.{:03}",
            secs / 3600,
            secs / 60 % 60,
            secs % 60,
            number("vm-clock-nsec") / 1_000_000
        );
        let icount = snapshot.get("icount").and_then(Value::as_u64).map_or("--".to_owned(), |i| i.to_string());
        let _ = writeln!(
            out,
            "{indent}{:<7} {:<16} {:>8} {:>19} {:>15} {:>10}",
            text("id"),
            text("name"),
            human_size(number("vm-state-size")),
            local_time(number("date-sec")),
            clock,
            icount
        );
    }
    out
}

/// `YYYY-MM-DD HH:MM:SS` in the local zone.
fn local_time(seconds: u64) -> String {
    let time = seconds as libc::time_t;
    // SAFETY: `tm` is a plain C struct (its zone pointer may be null) for which all zeroes is a valid value.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call, and `localtime_r` keeps neither.
    unsafe { libc::localtime_r(&time, &mut tm) };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec
    )
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
