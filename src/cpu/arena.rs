//! Memory for generated code: written through one mapping, run through another, so that no page is both.

use std::{io, ptr::NonNull};

/// A bump allocator of executable memory.
pub(crate) struct Arena {
    write: NonNull<u8>,
    run: NonNull<u8>,
    size: usize,
    used: usize,
}

// SAFETY: the mappings belong to the arena and are reached through it only.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves `size` bytes; the host backs what is used.
    pub fn new(size: usize) -> io::Result<Self> {
        // SAFETY: plain system calls; results are checked, and the descriptor is closed once the mappings hold the memory.
        unsafe {
            let fd = libc::memfd_create(c"lockstep-code".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let map = |prot| libc::mmap(std::ptr::null_mut(), size, prot, libc::MAP_SHARED, fd, 0);
            let sized = libc::ftruncate(fd, size as libc::off_t) == 0;
            let (write, run) = if sized {
                (map(libc::PROT_READ | libc::PROT_WRITE), map(libc::PROT_READ | libc::PROT_EXEC))
            } else {
                (libc::MAP_FAILED, libc::MAP_FAILED)
            };
            let error = io::Error::last_os_error();
            libc::close(fd);
            if write == libc::MAP_FAILED || run == libc::MAP_FAILED {
                for map in [write, run].into_iter().filter(|&m| m != libc::MAP_FAILED) {
                    libc::munmap(map, size);
                }
                return Err(error);
            }
            let (write, run) = (NonNull::new(write.cast()), NonNull::new(run.cast()));
            let (Some(write), Some(run)) = (write, run) else { return Err(error) };
            Ok(Self { write, run, size, used: 0 })
        }
    }

    /// Where the next piece of code will run.
    pub fn next_address(&self) -> u64 {
        self.run.as_ptr() as u64 + self.used.next_multiple_of(16) as u64
    }

    /// Changes code that was added, four aligned or unaligned bytes at the address where they run. Outside the arena: nothing.
    /// The processor sees the change when it next runs the bytes: caches are by physical address, and what was fetched
    /// ahead is long retired when generated code is entered again.
    pub fn patch(&mut self, address: u64, value: i32) {
        let Some(at) = address.checked_sub(self.run.as_ptr() as u64) else { return };
        if at as usize + 4 <= self.used {
            // SAFETY: inside the mapping; only this thread runs the code, and it runs none of it now.
            unsafe { self.write.as_ptr().add(at as usize).cast::<i32>().write_unaligned(value) };
        }
    }

    /// Has code that was added jump elsewhere from its first byte on. It must be 5 bytes long at least, and not run now.
    pub fn redirect(&mut self, address: u64, to: u64) {
        let Some(at) = address.checked_sub(self.run.as_ptr() as u64) else { return };
        if at as usize + 5 <= self.used {
            // SAFETY: inside the mapping, see above.
            unsafe { self.write.as_ptr().add(at as usize).write(0xe9) };
            self.patch(address + 1, to.wrapping_sub(address + 5) as i32);
        }
    }

    /// Copies code in; gives its address, or nothing when the arena is full.
    pub fn add(&mut self, code: &[u8]) -> Option<*const u8> {
        let at = self.used.next_multiple_of(16);
        if at + code.len() > self.size {
            return None;
        }
        // SAFETY: inside both mappings; nothing runs there before the address is given out.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.as_ptr().add(at), code.len());
            self.used = at + code.len();
            Some(self.run.as_ptr().add(at))
        }
    }

    /// Gives out less than there is. `Drop` then unmaps less, which tests can bear.
    #[cfg(test)]
    pub fn limit(&mut self, size: usize) {
        self.size = self.size.min(size);
    }

    /// Forgets all code. Nothing of it may run any more.
    pub fn clear(&mut self) {
        self.used = 0;
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: both were mapped with this size in `new`.
        unsafe {
            libc::munmap(self.write.as_ptr().cast(), self.size);
            libc::munmap(self.run.as_ptr().cast(), self.size);
        }
    }
}
