//! Files, and the named pipes `NAME.in` and `NAME.out`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use lockstep_qapi::schema::ChardevFile;
use lockstep_util::{Result, ResultExt};

use super::Backend;
use crate::link::Link;

pub(super) fn make(options: &ChardevFile) -> Result<Backend> {
    let append = options.append.unwrap_or(false);
    let out = OpenOptions::new()
        .write(true)
        .create(true)
        .append(append)
        .truncate(!append)
        .mode(0o666)
        .open(&options.out)
        .context(format!("Could not open '{}'", options.out))?;
    let input = match &options.in_ {
        Some(path) => Some(File::open(path).context(format!("Could not open '{path}'"))?),
        None => None,
    };
    Ok(Backend::of_link(Link::Files { read: input.map(Into::into), write: Some(out.into()) }, "file"))
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
