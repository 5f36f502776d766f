//! A long-lived connection to the echo service: what comes back must be what was sent, to the byte, however often hosts die.
use super::stream::{check, fill};
use super::{ECHO_PORT, PATIENCE, connect};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How an echo connection sends.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// `size` bytes, then wait for their return, then a pause.
    PingPong {
        /// Bytes of a message.
        size: usize,
        /// Time between an answer and the next message.
        pause: Duration,
    },
    /// As fast as the connection takes it.
    Flood,
}

/// What a connection has seen.
#[derive(Clone, Debug, Default)]
pub struct EchoReport {
    /// Bytes that came back right.
    pub bytes: u64,
    /// Ping-pong: the time of each round trip, and when it ended.
    pub round_trips: Vec<(Instant, Duration)>,
    /// The longest time without a byte coming back.
    pub worst_gap: Duration,
}

/// A running connection.
pub struct Echo {
    stream: TcpStream,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    report: Arc<Mutex<EchoReport>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Echo {
    /// Connects and starts to send the stream of `seed`.
    ///
    /// # Errors
    /// If the connection cannot be opened.
    pub fn start(seed: u64, pace: Pace) -> io::Result<Self> {
        let stream = connect(ECHO_PORT, PATIENCE)?;
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let report = Arc::new(Mutex::new(EchoReport::default()));
        let mut threads = Vec::new();
        match pace {
            Pace::PingPong { size, pause } => {
                let (stream, stop) = (stream.try_clone()?, Arc::clone(&stop));
                let mut reader = Reader::new(stream.try_clone()?, seed, Arc::clone(&received), Arc::clone(&report));
                threads.push(std::thread::spawn(move || ping_pong(stream, seed, size, pause, &stop, &mut reader)));
            }
            Pace::Flood => {
                let (writer, stop) = (stream.try_clone()?, Arc::clone(&stop));
                let mut reader = Reader::new(stream.try_clone()?, seed, Arc::clone(&received), Arc::clone(&report));
                let sent = Arc::new(AtomicU64::new(u64::MAX));
                let total = Arc::clone(&sent);
                threads.push(std::thread::spawn(move || flood(writer, seed, &stop, &total)));
                threads.push(std::thread::spawn(move || reader.until(&sent)));
            }
        }
        Ok(Self { stream, stop, received, report, threads })
    }

    /// Bytes that have come back so far.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Round trips so far: when each ended, and how long it took.
    ///
    /// # Panics
    /// If the connection's thread has panicked.
    pub fn round_trips(&self) -> Vec<(Instant, Duration)> {
        self.report.lock().unwrap().round_trips.clone()
    }

    /// Waits until `bytes` more have come back.
    ///
    /// # Errors
    /// If they do not within `limit`, with the connection's own error where it has one.
    pub fn wait_for_progress(&mut self, bytes: u64, limit: Duration) -> io::Result<()> {
        let (start, wanted) = (Instant::now(), self.received() + bytes);
        while self.received() < wanted {
            if let Some(ended) = self.threads.iter().position(JoinHandle::is_finished) {
                return Err(self
                    .threads
                    .swap_remove(ended)
                    .join()
                    .expect("no panic")
                    .err()
                    .unwrap_or_else(|| io::Error::other("ended")));
            }
            if start.elapsed() > limit {
                let text = format!("only {} of {wanted} bytes came back", self.received());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Stops sending, waits for the rest to come back and closes the connection.
    ///
    /// # Errors
    /// If the connection failed, or a byte was lost, doubled or wrong.
    pub fn finish(mut self) -> io::Result<EchoReport> {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("no panic")?;
        }
        self.stream.shutdown(Shutdown::Write)?;
        // The reader has looked more often, on the same socket.
        self.stream.set_read_timeout(Some(PATIENCE))?;
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        if !rest.is_empty() {
            return Err(io::Error::other(format!("{} bytes too many came back", rest.len())));
        }
        Ok(self.report.lock().unwrap().clone())
    }
}

struct Reader {
    stream: TcpStream,
    seed: u64,
    at: u64,
    last: Instant,
    part: Vec<u8>,
    received: Arc<AtomicU64>,
    report: Arc<Mutex<EchoReport>>,
}

impl Reader {
    fn new(stream: TcpStream, seed: u64, received: Arc<AtomicU64>, report: Arc<Mutex<EchoReport>>) -> Self {
        Self { stream, seed, at: 0, last: Instant::now(), part: vec![0; 64 << 10], received, report }
    }

    /// Reads and checks at most `limit` bytes.
    fn read(&mut self, limit: u64) -> io::Result<u64> {
        let limit = limit.min(self.part.len() as u64) as usize;
        let count = self.stream.read(&mut self.part[..limit])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("echo: closed after {} bytes", self.at)));
        }
        check(self.seed, self.at, &self.part[..count])
            .map_err(|at| io::Error::other(format!("echo: wrong byte at {at}")))?;
        self.at += count as u64;
        let mut report = self.report.lock().unwrap();
        report.bytes = self.at;
        report.worst_gap = report.worst_gap.max(self.last.elapsed());
        self.last = Instant::now();
        self.received.store(self.at, Relaxed);
        Ok(count as u64)
    }

    /// Reads until the number of bytes that `sent` ends up with.
    fn until(&mut self, sent: &AtomicU64) -> io::Result<()> {
        self.stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        while self.at < sent.load(Relaxed) {
            match self.read(u64::MAX) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.last.elapsed() > PATIENCE {
                        return Err(error);
                    }
                }
                result => drop(result?),
            }
        }
        Ok(())
    }
}

fn ping_pong(
    mut stream: TcpStream,
    seed: u64,
    size: usize,
    pause: Duration,
    stop: &AtomicBool,
    reader: &mut Reader,
) -> io::Result<()> {
    let mut message = vec![0; size];
    while !stop.load(Relaxed) {
        let start = Instant::now();
        fill(seed, reader.at, &mut message);
        let end = reader.at + size as u64;
        stream.write_all(&message)?;
        reader.last = start;
        while reader.at < end {
            reader.read(end - reader.at)?;
        }
        reader.report.lock().unwrap().round_trips.push((Instant::now(), start.elapsed()));
        std::thread::sleep(pause);
    }
    Ok(())
}

fn flood(mut stream: TcpStream, seed: u64, stop: &AtomicBool, total: &AtomicU64) -> io::Result<()> {
    let mut part = vec![0; 32 << 10];
    let mut at = 0;
    while !stop.load(Relaxed) {
        fill(seed, at, &mut part);
        stream.write_all(&part)?;
        at += part.len() as u64;
    }
    total.store(at, Relaxed);
    Ok(())
}
