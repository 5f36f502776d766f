//! `qemu-img convert`.

use super::create::{self, is_help, options_of};
use super::open::{self, Image, Request};
use super::progress::Progress;
use super::{FAILURE, Outcome, args};
use lockstep_bin::getopt::{Parsed, Spec, opt};
use lockstep_block::io::is_zero;
use lockstep_block::open::find_driver;
use lockstep_block::{Graph, Node, OpenFlags, Status, WriteFlags};
use lockstep_util::{Error, Result, ResultExt, bail, size::parse_size};
use std::rc::Rc;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('q', "quiet", false),
    opt('p', "progress", false),
    opt('f', "source-format", true),
    opt(' ', "source-image-opts", false),
    opt(' ', "image-opts", false),
    opt('l', "source-snapshot", true),
    opt('T', "source-cache", true),
    opt('O', "target-format", true),
    opt(' ', "target-image-opts", false),
    opt('o', "target-options", true),
    opt('c', "compress", false),
    opt('t', "target-cache", true),
    opt('B', "backing", true),
    opt('b', "", true),
    opt('F', "backing-format", true),
    opt('n', "no-create", false),
    opt(' ', "target-is-zero", false),
    opt('S', "sparse-size", true),
    opt(' ', "bitmaps", false),
    opt(' ', "skip-broken-bitmaps", false),
    opt('U', "force-share", false),
    opt('r', "rate", true),
    opt('m', "parallel", true),
    opt('C', "copy-range-offloading", false),
    opt(' ', "salvage", false),
    opt('W', "oob-writes", false),
    opt(' ', "object", true),
];

/// Bytes copied at a time.
const CHUNK: u64 = 2 << 20;
/// Zeroes shorter than this are written as data, unless the user says otherwise.
const SPARSE: u64 = 4096;

struct Plan {
    sparse: u64,
    compress: bool,
    /// What is not written reads as zeroes.
    target_zero: bool,
    /// What is not written is read from the target's backing file.
    has_backing: bool,
    cluster: u64,
    salvage: bool,
    quiet: bool,
}

pub fn run(arguments: &[String]) -> Outcome {
    let Some(parsed) = args::parse("convert", arguments, OPTIONS)? else { return Ok(()) };
    let parsed = &parsed;
    args::refuse(
        parsed,
        &["object", "source-snapshot", "bitmaps", "skip-broken-bitmaps", "rate", "copy-range-offloading"],
    )?;
    let target_format = parsed.value("target-format").unwrap_or("raw").to_owned();
    if parsed.values("target-options").iter().any(|o| is_help(o)) {
        return create::print_options(&target_format, !parsed.rest.is_empty());
    }
    let sparse = sparse_size(parsed)?;
    check_parallel(parsed)?;
    let no_create = parsed.has("no-create");
    let target_image_opts = parsed.has("target-image-opts");
    if target_image_opts && !no_create {
        args::report("--target-image-opts requires use of -n flag");
        return Err(FAILURE);
    }
    if parsed.has("target-is-zero") && !no_create {
        args::report("--target-is-zero requires use of -n flag");
        return Err(FAILURE);
    }
    let [sources @ .., target] = parsed.rest.as_slice() else {
        args::report("Must specify image file name");
        return Err(FAILURE);
    };
    if sources.is_empty() {
        args::report("Must specify image file name");
        return Err(FAILURE);
    }
    let mut source_flags = OpenFlags { force_share: parsed.has("force-share"), ..open::read_only() };
    cache(parsed, "source-cache", "writeback", "source ", &mut source_flags)?;
    let mut target_flags = OpenFlags { unmap: true, ..OpenFlags::default() };
    let writethrough = cache(parsed, "target-cache", "unsafe", "", &mut target_flags)?;
    let image_opts = parsed.has("image-opts") || parsed.has("source-image-opts");
    let quiet = parsed.has("quiet");
    let backing = parsed.value("backing").or_else(|| parsed.value("b")).map(str::to_owned);
    open::run(|graph| async move {
        let mut images = Vec::new();
        for name in sources {
            let request = Request {
                name,
                image_opts,
                format: parsed.value("source-format"),
                flags: source_flags,
                writethrough: false,
            };
            images.push(open::image(&graph, request).await?);
        }
        let lengths: Vec<u64> = match images.iter().map(|i| i.node.len()).collect() {
            Ok(lengths) => lengths,
            Err(e) => return args::fail(&Error::with_errno("Could not get size of the source", &e)),
        };
        let total: u64 = lengths.iter().sum();
        let request = create::Request {
            filename: target.clone(),
            format: target_format.clone(),
            options: options_of(parsed, "target-options"),
            size: Some(total),
            backing: backing.clone(),
            backing_format: parsed.value("backing-format").map(str::to_owned),
            backing_unsafe: false,
            quiet: true,
        };
        if let Err(e) = prepare(&graph, &request, no_create, parsed.has("compress")).await {
            return args::fail(&e);
        }
        let format = if target_image_opts || (no_create && parsed.value("target-format").is_none()) {
            None
        } else {
            Some(target_format.as_str())
        };
        // The target's contents are ours alone; its backing file is only needed to leave holes above it.
        let flags = OpenFlags { no_backing: !no_create && backing.is_none(), ..target_flags };
        let request = Request { name: target, image_opts: target_image_opts, format, flags, writethrough };
        let out = open::image(&graph, request).await?;
        let plan = match plan(parsed, &out, total, no_create, sparse) {
            Ok(plan) => plan,
            Err(e) => return args::fail(&e),
        };
        let mut progress = Progress::new(parsed.has("progress") && !quiet, total);
        let result = copy_all(&images, &lengths, &out.node, &plan, &mut progress).await;
        match result {
            Ok(()) => {
                progress.finish();
                Ok(())
            }
            Err(e) => args::fail(&e),
        }
    })
}

