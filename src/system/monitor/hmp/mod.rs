//! The human monitor: lines of text in, text out. `human-monitor-command` runs one line.

mod args;
mod block;
mod devices;
mod inspect;
mod log;
mod machine;
mod migration;
mod paging;

use std::rc::Rc;

use lockstep_util::Result;

pub use args::Args;
use args::Param;

use crate::{objects::LocalFuture, vm::Vm};

/// Runs a command; what it prints goes to the string.
type Handler = for<'a> fn(&'a Rc<Vm>, &'a Args, &'a mut String) -> LocalFuture<'a, Result<()>>;

/// A command.
pub struct HmpCommand {
    /// Its names, separated by bars.
    names: &'static str,
    params: &'static [Param],
    /// How `help` shows the parameters.
    usage: &'static str,
    /// What `help` says.
    help: &'static str,
    run: Handler,
}

impl HmpCommand {
    fn is(&self, name: &str) -> bool {
        self.names.split('|').any(|n| n == name)
    }

    fn help_line(&self, prefix: &str) -> String {
        format!("{prefix}{} {} -- {}\n", self.names, self.usage, self.help)
    }
}

/// The commands, sorted by name.
static COMMANDS: &[&[HmpCommand]] =
    &[block::COMMANDS, devices::COMMANDS, log::COMMANDS, machine::COMMANDS, migration::COMMANDS];
/// What `info` shows, sorted by name.
static INFO: &[&[HmpCommand]] = &[block::INFO, inspect::INFO, machine::INFO, migration::INFO, paging::INFO];

fn sorted(tables: &'static [&'static [HmpCommand]]) -> Vec<&'static HmpCommand> {
    let mut all: Vec<_> = tables.iter().flat_map(|t| t.iter()).collect();
    all.sort_by_key(|c| c.names);
    all
}

fn find(tables: &'static [&'static [HmpCommand]], name: &str) -> Option<&'static HmpCommand> {
    tables.iter().flat_map(|t| t.iter()).find(|c| c.is(name))
}

/// Runs one line and returns what it prints, lines ended by CR LF.
pub async fn run_line(vm: &Rc<Vm>, line: &str) -> String {
    let mut out = String::new();
    dispatch(vm, line.trim_start(), &mut out).await;
    out.replace('\n', "\r\n")
}

async fn dispatch(vm: &Rc<Vm>, line: &str, out: &mut String) {
    let (name, rest) = args::split_word(line);
    match name {
        "" => {}
        "help" | "?" => help(rest.trim(), out),
        "info" => {
            let (item, rest) = args::split_word(rest);
            if item.is_empty() {
                help("info", out);
            } else {
                match find(INFO, item) {
                    Some(command) => run(vm, command, "info ", rest, out).await,
                    None => out.push_str(&format!("unknown command: 'info {item}'\n")),
                }
            }
        }
        name => match find(COMMANDS, name) {
            Some(command) => run(vm, command, "", rest, out).await,
            None => out.push_str(&format!("unknown command: '{name}'\n")),
        },
    }
}

async fn run(vm: &Rc<Vm>, command: &'static HmpCommand, prefix: &str, rest: &str, out: &mut String) {
    match Args::parse(command.params, rest) {
        Ok(args) => {
            if let Err(e) = (command.run)(vm, &args, out).await {
                out.push_str(&format!("{}\n", e.message()));
                out.push_str(e.hint_text());
            }
        }
        Err(why) => {
            let first = command.names.split('|').next().unwrap_or_default();
            out.push_str(&format!("{}\nTry \"help {prefix}{first}\" for more information\n", why.text(command.names)));
        }
    }
}

fn help(about: &str, out: &mut String) {
    let (first, rest) = args::split_word(about);
    match (first, rest.trim()) {
        ("", _) => sorted(COMMANDS).iter().for_each(|c| out.push_str(&c.help_line(""))),
        ("info", "") => sorted(INFO).iter().for_each(|c| out.push_str(&c.help_line("info "))),
        ("log", "") => out.push_str(&lockstep_util::log::usage(true)),
        ("info", item) => find(INFO, item).into_iter().for_each(|c| out.push_str(&c.help_line("info "))),
        (name, _) => find(COMMANDS, name).into_iter().for_each(|c| out.push_str(&c.help_line(""))),
    }
}

/// The same of an error whose hint comes before it.
fn hinted(e: &lockstep_util::Error, out: &mut String) -> lockstep_util::Error {
    out.push_str(e.hint_text());
    prefixed(lockstep_util::Error::new(e.message()))
}

/// The error of a command that QEMU words with a prefix.
fn prefixed(e: lockstep_util::Error) -> lockstep_util::Error {
    e.prepend("Error: ")
}
