//! Properties of devices: declared in tables, set by users, shown by `info qtree` and `qom-get`.

use std::{collections::BTreeMap, sync::Arc};

use lockstep_util::{Error, Result, bail, err, size::parse_size};
use parking_lot::Mutex;
use serde_json::Value as Json;

/// The type of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PropertyKind {
    Bool,
    U8,
    U16,
    U32,
    U64,
    I32,
    /// Bytes, with suffixes on the command line.
    Size,
    /// A block size: a power of two from 512 to 2 MiB, or 0 for the default.
    BlockSize,
    Str,
    OnOffAuto,
    /// One of some words; the name is QAPI's.
    Enum(&'static str, &'static [&'static str]),
    /// `slot[.function]` or a device and function number; -1 is the next free slot.
    PciAddress,
    Mac,
    /// Ids of backends.
    Drive,
    Netdev,
    Chardev,
    AudioDev,
}

/// A value of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PropertyValue {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Str(String),
}

impl From<bool> for PropertyValue {
    fn from(v: bool) -> Self {
        Self::Bool(v)
    }
}

impl From<u64> for PropertyValue {
    fn from(v: u64) -> Self {
        Self::Unsigned(v)
    }
}

impl From<u32> for PropertyValue {
    fn from(v: u32) -> Self {
        Self::Unsigned(v.into())
    }
}

impl From<i64> for PropertyValue {
    fn from(v: i64) -> Self {
        Self::Signed(v)
    }
}

impl From<&str> for PropertyValue {
    fn from(v: &str) -> Self {
        Self::Str(v.to_owned())
    }
}

impl From<String> for PropertyValue {
    fn from(v: String) -> Self {
        Self::Str(v)
    }
}

impl PropertyValue {
    /// As JSON, for `qom-get`.
    pub fn to_json(&self) -> Json {
        match self {
            Self::Bool(v) => (*v).into(),
            Self::Unsigned(v) => (*v).into(),
            Self::Signed(v) => (*v).into(),
            Self::Str(v) => v.as_str().into(),
        }
    }
}

/// A property of a type of device.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: PropertyKind,
    /// The default, as text in the kind's syntax; `None` when it is unset by default.
    pub default: Option<&'static str>,
    /// What `-device TYPE,help` says; empty for nothing.
    pub description: &'static str,
    /// Whether `info qtree` shows it.
    pub in_qtree: bool,
}

impl Property {
    /// A property with a default.
    pub const fn new(name: &'static str, kind: PropertyKind, default: &'static str) -> Self {
        Self { name, kind, default: Some(default), description: "", in_qtree: true }
    }

    /// A property that is unset by default.
    pub const fn unset(name: &'static str, kind: PropertyKind) -> Self {
        Self { name, kind, default: None, description: "", in_qtree: true }
    }

