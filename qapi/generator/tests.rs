//! The generator on small schemas.

use super::model::{Kind, Schema, build};
use super::{parse, rust};

fn model(text: &str) -> Result<Schema, String> {
    let exprs = parse::parse(text)?;
    build(&[("x.json".into(), exprs)], &["ON"])
}

#[test]
fn mistakes_in_a_schema_stop_the_build() {
    for (text, message) in [
        ("{ 'struct': 'A', 'data': { 'x': 'B' } }", "x.json:1: A: member 'x': unknown type 'B'"),
        ("{ 'struct': 'A', 'data': {} }\n{ 'enum': 'A', 'data': [] }", "x.json:2: 'A' is already defined"),
        ("{ 'struct': 'A', 'data': { 'x': 'int', 'x': 'int' } }", "line 1: duplicate key 'x'"),
        (
            "{ 'struct': 'A', 'base': 'B', 'data': { 'x': 'int' } }\n{ 'struct': 'B', 'data': { '*x': 'int' } }",
            "x.json:1: A: member 'x' occurs twice",
        ),
        (
            "{ 'union': 'U', 'base': { 'x': 'int' }, 'discriminator': 'x', 'data': {} }",
            "x.json:1: U: the discriminator is not an enum",
        ),
        (
            "{ 'enum': 'E', 'data': [ 'a' ] }\n{ 'struct': 'S', 'data': {} }\n\
             { 'union': 'U', 'base': { 't': 'E' }, 'discriminator': 't', 'data': { 'b': 'S' } }",
            "x.json:3: U: 'b' is no value of 'E'",
        ),
        ("{ 'command': 'c', 'returns': 'X' }", "x.json:1: c: unknown type 'X'"),
        ("{ 'nonsense': 'c' }", "x.json:1: expression defines nothing"),
        ("{ 'struct': 'A }", "line 1: unterminated string"),
        ("{ 'struct': 'A',\n 'data': { 'x' } }", "line 2: expected ':'"),
    ] {
        assert_eq!(model(text).unwrap_err(), message, "{text}");
    }
}

#[test]
fn conditions_take_members_values_and_branches_away() {
    let schema = model(
        "{ 'enum': 'E', 'data': [ 'a', { 'name': 'b', 'if': 'OFF' }, { 'name': 'c', 'if': { 'not': 'OFF' } } ] }\n\
         { 'struct': 'S', 'data': { 'x': 'int', 'y': { 'type': 'int', 'if': { 'all': [ 'ON', 'OFF' ] } } } }\n\
         { 'union': 'U', 'base': { 't': 'E' }, 'discriminator': 't', 'data': { 'a': 'S', 'b': 'S' } }\n\
         { 'command': 'gone', 'if': 'OFF' }\n\
         { 'command': 'here', 'if': { 'any': [ 'ON', 'OFF' ] }, 'data': 'U' }",
    )
    .unwrap();
    let kind = |name: &str| &schema.types.iter().find(|t| t.name == name).unwrap().kind;
    let Kind::Enum(values) = kind("E") else { panic!() };
    assert_eq!(values.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    let Kind::Object { members, .. } = kind("S") else { panic!() };
    assert_eq!(members.len(), 1);
    let Kind::Object { variants, .. } = kind("U") else { panic!() };
    assert_eq!(variants.len(), 1);
    assert_eq!(schema.commands.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["here"]);
}

#[test]
fn comments_above_an_expression_are_its_documentation() {
    let exprs =
        parse::parse("##\n# The file.\n##\n\n# One.\n# Two.\n{ 'command': 'c' } # not this\n{ 'command': 'd' }\n");
    let docs: Vec<_> = exprs.unwrap().into_iter().map(|e| (e.doc, e.line)).collect();
    assert_eq!(docs[0], ("One.\nTwo.".into(), 7));
    assert_eq!(docs[1].1, 8);
}

#[test]
fn types_that_hold_themselves_are_boxed() {
    let text = rust::emit(
        &model("{ 'struct': 'Chain', 'data': { '*next': 'Chain', 'list': [ 'Chain' ], 'type': 'str' } }").unwrap(),
    );
    assert!(text.contains("pub next: Option<Box<Chain>>,"));
    assert!(text.contains("pub list: Vec<Chain>,"));
    assert!(text.contains("pub type_: String,"));
}
