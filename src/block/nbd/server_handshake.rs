//! The server's half of the newstyle negotiation as a state machine without I/O.
//!
//! The caller sends [`ServerHandshake::greeting`], then reads exactly [`ServerHandshake::want`] bytes, hands them to
//! [`ServerHandshake::advance`] and sends what was put into `out`, again and again. A client can make it hold at most
//! [`MAX_OPTION`] bytes.

use super::wire::{self, HandshakeFlags, ProtocolError, Reader, TransmissionFlags, info, option, reply};

/// Largest option payload that is looked at; larger ones are skipped and refused.
pub const MAX_OPTION: u32 = 16 * 1024;

/// What a client may learn about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size: u64,
    /// What it can do (`HAS_FLAGS` and `SEND_DF` are added here).
    pub flags: TransmissionFlags,
    /// Text for humans.
    pub description: Option<String>,
    /// Smallest request in bytes for clients that ask for it.
    pub min_block: u32,
    /// Request size that does not need read-modify-write, in bytes.
    pub preferred_block: u32,
}

/// The exports a server has.
pub trait Directory {
    /// All names.
    fn names(&self) -> Vec<String>;
    /// Looks an export up by its name.
    fn find(&self, name: &str) -> Option<ExportInfo>;
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Read [`ServerHandshake::want`] bytes again.
    More,
    /// Transmission begins.
    Transmission(Selected),
    /// The client said goodbye: send `out` and close.
    Closed,
}

/// What a client selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Name of the export, as the directory knows it.
    pub export: String,
    /// Replies are structured.
    pub structured: bool,
    /// The `base:allocation` context was selected, with this id.
    pub allocation_context: Option<u32>,
}

/// The id given to `base:allocation`.
const ALLOCATION_ID: u32 = 0;

#[derive(Clone, Copy, Debug)]
enum State {
    ClientFlags,
    OptionHeader,
    Payload { number: u32 },
    Skip { number: u32, left: u32 },
}

/// The negotiation of one connection.
#[derive(Debug)]
pub struct ServerHandshake {
    state: State,
    want: usize,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was selected.
    allocation_for: Option<String>,
}

impl Default for ServerHandshake {
    fn default() -> Self {
        Self {
            state: State::ClientFlags,
            want: 4,
            fixed: false,
            no_zeroes: false,
            structured: false,
            allocation_for: None,
        }
    }
}

