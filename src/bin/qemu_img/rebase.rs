//! `qemu-img rebase`: another backing file, with what is seen through it kept (or, unsafely, just the name changed).

use super::open::{self, Image, Request};
use super::progress::Progress;
use super::{FAILURE, Outcome, args};
use lockstep_bin::getopt::{Spec, opt};
use lockstep_block::open::{combine_path, find_driver, has_protocol};
use lockstep_block::qcow2::Qcow2;
use lockstep_block::{Graph, Node, OpenFlags, WriteFlags};
use lockstep_util::{Error, Result, ResultExt, bail};
use std::rc::Rc;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('q', "quiet", false),
    opt('p', "progress", false),
    opt('f', "format", true),
    opt(' ', "image-opts", false),
    opt('t', "cache", true),
    opt('b', "backing", true),
    opt('F', "backing-format", true),
    opt('T', "backing-cache", true),
    opt('u', "backing-unsafe", false),
    opt('c', "compress", false),
    opt('U', "force-share", false),
    opt(' ', "object", true),
];

/// Bytes compared at a time.
const CHUNK: u64 = 2 << 20;

pub fn run(arguments: &[String]) -> Outcome {
    let Some(parsed) = args::parse("rebase", arguments, OPTIONS)? else { return Ok(()) };
    args::refuse(&parsed, &["object", "compress", "force-share"])?;
    let name = args::one_filename("rebase", &parsed)?;
    let just_name = parsed.has("backing-unsafe");
    let backing = parsed.value("backing");
    if !just_name && backing.is_none() {
        return args::usage(Some("rebase"), "Must specify backing file (-b) or use unsafe mode (-u)");
    }
    let flags = OpenFlags { no_backing: just_name, unmap: true, ..OpenFlags::default() };
    let mut backing_flags = open::read_only();
    let request = Request::of(&parsed, name, flags).cached(&parsed)?;
    let mode = parsed.value("backing-cache").unwrap_or("writeback");
    if open::cache_mode(mode, &mut backing_flags).is_none() {
        args::report(&format!("Invalid source cache option: {mode}"));
        return Err(FAILURE);
    }
    let format = parsed.value("backing-format");
    let progress = parsed.has("progress") && !parsed.has("quiet");
    open::run(|graph| async move {
        let image = open::image(&graph, request).await?;
        if let Some(format) = format
            && find_driver(format).is_err()
        {
            args::report(&format!("Invalid format name: '{format}'"));
            return Err(FAILURE);
        }
        let name = backing.filter(|b| !b.is_empty());
        if !just_name {
            let new = match name {
                Some(name) => Some(open_new(&graph, &image, name, format, backing_flags).await?),
                None => None,
            };
            if let Err(e) = keep_contents(&image.node, new.as_ref().map(|i| &i.node), progress).await {
                return args::fail(&e);
            }
        }
        match change(&image.node, backing, name, format).await {
            Ok(()) => Ok(()),
            Err(e) => args::fail(&e),
        }
    })
}

async fn open_new(
    graph: &Graph,
    image: &Image,
    name: &str,
    format: Option<&str>,
    flags: OpenFlags,
) -> std::result::Result<Image, u8> {
    let full = if has_protocol(name) { name.to_owned() } else { combine_path(&image.node.filename(), name) };
    let request = Request { name: &full, image_opts: false, format, flags, writethrough: false };
    match open::try_image(graph, request).await {
        Ok(image) => Ok(image),
        Err(e) => args::fail(&e.prepend(format!("Could not open new backing file '{name}': "))),
    }
}

/// Copies into the image what reads differently through the new backing file.
async fn keep_contents(top: &Rc<Node>, new: Option<&Rc<Node>>, progress: bool) -> Result<()> {
    let length = top.len().context("Could not get size of the image")?;
    let old = top.backing();
    let mut progress = Progress::new(progress, length);
    let mut at = 0;
    while at < length {
        let n = (length - at).min(CHUNK);
        let extent = top.block_status(at, n, false).await.context("error while reading image metadata")?;
        let n = n.min(extent.len);
        if !extent.status.contains(lockstep_block::Status::ALLOCATED) {
            let mut a = vec![0; n as usize];
            let mut b = vec![0; n as usize];
            if let Some(old) = &old {
                old.read(at, &mut a).await.context("error while reading from old backing file")?;
            }
            if let Some(new) = new {
                new.read(at, &mut b).await.context("error while reading from new backing file")?;
            }
            write_differences(top, at, &a, &b).await.context("Error while writing to COW image")?;
        }
        at += n;
        progress.advance(n);
    }
    top.flush().await.context("Could not flush the image")?;
    progress.finish();
    Ok(())
}

async fn write_differences(top: &Rc<Node>, at: u64, a: &[u8], b: &[u8]) -> std::io::Result<()> {
    const UNIT: usize = 512;
    let differs = |i: usize| a[i..a.len().min(i + UNIT)] != b[i..b.len().min(i + UNIT)];
    let mut i = 0;
    while i < a.len() {
        if !differs(i) {
            i += UNIT;
            continue;
        }
        let start = i;
        while i < a.len() && differs(i) {
            i += UNIT;
        }
        let end = i.min(a.len());
        let part = &a[start..end];
        if lockstep_block::io::is_zero(part) {
            top.write_zeroes(at + start as u64, part.len() as u64, WriteFlags::empty()).await?;
        } else {
            top.write(at + start as u64, part, WriteFlags::empty()).await?;
        }
    }
    Ok(())
}

async fn change(top: &Rc<Node>, asked: Option<&str>, name: Option<&str>, format: Option<&str>) -> Result<()> {
    let shown = asked.unwrap_or("(null)");
    let Some(image) = top.driver_as::<Qcow2>() else {
        bail!("Could not change the backing file to '{shown}': Operation not supported");
    };
    image
        .change_backing(name, if name.is_some() { format } else { None })
        .await
        .map_err(|e| Error::new(format!("Could not change the backing file to '{shown}': {e}")))
}
