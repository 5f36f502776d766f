//! The arguments of a command: words, quoted words, flags, numbers, the rest of the line.

use std::collections::HashMap;

/// A parameter.
pub(super) enum Param {
    /// A word, or text in double quotes.
    Word(&'static str),
    /// The same, that may be missing.
    OptionalWord(&'static str),
    /// A whole number of 32 bits, in C's notation, that may be missing.
    OptionalNumber(&'static str),
    /// The name of a block device.
    Device(&'static str),
    /// The same, that may be missing.
    OptionalDevice(&'static str),
    /// Everything up to the end of the line.
    Rest(&'static str),
    /// `-x`
    Flag(char),
    /// `-x WORD`
    Value(char, &'static str),
}

/// What is wrong with arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// One of them; it is told with the command's name.
    Argument(String),
    /// A number that cannot be read.
    Number(String),
    /// A number that is too large.
    TooLarge,
}

impl From<&str> for Wrong {
    fn from(text: &str) -> Self {
        Self::Argument(text.to_owned())
    }
}

impl Wrong {
    /// What the user is told about a command.
    pub fn text(&self, command: &str) -> String {
        match self {
            Self::Argument(why) => format!("{command}: {why}"),
            Self::Number(why) => why.clone(),
            Self::TooLarge => format!("'{command}' has failed: integer is for 32-bit values"),
        }
    }
}

/// What a user gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    words: HashMap<&'static str, String>,
    flags: String,
}

impl Args {
    /// Reads arguments; the error says what is wrong with them.
    pub(super) fn parse(params: &'static [Param], text: &str) -> Result<Self, Wrong> {
        let mut args = Self::default();
        let mut rest = text.trim_start();
        for param in params {
            match param {
                Param::Flag(flag) => {
                    let given = rest.strip_prefix('-').and_then(|r| r.strip_prefix(*flag));
                    if let Some(after) = given.filter(|r| r.is_empty() || r.starts_with(char::is_whitespace)) {
                        args.flags.push(*flag);
                        rest = after.trim_start();
                    } else if let Some(other) = rest.strip_prefix('-').and_then(|r| r.chars().next()) {
                        let known = |p: &Param| matches!(p, Param::Flag(f) if *f == other);
                        if !other.is_whitespace() && !params.iter().any(known) {
                            return Err(Wrong::Argument(format!("unsupported option -{other}")));
                        }
                    }
                }
                Param::Value(flag, name) => {
                    let given = rest.strip_prefix('-').and_then(|r| r.strip_prefix(*flag));
                    if let Some(after) = given.filter(|r| r.starts_with(char::is_whitespace)) {
                        let (word, after) = take_word(after.trim_start())?;
                        args.words.insert(name, word);
                        rest = after.trim_start();
                    }
                }
                Param::Word(name) | Param::OptionalWord(name) | Param::Device(name) | Param::OptionalDevice(name) => {
                    if rest.is_empty() {
                        match param {
                            Param::Word(_) => return Err("string expected".into()),
                            Param::Device(_) => return Err("block device name expected".into()),
                            _ => continue,
                        }
                    }
                    let (word, after) = take_word(rest)?;
                    args.words.insert(name, word);
                    rest = after.trim_start();
                }
                Param::OptionalNumber(name) => {
                    if rest.is_empty() {
                        continue;
                    }
                    let (number, after) = take_number(rest)?;
                    args.words.insert(name, number.to_string());
                    rest = after.trim_start();
                }
                Param::Rest(name) => {
                    if rest.is_empty() {
                        return Err("string expected".into());
                    }
                    args.words.insert(name, rest.to_owned());
                    rest = "";
                }
            }
        }
        if rest.is_empty() { Ok(args) } else { Err("extraneous characters at the end of line".into()) }
    }

    /// A word, if it was given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.words.get(name).map(String::as_str)
    }

    /// A word that [`parse`](Self::parse) saw to.
    pub fn word(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// Whether a flag was given.
    pub fn flag(&self, flag: char) -> bool {
        self.flags.contains(flag)
    }
}

/// The first word and what follows it.
pub(super) fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()))
}

/// The number that a text begins with, and what follows it.
fn take_number(text: &str) -> Result<(u32, &str), Wrong> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, text.strip_prefix('+').map_or(text, str::trim_start)),
    };
    let hex = digits.strip_prefix("0x").filter(|rest| rest.starts_with(|c: char| c.is_ascii_hexdigit()));
    let (radix, digits) = match hex {
        Some(hex) => (16, hex),
        None => (if digits.starts_with('0') { 8 } else { 10 }, digits),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    if end == 0 {
        return Err(Wrong::Number(match digits.chars().next() {
            None => "unexpected end of expression".into(),
            Some(c) => format!("invalid char '{c}' in expression"),
        }));
    }
    let number = u64::from_str_radix(&digits[..end], radix).map_err(|_| Wrong::Number("number too large".into()))?;
    let number = if negative { number.wrapping_neg() } else { number };
    Ok((u32::try_from(number).map_err(|_| Wrong::TooLarge)?, &digits[end..]))
}

