//! The client's half of the newstyle negotiation as a state machine without I/O.
//!
//! The caller reads exactly [`ClientHandshake::want`] bytes, hands them to [`ClientHandshake::advance`] and sends what
//! was put into `out`, also when an error is returned (the server is then told that we leave).

use lockstep_util::{Error, Result, bail, err};

use super::wire::{self, HandshakeFlags, ProtocolError, Reader, TransmissionFlags, info, option, reply};

/// Most payload of a reply to an option that is read; the largest legal ones are a few kilobytes.
const MAX_REPLY: u32 = 64 * 1024;

/// What was agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Size of the export in bytes.
    pub size: u64,
    /// What the export can do.
    pub flags: TransmissionFlags,
    /// Replies come in chunks.
    pub structured: bool,
    /// Id of the `base:allocation` context, if the server has it.
    pub allocation_context: Option<u32>,
    /// Requests must be multiples of this many bytes (a power of two, 1 to 65536).
    pub min_block: u32,
    /// Most bytes of a read or write.
    pub max_block: u32,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Read [`ClientHandshake::want`] bytes again.
    More,
    /// Transmission begins.
    Done(Negotiated),
}

#[derive(Debug)]
enum State {
    Greeting,
    ReplyHeader,
    ReplyPayload { kind: u32 },
    ExportName { padding: usize },
}

/// The negotiation of one connection.
#[derive(Debug)]
pub struct ClientHandshake {
    export: String,
    state: State,
    want: usize,
    /// The option whose replies are awaited.
    current: u32,
    no_zeroes: bool,
    size_seen: bool,
    result: Negotiated,
}

impl ClientHandshake {
    /// Asks for `export` (the empty name is the server's default export).
    pub fn new(export: impl Into<String>) -> Self {
        Self {
            export: export.into(),
            state: State::Greeting,
            want: 18,
            current: 0,
            no_zeroes: false,
            size_seen: false,
            result: Negotiated {
                size: 0,
                flags: TransmissionFlags::empty(),
                structured: false,
                allocation_context: None,
                min_block: 1,
                max_block: wire::MAX_PAYLOAD,
            },
        }
    }

    /// How many bytes [`Self::advance`] takes next.
    pub fn want(&self) -> usize {
        self.want
    }

