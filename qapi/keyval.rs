//! Option strings with dotted keys (`-blockdev`, `-machine`, `-audiodev`): `driver=qcow2,file.driver=file,list.0=x`.
//!
//! The result is a tree of objects and lists with strings as leaves, for [`crate::visit::from_keyval`]. A key whose part
//! is a number makes a list. `,,` stands for a comma in a value. The first value may come without its key.
//!
//! ```text
//! options  = [ first { "," option } [ "," ] ]
//! first    = value-without-key | option
//! option   = key "=" value | "help" | "?"
//! key      = name { "." ( name | digits ) }
//! value    = { any but "," | ",," }
//! ```

use crate::wire::Map;
use lockstep_util::{Result, bail, err};
use nom::branch::alt;
use nom::bytes::complete::{is_not, tag, take_while};
use nom::combinator::recognize;
use nom::multi::many0_count;
use nom::{IResult, Parser};
use serde_json::Value;

/// No part of a key may be longer, in bytes.
const MAX_FRAGMENT: usize = 127;
/// No key may have more parts: a bound on recursion.
const MAX_DEPTH: usize = 256;

/// What an option string says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keyval {
    /// The tree.
    pub options: Map,
    /// True if the user asks for help.
    pub help: bool,
}

/// Parses an option string; `implied` is the key of a first value without one.
pub fn parse(text: &str, implied: Option<&str>) -> Result<Keyval> {
    let mut tree = Keyval::default();
    let mut rest = text;
    let mut implied = implied;
    while !rest.is_empty() {
        rest = parse_one(&mut tree, rest, implied.take())?;
    }
    tree.options = match listify(std::mem::take(&mut tree.options), &mut Vec::new())? {
        Value::Object(map) => map,
        _ => bail!("Invalid parameter '0'"),
    };
    Ok(tree)
}

/// Parses an option string of an option that offers no help.
pub fn parse_no_help(text: &str, implied: Option<&str>) -> Result<Map> {
    let tree = parse(text, implied)?;
    if tree.help {
        bail!("Help is not available for this option");
    }
    Ok(tree.options)
}

/// Parses an option that may also come as JSON. The source that is returned says how strictly the value is typed.
pub fn parse_or_json(text: &str, implied: Option<&str>) -> Result<(Value, crate::visit::Source)> {
    if text.starts_with('{') {
        return Ok((crate::json::parse(text)?, crate::visit::Source::Json));
    }
    Ok((Value::Object(parse_no_help(text, implied)?), crate::visit::Source::Keyval))
}

/// Lays the options of `from` over those of `into`, as when an option is given twice.
pub fn merge(into: &mut Map, from: Map) -> Result<()> {
    merge_at(into, from, "")
}

fn merge_at(into: &mut Map, from: Map, prefix: &str) -> Result<()> {
    for (key, new) in from {
        match (into.get_mut(&key), new) {
            (Some(Value::Object(old)), Value::Object(new)) => merge_at(old, new, &format!("{prefix}{key}."))?,
            (Some(Value::Array(old)), Value::Array(new)) => old.extend(new),
            (Some(old), new) if std::mem::discriminant(old) != std::mem::discriminant(&new) => {
                bail!("Parameters '{prefix}{key}.*' used inconsistently");
            }
            (_, new) => {
                into.insert(key, new);
            }
        }
    }
    Ok(())
}

/// Builds the tree of an already split list of dotted keys and values (`-drive`, HMP).
pub fn crumple<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Map> {
    let mut tree = Map::new();
    for (key, value) in pairs {
        insert(&mut tree, key, value.to_owned())?;
    }
    match listify(tree, &mut Vec::new())? {
        Value::Object(map) => Ok(map),
        _ => Err(err!("Invalid parameter '0'")),
    }
}

/// The text up to `=` or `,`.
pub(crate) fn key(text: &str) -> IResult<&str, &str> {
    take_while(|c| c != '=' && c != ',').parse(text)
}

/// A value up to a single comma, with doubled commas made one.
pub(crate) fn value(text: &str) -> IResult<&str, String> {
    recognize(many0_count(alt((tag(",,"), is_not(","))))).map(|v: &str| v.replace(",,", ",")).parse(text)
}

/// Drops the comma between two options.
pub(crate) fn after_comma(text: &str) -> &str {
    text.strip_prefix(',').unwrap_or(text)
}

pub(crate) fn is_help(word: &str) -> bool {
    matches!(word, "help" | "?")
}

