//! What QEMU 10.0.2 says to `-blockdev` and the like.

use super::*;
use crate::Wire;
use crate::schema::BlockdevOptions;
use crate::visit::{from_json, from_keyval};
use serde_json::json;

#[test]
fn trees_are_built_from_dotted_keys() {
    let tree = |text| Value::Object(parse(text, Some("driver")).unwrap().options);
    assert_eq!(tree("qcow2,node-name=x,"), json!({"driver": "qcow2", "node-name": "x"}));
    assert_eq!(tree("a.b=1,a.c.0=x,,y,a.c.1=,a.b=2"), json!({"a": {"b": "2", "c": ["x,y", ""]}}));
    assert_eq!(tree("a.1=x,a.0.b=y"), json!({"a": [{"b": "y"}, "x"]}));
    assert_eq!(tree("__x.y_z=1"), json!({"__x.y_z": "1"}));
    assert_eq!(tree("x=a=b"), json!({"x": "a=b"}));
    assert_eq!(tree(""), json!({}));
}

#[test]
fn malformed_strings_get_qemus_words() {
    let long = "x".repeat(130);
    for (text, message) in [
        ("null,,co,node-name=x", "Invalid parameter ''"),
        ("null-co,node-name", "Expected '=' after parameter 'node-name'"),
        ("=x", "Invalid parameter ''"),
        (",", "Invalid parameter ''"),
        ("null-co,,", "Invalid parameter ''"),
        ("driver=null-co,?", "Help is not available for this option"),
        ("help", "Help is not available for this option"),
        ("a..b=1", "Invalid parameter 'a..b'"),
        ("a.=1", "Invalid parameter 'a.'"),
        ("1=1", "Invalid parameter '1'"),
        ("x=1,1a=1", "Invalid parameter '1a'"),
        ("a.1b=1", "Invalid parameter 'a.1b'"),
        ("a.01=1", "Parameter 'a.0' missing"),
        ("a=1,a.b=2", "Parameters 'a.*' used inconsistently"),
        ("a.b=1,a=2", "Parameters 'a.*' used inconsistently"),
        ("a.0=1,a.b=2", "Parameters 'a.*' used inconsistently"),
        ("a.0=1,a.2=2", "Parameter 'a.1' missing"),
        ("a.b.0=1,a.b.99999999999999999999=2", "Parameter 'a.b.1' missing"),
        ("a.0.b=1,a.1=2,a.0=5", "Parameters 'a.0.*' used inconsistently"),
        (&format!("{long}=1"), &format!("Parameter '{long}' is too long")),
        (&format!("a.{long}=1"), &format!("Parameter fragment '{long}' is too long")),
    ] {
        assert_eq!(parse_no_help(text, Some("driver")).unwrap_err().message(), message, "{text}");
    }
    assert!(parse(&format!("{}a=1", "a.".repeat(100_000)), None).is_err());
}

