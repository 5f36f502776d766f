//! The older option strings (`-drive`, `-chardev`, `-netdev`, `-device`, `-object`): `name,key=value,flag,noflag`.
//!
//! Options stay in order and may come twice. `,,` stands for a comma in a value. A word without a value is a switch, on or,
//! after `no`, off; that is deprecated, and the words are kept for a warning.

use crate::keyval::{after_comma, is_help, key, value};
use crate::visit::{parse_bool, parse_u64_range};
use lockstep_util::{Error, Result, bail, err, size};

/// The options of one string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opts {
    /// The first `id=`.
    pub id: Option<String>,
    /// All others, in order.
    pub items: Vec<(String, String)>,
    /// Switches without a value, for [`Opts::warnings`].
    pub switches: Vec<Switch>,
    /// True if the user asks for help.
    pub help: bool,
}

/// A switch without a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The option that it sets.
    pub name: String,
    /// What it sets it to.
    pub on: bool,
}

/// What a value of an option must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptType {
    /// Anything.
    String,
    /// `on` or `off`.
    Bool,
    /// A number below 2^64.
    Number,
    /// A number with a suffix.
    Size,
}

/// An option that a command-line parameter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptDesc {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub ty: OptType,
}

/// Parses an option string; `implied` is the key of a first value without one. Fails for a malformed id.
pub fn parse(text: &str, implied: Option<&str>) -> Result<Opts> {
    let mut opts = Opts::default();
    let mut rest = text;
    let mut implied = implied;
    while !rest.is_empty() {
        rest = parse_one(&mut opts, rest, implied.take())?;
        if opts.help {
            break;
        }
    }
    if let Some(id) = &opts.id {
        check_id(id)?;
    }
    Ok(opts)
}

fn parse_one<'a>(opts: &mut Opts, text: &'a str, implied: Option<&str>) -> Result<&'a str> {
    let broken = |_| err!("Invalid parameter '{text}'");
    let (rest, word) = key(text).map_err(broken)?;
    let (rest, name, value) = match (rest.strip_prefix('='), implied) {
        (Some(rest), _) => {
            let (rest, value) = value(rest).map_err(broken)?;
            (rest, word.to_owned(), value)
        }
        (None, Some(implied)) => {
            opts.help |= is_help(word);
            let (rest, value) = value(text).map_err(broken)?;
            (rest, implied.to_owned(), value)
        }
        (None, None) => {
            opts.help |= is_help(word);
            let (name, on) = word.strip_prefix("no").map_or((word, true), |name| (name, false));
            if !opts.help {
                opts.switches.push(Switch { name: name.to_owned(), on });
            }
            (rest, name.to_owned(), if on { "on" } else { "off" }.to_owned())
        }
    };
    if opts.help {
        return Ok(rest);
    }
    match (name.as_str(), &opts.id) {
        ("id", None) => opts.id = Some(value),
        ("id", Some(_)) => {}
        _ => opts.items.push((name, value)),
    }
    Ok(after_comma(rest))
}

/// Whether a text can be the id of something; the error has QEMU's hint.
pub fn check_id(id: &str) -> Result<()> {
    let rest = id.strip_prefix(|c: char| c.is_ascii_alphabetic());
    if rest.is_some_and(|r| r.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))) {
        return Ok(());
    }
    Err(err!("Parameter 'id' expects an identifier")
        .hint("Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.\n"))
}

impl Opts {
    /// The last value of an option: later ones win.
    pub fn get(&self, name: &str) -> Option<&str> {
        if name == "id" {
            return self.id.as_deref();
        }
        self.items.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// All values of an option, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.items.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Takes an option out, all its values; the last one is returned.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let value = self.get(name).map(str::to_owned);
        self.items.retain(|(n, _)| n != name);
        value
    }

    /// A switch.
    pub fn get_bool(&self, name: &str) -> Result<Option<bool>> {
        self.get(name).map(|v| bool_value(name, v)).transpose()
    }

    /// A number.
    pub fn get_number(&self, name: &str) -> Result<Option<u64>> {
        self.get(name).map(|v| number_value(name, v)).transpose()
    }

    /// A size in bytes.
    pub fn get_size(&self, name: &str) -> Result<Option<u64>> {
        self.get(name).map(|v| size_value(name, v)).transpose()
    }

    /// Checks that all options are known and have values of their types.
    pub fn check(&self, known: &[OptDesc]) -> Result<()> {
        for (name, value) in &self.items {
            match known.iter().find(|d| d.name == name).map(|d| d.ty) {
                None => bail!("Invalid parameter '{name}'"),
                Some(OptType::String) => {}
                Some(OptType::Bool) => drop(bool_value(name, value)?),
                Some(OptType::Number) => drop(number_value(name, value)?),
                Some(OptType::Size) => drop(size_value(name, value)?),
            }
        }
        Ok(())
    }

    /// What to print about switches without a value: the warning and the line after it.
    pub fn warnings(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.switches.iter().map(|s| {
            let no = if s.on { "" } else { "no" };
            let warning = format!("short-form boolean option '{no}{}' deprecated", s.name);
            let advice = match s.name.as_str() {
                // `nodelay` is an option too.
                "delay" => format!("Please use nodelay={} instead", if s.on { "off" } else { "on" }),
                name => format!("Please use {name}={} instead", if s.on { "on" } else { "off" }),
            };
            (warning, advice)
        })
    }
}

fn bool_value(name: &str, value: &str) -> Result<bool> {
    parse_bool(value).ok_or_else(|| err!("Parameter '{name}' expects 'on' or 'off'"))
}

fn number_value(name: &str, value: &str) -> Result<u64> {
    match parse_u64_range(value) {
        Some(Some(n)) => Ok(n),
        Some(None) => Err(err!("Value '{value}' is too large for parameter '{name}'")),
        None => Err(err!("Parameter '{name}' expects a number")),
    }
}

fn size_value(name: &str, value: &str) -> Result<u64> {
    size::parse_size(value, 'B').ok_or_else(|| size_error(name, value))
}

/// The error of a value that is no size, or one that does not fit.
pub fn size_error(name: &str, value: &str) -> Error {
    let number = value.trim_start().strip_prefix('-').unwrap_or(value.trim_start());
    let digits = number.bytes().take_while(|b| b.is_ascii_digit()).count();
    let suffix = &number[digits..];
    if digits > 0 && (suffix.is_empty() || suffix.len() == 1 && "BbKkMmGgTtPpEe".contains(suffix)) {
        return err!("Value '{value}' is out of range for parameter '{name}'");
    }
    err!("Parameter '{name}' expects a non-negative number below 2^64").hint(
        "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.\n",
    )
}

#[cfg(test)]
#[path = "tests/opts.rs"]
mod tests;
