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
use lockstep_util::{Result, YankRegistry, bail};

use super::{HostSide, TaskGuard};
use crate::netdev::{HostSink, Netdev};
use crate::packet::Frame;
use crate::wire::{self, FrameReader};

const READ_SIZE: usize = 64 << 10;

/// Makes the host side of `-netdev stream`.
pub(crate) async fn make(netdev: &Arc<Netdev>, options: &NetdevStreamOptions) -> Result<HostSide> {
    let server = options.server.unwrap_or(false);
    if server && (options.reconnect.is_some() || options.reconnect_ms.is_some()) {
        bail!("'reconnect-ms' option is incompatible with socket in server listen mode");
    }
    if options.reconnect.is_some() && options.reconnect_ms.is_some() {
        bail!("'reconnect' and 'reconnect-ms' are mutually exclusive");
    }
    let socket = socket(options.addr.clone(), server, options.reconnect, options.reconnect_ms);
    let mut side = start(netdev, socket).await?;
    side.kind = "stream";
    Ok(side)
}

/// Makes the host side of `-netdev socket,listen=...` and `connect=...`.
pub(crate) async fn make_legacy(netdev: &Arc<Netdev>, address: &str, server: bool) -> Result<HostSide> {
    let Some((host, port)) = address.rsplit_once(':') else {
        bail!("host address '{address}' doesn't contain ':' separating host from port")
    };
    let host = if host.is_empty() && !server {
        "127.0.0.1"
    } else if host.is_empty() {
        "0.0.0.0"
    } else {
        host
    };
    let inet = InetSocketAddress { host: host.to_owned(), port: port.to_owned(), ..InetSocketAddress::default() };
    let socket = socket(SocketAddress::Inet(inet), server, None, None);
    start(netdev, socket).await
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
async fn start(netdev: &Arc<Netdev>, socket: ChardevSocket) -> Result<HostSide> {
    let hidden = ChardevRegistry::new(YankRegistry::new());
    let backend = ChardevBackend::Socket(ChardevSocketWrapper { data: socket });
    hidden.create(&netdev.id, backend).await?;
    let stream = hidden.attach(&netdev.id)?.into_stream();
    netdev.set_sink(Some(Arc::new(StreamSink { out: stream.writer() })));
    let info = hidden.query().pop().map(|c| c.filename).unwrap_or_default();
    let task = TaskGuard(tokio::task::spawn_local(read(stream, netdev.clone(), hidden.clone())));
    Ok(HostSide { info, kind: "socket", _keep: Box::new((task, hidden)) })
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

async fn read(mut stream: CharStream, netdev: Arc<Netdev>, chardevs: ChardevRegistry) {
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
                _ => {
                    broken = false;
                    reader.reset();
                    *netdev.info.lock() = chardevs.query().pop().map(|c| c.filename).unwrap_or_default();
                }
            },
            () = tokio::time::sleep(Duration::from_millis(5)), if !want && !broken => {}
        }
    }
}
