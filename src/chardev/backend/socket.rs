//! Sockets: a server that takes one connection at a time, a client that may connect again and again.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use lockstep_qapi::schema::{ChardevSocket, ChardevUdp, SocketAddress};
use lockstep_util::{Result, ResultExt, bail, report};
use socket2::{Domain, Socket, Type};

use super::{Backend, Driver};
use crate::address::{Listener, connect, describe, describe_connection, from_legacy, listen, resolve};
use crate::link::Link;
use crate::memory;
use crate::shared::Shared;
use crate::telnet;

/// After accept(2) failed (too many descriptors), it is tried again after this time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn make(id: &str, options: ChardevSocket) -> Result<Backend> {
    let address = from_legacy(options.addr);
    let server = options.server.unwrap_or(true);
    let telnet = options.telnet.unwrap_or(false);
    if options.tls_creds.is_some() || options.tls_authz.is_some() {
        bail!("TLS is not supported on character devices");
    }
    if options.websocket.unwrap_or(false) || options.tn3270.unwrap_or(false) {
        bail!("'websocket' and 'tn3270' are not supported");
    }
    if options.reconnect.is_some() && options.reconnect_ms.is_some() {
        bail!("'reconnect' and 'reconnect-ms' are mutually exclusive");
    }
    let reconnect = match (options.reconnect, options.reconnect_ms) {
        (Some(seconds), _) => Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
        (_, Some(ms)) => Some(Duration::from_millis(u64::try_from(ms).unwrap_or(0))),
        _ => None,
    };
    if server && options.reconnect.is_some_and(|r| r != 0) {
        bail!("'reconnect' option is incompatible with socket in server listen mode");
    }
    if !server && options.wait.is_some() {
        bail!("'wait' option is incompatible with socket in client connect mode");
    }
    if reconnect.is_some() && matches!(address, SocketAddress::Fd(_)) {
        bail!("'reconnect' option is incompatible with 'fd'");
    }
    let protocol = if telnet { "telnet" } else { "tcp" };
    let mut backend = Backend {
        idle_filename: format!("disconnected:{}", describe(&address, protocol, server)),
        link: None,
        driver: None,
        reconnectable: true,
        switches_context: true,
        yankable: true,
        telnet,
        pty: None,
        keep: None,
    };
    if server {
        let listener = listen(&address, 1).await?;
        backend.idle_filename = format!("disconnected:{}", describe(&listener.address, protocol, true));
        if options.wait.unwrap_or(false) {
            report::info(format_args!("QEMU waiting for connection on: {}", backend.idle_filename));
            let fd = listener.accept().await?;
            backend.link = Some(named(fd, &listener.address, protocol, true));
        }
        let listener = Rc::new(listener);
        // The driver, which holds the socket too, ends only when its context runs it again.
        backend.keep = Some(Box::new(Listening(listener.clone())));
        backend.driver = Some(serve(listener, protocol));
    } else if let Some(pause) = reconnect.filter(|p| !p.is_zero()) {
        backend.driver = Some(keep_connected(id.to_owned(), address, protocol, pause));
    } else {
        let fd = connect(&address).await?;
        backend.link = Some(named(fd, &address, protocol, false));
    }
    Ok(backend)
}

fn named(fd: OwnedFd, address: &SocketAddress, protocol: &str, server: bool) -> (Link, String) {
    let name = describe_connection(&fd, address, protocol, server);
    (Link::of_socket(fd), name)
}

/// Listens as long as its device is there.
struct Listening(Rc<Listener>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn serve(listener: Rc<Listener>, protocol: &'static str) -> Driver {
    Box::new(move |shared| {
        Box::pin(async move {
            loop {
                closed(&shared).await;
                match listener.accept().await {
                    Ok(fd) => {
                        let (link, name) = named(fd, &listener.address, protocol, true);
                        shared.open(link, name);
                        memory::connected(&shared);
                    }
                    Err(e) => {
                        tracing::warn!("{}: accept: {e}", shared.id);
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    })
}

fn keep_connected(id: String, address: SocketAddress, protocol: &'static str, pause: Duration) -> Driver {
    Box::new(move |shared| {
        Box::pin(async move {
            let mut complained = false;
            loop {
                match connect(&address).await {
                    Ok(fd) => {
                        let (link, name) = named(fd, &address, protocol, false);
                        shared.open(link, name);
                        memory::connected(&shared);
                        complained = false;
                        closed(&shared).await;
                    }
                    Err(e) if !complained => {
                        complained = true;
                        report::error(format_args!("Unable to connect character device {id}: {e}"));
                    }
                    Err(_) => {}
                }
                tokio::time::sleep(pause).await;
            }
        })
    })
}

/// Waits until nothing is connected.
async fn closed(shared: &Arc<Shared>) {
    while shared.link().is_some() {
        shared.backend.notified().await;
    }
}

pub(super) async fn make_udp(options: ChardevUdp) -> Result<Backend> {
    let (remote, local) = (from_legacy(options.remote), options.local.map(from_legacy));
    let SocketAddress::Inet(remote) = remote else { bail!("only address family inet is supported for udp") };
    let Some(&target) = resolve(&remote, false).await?.first() else { bail!("address resolution failed") };
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, None).context("Failed to create socket")?;
    if let Some(SocketAddress::Inet(local)) = local {
        let Some(&source) = resolve(&local, true).await?.first() else { bail!("address resolution failed") };
        socket.set_reuse_address(true)?;
        socket.bind(&source.into()).context("Failed to bind socket")?;
    }
    socket.connect(&target.into()).context(format!("Failed to connect to '{}:{}'", remote.host, remote.port))?;
    socket.set_nonblocking(true)?;
    Ok(Backend::of_link(Link::Datagram(socket.into()), "udp"))
}

/// Sets up the telnet protocol on a device.
pub(crate) fn set_telnet(shared: &Shared) {
    shared.set_telnet(&telnet::GREETING);
}
