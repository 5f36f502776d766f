//! `qemu-img snapshot -l`.

use super::open::{self, Request};
use super::{Outcome, args};
use lockstep_bin::getopt::{Spec, opt};
use lockstep_block::OpenFlags;
use lockstep_block::text::snapshot_list;
use lockstep_util::Error;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('q', "quiet", false),
    opt('f', "format", true),
    opt(' ', "image-opts", false),
    opt('U', "force-share", false),
    opt('l', "list", false),
    opt('a', "apply", true),
    opt('c', "create", true),
    opt('d', "delete", true),
    opt(' ', "object", true),
];

pub fn run(arguments: &[String]) -> Outcome {
    let Some(parsed) = args::parse("snapshot", arguments, OPTIONS)? else { return Ok(()) };
    args::refuse(&parsed, &["object", "apply", "create", "delete"])?;
    let name = args::one_filename("snapshot", &parsed)?;
    let flags = OpenFlags { force_share: parsed.has("force-share"), ..open::read_only() };
    let request = Request::of(&parsed, name, flags);
    open::run(|graph| async move {
        let image = open::image(&graph, request).await?;
        let snapshots = match image.node.driver() {
            Ok(driver) => driver.format_info().snapshots,
            Err(e) => return args::fail(&Error::with_errno("Cannot list snapshots", &e)),
        };
        if snapshots.is_empty() { Ok(()) } else { args::print(&snapshot_list(&snapshots, "")) }
    })
}
