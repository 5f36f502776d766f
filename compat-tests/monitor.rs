//! A QMP client on a VM's standard input and output, for lines pasted as a person pastes them.
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a reply may take that needs no peer.
pub const PROMPT: Duration = Duration::from_secs(20);

/// An event with the time at which it was read.
#[derive(Clone, Debug)]
pub struct Event {
    /// When the client read it.
    pub at: Instant,
    /// When the VM says that it happened, since 1970.
    pub emitted: Duration,
    /// Its name.
    pub name: String,
    /// Its data, or null.
    pub data: Value,
}

#[derive(Default)]
struct State {
    greeting: Option<Value>,
    /// Replies not yet taken; requests carry no id, so the order tells which is whose.
    replies: VecDeque<Value>,
    events: Vec<Event>,
    /// Lines that are not JSON: a shell block may print before the monitor speaks.
    text: Vec<String>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A place in the stream of events: only later ones count.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

impl Mark {
    /// The beginning of the stream.
    pub const START: Self = Self(0);
}

/// The client.
pub struct Monitor {
    name: String,
    input: Box<dyn Write + Send>,
    shared: Arc<Shared>,
    /// The last pastes, and when they began.
    sent: VecDeque<(Instant, String)>,
}

/// Pastes that are remembered.
const KEPT: usize = 1024;

/// What a wait ended with instead of what was waited for.
#[derive(Debug)]
pub enum Failure {
    /// The time was over.
    Timeout(String),
    /// The VM closed its monitor.
    Closed(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Timeout(what) => write!(f, "timeout waiting for {what}"),
            Failure::Closed(what) => write!(f, "monitor closed while waiting for {what}"),
        }
    }
}

impl std::error::Error for Failure {}

