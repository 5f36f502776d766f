//! What uses a character device: a writer for any thread, and a stream of input and events on the user's own context.

use std::any::Any;
use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use lockstep_event::ContextHandle;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::link::Link;
use crate::memory::Pipe;
use crate::poll::register;
use crate::shared::Shared;
use crate::telnet::Telnet;

/// Bytes read from a device at a time for a frontend with handlers.
const READ_SIZE: usize = 16 << 10;

/// What happened on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CharEvent {
    /// A peer has connected.
    Opened,
    /// The peer has gone.
    Closed,
    /// A break on a serial line, or asked for on a multiplexer.
    Break,
}

/// What a frontend does with its device. Called on the context given to [`CharFrontend::start`].
pub struct CharHandlers {
    /// How many bytes the frontend takes now. After zero, it calls [`CharFrontend::accept_input`] when it takes more.
    pub can_read: Box<dyn FnMut() -> usize + Send>,
    /// Takes bytes, never more than asked for.
    pub read: Box<dyn FnMut(&[u8]) + Send>,
    /// Hears of connections. A connection that exists already is told of first.
    pub event: Box<dyn FnMut(CharEvent) + Send>,
}

/// The place of a device's one user. Dropping it gives the device free.
#[derive(Debug)]
pub struct CharFrontend {
    shared: Arc<Shared>,
    attachment: usize,
}

impl CharFrontend {
    pub(crate) fn new(shared: Arc<Shared>, attachment: usize) -> Self {
        Self { shared, attachment }
    }

    /// The device's id.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Whether a peer is connected.
    pub fn is_open(&self) -> bool {
        self.shared.link().is_some()
    }

    /// Writes; false if the bytes were lost because nobody is connected or the peer has not read for long.
    pub fn write(&self, data: &[u8]) -> bool {
        self.shared.send(&[IoSlice::new(data)]).is_ok()
    }

    /// A way to write that outlives borrowing this.
    pub fn writer(&self) -> CharWriter {
        CharWriter { shared: self.shared.clone() }
    }

    /// Starts reading on `context`.
    pub fn start(&self, context: &ContextHandle, handlers: CharHandlers) {
        self.shared.set_listening();
        let (shared, attachment) = (self.shared.clone(), self.attachment);
        context.spawn(move || async move { serve(CharStream::new(shared, attachment, false), handlers).await });
    }

    /// For a frontend that only writes: moves what the peer does not take at once, and notices when it goes, on the calling
    /// context.
    ///
    /// # Panics
    /// Outside a context.
    pub fn start_output(&self) {
        let stopped = Rc::new(Cell::new(false));
        tokio::task::spawn_local(flush(self.shared.clone(), self.attachment, stopped));
        tokio::task::spawn_local(watch(self.shared.clone(), self.attachment));
        self.shared.flush.notify_one();
    }

    /// To be called when `can_read` would no longer say zero. From any thread.
    pub fn accept_input(&self) {
        self.shared.wanted.notify_one();
    }

    /// Turns into a stream on the calling context.
    ///
    /// # Panics
    /// Outside a context.
    pub fn into_stream(self) -> CharStream {
        self.shared.set_listening();
        self.into_output()
    }

    /// Turns into a stream that is written to, and read only to notice the end.
    ///
    /// # Panics
    /// Outside a context.
    pub fn into_output(self) -> CharStream {
        let stream = CharStream::new(self.shared.clone(), self.attachment, true);
        std::mem::forget(self);
        stream
    }
}

impl Drop for CharFrontend {
    fn drop(&mut self) {
        self.shared.detach(self.attachment);
    }
}

/// Writes to a device from any thread, without ever blocking.
#[derive(Clone, Debug)]
pub struct CharWriter {
    shared: Arc<Shared>,
}

