//! A channel: blocking reads and writes that any other thread can break off.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A stream's transport. The descriptors do not block; waiting is done in `poll`, together with the signal that ends it.
#[derive(Debug)]
pub struct Channel {
    read: OwnedFd,
    write: Mutex<Option<Arc<OwnedFd>>>,
    socket: bool,
    tcp: bool,
    child: Mutex<Option<Child>>,
    yank: Yank,
}

/// Reads shorter than this are taken for messages, in bytes.
const SMALL: usize = 64 << 10;

/// Breaks a channel off from any thread: whoever waits on it gets an error at once, and so does everybody after.
#[derive(Clone, Debug)]
pub struct Yank {
    shared: Arc<YankShared>,
}

#[derive(Debug)]
struct YankShared {
    pulled: AtomicBool,
    wake: OwnedFd,
    socket: Mutex<Option<OwnedFd>>,
}

impl Yank {
    /// A signal without a channel yet (a connection being made).
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { shared: Arc::new(YankShared { pulled: AtomicBool::new(false), wake, socket: Mutex::new(None) }) })
    }

    /// Breaks it off.
    pub fn pull(&self) {
        self.shared.pulled.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        if let Some(socket) = &*self.shared.socket.lock() {
            let _ = shutdown(socket, Shutdown::Both);
        }
    }

    /// Whether it was broken off.
    pub fn is_pulled(&self) -> bool {
        self.shared.pulled.load(Ordering::SeqCst)
    }

    /// Waits until `fd` is ready, the signal is given, or the time is over.
    pub(super) fn wait(&self, fd: BorrowedFd<'_>, what: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
        loop {
            if self.is_pulled() {
                return Err(broken_off());
            }
            let left = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Err(io::ErrorKind::TimedOut.into()),
                left => left,
            };
            let timeout =
                left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            let mut fds = [PollFd::from_borrowed_fd(fd, what), PollFd::new(&self.shared.wake, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            if !fds[0].revents().is_empty() && !self.is_pulled() {
                return Ok(());
            }
        }
    }
}

fn broken_off() -> io::Error {
    io::Error::from_raw_os_error(libc::ECONNABORTED)
}

