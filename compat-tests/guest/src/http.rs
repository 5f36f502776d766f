//! One HTTP/1.1 connection: requests one after another, bodies as they come.
use crate::cpu::{Entropy, acpi_timer, counter, kvmclock, now_us};
use crate::crc32c;
use crate::dirty::{Dirtier, MAX_PAGES};
use crate::store::{Change, MAX_KEY, MAX_VALUE, Store};
use crate::stream;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use smoltcp::socket::tcp::Socket;

const MAX_HEAD: usize = 8 << 10;
/// A PUT is refused when less memory than this is left.
const RESERVED_MEMORY: usize = 32 << 20;
const TEXT: &str = "text/plain";
const JSON: &str = "application/json";

/// What requests work on.
pub struct World {
    /// The key-value store.
    pub store: Store,
    /// The page-dirtying loop.
    pub dirtier: Dirtier,
    /// Numbers that differ between VMs.
    pub entropy: Entropy,
    /// Text of `/stats`, made afresh when somebody asks.
    pub stats: fn(&World) -> String,
    /// Requests answered since boot.
    pub requests: u64,
    /// Network counters for `/stats`: received, sent, interrupts.
    pub net: [u64; 3],
    /// Disk counters for `/stats`: commands, errors.
    pub disk: [u64; 2],
}

enum Phase {
    /// Collecting a request's head.
    Head,
    /// Collecting the value of a PUT.
    Value { key: String, value: Vec<u8>, left: usize },
    /// Summing up an upload.
    Upload { total: u64, left: u64, crc: u32 },
    /// Skipping a body that nobody wants.
    Skip { left: u64 },
    /// The change is on its way to the disk.
    Waiting { status: &'static str },
    /// Sending the bulk stream.
    Download { seed: u64, at: u64, end: u64 },
}

/// The state of one connection.
pub struct Http {
    head: Vec<u8>,
    phase: Phase,
    out: Vec<u8>,
    out_at: usize,
    close: bool,
    ticket: u64,
}

impl Http {
    /// A new connection. `ticket` names it to the store.
    pub fn new(ticket: u64) -> Self {
        Self { head: Vec::new(), phase: Phase::Head, out: Vec::new(), out_at: 0, close: false, ticket }
    }

    /// The store has made this connection's change durable, or could not.
    pub fn stored(&mut self, ticket: u64, done: bool) {
        if let Phase::Waiting { status } = self.phase
            && self.ticket == ticket
        {
            let status = if done { status } else { "507 Insufficient Storage" };
            self.answer(status, TEXT, b"");
            self.phase = Phase::Head;
        }
    }

    /// Does what can be done now. True if something was.
    pub fn step(&mut self, socket: &mut Socket, world: &mut World) -> bool {
        let mut worked = false;
        loop {
            let more = self.send_pending(socket);
            worked |= more;
            if self.out_at < self.out.len() {
                return worked;
            }
            if self.close && matches!(self.phase, Phase::Head) {
                socket.close();
                return worked;
            }
            if !self.advance(socket, world) {
                if !socket.may_recv() && !matches!(self.phase, Phase::Waiting { .. } | Phase::Download { .. }) {
                    socket.close();
                }
                return worked;
            }
            worked = true;
        }
    }

    fn send_pending(&mut self, socket: &mut Socket) -> bool {
        if self.out_at == self.out.len() || !socket.can_send() {
            return false;
        }
        self.out_at += socket.send_slice(&self.out[self.out_at..]).unwrap_or(0);
        if self.out_at == self.out.len() {
            self.out.clear();
            self.out_at = 0;
        }
        true
    }

