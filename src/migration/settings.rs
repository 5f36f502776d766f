//! Capabilities and parameters: all that QEMU 10.0 lists, with its defaults, bounds and texts.

use lockstep_util::{Result, bail, err};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// The capabilities in the order in which they are listed, and whether they can be switched on here.
const CAPABILITIES: [(&str, bool); 22] = [
    ("xbzrle", false),
    ("rdma-pin-all", false),
    ("auto-converge", false),
    ("zero-blocks", false),
    ("events", true),
    ("postcopy-ram", false),
    ("x-colo", true),
    ("release-ram", false),
    ("return-path", false),
    ("pause-before-switchover", true),
    ("multifd", false),
    ("dirty-bitmaps", false),
    ("postcopy-blocktime", false),
    ("late-block-activate", true),
    ("x-ignore-shared", false),
    ("validate-uuid", false),
    ("background-snapshot", false),
    ("zero-copy-send", false),
    ("postcopy-preempt", false),
    ("switchover-ack", false),
    ("dirty-limit", false),
    ("mapped-ram", false),
];

/// What is switched on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    on: u32,
}

impl Capabilities {
    /// Whether a capability is on; `false` for a name that is none.
    pub fn is_on(self, name: &str) -> bool {
        CAPABILITIES.iter().position(|c| c.0 == name).is_some_and(|at| self.on & (1 << at) != 0)
    }

    /// Switches some on or off, all or none of them.
    ///
    /// # Errors
    /// For a name that is none, and for one that cannot be on here.
    pub fn set<'a>(&mut self, changes: impl IntoIterator<Item = (&'a str, bool)>) -> Result<()> {
        let mut on = self.on;
        for (name, state) in changes {
            let at = CAPABILITIES.iter().position(|c| c.0 == name);
            let at = at.ok_or_else(|| err!("Parameter 'capability' does not accept value '{name}'"))?;
            if state && !CAPABILITIES[at].1 {
                bail!("Capability '{name}' is not supported");
            }
            on = if state { on | 1 << at } else { on & !(1 << at) };
        }
        self.on = on;
        Ok(())
    }

    /// What `query-migrate-capabilities` returns.
    pub fn to_json(self) -> Value {
        CAPABILITIES.iter().map(|(name, _)| json!({"capability": name, "state": self.is_on(name)})).collect()
    }

    /// What `info migrate_capabilities` prints.
    pub fn to_text(self) -> String {
        let line = |(name, _): &(&str, bool)| format!("{name}: {}\r\n", on_off(self.is_on(name)));
        CAPABILITIES.iter().map(line).collect()
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// How a value is checked and shown.
enum Kind {
    /// A number within bounds; `what` ends the sentence `Parameter '...' expects ...`.
    Number {
        min: u64,
        max: u64,
        what: &'static str,
    },
    /// A number whose refusal is worded otherwise.
    Worded {
        min: u64,
        text: &'static str,
    },
    /// `xbzrle-cache-size`.
    PowerOfTwo,
    Flag,
    /// Flags that can only be off here.
    Off,
    Text,
    /// Text that can only be empty here.
    Empty,
    /// One of these words, of which the first `usize` work here.
    Word(&'static [&'static str], usize),
}

use Kind::{Empty, Flag, Number, Off, PowerOfTwo, Text, Word, Worded};

struct Spec {
    name: &'static str,
    kind: Kind,
    default: u64,
    unit: &'static str,
}

const fn spec(name: &'static str, kind: Kind, default: u64, unit: &'static str) -> Spec {
    Spec { name, kind, default, unit }
}

const PERCENT: Kind = Number { min: 1, max: 99, what: "an integer in the range of 1 to 99" };
const ANY: Kind = Number { min: 0, max: u64::MAX, what: "" };
const ANNOUNCE: Kind = Number { min: 0, max: 100_000, what: "a value between 0 and 100000" };

