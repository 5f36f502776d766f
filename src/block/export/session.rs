//! One client of an export in the transmission phase.
//!
//! A client can have so many requests and so many bytes under way and no more: then it is not read from until replies
//! have left. Replies go out in the order in which requests end.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore};

use super::NbdExport;
use crate::driver::{Status, WriteFlags, errno};
use crate::nbd::server_handshake::Selected;
use crate::nbd::stream::Stream;
use crate::nbd::wire::{self, Command, CommandFlags, MAX_PAYLOAD, ReplyHeader, Request, chunk};

/// Requests of one client under way.
const MAX_REQUESTS: usize = 16;
/// KiB of data of one client's requests under way.
const MAX_KIB: u32 = 64 << 10;
/// Extents in one block status reply.
const MAX_EXTENTS: usize = 2048;
/// Reads shorter than this are not searched for holes, in bytes.
const SPARSE_READ: u32 = 64 << 10;

/// The client.
pub(super) struct Session {
    stream: Rc<Stream>,
    export: Rc<NbdExport>,
    structured: bool,
    context: Option<u32>,
    sending: Mutex<()>,
    requests: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    over: Cell<bool>,
    ended: Notify,
}

/// What a request came to: the bytes of the reply, head first.
struct Reply {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Session {
    /// Serves a client until it leaves, breaks the protocol, or is disconnected.
    pub(super) async fn run(stream: Rc<Stream>, export: Rc<NbdExport>, selected: Selected) {
        let session = Rc::new(Self {
            stream,
            export,
            structured: selected.structured,
            context: selected.allocation_context,
            sending: Mutex::new(()),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            memory: Arc::new(Semaphore::new(MAX_KIB as usize)),
            over: Cell::new(false),
            ended: Notify::new(),
        });
        if session.export.shutting_down.get() {
            return;
        }
        session.export.sessions.borrow_mut().push(session.clone());
        if let Err(e) = session.receive().await {
            tracing::debug!("nbd client {}: {e}", session.stream.peer());
        }
        // What has begun ends; a client that said goodbye gets the rest of its replies.
        let _all = session.requests.acquire_many(MAX_REQUESTS as u32).await;
        session.stream.shutdown();
        session.export.sessions.borrow_mut().retain(|s| !Rc::ptr_eq(s, &session));
        session.over.set(true);
        session.ended.notify_waiters();
    }

    /// Disconnects the client.
    pub(super) fn kill(&self) {
        self.stream.shutdown();
    }

    /// Waits until nothing of the client is left.
    pub(super) async fn ended(&self) {
        let ended = self.ended.notified();
        if !self.over.get() {
            ended.await;
        }
    }