impl ServerHandshake {
    /// What the server sends first.
    pub fn greeting() -> Vec<u8> {
        let mut out = Vec::with_capacity(18);
        out.extend_from_slice(&wire::GREETING_MAGIC.to_be_bytes());
        out.extend_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&(HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES).bits().to_be_bytes());
        out
    }

    /// How many bytes [`Self::advance`] takes next, at most [`MAX_OPTION`].
    pub fn want(&self) -> usize {
        self.want
    }

    /// Takes exactly [`Self::want`] bytes from the client; appends what is to be sent to `out`. An error means that the
    /// connection is beyond repair.
    pub fn advance(
        &mut self,
        bytes: &[u8],
        directory: &dyn Directory,
        out: &mut Vec<u8>,
    ) -> Result<Step, ProtocolError> {
        debug_assert_eq!(bytes.len(), self.want);
        match self.state {
            State::ClientFlags => {
                let flags = Reader(bytes).u32()?;
                let known = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
                if flags & !u32::from(known.bits()) != 0 {
                    return Err(ProtocolError(format!("Unknown client flags 0x{flags:x} received")));
                }
                let flags = HandshakeFlags::from_bits_truncate(flags as u16);
                self.fixed = flags.contains(HandshakeFlags::FIXED_NEWSTYLE);
                self.no_zeroes = flags.contains(HandshakeFlags::NO_ZEROES);
                Ok(self.next_option())
            }
            State::OptionHeader => self.option_header(bytes, directory, out),
            State::Payload { number } => self.option(number, bytes, directory, out),
            State::Skip { number, left } => {
                let left = left - bytes.len() as u32;
                if left > 0 {
                    return Ok(self.skip(number, left));
                }
                refuse(out, number, reply::ERR_TOO_BIG, "option is too large");
                Ok(self.next_option())
            }
        }
    }

    fn next_option(&mut self) -> Step {
        self.state = State::OptionHeader;
        self.want = 16;
        Step::More
    }

    fn skip(&mut self, number: u32, left: u32) -> Step {
        self.state = State::Skip { number, left };
        self.want = left.min(MAX_OPTION) as usize;
        Step::More
    }

    fn option_header(
        &mut self,
        bytes: &[u8],
        directory: &dyn Directory,
        out: &mut Vec<u8>,
    ) -> Result<Step, ProtocolError> {
        let mut r = Reader(bytes);
        if r.u64()? != wire::OPTION_MAGIC {
            return Err(ProtocolError("Bad magic received".into()));
        }
        let (number, len) = (r.u32()?, r.u32()?);
        if len > wire::MAX_PAYLOAD {
            return Err(ProtocolError(format!("len ({len}) is larger than max len ({})", wire::MAX_PAYLOAD)));
        }
        if !self.fixed && number != option::EXPORT_NAME {
            return Err(ProtocolError(format!("Unsupported option {number} without fixed newstyle")));
        }
        match len {
            0 => self.option(number, &[], directory, out),
            _ if number == option::EXPORT_NAME && len as usize > wire::MAX_STRING => {
                Err(ProtocolError("Bad length received".into()))
            }
            1..=MAX_OPTION => {
                self.state = State::Payload { number };
                self.want = len as usize;
                Ok(Step::More)
            }
            _ => Ok(self.skip(number, len)),
        }
    }

    fn option(
        &mut self,
        number: u32,
        payload: &[u8],
        directory: &dyn Directory,
        out: &mut Vec<u8>,
    ) -> Result<Step, ProtocolError> {
        self.next_option();
        match number {
            option::EXPORT_NAME => return self.export_name(payload, directory, out),
            option::ABORT => {
                put_reply(out, number, reply::ACK, &[]);
                return Ok(Step::Closed);
            }
            option::LIST | option::STRUCTURED_REPLY | option::STARTTLS if !payload.is_empty() => {
                refuse(out, number, reply::ERR_INVALID, "option has unexpected payload");
            }
            option::LIST => {
                for name in directory.names() {
                    let mut p = Vec::new();
                    wire::put_string(&mut p, &name);
                    put_reply(out, number, reply::SERVER, &p);
                }
                put_reply(out, number, reply::ACK, &[]);
            }
            option::STARTTLS => refuse(out, number, reply::ERR_POLICY, "TLS not configured"),
            option::STRUCTURED_REPLY if self.structured => {
                refuse(out, number, reply::ERR_INVALID, "structured reply already negotiated");
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                put_reply(out, number, reply::ACK, &[]);
            }
            option::INFO | option::GO => return Ok(self.info_or_go(number, payload, directory, out)),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(number, payload, directory, out),
            _ => refuse(out, number, reply::ERR_UNSUP, &format!("Unsupported option {number} (<unknown>)")),
        }
        Ok(Step::More)
    }

    fn select(&self, name: &str) -> Selected {
        let allocation = self.structured && self.allocation_for.as_deref() == Some(name);
        Selected {
            export: name.to_owned(),
            structured: self.structured,
            allocation_context: allocation.then_some(ALLOCATION_ID),
        }
    }

    fn flags(&self, export: &ExportInfo) -> TransmissionFlags {
        let mut flags = export.flags | TransmissionFlags::HAS_FLAGS;
        flags.set(TransmissionFlags::SEND_DF, self.structured);
        flags
    }

    fn export_name(
        &mut self,
        payload: &[u8],
        directory: &dyn Directory,
        out: &mut Vec<u8>,
    ) -> Result<Step, ProtocolError> {
        let name = std::str::from_utf8(payload).map_err(|_| ProtocolError("export name is not UTF-8".into()))?;
        // The option has no error reply: the protocol says to hang up.
        let export = directory.find(name).ok_or_else(|| ProtocolError("export not found".into()))?;
        out.extend_from_slice(&export.size.to_be_bytes());
        out.extend_from_slice(&self.flags(&export).bits().to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(Step::Transmission(self.select(name)))
    }

    fn info_or_go(&mut self, number: u32, payload: &[u8], directory: &dyn Directory, out: &mut Vec<u8>) -> Step {
        let parsed = (|| {
            let mut r = Reader(payload);
            let name = r.string()?;
            let count = r.u16()?;
            let wanted = (0..count).map(|_| r.u16()).collect::<Result<Vec<_>, _>>()?;
            r.end()?;
            Ok::<_, ProtocolError>((name, wanted))
        })();
        let Ok((name, wanted)) = parsed else {
            refuse(out, number, reply::ERR_INVALID, "option payload is malformed");
            return Step::More;
        };
        let Some(export) = directory.find(name) else {
            refuse(out, number, reply::ERR_UNKNOWN, &format!("export '{name}' not present"));
            return Step::More;
        };
        let put_info = |kind: u16, body: &[u8], out: &mut Vec<u8>| {
            let mut p = kind.to_be_bytes().to_vec();
            p.extend_from_slice(body);
            put_reply(out, number, reply::INFO, &p);
        };
        if wanted.contains(&info::NAME) {
            put_info(info::NAME, name.as_bytes(), out);
        }
        if let Some(text) = export.description.as_deref().filter(|_| wanted.contains(&info::DESCRIPTION)) {
            put_info(info::DESCRIPTION, text.as_bytes(), out);
        }
        // A client that did not ask for block sizes assumes 512; one that asked gets the truth.
        let min = if wanted.contains(&info::BLOCK_SIZE) { export.min_block } else { 1 };
        let mut sizes = Vec::with_capacity(12);
        for n in [min, export.preferred_block.max(min), wire::MAX_PAYLOAD] {
            sizes.extend_from_slice(&n.to_be_bytes());
        }
        put_info(info::BLOCK_SIZE, &sizes, out);
        let mut body = export.size.to_be_bytes().to_vec();
        body.extend_from_slice(&self.flags(&export).bits().to_be_bytes());
        put_info(info::EXPORT, &body, out);
        put_reply(out, number, reply::ACK, &[]);
        if number == option::GO { Step::Transmission(self.select(name)) } else { Step::More }
    }

    fn meta_context(&mut self, number: u32, payload: &[u8], directory: &dyn Directory, out: &mut Vec<u8>) {
        if !self.structured {
            let text = "request option when structured reply is not negotiated";
            return refuse(out, number, reply::ERR_INVALID, text);
        }
        let set = number == option::SET_META_CONTEXT;
        if set {
            self.allocation_for = None;
        }
        let parsed = (|| {
            let mut r = Reader(payload);
            let name = r.string()?;
            let count = r.u32()?;
            // Not reserved ahead: each query takes four bytes of a bounded payload.
            let mut queries = Vec::new();
            for _ in 0..count {
                queries.push(r.string()?);
            }
            r.end()?;
            Ok::<_, ProtocolError>((name, queries))
        })();
        let Ok((name, queries)) = parsed else {
            return refuse(out, number, reply::ERR_INVALID, "option payload is malformed");
        };
        if directory.find(name).is_none() {
            return refuse(out, number, reply::ERR_UNKNOWN, &format!("export '{name}' not present"));
        }
        let hit = queries.iter().any(|q| *q == wire::CONTEXT_ALLOCATION || (!set && *q == "base:"))
            || (!set && queries.is_empty());
        if hit {
            let mut p = ALLOCATION_ID.to_be_bytes().to_vec();
            p.extend_from_slice(wire::CONTEXT_ALLOCATION.as_bytes());
            put_reply(out, number, reply::META_CONTEXT, &p);
            if set {
                self.allocation_for = Some(name.to_owned());
            }
        }
        put_reply(out, number, reply::ACK, &[]);
    }
}

fn put_reply(out: &mut Vec<u8>, number: u32, kind: u32, payload: &[u8]) {
    out.extend_from_slice(&wire::OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
}

fn refuse(out: &mut Vec<u8>, number: u32, kind: u32, text: &str) {
    put_reply(out, number, kind, text.as_bytes());
}