impl CharWriter {
    /// Sends the slices as one piece, now or, as far as the peer takes no more, later. All or nothing is taken.
    ///
    /// # Errors
    /// `NotConnected`; `WouldBlock` while the queue of a peer that does not read is full; whatever ended the connection.
    pub fn send(&self, data: &[IoSlice<'_>]) -> io::Result<()> {
        self.shared.send(data)
    }

    /// The first of the descriptors that came with what was read last (a Unix socket); the others are closed.
    pub fn take_passed_fd(&self) -> Option<OwnedFd> {
        self.shared.link()?.1.take_passed_fd()
    }

    /// Whether a peer is connected.
    pub fn is_open(&self) -> bool {
        self.shared.link().is_some()
    }

    /// Bytes waiting in the queue of this process.
    pub fn queued(&self) -> usize {
        self.shared.queued()
    }

    /// Bytes that have not reached the peer's kernel: the queue, and for a socket its unacknowledged send buffer
    /// (`SIOCOUTQ`).
    pub fn unsent(&self) -> usize {
        self.shared.unsent()
    }

    /// Bytes taken for sending on this connection, sent or queued.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted()
    }

    /// What the reader at the other end of a loopback of this process offers instead of bytes (see
    /// [`CharStream::offer_direct`]), if it is of this type and all that was sent before has been dealt with: then what is
    /// handed over this way comes after it. For the only writer of the device.
    pub fn direct<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.shared.direct()?.downcast().ok()
    }

    /// Waits until the queue has become shorter or the connection is gone.
    pub async fn progress(&self) {
        let notified = self.shared.room.notified();
        if self.shared.queued() > 0 {
            notified.await;
        }
    }
}

/// What a stream has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// A peer has connected.
    Opened,
    /// The peer has gone.
    Closed,
    /// There may be something to read.
    Readable,
    /// A break was asked for.
    Break,
    /// The frontend was dropped, or the device was removed.
    Detached,
}

/// Input and events of a device, on the context where it was made. Dropping it gives the device free.
#[derive(Debug)]
pub struct CharStream {
    shared: Arc<Shared>,
    attachment: usize,
    owns: bool,
    port: Option<Port>,
    telnet: Option<Telnet>,
    stopped: Rc<Cell<bool>>,
}

#[derive(Debug)]
struct Port {
    generation: u64,
    link: Arc<Link>,
    input: Input,
}

#[derive(Debug)]
enum Input {
    /// A descriptor that can be waited on.
    Polled(AsyncFd<OwnedFd>),
    /// The other end is in this process.
    Memory(Arc<Pipe>),
    /// A regular file: always readable.
    Always,
    /// Nothing ever comes.
    Never,
}

impl CharStream {
    fn new(shared: Arc<Shared>, attachment: usize, owns: bool) -> Self {
        let stopped = Rc::new(Cell::new(false));
        tokio::task::spawn_local(flush(shared.clone(), attachment, stopped.clone()));
        // Whatever was signalled before concerns us too.
        shared.flush.notify_one();
        Self { shared, attachment, owns, port: None, telnet: None, stopped }
    }

    /// The device's id.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// A way to write.
    pub fn writer(&self) -> CharWriter {
        CharWriter { shared: self.shared.clone() }
    }

    /// Whether a peer is connected and [`CharStream::event`] has told so.
    pub fn is_open(&self) -> bool {
        self.port.is_some()
    }

