//! The command line.
use crate::scenes::Scene;
use std::path::PathBuf;

const USAGE: &str =
    "usage: bench colo [--out DIRECTORY] [--qemu DIRECTORY] [--only SCENE,...] [--quick] [--guest IMAGE]
  --out DIRECTORY   where colo.txt, colo.json and the plots go (default: target/bench)
  --qemu DIRECTORY  an unpacked QEMU 7.2, whose idle pause is measured in the same run
  --only SCENES     some of: alone, pair, failover, bios, bios-qemu; with another guest also pair-qemu, failover-qemu
  --guest IMAGE     another guest, on -accel tcg (see scripts/linux-image); pairs of QEMU then serve, too
  --quick           a tenth of the samples";

/// What to do.
pub enum Command {
    /// The whole table.
    Colo(Options),
    /// One part of it, in namespaces that the caller made.
    Scene {
        /// Which.
        scene: Scene,
        /// Fewer samples.
        quick: bool,
        /// Where its result goes.
        out: PathBuf,
    },
}

/// Options of `bench colo`.
#[derive(Debug)]
pub struct Options {
    /// Folder of the results.
    pub out: PathBuf,
    /// Root of an unpacked QEMU 7.2.
    pub qemu: Option<PathBuf>,
    /// What is measured.
    pub scenes: Vec<Scene>,
    /// Fewer samples.
    pub quick: bool,
    /// The disk image of another guest than our own.
    pub guest: Option<PathBuf>,
}

/// Reads the command line.
///
/// # Errors
/// What to print.
pub fn parse(arguments: &[String]) -> Result<Command, String> {
    let mut words = arguments.iter().map(String::as_str);
    match words.next() {
        Some("colo") => colo(words).map(Command::Colo),
        Some("scene") => {
            let scene = words.next().and_then(Scene::by_name).ok_or(USAGE)?;
            let out = words.next().ok_or(USAGE)?.into();
            Ok(Command::Scene { scene, quick: words.next() == Some("--quick"), out })
        }
        _ => Err(USAGE.into()),
    }
}

fn colo<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Options, String> {
    let (out, mut only) = ("target/bench".into(), None);
    let mut options = Options { out, qemu: None, scenes: Vec::new(), quick: false, guest: None };
    while let Some(word) = words.next() {
        match word {
            "--quick" => options.quick = true,
            "--out" => options.out = words.next().ok_or(USAGE)?.into(),
            "--guest" => options.guest = Some(words.next().ok_or(USAGE)?.into()),
            "--qemu" => options.qemu = Some(words.next().ok_or(USAGE)?.into()),
            "--only" => {
                let scenes = words.next().ok_or(USAGE)?.split(',').map(Scene::by_name);
                only = Some(scenes.collect::<Option<_>>().ok_or(USAGE)?);
            }
            _ => return Err(USAGE.into()),
        }
    }
    let all = if options.guest.is_some() { Scene::OTHER_GUEST } else { Scene::OWN_GUEST };
    options.scenes = only.unwrap_or_else(|| all.to_vec());
    Ok(options)
}