    /// With a description.
    pub const fn describe(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    /// Not shown by `info qtree`.
    pub const fn hidden(self) -> Self {
        Self { in_qtree: false, ..self }
    }

    /// The name of the type in help and in `device-list-properties`.
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            PropertyKind::Bool => "bool",
            PropertyKind::U8 => "uint8",
            PropertyKind::U16 => "uint16",
            PropertyKind::U32 => "uint32",
            PropertyKind::U64 => "uint64",
            PropertyKind::I32 => "int32",
            PropertyKind::Size | PropertyKind::BlockSize => "size",
            PropertyKind::OnOffAuto => "OnOffAuto",
            PropertyKind::Enum(name, _) => name,
            PropertyKind::Str
            | PropertyKind::PciAddress
            | PropertyKind::Mac
            | PropertyKind::Drive
            | PropertyKind::Netdev
            | PropertyKind::Chardev
            | PropertyKind::AudioDev => "str",
        }
    }

    /// What help says about the kind where the property has no description of its own.
    pub fn help_text(&self) -> &'static str {
        match (self.description, self.kind) {
            ("", PropertyKind::Bool) => "on/off",
            ("", PropertyKind::OnOffAuto) => "on/off/auto",
            ("", PropertyKind::Mac) => "Ethernet 6-byte MAC Address, example: 52:54:00:12:34:56",
            ("", PropertyKind::Netdev) => "ID of a netdev to use as a backend",
            ("", PropertyKind::Drive) => "Node name or ID of a block device to use as a backend",
            ("", PropertyKind::Chardev) => "ID of a chardev to use as a backend",
            ("", PropertyKind::AudioDev) => "ID of an audiodev to use as a backend",
            ("", PropertyKind::PciAddress) => "Slot and optional function number, example: 06.0 or 06",
            (text, _) => text,
        }
    }

    /// Parses text from a command line.
    ///
    /// # Errors
    /// QEMU's wording for a value that does not fit; `owner` is the type of device.
    pub fn parse(&self, owner: &str, text: &str) -> Result<PropertyValue> {
        let name = self.name;
        let refused = || err!("Property '{owner}.{name}' doesn't take value '{text}'");
        match self.kind {
            PropertyKind::Bool => match text {
                "on" | "yes" | "true" | "y" => Ok(true.into()),
                "off" | "no" | "false" | "n" => Ok(false.into()),
                _ => Err(err!("Parameter '{name}' expects 'on' or 'off'")),
            },
            PropertyKind::U8 | PropertyKind::U16 | PropertyKind::U32 | PropertyKind::U64 => {
                let (max, type_name) = match self.kind {
                    PropertyKind::U8 => (u8::MAX.into(), "uint8_t"),
                    PropertyKind::U16 => (u16::MAX.into(), "uint16_t"),
                    PropertyKind::U32 => (u32::MAX.into(), "uint32_t"),
                    _ => (u64::MAX, "uint64"),
                };
                let value = parse_integer(text).ok_or_else(|| err!("Parameter '{name}' expects integer"))?;
                match u64::try_from(value) {
                    Ok(v) if v <= max => Ok(v.into()),
                    _ => Err(err!("Parameter '{name}' expects {type_name}")),
                }
            }
            PropertyKind::I32 => {
                let value = parse_integer(text).ok_or_else(|| err!("Parameter '{name}' expects integer"))?;
                i32::try_from(value)
                    .map(|v| i64::from(v).into())
                    .map_err(|_| err!("Parameter '{name}' expects int32_t"))
            }
            PropertyKind::Size | PropertyKind::BlockSize => {
                let bytes = parse_size(text, 'B').ok_or_else(|| {
                    err!("Parameter '{name}' expects a non-negative number below 2^64").hint(
                        "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.\n",
                    )
                })?;
                self.check_size(owner, bytes)
            }
            PropertyKind::OnOffAuto => self.check_word("OnOffAuto", &["auto", "on", "off"], text),
            PropertyKind::Enum(kind, words) => self.check_word(kind, words, text),
            PropertyKind::PciAddress => parse_pci_address(text).map(|a| i64::from(a).into()).ok_or_else(refused),
            PropertyKind::Mac => parse_mac(text).map(|m| format_mac(&m).into()).ok_or_else(refused),
            PropertyKind::Str
            | PropertyKind::Drive
            | PropertyKind::Netdev
            | PropertyKind::Chardev
            | PropertyKind::AudioDev => Ok(text.into()),
        }
    }

    /// Takes a value from a QMP command.
    ///
    /// # Errors
    /// QEMU's wording for a value of another type or out of range.
    pub fn from_json(&self, owner: &str, value: &Json) -> Result<PropertyValue> {
        let name = self.name;
        let wrong = |expected: &str| err!("Invalid parameter type for '{name}', expected: {expected}");
        match self.kind {
            PropertyKind::Bool => value.as_bool().map(Into::into).ok_or_else(|| wrong("boolean")),
            PropertyKind::U8 | PropertyKind::U16 | PropertyKind::U32 | PropertyKind::U64 | PropertyKind::I32 => {
                match value {
                    Json::Number(n) if !n.is_f64() => self.parse(owner, &n.to_string()),
                    _ => Err(wrong("integer")),
                }
            }
            PropertyKind::Size | PropertyKind::BlockSize => {
                value.as_u64().ok_or_else(|| wrong("integer")).and_then(|v| self.check_size(owner, v))
            }
            PropertyKind::PciAddress if value.is_i64() => match value.as_i64() {
                Some(v @ -1..=255) => Ok(v.into()),
                _ => Err(err!("Property '{owner}.{name}' doesn't take value '{value}'")),
            },
            _ => value.as_str().ok_or_else(|| wrong("string")).and_then(|text| self.parse(owner, text)),
        }
    }

    fn check_word(&self, _kind: &str, words: &[&str], text: &str) -> Result<PropertyValue> {
        match words.contains(&text) {
            true => Ok(text.into()),
            false => Err(err!("Parameter '{}' does not accept value '{text}'", self.name)),
        }
    }

    fn check_size(&self, owner: &str, bytes: u64) -> Result<PropertyValue> {
        if self.kind == PropertyKind::BlockSize && bytes != 0 {
            let name = self.name;
            if !(512..=(2 << 20)).contains(&bytes) {
                bail!("parameter {name} must be between 512 and 2097152");
            }
            if !bytes.is_power_of_two() {
                bail!("Property {owner}.{name} doesn't take value '{bytes}', it's not a power of 2");
            }
        }
        Ok(bytes.into())
    }
}

