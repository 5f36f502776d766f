//! A QMP client that asks again and again, and comes back when a VM was away.
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time between questions when nothing happens.
const PERIOD: Duration = Duration::from_millis(500);
/// Time until a VM that is away is tried again.
const AGAIN: Duration = Duration::from_millis(1000);
/// A VM that says nothing for so long is away.
const SILENCE: Duration = Duration::from_secs(5);
/// The longest line that a monitor may send, in bytes.
const LONGEST: u64 = 1 << 20;

/// What a monitor said.
#[derive(Clone, Debug)]
pub enum Update {
    /// It greeted.
    Connected,
    /// There is no connection.
    Lost {
        /// Since when, in seconds since 1970.
        at: f64,
        /// Why.
        why: String,
    },
    /// The answer to `query-status`.
    Status(Value),
    /// The answer to `query-colo-status`.
    Colo(Value),
    /// An event.
    Event {
        /// Seconds since 1970.
        at: f64,
        /// Its name.
        name: String,
        /// Its data, or null.
        data: Value,
    },
}

/// Asks the VM at `address` (a path, or HOST:PORT) until nobody listens to `updates` any more.
pub fn watch(address: &str, side: usize, updates: &Sender<(usize, Update)>) {
    loop {
        let ended = session(address, |update| updates.send((side, update)).is_ok());
        match ended {
            Ok(()) => return,
            Err(error) => {
                if updates.send((side, Update::Lost { at: now(), why: in_words(&error) })).is_err() {
                    return;
                }
            }
        }
        std::thread::sleep(AGAIN);
    }
}

/// Until `tell` says that nobody listens (then all is well), or the connection ends.
fn session(address: &str, mut tell: impl FnMut(Update) -> bool) -> io::Result<()> {
    let (reader, mut writer) = connect(address)?;
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut heard = Instant::now();
    let mut next = Instant::now() + SILENCE;
    let mut greeted = false;
    loop {
        if greeted && Instant::now() >= next {
            ask(&mut writer)?;
            next = Instant::now() + PERIOD;
        }
        match (&mut reader).take(LONGEST - line.len() as u64).read_until(b'\n', &mut line) {
            Ok(0) => return Err(io::Error::other("closed")),
            Ok(_) => heard = Instant::now(),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if heard.elapsed() > SILENCE {
                    return Err(io::Error::other("it says nothing"));
                }
                continue;
            }
            Err(error) => return Err(error),
        }
        if line.last() != Some(&b'\n') {
            if line.len() as u64 >= LONGEST {
                return Err(io::Error::other("that is no monitor"));
            }
            continue;
        }
        let value: Value = serde_json::from_slice(&line).map_err(|_| io::Error::other("that is no monitor"))?;
        line.clear();
        if value.get("QMP").is_some() {
            writer.write_all(b"{\"execute\": \"qmp_capabilities\"}\n")?;
            (greeted, next) = (true, Instant::now());
            if !tell(Update::Connected) {
                return Ok(());
            }
            continue;
        }
        let Some(update) = understand(value) else { continue };
        if matches!(&update, Update::Event { name, .. } if name == "RESUME" || name == "COLO_EXIT") {
            next = Instant::now();
        }
        if !tell(update) {
            return Ok(());
        }
    }
}

/// An error without its number.
fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_string()
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn ask(writer: &mut impl Write) -> io::Result<()> {
    let questions =
        ["query-status", "query-colo-status"].map(|name| format!("{}\n", json!({"execute": name, "id": name})));
    writer.write_all(questions.concat().as_bytes())
}

fn understand(mut value: Value) -> Option<Update> {
    if let Some(name) = value["event"].as_str() {
        let name = name.to_string();
        let part = |unit: &str| value["timestamp"][unit].as_f64().unwrap_or(0.0);
        let at = part("seconds") + part("microseconds") / 1e6;
        return Some(Update::Event { at, name, data: value["data"].take() });
    }
    match value["id"].as_str()? {
        "query-status" => Some(Update::Status(value["return"].take())),
        "query-colo-status" => Some(Update::Colo(value["return"].take())),
        _ => None,
    }
}

fn connect(address: &str) -> io::Result<(Box<dyn Read + Send>, Box<dyn Write + Send>)> {
    // Short, so that questions go out in time; silence is counted over many.
    let wait = Some(Duration::from_millis(100));
    if address.contains('/') || !address.contains(':') {
        let stream = UnixStream::connect(address)?;
        stream.set_read_timeout(wait)?;
        stream.set_write_timeout(Some(SILENCE))?;
        return Ok((Box::new(stream.try_clone()?), Box::new(stream)));
    }
    let found = address.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let stream = TcpStream::connect_timeout(&found, SILENCE)?;
    stream.set_read_timeout(wait)?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    Ok((Box::new(stream.try_clone()?), Box::new(stream)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A VM's end: says `says`, line by line as the client asks. Its socket is in the folder.
    fn serve(says: &'static [u8]) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("monitor").to_string_lossy().into_owned();
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(says).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        (folder, path)
    }

    #[test]
    fn answers_and_events_become_updates_and_the_rest_is_passed_over() {
        let (_folder, path) = serve(
            b"{\"QMP\": {}}\n{\"return\": {}}\n{\"id\": \"query-status\", \"return\": {\"status\": \"running\"}}\n\
              {\"event\": \"STOP\", \"timestamp\": {\"seconds\": 5, \"microseconds\": 500000}}\n{\"id\": 7, \"return\": 1}\n",
        );
        let mut seen = Vec::new();
        let ended = session(&path, |update| {
            seen.push(format!("{update:?}"));
            true
        });
        assert_eq!(ended.unwrap_err().to_string(), "closed");
        assert_eq!(seen[0], "Connected");
        assert!(seen[1].starts_with("Status(") && seen[1].contains("running"));
        assert!(seen[2].contains("at: 5.5") && seen[2].contains("STOP"));
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn what_is_no_monitor_is_not_listened_to() {
        let (_folder, path) = serve(b"HTTP/1.1 400 Bad Request\r\n");
        let ended = session(&path, |_| true);
        assert_eq!(ended.unwrap_err().to_string(), "that is no monitor");
    }
}
