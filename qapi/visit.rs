//! Checks input against the schema, with QEMU's error texts.
//!
//! Two sources are known: JSON, where every value has its type, and the dotted keys of the command line
//! ([`crate::keyval`]), where every scalar is a string. Both come as JSON values; what comes out has the schema's types
//! and nothing else. Walks the tables of [`crate::schema`], so there is one visitor and no generated code.

use crate::schema::{Builtin, CommandDef, Kind, Member, TypeId, Variant};
use crate::wire::{Enum, Map, Wire};
use lockstep_util::{Result, bail, err, size};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

/// Where a value comes from, and so how strictly its scalars are typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// JSON: strict.
    Json,
    /// Dotted keys: all scalars are strings.
    Keyval,
}

/// Values of enumerations that this program does not offer, although the schema has them: kinds of objects, of block
/// drivers. To users they do not exist.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    only: HashMap<TypeId, HashSet<&'static str>>,
}

impl Limits {
    /// No limits.
    pub const NONE: &'static LazyLock<Limits> = &UNLIMITED;

    /// Offers these values only.
    pub fn only<E: Enum>(&mut self, values: &[E]) {
        self.only.insert(E::TYPE, values.iter().map(|v| v.name()).collect());
    }

    /// Whether a value is offered.
    pub fn allows(&self, ty: TypeId, value: &str) -> bool {
        self.only.get(&ty).is_none_or(|values| values.contains(value))
    }
}

static UNLIMITED: LazyLock<Limits> = LazyLock::new(Limits::default);

/// Checks and converts a JSON value.
pub fn from_json<T: Wire>(value: Value) -> Result<T> {
    T::from_wire(T::check(value, Source::Json)?)
}

/// Checks and converts what [`crate::keyval::parse`] made of an option string.
pub fn from_keyval<T: Wire>(value: Value) -> Result<T> {
    T::from_wire(T::check(value, Source::Keyval)?)
}

/// Checks a value against a type; what returns has the members in the schema's order and the scalars in their types.
pub fn check(ty: TypeId, value: Value, source: Source) -> Result<Value> {
    Visitor { source, limits: Limits::NONE }.value(ty, value, &Path::ROOT)
}

/// Like [`check`], for a list whose elements have the type.
pub fn check_list(element: TypeId, value: Value, source: Source) -> Result<Value> {
    Visitor { source, limits: Limits::NONE }.list(element, value, &Path::ROOT)
}

/// Like [`check`], for a value that messages give a name: `smp.cpus`.
pub fn check_named(name: &str, ty: TypeId, value: Value, source: Source) -> Result<Value> {
    Visitor { source, limits: Limits::NONE }.value(ty, value, &Path::ROOT.member(name))
}

/// Checks the arguments of a command.
pub fn arguments(def: &CommandDef, args: Map, limits: &Limits) -> Result<Map> {
    let visitor = Visitor { source: Source::Json, limits };
    match def.arg.map(|ty| &ty.def().kind) {
        // What the schema says about them must hold, and more may be there.
        _ if !def.typed => Ok(args),
        Some(Kind::Object { members, tag, variants }) => {
            visitor.object(&Shape { members, tag: *tag, variants }, args, &Path::ROOT)
        }
        _ => match args.keys().next() {
            Some(key) => Err(err!("Parameter '{key}' is unexpected")),
            None => Ok(args),
        },
    }
}

/// Where the visit is: a list from the value up to the root.
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Root,
    Member(&'a str),
    Element(usize),
}

impl<'a> Path<'a> {
    const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    fn member(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Member(name) }
    }

    fn element(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Element(index) }
    }

    /// The name that some messages use: that of the member alone.
    fn bare(&self) -> &str {
        match self.step {
            Step::Member(name) => name,
            // QEMU prints its null pointer so.
            Step::Element(_) | Step::Root => "null",
        }
    }
}

/// What a visit of an object needs of its type.
struct Shape {
    members: &'static [Member],
    tag: Option<usize>,
    variants: &'static [Variant],
}

struct Visitor<'a> {
    source: Source,
    limits: &'a Limits,
}

