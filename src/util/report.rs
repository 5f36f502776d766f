//! Messages for whoever started the process, on standard error, in the form `program: place: message`.

use std::cell::RefCell;
use std::path::Path;
use std::sync::OnceLock;

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

/// Names what is being worked on (a command-line option) while it lives; messages of this thread are prefixed with it.
#[derive(Debug)]
pub struct Location {
    previous: Option<String>,
}

impl Location {
    /// `text` goes before messages until this is dropped.
    pub fn new(text: impl Into<String>) -> Self {
        Self { previous: LOCATION.with(|l| l.borrow_mut().replace(text.into())) }
    }
}

impl Drop for Location {
    fn drop(&mut self) {
        let previous = self.previous.take();
        LOCATION.with(|l| *l.borrow_mut() = previous);
    }
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

fn emit(kind: &str, message: &dyn std::fmt::Display) {
    let place = LOCATION.with(|l| l.borrow().as_ref().map(|l| format!("{l}: "))).unwrap_or_default();
    eprintln!("{}: {place}{kind}{message}", program_name());
}
