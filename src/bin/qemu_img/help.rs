//! Texts of `--help`: in our own words, with the options that are there.

use super::COMMANDS;
use lockstep_bin::getopt::{Spec, opt};
use lockstep_bin::version;
use std::fmt::Write;

/// Options before the command.
pub const STANDARD_OPTIONS: &[Spec] = &[opt('h', "help", false), opt('V', "version", false), opt('T', "trace", true)];

/// The program's help.
pub fn overview() -> String {
    let mut out = format!("qemu-img version {}\n", version());
    out.push_str(
        "QEMU disk image utility.  Usage:\n\n  qemu-img [standard options] COMMAND [--help | command options]\n\n",
    );
    out.push_str("Standard options:\n  -h, --help\n     display this help and exit\n  -V, --version\n     display version info and exit\n\n");
    out.push_str("Recognized commands (run qemu-img COMMAND --help for command-specific help):\n\n");
    for command in COMMANDS {
        let _ = writeln!(out, "  {} - {}", command.name, command.summary);
    }
    out.push_str("\nSupported image formats:\n\n ");
    let mut names = lockstep_block::open::driver_names();
    names.sort_unstable();
    let mut width = 1;
    for name in names {
        if width + name.len() + 1 > 74 {
            out.push_str("\n ");
            width = 1;
        }
        let _ = write!(out, " {name}");
        width += name.len() + 1;
    }
    out.push('\n');
    out
}

/// A command's help.
pub fn command(name: &str) -> String {
    let summary = COMMANDS.iter().find(|c| c.name == name).map_or("", |c| c.summary);
    let usage = USAGES.iter().find(|(n, _)| *n == name).map_or("", |(_, u)| u);
    format!("{summary}.  Usage:\n\n  qemu-img {name} {usage}\n")
}

const USAGES: &[(&str, &str)] = &[
    ("amend", "[-f FMT | --image-opts] [-t CACHE] [-p] [-q] -o OPTIONS FILENAME"),
    (
        "check",
        "[-f FMT | --image-opts] [-T CACHE_MODE] [-r leaks|all] [-U] [-q]\n        [--output human|json] FILENAME",
    ),
    ("commit", "[-f FMT | --image-opts] [-t CACHE_MODE] [-b BASE_IMG] [-d] [-p] [-q]\n        FILENAME"),
    ("compare", "[--image-opts | [-f FMT] [-F FMT]] [-s] [-T CACHE] [-U] [-p] [-q]\n        FILENAME1 FILENAME2"),
    (
        "convert",
        "[-f SRC_FMT | --image-opts] [-T SRC_CACHE] [-O TGT_FMT] [-o TGT_OPTS]\n        [-t TGT_CACHE] [-n] \
         [--target-is-zero] [--target-image-opts] [-c] [-S SPARSE_SIZE]\n        [-B BACKING_FILENAME [-F BACKING_FMT]] \
         [-m NUM] [-W] [--salvage] [-U] [-p] [-q]\n        SRC_FILENAME [SRC_FILENAME2 [...]] TGT_FILENAME",
    ),
    (
        "create",
        "[-f FMT] [-o FMT_OPTS] [-b BACKING_FILENAME [-F BACKING_FMT]]\n        [-u] [-q] FILENAME [SIZE[bkKMGTPE]]",
    ),
    ("info", "[-f FMT | --image-opts] [-b] [-U]\n        [--output human|json] FILENAME"),
    (
        "map",
        "[-f FMT | --image-opts] [--output human|json]\n        [--start-offset OFFSET] [--max-length LENGTH] [-U] \
         FILENAME",
    ),
    (
        "rebase",
        "[-f FMT | --image-opts] [-t CACHE] [-p] [-q]\n        [-b BACKING_FILENAME [-F BACKING_FMT] [-T \
         BACKING_CACHE]] [-u] FILENAME",
    ),
    (
        "resize",
        "[-f FMT | --image-opts] [--preallocation PREALLOC] [--shrink] [-q]\n        FILENAME [+-]SIZE[bkKMGTPE]",
    ),
    ("snapshot", "[-f FMT | --image-opts] [-l] [-U] [-q] FILENAME"),
];
