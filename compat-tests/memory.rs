//! A VM's process and its memory, from /proc.
use crate::machine::Machine;
use std::fs;
use std::path::PathBuf;

const MEBI: f64 = 1024.0;

/// Resident memory in MiB of the emulator that `machine`'s shell started.
pub fn resident(machine: &Machine) -> Option<f64> {
    let status = fs::read_to_string(emulator(machine)?.join("status")).ok()?;
    Some(kibibytes(&status)? / MEBI)
}

/// The folder in /proc of the emulator that `machine`'s shell started.
pub fn emulator(machine: &Machine) -> Option<PathBuf> {
    // The process table is the one outside: a process is found by its group's number in this namespace.
    let own = fs::read_link("/proc/self/ns/pid").ok()?;
    let entries = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let ours = entries.filter(|path| fs::read_link(path.join("ns/pid")).is_ok_and(|space| space == own));
    let statuses = ours.filter_map(|path| fs::read_to_string(path.join("status")).ok().map(|status| (path, status)));
    let group = machine.group().to_string();
    let emulators = statuses.filter(|(_, status)| {
        field(status, "NSpgid").and_then(|ids| ids.split_whitespace().last()) == Some(group.as_str())
            && field(status, "Name").is_some_and(|name| name.trim().starts_with("qemu-system"))
    });
    let sized = emulators.filter_map(|(path, status)| Some((path, kibibytes(&status)?)));
    Some(sized.max_by(|a, b| a.1.total_cmp(&b.1))?.0)
}

/// What a process holds of the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Holdings {
    /// Resident memory in MiB.
    pub resident: f64,
    /// Open file descriptors.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

/// What the emulator holds that `machine`'s shell started.
pub fn holdings(machine: &Machine) -> Option<Holdings> {
    let folder = emulator(machine)?;
    let status = fs::read_to_string(folder.join("status")).ok()?;
    Some(Holdings {
        resident: kibibytes(&status)? / MEBI,
        files: fs::read_dir(folder.join("fd")).ok()?.count(),
        threads: field(&status, "Threads")?.trim().parse().ok()?,
    })
}

fn kibibytes(status: &str) -> Option<f64> {
    field(status, "VmRSS")?.split_whitespace().next()?.parse().ok()
}

/// The value of a line of a `status` file.
pub fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}
