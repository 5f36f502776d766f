//! What a character device is connected to right now: descriptors, a ring buffer, or nothing at all.
//!
//! No operation blocks. Standard input and output are shared with other processes, so their descriptors stay in blocking
//! mode and are asked with poll(2) before each transfer.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, Shutdown, recvmsg};

use crate::memory::MemoryEnd;
use crate::ringbuf::RingBuffer;

/// Descriptors that one message may bring; more are closed by the kernel.
const MAX_PASSED: usize = 16;
/// How much poll(2) promises a pipe to take without blocking.
const PIPE_BUF: usize = 4096;

/// A connection.
#[derive(Debug)]
pub(crate) enum Link {
    /// A stream socket in non-blocking mode.
    Socket(OwnedFd),
    /// The same in the Unix domain: descriptors come with the bytes.
    Local { fd: OwnedFd, passed: Mutex<VecDeque<OwnedFd>> },
    /// A datagram socket in non-blocking mode: one write is one packet.
    Datagram(OwnedFd),
    /// Standard input and output: the end of one is not the end of the other.
    Standard { read: OwnedFd, write: OwnedFd },
    /// Descriptors that may be in blocking mode.
    Files { read: Option<OwnedFd>, write: Option<OwnedFd> },
    /// Swallows everything.
    Null,
    /// Keeps the newest bytes.
    Ring(Mutex<RingBuffer>),
    /// The other end is in this process.
    Memory(MemoryEnd),
}

impl Link {
    /// The descriptor to wait on for input.
    pub fn read_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Socket(fd) | Self::Local { fd, .. } | Self::Datagram(fd) => Some(fd.as_fd()),
            Self::Standard { read, .. } => Some(read.as_fd()),
            Self::Files { read, .. } => read.as_ref().map(AsFd::as_fd),
            Self::Null | Self::Ring(_) | Self::Memory(_) => None,
        }
    }

    /// The descriptor to wait on for room to write.
    pub fn write_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Socket(fd) | Self::Local { fd, .. } | Self::Datagram(fd) => Some(fd.as_fd()),
            Self::Standard { write, .. } => Some(write.as_fd()),
            Self::Files { write, .. } => write.as_ref().map(AsFd::as_fd),
            Self::Null | Self::Ring(_) | Self::Memory(_) => None,
        }
    }

    /// Reads what is there: `WouldBlock` if nothing is, 0 at the end.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(fd) | Self::Datagram(fd) => retry(|| rustix::io::read(fd, &mut *buf)),
            Self::Local { fd, passed } => receive(fd, passed, buf),
            Self::Standard { read: fd, .. } | Self::Files { read: Some(fd), .. } => {
                ready(fd.as_fd(), PollFlags::IN)?;
                // The end of the other side of a terminal is an error, not an end of file.
                match retry(|| rustix::io::read(fd, &mut *buf)) {
                    Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
                    other => other,
                }
            }
            Self::Memory(end) => end.read(buf),
            Self::Files { read: None, .. } | Self::Null | Self::Ring(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes as much as goes: `WouldBlock` if nothing does.
    pub fn write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Socket(fd) | Self::Local { fd, .. } | Self::Datagram(fd) => {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                retry(|| rustix::net::sendmsg(fd, data, &mut Default::default(), flags))
            }
            Self::Standard { write: fd, .. } | Self::Files { write: Some(fd), .. } => {
                ready(fd.as_fd(), PollFlags::OUT)?;
                let Some(first) = data.iter().find(|s| !s.is_empty()) else { return Ok(0) };
                let first = &first[..first.len().min(PIPE_BUF)];
                retry(|| rustix::io::write(fd, first))
            }
            Self::Memory(end) => end.write(data),
            Self::Files { write: None, .. } | Self::Null => Ok(data.iter().map(|s| s.len()).sum()),
            Self::Ring(ring) => {
                let mut ring = ring.lock();
                data.iter().for_each(|slice| ring.push(slice));
                Ok(data.iter().map(|s| s.len()).sum())
            }
        }
    }

    /// A stream socket.
    pub fn of_socket(fd: OwnedFd) -> Self {
        match rustix::net::sockopt::socket_domain(&fd) {
            Ok(AddressFamily::UNIX) => Self::Local { fd, passed: Mutex::default() },
            _ => Self::Socket(fd),
        }
    }

    /// Takes the first of the descriptors that came last; the others are closed.
    pub fn take_passed_fd(&self) -> Option<OwnedFd> {
        match self {
            Self::Local { passed, .. } => std::mem::take(&mut *passed.lock()).pop_front(),
            _ => None,
        }
    }

    /// Whether writing goes on after the end of the input.
    pub fn outlives_its_input(&self) -> bool {
        matches!(self, Self::Standard { .. })
    }

    /// Ends the connection for both sides, from any thread.
    pub fn shutdown(&self) {
        match self {
            Self::Socket(fd) | Self::Local { fd, .. } | Self::Datagram(fd) => {
                let _ = rustix::net::shutdown(fd, Shutdown::Both);
            }
            Self::Memory(end) => end.shutdown(),
            _ => {}
        }
    }

    /// Sends an acknowledgement that TCP would delay.
    pub fn acknowledge_now(&self) {
        if let Self::Socket(fd) = self {
            // Not a TCP socket: then there is nothing to acknowledge.
            let _ = rustix::net::sockopt::set_tcp_quickack(fd, true);
        }
    }

    /// The two addresses of a socket with addresses: ours, the peer's.
    pub fn addresses(&self) -> Option<(std::net::SocketAddr, std::net::SocketAddr)> {
        let (Self::Socket(fd) | Self::Memory(MemoryEnd { socket: fd, .. })) = self else { return None };
        let socket = socket2::SockRef::from(fd);
        Some((socket.local_addr().ok()?.as_socket()?, socket.peer_addr().ok()?.as_socket()?))
    }

    /// Bytes written that the peer's kernel has not taken yet (0 where nobody knows).
    pub fn unsent(&self) -> usize {
        let fd = match self {
            Self::Socket(fd) | Self::Local { fd, .. } => fd,
            Self::Memory(end) => return end.unread(),
            _ => return 0,
        };
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ (the same number as SIOCOUTQ) writes one int to the pointer, which is valid for that.
        let done = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(fd), libc::TIOCOUTQ, &raw mut bytes) };
        if done == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
    }
}

/// Reads, and keeps the descriptors that came along: those of the newest message that brought any.
fn receive(fd: &OwnedFd, passed: &Mutex<VecDeque<OwnedFd>>, buf: &mut [u8]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry(|| {
        recvmsg(fd, &mut [IoSliceMut::new(buf)], &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
    })?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            *passed.lock() = fds.collect();
        }
    }
    Ok(message.bytes)
}

fn ready(fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<()> {
    let mut fds = [PollFd::new(&fd, flags)];
    let n = retry(|| poll(&mut fds, Some(&rustix::time::Timespec::default())))?;
    if n == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
}

fn retry<T>(mut f: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match f() {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}