impl Visitor<'_> {
    fn full(&self, path: &Path<'_>) -> String {
        let mut steps = Vec::new();
        let mut at = Some(path);
        while let Some(p) = at {
            steps.push(&p.step);
            at = p.parent;
        }
        let mut name = String::new();
        for step in steps.into_iter().rev() {
            match step {
                Step::Root => {}
                Step::Member(m) if name.is_empty() => name.push_str(m),
                Step::Member(m) => {
                    name.push('.');
                    name.push_str(m);
                }
                Step::Element(i) if self.source == Source::Json => name.push_str(&format!("[{i}]")),
                Step::Element(i) if name.is_empty() => name.push_str(&i.to_string()),
                Step::Element(i) => name.push_str(&format!(".{i}")),
            }
        }
        if name.is_empty() { "<anonymous>".to_owned() } else { name }
    }

    fn wrong_type<T>(&self, path: &Path<'_>, expected: &str) -> Result<T> {
        Err(err!("Invalid parameter type for '{}', expected: {expected}", self.full(path)))
    }

    fn wrong_value<T>(&self, path: &Path<'_>, expected: &str) -> Result<T> {
        Err(err!("Parameter '{}' expects {expected}", self.full(path)))
    }

    fn value(&self, ty: TypeId, value: Value, path: &Path<'_>) -> Result<Value> {
        let def = ty.def();
        match &def.kind {
            Kind::Builtin(b) => self.builtin(*b, value, path),
            Kind::Enum(members) => {
                let name = self.string(value, path)?;
                if !members.iter().any(|m| m.name == name) || !self.limits.allows(ty, &name) {
                    bail!("Parameter '{}' does not accept value '{name}'", path.bare());
                }
                Ok(Value::String(name))
            }
            Kind::Array(element) => self.list(*element, value, path),
            Kind::Object { members, tag, variants } => {
                let Value::Object(map) = value else { return self.wrong_type(path, "object") };
                self.object(&Shape { members, tag: *tag, variants }, map, path).map(Value::Object)
            }
            Kind::Alternate(branches) => match branches.iter().find(|b| accepts(b.ty, &value)) {
                Some(branch) => self.value(branch.ty, value, path),
                None => Err(err!("Invalid parameter type for '{}', expected: {}", path.bare(), def.name)),
            },
        }
    }

    fn list(&self, element: TypeId, value: Value, path: &Path<'_>) -> Result<Value> {
        let Value::Array(items) = value else { return self.wrong_type(path, "array") };
        let items = items.into_iter().enumerate();
        items.map(|(i, v)| self.value(element, v, &path.element(i))).collect::<Result<_>>().map(Value::Array)
    }

    fn object(&self, shape: &Shape, mut map: Map, path: &Path<'_>) -> Result<Map> {
        let mut out = Map::new();
        self.members(shape, &mut map, &mut out, path)?;
        match map.keys().next() {
            Some(key) => Err(err!("Parameter '{}' is unexpected", self.full(&path.member(key)))),
            None => Ok(out),
        }
    }

    fn members(&self, shape: &Shape, map: &mut Map, out: &mut Map, path: &Path<'_>) -> Result<()> {
        for m in shape.members {
            let here = path.member(m.name);
            match map.shift_remove(m.name) {
                Some(v) => {
                    let v = self.value(m.ty, v, &here)?;
                    out.insert(m.name.to_owned(), v);
                }
                None if m.optional => {}
                None => bail!("Parameter '{}' is missing", self.full(&here)),
            }
        }
        let Some(tag) = shape.tag.and_then(|i| out.get(shape.members[i].name)?.as_str()) else { return Ok(()) };
        let Some(variant) = shape.variants.iter().find(|v| v.case == tag) else { return Ok(()) };
        match &variant.ty.def().kind {
            Kind::Object { members, tag, variants } => {
                self.members(&Shape { members, tag: *tag, variants }, map, out, path)
            }
            _ => Ok(()),
        }
    }

    fn string(&self, value: Value, path: &Path<'_>) -> Result<String> {
        match (value, self.source) {
            (Value::String(s), _) => Ok(s),
            (_, Source::Json) => self.wrong_type(path, "string"),
            (Value::Array(_) | Value::Object(_), Source::Keyval) => {
                Err(err!("Parameters '{}.*' are unexpected", self.full(path)))
            }
            (_, Source::Keyval) => Err(err!("Internal error: parameter {} invalid", self.full(path))),
        }
    }

    fn builtin(&self, b: Builtin, value: Value, path: &Path<'_>) -> Result<Value> {
        match b {
            Builtin::Any => return Ok(value),
            Builtin::Str => return self.string(value, path).map(Value::String),
            Builtin::Null => {
                return match (value, self.source) {
                    (Value::Null, Source::Json) => Ok(Value::Null),
                    _ => self.wrong_type(path, "null"),
                };
            }
            _ => {}
        }
        match self.source {
            Source::Json => self.typed_scalar(b, value, path),
            Source::Keyval => {
                let text = self.string(value, path)?;
                self.text_scalar(b, &text, path)
            }
        }
    }

    fn typed_scalar(&self, b: Builtin, value: Value, path: &Path<'_>) -> Result<Value> {
        match (b, value) {
            (Builtin::Bool, Value::Bool(x)) => Ok(Value::Bool(x)),
            (Builtin::Bool, _) => self.wrong_type(path, "boolean"),
            (Builtin::Number, Value::Number(n)) => Ok(Value::Number(n)),
            (Builtin::Number, _) => self.wrong_type(path, "number"),
            (b, value) if unsigned(b) => match (value.as_u64(), value.as_i64()) {
                (Some(n), _) => self.unsigned(b, n, path),
                // QEMU takes negative numbers for unsigned parameters, as their two's complement.
                (None, Some(n)) => self.unsigned(b, n as u64, path),
                (None, None) => self.wrong_value(path, "uint64"),
            },
            (b, value) => match value.as_i64() {
                Some(n) => self.signed(b, n, path),
                None => self.wrong_type(path, "integer"),
            },
        }
    }

    fn text_scalar(&self, b: Builtin, text: &str, path: &Path<'_>) -> Result<Value> {
        match b {
            Builtin::Bool => match parse_bool(text) {
                Some(x) => Ok(Value::Bool(x)),
                None => self.wrong_value(path, "'on' or 'off'"),
            },
            Builtin::Number => match text.parse::<f64>().ok().filter(|x| x.is_finite()) {
                Some(x) => Ok(x.into()),
                None => self.wrong_type(path, "number"),
            },
            Builtin::Size => match size::parse_size(text, 'B') {
                Some(n) => Ok(n.into()),
                None => self.wrong_value(path, "size"),
            },
            b if unsigned(b) => match parse_u64(text) {
                Some(n) => self.unsigned(b, n, path),
                None => self.wrong_value(path, "integer"),
            },
            b => match parse_i64(text) {
                Some(n) => self.signed(b, n, path),
                None => self.wrong_value(path, "integer"),
            },
        }
    }

    fn unsigned(&self, b: Builtin, n: u64, path: &Path<'_>) -> Result<Value> {
        self.fits(b, i128::from(n), path)?;
        Ok(n.into())
    }

    fn signed(&self, b: Builtin, n: i64, path: &Path<'_>) -> Result<Value> {
        self.fits(b, i128::from(n), path)?;
        Ok(n.into())
    }

    fn fits(&self, b: Builtin, n: i128, path: &Path<'_>) -> Result<()> {
        match range_name(b) {
            Some((min, max, name)) if n < min || n > max => Err(err!("Parameter '{}' expects {name}", path.bare())),
            _ => Ok(()),
        }
    }
}

