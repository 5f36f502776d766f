//! Why a section was refused.

/// Why device state could not be read. A stream is hostile input: every one of these can be had by sending bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The input ended inside a field. A reader of an unfinished stream waits for more; for a whole section it is an error.
    #[error("the state ends early")]
    Short,
    /// The section is newer than this program knows, or older than it still takes.
    #[error("{}", version_text(.name, *.got, *.newest))]
    Version {
        /// Name of the description (QEMU's vmsd).
        name: String,
        /// The version in the stream.
        got: u32,
        /// The newest version that is known.
        newest: u32,
        /// The oldest version that is taken.
        oldest: u32,
    },
    /// A subsection that the device does not know: what it carries may not be dropped.
    #[error("VM subsection '{name}' in '{parent}' does not exist")]
    Subsection {
        /// Whose subsection it would be.
        parent: String,
        /// Its name.
        name: String,
    },
    /// No device has this section.
    #[error(
        "Unknown section or instance '{name}' {instance}. Make sure that your current VM setup matches your saved VM setup, \
         including any hotplugged devices"
    )]
    UnknownSection {
        /// The section's name.
        name: String,
        /// Its instance id.
        instance: u32,
    },
    /// A value that the device cannot have.
    #[error("{0}")]
    Invalid(String),
}

fn version_text(name: &str, got: u32, newest: u32) -> String {
    if got > newest {
        format!("{name}: incoming version_id {got} is too new for local version_id {newest}")
    } else {
        format!("{name}: incoming version_id {got} is too old for local version_id {newest}")
    }
}

impl LoadError {
    /// A value that the device cannot have; `what` names it.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid(what.into())
    }

    /// Whether more bytes could mend it.
    pub fn is_short(&self) -> bool {
        matches!(self, Self::Short)
    }
}

impl From<LoadError> for lockstep_util::Error {
    fn from(e: LoadError) -> Self {
        Self::new(e.to_string())
    }
}