fn sparse_size(parsed: &Parsed) -> std::result::Result<u64, u8> {
    const MAX: u64 = 16 << 20;
    match parsed.value("sparse-size") {
        None => Ok(SPARSE),
        Some(text) => match parse_size(text, 'B') {
            Some(n) if n % 512 == 0 && n <= MAX => Ok(n),
            _ => {
                args::report(&format!(
                    "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to {MAX}. \
                     Select 0 to disable sparse detection (fully allocates output)."
                ));
                Err(FAILURE)
            }
        },
    }
}

/// `-m`: the number of requests at a time has no effect on what is written; it is checked all the same.
fn check_parallel(parsed: &Parsed) -> Outcome {
    match parsed.value("parallel") {
        Some(n) if !n.parse::<u32>().is_ok_and(|n| (1..=16).contains(&n)) => {
            args::report("Invalid number of coroutines. Allowed number of coroutines is between 1 and 16");
            Err(FAILURE)
        }
        _ => Ok(()),
    }
}

fn cache(
    parsed: &Parsed,
    option: &str,
    default: &str,
    kind: &str,
    flags: &mut OpenFlags,
) -> std::result::Result<bool, u8> {
    let mode = parsed.value(option).unwrap_or(default);
    open::cache_mode(mode, flags).ok_or_else(|| {
        args::report(&format!("Invalid {kind}cache option: {mode}"));
        FAILURE
    })
}

async fn prepare(graph: &Graph, request: &create::Request, no_create: bool, compress: bool) -> Result<()> {
    if no_create {
        return Ok(());
    }
    if find_driver(&request.format).is_err() {
        bail!("Unknown file format '{}'", request.format);
    }
    if compress && request.format != "qcow2" {
        bail!("Compression not supported for this file format");
    }
    if compress && request.options.iter().any(|(n, v)| n == "preallocation" && v != "off") {
        bail!("Compression and preallocation not supported at the same time");
    }
    create::check_names(&request.format, &request.options)?;
    create::create(graph, request)
        .await
        .map_err(|e| e.prepend(format!("{}: error while converting {}: ", request.filename, request.format)))
}

fn plan(parsed: &Parsed, out: &Image, total: u64, no_create: bool, sparse: u64) -> Result<Plan> {
    let info = out.node.driver()?.format_info();
    if out.node.len().context("Could not get size of the target")? < total {
        bail!("output file is smaller than input file");
    }
    let compress = parsed.has("compress");
    if compress && info.cluster_size == 0 {
        bail!("Compression not supported for this file format");
    }
    let has_backing = out.node.cow_child().is_some();
    Ok(Plan {
        sparse,
        compress,
        target_zero: !has_backing && (!no_create || parsed.has("target-is-zero")),
        has_backing,
        cluster: info.cluster_size,
        salvage: parsed.has("salvage"),
        quiet: parsed.has("quiet"),
    })
}

async fn copy_all(
    images: &[Image],
    lengths: &[u64],
    out: &Rc<Node>,
    plan: &Plan,
    progress: &mut Progress,
) -> Result<()> {
    let mut base = 0;
    for (image, length) in images.iter().zip(lengths) {
        let mut at = 0;
        while at < *length {
            let n = copy_step(&image.node, at, length - at, out, base + at, plan).await?;
            at += n;
            progress.advance(n);
        }
        base += length;
    }
    out.flush().await.context("error while flushing the target")
}

