//! `bench colo`: what a pair costs, measured from outside, as a table, a JSON file and plots.
//!
//! Each scene is a process of its own in fresh namespaces; it writes what it measured to a file.
mod args;
mod costs;
mod failover;
mod load;
mod pauses;
mod plots;
mod report;
mod rows;
mod samples;
mod scenes;

use args::{Command, Options};
use lockstep_compat_tests::emulator::{ACCELERATOR, QEMU_ROOT};
use lockstep_compat_tests::stage;
use report::Report;
use scenes::{GUEST, Scene, SceneResult};
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::{fs, io};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match args::parse(&arguments) {
        Ok(Command::Scene { scene, quick, out }) if stage::is_inside() => {
            scene.play(quick, &|result| write(&out, result))
        }
        Ok(Command::Colo(options)) => colo(&options),
        Ok(Command::Scene { .. }) => Err(io::Error::other("a scene is played in namespaces of its own")),
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(path: &Path, result: &SceneResult) -> io::Result<()> {
    fs::write(path, serde_json::to_vec_pretty(result)?)
}

fn colo(options: &Options) -> io::Result<()> {
    fs::create_dir_all(&options.out)?;
    let guest = options.guest.as_ref().and_then(|image| Some(image.file_stem()?.to_string_lossy().into_owned()));
    let mut report = Report::begin(options.quick, guest);
    for &scene in &options.scenes {
        if scene.is_qemu() && options.qemu.is_none() {
            println!("  - {}: left out (no QEMU 7.2; --qemu DIRECTORY)", scene.title());
            continue;
        }
        println!("  * {}", scene.title());
        let (result, status) = run(scene, options)?;
        report.scenes.push((scene, result));
        if !status.success() {
            report.failed.push(format!("{} ({status})", scene.name()));
        }
    }
    report.finish();
    let table = report.table();
    println!("\n{table}");
    fs::write(options.out.join("colo.txt"), &table)?;
    fs::write(options.out.join("colo.json"), serde_json::to_vec_pretty(&report.to_json())?)?;
    let plots = plots::draw(&report, &options.out)?;
    println!("Written to {}: colo.txt, colo.json, {}", options.out.display(), plots.join(", "));
    if report.failed.is_empty() {
        Ok(())
    } else {
        Err(io::Error::other(format!("failed: {}", report.failed.join(", "))))
    }
}

/// Plays a scene. Returns what it measured before its end, and how it ended.
fn run(scene: Scene, options: &Options) -> io::Result<(SceneResult, ExitStatus)> {
    let file = tempfile::NamedTempFile::new()?;
    let out = file.path().to_string_lossy().into_owned();
    let mut arguments = vec!["scene", scene.name(), &out];
    if options.quick {
        arguments.push("--quick");
    }
    let mut command = stage::command_inside(&arguments)?;
    if let Some(guest) = &options.guest {
        command.env(GUEST, guest.canonicalize()?).env(ACCELERATOR, "tcg");
    } else if scene.is_qemu() {
        command.env(ACCELERATOR, "kvm");
    }
    if let Some(root) = options.qemu.as_ref().filter(|_| scene.is_qemu()) {
        command.env(QEMU_ROOT, root);
    }
    let status = command.status()?;
    let text = fs::read(file.path())?;
    let result = if text.is_empty() { SceneResult::default() } else { serde_json::from_slice(&text)? };
    Ok((result, status))
}