    async fn receive(self: &Rc<Self>) -> io::Result<()> {
        let mut head = [0; Request::SIZE];
        loop {
            self.stream.read_exact(&mut head).await?;
            let request = Request::decode(&head).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            if request.command == Command::Disconnect {
                return Ok(());
            }
            let has_payload = request.command == Command::Write;
            if has_payload && request.len > MAX_PAYLOAD {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "payload is too long"));
            }
            let slot = self.requests.clone().acquire_owned().await.map_err(io::Error::other)?;
            let kib = if has_payload || request.command == Command::Read {
                (request.len.min(MAX_PAYLOAD) / 1024).clamp(1, MAX_KIB)
            } else {
                1
            };
            let memory = self.memory.clone().acquire_many_owned(kib).await.map_err(io::Error::other)?;
            let mut payload = Vec::new();
            if has_payload {
                payload.resize(request.len as usize, 0);
                self.stream.read_exact(&mut payload).await?;
            }
            let session = self.clone();
            tokio::task::spawn_local(async move { session.serve(request, payload, (slot, memory)).await });
        }
    }

    async fn serve(
        self: Rc<Self>,
        request: Request,
        payload: Vec<u8>,
        _room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) {
        let reply = match self.check(&request) {
            Ok(()) => self.execute(&request, payload).await,
            Err(e) => Err(e),
        };
        let reply = reply.unwrap_or_else(|e| self.error_reply(&request, &e));
        let _turn = self.sending.lock().await;
        let sent = async {
            let mut at = 0;
            let total = reply.head.len() + reply.body.len();
            while at < total {
                let (head, body) = match at.checked_sub(reply.head.len()) {
                    Some(in_body) => (&[][..], &reply.body[in_body..]),
                    None => (&reply.head[at..], &reply.body[..]),
                };
                at += self.stream.write_some(head, body).await?;
            }
            io::Result::Ok(())
        };
        if sent.await.is_err() {
            self.kill();
        }
    }

    /// Whether the request is one that this export takes.
    fn check(&self, request: &Request) -> io::Result<()> {
        use Command::*;
        let invalid = || errno(libc::EINVAL);
        let writes = matches!(request.command, Write | Trim | WriteZeroes);
        if writes && !self.export.is_writable() {
            return Err(errno(libc::EPERM));
        }
        let known = CommandFlags::FUA
            | match request.command {
                Read if self.structured => CommandFlags::DF,
                WriteZeroes => CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
                BlockStatus => CommandFlags::REQ_ONE,
                _ => CommandFlags::empty(),
            };
        if !known.contains(request.flags) {
            return Err(invalid());
        }
        match request.command {
            Flush => return Ok(()),
            Read if request.len > MAX_PAYLOAD => return Err(invalid()),
            BlockStatus if self.context.is_none() => return Err(invalid()),
            Read | BlockStatus | Cache if request.len == 0 => return Err(invalid()),
            Unknown(_) | Disconnect => return Err(invalid()),
            _ => {}
        }
        let size = self.export.backend().len()?;
        if request.offset > size || u64::from(request.len) > size - request.offset {
            return Err(if matches!(request.command, Write | WriteZeroes) { errno(libc::ENOSPC) } else { invalid() });
        }
        Ok(())
    }

    async fn execute(&self, request: &Request, payload: Vec<u8>) -> io::Result<Reply> {
        let backend = self.export.backend();
        let (offset, len) = (request.offset, u64::from(request.len));
        let fua = request.flags.contains(CommandFlags::FUA);
        let write_flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
        match request.command {
            Command::Read => {
                if fua {
                    backend.flush().await?;
                }
                return self.read(request).await;
            }
            Command::Write => backend.write(offset, &payload, write_flags).await?,
            Command::Flush => backend.flush().await?,
            Command::Trim => {
                backend.discard(offset, len).await?;
                if fua {
                    backend.flush().await?;
                }
            }
            Command::WriteZeroes => {
                let mut flags = write_flags;
                if !request.flags.contains(CommandFlags::NO_HOLE) {
                    flags |= WriteFlags::MAY_UNMAP;
                }
                if request.flags.contains(CommandFlags::FAST_ZERO) {
                    flags |= WriteFlags::NO_FALLBACK;
                }
                backend.write_zeroes(offset, len, flags).await?;
            }
            Command::Cache => {
                let mut scratch = vec![0; len.min(1 << 20) as usize];
                let mut at = offset;
                while at < offset + len {
                    let n = (offset + len - at).min(scratch.len() as u64);
                    backend.read(at, &mut scratch[..n as usize]).await?;
                    at += n;
                }
            }
            Command::BlockStatus => return self.block_status(request).await,
            Command::Disconnect | Command::Unknown(_) => return Err(errno(libc::EINVAL)),
        }
        Ok(simple(request.cookie, 0))
    }

    async fn read(&self, request: &Request) -> io::Result<Reply> {
        let backend = self.export.backend();
        let len = request.len as usize;
        if !self.structured {
            let mut body = vec![0; len];
            backend.read(request.offset, &mut body).await?;
            return Ok(Reply { body, ..simple(request.cookie, 0) });
        }
        let whole = request.flags.contains(CommandFlags::DF) || request.len < SPARSE_READ;
        if whole {
            let mut body = vec![0; len];
            backend.read(request.offset, &mut body).await?;
            let mut head = Vec::with_capacity(28);
            put_chunk(&mut head, request, chunk::FLAG_DONE, chunk::OFFSET_DATA, 8 + request.len);
            head.extend_from_slice(&request.offset.to_be_bytes());
            return Ok(Reply { head, body });
        }
        let mut out = Vec::with_capacity(len + 64);
        let end = request.offset + u64::from(request.len);
        let mut at = request.offset;
        while at < end {
            let node = backend.node().ok_or_else(|| errno(libc::EIO))?;
            let (extent, _) = node.block_status_above(None, at, end - at).await?;
            let n = extent.len.clamp(1, end - at);
            let flags = if at + n == end { chunk::FLAG_DONE } else { 0 };
            if extent.status.contains(Status::ZERO) {
                put_chunk(&mut out, request, flags, chunk::OFFSET_HOLE, 12);
                out.extend_from_slice(&at.to_be_bytes());
                out.extend_from_slice(&(n as u32).to_be_bytes());
            } else {
                put_chunk(&mut out, request, flags, chunk::OFFSET_DATA, 8 + n as u32);
                out.extend_from_slice(&at.to_be_bytes());
                let start = out.len();
                out.resize(start + n as usize, 0);
                backend.read(at, &mut out[start..]).await?;
            }
            at += n;
        }
        Ok(Reply { head: out, body: Vec::new() })
    }

    async fn block_status(&self, request: &Request) -> io::Result<Reply> {
        let node = self.export.backend().node().ok_or_else(|| errno(libc::EIO))?;
        let most = if request.flags.contains(CommandFlags::REQ_ONE) { 1 } else { MAX_EXTENTS };
        let end = request.offset + u64::from(request.len);
        let mut extents: Vec<(u32, u32)> = Vec::new();
        let mut at = request.offset;
        while at < end {
            let (extent, _) = node.block_status_above(None, at, end - at).await?;
            let n = extent.len.clamp(1, end - at);
            let mut state = 0;
            if !extent.status.contains(Status::DATA) {
                state |= wire::STATE_HOLE;
            }
            if extent.status.contains(Status::ZERO) {
                state |= wire::STATE_ZERO;
            }
            let full = extents.len() == most;
            match extents.last_mut() {
                Some((len, last)) if *last == state => *len += n as u32,
                _ if full => break,
                _ => extents.push((n as u32, state)),
            }
            at += n;
        }
        let mut head = Vec::with_capacity(24 + extents.len() * 8);
        put_chunk(&mut head, request, chunk::FLAG_DONE, chunk::BLOCK_STATUS, 4 + extents.len() as u32 * 8);
        head.extend_from_slice(&self.context.unwrap_or(0).to_be_bytes());
        for (len, state) in extents {
            head.extend_from_slice(&len.to_be_bytes());
            head.extend_from_slice(&state.to_be_bytes());
        }
        Ok(Reply { head, body: Vec::new() })
    }

    fn error_reply(&self, request: &Request, e: &io::Error) -> Reply {
        let code = wire::error_to_wire(e);
        if !self.structured {
            return simple(request.cookie, code);
        }
        let mut head = Vec::with_capacity(26);
        put_chunk(&mut head, request, chunk::FLAG_DONE, chunk::ERROR, 6);
        head.extend_from_slice(&code.to_be_bytes());
        head.extend_from_slice(&0u16.to_be_bytes());
        Reply { head, body: Vec::new() }
    }
}

fn simple(cookie: u64, error: u32) -> Reply {
    let mut head = Vec::with_capacity(16);
    ReplyHeader::Simple { error, cookie }.encode(&mut head);
    Reply { head, body: Vec::new() }
}

fn put_chunk(out: &mut Vec<u8>, request: &Request, flags: u16, kind: u16, len: u32) {
    ReplyHeader::Chunk { flags, kind, cookie: request.cookie, len }.encode(out);
}
