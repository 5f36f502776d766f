//! `qemu-img amend`.

use super::create::{is_help, options_of};
use super::open::{self, Request};
use super::{FAILURE, Outcome, args};
use lockstep_bin::getopt::{Spec, opt};
use lockstep_block::image::QCOW2_OPTIONS;
use lockstep_block::qcow2::Qcow2;
use lockstep_block::qcow2::amend::AmendOptions;
use lockstep_block::{OpenFlags, Options};
use lockstep_util::{Result, bail, err};
use std::fmt::Write;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('q', "quiet", false),
    opt('p', "progress", false),
    opt('f', "format", true),
    opt(' ', "image-opts", false),
    opt('t', "cache", true),
    opt('o', "options", true),
    opt(' ', "force", false),
    opt(' ', "object", true),
];

/// Options of an image that can be changed.
const CHANGEABLE: &[&str] = &["backing_file", "backing_fmt", "compat", "lazy_refcounts", "refcount_bits", "size"];

pub fn run(arguments: &[String]) -> Outcome {
    let Some(parsed) = args::parse("amend", arguments, OPTIONS)? else { return Ok(()) };
    args::refuse(&parsed, &["object", "force"])?;
    if !parsed.has("options") {
        return args::usage(Some("amend"), "Must specify options (-o)");
    }
    if parsed.values("options").iter().any(|o| is_help(o)) {
        return help(parsed.value("format").unwrap_or("qcow2"));
    }
    let name = args::one_filename("amend", &parsed)?;
    let flags = OpenFlags { unmap: true, ..OpenFlags::default() };
    let request = Request::of(&parsed, name, flags).cached(&parsed)?;
    let wanted = options_of(&parsed, "options");
    let show = parsed.has("progress") && !parsed.has("quiet");
    open::run(|graph| async move {
        let image = open::image(&graph, request).await?;
        let Some(qcow2) = image.node.driver_as::<Qcow2>() else {
            args::report(&format!("Format driver '{}' does not support option amendment", image.node.def().name));
            return Err(FAILURE);
        };
        let progress = super::progress::Progress::new(show, 1);
        let done = match parse(wanted) {
            Ok(options) => qcow2.amend(&options).await,
            Err(e) => Err(e),
        };
        match done {
            Ok(()) => {
                progress.finish();
                Ok(())
            }
            Err(e) => args::fail(&e),
        }
    })
}

fn parse(wanted: Vec<(String, String)>) -> Result<AmendOptions> {
    for (name, _) in &wanted {
        if !CHANGEABLE.contains(&name.as_str()) {
            let e = err!("Invalid parameter '{name}'");
            let known = QCOW2_OPTIONS.iter().any(|o| o.name == name);
            return Err(if known { e.hint("This option is only supported for image creation\n") } else { e });
        }
    }
    let mut options = Options::from_pairs(wanted);
    let version = match options.take_str("compat")?.as_deref() {
        None => None,
        Some("1.1" | "v3") => Some(3),
        Some("0.10" | "v2") => Some(2),
        Some(other) => bail!("Unknown compatibility level {other}"),
    };
    Ok(AmendOptions {
        version,
        lazy_refcounts: options.take_bool("lazy_refcounts")?,
        size: options.take_size("size")?,
        refcount_bits: options.take_u64("refcount_bits")?,
        backing_file: options.take_str("backing_file")?,
        backing_format: options.take_str("backing_fmt")?,
    })
}

fn help(format: &str) -> Outcome {
    if format != "qcow2" {
        args::report(&format!("Format driver '{format}' does not support option amendment"));
        return Err(FAILURE);
    }
    let mut text = format!("Amend options for '{format}':\n");
    for option in QCOW2_OPTIONS.iter().filter(|o| CHANGEABLE.contains(&o.name)) {
        let left = format!("{}={}", option.name, option.kind);
        let _ = writeln!(text, "  {left:<22} - {}", option.help);
    }
    args::print(&text)
}
