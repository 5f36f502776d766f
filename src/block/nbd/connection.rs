//! One established NBD connection of a client: requests in flight, matched with their replies.
//!
//! A request's data is sent straight from the caller's buffer. A caller may drop its future at any await: the rest of a
//! half-sent request is then kept and sent by whoever comes next, and the reply is read and forgotten, so the framing of
//! the stream is never lost.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use tokio::sync::{Mutex, Notify, Semaphore, oneshot};

use super::client_handshake::{ClientHandshake, Negotiated, Step};
use super::stream::Stream;
use super::wire::{self, Command, Reader, ReplyHeader, Request, chunk};
use lockstep_util::{Error, Result};

/// Most requests sent and not yet answered.
const MAX_IN_FLIGHT: usize = 64;
/// Most extents kept of one block status reply; QEMU sends no more than 2048.
const MAX_EXTENTS: usize = 4096;

/// How long an orderly end may take before the socket is just shut. A failover waits for it when the server's host is gone.
const CLOSE_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(50);

/// What the server said to a request.
#[derive(Debug, Default)]
pub struct Answer {
    /// Data of a read, complete.
    pub data: Vec<u8>,
    /// Extents of a block status: length in bytes and `wire::STATE_*` bits.
    pub extents: Vec<(u32, u32)>,
}

type Reply = io::Result<Answer>;

struct Pending {
    request: Request,
    answer: Answer,
    /// Bytes of a read that chunks have covered.
    covered: u64,
    error: Option<u32>,
    tell: oneshot::Sender<Reply>,
}

/// A connection in the transmission phase.
pub struct Connection {
    stream: Stream,
    /// What was agreed on.
    pub negotiated: Negotiated,
    pending: RefCell<HashMap<u64, Pending>>,
    next_cookie: Cell<u64>,
    slots: Semaphore,
    /// Held by the sender; holds what a sender left behind when it was dropped in the middle.
    sending: Mutex<()>,
    unsent: RefCell<Vec<u8>>,
    dead: Cell<bool>,
    closing: Cell<bool>,
    ended: Notify,
}

/// Negotiates on a fresh stream. The caller bounds the time.
pub async fn negotiate(stream: &Stream, export: &str) -> Result<Negotiated> {
    let mut handshake = ClientHandshake::new(export);
    let mut buf = Vec::new();
    let mut out = Vec::new();
    loop {
        buf.resize(handshake.want(), 0);
        stream.read_exact(&mut buf).await.map_err(|e| Error::new(format!("Failed to read data: {}", eof_text(&e))))?;
        let step = handshake.advance(&buf, &mut out);
        let sent = stream.write_all(&out).await;
        out.clear();
        match step? {
            Step::Done(negotiated) => return Ok(negotiated),
            Step::More => sent.map_err(|e| Error::with_errno("Failed to write data", &e))?,
        }
    }
}

fn eof_text(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => "Unexpected end-of-file before all data were read".into(),
        _ => Error::with_errno("", e).message().trim_start_matches(": ").to_owned(),
    }
}

impl Connection {
    /// Takes a negotiated stream and starts to read replies on the current context.
    pub fn start(stream: Stream, negotiated: Negotiated) -> Rc<Self> {
        let conn = Rc::new(Self {
            stream,
            negotiated,
            pending: RefCell::default(),
            next_cookie: Cell::new(1),
            slots: Semaphore::new(MAX_IN_FLIGHT),
            sending: Mutex::new(()),
            unsent: RefCell::default(),
            dead: Cell::new(false),
            closing: Cell::new(false),
            ended: Notify::new(),
        });
        tokio::task::spawn_local({
            let conn = conn.clone();
            async move {
                if let Err(e) = conn.receive().await
                    && !conn.closing.get()
                {
                    tracing::warn!("nbd connection to {} lost: {e}", conn.stream.peer());
                }
                conn.kill();
            }
        });
        conn
    }

    /// Whether the connection has ended.
    pub fn is_dead(&self) -> bool {
        self.dead.get()
    }

    /// Whether a request waits for its answer.
    pub fn is_busy(&self) -> bool {
        !self.pending.borrow().is_empty() || self.slots.available_permits() < MAX_IN_FLIGHT
    }

    /// Ends the connection now: all requests fail with `EIO`.
    pub fn kill(&self) {
        self.dead.set(true);
        self.stream.shutdown();
        self.pending.borrow_mut().clear();
        self.slots.close();
        self.ended.notify_waiters();
    }

