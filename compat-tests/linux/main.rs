//! The server of the small Linux guest: the services of the freestanding guest (`compat-tests/guest`), as a Linux program.
//!
//! Echo on port 7 (TCP and UDP), HTTP on port 80: `PUT|GET /kv/KEY`, `GET /random`, `GET /bulk?bytes=N&seed=S`, `POST /bulk`,
//! `POST /dirty?once=N`, `GET /stats`. An acknowledged PUT is on the disk: in a log whose blocks are there already. Its one argument is the log.
use lockstep_compat_tests::traffic::{ECHO_PORT, HTTP_PORT, fill};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

const PAGE: usize = 4096;
const PART: usize = 64 << 10;
/// Bytes of the log; after its end it begins anew.
const LOG: u64 = 64 << 20;
const MAX_LINE: u64 = 8 << 10;
const MAX_VALUE: u64 = 1 << 20;
const MAX_PAGES: usize = 32 << 10;

struct Store {
    log: File,
    end: u64,
    values: HashMap<String, Vec<u8>>,
}

impl Store {
    fn open(path: &str) -> io::Result<Self> {
        let log = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let zeros = vec![0; 1 << 20];
        (0..LOG >> 20).try_for_each(|part| log.write_all_at(&zeros, part << 20))?;
        log.sync_all()?;
        Ok(Self { log, end: 0, values: HashMap::new() })
    }

    fn put(&mut self, key: &str, value: Vec<u8>) -> io::Result<()> {
        let mut record = format!("{key} {}\n", value.len()).into_bytes();
        record.extend_from_slice(&value);
        if self.end + record.len() as u64 > LOG {
            self.end = 0;
        }
        self.log.write_all_at(&record, self.end)?;
        self.log.sync_data()?;
        self.end += record.len() as u64;
        self.values.insert(key.into(), value);
        Ok(())
    }
}

struct World {
    store: Mutex<Store>,
    pages: Mutex<Vec<u8>>,
    started: Instant,
}

fn main() -> io::Result<()> {
    let log = std::env::args().nth(1).ok_or_else(|| io::Error::other("usage: linux-guest LOG"))?;
    let world = Arc::new(World {
        store: Mutex::new(Store::open(&log)?),
        pages: Mutex::new(vec![0; MAX_PAGES * PAGE]),
        started: Instant::now(),
    });
    std::thread::spawn(echo_datagrams);
    std::thread::spawn(|| serve(ECHO_PORT, echo));
    serve(HTTP_PORT, move |stream| {
        let mut reader = BufReader::with_capacity(PART, stream.try_clone()?);
        while request(&world, &mut reader, &stream)? {}
        Ok(())
    })
}

fn serve(port: u16, answer: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) -> io::Result<()> {
    for stream in TcpListener::bind(("0.0.0.0", port))?.incoming().flatten() {
        let answer = answer.clone();
        // A client that goes away ends its own connection only.
        std::thread::spawn(move || stream.set_nodelay(true).and_then(|()| answer(stream)));
    }
    Ok(())
}

fn echo_datagrams() -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", ECHO_PORT))?;
    let mut part = [0; 2048];
    loop {
        let (count, from) = socket.recv_from(&mut part)?;
        let _ = socket.send_to(&part[..count], from);
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut part = vec![0; PART];
    loop {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            count => stream.write_all(&part[..count])?,
        }
    }
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    reader.take(MAX_LINE).read_line(&mut text)?;
    Ok(text.trim_end().into())
}

/// Answers one request. False when there is none.
fn request(world: &World, reader: &mut impl BufRead, stream: &TcpStream) -> io::Result<bool> {
    let first = line(reader)?;
    let mut words = first.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(false) };
    let mut length = 0;
    loop {
        let header = line(reader)?;
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let number = |name: &str| {
        let values = query.split('&').filter_map(|pair| pair.split_once('='));
        values.filter(|(own, _)| *own == name).find_map(|(_, value)| value.parse::<u64>().ok()).unwrap_or(0)
    };
    let mut body = reader.take(length);
    match (method, path) {
        ("GET", "/bulk") => download(stream, number("bytes"), number("seed"))?,
        ("POST", "/bulk") => {
            let crc = checksum(&mut body)?;
            answer(stream, "200 OK", format!("{{\"bytes\":{length},\"crc32c\":\"{crc:08x}\"}}\n").as_bytes())?;
        }
        ("PUT", _) if path.starts_with("/kv/") && length <= MAX_VALUE => {
            let mut value = Vec::new();
            body.read_to_end(&mut value)?;
            world.store.lock().unwrap().put(&path[4..], value)?;
            answer(stream, "200 OK", b"")?;
        }
        ("GET", _) if path.starts_with("/kv/") => {
            let value = world.store.lock().unwrap().values.get(&path[4..]).cloned();
            match value {
                Some(value) => answer(stream, "200 OK", &value)?,
                None => answer(stream, "404 Not Found", b"")?,
            }
        }
        ("GET", "/random") => {
            let mut bytes = [0; 16];
            File::open("/dev/urandom")?.read_exact(&mut bytes)?;
            answer(stream, "200 OK", format!("{:032x}\n", u128::from_ne_bytes(bytes)).as_bytes())?;
        }
        ("POST", "/dirty") => {
            let count = (number("once") as usize).min(MAX_PAGES);
            let mut pages = world.pages.lock().unwrap();
            pages.chunks_mut(PAGE).take(count).for_each(|page| page[0] = page[0].wrapping_add(1));
            answer(stream, "200 OK", b"")?;
        }
        ("GET", "/stats") => {
            let uptime = world.started.elapsed().as_secs();
            answer(stream, "200 OK", format!("{{\"uptime\":{uptime}}}\n").as_bytes())?;
        }
        ("GET", "/") => answer(stream, "200 OK", b"Linux\n")?,
        _ => answer(stream, "404 Not Found", b"")?,
    }
    Ok(true)
}

fn answer(mut stream: &TcpStream, status: &str, body: &[u8]) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    text.extend_from_slice(body);
    stream.write_all(&text)
}

fn download(mut stream: &TcpStream, bytes: u64, seed: u64) -> io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n")?;
    let mut part = vec![0; PART];
    let mut at = 0;
    while at < bytes {
        let count = (bytes - at).min(PART as u64) as usize;
        fill(seed, at, &mut part[..count]);
        stream.write_all(&part[..count])?;
        at += count as u64;
    }
    Ok(())
}

fn checksum(body: &mut impl Read) -> io::Result<u32> {
    let mut part = vec![0; PART];
    let mut crc = 0;
    loop {
        match body.read(&mut part)? {
            0 => return Ok(crc),
            count => crc = crc32c::crc32c_append(crc, &part[..count]),
        }
    }
}
