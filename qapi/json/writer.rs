//! Prints values as QEMU does: a blank after `:` and `,`, and nothing but ASCII.

use serde_json::{Number, Value};
use std::fmt::Write;

/// Appends a value on one line.
pub fn write_value(value: &Value, out: &mut String) {
    write(value, None, out);
}

/// Appends a value with one member a line, four blanks a level (`-mon pretty=on`).
pub fn write_pretty(value: &Value, out: &mut String) {
    write(value, Some(0), out);
}

fn write(value: &Value, level: Option<usize>, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => write_number(n, out),
        Value::String(s) => write_string(s, out),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(i, level, out);
                write(item, level.map(|l| l + 1), out);
            }
            end(level, out);
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                separate(i, level, out);
                write_string(key, out);
                out.push_str(": ");
                write(item, level.map(|l| l + 1), out);
            }
            end(level, out);
            out.push('}');
        }
    }
}

fn separate(index: usize, level: Option<usize>, out: &mut String) {
    match level {
        Some(level) => {
            out.push_str(if index > 0 { ",\n" } else { "\n" });
            indent(level + 1, out);
        }
        None if index > 0 => out.push_str(", "),
        None => {}
    }
}

fn end(level: Option<usize>, out: &mut String) {
    if let Some(level) = level {
        out.push('\n');
        indent(level, out);
    }
}

fn indent(level: usize, out: &mut String) {
    out.extend(std::iter::repeat_n("    ", level));
}

fn write_string(s: &str, out: &mut String) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(out, "\\u{unit:04X}");
                }
            }
        }
    }
    out.push('"');
}

fn write_number(n: &Number, out: &mut String) {
    match n.as_f64() {
        Some(x) if n.is_f64() => write_double(x, out),
        _ => {
            let _ = write!(out, "{n}");
        }
    }
}

/// C's `%.17g`.
fn write_double(x: f64, out: &mut String) {
    const DIGITS: i32 = 17;
    let text = format!("{:.*e}", DIGITS as usize - 1, x);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |s: &str| -> String {
        if s.contains('.') { s.trim_end_matches('0').trim_end_matches('.').to_owned() } else { s.to_owned() }
    };
    let _ = if (-4..DIGITS).contains(&exponent) {
        let decimals = usize::try_from(DIGITS - 1 - exponent).unwrap_or(0);
        write!(out, "{}", trim(&format!("{x:.decimals$}")))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{}e{sign}{:02}", trim(mantissa), exponent.abs())
    };
}
