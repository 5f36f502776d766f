//! `qemu-bridge-helper`: makes a tap device, puts it on a bridge, and hands it to whoever asks, if the system's list allows.
//!
//! Meant to be installed set-user-ID root. It keeps nothing of root but `CAP_NET_ADMIN`, before it looks at anything, so
//! that the lists it reads are those that the user could read.

mod acl;
mod interface;
mod privileges;

use std::io::IoSlice;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Who may use which bridge.
const DEFAULT_ACL: &str = "/etc/qemu/bridge.conf";
const USAGE: &str = "Usage: qemu-bridge-helper [--use-vnet] --br=bridge --fd=unixfd";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    use_vnet: bool,
    bridge: String,
    fd: i32,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    privileges::drop_all_but_net_admin().map_err(|_| "failed to drop privileges".to_owned())?;
    let request = parse(std::env::args().skip(1)).ok_or(USAGE)?;
    let name = &request.bridge;
    if name.len() > interface::MAX_NAME {
        return Err(format!("name `{name}' too long: {}", name.len()));
    }
    let rules = acl::load(DEFAULT_ACL).map_err(|note| {
        let failed = format!("failed to parse default acl file `{DEFAULT_ACL}'");
        note.map_or(failed.clone(), |note| format!("{note}\n{failed}"))
    })?;
    if !acl::allows(&rules, name) {
        return Err("access denied by acl file".to_owned());
    }
    let tap = interface::make_bridged_tap(name, request.use_vnet)?;
    send(request.fd, &tap).map_err(|e| format!("failed to write fd to unix socket: {}", text(&e)))
}

fn parse(args: impl Iterator<Item = String>) -> Option<Request> {
    let (mut use_vnet, mut bridge, mut fd) = (false, None, None);
    let mut args = args;
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg, None),
        };
        match name.as_str() {
            "--use-vnet" if value.is_none() => use_vnet = true,
            "--br" => bridge = Some(value.or_else(|| args.next())?),
            "--fd" => fd = Some(value.or_else(|| args.next())?.parse().ok()?),
            _ => return None,
        }
    }
    Some(Request { use_vnet, bridge: bridge?, fd: fd.filter(|&n| n >= 0)? })
}

/// One byte, and the descriptor with it.
fn send(socket: i32, tap: &OwnedFd) -> std::io::Result<()> {
    // SAFETY: the number comes from the caller of this program; if it is not open, the call below fails, and nothing in
    // this process opens or closes descriptors meanwhile.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [std::os::fd::AsFd::as_fd(tap)];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    loop {
        match sendmsg(socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty()) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// `strerror`.
fn text(e: &std::io::Error) -> String {
    lockstep_util::errno_text(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(args: &[&str]) -> Option<Request> {
        parse(args.iter().map(|a| (*a).to_owned()))
    }

    #[test]
    fn arguments_in_both_forms() {
        let want = Request { use_vnet: true, bridge: "br0".into(), fd: 8 };
        assert_eq!(request(&["--use-vnet", "--fd=8", "--br=br0"]), Some(want));
        let want = Request { use_vnet: false, bridge: "b".into(), fd: 3 };
        assert_eq!(request(&["--br", "b", "--fd", "3"]), Some(want));
        for bad in [&[][..], &["--fd=8"], &["--br=x"], &["--br=x", "--fd=y"], &["--fd=1", "--br=x", "more"]] {
            assert_eq!(request(bad), None, "{bad:?}");
        }
    }
}
