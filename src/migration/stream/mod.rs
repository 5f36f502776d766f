//! The migration stream: what is written, and a reader that takes it in pieces of any size.
//!
//! Layout (all integers big-endian): magic, version, configuration, then sections and commands, an end mark, and the description of
//! the device state in JSON. RAM travels in the section `ram`, as records of one page.

mod parser;
mod ram;
mod writer;
mod xbzrle;

pub use parser::{DeviceLoader, Item, SectionHeader, StreamParser};
pub use ram::{BlockTable, PAGE, RamDecoder, RamRecord, RecordWriter, is_zero};
pub use writer::{Frames, StreamWriter};
pub use xbzrle::apply as apply_xbzrle;

/// "QEVM".
pub const MAGIC: u32 = 0x5145_564d;
/// The version of the format.
pub const VERSION: u32 = 3;
/// The version of the section `ram`.
pub const RAM_VERSION: u32 = 4;

/// First bytes of what is in a stream.
pub mod mark {
    /// The end of the sections.
    pub const EOF: u8 = 0x00;
    /// A section that comes in parts begins.
    pub const START: u8 = 0x01;
    /// A part of it.
    pub const PART: u8 = 0x02;
    /// Its last part.
    pub const END: u8 = 0x03;
    /// A section in one piece.
    pub const FULL: u8 = 0x04;
    /// A subsection, inside device state.
    pub const SUBSECTION: u8 = 0x05;
    /// The description of device state.
    pub const DESCRIPTION: u8 = 0x06;
    /// The machine's name.
    pub const CONFIGURATION: u8 = 0x07;
    /// A command to the receiver.
    pub const COMMAND: u8 = 0x08;
    /// The end of a section.
    pub const FOOTER: u8 = 0x7e;
}

/// A command to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A channel back to the sender is wanted.
    OpenReturnPath,
    /// The receiver echoes the value on the return path.
    Ping(u32),
    /// The receiver is to be a COLO secondary.
    EnableColo,
    /// The sender has stopped its guest.
    SwitchoverStart,
    /// A command of this number that is known but not for us (postcopy).
    Other(u16),
}

impl Command {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::OpenReturnPath => 1,
            Self::Ping(_) => 2,
            Self::EnableColo => 8,
            Self::SwitchoverStart => 11,
            Self::Other(n) => n,
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::{blocks_of, find_json};
