//! The NBD protocol on the wire: numbers and fixed-size messages, without I/O.
//!
//! Follows the protocol document of the NetworkBlockDevice project (`doc/proto.md`), newstyle negotiation only. All
//! integers are big-endian.

use bitflags::bitflags;

/// First eight bytes of a server's greeting (`NBDMAGIC`).
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of a newstyle greeting, and the start of every option (`IHAVEOPT`).
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every transmission request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Most bytes of one request's payload, also the advertised maximum block size (32 MiB).
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Longest string (export name, context name, error text) the protocol allows.
pub const MAX_STRING: usize = 4096;
/// The one metadata context spoken here.
pub const CONTEXT_ALLOCATION: &str = "base:allocation";
/// Bit of a `base:allocation` status: the range is a hole.
pub const STATE_HOLE: u32 = 1;
/// Bit of a `base:allocation` status: the range reads as zeroes.
pub const STATE_ZERO: u32 = 2;

bitflags! {
    /// Flags of the greeting, and the client's answer to it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// Errors of options do not end the connection.
        const FIXED_NEWSTYLE = 1;
        /// The reply to `EXPORT_NAME` has no 124 bytes of padding.
        const NO_ZEROES = 2;
    }

    /// What an export can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1;
        /// Writes are refused.
        const READ_ONLY = 2;
        /// `FLUSH` is understood.
        const SEND_FLUSH = 4;
        /// The FUA command flag is understood.
        const SEND_FUA = 8;
        /// The medium rotates.
        const ROTATIONAL = 0x10;
        /// `TRIM` is understood.
        const SEND_TRIM = 0x20;
        /// `WRITE_ZEROES` is understood.
        const SEND_WRITE_ZEROES = 0x40;
        /// The DF command flag is understood (structured replies only).
        const SEND_DF = 0x80;
        /// Several connections see each other's flushed writes.
        const CAN_MULTI_CONN = 0x100;
        /// `CACHE` is understood.
        const SEND_CACHE = 0x400;
        /// The FAST_ZERO command flag is understood.
        const SEND_FAST_ZERO = 0x800;
    }

    /// Flags of a request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// Data is on stable storage before the reply.
        const FUA = 1;
        /// Zeroes must stay allocated.
        const NO_HOLE = 2;
        /// The reply must not be fragmented.
        const DF = 4;
        /// One extent per context is enough.
        const REQ_ONE = 8;
        /// Fail unless writing zeroes is faster than writing data.
        const FAST_ZERO = 16;
    }
}

/// Numbers of options (client to server during negotiation).
pub mod option {
    /// Selects an export without a reply on failure.
    pub const EXPORT_NAME: u32 = 1;
    /// Ends the negotiation.
    pub const ABORT: u32 = 2;
    /// Asks for the names of the exports.
    pub const LIST: u32 = 3;
    /// Asks for TLS.
    pub const STARTTLS: u32 = 5;
    /// Asks about an export.
    pub const INFO: u32 = 6;
    /// Asks about an export and begins transmission.
    pub const GO: u32 = 7;
    /// Asks for structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Asks for the names of metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Selects metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options.
pub mod reply {
    /// Bit of every error.
    pub const ERROR: u32 = 1 << 31;
    /// Success.
    pub const ACK: u32 = 1;
    /// One export's name.
    pub const SERVER: u32 = 2;
    /// One piece of information about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The option is forbidden here.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option was malformed.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// The option is not supported on this platform.
    pub const ERR_PLATFORM: u32 = ERROR | 4;
    /// TLS is needed first.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// The export does not exist.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server is shutting down.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// The client must ask for the block size.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    /// The option was too large.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Types of information in a `reply::INFO`.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Description.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Types of chunks of a structured reply.
pub mod chunk {
    /// No payload.
    pub const NONE: u16 = 0;
    /// An offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// An offset and the length of a hole.
    pub const OFFSET_HOLE: u16 = 2;
    /// A context id and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// Bit of every error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error number and a text.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// The same and an offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
    /// Flag of the last chunk.
    pub const FLAG_DONE: u16 = 1;
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read `len` bytes.
    Read,
    /// Write the payload.
    Write,
    /// End of the session, no reply.
    Disconnect,
    /// Make completed writes durable.
    Flush,
    /// Deallocate a range.
    Trim,
    /// Prefetch a range.
    Cache,
    /// Write zeroes without payload.
    WriteZeroes,
    /// Ask for the allocation of a range.
    BlockStatus,
    /// A number this implementation does not know.
    Unknown(u16),
}

impl Command {
    /// From the number on the wire.
    pub fn from_wire(n: u16) -> Self {
        match n {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            n => Self::Unknown(n),
        }
    }

