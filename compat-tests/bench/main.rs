//! `bench colo`: what a pair costs, measured from outside, as a table, a JSON file and plots.
//!
//! Each scene is a process of its own in fresh namespaces; it writes what it measured to a file.
mod args;
mod failover;
mod load;
mod memory;
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
use scenes::{Scene, SceneResult};
use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match args::parse(&arguments) {
        Ok(Command::Scene { scene, quick, out }) if stage::is_inside() => {
            scene.play(quick).and_then(|result| write(&out, &result))
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
    let mut report = Report::begin(options.quick);
    let mut failed = Vec::new();
    for &scene in &options.scenes {
        if scene == Scene::BiosQemu && options.qemu.is_none() {
            println!("  - {}: left out (no QEMU 7.2; --qemu DIRECTORY)", scene.title());
            continue;
        }
        println!("  * {}", scene.title());
        match run(scene, options) {
            Ok(result) => report.scenes.push((scene, result)),
            Err(error) => {
                eprintln!("bench: {}: {error}", scene.name());
                failed.push(scene.name());
            }
        }
    }
    report.finish();
    let table = report.table();
    println!("\n{table}");
    fs::write(options.out.join("colo.txt"), &table)?;
    fs::write(options.out.join("colo.json"), serde_json::to_vec_pretty(&report.to_json())?)?;
    let plots = plots::draw(&report, &options.out)?;
    println!("Written to {}: colo.txt, colo.json, {}", options.out.display(), plots.join(", "));
    if failed.is_empty() { Ok(()) } else { Err(io::Error::other(format!("failed: {}", failed.join(", ")))) }
}

fn run(scene: Scene, options: &Options) -> io::Result<SceneResult> {
    let file = tempfile::NamedTempFile::new()?;
    let out = file.path().to_string_lossy().into_owned();
    let mut arguments = vec!["scene", scene.name(), &out];
    if options.quick {
        arguments.push("--quick");
    }
    let mut command = stage::command_inside(&arguments)?;
    if let (Scene::BiosQemu, Some(root)) = (scene, &options.qemu) {
        command.env(QEMU_ROOT, root).env(ACCELERATOR, "kvm");
    }
    let status = command.status()?;
    if !status.success() {
        return Err(io::Error::other(status.to_string()));
    }
    Ok(serde_json::from_slice(&fs::read(file.path())?)?)
}
