//! Opening the receiving end.

use super::connect::{resolve, spawn};
use super::{Address, Channel, FdSource, Yank};
use lockstep_util::{Error, Result, ResultExt, err};
use rustix::event::PollFlags;
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The receiving end: open, or listening.
#[derive(Debug)]
pub enum Incoming {
    /// A stream can be read.
    Open(Arc<Channel>),
    /// Somebody has to connect first.
    Listening(Listener),
}

/// A listening socket that takes one connection.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    path: Option<PathBuf>,
    yank: Yank,
    address: Value,
}

/// Opens the receiving end of an address.
///
/// # Errors
/// QEMU's texts.
pub fn listen(address: &Address, fds: &dyn FdSource, yank: Yank) -> Result<Incoming> {
    let channel = match address {
        Address::Tcp(inet) => {
            let socket = listen_tcp(inet)?;
            let port = socket.local_addr().ok().and_then(|a| a.as_socket()).map_or(0, |a| a.port());
            return Ok(Incoming::Listening(Listener { socket, path: None, yank, address: inet.to_json(port) }));
        }
        Address::Unix(path) => {
            let socket = listen_unix(path).context(format_args!("Failed to bind socket to {}", path.display()))?;
            let address = json!({"type": "unix", "path": path});
            return Ok(Incoming::Listening(Listener { socket, path: Some(path.clone()), yank, address }));
        }
        Address::Fd(name) => Channel::from_fd(fds.take_fd(name)?, yank),
        Address::File { path, offset } => {
            let mut file = File::open(path).context(format_args!("Could not open '{}'", path.display()))?;
            file.seek(SeekFrom::Start(*offset)).context("Failed to seek")?;
            Channel::from_fd(file.into(), yank)
        }
        Address::Exec(words) => spawn(words, yank),
    };
    channel.map(Incoming::Open).map_err(|e| Error::with_errno("Failed to open the migration channel", &e))
}

fn listen_tcp(inet: &super::InetAddress) -> Result<Socket> {
    let first = inet.port_number()?;
    let mut last = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
    for address in resolve(inet)? {
        for port in first..=inet.to.unwrap_or(first).max(first) {
            let mut address = address;
            address.set_port(port);
            match bind(address) {
                Ok(socket) => return Ok(socket),
                Err(e) => last = e,
            }
        }
    }
    let what = match last.kind() {
        io::ErrorKind::AddrInUse => "Failed to find an available port",
        _ => "Failed to bind socket",
    };
    Err(Error::with_errno(what, &last))
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(1)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn listen_unix(path: &std::path::Path) -> io::Result<Socket> {
    // A socket left by an earlier run is in the way; anything else stays and makes the bind fail.
    if std::fs::symlink_metadata(path).is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_socket(&m.file_type())) {
        let _ = std::fs::remove_file(path);
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(1)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl Listener {
    /// Where it listens, as `query-migrate` shows it.
    pub fn address(&self) -> &Value {
        &self.address
    }

    /// What breaks the waiting off.
    pub fn yank(&self) -> Yank {
        self.yank.clone()
    }

    /// Waits for the connection; the listening socket is closed then.
    ///
    /// # Errors
    /// Those of accepting, and when it was broken off.
    pub fn accept(self) -> Result<Arc<Channel>> {
        loop {
            match self.socket.accept() {
                Ok((socket, _)) => {
                    return Channel::from_fd(socket.into(), self.yank.clone()).map_err(|e| err!("{e}"));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.yank.wait(self.socket.as_fd(), PollFlags::IN, None).context("Failed to accept")?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::with_errno("Failed to accept", &e)),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}