    /// Takes exactly [`Self::want`] bytes from the server; appends what is to be sent to `out`.
    pub fn advance(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Step> {
        debug_assert_eq!(bytes.len(), self.want);
        let step = match std::mem::replace(&mut self.state, State::ReplyHeader) {
            State::Greeting => self.greeting(bytes, out),
            State::ReplyHeader => self.reply_header(bytes, out),
            State::ReplyPayload { kind } => self.reply(kind, bytes, out),
            State::ExportName { padding } => self.export_name_reply(&bytes[..bytes.len() - padding]),
        };
        if step.is_err() && self.current != 0 && self.current != option::EXPORT_NAME {
            self.option(option::ABORT, &[], out);
        }
        step
    }

    fn greeting(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Step> {
        let mut r = Reader(bytes);
        if r.u64().map_err(proto)? != wire::GREETING_MAGIC {
            bail!("Server sent wrong magic number");
        }
        match r.u64().map_err(proto)? {
            wire::OPTION_MAGIC => {}
            0x0000_4202_8186_1253 => bail!("Server does not support newstyle negotiation"),
            magic => bail!("Bad server magic received: 0x{magic:x}"),
        }
        let flags = HandshakeFlags::from_bits_retain(r.u16().map_err(proto)?);
        self.no_zeroes = flags.contains(HandshakeFlags::NO_ZEROES);
        let ours = flags & (HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES);
        out.extend_from_slice(&(u32::from(ours.bits())).to_be_bytes());
        if flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            self.option(option::STRUCTURED_REPLY, &[], out);
            Ok(self.header_next())
        } else {
            Ok(self.ask_export_name(out))
        }
    }

    fn header_next(&mut self) -> Step {
        self.state = State::ReplyHeader;
        self.want = 20;
        Step::More
    }

    fn option(&mut self, number: u32, payload: &[u8], out: &mut Vec<u8>) {
        self.current = number;
        out.extend_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        out.extend_from_slice(payload);
    }

    fn ask_export_name(&mut self, out: &mut Vec<u8>) -> Step {
        let name = self.export.clone();
        self.option(option::EXPORT_NAME, name.as_bytes(), out);
        let padding = if self.no_zeroes { 0 } else { 124 };
        self.state = State::ExportName { padding };
        self.want = 10 + padding;
        Step::More
    }

    fn ask_meta_context(&mut self, out: &mut Vec<u8>) -> Step {
        let mut p = Vec::new();
        wire::put_string(&mut p, &self.export);
        p.extend_from_slice(&1u32.to_be_bytes());
        wire::put_string(&mut p, wire::CONTEXT_ALLOCATION);
        self.option(option::SET_META_CONTEXT, &p, out);
        self.header_next()
    }

    fn ask_go(&mut self, out: &mut Vec<u8>) -> Step {
        let mut p = Vec::new();
        wire::put_string(&mut p, &self.export);
        p.extend_from_slice(&1u16.to_be_bytes());
        p.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.option(option::GO, &p, out);
        self.header_next()
    }

    fn reply_header(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Step> {
        let mut r = Reader(bytes);
        if r.u64().map_err(proto)? != wire::OPTION_REPLY_MAGIC {
            bail!("Unexpected option reply magic");
        }
        let option = r.u32().map_err(proto)?;
        if option != self.current {
            bail!("Unexpected option type {option} expected {}", self.current);
        }
        let (kind, len) = (r.u32().map_err(proto)?, r.u32().map_err(proto)?);
        if len > MAX_REPLY {
            bail!("Server reply to option {option} is too long");
        }
        if len == 0 {
            return self.reply(kind, &[], out);
        }
        self.state = State::ReplyPayload { kind };
        self.want = len as usize;
        Ok(Step::More)
    }

    fn reply(&mut self, kind: u32, payload: &[u8], out: &mut Vec<u8>) -> Result<Step> {
        let refused = kind & reply::ERROR != 0;
        match self.current {
            option::STRUCTURED_REPLY => match kind {
                reply::ACK => {
                    self.result.structured = true;
                    Ok(self.ask_meta_context(out))
                }
                _ if refused => Ok(self.ask_go(out)),
                _ => bail!("Unexpected reply type {kind} to option {}", option_name(self.current)),
            },
            option::SET_META_CONTEXT => match kind {
                reply::META_CONTEXT => {
                    let mut r = Reader(payload);
                    let id = r.u32().map_err(proto)?;
                    if r.0 != wire::CONTEXT_ALLOCATION.as_bytes() {
                        bail!(
                            "Failed to negotiate query '{}', server answered with different context",
                            wire::CONTEXT_ALLOCATION
                        );
                    }
                    if self.result.allocation_context.replace(id).is_some() {
                        bail!("Server replied with more than one context");
                    }
                    Ok(self.header_next())
                }
                reply::ACK => Ok(self.ask_go(out)),
                reply::ERR_TLS_REQD | reply::ERR_SHUTDOWN => Err(refusal(self.current, kind, payload)),
                // An unknown export is reported by GO, in its words.
                _ if refused => {
                    self.result.allocation_context = None;
                    Ok(self.ask_go(out))
                }
                _ => bail!("Unexpected reply type {kind} to option {}", option_name(self.current)),
            },
            option::GO => match kind {
                reply::INFO => {
                    self.info(payload)?;
                    Ok(self.header_next())
                }
                reply::ACK if !self.size_seen => bail!("broken server omitted NBD_INFO_EXPORT"),
                reply::ACK => self.done(),
                reply::ERR_UNSUP => Ok(self.ask_export_name(out)),
                _ if refused => Err(refusal(self.current, kind, payload)),
                _ => bail!("unexpected reply type {kind} (unknown), expected 3"),
            },
            _ => bail!("Unexpected reply"),
        }
    }

    fn info(&mut self, payload: &[u8]) -> Result<()> {
        let mut r = Reader(payload);
        match r.u16().map_err(proto)? {
            info::EXPORT => {
                self.result.size = r.u64().map_err(proto)?;
                self.result.flags = TransmissionFlags::from_bits_retain(r.u16().map_err(proto)?);
                r.end().map_err(proto)?;
                self.size_seen = true;
            }
            info::BLOCK_SIZE => {
                let (min, preferred) = (r.u32().map_err(proto)?, r.u32().map_err(proto)?);
                let max = r.u32().map_err(proto)?;
                r.end().map_err(proto)?;
                if !min.is_power_of_two() || min > 65536 {
                    bail!("server minimum block size {min} is not a power of two");
                }
                if !preferred.is_power_of_two() || preferred < min {
                    bail!("server preferred block size {preferred} is not a power of two");
                }
                if max < min {
                    bail!("server maximum block size {max} is not valid");
                }
                self.result.min_block = min;
                self.result.max_block = (max.min(wire::MAX_PAYLOAD) / min * min).max(min);
            }
            _ => {}
        }
        Ok(())
    }

    fn export_name_reply(&mut self, bytes: &[u8]) -> Result<Step> {
        let mut r = Reader(bytes);
        self.result.size = r.u64().map_err(proto)?;
        self.result.flags = TransmissionFlags::from_bits_retain(r.u16().map_err(proto)?);
        self.done()
    }

    fn done(&mut self) -> Result<Step> {
        let n = &self.result;
        if n.size > i64::MAX as u64 {
            bail!("Server reported an export size that is too large");
        }
        if !n.size.is_multiple_of(u64::from(n.min_block)) {
            bail!("export size {} is not multiple of minimum block size {}", n.size, n.min_block);
        }
        Ok(Step::Done(n.clone()))
    }
}

fn proto(e: ProtocolError) -> Error {
    err!("Failed to read from the server: {e}")
}

/// Words a server's refusal of an option as QEMU does; its own text becomes the hint.
fn refusal(number: u32, kind: u32, payload: &[u8]) -> Error {
    let name = option_name(number);
    let error = match kind {
        reply::ERR_UNSUP => err!("Server does not support option {number} ({name})"),
        reply::ERR_POLICY => err!("Denied by server for option {number} ({name})"),
        reply::ERR_INVALID => err!("Invalid parameters for option {number} ({name})"),
        reply::ERR_PLATFORM => err!("Server lacks support for option {number} ({name})"),
        reply::ERR_TLS_REQD => {
            err!("Server requires TLS for option {number} ({name})").hint("Did you forget a valid tls-creds?\n")
        }
        reply::ERR_UNKNOWN => err!("Requested export not available"),
        reply::ERR_SHUTDOWN => err!("Server shutting down before option {number} ({name})"),
        reply::ERR_BLOCK_SIZE_REQD => err!("Server requires INFO_BLOCK_SIZE for option {number} ({name})"),
        _ => err!("Unknown error code when asking for option {number} ({name})"),
    };
    let text: String = String::from_utf8_lossy(&payload[..payload.len().min(wire::MAX_STRING)])
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.is_empty() { error } else { error.hint(format!("server reported: {text}\n")) }
}

fn option_name(number: u32) -> &'static str {
    match number {
        option::EXPORT_NAME => "export name",
        option::ABORT => "abort",
        option::LIST => "list",
        option::STARTTLS => "starttls",
        option::INFO => "info",
        option::GO => "go",
        option::STRUCTURED_REPLY => "structured reply",
        option::LIST_META_CONTEXT => "list meta context",
        option::SET_META_CONTEXT => "set meta context",
        _ => "<unknown>",
    }
}
