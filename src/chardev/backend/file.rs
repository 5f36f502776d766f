//! Files, and the named pipes `NAME.in` and `NAME.out`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use lockstep_qapi::schema::ChardevFile;
use lockstep_util::{Result, ResultExt, fds};
use rustix::fs::OFlags;

use super::Backend;
use crate::link::Link;

pub(super) fn make(options: &ChardevFile) -> Result<Backend> {
    let append = options.append.unwrap_or(false);
    let flags = OFlags::WRONLY | OFlags::CREATE | if append { OFlags::APPEND } else { OFlags::TRUNC };
    let open = |path: &str, flags| fds::open(Path::new(path), flags, 0o666).context(format!("Could not open '{path}'"));
    let write = Some(open(&options.out, flags)?);
    let read = options.in_.as_deref().map(|path| open(path, OFlags::RDONLY)).transpose()?;
    Ok(Backend::of_link(Link::Files { read, write }, "file"))
}

pub(super) fn make_pipe(device: &str) -> Result<Backend> {
    // Opened for both directions, so that opening does not wait for the other side.
    let open = |path: &str| OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    let both = open(&format!("{device}.in")).and_then(|i| Ok((i, open(&format!("{device}.out"))?)));
    let (read, write) = match both {
        Ok((input, output)) => (input, output),
        Err(_) => {
            let file = open(device).context(format!("Could not open '{device}'"))?;
            (file.try_clone()?, file)
        }
    };
    Ok(Backend::of_link(Link::Files { read: Some(read.into()), write: Some(write.into()) }, "pipe"))
}
