//! Options of block nodes: an ordered map from dotted keys (`file.filename`, `children.0.driver`) to scalar values.
//!
//! `-drive` and `drive_add` give strings only; `blockdev-add` and `json:` names give typed values. Taking an option out
//! accepts both, with QEMU's wording where the value does not fit. What a driver has not taken is unknown to it.

use indexmap::IndexMap;
use lockstep_util::{Result, bail, err, size::parse_size};
use serde_json::{Map, Value};

/// Flat options of one node, in the order they were given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    map: IndexMap<String, Value>,
}

/// What a child option holds: the name of an existing node, or the options of a new one.
#[derive(Clone, Debug, PartialEq)]
pub enum ChildSpec {
    /// Name of a node or id of a backend.
    Reference(String),
    /// Options of a node to open.
    Inline(Options),
}

/// Deepest nesting of dictionaries and lists that is accepted.
const MAX_DEPTH: usize = 64;

impl Options {
    /// No options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Options from `key=value` strings with dotted keys, later ones replacing earlier ones.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self { map: pairs.into_iter().map(|(k, v)| (k.into(), Value::String(v.into()))).collect() }
    }

    /// Flattens a JSON object.
    pub fn from_json(value: &Value) -> Result<Self> {
        let mut options = Self::new();
        let Value::Object(object) = value else { bail!("Options must be a JSON object") };
        for (key, value) in object {
            options.flatten(key.clone(), value, 0)?;
        }
        Ok(options)
    }

    fn flatten(&mut self, key: String, value: &Value, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            bail!("Options are nested too deeply");
        }
        match value {
            Value::Object(object) if !object.is_empty() => {
                for (k, v) in object {
                    self.flatten(format!("{key}.{k}"), v, depth + 1)?;
                }
            }
            Value::Array(list) if !list.is_empty() => {
                for (i, v) in list.iter().enumerate() {
                    self.flatten(format!("{key}.{i}"), v, depth + 1)?;
                }
            }
            _ => {
                self.map.insert(key, value.clone());
            }
        }
        Ok(())
    }

    /// The options as a JSON object with dictionaries and lists (keys `0`, `1`, ... of one level become a list).
    pub fn to_json(&self) -> Value {
        let mut root = Map::new();
        for (key, value) in &self.map {
            let mut at = &mut root;
            let mut parts = key.split('.').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    at.insert(part.to_owned(), value.clone());
                    break;
                }
                let slot = at.entry(part.to_owned()).or_insert_with(|| Value::Object(Map::new()));
                if !slot.is_object() {
                    // `file=x,file.driver=y`: the later, more exact one wins.
                    *slot = Value::Object(Map::new());
                }
                match slot {
                    Value::Object(map) => at = map,
                    _ => break,
                }
            }
        }
        let mut value = Value::Object(root);
        lists_from_numbers(&mut value, 0);
        value
    }

    /// Whether there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The dotted keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// Keys and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Whether the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Whether the key itself or any `key.…` is there.
    pub fn contains_group(&self, key: &str) -> bool {
        self.contains(key) || self.map.keys().any(|k| is_below(k, key))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key)
    }

    /// The value of a key if it is a string.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        self.map.get(key).and_then(Value::as_str)
    }

    /// Sets a key.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.map.insert(key.into(), value.into());
    }

    /// Sets a key unless it is there already.
    pub fn set_default(&mut self, key: &str, value: impl Into<Value>) {
        if !self.map.contains_key(key) {
            self.map.insert(key.to_owned(), value.into());
        }
    }

    /// Takes a value out.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.shift_remove(key)
    }

    /// Takes a string out; numbers and booleans are worded as the command line would.
    pub fn take_str(&mut self, key: &str) -> Result<Option<String>> {
        Ok(match self.take(key) {
            None | Some(Value::Null) => None,
            Some(Value::String(s)) => Some(s),
            Some(Value::Bool(b)) => Some(if b { "on" } else { "off" }.to_owned()),
            Some(Value::Number(n)) => Some(n.to_string()),
            Some(_) => bail!("Invalid parameter type for '{key}', expected: string"),
        })
    }

    /// Takes a boolean out: `on`/`off` and their synonyms, or a JSON boolean.
    pub fn take_bool(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(Value::String(s)) => match s.as_str() {
                "on" | "yes" | "true" | "y" => Ok(Some(true)),
                "off" | "no" | "false" | "n" => Ok(Some(false)),
                _ => bail!("Parameter '{key}' expects 'on' or 'off'"),
            },
            Some(_) => bail!("Invalid parameter type for '{key}', expected: boolean"),
        }
    }

    /// Takes a plain number out (decimal, `0x` or octal as C writes them).
    pub fn take_u64(&mut self, key: &str) -> Result<Option<u64>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Number(n)) => match n.as_u64() {
                Some(n) => Ok(Some(n)),
                None => bail!("Parameter '{key}' expects a number"),
            },
            Some(Value::String(s)) => match parse_c_number(&s) {
                Some(n) => Ok(Some(n)),
                None => bail!("Parameter '{key}' expects a number"),
            },
            Some(_) => bail!("Invalid parameter type for '{key}', expected: integer"),
        }
    }

    /// Takes a size in bytes out (`64M`; without a suffix bytes).
    pub fn take_size(&mut self, key: &str) -> Result<Option<u64>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Number(n)) => match n.as_u64() {
                Some(n) => Ok(Some(n)),
                None => bail!("Parameter '{key}' expects a non-negative number below 2^64"),
            },
            Some(Value::String(s)) => Ok(Some(parse_size_option(key, &s)?)),
            Some(_) => bail!("Invalid parameter type for '{key}', expected: integer"),
        }
    }

    /// Takes one of a fixed set of names out.
    pub fn take_enum<T: Copy>(&mut self, key: &str, values: &[(&str, T)]) -> Result<Option<T>> {
        let Some(text) = self.take_str(key)? else { return Ok(None) };
        match values.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => bail!("Parameter '{key}' does not accept value '{text}'"),
        }
    }

    /// Takes everything below `prefix.` out, with the prefix cut off.
    pub fn take_group(&mut self, prefix: &str) -> Options {
        let keys: Vec<String> = self.map.keys().filter(|k| is_below(k, prefix)).cloned().collect();
        let mut group = Options::new();
        for key in keys {
            if let Some(value) = self.map.shift_remove(&key) {
                group.map.insert(key[prefix.len() + 1..].to_owned(), value);
            }
        }
        group
    }

    /// Takes the child `name` out: a reference, inline options, or nothing.
    pub fn take_child(&mut self, name: &str) -> Result<Option<ChildSpec>> {
        let group = self.take_group(name);
        match self.take(name) {
            Some(Value::String(reference)) => {
                if !group.is_empty() {
                    bail!("Cannot specify both '{name}' as a reference and as options");
                }
                Ok(Some(ChildSpec::Reference(reference)))
            }
            Some(Value::Object(_)) | None if !group.is_empty() => Ok(Some(ChildSpec::Inline(group))),
            Some(Value::Object(_)) => Ok(Some(ChildSpec::Inline(Options::new()))),
            None => Ok(None),
            Some(_) => Err(err!("Invalid parameter type for '{name}', expected: BlockdevRef")),
        }
    }

    /// The indices `N` of `name.N` and `name.N.…` present, ascending; a gap or a key that is no number is an error.
    pub fn list_indices(&self, name: &str) -> Result<Vec<usize>> {
        let mut indices: Vec<usize> = Vec::new();
        for key in self.map.keys().filter(|k| is_below(k, name)) {
            let rest = &key[name.len() + 1..];
            let number = rest.split('.').next().unwrap_or(rest);
            match number.parse::<usize>() {
                Ok(n) if number == n.to_string() => indices.push(n),
                _ => bail!("Parameter '{name}' expects an array"),
            }
        }
        indices.sort_unstable();
        indices.dedup();
        if indices.iter().enumerate().any(|(i, n)| i != *n) {
            bail!("Parameter '{name}' is missing an element");
        }
        Ok(indices)
    }

    /// Adds all options of `other` under `prefix.`.
    pub fn put_group(&mut self, prefix: &str, other: &Options) {
        for (key, value) in other.iter() {
            self.map.insert(format!("{prefix}.{key}"), value.clone());
        }
    }
}