/// In the order in which `info migrate_parameters` prints them; those without a unit line of their own come after.
const PARAMETERS: [Spec; 30] = [
    spec("announce-initial", ANNOUNCE, 50, " ms"),
    spec("announce-max", ANNOUNCE, 550, " ms"),
    spec("announce-rounds", Number { min: 0, max: 1000, what: "a value between 0 and 1000" }, 5, ""),
    spec("announce-step", Number { min: 1, max: 10_000, what: "a value between 0 and 10000" }, 100, " ms"),
    spec(
        "throttle-trigger-threshold",
        Number { min: 1, max: 100, what: "an integer in the range of 1 to 100" },
        50,
        "",
    ),
    spec("cpu-throttle-initial", PERCENT, 20, ""),
    spec("cpu-throttle-increment", PERCENT, 10, ""),
    spec("cpu-throttle-tailslow", Flag, 0, ""),
    spec(
        "max-cpu-throttle",
        Number { min: 1, max: 99, what: "an integer in the range of cpu_throttle_initial to 99" },
        99,
        "",
    ),
    spec("tls-creds", Empty, 0, ""),
    spec("tls-hostname", Text, 0, ""),
    spec("max-bandwidth", ANY, 128 << 20, " bytes/second"),
    spec("avail-switchover-bandwidth", ANY, 0, " bytes/second"),
    spec(
        "downtime-limit",
        Number { min: 0, max: 2_000_000, what: "an integer in the range of 0 to (2000 * 1000) ms" },
        300,
        " ms",
    ),
    spec("x-checkpoint-delay", Number { min: 0, max: u32::MAX as u64, what: "uint32_t" }, 20_000, " ms"),
    spec("multifd-channels", Number { min: 1, max: 255, what: "a value between 1 and 255" }, 2, ""),
    spec("multifd-compression", Word(&["none", "zlib", "zstd", "qpl", "uadk", "qatzip"], 1), 0, ""),
    spec("zero-page-detection", Word(&["none", "legacy", "multifd"], 3), 2, ""),
    spec("xbzrle-cache-size", PowerOfTwo, 64 << 20, " bytes"),
    spec("max-postcopy-bandwidth", ANY, 0, ""),
    spec("tls-authz", Text, 0, ""),
    spec(
        "x-vcpu-dirty-limit-period",
        Worded { min: 1, text: "Parameter 'x-vcpu-dirty-limit-period' expects a value between 1 and 1000" },
        1000,
        " ms",
    ),
    spec(
        "vcpu-dirty-limit",
        Worded { min: 1, text: "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s" },
        1,
        " MB/s",
    ),
    spec("mode", Word(&["normal", "cpr-reboot", "cpr-transfer"], 1), 0, ""),
    spec("direct-io", Off, 0, ""),
    spec("multifd-zlib-level", Number { min: 0, max: 9, what: "a value between 0 and 9" }, 1, ""),
    spec("multifd-zstd-level", Number { min: 0, max: 20, what: "a value between 0 and 20" }, 1, ""),
    spec("multifd-qatzip-level", Number { min: 1, max: 9, what: "a value between 1 and 9" }, 1, ""),
    // Ours: an event for each checkpoint.
    spec("x-checkpoint-events", Flag, 0, ""),
    // Ours: whether the secondary's guest runs alongside.
    spec("x-checkpoint-style", Word(&["auto", "lockstep", "buffered"], 3), 0, ""),
];

/// How many of the table are printed by `info migrate_parameters`.
const PRINTED: usize = 25;

impl Spec {
    fn initial(&self) -> Value {
        match &self.kind {
            Flag | Off => false.into(),
            Text | Empty => "".into(),
            Word(words, _) => words[self.default as usize].into(),
            _ => self.default.into(),
        }
    }