fn parse_one<'a>(tree: &mut Keyval, text: &'a str, implied: Option<&str>) -> Result<&'a str> {
    let broken = |_| err!("Invalid parameter '{text}'");
    let (rest, name) = key(text).map_err(broken)?;
    if !rest.starts_with('=') && !name.is_empty() {
        if is_help(name) {
            tree.help = true;
            return Ok(after_comma(rest));
        }
        if let Some(implied) = implied {
            insert(&mut tree.options, implied, name.to_owned())?;
            return Ok(after_comma(rest));
        }
    }
    check_key(name)?;
    let Some(rest) = rest.strip_prefix('=') else { bail!("Expected '=' after parameter '{name}'") };
    let (rest, value) = value(rest).map_err(broken)?;
    insert(&mut tree.options, name, value)?;
    Ok(after_comma(rest))
}

fn is_index(fragment: &str) -> bool {
    !fragment.is_empty() && fragment.bytes().all(|b| b.is_ascii_digit())
}

/// How much of `text` is a name of the schema; it may begin with a vendor's domain (`__com.example_`).
fn name_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let run = |from: usize, more: &[u8]| {
        let n = bytes[from..].iter().position(|b| !b.is_ascii_alphanumeric() && !more.contains(b));
        n.map_or(bytes.len(), |n| from + n)
    };
    let mut start = 0;
    if bytes.starts_with(b"_") {
        if !bytes.starts_with(b"__") {
            return 0;
        }
        start = run(2, b"-.");
        if bytes.get(start) != Some(&b'_') {
            return 0;
        }
        start += 1;
    }
    if bytes.get(start).is_none_or(|b| !b.is_ascii_alphabetic()) {
        return 0;
    }
    run(start, b"-_")
}

/// Cuts a key into its parts.
fn check_key(key: &str) -> Result<Vec<&str>> {
    let mut parts = Vec::new();
    let mut rest = key;
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let len = if digits > 0 && !parts.is_empty() { digits } else { name_length(rest) };
        let end = rest[len..].chars().next();
        if len == 0 || end.is_some_and(|c| c != '.') || parts.len() == MAX_DEPTH {
            bail!("Invalid parameter '{key}'");
        }
        if len > MAX_FRAGMENT {
            let what = if len == key.len() { "Parameter" } else { "Parameter fragment" };
            bail!("{what} '{}' is too long", &rest[..len]);
        }
        parts.push(&rest[..len]);
        match end {
            Some(_) => rest = &rest[len + 1..],
            None => return Ok(parts),
        }
    }
}

/// Puts a leaf where its key says. Lists are objects with numbers as keys for now.
fn insert(tree: &mut Map, key: &str, value: String) -> Result<()> {
    let parts = check_key(key)?;
    let mut node = tree;
    let mut end = 0;
    for part in &parts[..parts.len() - 1] {
        end += part.len() + 1;
        let child = node.entry(*part).or_insert_with(|| Value::Object(Map::new()));
        match child {
            Value::Object(map) => node = map,
            _ => bail!("Parameters '{}.*' used inconsistently", &key[..end - 1]),
        }
    }
    match node.insert(parts[parts.len() - 1].to_owned(), Value::String(value)) {
        None | Some(Value::String(_)) => Ok(()),
        Some(_) => Err(err!("Parameters '{key}.*' used inconsistently")),
    }
}

/// Turns objects whose keys are all numbers into lists.
fn listify(map: Map, path: &mut Vec<String>) -> Result<Value> {
    let mut out = Map::new();
    for (key, value) in map {
        let value = match value {
            Value::Object(inner) => {
                path.push(key.clone());
                let value = listify(inner, path)?;
                path.pop();
                value
            }
            leaf => leaf,
        };
        out.insert(key, value);
    }
    let prefix = || path.iter().map(|p| format!("{p}.")).collect::<String>();
    let indexes = out.keys().filter(|k| is_index(k)).count();
    if indexes == 0 {
        return Ok(Value::Object(out));
    }
    if indexes < out.len() {
        bail!("Parameters '{}*' used inconsistently", prefix());
    }
    let mut items: Vec<(usize, Value)> = out.into_iter().map(|(k, v)| (k.parse().unwrap_or(usize::MAX), v)).collect();
    items.sort_by_key(|(i, _)| *i);
    // `0` and `00` are one place, and the later one counts.
    items.reverse();
    items.dedup_by_key(|(i, _)| *i);
    items.reverse();
    for (expected, (i, _)) in items.iter().enumerate() {
        if *i != expected {
            bail!("Parameter '{}{expected}' missing", prefix());
        }
    }
    Ok(Value::Array(items.into_iter().map(|(_, v)| v).collect()))
}

#[cfg(test)]
#[path = "tests/keyval.rs"]
mod tests;
