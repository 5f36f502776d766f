//! Giving up root, set-user-ID or not, except for the right to configure networks.

use std::io;

const CAP_NET_ADMIN: u32 = 12;
/// Version 3 of the capability interface: 64 bits in two words.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// More than any kernel has.
const MAX_CAPABILITY: libc::c_ulong = 63;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// If a user other than root runs this with root's rights, becomes that user with `CAP_NET_ADMIN` alone.
pub fn drop_all_but_net_admin() -> io::Result<()> {
    // SAFETY: these calls take no pointers and cannot fail.
    let (uid, euid, gid) = unsafe { (libc::getuid(), libc::geteuid(), libc::getgid()) };
    if uid == 0 || euid != 0 {
        return Ok(());
    }
    for capability in 0..=MAX_CAPABILITY {
        // SAFETY: PR_CAPBSET_DROP takes a number; one that the kernel does not know is refused, which is fine.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    // SAFETY: PR_SET_KEEPCAPS takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })?;
    // SAFETY: these calls take numbers; there is one thread.
    check(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: as above.
    check(unsafe { libc::setresuid(uid, uid, uid) })?;
    let header = Header { version: CAPABILITY_VERSION, pid: 0 };
    let mask = 1 << CAP_NET_ADMIN;
    let sets = [
        Sets { effective: mask, permitted: mask, inheritable: 0 },
        Sets { effective: 0, permitted: 0, inheritable: 0 },
    ];
    // SAFETY: version 3 reads the header and two sets, which the pointers point to.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } as libc::c_int)?;
    // SAFETY: PR_SET_NO_NEW_PRIVS takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