    fn check(&self, value: &Value) -> Result<()> {
        let name = self.name.replace('-', "_");
        let number = value.as_u64().unwrap_or(u64::MAX);
        match &self.kind {
            Number { min, max, .. } if (*min..=*max).contains(&number) => Ok(()),
            Number { what, .. } => bail!("Parameter '{name}' expects {what}"),
            Worded { min, text } => match number >= *min {
                true => Ok(()),
                false => bail!("{text}"),
            },
            PowerOfTwo if number >= 4096 && number.is_power_of_two() => Ok(()),
            PowerOfTwo => bail!("Parameter '{name}' expects a power of two no less than the target page size"),
            Flag if value.is_boolean() => Ok(()),
            Off if value == &Value::Bool(false) => Ok(()),
            Text if value.is_string() => Ok(()),
            Empty if value == "" => Ok(()),
            Word(words, working) if words[..*working].iter().any(|w| value == w) => Ok(()),
            Word(..) | Off | Empty => {
                let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                bail!("Parameter '{}' does not accept value '{shown}'", self.name)
            }
            Flag => bail!("Invalid parameter type for '{}', expected: boolean", self.name),
            Text => bail!("Invalid parameter type for '{}', expected: string", self.name),
        }
    }
}

/// The parameters' values.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    values: Vec<Value>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { values: PARAMETERS.iter().map(Spec::initial).collect() }
    }
}

impl Parameters {
    /// Changes some, all or none of them. Values are JSON of the schema's types.
    ///
    /// # Errors
    /// For names that are none and values that are out of bounds or do not work here.
    pub fn set<'a>(&mut self, changes: impl IntoIterator<Item = (&'a str, Value)>) -> Result<()> {
        let mut values = self.values.clone();
        for (name, value) in changes {
            let at = position(name).ok_or_else(|| err!("Parameter '{name}' is unexpected"))?;
            PARAMETERS[at].check(&value)?;
            values[at] = value;
        }
        let by_name = |name: &str| position(name).and_then(|at| values[at].as_u64());
        if by_name("max-cpu-throttle") < by_name("cpu-throttle-initial") {
            bail!("Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99");
        }
        self.values = values;
        Ok(())
    }

    /// Changes one whose value is text, as `migrate_set_parameter` has it.
    ///
    /// # Errors
    /// As [`set`](Self::set), and for text that is not of the right kind.
    pub fn set_text(&mut self, name: &str, text: &str) -> Result<()> {
        let at = position(name).ok_or_else(|| err!("invalid parameter value: {name}"))?;
        let value = match PARAMETERS[at].kind {
            Flag | Off => match text {
                "on" | "yes" | "true" | "y" => true.into(),
                "off" | "no" | "false" | "n" => false.into(),
                _ => bail!("Parameter '{name}' expects 'on' or 'off'"),
            },
            Text | Empty | Word(..) => text.into(),
            // Bandwidths are in MiB here.
            _ if name.ends_with("bandwidth") => {
                let size = lockstep_util::size::parse_size(text, 'M');
                size.ok_or_else(|| err!("Invalid size {text}"))?.into()
            }
            PowerOfTwo => {
                let size = lockstep_util::size::parse_size(text, 'B');
                size.ok_or_else(|| err!("Invalid size {text}"))?.into()
            }
            Number { what: "uint32_t", .. } => {
                let number: u32 = text.parse().map_err(|_| err!("Parameter '{name}' expects uint32_t"))?;
                number.into()
            }
            _ => text.parse::<u64>().map_err(|_| err!("Parameter '{name}' expects a number"))?.into(),
        };
        self.set([(name, value)])
    }

    /// The value of a number; 0 for a name that is none.
    pub fn number(&self, name: &str) -> u64 {
        position(name).and_then(|at| self.values[at].as_u64()).unwrap_or(0)
    }

    /// Whether a flag is set; `false` for a name that is none.
    pub fn is_on(&self, name: &str) -> bool {
        position(name).is_some_and(|at| self.values[at] == Value::Bool(true))
    }

    /// The value of a text; empty for a name that is none.
    pub fn text(&self, name: &str) -> &str {
        position(name).and_then(|at| self.values[at].as_str()).unwrap_or("")
    }

    /// What `query-migrate-parameters` returns.
    pub fn to_json(&self) -> Value {
        let pair = |(s, v): (&Spec, &Value)| (s.name.to_owned(), v.clone());
        Value::Object(PARAMETERS.iter().zip(&self.values).map(pair).collect::<Map<_, _>>())
    }

    /// What `info migrate_parameters` prints.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for (spec, value) in PARAMETERS.iter().zip(&self.values).take(PRINTED) {
            let shown = match value {
                Value::Bool(on) => on_off(*on).to_owned(),
                // Names that may be empty are quoted, but for one.
                Value::String(s) if matches!(spec.name, "tls-creds" | "tls-hostname" | "tls-authz") => format!("'{s}'"),
                Value::String(s) => s.clone(),
                other => other.to_string(),
            };
            let _ = write!(out, "{}: {shown}{}\r\n", spec.name, spec.unit);
        }
        out
    }
}

