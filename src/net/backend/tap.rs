//! `tap`: frames through a network interface of the host.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;

use lockstep_chardev::poll::register;
use lockstep_qapi::schema::NetdevTapOptions;
use lockstep_util::{Error, Result, bail, fds, report};
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::tap_sys::{self, OpenError, Tap, VNET_HEADER};
use super::{HostSide, TaskGuard, tap_helper};
use crate::netdev::{HostSink, Netdev};
use crate::packet::Frame;

/// Frames handled before others on the context get their turn.
const FRAMES_AT_ONCE: usize = 50;
/// Frames kept while the interface does not take them.
const MAX_PENDING: usize = 1024;
/// The longest frame, with its header.
const MAX_READ: usize = 4096 + 65536;
/// What the helper is asked for without `br=`.
const DEFAULT_BRIDGE: &str = "br0";
const DEFAULT_HELPER: &str = "/usr/lib/qemu/qemu-bridge-helper";
const DEFAULT_SCRIPT: &str = "/etc/qemu-ifup";
const DEFAULT_DOWNSCRIPT: &str = "/etc/qemu-ifdown";

/// Makes the host side of `-netdev tap`.
pub(crate) async fn make(netdev: &Arc<Netdev>, options: &NetdevTapOptions) -> Result<HostSide> {
    let o = options;
    if o.vhost == Some(true) || o.vhostfd.is_some() || o.vhostfds.is_some() || o.vhostforce == Some(true) {
        bail!("vhost-net requested but could not be initialized");
    }
    if o.queues.is_some_and(|n| n > 1) || o.fds.is_some() {
        bail!("multiqueue tap is not supported");
    }
    if let Some(fd) = &o.fd {
        let others = [&o.ifname, &o.script, &o.downscript, &o.helper, &o.fds];
        if others.iter().any(|x| x.is_some()) || o.vnet_hdr.is_some() || o.queues.is_some() {
            bail!(
                "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid with fd="
            );
        }
        let owned = fds::take(fd)?.ok_or_else(|| fds::not_open(fd).prepend(format_args!("{}: ", netdev.id)))?;
        let number = owned.as_raw_fd();
        let tap = adopt(owned, number)?;
        return start(netdev, tap, options, format!("fd={number}"), None);
    }
    if let Some(helper) = &o.helper {
        let others = [&o.ifname, &o.script, &o.downscript, &o.fds];
        if others.iter().any(|x| x.is_some()) || o.vnet_hdr.is_some() || o.queues.is_some() {
            bail!("ifname=, script=, downscript=, vnet_hdr=, queues=, and vhostfds= are invalid with helper=");
        }
        let bridge = o.br.as_deref().unwrap_or(DEFAULT_BRIDGE);
        let tap = from_helper(helper, bridge).await?;
        return start(netdev, tap, options, format!("helper={helper}"), None);
    }
    let script = o.script.as_deref().unwrap_or(DEFAULT_SCRIPT);
    let down = o.downscript.as_deref().unwrap_or(DEFAULT_DOWNSCRIPT);
    let name = o.ifname.as_deref().unwrap_or("");
    let tap = match tap_sys::open(name, o.vnet_hdr.unwrap_or(true)) {
        Ok(tap) => tap,
        Err(OpenError::Device(e)) => return Err(Error::with_errno("could not open /dev/net/tun", &e)),
        Err(OpenError::Interface(e)) if name.is_empty() => {
            return Err(Error::with_errno("could not configure /dev/net/tun", &e));
        }
        Err(OpenError::Interface(e)) => {
            return Err(Error::with_errno(format!("could not configure /dev/net/tun ({name})"), &e));
        }
    };
    if enabled(script) {
        run_script(script, &tap.name).await?;
    }
    let info = format!("ifname={},script={script},downscript={down}", tap.name);
    let down = enabled(down).then(|| DownScript { script: down.to_owned(), interface: tap.name.clone() });
    start(netdev, tap, options, info, down)
}

/// Makes the host side of `-netdev bridge`.
pub(crate) async fn make_bridge(netdev: &Arc<Netdev>, bridge: Option<&str>, helper: Option<&str>) -> Result<HostSide> {
    let (bridge, helper) = (bridge.unwrap_or(DEFAULT_BRIDGE), helper.unwrap_or(DEFAULT_HELPER));
    let tap = from_helper(helper, bridge).await?;
    let mut side = start(netdev, tap, &NetdevTapOptions::default(), format!("helper={helper},br={bridge}"), None)?;
    side.kind = "bridge";
    Ok(side)
}

fn enabled(script: &str) -> bool {
    !script.is_empty() && script != "no"
}

async fn from_helper(helper: &str, bridge: &str) -> Result<Tap> {
    let (helper, bridge) = (helper.to_owned(), bridge.to_owned());
    let answer = tokio::task::spawn_blocking(move || tap_helper::request(&helper, &bridge)).await;
    let fd = answer.map_err(|_| Error::new("bridge helper failed"))??;
    let number = fd.as_raw_fd();
    adopt(fd, number)
}

fn adopt(fd: OwnedFd, number: i32) -> Result<Tap> {
    tap_sys::adopt(fd).map_err(|e| Error::with_errno(format!("Unable to query TUNGETIFF on FD {number}"), &e))
}

