//! Our `qemu-img` and `qemu-io` beside the reference's: same commands, same words, same exit status. Without a reference
//! of the right version there is nothing to compare with, and the test says so.

use std::path::{Path, PathBuf};
use std::process::Command;

const CASES: &str = include_str!("tool_cases.txt");
const VERSION: &str = "10.0.2";

/// The folder of the reference's programs.
fn reference() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|dir| {
        let out = Command::new(dir.join("qemu-img")).arg("--version").output();
        out.is_ok_and(|o| {
            let text = String::from_utf8_lossy(&o.stdout).into_owned();
            text.contains(&format!("version {VERSION}")) && !text.contains("Lockstep")
        })
    })
}

/// What a shell prints for a line, with its exit status, host sizes left out.
fn run(line: &str, dir: &Path, programs: &Path, reference: &Path) -> String {
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let out = Command::new("bash")
        .arg("-c")
        .arg(format!("{line}\n"))
        .current_dir(dir)
        .env("PATH", path)
        .env("REFERENCE", reference)
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("bash runs");
    let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&out.stderr));
    text.push_str(&format!("status {:?}", out.status.code()));
    let host_size =
        |l: &str| l.trim_start().starts_with("disk size:") || l.trim_start().starts_with("\"actual-size\":");
    text.lines().filter(|l| !host_size(l)).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_tools_print_and_return_what_the_reference_does() {
    let Some(reference) = reference() else {
        eprintln!("no qemu-img {VERSION} here: nothing to compare with");
        return;
    };
    let ours = Path::new(env!("CARGO_BIN_EXE_qemu-img")).parent().expect("a program lies in a folder").to_owned();
    assert!(Path::new(env!("CARGO_BIN_EXE_qemu-io")).starts_with(&ours));
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut different = Vec::new();
    for line in CASES.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(line) = line.strip_prefix('!') {
            for dir in [a.path(), b.path()] {
                run(line, dir, &reference, &reference);
            }
            continue;
        }
        let (theirs, ours) = (run(line, a.path(), &reference, &reference), run(line, b.path(), &ours, &reference));
        if theirs != ours {
            different.push(format!("$ {line}\n--- reference\n{theirs}\n--- ours\n{ours}"));
        }
    }
    assert!(different.is_empty(), "{} differ\n{}", different.len(), different.join("\n\n"));
}
