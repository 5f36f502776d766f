//! The kernel's interface to tap devices and bridges (`linux/if_tun.h`, netdevice(7)).

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::text;

/// The longest name of an interface.
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNGETFEATURES: libc::c_ulong = 0x8004_54cf;
const SIOCBRADDIF: libc::c_ulong = 0x89a2;
const IFF_VNET_HDR: libc::c_short = 0x4000;

/// Makes a tap device, up, on the bridge and of its MTU. The error is what to say.
pub fn make_bridged_tap(bridge: &str, use_vnet: bool) -> Result<OwnedFd, String> {
    let control = control_socket().map_err(|e| format!("failed to open control socket: {}", text(&e)))?;
    let tap = rustix::fs::open(c"/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| format!("failed to open /dev/net/tun: {}", text(&e.into())))?;
    let name = configure(&tap, use_vnet).map_err(|e| format!("failed to create tun device: {}", text(&e)))?;

    let mut request = request(bridge);
    ask(&control, libc::SIOCGIFMTU, &mut request)
        .map_err(|e| format!("failed to get mtu of bridge `{bridge}': {}", text(&e)))?;
    // SAFETY: SIOCGIFMTU has filled this member in.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    set_name(&mut request, &name);
    ask(&control, libc::SIOCSIFMTU, &mut request)
        .map_err(|e| format!("failed to set mtu of device `{name}' to {mtu}: {}", text(&e)))?;

    // A bridge takes the lowest address of its ports for its own: that of a guest must not be lower than the host's.
    ask(&control, libc::SIOCGIFHWADDR, &mut request)
        .map_err(|e| format!("failed to get MAC address of device `{name}': {}", text(&e)))?;
    // SAFETY: SIOCGIFHWADDR has filled this member in; its data are plain bytes.
    unsafe { request.ifr_ifru.ifru_hwaddr.sa_data[0] = 0xfe_u8 as libc::c_char };
    ask(&control, libc::SIOCSIFHWADDR, &mut request)
        .map_err(|e| format!("failed to set MAC address of device `{name}': {}", text(&e)))?;

    add_to_bridge(&control, bridge, &name)
        .map_err(|e| format!("failed to add interface `{name}' to bridge `{bridge}': {}", text(&e)))?;

    ask(&control, libc::SIOCGIFFLAGS, &mut request)
        .map_err(|e| format!("failed to get interface flags for `{name}': {}", text(&e)))?;
    // SAFETY: SIOCGIFFLAGS has filled this member in.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    ask(&control, libc::SIOCSIFFLAGS, &mut request)
        .map_err(|e| format!("failed to bring up interface `{name}': {}", text(&e)))?;
    Ok(tap)
}

fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket takes numbers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Turns the open `/dev/net/tun` into a new tap device; its name.
fn configure(tap: &OwnedFd, use_vnet: bool) -> io::Result<String> {
    let mut features: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int to the pointer.
    let known = unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETFEATURES as _, &raw mut features) } == 0;
    let vnet = use_vnet && known && features & IFF_VNET_HDR as libc::c_uint != 0;
    let mut request = request("tap%d");
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    request.ifr_ifru.ifru_flags = flags | if vnet { IFF_VNET_HDR } else { 0 };
    ask(tap, TUNSETIFF, &mut request)?;
    let bytes: Vec<u8> = request.ifr_name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn add_to_bridge(control: &OwnedFd, bridge: &str, name: &str) -> io::Result<()> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the string ends with NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let mut request = request(bridge);
    request.ifr_ifru.ifru_ifindex = index as libc::c_int;
    ask(control, SIOCBRADDIF, &mut request)
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid `ifreq`: numbers and arrays of numbers.
    let mut request: libc::ifreq = unsafe { zeroed() };
    set_name(&mut request, name);
    request
}

/// The rest of the name is zero: names are cut before its end.
fn set_name(request: &mut libc::ifreq, name: &str) {
    request.ifr_name = [0; libc::IFNAMSIZ];
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(MAX_NAME)) {
        *slot = byte as libc::c_char;
    }
}

fn ask(fd: &OwnedFd, code: impl Into<libc::c_ulong>, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all the codes used here read and write one `struct ifreq`.
    match unsafe { libc::ioctl(fd.as_raw_fd(), code.into() as _, std::ptr::from_mut(request)) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
