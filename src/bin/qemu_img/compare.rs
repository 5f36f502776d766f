//! `qemu-img compare`.

use super::open::{self, Request};
use super::progress::Progress;
use super::{Outcome, args};
use lockstep_bin::getopt::{Spec, opt};
use lockstep_block::io::is_zero;
use lockstep_block::{Node, OpenFlags, Status};
use lockstep_util::Error;
use std::rc::Rc;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('q', "quiet", false),
    opt('p', "progress", false),
    opt('f', "a-format", true),
    opt('F', "b-format", true),
    opt(' ', "image-opts", false),
    opt('s', "strict", false),
    opt('T', "cache", true),
    opt('U', "force-share", false),
    opt(' ', "object", true),
];

/// The images differ.
const DIFFERENT: u8 = 1;
/// They could not be compared.
const ERROR: u8 = 2;
/// Bytes compared at a time.
const CHUNK: u64 = 2 << 20;

pub fn run(arguments: &[String]) -> Outcome {
    let Some(parsed) = args::parse("compare", arguments, OPTIONS)? else { return Ok(()) };
    args::refuse(&parsed, &["object"])?;
    let mut flags = OpenFlags { force_share: parsed.has("force-share"), ..open::read_only() };
    if let Some(mode) = parsed.value("cache")
        && open::cache_mode(mode, &mut flags).is_none()
    {
        args::report(&format!("Invalid source cache option: {mode}"));
        return Err(ERROR);
    }
    let [a, b] = parsed.rest.as_slice() else {
        return args::usage(Some("compare"), "Expecting two image file names");
    };
    let image_opts = parsed.has("image-opts");
    let first = Request { name: a, image_opts, format: parsed.value("a-format"), flags, writethrough: false };
    let second = Request { name: b, format: parsed.value("b-format"), ..first };
    let (strict, quiet, progress) = (parsed.has("strict"), parsed.has("quiet"), parsed.has("progress"));
    open::run(|graph| async move {
        let a = open::image(&graph, first).await.map_err(|_| ERROR)?;
        let b = open::image(&graph, second).await.map_err(|_| ERROR)?;
        let say = |text: &str| {
            if !quiet {
                println!("{text}")
            }
        };
        match compare(&a.node, &b.node, strict, progress && !quiet, &say).await {
            Ok(true) => {
                say("Images are identical.");
                Ok(())
            }
            Ok(false) => Err(DIFFERENT),
            Err(e) => args::fail::<()>(&e).map_err(|_| ERROR),
        }
    })
}

async fn compare(
    a: &Rc<Node>,
    b: &Rc<Node>,
    strict: bool,
    progress: bool,
    say: &dyn Fn(&str),
) -> lockstep_util::Result<bool> {
    let size_error = |e: std::io::Error| Error::with_errno("Can't get size", &e);
    let (len_a, len_b) = (a.len().map_err(size_error)?, b.len().map_err(size_error)?);
    if strict && len_a != len_b {
        say("Strict mode: Image size mismatch!");
        return Ok(false);
    }
    let (common, all) = (len_a.min(len_b), len_a.max(len_b));
    let mut progress = Progress::new(progress, all);
    let mut at = 0;
    while at < common {
        let (ea, _) = status(a, at, common - at).await?;
        let (eb, _) = status(b, at, common - at).await?;
        let zero = |s: Status| s.contains(Status::ZERO) || !s.contains(Status::ALLOCATED);
        let n = ea.len.min(eb.len);
        if strict && ea.status.contains(Status::ALLOCATED) != eb.status.contains(Status::ALLOCATED) {
            say(&format!("Strict mode: Offset {at} block status mismatch!"));
            return Ok(false);
        }
        if zero(ea.status) && zero(eb.status) {
            at += n;
            progress.advance(n);
            continue;
        }
        let n = n.min(CHUNK);
        let (da, db) = (read(a, at, n).await?, read(b, at, n).await?);
        if let Some(i) = da.iter().zip(&db).position(|(x, y)| x != y) {
            // Differences are told by sector.
            say(&format!("Content mismatch at offset {}!", (at + i as u64) / 512 * 512));
            return Ok(false);
        }
        at += n;
        progress.advance(n);
    }
    if len_a != len_b {
        say("Warning: Image size mismatch!");
        let longer = if len_a > len_b { a } else { b };
        while at < all {
            let (extent, _) = status(longer, at, all - at).await?;
            let n = if extent.status.contains(Status::ZERO) || !extent.status.contains(Status::ALLOCATED) {
                extent.len
            } else {
                let n = extent.len.min(CHUNK);
                let data = read(longer, at, n).await?;
                if !is_zero(&data) {
                    let i = data.iter().position(|x| *x != 0).unwrap_or(0);
                    say(&format!("Content mismatch at offset {}!", (at + i as u64) / 512 * 512));
                    return Ok(false);
                }
                n
            };
            at += n;
            progress.advance(n);
        }
    }
    progress.finish();
    Ok(true)
}

async fn status(node: &Rc<Node>, at: u64, len: u64) -> lockstep_util::Result<(lockstep_block::Extent, usize)> {
    let max = len.min(1 << 30);
    node.block_status_above(None, at, max)
        .await
        .map_err(|e| Error::with_errno(format!("Sector allocation test failed for {}", node.filename()), &e))
}

async fn read(node: &Rc<Node>, at: u64, len: u64) -> lockstep_util::Result<Vec<u8>> {
    let mut data = vec![0; len as usize];
    node.read(at, &mut data)
        .await
        .map_err(|e| Error::with_errno(format!("Error while reading offset {at} of {}", node.filename()), &e))?;
    Ok(data)
}