    fn advance(&mut self, socket: &mut Socket, world: &mut World) -> bool {
        match &mut self.phase {
            Phase::Head => {
                if !socket.can_recv() {
                    return false;
                }
                let head = &mut self.head;
                let complete = socket.recv(|bytes| collect_head(head, bytes)).unwrap_or(false);
                if complete {
                    let head = core::mem::take(&mut self.head);
                    world.requests += 1;
                    self.request(&head, world);
                } else if self.head.len() >= MAX_HEAD {
                    self.close = true;
                    self.head.clear();
                    self.answer("431 Request Header Fields Too Large", TEXT, b"");
                }
                true
            }
            Phase::Value { key, value, left } => {
                let taken = take(socket, *left as u64, |part| value.extend_from_slice(part));
                *left -= taken;
                if *left == 0 {
                    let change =
                        Change { ticket: self.ticket, key: core::mem::take(key), value: Some(core::mem::take(value)) };
                    world.store.submit(change);
                    self.phase = Phase::Waiting { status: "200 OK" };
                    return true;
                }
                taken != 0
            }
            Phase::Upload { total, left, crc } => {
                let taken = take(socket, *left, |part| *crc = crc32c::update(*crc, part));
                *left -= taken as u64;
                if *left == 0 {
                    let body = format!("{{\"bytes\":{total},\"crc32c\":\"{crc:08x}\"}}\n");
                    self.phase = Phase::Head;
                    self.answer("200 OK", JSON, body.as_bytes());
                    return true;
                }
                taken != 0
            }
            Phase::Skip { left } => {
                let taken = take(socket, *left, |_| ());
                *left -= taken as u64;
                if *left == 0 {
                    self.phase = Phase::Head;
                    return true;
                }
                taken != 0
            }
            Phase::Waiting { .. } => false,
            Phase::Download { seed, at, end } => {
                let mut sent = 0;
                while *at < *end && socket.can_send() {
                    let count = socket.send(|room| {
                        let count = room.len().min((*end - *at).min(1 << 30) as usize);
                        stream::fill(*seed, *at, &mut room[..count]);
                        (count, count)
                    });
                    let Ok(count) = count else { break };
                    *at += count as u64;
                    sent += count;
                }
                if *at == *end {
                    self.phase = Phase::Head;
                    return true;
                }
                sent != 0 && socket.can_send()
            }
        }
    }

