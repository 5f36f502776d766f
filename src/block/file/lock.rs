//! Image locking between processes: byte locks on the image itself, as QEMU places them, so that the two respect each
//! other. Byte 100 + n is held (shared) by whoever needs permission n, byte 200 + n by whoever does not share it.

use crate::child::Perm;
use lockstep_util::{Error, Result};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const NEEDED_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;
const BITS: u32 = 4;

/// The locks one node holds on its file.
pub struct ImageLock {
    file: File,
    filename: String,
    needed: Perm,
    unshared: Perm,
}

impl ImageLock {
    /// No locks yet. `file` is a description of its own, not shared with the data path.
    pub fn new(file: File, filename: &str) -> Self {
        Self { file, filename: filename.to_owned(), needed: Perm::empty(), unshared: Perm::empty() }
    }

    /// Whether the file system has such locks.
    pub fn works(&self) -> bool {
        probe(&self.file, NEEDED_BASE).is_ok()
    }

    /// Takes what is missing and checks for others. On an error the old locks are in force.
    pub fn acquire(&mut self, perm: Perm, shared: Perm) -> Result<()> {
        let unshared = Perm::all() - shared;
        let result = self.acquire_inner(perm, unshared);
        match result {
            Ok(()) => {
                self.needed |= perm;
                self.unshared |= unshared;
            }
            Err(_) => self.place(self.needed, self.unshared),
        }
        result
    }

    /// Gives back what is not needed.
    pub fn reduce(&mut self, perm: Perm, shared: Perm) {
        self.needed = perm;
        self.unshared = Perm::all() - shared;
        self.place(self.needed, self.unshared);
    }

    fn acquire_inner(&self, perm: Perm, unshared: Perm) -> Result<()> {
        for bit in 0..BITS {
            let flag = Perm::from_bits_truncate(1 << bit);
            for (wanted, base) in [(perm, NEEDED_BASE), (unshared, UNSHARED_BASE)] {
                if wanted.contains(flag) {
                    set(&self.file, base + i64::from(bit), true)
                        .map_err(|e| Error::with_errno("Failed to lock byte", &e))?;
                }
            }
        }
        for bit in 0..BITS {
            let flag = Perm::from_bits_truncate(1 << bit);
            for (wanted, base, shared) in [(perm, UNSHARED_BASE, ""), (unshared, NEEDED_BASE, "shared ")] {
                if wanted.contains(flag) && self.held_by_others(base + i64::from(bit))? {
                    return Err(Error::new(format!("Failed to get {shared}\"{}\" lock", flag.names()))
                        .hint(format!("Is another process using the image [{}]?\n", self.filename)));
                }
            }
        }
        Ok(())
    }

    fn held_by_others(&self, byte: i64) -> Result<bool> {
        probe(&self.file, byte).map_err(|e| Error::with_errno("Failed to check byte lock", &e))
    }

    /// Holds exactly these, as far as the kernel lets us.
    fn place(&self, needed: Perm, unshared: Perm) {
        for bit in 0..BITS {
            let flag = Perm::from_bits_truncate(1 << bit);
            for (held, base) in [(needed, NEEDED_BASE), (unshared, UNSHARED_BASE)] {
                if let Err(e) = set(&self.file, base + i64::from(bit), held.contains(flag)) {
                    tracing::warn!("releasing a lock on '{}': {e}", self.filename);
                }
            }
        }
    }
}

fn flock(kind: i32, byte: i64) -> libc::flock {
    // SAFETY: `flock` is a plain C struct for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

fn set(file: &File, byte: i64, hold: bool) -> io::Result<()> {
    let lock = flock(if hold { libc::F_RDLCK } else { libc::F_UNLCK }, byte);
    // SAFETY: the descriptor is open and `lock` is a valid `flock` for the whole call.
    let r = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether another open file description holds a lock on the byte.
fn probe(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = flock(libc::F_WRLCK, byte);
    // SAFETY: the descriptor is open and `lock` is a valid, writable `flock` for the whole call.
    let r = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    if r == 0 { Ok(i32::from(lock.l_type) != libc::F_UNLCK) } else { Err(io::Error::last_os_error()) }
}
