//! Memory of a VM's process, from /proc.
use lockstep_compat_tests::machine::Machine;
use std::fs;

const MEBI: f64 = 1024.0;

/// Resident memory in MiB of the emulator that `machine`'s shell started.
pub fn resident(machine: &Machine) -> Option<f64> {
    // The process table is the one outside: a process is found by its group's number in this namespace.
    let own = fs::read_link("/proc/self/ns/pid").ok()?;
    let entries = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let ours = entries.filter(|path| fs::read_link(path.join("ns/pid")).is_ok_and(|space| space == own));
    let statuses = ours.filter_map(|path| fs::read_to_string(path.join("status")).ok());
    let group = machine.group().to_string();
    let emulator = statuses.filter(|status| {
        field(status, "NSpgid").and_then(|ids| ids.split_whitespace().last()) == Some(group.as_str())
            && field(status, "Name").is_some_and(|name| name.trim().starts_with("qemu-system"))
    });
    let sizes = emulator.filter_map(|status| field(&status, "VmRSS")?.split_whitespace().next()?.parse::<f64>().ok());
    sizes.reduce(f64::max).map(|kibi| kibi / MEBI)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}