fn parse_integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(digits, 8),
        None if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse(),
        None => return None,
    };
    magnitude.ok().map(|m| if negative { -i128::from(m) } else { m.into() })
}

/// `slot[.function]` in hexadecimal, to a device and function number.
fn parse_pci_address(text: &str) -> Option<i32> {
    let hex = |s: &str| (!s.is_empty() && s.len() <= 2).then(|| u8::from_str_radix(s, 16).ok()).flatten();
    if text == "-1" {
        return Some(-1);
    }
    let (slot, function) = match text.split_once('.') {
        Some((slot, function)) => (hex(slot)?, hex(function)?),
        None => (hex(text)?, 0),
    };
    (slot < 32 && function < 8).then(|| i32::from(slot << 3 | function))
}

/// Six bytes in hexadecimal, with colons or dashes between.
pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let parts: Vec<_> = text.split([':', '-']).collect();
    let mut mac = [0; 6];
    if parts.len() != 6 {
        return None;
    }
    for (byte, part) in mac.iter_mut().zip(parts) {
        if part.len() != 2 {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    Some(mac)
}

fn format_mac(mac: &[u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// A value as a user gave it.
#[derive(Clone, Debug, PartialEq)]
pub enum PropertyInput {
    /// From a command line.
    Text(String),
    /// From a QMP command.
    Json(Json),
}

impl From<&str> for PropertyInput {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl PropertyInput {
    fn resolve(&self, property: &Property, owner: &str) -> Result<PropertyValue> {
        match self {
            Self::Text(text) => property.parse(owner, text),
            Self::Json(value) => property.from_json(owner, value),
        }
    }
}

/// The properties of one device: defaults, changed by `-global`, changed by the device's own options.
#[derive(Clone, Debug, Default)]
pub struct PropertySet {
    values: BTreeMap<&'static str, PropertyValue>,
    given: Vec<&'static str>,
}

impl PropertySet {
    /// Resolves options against a table of properties.
    ///
    /// # Errors
    /// An unknown property, or a value that it does not take.
    pub fn resolve<'a>(
        owner: &str,
        table: impl Iterator<Item = &'a Property>,
        globals: &[(String, String)],
        options: &[(String, PropertyInput)],
    ) -> Result<Self> {
        let table: Vec<_> = table.collect();
        let mut set = Self::default();
        for property in &table {
            if let Some(default) = property.default {
                set.values.insert(property.name, property.parse(owner, default)?);
            }
        }
        let mut given = |name: &str, input: &PropertyInput| -> Result<()> {
            let property = table.iter().find(|p| p.name == name);
            let property = property.ok_or_else(|| err!("Property '{owner}.{name}' not found"))?;
            set.values.insert(property.name, input.resolve(property, owner)?);
            set.given.push(property.name);
            Ok(())
        };
        for (name, text) in globals {
            given(name, &PropertyInput::Text(text.clone()))
                .map_err(|e: Error| e.prepend(format_args!("can't apply global {owner}.{name}={text}: ")))?;
        }
        for (name, input) in options {
            given(name, input)?;
        }
        Ok(set)
    }

    /// The value of a property, if it is set.
    pub fn get(&self, name: &str) -> Option<&PropertyValue> {
        self.values.get(name)
    }

    /// Whether a user gave it.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains(&name)
    }

    /// Replaces a value, with what the device made of it.
    pub fn set(&mut self, name: &'static str, value: impl Into<PropertyValue>) {
        self.values.insert(name, value.into());
    }

    /// A boolean; false if unset.
    pub fn bool(&self, name: &str) -> bool {
        matches!(self.get(name), Some(PropertyValue::Bool(true)))
    }

    /// A number; 0 if unset.
    pub fn u64(&self, name: &str) -> u64 {
        match self.get(name) {
            Some(PropertyValue::Unsigned(v)) => *v,
            Some(PropertyValue::Signed(v)) => *v as u64,
            _ => 0,
        }
    }

    /// A number that the property's kind keeps within 32 bits; 0 if unset.
    pub fn u32(&self, name: &str) -> u32 {
        self.u64(name) as u32
    }

    /// A signed number; `None` if unset.
    pub fn i64(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            Some(PropertyValue::Signed(v)) => Some(*v),
            Some(PropertyValue::Unsigned(v)) => i64::try_from(*v).ok(),
            _ => None,
        }
    }

    /// A text; `None` if unset.
    pub fn str(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(PropertyValue::Str(v)) => Some(v),
            _ => None,
        }
    }

    /// A MAC address; `None` if unset.
    pub fn mac(&self, name: &str) -> Option<[u8; 6]> {
        parse_mac(self.str(name)?)
    }
}