    /// To the number on the wire.
    pub fn to_wire(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Unknown(n) => n,
        }
    }
}

/// A message did not have the form the protocol gives it; the connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProtocolError(pub String);

/// Takes big-endian integers and strings off the front of a message.
#[derive(Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], ProtocolError> {
        if n > self.0.len() {
            return Err(ProtocolError("Message is too short".into()));
        }
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let bytes = self.bytes(N)?;
        let mut out = [0; N];
        out.copy_from_slice(bytes);
        Ok(out)
    }

    /// The next 16-bit integer.
    pub fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32-bit integer.
    pub fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64-bit integer.
    pub fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with a 32-bit length before it, at most [`MAX_STRING`] bytes.
    pub fn string(&mut self) -> Result<&'a str, ProtocolError> {
        let len = self.u32()? as usize;
        if len > MAX_STRING {
            return Err(ProtocolError("String is too long".into()));
        }
        std::str::from_utf8(self.bytes(len)?).map_err(|_| ProtocolError("String is not UTF-8".into()))
    }

    /// Fails unless everything was taken.
    pub fn end(&self) -> Result<(), ProtocolError> {
        if self.0.is_empty() { Ok(()) } else { Err(ProtocolError("Message is too long".into())) }
    }
}

/// Appends a string with its 32-bit length.
pub fn put_string(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u32).to_be_bytes());
    out.extend_from_slice(s.as_bytes());
}

/// The fixed part of a transmission request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flags; unknown bits are kept so that a server can refuse them.
    pub flags: CommandFlags,
    /// What is asked.
    pub command: Command,
    /// Chosen by the client, echoed in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

impl Request {
    /// Length on the wire.
    pub const SIZE: usize = 28;

    /// To the wire.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut b = [0; Self::SIZE];
        b[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        b[4..6].copy_from_slice(&self.flags.bits().to_be_bytes());
        b[6..8].copy_from_slice(&self.command.to_wire().to_be_bytes());
        b[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        b[16..24].copy_from_slice(&self.offset.to_be_bytes());
        b[24..28].copy_from_slice(&self.len.to_be_bytes());
        b
    }

    /// From the wire. Fails on a wrong magic number: the stream has lost its framing.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, ProtocolError> {
        let mut r = Reader(bytes);
        let magic = r.u32()?;
        if magic != REQUEST_MAGIC {
            return Err(ProtocolError(format!("invalid magic (got 0x{magic:x})")));
        }
        Ok(Self {
            flags: CommandFlags::from_bits_retain(r.u16()?),
            command: Command::from_wire(r.u16()?),
            cookie: r.u64()?,
            offset: r.u64()?,
            len: r.u32()?,
        })
    }
}

/// The fixed part of a server's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// The whole answer, followed by the data of a successful read.
    Simple {
        /// Zero, or an NBD error number.
        error: u32,
        /// The request's.
        cookie: u64,
    },
    /// One chunk of the answer.
    Chunk {
        /// [`chunk::FLAG_DONE`] or nothing.
        flags: u16,
        /// One of [`chunk`].
        kind: u16,
        /// The request's.
        cookie: u64,
        /// Bytes of payload that follow.
        len: u32,
    },
}

impl ReplyHeader {
    /// Bytes of the shorter form; [`Self::is_chunk`] says whether [`Self::CHUNK_REST`] more follow.
    pub const SIZE: usize = 16;
    /// Bytes by which a chunk's header is longer.
    pub const CHUNK_REST: usize = 4;

