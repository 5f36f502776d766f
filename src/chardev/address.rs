//! Socket addresses as the schema has them: connecting, listening, and what they are called.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use lockstep_qapi::schema::{InetSocketAddress, SocketAddress, SocketAddressLegacy};
use lockstep_util::{Error, Result, ResultExt, bail, err, fds};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::poll::register;

/// A connection attempt that takes longer has failed: the kernel alone would try for two minutes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// The same address in the form without wrappers.
pub fn from_legacy(address: SocketAddressLegacy) -> SocketAddress {
    match address {
        SocketAddressLegacy::Inet(w) => SocketAddress::Inet(w.data),
        SocketAddressLegacy::Unix(w) => SocketAddress::Unix(w.data),
        SocketAddressLegacy::Vsock(w) => SocketAddress::Vsock(w.data),
        SocketAddressLegacy::Fd(w) => SocketAddress::Fd(w.data),
    }
}

/// Connects a stream socket, in non-blocking mode and (TCP) without Nagle's algorithm.
///
/// # Errors
/// With QEMU's texts: `Failed to connect to '...': ...`, `address resolution failed for ...`.
pub async fn connect(address: &SocketAddress) -> Result<OwnedFd> {
    match address {
        SocketAddress::Inet(inet) => {
            let mut last = err!("Failed to connect to '{}:{}'", inet.host, inet.port);
            for candidate in resolve(inet, false).await? {
                match connect_to(Domain::for_address(candidate), candidate.into()).await {
                    Ok(socket) => {
                        let _ = socket.set_tcp_nodelay(true);
                        if inet.keep_alive == Some(true) {
                            socket.set_keepalive(true).context("Unable to set keep-alive option on socket")?;
                        }
                        return Ok(socket.into());
                    }
                    Err(e) => {
                        last = Error::with_errno(format!("Failed to connect to '{}:{}'", inet.host, inet.port), &e);
                    }
                }
            }
            Err(last)
        }
        SocketAddress::Unix(unix) => {
            let name = unix_address(&unix.path, unix.abstract_.unwrap_or(false))?;
            let socket = connect_to(Domain::UNIX, name).await;
            Ok(socket.context(format!("Failed to connect to '{}'", unix.path))?.into())
        }
        SocketAddress::Fd(fd) => passed_socket(&fd.str),
        SocketAddress::Vsock(_) => bail!("socket family AF_VSOCK unsupported"),
    }
}

async fn connect_to(domain: Domain, address: SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address) {
        Ok(()) => return Ok(socket),
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    let waiting = register(socket.try_clone()?.into(), Interest::WRITABLE)?;
    match tokio::time::timeout(CONNECT_TIMEOUT, waiting.writable()).await {
        Ok(ready) => drop(ready?),
        Err(_) => return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
    }
    drop(waiting);
    match socket.take_error()? {
        Some(e) => Err(e),
        None => Ok(socket),
    }
}

/// A listening stream socket.
#[derive(Debug)]
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
    /// Where it listens, with the port that was chosen if zero or a range was asked for.
    pub address: SocketAddress,
    unlink: RefCell<Option<String>>,
}

