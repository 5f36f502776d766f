//! A stream socket of either family, and the handle that ends it from any thread.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use socket2::{SockRef, Socket};
use tokio::net::{TcpStream, UnixStream};

/// A connected TCP or Unix stream. Reading and writing need only `&self`.
#[derive(Debug)]
pub enum Stream {
    /// TCP, without Nagle's delay.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Connects over TCP.
    pub async fn connect_tcp(to: SocketAddr) -> io::Result<Self> {
        Self::from_tcp(TcpStream::connect(to).await?)
    }

    /// Connects to a Unix socket.
    pub async fn connect_unix(path: &Path) -> io::Result<Self> {
        Ok(Self::Unix(UnixStream::connect(path).await?))
    }

    /// Wraps an accepted or connected TCP socket; small messages leave at once, and a dead peer is noticed in time.
    pub fn from_tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_keepalive(true)?;
        Ok(Self::Tcp(stream))
    }

    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.readable().await,
            Self::Unix(s) => s.readable().await,
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.writable().await,
            Self::Unix(s) => s.writable().await,
        }
    }

    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.try_read(buf),
            Self::Unix(s) => s.try_read(buf),
        }
    }

    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.try_write_vectored(bufs),
            Self::Unix(s) => s.try_write_vectored(bufs),
        }
    }

    /// Reads what there is, at least one byte. `Ok(0)` is the peer's end. Nothing is lost if the future is dropped.
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.try_read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable().await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Fills `buf`. The peer's end is `UnexpectedEof`. Dropping the future loses the place in the stream.
    pub async fn read_exact(&self, buf: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < buf.len() {
            match self.read(&mut buf[at..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => at += n,
            }
        }
        Ok(())
    }

    /// Writes what fits of two pieces, at least one byte. Nothing is sent if the future is dropped while it waits.
    pub async fn write_some(&self, head: &[u8], body: &[u8]) -> io::Result<usize> {
        loop {
            match self.try_write_vectored(&[IoSlice::new(head), IoSlice::new(body)]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                other => return other,
            }
        }
    }

    /// Writes everything. Dropping the future loses the place in the stream.
    pub async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            at += self.write_some(&bytes[at..], &[]).await?;
        }
        Ok(())
    }

    /// Says that nothing more will be sent.
    pub fn shutdown_write(&self) {
        let _ = match self {
            Self::Tcp(s) => SockRef::from(s).shutdown(std::net::Shutdown::Write),
            Self::Unix(s) => SockRef::from(s).shutdown(std::net::Shutdown::Write),
        };
    }

    /// Ends both directions: whoever waits on this socket wakes with an error or the end.
    pub fn shutdown(&self) {
        let _ = match self {
            Self::Tcp(s) => SockRef::from(s).shutdown(std::net::Shutdown::Both),
            Self::Unix(s) => SockRef::from(s).shutdown(std::net::Shutdown::Both),
        };
    }

    /// A second descriptor of the same socket.
    pub fn duplicate(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(s) => SockRef::from(s).try_clone(),
            Self::Unix(s) => SockRef::from(s).try_clone(),
        }
    }

    /// The peer's address for logs.
    pub fn peer(&self) -> String {
        match self {
            Self::Tcp(s) => s.peer_addr().map(|a| a.to_string()).unwrap_or_default(),
            Self::Unix(_) => "unix socket".into(),
        }
    }
}

/// Ends a connection from any thread, also one that is only being made.
#[derive(Clone, Debug, Default)]
pub struct YankHandle {
    inner: Arc<YankInner>,
}

#[derive(Debug, Default)]
struct YankInner {
    socket: Mutex<Option<Socket>>,
    done: AtomicBool,
    yanked: tokio::sync::Notify,
}

impl YankHandle {
    /// Shuts the socket down, and makes an attempt to connect fail. There is no way back.
    pub fn yank(&self) {
        self.inner.done.store(true, Ordering::Release);
        if let Some(socket) = &*self.inner.socket.lock() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        self.inner.yanked.notify_waiters();
    }

    /// Whether it was yanked: there will be no connection any more.
    pub fn is_yanked(&self) -> bool {
        self.inner.done.load(Ordering::Acquire)
    }

    /// Resolves when it is yanked.
    pub async fn yanked(&self) {
        let yanked = self.inner.yanked.notified();
        if !self.is_yanked() {
            yanked.await;
        }
    }

    /// The socket that is to be shut down from now on.
    pub fn set(&self, stream: Option<&Stream>) {
        *self.inner.socket.lock() = stream.and_then(|s| s.duplicate().ok());
    }
}
