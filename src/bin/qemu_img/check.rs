//! `qemu-img check`.

use super::open::{self, Request};
use super::{FAILURE, Outcome, args};
use lockstep_bin::getopt::{Spec, opt};
use lockstep_block::qcow2::Qcow2;
use lockstep_block::qcow2::check::{CheckResult, Fix, check};
use lockstep_block::{Node, OpenFlags, json};
use lockstep_util::Error;
use serde_json::{Map, Value};
use std::fmt::Write;
use std::rc::Rc;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('q', "quiet", false),
    opt('f', "format", true),
    opt(' ', "image-opts", false),
    opt('T', "cache", true),
    opt('U', "force-share", false),
    opt(' ', "output", true),
    opt('r', "repair", true),
    opt(' ', "object", true),
];

/// The image is damaged.
const CORRUPT: u8 = 2;
/// Space is wasted.
const LEAKS: u8 = 3;
/// The format has nothing to check.
const UNSUPPORTED: u8 = 63;

pub fn run(arguments: &[String]) -> Outcome {
    let Some(parsed) = args::parse("check", arguments, OPTIONS)? else { return Ok(()) };
    let as_json = args::wants_json("check", &parsed)?;
    args::refuse(&parsed, &["object"])?;
    let fix = match parsed.value("repair") {
        None => Fix::default(),
        Some("leaks") => Fix { leaks: true, errors: false },
        Some("all") => Fix { leaks: true, errors: true },
        Some(other) => {
            return args::usage(Some("check"), &format!("--repair (-r) expects 'leaks' or 'all' not '{other}'"));
        }
    };
    let mut flags = OpenFlags {
        read_only: !(fix.leaks || fix.errors),
        check: true,
        unmap: true,
        force_share: parsed.has("force-share"),
        ..OpenFlags::default()
    };
    let mut writethrough = false;
    if let Some(mode) = parsed.value("cache") {
        match open::cache_mode(mode, &mut flags) {
            Some(through) => writethrough = through,
            None => {
                args::report(&format!("Invalid source cache option: {mode}"));
                return Err(FAILURE);
            }
        }
    }
    let name = args::one_filename("check", &parsed)?.to_owned();
    let quiet = parsed.has("quiet");
    let request = Request {
        name: &name,
        image_opts: parsed.has("image-opts"),
        format: parsed.value("format"),
        flags,
        writethrough,
    };
    let name = name.as_str();
    open::run(|graph| async move {
        let image = open::image(&graph, request).await?;
        let format = image.node.def().name;
        let mut result = run_check(&image.node, fix).await?;
        if result.corruptions_fixed > 0 || result.leaks_fixed > 0 {
            let fixed = (result.corruptions_fixed, result.leaks_fixed);
            if !as_json && !quiet {
                args::print(&format!(
                    "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} \
                     corruptions\n\nDouble checking the fixed image now...\n",
                    fixed.1, fixed.0
                ))?;
            }
            result = run_check(&image.node, Fix::default()).await?;
            (result.corruptions_fixed, result.leaks_fixed) = fixed;
        }
        if !quiet {
            args::print(&if as_json { machine(name, format, &result) } else { human(&result) })?;
        }
        match (result.corruptions, result.leaks, result.check_errors) {
            (0, 0, 0) => Ok(()),
            (_, _, 1..) => Err(FAILURE),
            (1.., _, _) => Err(CORRUPT),
            _ => Err(LEAKS),
        }
    })
}

async fn run_check(node: &Rc<Node>, fix: Fix) -> Result<CheckResult, u8> {
    let Some(image) = node.driver_as::<Qcow2>() else {
        args::report("This image format does not support checks");
        return Err(UNSUPPORTED);
    };
    match check(image, fix).await {
        Ok(result) => {
            for message in &result.messages {
                eprintln!("{message}");
            }
            Ok(result)
        }
        Err(e) => args::fail(&Error::with_errno("Check failed", &e)),
    }
}

fn human(result: &CheckResult) -> String {
    let mut out = String::new();
    if (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0) {
        out.push_str("No errors were found on the image.\n");
    }
    if result.corruptions > 0 {
        let _ = write!(
            out,
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt \
             it.\n",
            result.corruptions
        );
    }
    if result.leaks > 0 {
        let _ = write!(
            out,
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n",
            result.leaks
        );
    }
    if result.check_errors > 0 {
        let _ = write!(out, "\n{} internal errors have occurred during the check.\n", result.check_errors);
    }
    if result.total_clusters > 0 && result.allocated_clusters > 0 {
        let percent = |part: u64, of: u64| part as f64 * 100.0 / of as f64;
        let _ = writeln!(
            out,
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            result.allocated_clusters,
            result.total_clusters,
            percent(result.allocated_clusters, result.total_clusters),
            percent(result.fragmented_clusters, result.allocated_clusters),
            percent(result.compressed_clusters, result.allocated_clusters)
        );
    }
    if result.image_end_offset > 0 {
        let _ = writeln!(out, "Image end offset: {}", result.image_end_offset);
    }
    out
}

fn machine(name: &str, format: &str, result: &CheckResult) -> String {
    let mut map = Map::new();
    map.insert("filename".into(), name.into());
    map.insert("format".into(), format.into());
    map.insert("check-errors".into(), result.check_errors.into());
    let numbers = [
        ("image-end-offset", result.image_end_offset),
        ("corruptions", result.corruptions),
        ("leaks", result.leaks),
        ("corruptions-fixed", result.corruptions_fixed),
        ("leaks-fixed", result.leaks_fixed),
        ("total-clusters", result.total_clusters),
        ("allocated-clusters", result.allocated_clusters),
        ("fragmented-clusters", result.fragmented_clusters),
        ("compressed-clusters", result.compressed_clusters),
    ];
    for (key, value) in numbers {
        if value > 0 {
            map.insert(key.into(), value.into());
        }
    }
    json::to_pretty(&Value::Object(map)) + "\n"
}
