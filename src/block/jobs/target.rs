//! Making the file that a job will write to (`mode=absolute-paths`).

use std::rc::Rc;

use lockstep_util::{Result, bail};

use super::mirror::SyncMode;
use crate::graph::Graph;
use crate::node::Node;

/// Creates an image of `size` bytes. With `sync=top` (or `none`) its backing file is what the source does not copy.
pub(super) async fn create(
    _graph: &Graph,
    filename: &str,
    format: &str,
    size: u64,
    _source: &Rc<Node>,
    _sync: SyncMode,
) -> Result<()> {
    if format != "raw" {
        bail!("Format driver '{format}' does not support image creation");
    }
    let path = filename.strip_prefix("file:").unwrap_or(filename).to_owned();
    if crate::open::has_protocol(&path) {
        bail!("Protocol driver does not support image creation");
    }
    let made = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    match made.and_then(|f| f.set_len(size)) {
        Ok(()) => Ok(()),
        Err(e) => Err(lockstep_util::Error::with_errno(format_args!("Could not create '{path}'"), &e)),
    }
}
