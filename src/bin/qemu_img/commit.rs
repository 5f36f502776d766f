//! `qemu-img commit`.

use super::open::{self, Image, Request};
use super::progress::Progress;
use super::{Outcome, args};
use lockstep_bin::getopt::{Spec, opt};
use lockstep_block::io::is_zero;
use lockstep_block::{Graph, Node, OpenFlags, Perm, Preallocation, Status, WriteFlags};
use lockstep_util::{Error, Result, ResultExt, bail};
use std::rc::Rc;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('q', "quiet", false),
    opt('p', "progress", false),
    opt('f', "format", true),
    opt(' ', "image-opts", false),
    opt('t', "cache", true),
    opt('d', "drop", false),
    opt('b', "base", true),
    opt('r', "rate", true),
    opt(' ', "object", true),
];

/// Bytes copied at a time.
const CHUNK: u64 = 2 << 20;

pub fn run(arguments: &[String]) -> Outcome {
    let Some(parsed) = args::parse("commit", arguments, OPTIONS)? else { return Ok(()) };
    args::refuse(&parsed, &["object", "rate"])?;
    let name = args::one_filename("commit", &parsed)?;
    let flags = OpenFlags { unmap: true, ..OpenFlags::default() };
    let request = Request::of(&parsed, name, flags).cached(&parsed)?;
    let base = parsed.value("base");
    // With a base further down the image in between would be wrong anyway: nothing is emptied.
    let keep = parsed.has("drop") || base.is_some();
    let (quiet, progress) = (parsed.has("quiet"), parsed.has("progress"));
    open::run(|graph| async move {
        let image = open::image(&graph, request).await?;
        match commit(&graph, &image, base, keep, progress && !quiet).await {
            Ok(()) if quiet => Ok(()),
            Ok(()) => args::print("Image committed.\n"),
            Err(e) => args::fail(&e),
        }
    })
}

async fn commit(graph: &Graph, image: &Image, base: Option<&str>, keep: bool, progress: bool) -> Result<()> {
    let top = &image.node;
    let base = match base {
        None => match top.backing() {
            Some(node) => node,
            None => bail!("Image does not have a backing file"),
        },
        Some(name) => find_base(top, name)?,
    };
    if !keep && !top.driver()?.supports_make_empty() {
        bail!("Could not empty {}: Operation not supported", top.filename());
    }
    graph.reopen(&base, OpenFlags { read_only: false, ..base.flags() }).await?;
    // The base is written although those above rely on what they read: what they read stays the same.
    let root = base.parent_edges().into_iter().next();
    if let Some(edge) = &root {
        edge.set_perms(edge.perm() | Perm::WRITE | Perm::RESIZE, Perm::all())?;
    }
    let length = top.len().context("Can't get image size")?;
    if base.len().context("Can't get image size")? < length {
        base.truncate(length, true, Preallocation::Off).await?;
    }
    let mut progress = Progress::new(progress, length);
    let mut at = 0;
    while at < length {
        let (allocated, n) = top
            .is_allocated_above(Some(&base), false, at, (length - at).min(1 << 30))
            .await
            .context("Failed to read image metadata")?;
        let n = if allocated { copy(top, &base, at, n.min(CHUNK)).await? } else { n };
        at += n;
        progress.advance(n);
    }
    base.flush().await.context("Could not flush the base image")?;
    if !keep {
        top.make_empty().await.context(format!("Could not empty {}", top.filename()))?;
        top.flush().await.context(format!("Could not empty {}", top.filename()))?;
    }
    progress.finish();
    Ok(())
}

async fn copy(from: &Rc<Node>, to: &Rc<Node>, at: u64, len: u64) -> Result<u64> {
    let failed = |e: std::io::Error| Error::with_errno(format!("Error while committing offset {at}"), &e);
    let (extent, _) = from.block_status_above(None, at, len).await.map_err(failed)?;
    let len = len.min(extent.len);
    if extent.status.contains(Status::ZERO) {
        to.write_zeroes(at, len, WriteFlags::MAY_UNMAP).await.map_err(failed)?;
        return Ok(len);
    }
    let mut data = vec![0; len as usize];
    from.read(at, &mut data).await.map_err(failed)?;
    if is_zero(&data) {
        to.write_zeroes(at, len, WriteFlags::MAY_UNMAP).await.map_err(failed)?;
    } else {
        to.write(at, &data, WriteFlags::empty()).await.map_err(failed)?;
    }
    Ok(len)
}

fn find_base(top: &Rc<Node>, name: &str) -> Result<Rc<Node>> {
    let mut at = top.backing();
    while let Some(node) = at {
        if node.filename() == name {
            return Ok(node);
        }
        at = node.backing();
    }
    bail!("Did not find '{name}' in the backing chain of '{}'", top.filename())
}
