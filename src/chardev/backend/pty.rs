//! A pseudo terminal: the other side opens the name that we report.

use std::os::fd::OwnedFd;

use lockstep_util::{Result, ResultExt};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::Backend;
use crate::link::Link;

/// Removes the link to the terminal.
struct PathLink(String);

impl Drop for PathLink {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) fn make(path: Option<&str>) -> Result<Backend> {
    let open = || -> std::io::Result<(OwnedFd, OwnedFd, String)> {
        let control = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&control)?;
        unlockpt(&control)?;
        let name = ptsname(&control, Vec::new())?;
        // Held open by us too: without any user the terminal would be at its end.
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let user = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
        let mut attributes = tcgetattr(&user)?;
        attributes.make_raw();
        tcsetattr(&user, OptionalActions::Now, &attributes)?;
        Ok((control, user, name.to_string_lossy().into_owned()))
    };
    let (control, user, name) = open().context("Failed to create PTY")?;
    let link = match path {
        Some(path) => {
            std::os::unix::fs::symlink(&name, path).context(format!("Failed to create PTY symlink at '{path}'"))?;
            Some(PathLink(path.to_owned()))
        }
        None => None,
    };
    let write = control.try_clone()?;
    let files = Link::Files { read: Some(control), write: Some(write) };
    let mut backend = Backend::of_link(files, &format!("pty:{name}"));
    backend.pty = Some(name);
    backend.keep = Some(Box::new((user, link)));
    Ok(backend)
}
