//! Standard input and output, with a terminal's mode set for a guest's console and given back at the end.

use std::os::fd::AsFd;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_util::{Result, bail};
use parking_lot::Mutex;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, isatty, tcgetattr, tcsetattr,
};

use super::Backend;
use crate::link::Link;

static IN_USE: AtomicBool = AtomicBool::new(false);
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Holds standard input and output.
struct Hold;

impl Drop for Hold {
    fn drop(&mut self) {
        restore_terminal();
        IN_USE.store(false, Ordering::Release);
    }
}

pub(super) fn make(signal: bool) -> Result<Backend> {
    if IN_USE.swap(true, Ordering::AcqRel) {
        bail!("cannot use stdio by multiple character devices");
    }
    let hold = Hold;
    set_raw(signal);
    let read = std::io::stdin().as_fd().try_clone_to_owned()?;
    let write = std::io::stdout().as_fd().try_clone_to_owned()?;
    let mut backend = Backend::of_link(Link::Standard { read, write }, "stdio");
    backend.keep = Some(Box::new(hold));
    Ok(backend)
}

/// Takes echo and line editing off a terminal; with `signal`, its interrupt keys stay.
fn set_raw(signal: bool) {
    let stdin = std::io::stdin();
    if !isatty(&stdin) {
        return;
    }
    let Ok(old) = tcgetattr(&stdin) else { return };
    let mut raw = old.clone();
    raw.input_modes -= InputModes::IGNBRK
        | InputModes::BRKINT
        | InputModes::PARMRK
        | InputModes::ISTRIP
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::ICRNL
        | InputModes::IXON;
    raw.output_modes |= OutputModes::OPOST;
    raw.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
    raw.local_modes.set(LocalModes::ISIG, signal);
    raw.special_codes[SpecialCodeIndex::VMIN] = 1;
    raw.special_codes[SpecialCodeIndex::VTIME] = 0;
    *SAVED.lock() = Some(old);
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        // SAFETY: the function takes nothing, does not unwind, and lives as long as the program.
        unsafe { libc::atexit(restore_at_exit) };
    });
    let _ = tcsetattr(&stdin, OptionalActions::Now, &raw);
}

extern "C" fn restore_at_exit() {
    restore_terminal();
}

/// Gives the terminal its old mode back, if it was changed. Also done when the process exits.
pub fn restore_terminal() {
    let Some(mut saved) = SAVED.try_lock() else { return };
    if let Some(old) = saved.take() {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &old);
    }
}