impl Listener {
    /// Refuses connections from now on, and frees the address for the next who listens there, whoever still holds this.
    pub fn close(&self) {
        // A socket that was passed to us can be listened on by others.
        if !matches!(self.address, SocketAddress::Fd(_)) {
            // It fails only on a socket that does not listen any more.
            let _ = SockRef::from(self.fd.get_ref()).shutdown(Shutdown::Both);
        }
        if let Some(path) = self.unlink.take() {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Waits for a connection. It comes in non-blocking mode and (TCP) without Nagle's algorithm.
    ///
    /// # Errors
    /// Those of accept(2), other than that of a connection that has gone already.
    pub async fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            let mut guard = self.fd.readable().await?;
            match guard.try_io(|fd| SockRef::from(fd.get_ref()).accept()) {
                Ok(Ok((socket, _))) => {
                    socket.set_nonblocking(true)?;
                    let _ = socket.set_tcp_nodelay(true);
                    return Ok(socket.into());
                }
                Ok(Err(e)) if e.raw_os_error() == Some(libc::ECONNABORTED) => {}
                Ok(Err(e)) => return Err(e),
                Err(_) => {}
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

/// Listens on a stream socket; `backlog` connections may wait.
///
/// # Errors
/// With QEMU's texts: `Failed to find an available port: ...`, `Failed to bind socket to ...: ...`.
pub async fn listen(address: &SocketAddress, backlog: i32) -> Result<Listener> {
    let (socket, address, unlink) = match address {
        SocketAddress::Inet(inet) => {
            let (socket, port) = listen_inet(inet, backlog).await?;
            (socket, SocketAddress::Inet(InetSocketAddress { port: port.to_string(), ..inet.clone() }), None)
        }
        SocketAddress::Unix(unix) => {
            let hidden = unix.abstract_.unwrap_or(false);
            let name = unix_address(&unix.path, hidden)?;
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None).context("Failed to create Unix socket")?;
            if !hidden {
                match std::fs::remove_file(&unix.path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::with_errno(format!("Failed to unlink socket {}", unix.path), &e));
                    }
                    _ => {}
                }
            }
            socket.bind(&name).context(format!("Failed to bind socket to {}", unix.path))?;
            socket.listen(backlog).context("Failed to listen on socket")?;
            (socket, address.clone(), (!hidden).then(|| unix.path.clone()))
        }
        SocketAddress::Fd(fd) => (passed_socket(&fd.str)?.into(), address.clone(), None),
        SocketAddress::Vsock(_) => bail!("socket family AF_VSOCK unsupported"),
    };
    socket.set_nonblocking(true)?;
    let fd = register(socket.into(), Interest::READABLE)?;
    Ok(Listener { fd, address, unlink: RefCell::new(unlink) })
}

async fn listen_inet(inet: &InetSocketAddress, backlog: i32) -> Result<(Socket, u16)> {
    let first: Option<u16> = inet.port.parse().ok();
    let last = inet.to.or(first);
    let mut failure = None;
    for candidate in resolve(inet, true).await? {
        let ports = candidate.port()..=last.unwrap_or(candidate.port()).max(candidate.port());
        for port in ports {
            let mut address = candidate;
            address.set_port(port);
            let attempt = || -> io::Result<Socket> {
                let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                if address.is_ipv6() {
                    // Both families, if the wildcard was asked for without naming one.
                    socket.set_only_v6(!(inet.host.is_empty() && inet.ipv4 != Some(false)))?;
                }
                socket.bind(&address.into())?;
                socket.listen(backlog)?;
                Ok(socket)
            };
            match attempt() {
                Ok(socket) => {
                    let port = socket.local_addr()?.as_socket().map_or(port, |a| a.port());
                    return Ok((socket, port));
                }
                Err(e) => failure = Some(e),
            }
        }
    }
    match failure {
        Some(e) if e.kind() != io::ErrorKind::AddrInUse => Err(Error::with_errno("Failed to bind socket", &e)),
        Some(e) => Err(Error::with_errno("Failed to find an available port", &e)),
        None => Err(err!("Failed to find an available port")),
    }
}

/// The addresses behind a name, numbers without asking anyone.
///
/// # Errors
/// `address resolution failed for HOST:PORT: ...`.
pub async fn resolve(inet: &InetSocketAddress, passive: bool) -> Result<Vec<SocketAddr>> {
    let host = inet.host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let (v4, v6) = (inet.ipv4, inet.ipv6);
    if let (Ok(ip), Ok(port)) = (host.parse::<IpAddr>(), inet.port.parse::<u16>())
        && !(ip.is_ipv4() && v4 == Some(false) || ip.is_ipv6() && v6 == Some(false))
    {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (family, port) = (family(v4, v6)?, inet.port.clone());
    let shown = inet.host.clone();
    let lookup = tokio::task::spawn_blocking(move || lookup(&host, &port, family, passive)).await;
    match lookup {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(why)) => bail!("address resolution failed for {shown}:{}: {why}", inet.port),
        Err(_) => bail!("address resolution failed for {shown}:{}", inet.port),
    }
}

fn family(v4: Option<bool>, v6: Option<bool>) -> Result<libc::c_int> {
    Ok(match (v4, v6) {
        (Some(false), Some(false)) => bail!("Cannot disable IPv4 and IPv6 at same time"),
        (Some(true), Some(true)) | (None, None) => libc::AF_UNSPEC,
        (Some(true), _) | (_, Some(false)) => libc::AF_INET,
        _ => libc::AF_INET6,
    })
}

fn lookup(host: &str, port: &str, family: libc::c_int, passive: bool) -> Result<Vec<SocketAddr>, String> {
    let host = CString::new(host).map_err(|e| e.to_string())?;
    let port = CString::new(port).map_err(|e| e.to_string())?;
    // SAFETY: an all-zero addrinfo is what getaddrinfo wants for unset hints.
    let mut hints: libc::addrinfo = unsafe { MaybeUninit::zeroed().assume_init() };
    hints.ai_family = family;
    hints.ai_socktype = libc::SOCK_STREAM;
    hints.ai_flags = if passive { libc::AI_PASSIVE } else { 0 };
    let node = if host.is_empty() { ptr::null() } else { host.as_ptr() };
    let mut list = ptr::null_mut();
    // SAFETY: the strings end with NUL and live over the call; `list` receives the result.
    let code = unsafe { libc::getaddrinfo(node, port.as_ptr(), &raw const hints, &raw mut list) };
    if code != 0 {
        // SAFETY: gai_strerror returns a static string for any code.
        let text = unsafe { CStr::from_ptr(libc::gai_strerror(code)) };
        return Err(text.to_string_lossy().into_owned());
    }
    let mut found = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: `next` is an element of the list that getaddrinfo made, which is freed below.
        let entry = unsafe { &*next };
        // SAFETY: the element's address has the length that is given with it, and fits the storage.
        let address = unsafe {
            SockAddr::try_init(|storage, len| {
                ptr::copy_nonoverlapping(entry.ai_addr.cast::<u8>(), storage.cast::<u8>(), entry.ai_addrlen as usize);
                *len = entry.ai_addrlen;
                Ok(())
            })
        };
        if let Ok(((), address)) = address {
            found.extend(address.as_socket());
        }
        next = entry.ai_next;
    }
    // SAFETY: the list came from getaddrinfo and is not used any more.
    unsafe { libc::freeaddrinfo(list) };
    Ok(found)
}

