//! `stream` and the TCP forms of `socket`: frames with their length before them, on a stream socket.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use lockstep_chardev::{CharStream, CharWriter, ChardevRegistry, StreamEvent};
use lockstep_qapi::schema::{
    ChardevBackend, ChardevSocket, ChardevSocketWrapper, FdSocketAddressWrapper, InetSocketAddress,
    InetSocketAddressWrapper, NetdevStreamOptions, SocketAddress, SocketAddressLegacy, UnixSocketAddressWrapper,
    VsockSocketAddressWrapper,
};
use lockstep_util::{Result, YankRegistry, bail, err};

use super::{HostSide, TaskGuard};
use crate::netdev::{HostSink, Netdev};
use crate::packet::Frame;
use crate::wire::{self, FrameReader};

const READ_SIZE: usize = 64 << 10;

/// How a connection is described by `info network`.
#[derive(Clone, Copy)]
enum Style {
    Stream,
    Listen,
    Connect,
}

impl Style {
    /// While nobody is connected.
    fn idle(self, server: bool) -> &'static str {
        match self {
            Self::Stream if server => "listening",
            Self::Stream => "connecting",
            Self::Listen | Self::Connect => "",
        }
    }

    /// `name` is the character device's: `tcp:LOCAL,server=on <-> PEER`, `unix:PATH,server=on`.
    fn connected(self, name: &str) -> String {
        let peer = name.split_once(" <-> ").map(|(_, peer)| peer);
        match (self, peer) {
            (Self::Stream, Some(peer)) => format!("tcp:{peer}"),
            (_, None) => name.trim_end_matches(",server=on").to_owned(),
            (Self::Listen, Some(peer)) => format!("socket: connection from {peer}"),
            (Self::Connect, Some(peer)) => format!("socket: connect to {peer}"),
        }
    }
}

/// Makes the host side of `-netdev stream`. That it cannot connect or listen is told by `info network` only.
pub(crate) async fn make(netdev: &Arc<Netdev>, options: &NetdevStreamOptions) -> Result<HostSide> {
    let server = options.server.unwrap_or(false);
    if server && (options.reconnect.is_some() || options.reconnect_ms.is_some()) {
        bail!("'reconnect-ms' option is incompatible with socket in server listen mode");
    }
    if options.reconnect.is_some() && options.reconnect_ms.is_some() {
        bail!("'reconnect' and 'reconnect-ms' are mutually exclusive");
    }
    let socket = socket(options.addr.clone(), server, options.reconnect, options.reconnect_ms);
    let mut side = match start(netdev, socket, Style::Stream, server).await {
        Ok(side) => side,
        Err(e) => HostSide { info: format!("error: {e}"), kind: "stream", _keep: Box::new(()) },
    };
    side.kind = "stream";
    Ok(side)
}

/// Makes the host side of `-netdev socket,listen=...` and `connect=...`.
pub(crate) async fn make_legacy(netdev: &Arc<Netdev>, address: &str, server: bool) -> Result<HostSide> {
    let Some((host, port)) = address.rsplit_once(':') else {
        bail!("host address '{address}' doesn't contain ':' separating host from port")
    };
    let host = match (host, server) {
        ("", true) => "0.0.0.0",
        ("", false) => "127.0.0.1",
        (host, _) => host,
    };
    let inet = InetSocketAddress { host: host.to_owned(), port: port.to_owned(), ..InetSocketAddress::default() };
    let socket = socket(SocketAddress::Inet(inet), server, None, None);
    let style = if server { Style::Listen } else { Style::Connect };
    start(netdev, socket, style, server).await.map_err(|e| match e.message().split_once("available port: ") {
        Some((_, why)) => err!("can't bind ip={host} to socket: {why}"),
        None => e,
    })
}

fn socket(addr: SocketAddress, server: bool, reconnect: Option<i64>, reconnect_ms: Option<i64>) -> ChardevSocket {
    let addr = match addr {
        SocketAddress::Inet(data) => SocketAddressLegacy::Inet(InetSocketAddressWrapper { data }),
        SocketAddress::Unix(data) => SocketAddressLegacy::Unix(UnixSocketAddressWrapper { data }),
        SocketAddress::Vsock(data) => SocketAddressLegacy::Vsock(VsockSocketAddressWrapper { data }),
        SocketAddress::Fd(data) => SocketAddressLegacy::Fd(FdSocketAddressWrapper { data }),
    };
    ChardevSocket {
        logfile: None,
        logappend: None,
        addr,
        tls_creds: None,
        tls_authz: None,
        server: Some(server),
        wait: None,
        nodelay: None,
        telnet: None,
        tn3270: None,
        websocket: None,
        reconnect,
        reconnect_ms,
    }
}

/// The connection is a character device that nobody else sees.
async fn start(netdev: &Arc<Netdev>, socket: ChardevSocket, style: Style, server: bool) -> Result<HostSide> {
    let hidden = ChardevRegistry::new(YankRegistry::new());
    let backend = ChardevBackend::Socket(ChardevSocketWrapper { data: socket });
    hidden.create(&netdev.id, backend).await?;
    let stream = hidden.attach(&netdev.id)?.into_stream();
    netdev.set_sink(Some(Arc::new(StreamSink { out: stream.writer() })));
    let task = read(stream, netdev.clone(), hidden.clone(), style, server);
    let task = TaskGuard(tokio::task::spawn_local(task));
    Ok(HostSide { info: style.idle(server).to_owned(), kind: "socket", _keep: Box::new((task, hidden)) })
}

struct StreamSink {
    out: CharWriter,
}

impl HostSink for StreamSink {
    fn send(&self, frame: &Frame) {
        let plain = Frame { data: frame.data[frame.vnet_len..].to_vec(), vnet_len: 0 };
        let (head, n) = wire::header(&plain, false);
        // A frame that the peer does not take is lost, as on a cable.
        let _ = self.out.send(&[IoSlice::new(&head[..n]), IoSlice::new(&plain.data)]);
    }
}

async fn read(mut stream: CharStream, netdev: Arc<Netdev>, chardevs: ChardevRegistry, style: Style, server: bool) {
    let mut reader = FrameReader::new(false);
    let mut buf = vec![0; READ_SIZE];
    let mut broken = false;
    loop {
        let want = !broken && netdev.has_room() && *netdev.world.running.borrow();
        tokio::select! {
            event = stream.event(want) => match event {
                StreamEvent::Readable => {
                    if let Ok(n) = stream.try_read(&mut buf) {
                        broken = reader.push(&buf[..n], |frame| netdev.from_host(frame.data, 0)).is_err();
                    }
                }
                StreamEvent::Detached => return,
                StreamEvent::Opened => {
                    broken = false;
                    reader.reset();
                    let name = chardevs.query().pop().map(|c| c.filename).unwrap_or_default();
                    *netdev.info.lock() = style.connected(&name);
                }
                StreamEvent::Closed => style.idle(server).clone_into(&mut netdev.info.lock()),
                StreamEvent::Break => {}
            },
            () = tokio::time::sleep(Duration::from_millis(5)), if !want && !broken => {}
        }
    }
}
