//! `dgram` and the UDP form of `socket`: one frame a datagram.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use lockstep_chardev::address::resolve;
use lockstep_chardev::poll::register;
use lockstep_qapi::schema::{InetSocketAddress, NetdevDgramOptions, SocketAddress};
use lockstep_util::{Result, ResultExt, bail};
use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{HostSide, TaskGuard};
use crate::netdev::{HostSink, Netdev};
use crate::packet::Frame;

/// The longest datagram.
const MAX_DATAGRAM: usize = 65536;
const DATAGRAMS_AT_ONCE: usize = 50;

/// Makes the host side of `-netdev dgram`.
pub(crate) async fn make(netdev: &Arc<Netdev>, options: &NetdevDgramOptions) -> Result<HostSide> {
    let mut side = match (&options.local, &options.remote) {
        (Some(SocketAddress::Inet(local)), Some(SocketAddress::Inet(remote))) => inet(netdev, local, remote).await?,
        (Some(SocketAddress::Unix(local)), Some(SocketAddress::Unix(remote))) => {
            let _ = std::fs::remove_file(&local.path);
            let socket = Socket::new(Domain::UNIX, Type::DGRAM, None).context("can't create datagram socket")?;
            socket.bind(&SockAddr::unix(&local.path)?).context(format!("can't bind unix={} to socket", local.path))?;
            let info = format!("udp={}:{}", local.path, remote.path);
            start(netdev, socket, SockAddr::unix(&remote.path)?, info)?
        }
        (None, _) => bail!("dgram requires local= parameter"),
        (_, None) => bail!("remote parameter is missing"),
        _ => bail!("remote and local types must be the same"),
    };
    side.kind = "dgram";
    Ok(side)
}

/// Makes the host side of `-netdev socket,udp=...,localaddr=...`.
pub(crate) async fn make_legacy(netdev: &Arc<Netdev>, remote_text: &str, local: &str) -> Result<HostSide> {
    let parse = |text: &str| match text.rsplit_once(':') {
        Some((host, port)) => {
            Ok(InetSocketAddress { host: host.to_owned(), port: port.to_owned(), ..InetSocketAddress::default() })
        }
        None => bail!("host address '{text}' doesn't contain ':' separating host from port"),
    };
    let (local, remote): (Result<_>, Result<_>) = (parse(local), parse(remote_text));
    let mut side = inet(netdev, &local?, &remote?).await?;
    side.info = format!("socket: udp={remote_text}");
    Ok(side)
}

async fn inet(netdev: &Arc<Netdev>, local: &InetSocketAddress, remote: &InetSocketAddress) -> Result<HostSide> {
    let (Some(&from), Some(&to)) = (resolve(local, true).await?.first(), resolve(remote, false).await?.first()) else {
        bail!("address resolution failed");
    };
    let socket = Socket::new(Domain::for_address(from), Type::DGRAM, None).context("can't create datagram socket")?;
    socket.set_reuse_address(true).context("can't set socket option SO_REUSEADDR")?;
    socket.bind(&from.into()).context(format!("can't bind ip={} to socket", from.ip()))?;
    start(netdev, socket, to.into(), format!("udp={from}/{to}"))
}

fn start(netdev: &Arc<Netdev>, socket: Socket, remote: SockAddr, info: String) -> Result<HostSide> {
    socket.set_nonblocking(true)?;
    let sink = DatagramSink { socket: socket.try_clone()?, remote };
    netdev.set_sink(Some(Arc::new(sink)));
    let fd = register(socket.into(), Interest::READABLE)?;
    let task = TaskGuard(tokio::task::spawn_local(read(fd, netdev.clone())));
    Ok(HostSide { info, kind: "socket", _keep: Box::new(task) })
}

struct DatagramSink {
    socket: Socket,
    remote: SockAddr,
}

impl HostSink for DatagramSink {
    fn send(&self, frame: &Frame) {
        let flags = (SendFlags::NOSIGNAL | SendFlags::DONTWAIT).bits() as i32;
        // A datagram that does not go is lost, as datagrams are.
        let _ = self.socket.send_to_with_flags(&frame.data[frame.vnet_len..], &self.remote, flags);
    }
}

async fn read(fd: AsyncFd<OwnedFd>, netdev: Arc<Netdev>) {
    let mut buf = vec![0; MAX_DATAGRAM];
    loop {
        if !netdev.has_room() || !*netdev.world.running.borrow() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let Ok(mut guard) = fd.readable().await else { return };
        for _ in 0..DATAGRAMS_AT_ONCE {
            let result = guard.try_io(|fd| {
                rustix::net::recv(fd.get_ref(), &mut buf[..], RecvFlags::DONTWAIT)
                    .map(|(n, _)| n)
                    .map_err(io::Error::from)
            });
            match result {
                Ok(Ok(n)) if n > 0 => netdev.from_host(buf[..n].to_vec(), 0),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        tokio::task::yield_now().await;
    }
}
