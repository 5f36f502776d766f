//! Command lines of the commands, and how their mistakes are told.

use super::{FAILURE, Outcome};
use lockstep_bin::getopt::{Parsed, Spec};
use lockstep_util::Error;
use std::io::Write;

/// Prints an error as the program words it.
pub fn report(text: &str) {
    eprintln!("qemu-img: {text}");
}

/// Prints an error with its hint, and fails.
pub fn fail<T>(error: &Error) -> Result<T, u8> {
    report(error.message());
    let hint = error.hint_text();
    if !hint.is_empty() {
        eprint!("{hint}");
    }
    Err(FAILURE)
}

/// The program's name as it was called.
pub fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "qemu-img".to_owned())
}

/// Prints what is wrong with the command line and where help is, and fails.
pub fn usage<T>(command: Option<&str>, text: &str) -> Result<T, u8> {
    report(text);
    match command {
        Some(command) => eprintln!("Try '{} {command} --help' for more info", program()),
        None => eprintln!("Try '{} --help' for more info", program()),
    }
    Err(FAILURE)
}

/// Takes a command's arguments apart; `--help` is answered here (`Ok(None)`).
pub fn parse(command: &str, args: &[String], specs: &[Spec]) -> Result<Option<Parsed>, u8> {
    match lockstep_bin::getopt::parse(args, specs, true) {
        Ok(parsed) if parsed.has("help") => {
            print!("{}", super::help::command(command));
            Ok(None)
        }
        Ok(parsed) => Ok(Some(parsed)),
        Err(text) => {
            let program = program();
            eprintln!("{program} {command}: {text}");
            eprintln!("Try '{program} {command} --help' for more info");
            Err(FAILURE)
        }
    }
}

/// `--output`: whether JSON is wanted.
pub fn wants_json(command: &str, parsed: &Parsed) -> Result<bool, u8> {
    match parsed.value("output") {
        None | Some("human") => Ok(false),
        Some("json") => Ok(true),
        Some(other) => usage(Some(command), &format!("--output expects 'human' or 'json' not '{other}'")),
    }
}

/// The one filename of a command.
pub fn one_filename<'a>(command: &str, parsed: &'a Parsed) -> Result<&'a str, u8> {
    match parsed.rest.as_slice() {
        [name] => Ok(name),
        _ => usage(Some(command), "Expecting one image file name"),
    }
}

/// Options that this program does not have yet are refused, not ignored.
pub fn refuse(parsed: &Parsed, names: &[&str]) -> Outcome {
    match names.iter().find(|n| parsed.has(n)) {
        Some(name) => {
            report(&format!("option '--{name}' is not supported by this build"));
            Err(FAILURE)
        }
        None => Ok(()),
    }
}

/// Prints to the standard output; a reader that has gone ends the program quietly.
pub fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|_| FAILURE)
}
