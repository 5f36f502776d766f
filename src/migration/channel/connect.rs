//! Opening the sending end.

use super::{Address, Channel, FdSource, InetAddress, Yank};
use lockstep_util::{Error, Result, ResultExt, err};
use rustix::event::PollFlags;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// A channel, or what is left to do for it, which may take long and belongs on a thread.
#[derive(Debug)]
pub enum Opening {
    /// It is open.
    Done(Arc<Channel>),
    /// A connection to be made.
    Connect(Connect),
}

/// A connection to be made.
#[derive(Debug)]
pub struct Connect {
    target: Target,
    yank: Yank,
}

#[derive(Debug)]
enum Target {
    Tcp(InetAddress),
    Unix(PathBuf),
}

/// Opens the sending end of an address; the connection of a socket is left to [`Connect::connect`].
///
/// # Errors
/// QEMU's texts.
pub fn open(address: &Address, fds: &dyn FdSource, yank: Yank) -> Result<Opening> {
    let channel = match address {
        Address::Tcp(inet) => return Ok(Opening::Connect(Connect { target: Target::Tcp(inet.clone()), yank })),
        Address::Unix(path) => return Ok(Opening::Connect(Connect { target: Target::Unix(path.clone()), yank })),
        Address::Fd(name) => Channel::from_fd(fds.take_fd(name)?, yank),
        Address::File { path, offset } => {
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)
                .context(format_args!("Could not create '{}'", path.display()))?;
            file.set_len(*offset).context("failed to truncate migration file to offset")?;
            file.seek(SeekFrom::Start(*offset)).context("Failed to seek")?;
            Channel::from_fd(file.into(), yank)
        }
        Address::Exec(words) => spawn(words, yank),
    };
    channel.map(Opening::Done).map_err(|e| Error::with_errno("Failed to open the migration channel", &e))
}

/// Starts a command with pipes to its standard input and from its standard output.
pub(super) fn spawn(words: &[String], yank: Yank) -> io::Result<Arc<Channel>> {
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    match pipes(&mut child) {
        Some((read, write)) => Channel::from_pipes(read, write, child, yank),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

fn pipes(child: &mut Child) -> Option<(OwnedFd, OwnedFd)> {
    Some((child.stdout.take()?.into(), child.stdin.take()?.into()))
}

impl Connect {
    /// Makes the connection; blocks until it stands, fails, or is broken off.
    ///
    /// # Errors
    /// `Failed to connect to '...': ...`, or that the host is not known.
    pub fn connect(self) -> Result<Arc<Channel>> {
        let yank = self.yank.clone();
        let fd = match &self.target {
            Target::Tcp(inet) => self.connect_tcp(inet)?,
            Target::Unix(path) => {
                let stream =
                    UnixStream::connect(path).context(format_args!("Failed to connect to '{}'", path.display()))?;
                stream.into()
            }
        };
        Channel::from_fd(fd, yank).context("Failed to set up the migration channel")
    }

    fn connect_tcp(&self, inet: &InetAddress) -> Result<OwnedFd> {
        let mut last = err!("address resolution failed for {}:{}: No address", inet.host, inet.port);
        for address in resolve(inet)? {
            match self.connect_to(address) {
                Ok(socket) => {
                    if inet.keep_alive {
                        let _ = socket.set_keepalive(true);
                    }
                    return Ok(socket.into());
                }
                Err(e) => {
                    last = Error::with_errno(format_args!("Failed to connect to '{}:{}'", inet.host, inet.port), &e)
                }
            }
        }
        Err(last)
    }

    fn connect_to(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&SockAddr::from(address)) {
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {
                self.yank.wait(socket.as_fd(), PollFlags::OUT, None)?;
                match socket.take_error()? {
                    Some(e) => Err(e),
                    None => Ok(socket),
                }
            }
            Err(e) => Err(e),
            Ok(()) => Ok(socket),
        }
    }
}

/// The addresses of a host that the options allow.
pub(super) fn resolve(inet: &InetAddress) -> Result<Vec<SocketAddr>> {
    let port = inet.port_number()?;
    let host = match inet.host.as_str() {
        "" => "0.0.0.0",
        host => host,
    };
    let found = (host, port).to_socket_addrs().map_err(|e| {
        let text = e.to_string();
        let why = text.strip_prefix("failed to lookup address information: ").unwrap_or(&text);
        err!("address resolution failed for {}:{}: {why}", inet.host, inet.port)
    })?;
    let (v4, v6) = match (inet.ipv4, inet.ipv6) {
        (Some(true), None) => (true, false),
        (None, Some(true)) => (false, true),
        (v4, v6) => (v4.unwrap_or(true), v6.unwrap_or(true)),
    };
    Ok(found.filter(|a| if a.is_ipv4() { v4 } else { v6 }).collect())
}
