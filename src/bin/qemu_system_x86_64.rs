//! The machine itself, under the name that scripts and tools call.

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // SAFETY: nothing was opened yet.
    unsafe { lockstep_util::fds::note_inherited() };
    // Problems of the program itself; what users are told goes by QEMU's wording elsewhere.
    let filter = EnvFilter::try_from_env("LOCKSTEP_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    let words: Vec<String> = std::env::args_os().skip(1).map(|w| w.to_string_lossy().into_owned()).collect();
    lockstep_system::startup::run(&words)
}
