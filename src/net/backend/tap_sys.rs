//! The kernel's interface to tap devices (`linux/if_tun.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// The length of a virtio-net header without merged buffers.
pub const VNET_HEADER: usize = 10;

const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNGETFEATURES: libc::c_ulong = 0x8004_54cf;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETSNDBUF: libc::c_ulong = 0x4004_54d4;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// `struct ifreq` with flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    fn new(name: &str, flags: i16) -> Self {
        let mut request = Self { name: [0; 16], flags, rest: [0; 22] };
        let len = name.len().min(15);
        request.name[..len].copy_from_slice(&name.as_bytes()[..len]);
        request
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|&b| b == 0).unwrap_or(16);
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

/// A tap device.
#[derive(Debug)]
pub struct Tap {
    pub fd: OwnedFd,
    /// Its interface.
    pub name: String,
    /// Each frame has a virtio-net header before it.
    pub vnet_header: bool,
}

/// Makes or opens the interface `name` (the kernel chooses one if it is empty).
pub fn open(name: &str, vnet_header: bool) -> Result<Tap, OpenError> {
    let fd = rustix::fs::open(c"/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(|e| OpenError::Device(e.into()))?;
    let mut features: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int to the pointer, which is valid for that.
    let known = unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETFEATURES as _, &raw mut features) } == 0;
    let vnet_header = vnet_header && known && features & IFF_VNET_HDR as libc::c_uint != 0;
    let flags = IFF_TAP | IFF_NO_PI | if vnet_header { IFF_VNET_HDR } else { 0 };
    let mut request = InterfaceRequest::new(if name.is_empty() { "tap%d" } else { name }, flags);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, whose layout and size the request has.
    if unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF as _, &raw mut request) } != 0 {
        return Err(OpenError::Interface(io::Error::last_os_error()));
    }
    let tap = Tap { fd, name: request.name(), vnet_header };
    tap.set_plain();
    Ok(tap)
}

/// Why a tap device could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// `/dev/net/tun`.
    Device(io::Error),
    /// The interface.
    Interface(io::Error),
}

/// Takes over a descriptor of a tap device.
pub fn adopt(fd: OwnedFd) -> io::Result<Tap> {
    let (name, vnet_header) = probe(std::os::fd::AsFd::as_fd(&fd))?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    let tap = Tap { fd, name, vnet_header };
    tap.set_plain();
    Ok(tap)
}

/// The interface behind a descriptor, and whether frames have a virtio-net header.
pub fn probe(fd: BorrowedFd<'_>) -> io::Result<(String, bool)> {
    let mut request = InterfaceRequest::new("", 0);
    // SAFETY: TUNGETIFF writes one `struct ifreq`, whose layout and size the request has.
    if unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF as _, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((request.name(), request.flags & IFF_VNET_HDR != 0))
}

impl Tap {
    /// Headers of the common length, and no offloads: the kernel hands out finished frames only.
    fn set_plain(&self) {
        if self.vnet_header {
            let size = VNET_HEADER as libc::c_int;
            // SAFETY: TUNSETVNETHDRSZ reads one int from the pointer, which is valid for that.
            unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const size) };
        }
        // SAFETY: TUNSETOFFLOAD takes flags by value.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETOFFLOAD as _, 0 as libc::c_ulong) };
    }

    /// Limits the bytes on their way through the interface.
    pub fn set_sndbuf(&self, bytes: i32) -> io::Result<()> {
        // SAFETY: TUNSETSNDBUF reads one int from the pointer, which is valid for that.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETSNDBUF as _, &raw const bytes) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
