//! The arguments of a command: words, quoted words, flags, numbers, the rest of the line.

use std::collections::HashMap;

/// A parameter.
pub(super) enum Param {
    /// A word, or text in double quotes.
    Word(&'static str),
    /// The same, that may be missing.
    OptionalWord(&'static str),
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

/// What a user gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    words: HashMap<&'static str, String>,
    flags: String,
}

impl Args {
    /// Reads arguments; the error says what is wrong with them.
    pub(super) fn parse(params: &'static [Param], text: &str) -> Result<Self, String> {
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
                            return Err(format!("unsupported option -{other}"));
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

fn take_word(text: &str) -> Result<(String, &str), String> {
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
                Some((_, c)) => return Err(format!("unsupported escape code: '\\{c}'")),
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
}