    /// Whether the 16 bytes read begin a chunk.
    pub fn is_chunk(head: &[u8; Self::SIZE]) -> bool {
        head[..4] == CHUNK_MAGIC.to_be_bytes()
    }

    /// From the wire: 16 bytes, and 4 more for a chunk.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut r = Reader(bytes);
        match r.u32()? {
            SIMPLE_REPLY_MAGIC => Ok(Self::Simple { error: r.u32()?, cookie: r.u64()? }),
            CHUNK_MAGIC => Ok(Self::Chunk { flags: r.u16()?, kind: r.u16()?, cookie: r.u64()?, len: r.u32()? }),
            magic => Err(ProtocolError(format!("invalid magic (got 0x{magic:x})"))),
        }
    }

    /// To the wire.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Simple { error, cookie } => {
                out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
                out.extend_from_slice(&error.to_be_bytes());
                out.extend_from_slice(&cookie.to_be_bytes());
            }
            Self::Chunk { flags, kind, cookie, len } => {
                out.extend_from_slice(&CHUNK_MAGIC.to_be_bytes());
                out.extend_from_slice(&flags.to_be_bytes());
                out.extend_from_slice(&kind.to_be_bytes());
                out.extend_from_slice(&cookie.to_be_bytes());
                out.extend_from_slice(&len.to_be_bytes());
            }
        }
    }
}

/// The NBD error numbers and the Linux ones they stand for.
const ERRORS: &[(u32, i32)] = &[
    (1, libc::EPERM),
    (5, libc::EIO),
    (12, libc::ENOMEM),
    (22, libc::EINVAL),
    (28, libc::ENOSPC),
    (75, libc::EOVERFLOW),
    (95, libc::ENOTSUP),
    (108, libc::ESHUTDOWN),
];

/// The NBD number of an I/O error; what has no number is `EINVAL`, as the protocol asks, except that read-only is `EPERM`.
pub fn error_to_wire(e: &std::io::Error) -> u32 {
    let errno = match e.raw_os_error() {
        Some(libc::EROFS) => libc::EPERM,
        Some(libc::EFBIG | libc::EDQUOT) => libc::ENOSPC,
        Some(n) => n,
        None => libc::EIO,
    };
    ERRORS.iter().find(|(_, n)| *n == errno).map_or(22, |(w, _)| *w)
}

/// The I/O error of an NBD number (unknown ones are `EINVAL`).
pub fn error_from_wire(n: u32) -> std::io::Error {
    let errno = ERRORS.iter().find(|(w, _)| *w == n).map_or(libc::EINVAL, |(_, e)| *e);
    std::io::Error::from_raw_os_error(errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_request_survives_the_wire(flags: u16, cmd: u16, cookie: u64, offset: u64, len: u32) {
            let r = Request {
                flags: CommandFlags::from_bits_retain(flags), command: Command::from_wire(cmd), cookie, offset, len,
            };
            prop_assert_eq!(Request::decode(&r.encode()), Ok(r));
        }

        #[test]
        fn replies_survive_the_wire(error: u32, flags: u16, kind: u16, cookie: u64, len: u32) {
            for r in [ReplyHeader::Simple { error, cookie }, ReplyHeader::Chunk { flags, kind, cookie, len }] {
                let mut out = Vec::new();
                r.encode(&mut out);
                prop_assert_eq!(ReplyHeader::decode(&out), Ok(r));
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = ReplyHeader::decode(&bytes);
            let _ = Reader(&bytes).string();
        }
    }

    #[test]
    fn errors_keep_their_meaning_and_read_only_is_eperm() {
        for &(wire, errno) in ERRORS {
            assert_eq!(error_to_wire(&std::io::Error::from_raw_os_error(errno)), wire);
            assert_eq!(error_from_wire(wire).raw_os_error(), Some(errno));
        }
        assert_eq!(error_to_wire(&std::io::Error::from_raw_os_error(libc::EROFS)), 1);
    }
}
