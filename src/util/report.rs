//! Messages for whoever started the process, on standard error, in the form `program: place: message`.

use std::cell::RefCell;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::scope::{self, Scoped};

static PREFIX: Mutex<Prefix> = Mutex::new(Prefix { timestamp: false, guest_name: None });

thread_local! {
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The program's name as it was called, without its folder.
pub fn program_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let called = std::env::args_os().next().unwrap_or_default();
        Path::new(&called).file_name().map_or_else(|| "lockstep".into(), |n| n.to_string_lossy().into_owned())
    })
}

/// Works on what `place` names (a command-line option): messages meanwhile are prefixed with it.
pub fn within<R>(place: &str, f: impl FnOnce() -> R) -> R {
    scope::within(&LOCATION, place.to_owned(), f)
}

/// The same for a future. What other tasks say in between, also those that it spawns, is not prefixed.
pub fn located<F: Future>(place: &str, future: F) -> impl Future<Output = F::Output> + use<F> {
    Scoped::new(&LOCATION, place.to_owned(), future)
}

/// Reports an error.
pub fn error(message: impl std::fmt::Display) {
    emit("", &message);
}

/// Reports a warning.
pub fn warn(message: impl std::fmt::Display) {
    emit("warning: ", &message);
}

/// Tells something worth knowing.
pub fn info(message: impl std::fmt::Display) {
    emit("info: ", &message);
}

/// What goes before each message (`-msg`).
#[derive(Clone, Debug, Default)]
pub struct Prefix {
    /// The time of day, UTC.
    pub timestamp: bool,
    /// The guest's name.
    pub guest_name: Option<String>,
}

/// Sets what goes before each message from now on.
pub fn set_prefix(prefix: Prefix) {
    *PREFIX.lock() = prefix;
}

fn emit(kind: &str, message: &dyn std::fmt::Display) {
    let place = LOCATION.with(|l| l.borrow().as_ref().map(|l| format!("{l}: "))).unwrap_or_default();
    let Prefix { timestamp, guest_name } = PREFIX.lock().clone();
    let time = if timestamp { time_text(SystemTime::now()) + " " } else { String::new() };
    let guest = guest_name.map_or_else(String::new, |name| name + " ");
    eprintln!("{time}{guest}{}: {place}{kind}{message}", program_name());
}

/// A time as ISO 8601 has it, with microseconds, UTC.
fn time_text(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // The civil calendar from days: years begin in March, so that leap days come last.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    fn place() -> Option<String> {
        LOCATION.with(|l| l.borrow().clone())
    }

    #[test]
    fn times_are_told_in_the_civil_calendar() {
        let at = |seconds, micros: u32| time_text(UNIX_EPOCH + std::time::Duration::new(seconds, micros * 1000));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400, 7), "2000-02-29T00:00:00.000007Z");
        assert_eq!(at(1_150_560_081, 0), "2006-06-17T16:01:21.000000Z");
    }

    #[test]
    fn a_place_holds_while_its_own_future_is_polled() {
        let mut polls = 0;
        let mut future = Box::pin(located(
            "-chardev x",
            std::future::poll_fn(move |_| {
                assert_eq!(place().as_deref(), Some("-chardev x"));
                polls += 1;
                if polls == 2 { Poll::Ready(()) } else { Poll::Pending }
            }),
        ));
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(future.as_mut().poll(&mut cx), Poll::Pending);
        assert_eq!(place(), None);
        within("-device y", || {
            assert_eq!(future.as_mut().poll(&mut cx), Poll::Ready(()));
            assert_eq!(place().as_deref(), Some("-device y"));
        });
    }
}