fn unix_address(path: &str, hidden: bool) -> Result<SockAddr> {
    let name = if hidden { format!("\0{path}") } else { path.to_owned() };
    if name.len() > 107 {
        return Err(err!("UNIX socket path '{path}' is too long").hint("Path must be less than 108 bytes\n"));
    }
    Ok(SockAddr::unix(name)?)
}

/// A socket that whoever uses us handed over.
fn passed_socket(name: &str) -> Result<OwnedFd> {
    let fd = fds::take_socket(name)?;
    rustix::io::ioctl_fionbio(&fd, true).map_err(io::Error::from)?;
    Ok(fd)
}

/// How `query-chardev` writes a configured address: `tcp:HOST:PORT`, `unix:PATH`.
pub(crate) fn describe(address: &SocketAddress, protocol: &str, server: bool) -> String {
    let server = if server { ",server=on" } else { "" };
    match address {
        SocketAddress::Inet(inet) => format!("{protocol}:{}:{}{server}", inet.host, inet.port),
        SocketAddress::Unix(unix) => format!("unix:{}{server}", unix.path),
        SocketAddress::Fd(fd) => format!("fd:{}{server}", fd.str),
        SocketAddress::Vsock(vsock) => format!("vsock:{}:{}", vsock.cid, vsock.port),
    }
}

/// How `query-chardev` writes a connection: `tcp:LOCAL,server=on <-> PEER`, `unix:PATH`.
pub(crate) fn describe_connection(fd: &OwnedFd, address: &SocketAddress, protocol: &str, server: bool) -> String {
    let socket = SockRef::from(fd);
    let ends = || Some((socket.local_addr().ok()?.as_socket()?, socket.peer_addr().ok()?.as_socket()?));
    match (address, ends()) {
        // One that was handed over is called what it is.
        (SocketAddress::Fd(_), None) if socket.domain().is_ok_and(|d| d == Domain::UNIX) => {
            let name = socket.local_addr().ok();
            let path =
                name.as_ref().and_then(|n| n.as_pathname()).map_or_else(String::new, |p| p.display().to_string());
            format!("unix:{path}{}", if server { ",server=on" } else { "" })
        }
        (SocketAddress::Unix(_), _) | (_, None) => describe(address, protocol, server),
        (_, Some((local, peer))) => {
            format!("{protocol}:{local}{} <-> {peer}", if server { ",server=on" } else { "" })
        }
    }
}
