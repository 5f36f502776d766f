//! Making the image that a job will write to (`mode=absolute-paths`).

use std::rc::Rc;

use lockstep_util::Result;

use super::mirror::SyncMode;
use crate::graph::Graph;
use crate::image;
use crate::node::Node;
use crate::options::Options;

/// Creates an image of `size` bytes. Its backing file is what the job will not copy of the source.
pub(super) async fn create(
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
