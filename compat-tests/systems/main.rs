//! Real systems on the machine: what `scripts/boot` runs.
mod colo;
mod console;
mod debian;
mod memtest;
mod network;
mod pxe;
mod suites;

use lockstep_compat_tests::emulator::Emulator;
use lockstep_compat_tests::stage::{self, Layout, Stage};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: systems SYSTEM... [--folder FOLDER] [--program PROGRAM]... [--smp N]... [--menu N]
  debian   boots Debian by GRUB from an IDE disk, logs in, installs packages, serves clients, powers off
  memtest  a whole pass of memtest86+ over 64 MB
  pxe      iPXE of the card's ROM: DHCP, a script by TFTP, memtest86+ by HTTP
  colo     the documented procedure with Debian: ssh, echo and writes live through both failovers
  suites   public test suites of instructions, kernel, arithmetic and threads, beside the host's own processor
  --folder FOLDER   what scripts/debian-image made (default: target/systems)
  --program PROGRAM another emulator to boot on, beside this one; not for colo
  --smp N           virtual CPUs of debian and suites (default: 1 and 4)
  --menu N          which of GRUB's entries debian boots (default: 0)
  --suites LIST     which suites, or which SUITE/TEST (default: all)";
/// The longest that one system may take. A whole pass of memtest86+ fades bits for five minutes, if the clock is real.
const LIMIT: Duration = Duration::from_secs(1800);

/// What to boot, and on what.
pub struct Options {
    systems: Vec<String>,
    /// What `scripts/debian-image` made.
    pub folder: PathBuf,
    /// Emulators, by the words in which a shell finds them.
    pub programs: Vec<String>,
    /// Numbers of virtual CPUs.
    pub smp: Vec<u32>,
    /// Entry of GRUB's menu.
    pub menu: usize,
    /// Names of suites, or SUITE/TEST, with commas between; none means all.
    pub suites: String,
}

impl Options {
    fn parse(words: &[String]) -> Option<Self> {
        let mut options = Self {
            systems: Vec::new(),
            folder: "target/systems".into(),
            programs: vec!["qemu-system-x86_64".into()],
            smp: Vec::new(),
            menu: 0,
            suites: String::new(),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--folder" => options.folder = words.next()?.into(),
                "--program" => options.programs.push(words.next()?.into()),
                "--smp" => options.smp.push(words.next()?.parse().ok()?),
                "--menu" => options.menu = words.next()?.parse().ok()?,
                "--suites" => options.suites.clone_from(words.next()?),
                "debian" | "memtest" | "pxe" | "colo" | "suites" => options.systems.push(word.clone()),
                _ => return None,
            }
        }
        if options.smp.is_empty() {
            options.smp = vec![1, 4];
        }
        (!options.systems.is_empty()).then_some(options)
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(options) = Options::parse(&words) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if stage::is_inside() {
        return inside(&options);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let status = Emulator::find().map_err(|missing| missing.to_string()).and_then(|emulator| {
        println!("colo runs on {}; the others on -accel tcg.", emulator.engine);
        stage::run_again_inside(&words)
            .map_err(|error| format!("no networks of its own here ({error}); run it as root"))
    });
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("systems: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn inside(options: &Options) -> ExitCode {
    stage::watch_over(LIMIT * options.systems.len() as u32);
    let stage = Stage::set_up(Layout::OneHost).unwrap_or_else(|error| panic!("The stage cannot be set up: {error}"));
    for system in &options.systems {
        match system.as_str() {
            "debian" => debian::boot(options),
            "memtest" => memtest::pass(options),
            "pxe" => pxe::boot(options),
            "suites" => suites::run(options),
            _ => colo::play(&stage, options),
        }
    }
    ExitCode::SUCCESS
}
