//! `-d`, `-D`, `-dfilter`: the log of the guest.

use lockstep_util::{
    Log, Result,
    log::{parse_items, usage},
};

use crate::cmdline::CommandLine;

/// Opens the log and says what goes there. False: `-d` names no items, and the user has been told which there are.
///
/// # Errors
/// When a range is wrong or the file cannot be opened.
pub(super) fn set_up(line: &CommandLine) -> Result<bool> {
    let log = Log::global();
    for o in line.all("dfilter") {
        log.set_filter(&o.value).map_err(|e| o.locate(e))?;
    }
    let items = match line.last("d") {
        Some(o) => match parse_items(&o.value) {
            Some(items) => items,
            None => {
                print!("{}", usage(false));
                return Ok(false);
            }
        },
        None => 0,
    };
    if let Some(o) = line.last("D") {
        log.set_file(&o.value)?;
    }
    log.set_items(items);
    Ok(true)
}
