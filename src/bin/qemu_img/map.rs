//! `qemu-img map`.

use super::open::{self, Request};
use super::{FAILURE, Outcome, args};
use lockstep_bin::getopt::{Parsed, Spec, opt};
use lockstep_block::{Extent, Node, OpenFlags, Status};
use lockstep_util::{Error, size::parse_size};
use std::fmt::Write;
use std::rc::Rc;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('f', "format", true),
    opt(' ', "image-opts", false),
    opt(' ', "object", true),
    opt(' ', "output", true),
    opt('s', "start-offset", true),
    opt('l', "max-length", true),
    opt('U', "force-share", false),
];

/// Bytes asked for in one query.
const STEP: u64 = 1 << 30;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    length: u64,
    depth: usize,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    place: Option<(u64, String)>,
}

pub fn run(arguments: &[String]) -> Outcome {
    let Some(parsed) = args::parse("map", arguments, OPTIONS)? else { return Ok(()) };
    let json = args::wants_json("map", &parsed)?;
    args::refuse(&parsed, &["object"])?;
    let start = number(&parsed, "start-offset")?.unwrap_or(0);
    let limit = number(&parsed, "max-length")?;
    let name = args::one_filename("map", &parsed)?;
    let flags = OpenFlags { force_share: parsed.has("force-share"), ..open::read_only() };
    let request = Request::of(&parsed, name, flags);
    open::run(|graph| async move {
        let image = open::image(&graph, request).await?;
        let entries = match collect(&image.node, start, limit).await {
            Ok(entries) => entries,
            Err(e) => return args::fail(&e),
        };
        args::print(&if json { machine(&entries) } else { human(&entries)? })
    })
}

fn number(parsed: &Parsed, name: &str) -> Result<Option<u64>, u8> {
    let Some(text) = parsed.value(name) else { return Ok(None) };
    match parse_size(text, 'B') {
        Some(n) if n <= i64::MAX as u64 => Ok(Some(n)),
        _ => {
            let what = if name == "start-offset" { "start offset" } else { "max length" };
            args::report(&format!("Invalid {what} specified: '{text}'."));
            Err(FAILURE)
        }
    }
}

async fn collect(node: &Rc<Node>, start: u64, limit: Option<u64>) -> lockstep_util::Result<Vec<Entry>> {
    let length = node.len().map_err(|e| Error::with_errno("Failed to get size", &e))?;
    let end = limit.map_or(length, |l| start.saturating_add(l).min(length));
    let mut entries: Vec<Entry> = Vec::new();
    let mut at = start;
    while at < end {
        let (extent, depth) = status(node, at, (end - at).min(STEP))
            .await
            .map_err(|e| Error::with_errno("Failed to read image metadata", &e))?;
        let entry = Entry {
            start: at,
            length: extent.len,
            depth,
            present: extent.status.contains(Status::ALLOCATED),
            zero: extent.status.contains(Status::ZERO),
            data: extent.status.contains(Status::DATA) && !extent.status.contains(Status::ZERO),
            compressed: extent.status.contains(Status::COMPRESSED),
            place: extent.map.map(|(n, offset)| (offset, n.filename())),
        };
        at += extent.len;
        match entries.last_mut() {
            Some(last) if continues(last, &entry) => last.length += entry.length,
            _ => entries.push(entry),
        }
    }
    Ok(entries)
}

/// Down the backing chain to the first layer that knows.
async fn status(top: &Rc<Node>, at: u64, len: u64) -> std::io::Result<(Extent, usize)> {
    let mut node = top.skip_filters();
    let mut len = len;
    let mut depth = 0;
    loop {
        let extent = node.block_status(at, len, true).await?;
        if extent.status.intersects(Status::DATA | Status::ZERO) {
            return Ok((extent, depth));
        }
        len = extent.len;
        match node.backing() {
            Some(next) => node = next.skip_filters(),
            None => return Ok((extent, depth)),
        }
        depth += 1;
    }
}

fn continues(a: &Entry, b: &Entry) -> bool {
    let place = match (&a.place, &b.place) {
        (None, None) => true,
        (Some((x, f)), Some((y, g))) => f == g && x + a.length == *y,
        _ => false,
    };
    place && (a.depth, a.present, a.zero, a.data, a.compressed) == (b.depth, b.present, b.zero, b.data, b.compressed)
}

fn human(entries: &[Entry]) -> Result<String, u8> {
    let mut out = format!("{:<16}{:<16}{:<16}{}\n", "Offset", "Length", "Mapped to", "File");
    for e in entries.iter().filter(|e| e.data) {
        let Some((offset, file)) = &e.place else {
            args::report("File contains external, encrypted or compressed clusters.");
            args::print(&out)?;
            return Err(FAILURE);
        };
        let _ = writeln!(out, "{:<#16}{:<#16}{:<#16}{file}", Hex(e.start), Hex(e.length), Hex(*offset));
    }
    Ok(out)
}

/// `%#x`: zero has no prefix.
struct Hex(u64);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = if self.0 == 0 { "0".to_owned() } else { format!("{:#x}", self.0) };
        f.pad(&text)
    }
}

fn machine(entries: &[Entry]) -> String {
    let mut out = String::from("[");
    for (i, e) in entries.iter().enumerate() {
        if i > 0 {
            out.push_str(",\n");
        }
        let _ = write!(
            out,
            "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \
             \"compressed\": {}",
            e.start, e.length, e.depth, e.present, e.zero, e.data, e.compressed
        );
        if let Some((offset, _)) = &e.place {
            let _ = write!(out, ", \"offset\": {offset}");
        }
        out.push('}');
    }
    out.push_str("]\n");
    out
}
