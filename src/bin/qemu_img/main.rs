//! `qemu-img`: makes, looks at, checks and converts disk images.

mod amend;
mod args;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod help;
mod info;
mod map;
mod open;
mod progress;
mod rebase;
mod resize;
mod snapshot;

use lockstep_bin::version;
use std::process::ExitCode;

/// What a command comes to: success, or an exit status after the message was printed.
type Outcome = Result<(), u8>;

/// The exit status of an ordinary failure.
const FAILURE: u8 = 1;

/// A command: its name, one line about it, and what it does with its arguments.
struct Command {
    name: &'static str,
    summary: &'static str,
    run: fn(&[String]) -> Outcome,
}

const COMMANDS: &[Command] = &[
    Command { name: "amend", summary: "Update format-specific options of the image", run: amend::run },
    Command { name: "check", summary: "Check basic image integrity", run: check::run },
    Command { name: "commit", summary: "Commit image to its backing file", run: commit::run },
    Command { name: "compare", summary: "Check if two images have the same contents", run: compare::run },
    Command {
        name: "convert",
        summary: "Copy one image to another with optional format conversion",
        run: convert::run,
    },
    Command { name: "create", summary: "Create and format new image file", run: create::run },
    Command { name: "info", summary: "Display information about image", run: info::run },
    Command { name: "map", summary: "Dump image metadata", run: map::run },
    Command { name: "rebase", summary: "Change backing file of the image", run: rebase::run },
    Command { name: "resize", summary: "Resize the image to the new size", run: resize::run },
    Command { name: "snapshot", summary: "List snapshots within image", run: snapshot::run },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(status) => ExitCode::from(status),
    }
}

fn dispatch(args: &[String]) -> Outcome {
    let parsed = match lockstep_bin::getopt::parse(args, help::STANDARD_OPTIONS, false) {
        Ok(parsed) => parsed,
        Err(text) => {
            let program = args::program();
            eprintln!("{program}: {text}");
            eprintln!("Try '{program} --help' for more info");
            return Err(FAILURE);
        }
    };
    if let Some((name, value)) = parsed.options.first() {
        match name.as_str() {
            "help" => {
                print!("{}", help::overview());
                return Ok(());
            }
            "version" => {
                println!("qemu-img version {}", version());
                return Ok(());
            }
            _ => {
                let pattern = value.as_deref().unwrap_or_default();
                args::report(&format!("Tracing '{pattern}' is not supported by this build"));
                return Err(FAILURE);
            }
        }
    }
    let Some((name, rest)) = parsed.rest.split_first() else {
        return args::usage(None, "Not enough arguments");
    };
    match COMMANDS.iter().find(|c| c.name == name) {
        Some(command) => (command.run)(rest),
        None => args::usage(None, &format!("Command not found: {name}")),
    }
}
