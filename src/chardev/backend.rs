//! Making the thing behind a character device from its description in the schema.

mod file;
mod pty;
pub(crate) mod socket;
pub(crate) mod stdio;

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;

use lockstep_qapi::schema::ChardevBackend;
use lockstep_util::{Result, bail};
use parking_lot::Mutex;

use crate::link::Link;
use crate::ringbuf::RingBuffer;
use crate::shared::Shared;

/// A task that makes connections for a device.
pub(crate) type Driver = Box<dyn FnOnce(Arc<Shared>) -> Pin<Box<dyn Future<Output = ()>>>>;

/// A backend that can be put behind a device.
pub(crate) struct Backend {
    /// Its name in `query-chardev` while nothing is connected.
    pub idle_filename: String,
    /// What is connected from the start, and its name.
    pub link: Option<(Link, String)>,
    pub driver: Option<Driver>,
    /// It connects again after the peer has gone (a socket).
    pub reconnectable: bool,
    /// It can be used from an iothread.
    pub switches_context: bool,
    /// It holds a peer that may hang.
    pub yankable: bool,
    pub telnet: bool,
    /// The name of the terminal that was made.
    pub pty: Option<String>,
    /// What lives as long as the device.
    pub keep: Option<Box<dyn Any>>,
}

impl Backend {
    fn of_link(link: Link, name: &str) -> Self {
        Self {
            idle_filename: name.to_owned(),
            link: Some((link, name.to_owned())),
            driver: None,
            reconnectable: false,
            switches_context: true,
            yankable: false,
            telnet: false,
            pty: None,
            keep: None,
        }
    }
}

/// Makes a backend; `wait_by_default` is what `wait` is for a listening socket that does not say.
pub(crate) async fn make(id: &str, description: ChardevBackend) -> Result<Backend> {
    let common = match &description {
        ChardevBackend::Socket(w) => w.data.logfile.is_some(),
        ChardevBackend::File(w) => w.data.logfile.is_some(),
        ChardevBackend::Stdio(w) => w.data.logfile.is_some(),
        ChardevBackend::Null(w) => w.data.logfile.is_some(),
        ChardevBackend::Pty(w) => w.data.logfile.is_some(),
        _ => false,
    };
    if common {
        bail!("'logfile' is not supported");
    }
    match description {
        ChardevBackend::Socket(w) => socket::make(id, w.data).await,
        ChardevBackend::File(w) => file::make(&w.data),
        ChardevBackend::Pipe(w) => file::make_pipe(&w.data.device),
        ChardevBackend::Udp(w) => socket::make_udp(w.data).await,
        ChardevBackend::Pty(w) => pty::make(w.data.path.as_deref()),
        ChardevBackend::Null(_) => Ok(Backend::of_link(Link::Null, "null")),
        ChardevBackend::Stdio(w) => stdio::make(w.data.signal.unwrap_or(true)),
        ChardevBackend::Ringbuf(w) => ring(w.data.size, "ringbuf"),
        ChardevBackend::Memory(w) => ring(w.data.size, "memory"),
        ChardevBackend::Mux(_) => bail!("a multiplexer is made of a device"),
        // A text console that no display shows.
        ChardevBackend::Vc(_) => Ok(Backend::of_link(Link::Null, "vc")),
    }
}

fn ring(size: Option<i64>, name: &str) -> Result<Backend> {
    let size = size.unwrap_or(65536);
    match usize::try_from(size) {
        Ok(size) if size.is_power_of_two() && size <= 1 << 30 => {
            Ok(Backend::of_link(Link::Ring(Mutex::new(RingBuffer::new(size))), name))
        }
        _ => bail!("size of ringbuf chardev must be power of two"),
    }
}
