//! What QEMU 10.0.2 answered to the same bytes.

use super::*;

fn read(bytes: &[u8]) -> Vec<String> {
    let mut reader = Reader::default();
    let mut out = Vec::new();
    for b in bytes {
        for r in reader.push(*b).into_iter().flatten() {
            out.push(match r {
                Ok(v) => to_string(&v),
                Err(e) => e.message().replace("JSON parse error, ", "! "),
            });
        }
    }
    out
}

#[test]
fn syntax_errors_are_worded_as_qemu_does() {
    let cases: &[(&[u8], &[&str])] = &[
        (b"{} x\n", &["{}", "! invalid keyword 'x'"]),
        (b"@\n", &["! stray '@'"]),
        (b"{\"a\" @ b}\n", &["! stray '@'", "! expecting value"]),
        (b"%d\n", &["! stray '%'"]),
        (b"\"a\tb\"\n", &["! stray '\"a\t'"]),
        (b"\"abc\n{}\n", &["! stray '\"abc\n'", "{}"]),
        (b"{'a':'\\q'}\n", &["! invalid escape sequence in string"]),
        (b"{'a':'\\u12'}\n", &["! \\u12' is not a valid Unicode character"]),
        (b"{'a':'\\u0000'}\n", &["{\"a\": \"\\u0000\"}"]),
        (b"{'a':'\\ud800'}\n", &["! \\ud800 is not a valid Unicode character"]),
        (b"{'a':'\xc3('}\n", &["! invalid UTF-8 sequence in string"]),
        (b"{'a':'\xff'}\n", &["! stray ''\u{fffd}'", "! expecting value"]),
        (b"\xff\n", &["! stray '\u{fffd}'"]),
        (b"{1:2}\n", &["! key is not a string in object"]),
        (b"{\"a\":}\n", &["! expecting value"]),
        (b"{\"a\":1,}\n", &["! expecting value"]),
        (b"{\"a\":1 \"b\":2}\n", &["! expected separator in dict"]),
        (b"[1 2]\n", &["! expected separator in list"]),
        (b"[1,]\n", &["! expecting value"]),
        (b"{\"a\"}\n", &["! missing : in object pair"]),
        (b"{\"a\":1]\n", &["! expected separator in dict"]),
        (b"}\n", &["! expecting value"]),
        (b"nul\n", &["! invalid keyword 'nul'"]),
        (b"null\n", &["null"]),
        (b"01\n", &["! stray '01'"]),
        (b"-\n-x\n1.\n1.e\n", &["! stray '-\n'", "! stray '1.\n'"]),
        (b"{,}\n", &["! expecting value"]),
        (b"{[]:1}\n", &["! key is not a string in object"]),
        (b"{\"a\":1,\"a\":2}\n", &["! duplicate key"]),
        (b"{\"a\":{\"b\":bad}} {}\n", &["! invalid keyword 'bad'", "{}"]),
        (b"]]]\n", &["! expecting value", "! expecting value", "! expecting value"]),
        (b"A\n", &["! stray 'A'"]),
        (b"1\xc3\xa9\n", &["1", "! stray '\u{fffd}'"]),
        (b"nul\xc3\xa9\n", &["! invalid keyword 'nul'", "! stray '\u{fffd}'"]),
        (b"aB {}\n", &["! invalid keyword 'a'", "! stray 'B'", "{}"]),
        (b"{\"x\":@,{}\n}\n", &["! stray '@'", "! expecting value", "{}", "! expecting value"]),
    ];
    for (input, expected) in cases {
        assert_eq!(read(input), *expected, "{}", String::from_utf8_lossy(input));
    }
}

#[test]
fn values_are_printed_as_qemu_does() {
    let cases = [
        ("[1.5e300]", "[1.5000000000000001e+300]"),
        ("[18446744073709551616]", "[1.8446744073709552e+19]"),
        ("[1.0,100000000000000000000,-0,-0.0,0.1]", "[1, 1e+20, 0, -0, 0.10000000000000001]"),
        ("[3.14159265358979,1e-5,1e16,1e17]", "[3.14159265358979, 1.0000000000000001e-05, 10000000000000000, 1e+17]"),
        (r#"["\u00e9\n\u0001\ud83d\ude00","/"]"#, r#"["\u00E9\n\u0001\uD83D\uDE00", "/"]"#),
        ("['a\"b',{}]", r#"["a\"b", {}]"#),
        ("[18446744073709551615,-9223372036854775808]", "[18446744073709551615, -9223372036854775808]"),
    ];
    for (input, expected) in cases {
        assert_eq!(read(input.as_bytes()), [expected]);
    }
}

#[test]
fn nesting_is_limited() {
    let deep = |n| [b"[".repeat(n), b"]".repeat(n)].concat();
    assert_eq!(read(&deep(1024)).len(), 1);
    assert_eq!(read(&b"[".repeat(1025)), ["JSON nesting depth limit exceeded"]);
}

#[test]
fn pretty_output_indents_by_four() {
    let mut out = String::new();
    write_pretty(&parse("{'a': [1, {}], 'b': {}}").unwrap(), &mut out);
    assert_eq!(out, "{\n    \"a\": [\n        1,\n        {\n        }\n    ],\n    \"b\": {\n    }\n}");
}

#[test]
fn one_value_and_no_more() {
    assert_eq!(parse(" {'a': 1} ").unwrap()["a"], 1);
    for (text, message) in [
        ("{'a': 1", "JSON parse error, premature EOI"),
        ("{} {}", "Expecting at most one JSON value"),
        ("{} {", "Expecting at most one JSON value"),
        ("", "Expecting a JSON value"),
    ] {
        assert_eq!(parse(text).unwrap_err().message(), message, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        read(&bytes);
    }

    #[test]
    fn arbitrary_token_soup_recovers(words in proptest::collection::vec(
        proptest::sample::select(vec!["{", "}", "[", "]", ",", ":", "'a'", "1", "-2.5e3", "true", "@", "\\", "\"x"]), 0..60)
    ) {
        let mut bytes = words.join(" ").into_bytes();
        // However bad the input was: a line feed and enough closing brackets later, a request is understood.
        bytes.extend_from_slice(b"\n");
        bytes.extend_from_slice(&b"}]".repeat(64));
        bytes.extend_from_slice(b"\xff\n{\"ok\": 1}\n");
        let answers = read(&bytes);
        proptest::prop_assert_eq!(answers.last().map(String::as_str), Some("{\"ok\": 1}"));
    }

    #[test]
    fn what_is_printed_is_read_back(text in ".{0,60}", n: i64, x in -1e300f64..1e300) {
        let text: String = text.chars().filter(|&c| {
            let c = u32::from(c);
            !(0xfdd0..=0xfdef).contains(&c) && c & 0xfffe != 0xfffe
        }).collect();
        let value = serde_json::json!({ text.as_str(): [text.as_str(), n, x, null, true, {}] });
        let back = parse(&to_string(&value)).unwrap();
        proptest::prop_assert_eq!(back[&text][0].as_str(), Some(text.as_str()));
        proptest::prop_assert_eq!(back[&text][1].as_i64(), Some(n));
        proptest::prop_assert_eq!(back[&text][2].as_f64(), Some(x));
    }
}