impl Channel {
    /// A connected socket, or any descriptor that is read and written alike.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn from_fd(fd: OwnedFd, yank: Yank) -> io::Result<Arc<Self>> {
        let socket = rustix::net::sockopt::socket_type(&fd).is_ok();
        let write = fd.try_clone()?;
        if socket {
            *yank.shared.socket.lock() = Some(fd.try_clone()?);
            // Messages of a checkpoint are small and each is waited for: they must not wait for one another.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&fd, true);
        }
        if yank.is_pulled() {
            return Err(broken_off());
        }
        Self::new(fd, write, socket, None, yank)
    }

    /// The ends of two pipes of a command.
    ///
    /// # Errors
    /// Those of setting the pipes up.
    pub fn from_pipes(read: OwnedFd, write: OwnedFd, child: Child, yank: Yank) -> io::Result<Arc<Self>> {
        Self::new(read, write, false, Some(child), yank)
    }

    fn new(read: OwnedFd, write: OwnedFd, socket: bool, child: Option<Child>, yank: Yank) -> io::Result<Arc<Self>> {
        for fd in [&read, &write] {
            let flags = fcntl_getfl(fd)?;
            fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
        }
        let tcp = socket && rustix::net::sockopt::tcp_nodelay(&read).is_ok();
        let write = Mutex::new(Some(Arc::new(write)));
        Ok(Arc::new(Self { read, write, socket, tcp, child: Mutex::new(child), yank }))
    }

    /// What breaks this channel off.
    pub fn yank(&self) -> &Yank {
        &self.yank
    }

    /// Whether messages can come back on it.
    pub fn is_socket(&self) -> bool {
        self.socket
    }

    /// Reads what is there, waiting for the first byte; 0 at the end.
    ///
    /// # Errors
    /// Those of reading, and `ConnectionAborted` when it was broken off.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_until(buf, None)
    }

    /// As [`read`](Self::read), but no longer than until `deadline`.
    ///
    /// # Errors
    /// Also `TimedOut`.
    pub fn read_until(&self, buf: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        loop {
            if self.yank.is_pulled() {
                return Err(broken_off());
            }
            match rustix::io::read(&self.read, &mut *buf) {
                Ok(n) => {
                    if self.tcp && n < SMALL {
                        // A peer that leaves Nagle's algorithm on sends the second half of what it has to say only when the first
                        // is acknowledged; without this that takes 40 ms.
                        let _ = rustix::net::sockopt::set_tcp_quickack(&self.read, true);
                    }
                    return Ok(n);
                }
                Err(rustix::io::Errno::AGAIN) => self.yank.wait(self.read.as_fd(), PollFlags::IN, deadline)?,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits until something can be read (also the end).
    ///
    /// # Errors
    /// As [`read_until`](Self::read_until).
    pub fn wait_readable(&self, deadline: Option<Instant>) -> io::Result<()> {
        self.yank.wait(self.read.as_fd(), PollFlags::IN, deadline)
    }

    /// Writes all of the pieces, one after the other.
    ///
    /// # Errors
    /// Those of writing, and `ConnectionAborted` when it was broken off.
    pub fn write_all(&self, pieces: &[&[u8]]) -> io::Result<()> {
        let fd = self.write.lock().clone().ok_or_else(broken_off)?;
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|p| IoSlice::new(p)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            if self.yank.is_pulled() {
                return Err(broken_off());
            }
            match self.write_some(&fd, rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut rest, n),
                Err(rustix::io::Errno::AGAIN) => self.yank.wait(fd.as_fd(), PollFlags::OUT, None)?,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Writes all of a few bytes, or none of the rest: it does not wait for room.
    ///
    /// # Errors
    /// Those of writing, `WouldBlock` when there is no room, and `ConnectionAborted` when it was broken off.
    pub fn write_at_once(&self, mut bytes: &[u8]) -> io::Result<()> {
        let fd = self.write.lock().clone().ok_or_else(broken_off)?;
        while !bytes.is_empty() {
            if self.yank.is_pulled() {
                return Err(broken_off());
            }
            match rustix::io::retry_on_intr(|| self.write_some(&fd, &[IoSlice::new(bytes)])) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn write_some(&self, fd: &OwnedFd, pieces: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
        match pieces {
            [one] if self.socket => send(fd, one, SendFlags::NOSIGNAL),
            many => rustix::io::writev(fd, many),
        }
    }

    /// Another descriptor of the reading side, to wait on elsewhere.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.read.try_clone()
    }

    /// How many written bytes the peer has not acknowledged; 0 where that is not known.
    pub fn unacknowledged(&self) -> usize {
        let mut count: libc::c_int = 0;
        // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one int to the pointer, which is valid for that; the descriptor is open.
        let done = unsafe { libc::ioctl(self.read.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
        if self.socket && done == 0 { count.max(0) as usize } else { 0 }
    }

    /// Ends the writing side and, if a command was fed, waits for it.
    ///
    /// # Errors
    /// When the command failed.
    pub fn finish(&self) -> io::Result<()> {
        let child = self.child.lock().take();
        let write = self.write.lock().take();
        if let (true, Some(fd)) = (self.socket, &write) {
            let _ = shutdown(&**fd, Shutdown::Write);
        }
        // A command goes on until its input ends.
        drop(write);
        if let Some(mut child) = child {
            let status = child.wait()?;
            if !status.success() {
                return Err(io::Error::other("Command exited with an error"));
            }
        }
        Ok(())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(child) = self.child.get_mut() {
            // Nobody waits for it any more: the stream was given up.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.yank.shared.socket.lock().take();
    }
}