async fn run_script(script: &str, interface: &str) -> Result<()> {
    let (script, interface) = (script.to_owned(), interface.to_owned());
    let name = script.clone();
    let status = tokio::task::spawn_blocking(move || Command::new(&script).arg(&interface).status()).await;
    match status {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => {
            let code = std::os::unix::process::ExitStatusExt::into_raw(status);
            bail!("network script {name} failed with status {code}")
        }
        Ok(Err(e)) => Err(Error::with_errno(format!("could not launch network script {name}"), &e)),
        Err(_) => bail!("could not launch network script {name}"),
    }
}

/// Runs when the backend goes.
struct DownScript {
    script: String,
    interface: String,
}

impl Drop for DownScript {
    fn drop(&mut self) {
        match Command::new(&self.script).arg(&self.interface).status() {
            Ok(status) if status.success() => {}
            _ => report::error(format_args!("network script {} failed", self.script)),
        }
    }
}

fn start(
    netdev: &Arc<Netdev>,
    tap: Tap,
    options: &NetdevTapOptions,
    info: String,
    down: Option<DownScript>,
) -> Result<HostSide> {
    let wanted = options.sndbuf.unwrap_or(0);
    let limit = i32::try_from(wanted).ok().filter(|&n| n != 0).unwrap_or(i32::MAX);
    if let Err(e) = tap.set_sndbuf(limit)
        && options.sndbuf.is_some()
    {
        return Err(Error::with_errno("TUNSETSNDBUF ioctl failed", &e));
    }
    let vnet = if tap.vnet_header { VNET_HEADER } else { 0 };
    let fd = Arc::new(tap.fd);
    let sink = Arc::new(TapSink { fd: fd.clone(), vnet, pending: Mutex::default(), flush: Notify::new() });
    netdev.set_sink(Some(sink.clone()));
    let input = register(fd.try_clone()?, Interest::READABLE)?;
    let output = register(fd.try_clone()?, Interest::WRITABLE)?;
    let read = TaskGuard(tokio::task::spawn_local(read(input, netdev.clone(), vnet)));
    let write = TaskGuard(tokio::task::spawn_local(flush(output, sink)));
    // The tasks end before the script runs.
    Ok(HostSide { info, kind: "tap", _keep: Box::new((read, write, down)) })
}

/// Frames to the interface, from any thread.
struct TapSink {
    fd: Arc<OwnedFd>,
    vnet: usize,
    pending: Mutex<VecDeque<Vec<u8>>>,
    flush: Notify,
}

impl HostSink for TapSink {
    fn send(&self, frame: &Frame) {
        let zeros = [0; VNET_HEADER];
        // The header that the interface wants, and only that.
        let (head, data): (&[u8], &[u8]) = match (self.vnet, frame.vnet_len) {
            (0, n) => (&[], &frame.data[n..]),
            (_, 0) => (&zeros, &frame.data),
            (_, n) => (&frame.data[..n.min(VNET_HEADER)], &frame.data[n..]),
        };
        let mut pending = self.pending.lock();
        if pending.is_empty() {
            let result = loop {
                match rustix::io::writev(&*self.fd, &[IoSlice::new(head), IoSlice::new(data)]) {
                    Err(Errno::INTR) => {}
                    other => break other,
                }
            };
            // Any other error is a cable that is not plugged in.
            if result != Err(Errno::AGAIN) {
                return;
            }
        }
        if pending.len() < MAX_PENDING {
            pending.push_back([head, data].concat());
            self.flush.notify_one();
        }
    }
}

async fn flush(fd: AsyncFd<OwnedFd>, sink: Arc<TapSink>) {
    loop {
        sink.flush.notified().await;
        while !sink.pending.lock().is_empty() {
            let Ok(mut guard) = fd.writable().await else { return };
            let result = guard.try_io(|fd| {
                let mut pending = sink.pending.lock();
                while let Some(frame) = pending.front() {
                    match rustix::io::write(fd.get_ref(), frame) {
                        Err(Errno::AGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
                        Err(Errno::INTR) => {}
                        _ => drop(pending.pop_front()),
                    }
                }
                Ok(())
            });
            drop(result);
        }
    }
}

/// Reads frames while the machine runs and the card takes them; otherwise the kernel keeps them.
async fn read(fd: AsyncFd<OwnedFd>, netdev: Arc<Netdev>, vnet: usize) {
    let mut running = netdev.world.running.subscribe();
    let mut buf = vec![0; MAX_READ];
    let mut batch = Vec::new();
    loop {
        let silent = netdev.is_silent();
        if !silent && !*running.borrow_and_update() {
            if running.changed().await.is_err() {
                return;
            }
            continue;
        }
        if !silent && !netdev.has_room() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            continue;
        }
        let Ok(mut guard) = fd.readable().await else { return };
        let (mut failed, mut empty) = (false, false);
        while batch.len() < FRAMES_AT_ONCE {
            let result = guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buf[..])?));
            match result {
                Ok(Ok(n)) if n > vnet => batch.push(buf[vnet..n].to_vec()),
                Ok(Ok(0)) => return,
                Ok(Ok(_)) => {}
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => {
                    tracing::debug!("{}: {e}", netdev.id);
                    failed = true;
                    break;
                }
                Err(_) => {
                    empty = true;
                    break;
                }
            }
        }
        netdev.all_from_host(&mut batch);
        if failed {
            // The interface is down or gone; it may come back.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        if !empty {
            tokio::task::yield_now().await;
        }
    }
}
