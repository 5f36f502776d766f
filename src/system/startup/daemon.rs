//! `-daemonize`: the process that was started ends when its child has set everything up.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, FromRawFd, OwnedFd},
};

use lockstep_util::{Result, err};

/// The child's end of the pipe on which the parent waits. Dropped without [`ready`](Self::ready), the parent fails.
pub(super) struct Daemon {
    parent: File,
}

/// Forks. The parent waits and exits; the child goes on in a session of its own. To be called before any thread is made.
///
/// # Errors
/// When the host has no more processes or descriptors.
pub(super) fn daemonize() -> Result<Daemon> {
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| err!("cannot make a pipe: {e}"))?;
    // SAFETY: there is one thread yet, so that the child is a whole copy of this process.
    match unsafe { libc::fork() } {
        -1 => Err(err!("could not fork: {}", std::io::Error::last_os_error())),
        0 => {
            drop(read);
            let _ = rustix::process::setsid();
            Ok(Daemon { parent: File::from(write) })
        }
        _ => {
            drop(write);
            let mut status = [1];
            let told = File::from(read).read(&mut status);
            let code = if matches!(told, Ok(1)) { i32::from(status[0]) } else { 1 };
            std::process::exit(code)
        }
    }
}

impl Daemon {
    /// Everything is set up: the terminal is let go, the parent ends well.
    ///
    /// # Errors
    /// When the host's null device is missing.
    pub(super) fn ready(mut self) -> Result<()> {
        let null =
            File::options().read(true).write(true).open("/dev/null").map_err(|e| err!("cannot open /dev/null: {e}"))?;
        let _ = rustix::process::chdir("/");
        // What would be said on standard error goes to the log's file (-D), if there is one.
        let log = lockstep_util::Log::global().file();
        let errors = log.as_ref().map_or(null.as_fd(), AsFd::as_fd);
        for (fd, to) in [(0, null.as_fd()), (1, null.as_fd()), (2, errors)] {
            // SAFETY: the standard descriptors belong to the whole process; each is replaced, never closed.
            let mut standard = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd) });
            let _ = rustix::io::dup2(to, &mut standard);
        }
        self.parent.write_all(&[0]).map_err(|e| err!("cannot tell the parent process: {e}"))
    }
}