/// Copies from `at` on; says how far it came.
async fn copy_step(from: &Rc<Node>, at: u64, rest: u64, out: &Rc<Node>, to: u64, plan: &Plan) -> Result<u64> {
    let failed = |e: std::io::Error| Error::with_errno(format!("error while reading block status at offset {at}"), &e);
    let (extent, depth) = from.block_status_above(None, at, rest.min(1 << 30)).await.map_err(failed)?;
    let zero = extent.status.contains(Status::ZERO) || !extent.status.contains(Status::ALLOCATED);
    if plan.has_backing && (depth > 0 || !extent.status.contains(Status::ALLOCATED)) {
        // The same backing file is below the target.
        return Ok(extent.len);
    }
    if zero && plan.sparse > 0 && !plan.compress {
        write_zero(out, to, extent.len, plan).await?;
        return Ok(extent.len);
    }
    let mut n = extent.len.min(CHUNK).min(rest);
    if plan.compress {
        // Whole clusters only: what is around them goes along.
        n = (n.next_multiple_of(plan.cluster)).min(rest).min(CHUNK.next_multiple_of(plan.cluster));
        if zero && extent.len >= plan.cluster && to.is_multiple_of(plan.cluster) {
            let whole = extent.len - extent.len % plan.cluster;
            write_zero(out, to, whole, plan).await?;
            return Ok(whole);
        }
    }
    let mut data = vec![0; n as usize];
    if let Err(e) = from.read(at, &mut data).await {
        if !plan.salvage {
            return Err(Error::with_errno(format!("error while reading at byte {at}"), &e));
        }
        salvage(from, at, &mut data, plan.quiet).await;
    }
    if plan.compress {
        write_compressed(out, to, &data, plan).await?;
    } else {
        write_sparse(out, to, &data, plan).await?;
    }
    Ok(n)
}

/// Reads sector by sector; what cannot be read is zero.
async fn salvage(from: &Rc<Node>, at: u64, data: &mut [u8], quiet: bool) {
    for (i, sector) in data.chunks_mut(512).enumerate() {
        let offset = at + i as u64 * 512;
        if let Err(e) = from.read(offset, sector).await {
            sector.fill(0);
            if !quiet {
                args::report(&format!("warning: error while reading offset {offset}: {e}"));
            }
        }
    }
}

async fn write_zero(out: &Rc<Node>, to: u64, len: u64, plan: &Plan) -> Result<()> {
    if plan.target_zero {
        return Ok(());
    }
    out.write_zeroes(to, len, WriteFlags::MAY_UNMAP)
        .await
        .map_err(|e| Error::with_errno(format!("error while writing at byte {to}"), &e))
}

async fn write_compressed(out: &Rc<Node>, to: u64, data: &[u8], plan: &Plan) -> Result<()> {
    for (i, cluster) in data.chunks(plan.cluster as usize).enumerate() {
        let at = to + i as u64 * plan.cluster;
        let failed = |e: std::io::Error| Error::with_errno(format!("error while writing at byte {at}"), &e);
        if is_zero(cluster) {
            write_zero(out, at, cluster.len() as u64, plan).await?;
        } else {
            out.write(at, cluster, WriteFlags::COMPRESSED).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// Writes data, leaving long enough zeroes out.
async fn write_sparse(out: &Rc<Node>, to: u64, data: &[u8], plan: &Plan) -> Result<()> {
    let mut at = 0;
    while at < data.len() {
        let (end, zero) = stretch(data, at, to, plan.sparse);
        let part = &data[at..end];
        let offset = to + at as u64;
        if zero {
            write_zero(out, offset, part.len() as u64, plan).await?;
        } else {
            out.write(offset, part, WriteFlags::empty())
                .await
                .map_err(|e| Error::with_errno(format!("error while writing at byte {offset}"), &e))?;
        }
        at = end;
    }
    Ok(())
}

/// The end of the stretch from `at` that is all zero, or all to be written. Stretches end at multiples of the granularity.
fn stretch(data: &[u8], at: usize, to: u64, granularity: u64) -> (usize, bool) {
    if granularity == 0 {
        return (data.len(), false);
    }
    let block_end = |i: usize| {
        let position = to + i as u64;
        let next = position - position % granularity + granularity;
        ((next - to) as usize).min(data.len())
    };
    let mut end = block_end(at);
    let zero = is_zero(&data[at..end]);
    while end < data.len() {
        let next = block_end(end);
        if is_zero(&data[end..next]) != zero {
            break;
        }
        end = next;
    }
    (end, zero)
}