    /// Waits for what comes next. `Readable` only if `want_input`. Cancel-safe.
    pub async fn event(&mut self, want_input: bool) -> StreamEvent {
        loop {
            if !self.shared.holds(self.attachment) || self.shared.is_removed() {
                self.port = None;
                return StreamEvent::Detached;
            }
            if self.shared.take_break() {
                return StreamEvent::Break;
            }
            let current = self.shared.link();
            match (&self.port, &current) {
                (Some(port), current) if current.as_ref().is_none_or(|(g, _)| *g != port.generation) => {
                    self.port = None;
                    return StreamEvent::Closed;
                }
                // The same connection, by another way: nothing has been said on it yet.
                (Some(port), Some((_, link))) if !Arc::ptr_eq(&port.link, link) => {
                    let (generation, link) = (port.generation, link.clone());
                    self.port = Some(Port { generation, input: Input::new(&link), link });
                }
                (None, Some((generation, link))) => {
                    self.telnet = self.shared.is_telnet().then(Telnet::default);
                    self.port = Some(Port { generation: *generation, link: link.clone(), input: Input::new(link) });
                    return StreamEvent::Opened;
                }
                _ => {}
            }
            let changed = self.shared.reader.notified();
            match self.port.as_ref().map(|port| &port.input).filter(|_| want_input) {
                Some(Input::Polled(fd)) => tokio::select! {
                    biased;
                    () = changed => {}
                    ready = fd.readable() => {
                        if let Ok(mut guard) = ready {
                            guard.retain_ready();
                            return StreamEvent::Readable;
                        }
                        self.close();
                    }
                },
                Some(Input::Memory(pipe)) => {
                    if pipe.is_readable() {
                        tokio::task::yield_now().await;
                        return StreamEvent::Readable;
                    }
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = pipe.readable.notified() => {}
                    }
                }
                Some(Input::Always) => {
                    tokio::task::yield_now().await;
                    return StreamEvent::Readable;
                }
                Some(Input::Never) | None => changed.await,
            }
        }
    }

    /// Reads what is there now.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there, or nobody is connected. At the end of the connection 0 is read, once, and
    /// [`CharStream::event`] says `Closed` next.
    pub fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(port) = &self.port else { return Err(io::ErrorKind::WouldBlock.into()) };
        let result = port.link.read(buf);
        let is_empty = match &result {
            // A stream socket gives all that it has, as far as there is room.
            Ok(n) => matches!(*port.link, Link::Socket(_)) && 0 < *n && *n < buf.len(),
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        };
        if let Input::Polled(fd) = &port.input
            && is_empty
        {
            // Tells tokio that there is nothing any more, so that it waits for the next news.
            let _ = fd.try_io(Interest::READABLE, |_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
        if let Ok(n) = result {
            self.shared.note_received(n);
        }
        match result {
            Ok(n) if n > 0 => match &mut self.telnet {
                Some(telnet) => match telnet.strip(&mut buf[..n]) {
                    0 => Err(io::ErrorKind::WouldBlock.into()),
                    n => Ok(n),
                },
                None => Ok(n),
            },
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(e),
            // Nothing more will be typed, but whoever reads the output is still there.
            Ok(0) if port.link.outlives_its_input() => {
                if let Some(port) = &mut self.port {
                    port.input = Input::Never;
                }
                Err(io::ErrorKind::WouldBlock.into())
            }
            // A connection that was reset has ended like any other.
            _ => {
                self.close();
                Ok(0)
            }
        }
    }

    /// Offers the writer at the other end of a loopback of this process a way past the bytes, and past this stream's
    /// thread: what `direct` is, both have to agree on. To be called when all that was read has been dealt with; what is
    /// written as bytes after all ends the offer until then. Does nothing on other connections.
    pub fn offer_direct(&self, direct: &Arc<dyn Any + Send + Sync>) {
        if let Some(Port { input: Input::Memory(pipe), .. }) = &self.port {
            pipe.offer(direct);
        }
    }

    /// Bytes read on this connection so far.
    pub fn received(&self) -> u64 {
        self.shared.received()
    }

    /// Has the kernel acknowledge at once what was read (TCP), for a sender that waits until all of it has arrived.
    pub fn acknowledge_now(&self) {
        if let Some(port) = &self.port {
            port.link.acknowledge_now();
        }
    }

    fn close(&mut self) {
        if let Some(port) = &self.port {
            self.shared.close(port.generation);
        }
    }
}

impl Drop for CharStream {
    fn drop(&mut self) {
        if let Some(Port { input: Input::Memory(pipe), .. }) = &self.port {
            pipe.withdraw();
        }
        self.stopped.set(true);
        self.shared.flush.notify_one();
        if self.owns {
            self.shared.detach(self.attachment);
        }
    }
}

