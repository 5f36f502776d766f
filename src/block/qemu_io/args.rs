//! Arguments of the commands: options in any place, numbers with suffixes, patterns.

use super::{Command, Session};
use lockstep_util::size::parse_size;

/// A command's arguments: option letters with their values, and the rest.
#[derive(Default)]
pub struct Args {
    options: Vec<(char, Option<String>)>,
    /// What is no option, in order.
    pub rest: Vec<String>,
}

impl Args {
    /// Whether an option was given.
    pub fn has(&self, letter: char) -> bool {
        self.options.iter().any(|(l, _)| *l == letter)
    }

    /// An option's value.
    pub fn value(&self, letter: char) -> Option<&str> {
        self.options.iter().rev().find(|(l, _)| *l == letter).and_then(|(_, v)| v.as_deref())
    }
}

/// Takes arguments apart; `letters` as `getopt` has them (`P:` takes a value). Prints what is wrong.
pub fn parse(session: &mut Session, command: &Command, args: &[String], letters: &str) -> Option<Args> {
    let mut parsed = Args::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            parsed.rest.extend(args.cloned());
            break;
        }
        if arg.len() < 2 || !arg.starts_with('-') {
            parsed.rest.push(arg.clone());
            continue;
        }
        let mut at = 1;
        for letter in arg[1..].chars() {
            at += letter.len_utf8();
            let known = letter != ':' && letters.contains(letter);
            let takes_value = letters.contains(&format!("{letter}:"));
            if !known {
                session.say(format!("{}: invalid option -- '{letter}'", command.name));
                session.say(command.line());
                return None;
            }
            if !takes_value {
                parsed.options.push((letter, None));
                continue;
            }
            let value = if at < arg.len() { Some(arg[at..].to_owned()) } else { args.next().cloned() };
            let Some(value) = value else {
                session.say(format!("{}: option requires an argument -- '{letter}'", command.name));
                session.say(command.line());
                return None;
            };
            parsed.options.push((letter, Some(value)));
            break;
        }
    }
    Some(parsed)
}

/// A number of bytes. Prints what is wrong.
pub fn number(session: &mut Session, text: &str) -> Option<u64> {
    match parse_size(text, 'B') {
        Some(n) if n <= i64::MAX as u64 => Some(n),
        Some(_) => {
            session.say(format!("Parsing error: argument too large -- {text}"));
            None
        }
        None if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            session.say(format!("Parsing error: argument too large -- {text}"));
            None
        }
        None if text.starts_with('-') => {
            session.say(format!("Parsing error: negative argument -- {text}"));
            None
        }
        None => {
            session.say(format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"));
            None
        }
    }
}

/// A byte to fill with or to look for. Prints what is wrong.
pub fn pattern(session: &mut Session, text: &str) -> Option<u8> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u8::from_str_radix(hex, 16),
        None if text.len() > 1 && text.starts_with('0') => u8::from_str_radix(&text[1..], 8),
        None => text.parse(),
    };
    match parsed {
        Ok(byte) => Some(byte),
        Err(_) => {
            session.say(format!("{text} is not a valid pattern byte"));
            None
        }
    }
}
