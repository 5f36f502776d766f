//! The error type that reaches users: a QMP class and a text, with an optional hint.
//!
//! Texts follow QEMU's wording where QEMU has one, because tools match on it. They are sentence case without a trailing
//! period. The hint is what QEMU prints on the lines after an error (never part of a QMP reply).

use std::fmt;

/// The error classes of the QEMU Machine Protocol (`QapiErrorClass` of `qapi/error.json`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Every error without a class of its own.
    GenericError,
    /// The requested command does not exist.
    CommandNotFound,
    /// The device (or job) exists but is not active.
    DeviceNotActive,
    /// The device (or chardev, or yank instance) does not exist.
    DeviceNotFound,
    /// A KVM capability is missing.
    KvmMissingCap,
}

impl ErrorClass {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotActive => "DeviceNotActive",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::KvmMissingCap => "KVMMissingCap",
        }
    }
}

/// An error for a user of a monitor or the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    class: ErrorClass,
    message: String,
    hint: String,
    speaker: Option<&'static str>,
}

/// `std::result::Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of class `GenericError`.
    pub fn new(message: impl Into<String>) -> Self {
        Self::with_class(ErrorClass::GenericError, message)
    }

    /// An error of the given class.
    pub fn with_class(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { inner: Box::new(Inner { class, message: message.into(), hint: String::new(), speaker: None }) }
    }

    /// `message: strerror`, as QEMU's `error_setg_errno` words it.
    pub fn with_errno(message: impl fmt::Display, source: &std::io::Error) -> Self {
        Self::new(format!("{message}: {}", errno_text(source)))
    }

    /// The error of a look-up of a device by id that failed (class `DeviceNotFound`).
    pub fn device_not_found(id: &str) -> Self {
        Self::with_class(ErrorClass::DeviceNotFound, format!("Device '{id}' not found"))
    }

    /// Adds lines that a command-line user sees after the message.
    pub fn hint(mut self, hint: impl AsRef<str>) -> Self {
        self.inner.hint.push_str(hint.as_ref());
        self
    }

    /// Puts `prefix` before the message (QEMU's `error_prepend`); nothing is added between.
    pub fn prepend(mut self, prefix: impl fmt::Display) -> Self {
        self.inner.message = format!("{prefix}{}", self.inner.message);
        self
    }

    /// Has a command-line user see `name` before the message, in place of the program's own.
    pub fn said_by(mut self, name: &'static str) -> Self {
        self.inner.speaker = Some(name);
        self
    }

    /// Who says it, if that is not the program.
    pub fn speaker(&self) -> Option<&'static str> {
        self.inner.speaker
    }

    /// The QMP class.
    pub fn class(&self) -> ErrorClass {
        self.inner.class
    }

    /// The text, without the hint.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// The hint lines, empty if there are none.
    pub fn hint_text(&self) -> &str {
        &self.inner.hint
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Self::new(errno_text(&e))
    }
}

/// `strerror` of an I/O error: Rust appends ` (os error N)`, which C programs do not.
pub fn errno_text(e: &std::io::Error) -> String {
    let text = e.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// Adding context to foreign errors.
pub trait ResultExt<T> {
    /// Words the error as `message: strerror`.
    fn context(self, message: impl fmt::Display) -> Result<T>;
}

impl<T> ResultExt<T> for std::io::Result<T> {
    fn context(self, message: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error::with_errno(message, &e))
    }
}

/// Builds an [`Error`] of class `GenericError` from a format string.
#[macro_export]
macro_rules! err {
    ($($arg:tt)*) => { $crate::Error::new(format!($($arg)*)) };
}

/// Returns an [`Error`] of class `GenericError` from the enclosing function.
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::err!($($arg)*).into()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_text_is_that_of_strerror() {
        let e = std::io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert_eq!(Error::with_errno("Failed to connect", &e).message(), "Failed to connect: Connection refused");
    }

    #[test]
    fn prepend_keeps_class_and_hint() {
        let e = Error::device_not_found("x").hint("Try y\n").prepend("a: ");
        assert_eq!(
            (e.class(), e.message(), e.hint_text()),
            (ErrorClass::DeviceNotFound, "a: Device 'x' not found", "Try y\n")
        );
    }
}