fn position(name: &str) -> Option<usize> {
    PARAMETERS.iter().position(|s| s.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_capabilities_are_listed_and_those_that_work_can_be_set() {
        let mut caps = Capabilities::default();
        assert_eq!(caps.to_json().as_array().unwrap().len(), 22);
        caps.set([("x-colo", true), ("events", true)]).unwrap();
        assert!(caps.is_on("x-colo") && !caps.is_on("multifd"));
        let e = caps.set([("events", false), ("multifd", true)]).unwrap_err();
        assert_eq!(e.message(), "Capability 'multifd' is not supported");
        assert!(caps.is_on("events"), "all or none");
        caps.set([("multifd", false)]).unwrap();
        let e = caps.set([("bogus", true)]).unwrap_err();
        assert_eq!(e.message(), "Parameter 'capability' does not accept value 'bogus'");
        assert!(caps.to_text().starts_with("xbzrle: off\r\nrdma-pin-all: off\r\n"));
    }

    #[test]
    fn bounds_and_texts_are_qemus() {
        let mut p = Parameters::default();
        for (name, value, text) in [
            (
                "cpu-throttle-initial",
                json!(0),
                "Parameter 'cpu_throttle_initial' expects an integer in the range of 1 to 99",
            ),
            (
                "max-cpu-throttle",
                json!(5),
                "Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99",
            ),
            (
                "downtime-limit",
                json!(3_000_000),
                "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms",
            ),
            (
                "xbzrle-cache-size",
                json!(5),
                "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page size",
            ),
            ("vcpu-dirty-limit", json!(0), "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s"),
            ("mode", json!("cpr-reboot"), "Parameter 'mode' does not accept value 'cpr-reboot'"),
            ("x-bogus", json!(1), "Parameter 'x-bogus' is unexpected"),
        ] {
            assert_eq!(p.set([(name, value)]).unwrap_err().message(), text);
        }
        assert_eq!(p, Parameters::default());
        p.set([("x-checkpoint-delay", json!(0)), ("max-bandwidth", json!(u64::MAX))]).unwrap();
        assert_eq!((p.number("x-checkpoint-delay"), p.number("max-bandwidth")), (0, u64::MAX));
        assert_eq!(p.to_json().as_object().unwrap().len(), 30);
    }

    #[test]
    fn text_values_are_those_of_the_human_monitor() {
        let mut p = Parameters::default();
        p.set_text("max-bandwidth", "3").unwrap();
        assert_eq!(p.number("max-bandwidth"), 3 << 20);
        assert_eq!(p.set_text("max-bandwidth", "3x").unwrap_err().message(), "Invalid size 3x");
        assert_eq!(p.set_text("bogus", "3").unwrap_err().message(), "invalid parameter value: bogus");
        let e = p.set_text("x-checkpoint-delay", "-4").unwrap_err();
        assert_eq!(e.message(), "Parameter 'x-checkpoint-delay' expects uint32_t");
        assert!(
            p.to_text()
                .contains("max-bandwidth: 3145728 bytes/second\r\navail-switchover-bandwidth: 0 bytes/second\r\n")
        );
        assert!(p.to_text().ends_with("vcpu-dirty-limit: 1 MB/s\r\nmode: normal\r\ndirect-io: off\r\n"));
    }
}