/// The bounds of the narrow integers, and what messages call them.
pub(crate) fn range_name(b: Builtin) -> Option<(i128, i128, &'static str)> {
    Some(match b {
        Builtin::Int8 => (i8::MIN.into(), i8::MAX.into(), "int8_t"),
        Builtin::Int16 => (i16::MIN.into(), i16::MAX.into(), "int16_t"),
        Builtin::Int32 => (i32::MIN.into(), i32::MAX.into(), "int32_t"),
        Builtin::Uint8 => (0, u8::MAX.into(), "uint8_t"),
        Builtin::Uint16 => (0, u16::MAX.into(), "uint16_t"),
        Builtin::Uint32 => (0, u32::MAX.into(), "uint32_t"),
        _ => return None,
    })
}

fn unsigned(b: Builtin) -> bool {
    matches!(b, Builtin::Uint8 | Builtin::Uint16 | Builtin::Uint32 | Builtin::Uint64 | Builtin::Size)
}

/// Whether a branch of an alternate takes a value of this JSON type.
fn accepts(ty: TypeId, value: &Value) -> bool {
    match (&ty.def().kind, value) {
        (Kind::Builtin(Builtin::Str) | Kind::Enum(_), Value::String(_))
        | (Kind::Builtin(Builtin::Bool), Value::Bool(_))
        | (Kind::Builtin(Builtin::Null), Value::Null)
        | (Kind::Object { .. }, Value::Object(_))
        | (Kind::Array(_), Value::Array(_)) => true,
        (Kind::Builtin(b), Value::Number(_)) => {
            !matches!(b, Builtin::Str | Builtin::Bool | Builtin::Null | Builtin::Any)
        }
        _ => false,
    }
}

/// A boolean of the command line.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// Splits a number as C's `strtol` does with base 0: sign, magnitude digits and their base.
fn split_number(text: &str) -> Option<(bool, u32, &str)> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (base, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    // `from_str_radix` would take a second sign.
    digits.starts_with(|c: char| c.is_digit(base)).then_some((negative, base, digits))
}

/// A signed integer of the command line: decimal, `0x` hexadecimal or `0` octal.
pub fn parse_i64(text: &str) -> Option<i64> {
    let (negative, base, digits) = split_number(text)?;
    let magnitude = i128::from(u64::from_str_radix(digits, base).ok()?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// An unsigned integer of the command line; as in C, a negative one wraps around.
pub fn parse_u64(text: &str) -> Option<u64> {
    parse_u64_range(text).flatten()
}

/// Like [`parse_u64`], but tells what is no number (`None`) from what does not fit (`Some(None)`).
pub(crate) fn parse_u64_range(text: &str) -> Option<Option<u64>> {
    let (negative, base, digits) = split_number(text)?;
    if !digits.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, base).ok();
    Some(magnitude.map(|m| if negative { m.wrapping_neg() } else { m }))
}

#[cfg(test)]
#[path = "tests/visit.rs"]
mod tests;