impl Input {
    fn new(link: &Link) -> Self {
        if let Link::Memory(end) = link {
            return Self::Memory(end.input.clone());
        }
        let Some(fd) = link.read_fd() else { return Self::Never };
        // A descriptor of its own: the same device may be registered twice for a moment, when its user changes.
        match fd.try_clone_to_owned().and_then(|fd| register(fd, Interest::READABLE)) {
            Ok(fd) => Self::Polled(fd),
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => Self::Always,
            Err(_) => Self::Never,
        }
    }
}

/// Moves queued output on as the peer takes it.
async fn flush(shared: Arc<Shared>, attachment: usize, stopped: Rc<Cell<bool>>) {
    loop {
        shared.flush.notified().await;
        while !shared.flush_queue() {
            let Some((_, link)) = shared.link() else { break };
            if let Link::Memory(end) = &*link {
                tokio::select! {
                    () = end.output.writable.notified() => {}
                    () = shared.flush.notified() => {}
                }
                if stopped.get() {
                    break;
                }
                continue;
            }
            let Some(Ok(fd)) = link.write_fd().map(|fd| fd.try_clone_to_owned()) else { break };
            let Ok(fd) = register(fd, Interest::WRITABLE) else { break };
            drop(link);
            tokio::select! {
                ready = fd.writable() => drop(ready),
                // Closed or stopped.
                () = shared.flush.notified() => {}
            }
            if stopped.get() {
                break;
            }
        }
        if stopped.get() || !shared.holds(attachment) {
            // There may be a successor already: what woke us may have been meant for it.
            shared.flush.notify_one();
            return;
        }
    }
}

/// Ends connections whose peer has gone, for a frontend that never reads: otherwise the next thing that it says would be lost
/// before anybody knows, and a client would not connect again until then.
async fn watch(shared: Arc<Shared>, attachment: usize) {
    while shared.holds(attachment) && !shared.is_removed() {
        let changed = shared.reader.notified();
        let connection = shared.link().and_then(|(generation, link)| {
            let (Link::Socket(fd) | Link::Local { fd, .. }) = &*link else { return None };
            Some((generation, register(fd.try_clone().ok()?, Interest::READABLE).ok()?))
        });
        match connection {
            Some((generation, fd)) => tokio::select! {
                biased;
                () = changed => {}
                () = hung_up(&fd) => shared.close(generation),
            },
            None => changed.await,
        }
    }
    // As in `flush`.
    shared.reader.notify_one();
}

/// Waits until the peer of a socket will say nothing more. What it has said stays unread.
async fn hung_up(fd: &AsyncFd<OwnedFd>) {
    while let Ok(mut guard) = fd.ready(Interest::READABLE).await {
        if guard.ready().is_read_closed() {
            return;
        }
        guard.clear_ready();
    }
}

/// Runs a frontend's handlers.
async fn serve(mut stream: CharStream, mut handlers: CharHandlers) {
    let mut buf = vec![0; READ_SIZE];
    loop {
        let room = if stream.is_open() { (handlers.can_read)().min(READ_SIZE) } else { 0 };
        let shared = stream.shared.clone();
        let event = tokio::select! {
            event = stream.event(room > 0) => event,
            () = shared.wanted.notified(), if room == 0 => continue,
        };
        match event {
            StreamEvent::Opened => (handlers.event)(CharEvent::Opened),
            StreamEvent::Closed => (handlers.event)(CharEvent::Closed),
            StreamEvent::Break => (handlers.event)(CharEvent::Break),
            StreamEvent::Detached => return,
            StreamEvent::Readable => {
                if let Ok(n) = stream.try_read(&mut buf[..room])
                    && n > 0
                {
                    (handlers.read)(&buf[..n]);
                }
            }
        }
    }
}
