//! The log of the guest.

use std::rc::Rc;

use lockstep_util::{
    Log, Result,
    log::{parse_items, usage},
};

use super::{Args, HmpCommand, args::Param};
use crate::{objects::LocalFuture, vm::Vm};

pub(super) static COMMANDS: &[HmpCommand] = &[
    HmpCommand {
        names: "log",
        params: &[Param::Word("items")],
        usage: "item1[,...]",
        help: "activate logging of the specified items",
        run: log,
    },
    HmpCommand {
        names: "logfile",
        params: &[Param::Word("filename")],
        usage: "filename",
        help: "output logs to 'filename'",
        run: logfile,
    },
];

fn log<'a>(_: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        match args.word("items") {
            "none" => Log::global().set_items(0),
            items => match parse_items(items) {
                Some(items) => Log::global().set_items(items),
                None => out.push_str(&usage(true)),
            },
        }
        Ok(())
    })
}

fn logfile<'a>(_: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { Log::global().set_file(args.word("filename")) })
}