/// Parses a size as an option value, with QEMU's error and its hint.
pub fn parse_size_option(key: &str, text: &str) -> Result<u64> {
    parse_size(text, 'B').ok_or_else(|| {
        err!("Parameter '{key}' expects a non-negative number below 2^64").hint(
            "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.\n",
        )
    })
}

fn parse_c_number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    if text.len() > 1 && text.starts_with('0') {
        return u64::from_str_radix(&text[1..], 8).ok();
    }
    text.parse().ok()
}

fn is_below(key: &str, prefix: &str) -> bool {
    key.len() > prefix.len() + 1 && key.starts_with(prefix) && key.as_bytes()[prefix.len()] == b'.'
}

fn lists_from_numbers(value: &mut Value, depth: usize) {
    let Value::Object(map) = value else { return };
    if depth > MAX_DEPTH {
        return;
    }
    for child in map.values_mut() {
        lists_from_numbers(child, depth + 1);
    }
    let count = map.len();
    if count > 0 && (0..count).all(|i| map.contains_key(&i.to_string())) {
        let list = (0..count).filter_map(|i| map.remove(&i.to_string())).collect();
        *value = Value::Array(list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dotted_keys_and_json_are_the_same_tree() {
        let flat = Options::from_pairs([("driver", "quorum"), ("children.0.driver", "raw"), ("children.1", "x")]);
        let tree = json!({"driver": "quorum", "children": [{"driver": "raw"}, "x"]});
        assert_eq!(flat.to_json(), tree);
        assert_eq!(Options::from_json(&tree).unwrap(), flat);
    }

    #[test]
    fn children_are_references_or_inline() {
        let mut o = Options::from_pairs([("file.driver", "file"), ("file.filename", "x"), ("backing", "b0")]);
        assert_eq!(o.take_child("backing").unwrap(), Some(ChildSpec::Reference("b0".into())));
        let Some(ChildSpec::Inline(file)) = o.take_child("file").unwrap() else { panic!("inline expected") };
        assert_eq!(file.keys().collect::<Vec<_>>(), ["driver", "filename"]);
        assert!(o.is_empty());
        assert_eq!(o.take_child("file").unwrap(), None);
    }

    #[test]
    fn values_parse_from_strings_and_json() {
        let mut o = Options::from_json(&json!({"a": "on", "b": true, "c": "64M", "d": 512, "e": "x"})).unwrap();
        assert_eq!(o.take_bool("a").unwrap(), Some(true));
        assert_eq!(o.take_bool("b").unwrap(), Some(true));
        assert_eq!(o.take_size("c").unwrap(), Some(64 << 20));
        assert_eq!(o.take_size("d").unwrap(), Some(512));
        assert_eq!(o.take_bool("e").unwrap_err().message(), "Parameter 'e' expects 'on' or 'off'");
        assert_eq!(o.take_str("e").unwrap(), None);
    }

    #[test]
    fn lists_must_have_no_gap() {
        let o = Options::from_pairs([("children.0", "a"), ("children.2.driver", "b")]);
        assert!(o.list_indices("children").is_err());
        let o = Options::from_pairs([("children.1.driver", "b"), ("children.0", "a")]);
        assert_eq!(o.list_indices("children").unwrap(), [0, 1]);
    }
}
