//! Options of the command line that stand for a type of the schema, each in the grammars that QEMU takes for it.
//!
//! | option | JSON | otherwise |
//! |---|---|---|
//! | `-object` | yes | older options; `object_add` of the human monitor: dotted keys |
//! | `-netdev` | yes | older options, but dotted keys for the types `stream` and `dgram` |
//! | `-blockdev` | yes | dotted keys |
//! | `-audiodev`, `-display` | yes | dotted keys |

use crate::opts::{self, Opts};
use crate::schema::{Audiodev, BlockdevOptions, DisplayOptions, Netdev, ObjectOptions};
use crate::visit::{Source, from_json, from_keyval};
use crate::wire::Wire;
use crate::{from_opts, json, keyval};
use lockstep_util::Result;
use serde_json::Value;

/// What an option says.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed<T> {
    /// The value, and what to warn of: a warning and the line after it.
    Value(T, Vec<(String, String)>),
    /// The user asks for help, on one type if it is named.
    Help(Option<String>),
}

/// `-object`.
pub fn object(text: &str) -> Result<Parsed<ObjectOptions>> {
    json_or_opts(text, "qom-type")
}

/// `object_add` of the human monitor.
pub fn object_add(text: &str) -> Result<Parsed<ObjectOptions>> {
    json_or_keyval(text, "qom-type")
}

/// `-netdev`.
pub fn netdev(text: &str) -> Result<Parsed<Netdev>> {
    let modern = |o: Opts| matches!(o.get("type"), Some("stream" | "dgram"));
    if !text.starts_with('{') && opts::parse(text, Some("type")).is_ok_and(modern) {
        return json_or_keyval(text, "type");
    }
    json_or_opts(text, "type")
}

/// `-blockdev`.
pub fn blockdev(text: &str) -> Result<BlockdevOptions> {
    let (value, source) = keyval::parse_or_json(text, Some("driver"))?;
    typed(value, source)
}

/// `-audiodev`.
pub fn audiodev(text: &str) -> Result<Parsed<Audiodev>> {
    json_or_keyval(text, "driver")
}

/// `-display`.
pub fn display(text: &str) -> Result<Parsed<DisplayOptions>> {
    json_or_keyval(text, "type")
}

fn typed<T: Wire>(value: Value, source: Source) -> Result<T> {
    match source {
        Source::Json => from_json(value),
        Source::Keyval => from_keyval(value),
    }
}

fn json_or_keyval<T: Wire>(text: &str, implied: &str) -> Result<Parsed<T>> {
    if text.starts_with('{') {
        return Ok(Parsed::Value(from_json(json::parse(text)?)?, Vec::new()));
    }
    let tree = keyval::parse(text, Some(implied))?;
    if tree.help {
        return Ok(Parsed::Help(tree.options.get(implied).and_then(Value::as_str).map(str::to_owned)));
    }
    Ok(Parsed::Value(from_keyval(Value::Object(tree.options))?, Vec::new()))
}

fn json_or_opts<T: Wire>(text: &str, implied: &str) -> Result<Parsed<T>> {
    if text.starts_with('{') {
        return Ok(Parsed::Value(from_json(json::parse(text)?)?, Vec::new()));
    }
    let opts = opts::parse(text, Some(implied))?;
    if opts.help {
        return Ok(Parsed::Help(opts.get(implied).map(str::to_owned)));
    }
    Ok(Parsed::Value(from_opts(&opts)?, opts.warnings().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::NetdevBranch;

    #[test]
    fn each_option_takes_its_grammars() {
        let Parsed::Value(json, _) = object(r#"{"qom-type": "iothread", "id": "a"}"#).unwrap() else { panic!("help") };
        let Parsed::Value(plain, warnings) = object("iothread,id=a").unwrap() else { panic!("help") };
        assert_eq!((json, warnings.len()), (plain, 0));
        let Parsed::Value(_, warnings) = object("iothread,id").unwrap() else { panic!("help") };
        assert_eq!(warnings[0].0, "short-form boolean option 'id' deprecated");
        assert_eq!(object_add("iothread,id").unwrap_err().message(), "Expected '=' after parameter 'id'");
        let stream = "stream,id=a,addr.type=inet,addr.host=x,addr.port=1";
        let Parsed::Value(n, _) = netdev(stream).unwrap() else { panic!("help") };
        assert!(matches!(n.branch, NetdevBranch::Stream(_)));
        assert_eq!(netdev("stream,id=a").unwrap_err().message(), "Parameter 'addr' is missing");
        assert_eq!(netdev("user,id=a,foo=1").unwrap_err().message(), "Invalid parameter 'foo'");
        assert_eq!(blockdev("help").unwrap_err().message(), "Help is not available for this option");
        assert!(matches!(audiodev(r#"{"id": "audio1", "driver": "none"}"#).unwrap(), Parsed::Value(..)));
        assert!(matches!(display("none").unwrap(), Parsed::Value(..)));
    }

    #[test]
    fn help_is_on_a_type_or_on_all() {
        assert_eq!(object("help").unwrap(), Parsed::Help(None));
        assert_eq!(object("iothread,id=a,help").unwrap(), Parsed::Help(Some("iothread".into())));
        assert_eq!(netdev("?").unwrap(), Parsed::Help(None));
        assert_eq!(display("help").unwrap(), Parsed::Help(None));
    }
}