/// What `-global driver.property=value` set, in order. Clones share the list.
#[derive(Clone, Default)]
pub struct Globals {
    list: Arc<Mutex<Vec<Global>>>,
}

struct Global {
    driver: String,
    property: String,
    value: String,
    used: bool,
}

impl Globals {
    /// Adds a default.
    pub fn add(&self, driver: impl Into<String>, property: impl Into<String>, value: impl Into<String>) {
        let (driver, property, value) = (driver.into(), property.into(), value.into());
        self.list.lock().push(Global { driver, property, value, used: false });
    }

    /// The defaults for a type of device, also those given for one of its parent types. They count as used from now on.
    pub fn of(&self, driver: &str, parents: &[&str]) -> Vec<(String, String)> {
        let mut list = self.list.lock();
        let matching = list.iter_mut().filter(|g| g.driver == driver || parents.contains(&g.driver.as_str()));
        matching
            .map(|g| {
                g.used = true;
                (g.property.clone(), g.value.clone())
            })
            .collect()
    }

    /// Those that no device has asked for: driver, property, value.
    pub fn unused(&self) -> Vec<(String, String, String)> {
        let list = self.list.lock();
        list.iter().filter(|g| !g.used).map(|g| (g.driver.clone(), g.property.clone(), g.value.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [Property; 5] = [
        Property::new("addr", PropertyKind::PciAddress, "-1"),
        Property::new("multifunction", PropertyKind::Bool, "off"),
        Property::new("romsize", PropertyKind::U32, "4294967295"),
        Property::unset("mac", PropertyKind::Mac),
        Property::new("head", PropertyKind::U8, "0"),
    ];

    fn resolve(options: &[(&str, &str)]) -> Result<PropertySet> {
        let options: Vec<_> = options.iter().map(|&(n, v)| (n.to_owned(), PropertyInput::from(v))).collect();
        PropertySet::resolve("rtl8139", TABLE.iter(), &[("romsize".into(), "0x100".into())], &options)
    }

    #[test]
    fn options_win_over_globals_and_these_over_defaults() {
        let set = resolve(&[("addr", "1f.7"), ("mac", "52-54-00-AB-cd-01")]).unwrap();
        assert_eq!((set.i64("addr"), set.u32("romsize"), set.bool("multifunction")), (Some(0xff), 256, false));
        assert_eq!(set.str("mac"), Some("52:54:00:ab:cd:01"));
        assert!(set.is_given("mac") && !set.is_given("head"));
    }

    #[test]
    fn values_that_do_not_fit_are_refused_in_the_known_words() {
        for (name, value, text) in [
            ("addr", "zz", "Property 'rtl8139.addr' doesn't take value 'zz'"),
            ("addr", "3.9", "Property 'rtl8139.addr' doesn't take value '3.9'"),
            ("foo", "1", "Property 'rtl8139.foo' not found"),
            ("multifunction", "maybe", "Parameter 'multifunction' expects 'on' or 'off'"),
            ("mac", "zz", "Property 'rtl8139.mac' doesn't take value 'zz'"),
            ("romsize", "zz", "Parameter 'romsize' expects integer"),
            ("romsize", "99999999999", "Parameter 'romsize' expects uint32_t"),
        ] {
            assert_eq!(resolve(&[(name, value)]).unwrap_err().message(), text);
        }
    }
}
