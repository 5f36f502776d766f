//! JSON as the monitor speaks it: a stream of values with the leniency, the limits and the error texts of QEMU.
//!
//! Beyond RFC 8259, strings may be in single quotes. A duplicate key is an error. After an error the reader goes on at the
//! next point that looks like the start of a value, so that one bad request does not cost the next.

mod lexer;
mod parser;
mod writer;

pub use parser::Reader;
pub use writer::{write_pretty, write_value};

use lockstep_util::{Result, err};
use serde_json::Value;

/// Parses a text that holds one value, such as an option given as JSON on the command line.
pub fn parse(text: &str) -> Result<Value> {
    let mut reader = Reader::default();
    let mut found = None;
    // A blank ends a number or keyword.
    for byte in text.bytes().chain([b'\n']) {
        for value in reader.push(byte).into_iter().flatten() {
            if found.is_some() {
                return Err(err!("Expecting at most one JSON value"));
            }
            found = Some(value?);
        }
    }
    match found {
        Some(value) if reader.is_idle() => Ok(value),
        Some(_) => Err(err!("Expecting at most one JSON value")),
        None if reader.is_idle() => Err(err!("Expecting a JSON value")),
        None => Err(err!("JSON parse error, premature EOI")),
    }
}

/// The value on one line, as a monitor prints it.
pub fn to_string(value: &Value) -> String {
    let mut out = String::new();
    write_value(value, &mut out);
    out
}

#[cfg(test)]
mod tests;