impl Monitor {
    /// A client that writes requests to `input` and reads from `output` on a thread of its own. `name` is for messages.
    pub fn new(name: &str, input: impl Write + Send + 'static, output: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let (reader, tag) = (Arc::clone(&shared), name.to_string());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { break };
                trace(&tag, "<-", &line);
                reader.take_line(&line);
            }
            reader.state.lock().unwrap().closed = true;
            reader.changed.notify_all();
        });
        Self { name: name.into(), input: Box::new(input), shared, sent: VecDeque::new() }
    }

    /// Writes `text` as it is, in one write.
    ///
    /// # Errors
    /// If the VM is gone.
    pub fn paste(&mut self, text: &str) -> io::Result<()> {
        text.lines().for_each(|line| trace(&self.name, "->", line));
        if self.sent.len() == KEPT {
            self.sent.pop_front();
        }
        self.sent.push_back((Instant::now(), text.into()));
        self.input.write_all(text.as_bytes())?;
        self.input.flush()
    }

    /// When the last paste with `text` in it began, if that was not long ago.
    pub fn sent_at(&self, text: &str) -> Option<Instant> {
        self.sent.iter().rev().find(|(_, sent)| sent.contains(text)).map(|(at, _)| *at)
    }

    /// Waits for the greeting.
    ///
    /// # Errors
    /// If it does not come in time.
    pub fn greeting(&self, limit: Duration) -> Result<Value, Failure> {
        self.wait("the greeting", limit, |state| state.greeting.clone())
    }

    /// The next reply: `return` or `error`.
    ///
    /// # Errors
    /// If it does not come in time.
    pub fn reply(&self, what: &str, limit: Duration) -> Result<Value, Failure> {
        self.wait(&format!("the reply to {what}"), limit, |state| state.replies.pop_front())
    }

    /// Sends one request and returns what came back in `return`.
    ///
    /// # Panics
    /// If the answer is an error or does not come.
    pub fn command(&mut self, request: &str) -> Value {
        let mut reply = self.try_command(request).unwrap_or_else(|failure| panic!("{}: {failure}", self.name));
        assert!(reply.get("error").is_none(), "{}: {request} failed: {}", self.name, reply["error"]);
        reply["return"].take()
    }

    /// Sends one request and returns the whole reply.
    ///
    /// # Errors
    /// If it does not come.
    pub fn try_command(&mut self, request: &str) -> Result<Value, Failure> {
        self.paste(&format!("{request}\n")).map_err(|_| Failure::Closed(request.into()))?;
        self.reply(request, PROMPT)
    }

    /// Pastes a file's lines one by one, each after the reply to the one before.
    ///
    /// # Panics
    /// If one fails: an error, a missing reply, or a human monitor command that returns a text.
    pub fn lines(&mut self, text: &str, limit: Duration) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            self.paste(&format!("{line}\n")).unwrap_or_else(|error| panic!("{}: {line}: {error}", self.name));
            self.accept_reply(line, limit);
        }
    }

    /// Pastes a file in one write, then takes all replies.
    ///
    /// # Panics
    /// As [`lines`](Self::lines).
    pub fn all_at_once(&mut self, text: &str, limit: Duration) {
        self.paste(text).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            self.accept_reply(line, limit);
        }
    }

    fn accept_reply(&self, line: &str, limit: Duration) {
        let reply = self.reply(line, limit).unwrap_or_else(|failure| panic!("{}: {failure}", self.name));
        let accepted = reply["return"] == serde_json::json!({}) || reply["return"] == "";
        assert!(accepted, "{}: {line}\nwas answered with {reply}", self.name);
    }

    /// The present end of the stream of events.
    pub fn mark(&self) -> Mark {
        Mark(self.lock().events.len())
    }

    /// Waits for an event after `mark`.
    ///
    /// # Errors
    /// If it does not come in time.
    pub fn event(&self, name: &str, mark: Mark, limit: Duration) -> Result<Event, Failure> {
        self.wait(&format!("the event {name}"), limit, |state| {
            state.events.iter().skip(mark.0).find(|event| event.name == name).cloned()
        })
    }

    /// Waits until `count` events of this name have come after `mark`.
    ///
    /// # Errors
    /// If they do not come in time.
    pub fn events(&self, name: &str, count: usize, mark: Mark, limit: Duration) -> Result<(), Failure> {
        self.wait(&format!("{count} events {name}"), limit, |state| {
            (state.events.iter().skip(mark.0).filter(|event| event.name == name).count() >= count).then_some(())
        })
    }

    /// Events seen after `mark`.
    pub fn events_since(&self, mark: Mark) -> Vec<Event> {
        self.lock().events.iter().skip(mark.0).cloned().collect()
    }

    /// Number of checkpoints (pairs of STOP and RESUME) seen after `mark`.
    pub fn checkpoints_since(&self, mark: Mark) -> usize {
        self.events_since(mark).iter().filter(|event| event.name == "RESUME").count()
    }

    /// What came out that was no JSON.
    pub fn other_output(&self) -> Vec<String> {
        self.lock().text.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(value) = found(&mut state) {
                return Ok(value);
            }
            if state.closed {
                return Err(Failure::Closed(what.into()));
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(Failure::Timeout(what.into()));
            };
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Shared {
    fn take_line(&self, line: &str) {
        let mut state = self.state.lock().unwrap();
        match serde_json::from_str::<Value>(line) {
            Ok(value) if value.get("QMP").is_some() => state.greeting = Some(value),
            Ok(value) if value.get("event").is_some() => {
                let name = value["event"].as_str().unwrap_or_default().to_string();
                let part = |unit: &str| value["timestamp"][unit].as_u64().unwrap_or_default();
                let emitted = Duration::from_secs(part("seconds")) + Duration::from_micros(part("microseconds"));
                state.events.push(Event { at: Instant::now(), emitted, name, data: value["data"].clone() });
            }
            Ok(value) if value.get("return").is_some() || value.get("error").is_some() => {
                state.replies.push_back(value)
            }
            _ => state.text.push(line.into()),
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// Prints the dialogue when LOCKSTEP_TRACE is set.
fn trace(name: &str, direction: &str, line: &str) {
    if std::env::var_os("LOCKSTEP_TRACE").is_some() {
        eprintln!("{name} {direction} {line}");
    }
}
