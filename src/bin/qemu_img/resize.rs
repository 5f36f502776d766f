//! `qemu-img resize`.

use super::open::{self, Request};
use super::{FAILURE, Outcome, args};
use lockstep_bin::getopt::{Spec, opt};
use lockstep_block::options::parse_size_option;
use lockstep_block::{OpenFlags, Preallocation};
use lockstep_util::Error;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('q', "quiet", false),
    opt('f', "format", true),
    opt(' ', "image-opts", false),
    opt(' ', "preallocation", true),
    opt(' ', "shrink", false),
    opt(' ', "object", true),
];

pub fn run(arguments: &[String]) -> Outcome {
    let Some(parsed) = args::parse("resize", arguments, OPTIONS)? else { return Ok(()) };
    args::refuse(&parsed, &["object"])?;
    let prealloc = match parsed.value("preallocation") {
        None => Preallocation::Off,
        Some(name) => match Preallocation::NAMES.iter().find(|(n, _)| *n == name) {
            Some((_, mode)) => *mode,
            None => {
                args::report(&format!("Invalid preallocation mode '{name}'"));
                return Err(FAILURE);
            }
        },
    };
    let [name, size] = parsed.rest.as_slice() else {
        return args::usage(Some("resize"), "Expecting image file name and size");
    };
    let (sign, digits) = match size.as_bytes().first() {
        Some(b'+') => (1, &size[1..]),
        Some(b'-') => (-1, &size[1..]),
        _ => (0, size.as_str()),
    };
    let amount = match parse_size_option("size", digits) {
        Ok(n) => n,
        Err(e) => return args::fail(&e),
    };
    let request = Request {
        name,
        image_opts: parsed.has("image-opts"),
        format: parsed.value("format"),
        flags: OpenFlags { unmap: true, ..OpenFlags::default() },
        writethrough: false,
    };
    let (shrink, quiet) = (parsed.has("shrink"), parsed.has("quiet"));
    open::run(|graph| async move {
        let image = open::image(&graph, request).await?;
        let old = match image.node.len() {
            Ok(len) => len,
            Err(e) => return args::fail(&Error::with_errno("Failed to inquire current image length", &e)),
        };
        let new = match sign {
            1 => old.checked_add(amount),
            -1 => old.checked_sub(amount),
            _ => Some(amount),
        };
        let Some(new) = new.filter(|n| *n > 0 && *n <= i64::MAX as u64) else {
            args::report("New image size must be positive");
            return Err(FAILURE);
        };
        if new <= old && prealloc != Preallocation::Off {
            args::report("Preallocation can only be used for growing images");
            return Err(FAILURE);
        }
        if new < old && !shrink {
            args::report("Use the --shrink option to perform a shrink operation.");
            args::report(
                "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing \
                 such an operation, make sure there is no important data there.",
            );
            return Err(FAILURE);
        }
        match image.node.truncate(new, true, prealloc).await {
            Ok(()) if quiet => Ok(()),
            Ok(()) => args::print("Image resized.\n"),
            Err(e) => args::fail(&e),
        }
    })
}
