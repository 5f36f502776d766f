//! Getting a tap device from a helper program with the rights that we lack: it sends the descriptor over a socket.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use lockstep_util::{Error, Result, bail};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

/// Runs `helper` for bridge `bridge` and waits for its answer. Blocks: to be called on a thread that may.
///
/// # Errors
/// `bridge helper failed`, `failed to recv file descriptor: ...`.
pub fn request(helper: &str, bridge: &str) -> Result<OwnedFd> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| Error::with_errno("socketpair failed", &e.into()))?;
    let number = theirs.as_raw_fd();
    let mut command = if helper.contains([' ', '\t']) {
        // A command line; the bridge is added only if it does not name one.
        let bridge = if helper.contains("--br=") { String::new() } else { format!(" --br={bridge}") };
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(format!("{helper} --use-vnet --fd={number}{bridge}"));
        command
    } else {
        let mut command = Command::new(helper);
        command.arg("--use-vnet").arg(format!("--fd={number}")).arg(format!("--br={bridge}"));
        command
    };
    // SAFETY: fcntl is async-signal-safe, and the descriptor is open in the child.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(number, libc::F_SETFD, 0) == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(_) => bail!("bridge helper failed"),
    };
    drop(theirs);
    let received = receive(&ours);
    let status = child.wait();
    match (received, status) {
        (Ok(Some(fd)), Ok(status)) if status.success() => Ok(fd),
        (Err(e), _) => Err(Error::with_errno("failed to recv file descriptor", &e)),
        // A helper that succeeds without sending anything: the descriptor it should have sent is nothing.
        (Ok(None), Ok(status)) if status.success() => {
            bail!("Unable to query TUNGETIFF on FD 0: Inappropriate ioctl for device")
        }
        _ => bail!("bridge helper failed"),
    }
}

/// Receives one byte with one descriptor; nothing if the other side is closed first.
fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return Ok(fds.next());
        }
    }
    Ok(None)
}
