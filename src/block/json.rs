//! JSON text as QEMU's tools print it: members in the order of its hash table, `", "` and `": "` between things.
//!
//! JSON has no order of members; but people compare such output, and `json:` filenames are shown as text.

use serde_json::{Map, Value};
use std::fmt::Write;

/// Buckets of the hash table that gives the order.
const BUCKETS: u32 = 512;

fn bucket(key: &str) -> u32 {
    let mut value = 0x238f_13afu32.wrapping_mul(key.len() as u32);
    for (i, byte) in key.bytes().enumerate() {
        value = value.wrapping_add(u32::from(byte) << (i * 5 % 24));
    }
    1_103_515_243u32.wrapping_mul(value).wrapping_add(12345) % BUCKETS
}

/// Members by bucket, those of one bucket latest first.
fn ordered(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut members: Vec<(&String, &Value)> = map.iter().collect();
    sort_members(&mut members);
    members
}

/// Puts members in that order.
pub fn sort_members(members: &mut [(&String, &Value)]) {
    members.reverse();
    members.sort_by_key(|(key, _)| bucket(key));
}

/// One line.
pub fn to_line(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, None);
    out
}

/// Several lines, indented by 4 blanks.
pub fn to_pretty(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, Some(0));
    out
}

fn write(out: &mut String, value: &Value, indent: Option<usize>) {
    match value {
        Value::Object(map) => {
            let members = ordered(map);
            list(out, '{', '}', indent, members.into_iter(), |out, (key, value), inner| {
                string(out, key);
                out.push_str(": ");
                write(out, value, inner);
            });
        }
        Value::Array(items) => list(out, '[', ']', indent, items.iter(), write),
        Value::String(s) => string(out, s),
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

fn list<T>(
    out: &mut String,
    open: char,
    close: char,
    indent: Option<usize>,
    items: impl Iterator<Item = T>,
    mut item: impl FnMut(&mut String, T, Option<usize>),
) {
    let inner = indent.map(|i| i + 1);
    let line = |out: &mut String, depth: Option<usize>| {
        if let Some(depth) = depth {
            out.push('\n');
            out.extend(std::iter::repeat_n("    ", depth));
        }
    };
    out.push(open);
    for (i, x) in items.enumerate() {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        line(out, inner);
        item(out, x, inner);
    }
    line(out, indent);
    out.push(close);
}

/// A string with everything beyond printable ASCII escaped.
fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(out, "\\u{unit:04X}");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn members_come_in_the_order_of_the_hash_table() {
        let value =
            json!({"format": "raw", "filename": "b", "virtual-size": 1, "dirty-flag": false, "cluster-size": 2});
        assert_eq!(
            to_line(&value),
            r#"{"virtual-size": 1, "filename": "b", "cluster-size": 2, "format": "raw", "dirty-flag": false}"#
        );
    }

    #[test]
    fn empty_lists_take_a_line_when_indented() {
        assert_eq!(to_pretty(&json!({"children": []})), "{\n    \"children\": [\n    ]\n}");
        assert_eq!(to_line(&json!([])), "[]");
    }
}