    /// Says goodbye and waits (bounded) until the server has let go of its side, so that an export that takes one
    /// client is free for the next.
    pub async fn close(&self) {
        self.closing.set(true);
        let goodbye =
            Request { flags: wire::CommandFlags::empty(), command: Command::Disconnect, cookie: 0, offset: 0, len: 0 };
        let orderly = async {
            let _turn = self.sending.lock().await;
            let ended = self.ended.notified();
            if self.unsent.borrow().is_empty() && self.stream.write_all(&goodbye.encode()).await.is_ok() {
                self.stream.shutdown_write();
                if !self.dead.get() {
                    ended.await;
                }
            }
        };
        if !self.dead.get() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, orderly).await;
        }
        self.kill();
    }

    /// Sends a request and waits for the answer. An error of the connection is `ENOTCONN`, which no server can send.
    pub async fn request(self: &Rc<Self>, mut request: Request, payload: &[u8]) -> Reply {
        let _slot = self.slots.acquire().await.map_err(|_| lost())?;
        let cookie = self.next_cookie.replace(self.next_cookie.get() + 1);
        request.cookie = cookie;
        let (tell, answer) = oneshot::channel();
        let pending = Pending { request, answer: Answer::default(), covered: 0, error: None, tell };
        self.send(&request.encode(), payload, || {
            self.pending.borrow_mut().insert(cookie, pending);
        })
        .await?;
        answer.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Sends two pieces in order with everybody else's. `registered` runs when the first byte is about to leave.
    async fn send(&self, head: &[u8], body: &[u8], registered: impl FnOnce()) -> io::Result<()> {
        let _turn = self.sending.lock().await;
        loop {
            let left = std::mem::take(&mut *self.unsent.borrow_mut());
            if left.is_empty() {
                break;
            }
            self.push(&left, &[]).await?;
        }
        if self.dead.get() {
            return Err(lost());
        }
        registered();
        self.push(head, body).await
    }

    /// Writes both pieces; if dropped half-way, leaves the rest in `unsent`.
    async fn push(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        struct Rest<'a> {
            head: &'a [u8],
            body: &'a [u8],
            conn: &'a Connection,
        }
        impl Drop for Rest<'_> {
            fn drop(&mut self) {
                let mut unsent = self.conn.unsent.borrow_mut();
                unsent.extend_from_slice(self.head);
                unsent.extend_from_slice(self.body);
            }
        }
        let mut rest = Rest { head, body, conn: self };
        while !rest.head.is_empty() || !rest.body.is_empty() {
            match self.stream.write_some(rest.head, rest.body).await {
                Ok(n) => {
                    let in_head = n.min(rest.head.len());
                    rest.head = &rest.head[in_head..];
                    rest.body = &rest.body[n - in_head..];
                }
                Err(_) => {
                    (rest.head, rest.body) = (&[], &[]);
                    self.kill();
                    return Err(lost());
                }
            }
        }
        Ok(())
    }

    /// Reads replies until the connection ends.
    async fn receive(&self) -> io::Result<()> {
        let mut head = [0; ReplyHeader::SIZE + ReplyHeader::CHUNK_REST];
        loop {
            let first: &mut [u8; ReplyHeader::SIZE] =
                (&mut head[..ReplyHeader::SIZE]).try_into().map_err(io::Error::other)?;
            self.stream.read_exact(first).await?;
            let len = if ReplyHeader::is_chunk(first) {
                self.stream.read_exact(&mut head[ReplyHeader::SIZE..]).await?;
                head.len()
            } else {
                ReplyHeader::SIZE
            };
            match ReplyHeader::decode(&head[..len]).map_err(bad)? {
                ReplyHeader::Simple { error, cookie } => self.simple(error, cookie).await?,
                ReplyHeader::Chunk { flags, kind, cookie, len } => {
                    if !self.negotiated.structured {
                        return Err(bad("Server sent a structured reply without negotiation"));
                    }
                    self.chunk(flags, kind, cookie, len).await?;
                }
            }
        }
    }

    /// The request a reply belongs to, taken out while the reply is read.
    fn take(&self, cookie: u64) -> io::Result<Pending> {
        self.pending.borrow_mut().remove(&cookie).ok_or_else(|| bad(format!("Unexpected reply {cookie}")))
    }

    async fn simple(&self, error: u32, cookie: u64) -> io::Result<()> {
        let mut p = self.take(cookie)?;
        if error != 0 {
            let _ = p.tell.send(Err(wire::error_from_wire(error)));
            return Ok(());
        }
        match p.request.command {
            Command::Read if self.negotiated.structured => return Err(bad("Protocol error: simple reply to a read")),
            Command::BlockStatus => return Err(bad("Protocol error: simple reply to a block status request")),
            Command::Read => {
                p.answer.data = vec![0; p.request.len as usize];
                self.stream.read_exact(&mut p.answer.data).await?;
            }
            _ => {}
        }
        let _ = p.tell.send(Ok(p.answer));
        Ok(())
    }

    async fn chunk(&self, flags: u16, kind: u16, cookie: u64, len: u32) -> io::Result<()> {
        let mut p = self.take(cookie)?;
        match kind {
            chunk::NONE if len == 0 => {}
            chunk::OFFSET_DATA if p.request.command == Command::Read && len > 8 => {
                let at = self.chunk_offset(&p, u64::from(len) - 8).await?;
                if p.answer.data.is_empty() {
                    p.answer.data = vec![0; p.request.len as usize];
                }
                self.stream.read_exact(&mut p.answer.data[at..at + len as usize - 8]).await?;
                p.covered += u64::from(len) - 8;
            }
            chunk::OFFSET_HOLE if p.request.command == Command::Read && len == 12 => {
                let mut body = [0; 12];
                self.stream.read_exact(&mut body).await?;
                let mut r = Reader(&body);
                let (offset, hole) = (r.u64().map_err(bad)?, r.u32().map_err(bad)?);
                range_in(&p.request, offset, u64::from(hole))?;
                if p.answer.data.is_empty() {
                    p.answer.data = vec![0; p.request.len as usize];
                }
                p.covered += u64::from(hole);
            }
            chunk::BLOCK_STATUS if p.request.command == Command::BlockStatus => {
                if len < 12 || len % 8 != 4 || len as usize > 4 + MAX_EXTENTS * 8 {
                    return Err(bad("Protocol error: invalid payload for NBD_REPLY_TYPE_BLOCK_STATUS"));
                }
                let mut body = vec![0; len as usize];
                self.stream.read_exact(&mut body).await?;
                let mut r = Reader(&body);
                if Some(r.u32().map_err(bad)?) != self.negotiated.allocation_context {
                    return Err(bad("Protocol error: unexpected context id"));
                }
                while !r.0.is_empty() {
                    if p.answer.extents.len() == MAX_EXTENTS {
                        return Err(bad("Protocol error: block status reply is too long"));
                    }
                    p.answer.extents.push((r.u32().map_err(bad)?, r.u32().map_err(bad)?));
                }
            }
            _ if kind & chunk::ERROR_BIT != 0 => {
                if !(6..=(6 + 8 + wire::MAX_STRING as u32)).contains(&len) {
                    return Err(bad("Protocol error: invalid payload for structured error"));
                }
                let mut body = vec![0; len as usize];
                self.stream.read_exact(&mut body).await?;
                let error = Reader(&body).u32().map_err(bad)?;
                p.error.get_or_insert(if error == 0 { 22 } else { error });
            }
            _ => return Err(bad(format!("Unexpected reply type 0x{kind:x}"))),
        }
        if flags & chunk::FLAG_DONE == 0 {
            self.pending.borrow_mut().insert(cookie, p);
            return Ok(());
        }
        let answer = match (p.error, p.request.command) {
            (Some(error), _) => Err(wire::error_from_wire(error)),
            (None, Command::Read) if p.covered != u64::from(p.request.len) => {
                return Err(bad("Protocol error: read reply is incomplete"));
            }
            (None, Command::BlockStatus) if p.answer.extents.is_empty() => {
                return Err(bad("Protocol error: block status reply without extents"));
            }
            (None, _) => Ok(p.answer),
        };
        let _ = p.tell.send(answer);
        Ok(())
    }

    /// Reads a chunk's offset; gives the place in the request's buffer.
    async fn chunk_offset(&self, p: &Pending, len: u64) -> io::Result<usize> {
        let mut body = [0; 8];
        self.stream.read_exact(&mut body).await?;
        range_in(&p.request, u64::from_be_bytes(body), len)
    }
}

/// Checks that a chunk lies within its request; gives its place relative to the request's start.
fn range_in(request: &Request, offset: u64, len: u64) -> io::Result<usize> {
    let at = offset.checked_sub(request.offset);
    match at {
        Some(at) if len > 0 && at.checked_add(len).is_some_and(|end| end <= u64::from(request.len)) => Ok(at as usize),
        _ => Err(bad("Protocol error: server sent chunk exceeding requested region")),
    }
}

fn bad(e: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e.to_string())
}

/// The error of a request whose connection is gone.
fn lost() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOTCONN)
}

/// Whether a request failed because its connection is gone.
pub fn is_lost(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::ENOTCONN)
}
