//! Making the image that a job will write to (`mode=absolute-paths`).

use std::rc::Rc;

use lockstep_util::{Error, Result};

use super::commands::NewImageMode;
use super::mirror::SyncMode;
use crate::OpenFlags;
use crate::graph::Graph;
use crate::image;
use crate::node::Node;
use crate::options::Options;

/// The image that a job is to write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// File name.
    pub filename: &'a str,
    /// Its format; by default a new image gets the source's, and that of an existing one is guessed.
    pub format: Option<&'a str>,
    /// Whether it is made first.
    pub mode: NewImageMode,
    /// Name of its node.
    pub node_name: Option<&'a str>,
}

/// Opens the image that a job will write to, having made it if so wanted.
pub(super) async fn open(
    graph: &Graph,
    target: Target<'_>,
    source: &Rc<Node>,
    sync: SyncMode,
    flags: OpenFlags,
) -> Result<Rc<Node>> {
    let mut format = target.format;
    if target.mode == NewImageMode::AbsolutePaths {
        format = format.or(Some(source.def().name));
        let size = source.len().map_err(|e| Error::with_errno("bdrv_getlength failed", &e))?;
        create(graph, target.filename, format.unwrap_or("raw"), size, source, sync).await?;
    }
    let mut options = Options::new();
    if let Some(name) = target.node_name {
        options.set("node-name", name);
    }
    if let Some(format) = format {
        options.set("driver", format);
    }
    graph.open(Some(target.filename), options, OpenFlags { no_backing: true, ..flags }).await
}

/// Creates an image of `size` bytes. Its backing file is what the job will not copy of the source.
async fn create(
    graph: &Graph,
    filename: &str,
    format: &str,
    size: u64,
    source: &Rc<Node>,
    sync: SyncMode,
) -> Result<()> {
    let mut options = Options::new();
    options.set("size", size);
    let below = match sync {
        SyncMode::Full => None,
        SyncMode::Top => source.skip_filters().backing(),
        SyncMode::None => Some(source.skip_filters()),
    };
    if let Some(below) = below {
        options.set("backing_file", below.filename());
        options.set("backing_fmt", below.def().name);
    }
    image::create(graph, filename, format, options).await
}
