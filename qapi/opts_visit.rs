//! Fills a type of the schema from older option strings (`-object`, `-netdev`).
//!
//! There is one level: members of nested structures have no prefix. An option given several times, or a range of numbers,
//! is a list. Texts and order of checks are those of QEMU's options visitor, which differ from the ones for dotted keys.

use crate::opts::Opts;
use crate::schema::{Builtin, Kind, Member, TypeId, Variant};
use crate::visit::{parse_bool, parse_i64, parse_u64, range_name};
use crate::wire::{Map, Wire};
use lockstep_util::{Result, bail, err, size};
use serde_json::Value;
use std::collections::HashSet;

/// The most numbers that one range may name.
const MAX_RANGE: u64 = 65536;

/// Converts options to a type.
pub fn from_opts<T: Wire>(opts: &Opts) -> Result<T> {
    T::from_wire(check_opts(T::TYPE, opts)?)
}

/// Checks options against a structure or union; the result has the schema's types.
pub fn check_opts(ty: TypeId, opts: &Opts) -> Result<Value> {
    let mut visitor = Visitor { opts, used: HashSet::new() };
    let mut out = Map::new();
    match &ty.def().kind {
        Kind::Object { members, tag, variants } => visitor.members(members, *tag, variants, &mut out)?,
        _ => bail!("value does not have the type {}", ty.def().name),
    }
    if opts.id.is_some() && !visitor.used.contains("id") {
        bail!("Invalid parameter 'id'");
    }
    match opts.items.iter().find(|(name, _)| !visitor.used.contains(name.as_str())) {
        Some((name, _)) => Err(err!("Invalid parameter '{name}'")),
        None => Ok(Value::Object(out)),
    }
}

struct Visitor<'a> {
    opts: &'a Opts,
    used: HashSet<&'static str>,
}

impl Visitor<'_> {
    fn members(
        &mut self,
        members: &'static [Member],
        tag: Option<usize>,
        variants: &'static [Variant],
        out: &mut Map,
    ) -> Result<()> {
        for m in members {
            if self.opts.get(m.name).is_none() {
                if m.optional {
                    continue;
                }
                bail!("Parameter '{}' is missing", m.name);
            }
            self.used.insert(m.name);
            let value = self.member(m)?;
            out.insert(m.name.to_owned(), value);
        }
        let Some(tag) = tag.and_then(|i| out.get(members[i].name)?.as_str()) else { return Ok(()) };
        let Some(variant) = variants.iter().find(|v| v.case == tag) else { return Ok(()) };
        match &variant.ty.def().kind {
            Kind::Object { members, tag, variants } => self.members(members, *tag, variants, out),
            _ => Ok(()),
        }
    }

    fn member(&mut self, m: &'static Member) -> Result<Value> {
        let text = self.opts.get(m.name).unwrap_or_default();
        match &m.ty.def().kind {
            Kind::Array(element) => self.list(m.name, *element).map(Value::Array),
            Kind::Object { members, tag, variants } => {
                let mut out = Map::new();
                self.members(members, *tag, variants, &mut out)?;
                Ok(Value::Object(out))
            }
            _ => scalar(m.ty, m.name, m.name, text, ""),
        }
    }

    fn list(&self, name: &'static str, element: TypeId) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        for text in self.opts.get_all(name) {
            match &element.def().kind {
                // A structure of one text, such as a forwarding rule.
                Kind::Object { members: [m], .. } => {
                    let value = scalar(m.ty, name, m.name, text, "")?;
                    items.push(Value::Object(Map::from_iter([(m.name.to_owned(), value)])));
                }
                Kind::Builtin(b) if is_integer(*b) => match range(text) {
                    Some((first, last)) => {
                        for n in first..=last {
                            items.push(scalar(element, name, "null", &n.to_string(), " or range")?);
                        }
                    }
                    None => items.push(scalar(element, name, "null", text, " or range")?),
                },
                _ => items.push(scalar(element, name, "null", text, "")?),
            }
        }
        Ok(items)
    }
}

fn is_integer(b: Builtin) -> bool {
    !matches!(b, Builtin::Str | Builtin::Bool | Builtin::Number | Builtin::Size | Builtin::Null | Builtin::Any)
}

/// `first-last`, in that order and of a sane length.
fn range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-')?;
    let (first, last) = (parse_u64(first)?, parse_u64(last)?);
    (first <= last && last - first < MAX_RANGE).then_some((first, last))
}

/// Converts one value; `element` is the name that range and enumeration errors use.
fn scalar(ty: TypeId, name: &str, element: &str, text: &str, or_range: &str) -> Result<Value> {
    let builtin = match &ty.def().kind {
        Kind::Builtin(b) => *b,
        Kind::Enum(members) if members.iter().any(|m| m.name == text) => return Ok(text.into()),
        Kind::Enum(_) => bail!("Parameter '{element}' does not accept value '{text}'"),
        // An alternate that takes a text gets it; no other can come from here.
        Kind::Alternate(_) => return Ok(text.into()),
        _ => bail!("Invalid parameter '{name}'"),
    };
    match builtin {
        Builtin::Str | Builtin::Any => Ok(text.into()),
        Builtin::Bool => {
            parse_bool(text).map(Value::Bool).ok_or_else(|| err!("Parameter '{name}' expects 'on' or 'off'"))
        }
        Builtin::Size => {
            size::parse_size(text, 'B').map(Value::from).ok_or_else(|| err!("Parameter '{name}' expects a size value"))
        }
        Builtin::Number | Builtin::Null => Err(err!("Invalid parameter '{name}'")),
        Builtin::Uint8 | Builtin::Uint16 | Builtin::Uint32 | Builtin::Uint64 => {
            // Unlike with dotted keys, a sign is an error.
            let number = (!text.trim_start().starts_with('-')).then(|| parse_u64(text)).flatten();
            let n = number.ok_or_else(|| err!("Parameter '{name}' expects a uint64 value{or_range}"))?;
            fits(builtin, i128::from(n), element)?;
            Ok(n.into())
        }
        _ => {
            let n = parse_i64(text).ok_or_else(|| err!("Parameter '{name}' expects an int64 value{or_range}"))?;
            fits(builtin, i128::from(n), element)?;
            Ok(n.into())
        }
    }
}

fn fits(builtin: Builtin, n: i128, element: &str) -> Result<()> {
    match range_name(builtin) {
        Some((min, max, ty)) if n < min || n > max => Err(err!("Parameter '{element}' expects {ty}")),
        _ => Ok(()),
    }
}
