//! An emulator whose guest's serial line is its standard input and output, and somebody who reads and types there.
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Said {
    bytes: Vec<u8>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    said: Mutex<Said>,
    more: Condvar,
}

/// The emulator and the serial line.
pub struct Console {
    child: Child,
    keys: ChildStdin,
    shared: Arc<Shared>,
    /// How much of what was said has been dealt with.
    read: usize,
    started: Instant,
}

impl Console {
    /// Starts `program` with blank-separated arguments and `extra` ones that may hold blanks.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(program: &str, arguments: &str, extra: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments.split_whitespace()).args(extra).args(["-serial", "stdio"]);
        let started = Instant::now();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{program}: {error}"));
        let (keys, mut screen) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let shared = Arc::new(Shared::default());
        let sink = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut part) {
                sink.said.lock().unwrap().bytes.extend_from_slice(&part[..count]);
                sink.more.notify_all();
            }
            sink.said.lock().unwrap().ended = true;
            sink.more.notify_all();
        });
        Self { child, keys, shared, read: 0, started }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Types, without a line's end.
    ///
    /// # Panics
    /// If the emulator is gone.
    pub fn press(&mut self, keys: &str) {
        self.keys
            .write_all(keys.as_bytes())
            .and_then(|()| self.keys.flush())
            .expect("the emulator reads its serial line");
    }

    /// Waits until one of `texts` was said after what was waited for last, and takes everything up to its end. Returns which.
    ///
    /// # Panics
    /// If that does not happen in time: with the last that was said.
    pub fn expect_any(&mut self, texts: &[&str], limit: Duration) -> (usize, String) {
        let deadline = Instant::now() + limit;
        let mut said = self.shared.said.lock().unwrap();
        loop {
            let new = &said.bytes[self.read..];
            let first = texts.iter().enumerate().filter_map(|(n, text)| Some((find(new, text.as_bytes())?, n))).min();
            if let Some((at, n)) = first {
                let before = String::from_utf8_lossy(&new[..at]).into_owned();
                self.read += at + texts[n].len();
                return (n, before);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if said.ended || left.is_zero() {
                let last = String::from_utf8_lossy(&new[new.len().saturating_sub(2000)..]).into_owned();
                let why = if said.ended { "before the emulator ended" } else { "in time" };
                drop(said);
                panic!("Nothing of {texts:?} was said {why}; the last words:\n{last}");
            }
            said = self.shared.more.wait_timeout(said, left).unwrap().0;
        }
    }

    /// Waits for `text`; see [`expect_any`](Self::expect_any). Returns what was said before it.
    pub fn expect(&mut self, text: &str, limit: Duration) -> String {
        self.expect_any(&[text], limit).1
    }

    /// Has the guest's shell run a line that must succeed. Returns what it said and how long it took.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&mut self, line: &str, limit: Duration) -> (String, Duration) {
        let start = Instant::now();
        // What the terminal repeats of the line has no digits behind "status:".
        self.press(&format!("{{ {line}; }}; echo \"status:$?:\"\n"));
        let (good, said) = self.expect_any(&["status:0:", "status:1", "status:2"], limit);
        assert!(good == 0, "{line} failed:\n{said}");
        (said, start.elapsed())
    }

    /// Waits until the emulator ends by itself.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn end(mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        let mut said = self.shared.said.lock().unwrap();
        while !said.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "The emulator still runs after {limit:?}");
            said = self.shared.more.wait_timeout(said, left).unwrap().0;
        }
        drop(said);
        self.child.wait().expect("our child")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|part| part == wanted)
}