    fn request(&mut self, head: &[u8], world: &mut World) {
        let Some(request) = Request::parse(head) else {
            self.close = true;
            return self.answer("400 Bad Request", TEXT, b"");
        };
        self.close = request.close;
        let length = match request.length {
            Length::Bytes(length) => length,
            Length::Unknown => {
                self.close = true;
                return self.answer("411 Length Required", TEXT, b"");
            }
        };
        if request.expects_continue && length != 0 {
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let number = |name, default| request.query(name).map_or(Some(default), |text| text.parse::<u64>().ok());
        // The answer to a request with an unwanted body goes out first; the body is skipped before the next request.
        self.phase = if length == 0 { Phase::Head } else { Phase::Skip { left: length } };
        match (request.method, request.path) {
            ("PUT", path) if path.starts_with("/kv/") => {
                let key = &path[4..];
                if key.is_empty() || key.len() > MAX_KEY {
                    return self.answer("400 Bad Request", TEXT, b"");
                }
                if length > MAX_VALUE as u64 {
                    self.close = true;
                    return self.answer("413 Content Too Large", TEXT, b"");
                }
                if crate::heap::untouched() < RESERVED_MEMORY {
                    return self.answer("507 Insufficient Storage", TEXT, b"");
                }
                self.phase =
                    Phase::Value { key: key.into(), value: Vec::with_capacity(length as usize), left: length as usize };
            }
            ("DELETE", path)
                if path.starts_with("/kv/") && path.len() > 4 && path.len() <= MAX_KEY + 4 && length == 0 =>
            {
                world.store.submit(Change { ticket: self.ticket, key: path[4..].into(), value: None });
                self.phase = Phase::Waiting { status: "200 OK" };
            }
            ("GET", path) if path.starts_with("/kv/") => match world.store.get(&path[4..]) {
                Some(value) => self.answer("200 OK", "application/octet-stream", value),
                None => self.answer("404 Not Found", TEXT, b""),
            },
            ("GET", "/random") => {
                let body = format!("{:016x}{:016x}\n", world.entropy.next(), world.entropy.next());
                self.answer("200 OK", TEXT, body.as_bytes());
            }
            ("GET", "/bulk") => match (number("bytes", 1 << 20), number("seed", 0)) {
                (Some(end), Some(seed)) => {
                    self.start_answer("200 OK", "application/octet-stream", end);
                    self.phase = Phase::Download { seed, at: 0, end };
                }
                _ => self.answer("400 Bad Request", TEXT, b""),
            },
            ("POST", "/bulk") => self.phase = Phase::Upload { total: length, left: length, crc: 0 },
            ("GET", "/counter") => {
                let dirtier = &world.dirtier;
                let body = format!("counter {}\nrate {}\npages {}\n", dirtier.counter, dirtier.rate, dirtier.pages());
                self.answer("200 OK", TEXT, body.as_bytes());
            }
            ("POST", "/dirty") if request.query("once").is_some() => match number("once", 0) {
                Some(pages) if pages <= MAX_PAGES as u64 => {
                    let done = world.dirtier.once(pages as usize);
                    self.answer(if done { "200 OK" } else { "507 Insufficient Storage" }, TEXT, b"");
                }
                _ => self.answer("400 Bad Request", TEXT, b""),
            },
            ("POST", "/dirty") => match (number("pages_per_second", 0), number("pages", 1024)) {
                (Some(rate), Some(pages)) if rate <= 10_000_000 && pages <= MAX_PAGES as u64 => {
                    let done = world.dirtier.set(rate, pages as usize, now_us());
                    self.answer(if done { "200 OK" } else { "507 Insufficient Storage" }, TEXT, b"");
                }
                _ => self.answer("400 Bad Request", TEXT, b""),
            },
            ("GET", "/clock") => {
                let (tsc, khz) = counter();
                let mut page = format!("tsc {tsc}\nkhz {khz}\nacpi {}\n", acpi_timer());
                if let Some(clock) = kvmclock() {
                    page += &format!("kvmclock {clock}\n");
                }
                self.answer("200 OK", TEXT, page.as_bytes());
            }
            ("GET", "/stats") => {
                let body = (world.stats)(world);
                self.answer("200 OK", JSON, body.as_bytes());
            }
            ("GET", "/") => self.answer(
                "200 OK",
                TEXT,
                b"PUT|GET|DELETE /kv/KEY, GET /random, GET /bulk?bytes=N&seed=S, POST /bulk, GET /counter, \
                  POST /dirty?pages_per_second=N&pages=M, POST /dirty?once=N, GET /clock, GET /stats\n",
            ),
            ("GET", _) => self.answer("404 Not Found", TEXT, b""),
            _ => self.answer("405 Method Not Allowed", TEXT, b""),
        }
    }

    fn start_answer(&mut self, status: &str, kind: &str, length: u64) {
        let connection = if self.close { "Connection: close\r\n" } else { "" };
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{connection}\r\n");
        self.out.extend_from_slice(head.as_bytes());
    }

    fn answer(&mut self, status: &str, kind: &str, body: &[u8]) {
        self.start_answer(status, kind, body.len() as u64);
        self.out.extend_from_slice(body);
    }
}

/// Moves bytes into `head` up to the empty line: (bytes taken, head is complete).
fn collect_head(head: &mut Vec<u8>, bytes: &[u8]) -> (usize, bool) {
    let before = head.len();
    let room = (MAX_HEAD - before).min(bytes.len());
    head.extend_from_slice(&bytes[..room]);
    let search = before.saturating_sub(3);
    match head[search..].windows(4).position(|four| four == b"\r\n\r\n") {
        Some(at) => {
            let end = search + at + 4;
            head.truncate(end);
            (end - before, true)
        }
        None => (room, false),
    }
}

/// Receives at most `limit` bytes; the number received.
fn take(socket: &mut Socket, limit: u64, mut sink: impl FnMut(&[u8])) -> usize {
    let mut taken = 0;
    while (taken as u64) < limit && socket.can_recv() {
        let part = socket.recv(|bytes| {
            let count = bytes.len().min((limit - taken as u64).min(1 << 30) as usize);
            sink(&bytes[..count]);
            (count, count)
        });
        match part {
            Ok(count) => taken += count,
            Err(_) => break,
        }
    }
    taken
}

enum Length {
    Bytes(u64),
    Unknown,
}

struct Request<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    length: Length,
    close: bool,
    expects_continue: bool,
}

impl<'a> Request<'a> {
    fn parse(head: &'a [u8]) -> Option<Self> {
        let text = core::str::from_utf8(head).ok()?;
        let mut lines = text.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if words.next().is_some() || !target.starts_with('/') || !version.starts_with("HTTP/1.") {
            return None;
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let close = version == "HTTP/1.0";
        let mut request = Self { method, path, query, length: Length::Bytes(0), close, expects_continue: false };
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                request.length = Length::Bytes(value.parse().ok()?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                request.length = Length::Unknown;
            } else if name.eq_ignore_ascii_case("connection") {
                request.close =
                    value.eq_ignore_ascii_case("close") || close && !value.eq_ignore_ascii_case("keep-alive");
            } else if name.eq_ignore_ascii_case("expect") {
                request.expects_continue = value.eq_ignore_ascii_case("100-continue");
            }
        }
        Some(request)
    }

    fn query(&self, name: &str) -> Option<&'a str> {
        self.query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
    }
}
