//! The heart of a character device: the part that every thread may touch. It knows the connection of the moment, queues
//! what that does not take, and wakes whoever waits for a change.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::link::Link;
use crate::memory::{Direct, MemoryEnd, Pipe};

/// Bytes queued for a peer that does not read, beyond which nothing more is taken.
pub(crate) const QUEUE_LIMIT: usize = 1 << 20;
/// Slices given to one system call.
const MAX_SLICES: usize = 512;

#[derive(Debug)]
pub(crate) struct Shared {
    pub id: String,
    /// The machine that the device belongs to.
    pub realm: u64,
    state: Mutex<State>,
    /// The connection or the frontend has changed: for the task that reads.
    pub reader: Notify,
    /// The same, for the task that makes connections.
    pub backend: Notify,
    /// There is something in the queue.
    pub flush: Notify,
    /// The queue has become shorter or the connection is gone.
    pub room: Notify,
    /// The frontend takes input again.
    pub wanted: Notify,
    /// Frontends that were attached so far; odd while one is.
    attachments: AtomicUsize,
    /// Whether the frontend takes input.
    listening: AtomicBool,
    breaks: AtomicUsize,
    /// Bytes read on this connection.
    received: AtomicU64,
}

#[derive(Debug)]
struct State {
    link: Option<Arc<Link>>,
    /// Bytes taken for sending on this connection.
    accepted: u64,
    /// Counts connections.
    generation: u64,
    queue: VecDeque<u8>,
    filename: String,
    /// The name while nothing is connected.
    idle_filename: String,
    removed: bool,
    greeting: Vec<u8>,
    telnet: bool,
}

impl Shared {
    pub fn new(id: &str, idle_filename: String, realm: u64) -> Arc<Self> {
        Arc::new(Self {
            id: id.to_owned(),
            realm,
            state: Mutex::new(State {
                link: None,
                accepted: 0,
                generation: 0,
                queue: VecDeque::new(),
                filename: idle_filename.clone(),
                idle_filename,
                removed: false,
                greeting: Vec::new(),
                telnet: false,
            }),
            reader: Notify::new(),
            backend: Notify::new(),
            flush: Notify::new(),
            room: Notify::new(),
            wanted: Notify::new(),
            attachments: AtomicUsize::new(0),
            listening: AtomicBool::new(false),
            breaks: AtomicUsize::new(0),
            received: AtomicU64::new(0),
        })
    }

    /// A new connection; `filename` is how `query-chardev` names it.
    pub fn open(&self, link: Link, filename: String) {
        let mut state = self.state.lock();
        if state.removed {
            link.shutdown();
            return;
        }
        state.generation += 1;
        state.accepted = 0;
        self.received.store(0, Ordering::Release);
        state.queue.clear();
        state.filename = filename;
        let greeting = state.greeting.clone();
        state.queue.extend(greeting);
        let flush = !state.queue.is_empty();
        state.link = Some(Arc::new(link));
        drop(state);
        if flush {
            self.flush.notify_one();
        }
        self.reader.notify_one();
    }

    /// Two devices that are connected to each other talk through memory from now on, if nothing was said yet.
    pub fn pair(a: &Arc<Self>, b: &Arc<Self>) {
        // In the order of their places in memory, as everyone does who needs two.
        let (first, second) = if Arc::as_ptr(a) < Arc::as_ptr(b) { (a, b) } else { (b, a) };
        if Arc::ptr_eq(a, b) {
            return;
        }
        let (mut one, mut two) = (first.state.lock(), second.state.lock());
        let silent =
            |shared: &Self, state: &State| state.accepted == 0 && shared.received() == 0 && state.greeting.is_empty();
        let duplicate = |state: &State| match state.link.as_deref() {
            Some(Link::Socket(fd)) => fd.try_clone().ok(),
            _ => None,
        };
        if !silent(first, &one) || !silent(second, &two) {
            return;
        }
        let (Some(socket_one), Some(socket_two)) = (duplicate(&one), duplicate(&two)) else { return };
        let (to_one, to_two) = (Arc::<Pipe>::default(), Arc::<Pipe>::default());
        let end = |input: &Arc<Pipe>, output: &Arc<Pipe>, socket| {
            Arc::new(Link::Memory(MemoryEnd { input: input.clone(), output: output.clone(), socket }))
        };
        one.link = Some(end(&to_one, &to_two, socket_one));
        two.link = Some(end(&to_two, &to_one, socket_two));
        drop((one, two));
        first.reader.notify_one();
        second.reader.notify_one();
    }

    /// The connection with this number is over.
    pub fn close(&self, generation: u64) {
        let mut state = self.state.lock();
        if state.generation == generation && state.link.is_some() {
            self.close_locked(&mut state);
        }
    }

    fn close_locked(&self, state: &mut State) {
        if let Some(link) = state.link.take() {
            link.shutdown();
        }
        state.queue.clear();
        state.filename = state.idle_filename.clone();
        self.reader.notify_one();
        self.backend.notify_one();
        self.flush.notify_one();
        self.room.notify_waiters();
    }

    /// Ends the device for good.
    pub fn remove(&self) {
        let mut state = self.state.lock();
        state.removed = true;
        self.close_locked(&mut state);
    }

    pub fn is_removed(&self) -> bool {
        self.state.lock().removed
    }

    pub fn link(&self) -> Option<(u64, Arc<Link>)> {
        let state = self.state.lock();
        state.link.clone().map(|link| (state.generation, link))
    }

