//! What a workload costs: processor time and wake-ups of each thread, from /proc. Unlike times on the clock these say something
//! on a busy machine too, and where two hosts share one.
use lockstep_compat_tests::machine::Machine;
use lockstep_compat_tests::memory;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What the load's own threads are called: those of this process.
pub const CLIENT: &str = "client";

/// What threads used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Microseconds on a processor, the guest's included.
    pub micros: f64,
    /// How often it slept and was woken.
    pub wakes: f64,
}

/// A workload's cost.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Round trips, megabytes, connections, requests.
    pub operations: f64,
    /// By machine and thread, for all operations together.
    pub threads: BTreeMap<String, Usage>,
}

impl Cost {
    /// What threads whose name begins like this used for one operation. Nothing if there are none.
    pub fn each(&self, prefix: &str) -> Option<Usage> {
        let mut threads = self.threads.iter().filter(|(name, _)| name.starts_with(prefix)).peekable();
        threads.peek()?;
        let sum = threads.fold(Usage::default(), |sum, (_, usage)| sum.plus(*usage, 1.0));
        Some(Usage { micros: sum.micros / self.operations, wakes: sum.wakes / self.operations })
    }
}

impl Usage {
    fn plus(self, other: Self, sign: f64) -> Self {
        Self { micros: self.micros + sign * other.micros, wakes: self.wakes + sign * other.wakes }
    }
}

/// Counts what machines and this process use.
pub struct Meter {
    /// By name: the folders of their processes.
    processes: Vec<(&'static str, PathBuf)>,
}

impl Meter {
    /// Of these machines, by name.
    pub fn new(machines: &[(&'static str, &Machine)]) -> Self {
        let found = machines.iter().filter_map(|(name, machine)| Some((*name, memory::emulator(machine)?)));
        Self { processes: found.chain([(CLIENT, PathBuf::from("/proc/self"))]).collect() }
    }

    /// Does `work`, which says how many operations it did, and tells what it cost.
    ///
    /// # Errors
    /// Those of the work.
    pub fn measure<T, E>(&self, work: impl FnOnce() -> Result<(T, f64), E>) -> Result<(T, Cost), E> {
        let before = self.look();
        let (result, operations) = work()?;
        let mut threads = self.look();
        for (name, usage) in &mut threads {
            *usage = usage.plus(before.get(name).copied().unwrap_or_default(), -1.0);
        }
        Ok((result, Cost { operations: operations.max(1.0), threads }))
    }

    fn look(&self) -> BTreeMap<String, Usage> {
        let mut all = BTreeMap::<String, Usage>::new();
        for (name, process) in &self.processes {
            // Clients' threads come and go, and what they used stays with their process.
            if *name == CLIENT {
                all.insert(CLIENT.into(), own());
                continue;
            }
            for (thread, usage) in
                fs::read_dir(process.join("task")).into_iter().flatten().flatten().filter_map(|task| used(&task.path()))
            {
                let sum = all.entry(format!("{name} {thread}")).or_default();
                *sum = sum.plus(usage, 1.0);
            }
        }
        all
    }
}

/// A thread's kind and what it has used.
fn used(task: &Path) -> Option<(&'static str, Usage)> {
    let status = fs::read_to_string(task.join("status")).ok()?;
    let name = memory::field(&status, "Name")?.trim();
    let kind = match name {
        name if name.starts_with("qemu-system") => "main",
        name if name.starts_with("CPU") => "vcpu",
        name if name.starts_with("IO ") => "iothread",
        _ => "other",
    };
    let wakes = memory::field(&status, "voluntary_ctxt_switches")?.trim().parse().ok()?;
    // Nanoseconds on a processor; then those that it waited for one, and how often it ran.
    let schedstat = fs::read_to_string(task.join("schedstat")).ok()?;
    let nanos: f64 = schedstat.split_whitespace().next()?.parse().ok()?;
    Some((kind, Usage { micros: nanos / 1000.0, wakes }))
}

/// What this process used, its ended threads included.
fn own() -> Usage {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Usage { micros: clock.tv_sec as f64 * 1e6 + clock.tv_nsec as f64 / 1e3, wakes: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_a_kind_are_added_up_for_one_operation() {
        let usage = |micros, wakes| Usage { micros, wakes };
        let threads = [
            ("primary main", usage(10.0, 2.0)),
            ("primary vcpu", usage(20.0, 4.0)),
            ("secondary main", usage(7.0, 1.0)),
        ];
        let cost = Cost { operations: 2.0, threads: threads.map(|(name, usage)| (name.to_owned(), usage)).into() };
        assert_eq!(cost.each("primary"), Some(usage(15.0, 3.0)));
        assert_eq!(cost.each("primary vcpu"), Some(usage(10.0, 2.0)));
        assert_eq!(cost.each("primary iothread"), None);
    }
}