#[test]
fn texts_become_the_types_of_the_schema() {
    let node = |text: &str| -> Result<BlockdevOptions> {
        let (value, source) = parse_or_json(text, Some("driver"))?;
        match source {
            crate::visit::Source::Json => from_json(value),
            crate::visit::Source::Keyval => from_keyval(value),
        }
    };
    let qcow2 = node("qcow2,node-name=x,read-only=yes,file.driver=file,file.filename=/a,,b").unwrap();
    assert_eq!((qcow2.node_name.as_deref(), qcow2.read_only), (Some("x"), Some(true)));
    assert_eq!(
        qcow2.to_wire(),
        json!({"driver": "qcow2", "node-name": "x", "read-only": true, "file": {"driver": "file", "filename": "/a,b"}})
    );
    assert_eq!(node("null-co,node-name=x,size=0x10").unwrap().to_wire()["size"], 16);
    assert_eq!(node("null-co,node-name=x,size=010").unwrap().to_wire()["size"], 8);
    for (text, message) in [
        ("", "Parameter 'driver' is missing"),
        ("driver", "Parameter 'driver' does not accept value 'driver'"),
        ("null-co,help=1", "Parameter 'help' is unexpected"),
        ("null-co,__x.y_z=1", "Parameter '__x.y_z' is unexpected"),
        ("null-co,read-only=maybe", "Parameter 'read-only' expects 'on' or 'off'"),
        (
            "quorum,children.0=a,children.1.driver=null-co,vote-threshold=a",
            "Parameter 'vote-threshold' expects integer",
        ),
        ("quorum,vote-threshold=1,children.a=1", "Invalid parameter type for 'children', expected: array"),
        ("quorum,vote-threshold=1,children=1", "Invalid parameter type for 'children', expected: array"),
        ("quorum,vote-threshold=1,children.0.0=1", "Invalid parameter type for 'null', expected: BlockdevRef"),
        ("qcow2,node-name=x", "Parameter 'file' is missing"),
        ("qcow2,file.0=1", "Invalid parameter type for 'file', expected: BlockdevRef"),
        ("qcow2,file.driver=file", "Parameter 'file.filename' is missing"),
        ("qcow2,file.driver=bogus", "Parameter 'driver' does not accept value 'bogus'"),
        ("qcow2,file.driver=file,file.filename=/n,foo=1", "Parameter 'foo' is unexpected"),
        ("qcow2,file.driver=file,file.filename=/n,file.foo=1", "Parameter 'file.foo' is unexpected"),
        ("null-co,size=1.5M", "Parameter 'size' expects integer"),
        ("null-co,cache=1", "Invalid parameter type for 'cache', expected: object"),
        ("null-co,cache.direct.x=1", "Parameters 'cache.direct.*' are unexpected"),
        ("driver=null-co,node-name.x=y", "Parameters 'node-name.*' are unexpected"),
        ("{\"driver\":\"null-co\"", "JSON parse error, premature EOI"),
        (r#"{"driver":"null-co","size":"1"}"#, "Invalid parameter type for 'size', expected: integer"),
        (
            r#"{"driver":"quorum","vote-threshold":1,"children":[5]}"#,
            "Invalid parameter type for 'null', expected: BlockdevRef",
        ),
        (
            r#"{"driver":"quorum","vote-threshold":1,"children":[{"driver":"null-co","foo":1}]}"#,
            "Parameter 'children[0].foo' is unexpected",
        ),
    ] {
        assert_eq!(node(text).unwrap_err().message(), message, "{text}");
    }
}

#[test]
fn an_option_given_twice_is_laid_over_the_first() {
    let tree = |text| parse(text, None).unwrap().options;
    let mut all = tree("a.b=1,c=1,l.0=x");
    merge(&mut all, tree("a.d=2,c=3,l.0=y")).unwrap();
    assert_eq!(Value::Object(all.clone()), json!({"a": {"b": "1", "d": "2"}, "c": "3", "l": ["x", "y"]}));
    assert_eq!(merge(&mut all, tree("a.b.c=1")).unwrap_err().message(), "Parameters 'a.b.*' used inconsistently");
}

#[test]
fn errors_name_the_option_that_the_value_belongs_to() {
    let smp = |text| {
        let value = Value::Object(parse_no_help(text, Some("cpus")).unwrap());
        crate::visit::check_named("smp", crate::schema::SMPConfiguration::TYPE, value, crate::visit::Source::Keyval)
    };
    assert_eq!(smp("2,cores=1").unwrap(), json!({"cpus": 2, "cores": 1}));
    for (text, message) in [
        ("1,foo=1", "Parameter 'smp.foo' is unexpected"),
        ("cpus=x", "Parameter 'smp.cpus' expects integer"),
        ("2,cores.x=1", "Parameters 'smp.cores.*' are unexpected"),
    ] {
        assert_eq!(smp(text).unwrap_err().message(), message);
    }
}
