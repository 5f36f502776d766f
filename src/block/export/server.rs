//! The listening side of the NBD server: accepts clients and negotiates with them.

use std::cell::{Cell, RefCell};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use lockstep_util::{Error, Result};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::Exports;
use super::session::Session;
use crate::graph::{Graph, WeakGraph};
use crate::nbd::address::resolve;
use crate::nbd::server_handshake::{Selected, ServerHandshake, Step};
use crate::nbd::stream::Stream;

/// Connections the kernel holds for us.
const BACKLOG: i32 = 128;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// Host and port; an empty host is all of them.
    Inet {
        /// Host name or number.
        host: String,
        /// Port number, `0` lets the kernel choose.
        port: String,
    },
    /// A Unix socket, made anew.
    Unix(PathBuf),
}

/// What a server is made with.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen.
    pub address: ListenAddress,
    /// Clients at a time, 0 for no limit.
    pub max_connections: u32,
    /// Seconds for the negotiation, 0 for no limit.
    pub handshake_max_seconds: u32,
}

impl ServerOptions {
    /// QEMU's defaults: 100 clients, 10 seconds.
    pub fn new(address: ListenAddress) -> Self {
        Self { address, max_connections: 100, handshake_max_seconds: 10 }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Refuses connections from now on, those that wait too, whoever still holds the socket.
    fn shut_down(&self) {
        let socket = match self {
            Self::Tcp(listener) => SockRef::from(listener),
            Self::Unix(listener) => SockRef::from(listener),
        };
        // It fails only on a socket that does not listen any more.
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// A running server.
pub struct NbdServer {
    graph: WeakGraph,
    options: ServerOptions,
    local: Option<SocketAddr>,
    accepting: RefCell<Option<(Rc<Listener>, AbortHandle)>>,
    clients: Cell<u32>,
    /// Streams of clients that have not chosen an export yet.
    negotiating: RefCell<Vec<Weak<Stream>>>,
    left: Notify,
}

impl NbdServer {
    /// Binds and starts to accept on the current context.
    pub(super) async fn start(graph: &Graph, options: ServerOptions) -> Result<Rc<Self>> {
        let (listener, local) = listen(&options.address).await?;
        let server = Rc::new(Self {
            graph: graph.downgrade(),
            options,
            local,
            accepting: RefCell::default(),
            clients: Cell::new(0),
            negotiating: RefCell::default(),
            left: Notify::new(),
        });
        let listener = Rc::new(listener);
        let task = tokio::task::spawn_local(server.clone().accept(listener.clone()));
        *server.accepting.borrow_mut() = Some((listener, task.abort_handle()));
        Ok(server)
    }

    /// Where it listens, as `host:port` or the path.
    pub(super) fn local_address(&self) -> Option<String> {
        match (&self.options.address, self.local) {
            (ListenAddress::Unix(path), _) => Some(path.display().to_string()),
            (_, local) => local.map(|a| a.to_string()),
        }
    }

    /// Accepts nobody any more: who connects after this has returned is refused.
    pub(super) fn stop_listening(&self) {
        if let Some((listener, task)) = self.accepting.borrow_mut().take() {
            // The task, which holds the socket too, ends only when its context runs it again.
            listener.shut_down();
            task.abort();
            if let ListenAddress::Unix(path) = &self.options.address {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Disconnects clients that have not chosen an export.
    pub(super) fn close_clients(&self) {
        for stream in self.negotiating.borrow_mut().drain(..) {
            if let Some(stream) = stream.upgrade() {
                stream.shutdown();
            }
        }
    }

    async fn accept(self: Rc<Self>, listener: Rc<Listener>) {
        loop {
            let max = self.options.max_connections;
            while max != 0 && self.clients.get() >= max {
                self.left.notified().await;
            }
            let accepted = match &*listener {
                Listener::Tcp(l) => l.accept().await.and_then(|(s, _)| Stream::from_tcp(s)),
                Listener::Unix(l) => l.accept().await.map(|(s, _)| Stream::Unix(s)),
            };
            match accepted {
                Ok(stream) => {
                    self.clients.set(self.clients.get() + 1);
                    let server = self.clone();
                    tokio::task::spawn_local(async move {
                        server.serve(stream).await;
                        server.clients.set(server.clients.get() - 1);
                        server.left.notify_one();
                    });
                }
                // Out of descriptors and the like: the client waits in the backlog.
                Err(e) => {
                    tracing::warn!("nbd server cannot accept: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(&self, stream: Stream) {
        let stream = Rc::new(stream);
        {
            let mut negotiating = self.negotiating.borrow_mut();
            negotiating.retain(|s| s.strong_count() > 0);
            negotiating.push(Rc::downgrade(&stream));
        }
        let negotiation = self.negotiate(&stream);
        let selected = match self.options.handshake_max_seconds {
            0 => negotiation.await,
            n => tokio::time::timeout(Duration::from_secs(n.into()), negotiation).await.unwrap_or(None),
        };
        self.negotiating.borrow_mut().retain(|s| s.upgrade().is_some_and(|s| !Rc::ptr_eq(&s, &stream)));
        let Some(selected) = selected else { return };
        let Some(graph) = self.graph.upgrade() else { return };
        // The export can have gone while its description was on its way.
        let Some(export) = Exports::of(&graph).by_name(&selected.export) else { return };
        drop(graph);
        Session::run(stream, export, selected).await;
    }

    async fn negotiate(&self, stream: &Stream) -> Option<Selected> {
        let mut handshake = ServerHandshake::default();
        stream.write_all(&ServerHandshake::greeting()).await.ok()?;
        let mut buf = Vec::new();
        let mut out = Vec::new();
        loop {
            buf.resize(handshake.want(), 0);
            stream.read_exact(&mut buf).await.ok()?;
            let step = {
                let graph = self.graph.upgrade()?;
                handshake.advance(&buf, &*Exports::of(&graph), &mut out)
            };
            let sent = stream.write_all(&out).await;
            out.clear();
            match step {
                Ok(Step::Transmission(selected)) => return sent.ok().map(|()| selected),
                Ok(Step::More) => sent.ok()?,
                Ok(Step::Closed) => return None,
                Err(e) => {
                    tracing::debug!("nbd client {}: {e}", stream.peer());
                    return None;
                }
            }
        }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.stop_listening();
    }
}

async fn listen(address: &ListenAddress) -> Result<(Listener, Option<SocketAddr>)> {
    match address {
        ListenAddress::Inet { host, port } => {
            let host = if host.is_empty() { "0.0.0.0" } else { host };
            let mut last = None;
            for address in resolve(host, port).await? {
                match listen_tcp(address) {
                    Ok(listener) => {
                        let local = listener.local_addr().ok();
                        return Ok((Listener::Tcp(listener), local));
                    }
                    Err(e) => last = Some(e),
                }
            }
            Err(last.unwrap_or_else(|| Error::new(format!("address resolution failed for {host}:{port}"))))
        }
        ListenAddress::Unix(path) => {
            // Like QEMU, a socket left behind by a dead server is in nobody's way.
            let _ = std::fs::remove_file(path);
            let bound = StdUnixListener::bind(path)
                .and_then(|l| l.set_nonblocking(true).map(|()| l))
                .and_then(UnixListener::from_std);
            let failed = |e| Error::with_errno(format_args!("Failed to bind socket to {}", path.display()), &e);
            Ok((Listener::Unix(bound.map_err(failed)?), None))
        }
    }
}

fn listen_tcp(address: SocketAddr) -> Result<TcpListener> {
    let create = |e| Error::with_errno("Failed to create a socket", &e);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).map_err(create)?;
    socket.set_reuse_address(true).map_err(create)?;
    socket.set_nonblocking(true).map_err(create)?;
    let unavailable = |e| Error::with_errno("Failed to find an available port", &e);
    socket.bind(&address.into()).map_err(unavailable)?;
    socket.listen(BACKLOG).map_err(unavailable)?;
    TcpListener::from_std(socket.into()).map_err(create)
}
