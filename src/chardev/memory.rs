//! Loopback without the kernel: when a client of this machine connects to a listener of this machine, both ends exchange
//! their sockets for a pair of queues, before the first byte.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use rustix::net::Shutdown;
use tokio::sync::Notify;

use crate::shared::Shared;

/// Bytes in one direction beyond which nothing more is taken.
const LIMIT: usize = 1 << 20;

/// What a reader offers its writer instead of bytes: see [`crate::CharStream::offer_direct`].
pub(crate) type Direct = Arc<dyn Any + Send + Sync>;

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    state: Mutex<PipeState>,
    /// Something has come, or the end.
    pub readable: Notify,
    /// There is room again, or the end.
    pub writable: Notify,
}

#[derive(Debug, Default)]
struct PipeState {
    bytes: VecDeque<u8>,
    closed: bool,
    /// Set only while the reader has nothing to do: no bytes are here, and none are in its hands.
    direct: Option<Direct>,
}

impl Pipe {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        if state.bytes.is_empty() {
            return if state.closed { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        state.direct = None;
        let was_full = state.bytes.len() >= LIMIT;
        let n = io::Read::read(&mut state.bytes, buf)?;
        let m = if n < buf.len() { io::Read::read(&mut state.bytes, &mut buf[n..])? } else { 0 };
        if state.bytes.is_empty() {
            state.bytes.shrink_to(LIMIT / 4);
        }
        if was_full && state.bytes.len() < LIMIT {
            self.writable.notify_one();
        }
        Ok(n + m)
    }

    fn write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if state.bytes.len() >= LIMIT {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let was_empty = state.bytes.is_empty();
        let mut taken = 0;
        for slice in data {
            let n = slice.len().min(LIMIT.saturating_sub(state.bytes.len()));
            state.bytes.extend(&slice[..n]);
            taken += n;
            if n < slice.len() {
                break;
            }
        }
        drop(state);
        if was_empty && taken > 0 {
            self.readable.notify_one();
        }
        Ok(taken)
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        // Dropped with the lock free: nobody knows what it does then.
        let direct = state.direct.take();
        drop(state);
        drop(direct);
        self.readable.notify_one();
        self.writable.notify_one();
    }

    /// The reader, which has dealt with all that it read, offers a way past the bytes, unless more have come.
    pub fn offer(&self, direct: &Direct) {
        let mut state = self.state.lock();
        if state.bytes.is_empty() && !state.closed && state.direct.is_none() {
            state.direct = Some(direct.clone());
        }
    }

    /// The reader takes its offer back.
    pub fn withdraw(&self) {
        let direct = self.state.lock().direct.take();
        drop(direct);
    }

    /// What the reader offers, if nothing that was written is still on its way.
    pub fn direct(&self) -> Option<Direct> {
        let state = self.state.lock();
        state.direct.clone().filter(|_| state.bytes.is_empty())
    }

    /// Whether reading would not have to wait.
    pub fn is_readable(&self) -> bool {
        let state = self.state.lock();
        state.closed || !state.bytes.is_empty()
    }

    fn len(&self) -> usize {
        self.state.lock().bytes.len()
    }
}

/// One end of a pair.
#[derive(Debug)]
pub(crate) struct MemoryEnd {
    pub input: Arc<Pipe>,
    pub output: Arc<Pipe>,
    /// Stays connected, and says where to.
    pub socket: OwnedFd,
}

impl MemoryEnd {
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.input.read(buf)
    }

    pub fn write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        self.output.write(data)
    }

    /// Bytes that the other end has not read.
    pub fn unread(&self) -> usize {
        self.output.len()
    }

    pub fn shutdown(&self) {
        // What was written can still be read by the other end.
        self.output.close();
        self.input.close();
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

type Ends = (u64, SocketAddr, SocketAddr);

/// Connected TCP sockets by machine, own address and peer's address.
static CONNECTED: LazyLock<Mutex<HashMap<Ends, Weak<Shared>>>> = LazyLock::new(Mutex::default);

/// Notes a connection of `shared`; if its other end is a device of the same machine, makes a pair of them.
pub(crate) fn connected(shared: &Arc<Shared>) {
    let Some((_, link)) = shared.link() else { return };
    let Some((local, peer)) = link.addresses() else { return };
    let other = {
        let mut all = CONNECTED.lock();
        all.retain(|_, device| device.strong_count() > 0);
        all.insert((shared.realm, local, peer), Arc::downgrade(shared));
        all.get(&(shared.realm, peer, local)).and_then(Weak::upgrade)
    };
    if let Some(other) = other {
        Shared::pair(shared, &other);
    }
}