    pub fn filename(&self) -> String {
        self.state.lock().filename.clone()
    }

    pub fn set_idle_filename(&self, filename: String) {
        let mut state = self.state.lock();
        if state.link.is_none() {
            state.filename = filename.clone();
        }
        state.idle_filename = filename;
    }

    /// Speaks the telnet protocol: what is sent first on every connection.
    pub fn set_telnet(&self, greeting: &[u8]) {
        let mut state = self.state.lock();
        state.greeting = greeting.to_vec();
        state.telnet = true;
    }

    pub fn is_telnet(&self) -> bool {
        self.state.lock().telnet
    }

    /// Sends `data` now, or queues what does not go now. All or nothing is taken.
    ///
    /// # Errors
    /// `NotConnected`; `WouldBlock` while the queue is full; whatever ended the connection.
    pub fn send(&self, data: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.state.lock();
        let Some(link) = state.link.clone() else { return Err(io::ErrorKind::NotConnected.into()) };
        let total: usize = data.iter().map(|s| s.len()).sum();
        let mut skip = 0;
        if state.queue.is_empty() {
            match write_all(&link, data) {
                Ok(n) => skip = n,
                Err(e) => {
                    self.close_locked(&mut state);
                    return Err(e);
                }
            }
        } else if state.queue.len() >= QUEUE_LIMIT {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.accepted += total as u64;
        if skip == total {
            return Ok(());
        }
        for slice in data {
            let n = skip.min(slice.len());
            skip -= n;
            state.queue.extend(&slice[n..]);
        }
        drop(state);
        self.flush.notify_one();
        Ok(())
    }

    /// What the reader at the other end of a loopback offers instead of bytes, if all that was sent has been dealt with.
    pub fn direct(&self) -> Option<Direct> {
        let state = self.state.lock();
        match state.link.as_deref() {
            Some(Link::Memory(end)) if state.queue.is_empty() => end.output.direct(),
            _ => None,
        }
    }

    /// Moves queued bytes on: true if none are left.
    pub fn flush_queue(&self) -> bool {
        let mut state = self.state.lock();
        let Some(link) = state.link.clone() else { return true };
        while !state.queue.is_empty() {
            let (a, b) = state.queue.as_slices();
            match link.write(&[IoSlice::new(a), IoSlice::new(b)]) {
                Ok(n) => {
                    state.queue.drain(..n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.close_locked(&mut state);
                    return true;
                }
            }
        }
        let empty = state.queue.is_empty();
        if empty {
            state.queue.shrink_to(64 << 10);
        }
        drop(state);
        self.room.notify_waiters();
        empty
    }

    pub fn queued(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Bytes taken for sending on this connection.
    pub fn accepted(&self) -> u64 {
        self.state.lock().accepted
    }

    /// Bytes read on this connection.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    pub fn note_received(&self, count: usize) {
        self.received.fetch_add(count as u64, Ordering::AcqRel);
    }

    /// Bytes that the peer's kernel has not taken yet.
    pub fn unsent(&self) -> usize {
        let state = self.state.lock();
        state.queue.len() + state.link.as_ref().map_or(0, |link| link.unsent())
    }

    /// Takes the frontend's place, if it is free. The number tells this attachment from later ones.
    pub fn attach(&self) -> Option<usize> {
        let now = self.attachments.load(Ordering::Acquire);
        if now % 2 == 1 || self.is_removed() {
            return None;
        }
        self.attachments.compare_exchange(now, now + 1, Ordering::AcqRel, Ordering::Acquire).is_ok().then_some(now + 1)
    }

    pub fn detach(&self, attachment: usize) {
        let free = attachment + 1;
        if self.attachments.compare_exchange(attachment, free, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.listening.store(false, Ordering::Release);
            self.reader.notify_one();
            self.wanted.notify_one();
            self.flush.notify_one();
        }
    }

    /// Asks for a break on the line.
    pub fn send_break(&self) {
        self.breaks.fetch_add(1, Ordering::Relaxed);
        self.reader.notify_one();
    }

    pub fn take_break(&self) -> bool {
        self.breaks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
    }

    pub fn is_attached(&self) -> bool {
        self.attachments.load(Ordering::Acquire) % 2 == 1
    }

    /// The frontend takes input from now on.
    pub fn set_listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// Whether there is a frontend that takes input.
    pub fn is_listening(&self) -> bool {
        self.is_attached() && self.listening.load(Ordering::Acquire)
    }

    pub fn holds(&self, attachment: usize) -> bool {
        self.attachments.load(Ordering::Acquire) == attachment
    }
}

/// Writes until the link takes no more; how much it took.
fn write_all(link: &Link, data: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut done = 0;
    for group in data.chunks(MAX_SLICES) {
        let total: usize = group.iter().map(|s| s.len()).sum();
        let mut here = 0;
        while here < total {
            let mut skip = here;
            let mut rest: Vec<IoSlice<'_>> = Vec::new();
            let slices = if here == 0 {
                group
            } else {
                for slice in group {
                    let n = skip.min(slice.len());
                    skip -= n;
                    if n < slice.len() {
                        rest.push(IoSlice::new(&slice[n..]));
                    }
                }
                &rest
            };
            match link.write(slices) {
                Ok(0) => return Ok(done + here),
                Ok(n) => here += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(done + here),
                Err(e) => return Err(e),
            }
        }
        done += total;
    }
    Ok(done)
}