fn take_word(text: &str) -> Result<(String, &str), Wrong> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (word, rest) = split_word(text);
        return Ok((word.to_owned(), rest));
    };
    let mut word = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((word, &quoted[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => word.push('\n'),
                Some((_, 'r')) => word.push('\r'),
                Some((_, c @ ('\\' | '\'' | '"'))) => word.push(c),
                Some((_, c)) => return Err(Wrong::Argument(format!("unsupported escape code: '\\{c}'"))),
                None => break,
            },
            c => word.push(c),
        }
    }
    Err("unterminated string".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    static DRIVE_ADD: &[Param] = &[Param::Flag('n'), Param::Word("pci_addr"), Param::Word("opts")];

    #[test]
    fn flags_words_and_quotes() {
        let args = Args::parse(DRIVE_ADD, " -n buddy driver=null-co").unwrap();
        assert_eq!((args.flag('n'), args.word("pci_addr"), args.word("opts")), (true, "buddy", "driver=null-co"));
        let args = Args::parse(DRIVE_ADD, r#""a b" "c\"d\\""#).unwrap();
        assert_eq!((args.flag('n'), args.word("pci_addr"), args.word("opts")), (false, "a b", r#"c"d\"#));
    }

    #[test]
    fn wrong_arguments_are_named() {
        assert_eq!(Args::parse(DRIVE_ADD, " -n buddy"), Err("string expected".into()));
        assert_eq!(Args::parse(DRIVE_ADD, "a b c"), Err("extraneous characters at the end of line".into()));
        assert_eq!(Args::parse(&[Param::Device("d")], ""), Err("block device name expected".into()));
        assert_eq!(Args::parse(&[Param::Word("d")], "\"x"), Err("unterminated string".into()));
        assert_eq!(Args::parse(&[Param::OptionalWord("d")], ""), Ok(Args::default()));
    }

    #[test]
    fn numbers_are_read_as_in_c() {
        let read = |text| Args::parse(&[Param::OptionalNumber("n")], text).map(|a| a.get("n").map(str::to_owned));
        for (text, number) in [("0x1F", "31"), ("017", "15"), ("0", "0"), (" 12 ", "12"), ("4294967295", "4294967295")]
        {
            assert_eq!(read(text), Ok(Some(number.to_owned())));
        }
        assert_eq!(read(""), Ok(None));
        for (text, told) in [
            ("x", "invalid char 'x' in expression"),
            ("-", "unexpected end of expression"),
            ("-1", "'c' has failed: integer is for 32-bit values"),
            ("0x100000000", "'c' has failed: integer is for 32-bit values"),
            ("08", "c: extraneous characters at the end of line"),
            ("0x", "c: extraneous characters at the end of line"),
            ("1 2", "c: extraneous characters at the end of line"),
            ("99999999999999999999", "number too large"),
        ] {
            assert_eq!(read(text).map_err(|wrong| wrong.text("c")), Err(told.to_owned()));
        }
    }
}
