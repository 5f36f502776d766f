//! `-smp`: how many vCPUs there are, and of which sockets, cores and threads.

use lockstep_qapi::schema::SMPConfiguration;
use lockstep_util::{Result, bail};

use super::MachineType;

/// vCPUs and their topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smp {
    /// vCPUs at the start.
    pub cpus: u32,
    /// The most there may be.
    pub max_cpus: u32,
    /// Sockets of the machine.
    pub sockets: u32,
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

impl Smp {
    /// What was given, with the rest filled in: cores first, then sockets, then threads.
    pub(super) fn of(config: &SMPConfiguration, machine: &MachineType) -> Result<Self> {
        let c = config;
        let all = [c.cpus, c.maxcpus, c.drawers, c.books, c.sockets, c.dies, c.clusters, c.modules, c.cores, c.threads];
        if all.contains(&Some(0)) {
            bail!("Invalid CPU topology: CPU topology parameters must be greater than zero");
        }
        for (level, value) in [
            ("drawers", c.drawers),
            ("books", c.books),
            ("dies", c.dies),
            ("clusters", c.clusters),
            ("modules", c.modules),
        ] {
            if value.is_some_and(|v| v > 1) {
                bail!("{level} > 1 not supported by this machine's CPU topology");
            }
        }
        // Counts are 32 bits wide, whatever was written.
        let [cpus, max, sockets, cores, threads] =
            [c.cpus, c.maxcpus, c.sockets, c.cores, c.threads].map(|v| v.map(|v| v as u32));
        let smp = fill_in(cpus, max, sockets, cores, threads)?;
        if smp.max_cpus > machine.max_cpus {
            bail!(
                "Invalid SMP CPUs {}. The max CPUs supported by machine '{}' is {}",
                smp.max_cpus as i32,
                machine.name,
                machine.max_cpus
            );
        }
        Ok(smp)
    }
}

fn fill_in(
    cpus: Option<u32>,
    max: Option<u32>,
    sockets: Option<u32>,
    cores: Option<u32>,
    threads: Option<u32>,
) -> Result<Smp> {
    let per = |whole: u32, a: u32, b: u32| whole / a.wrapping_mul(b).max(1);
    let (sockets, cores, threads) = match max.or(cpus) {
        None => (sockets.unwrap_or(1), cores.unwrap_or(1), threads.unwrap_or(1)),
        Some(whole) => match (sockets, cores, threads) {
            (s, None, t) => {
                let (s, t) = (s.unwrap_or(1), t.unwrap_or(1));
                (s, per(whole, s, t), t)
            }
            (None, Some(c), t) => {
                let t = t.unwrap_or(1);
                (per(whole, c, t), c, t)
            }
            (Some(s), Some(c), None) => (s, c, per(whole, s, c)),
            (Some(s), Some(c), Some(t)) => (s, c, t),
        },
    };
    let total = sockets.wrapping_mul(cores).wrapping_mul(threads);
    let max_cpus = max.or(cpus).unwrap_or(total);
    let cpus = cpus.unwrap_or(max_cpus);
    let shape = format!("sockets ({sockets}) * dies (1) * modules (1) * cores ({cores}) * threads ({threads})");
    if total != max_cpus {
        bail!("Invalid CPU topology: product of the hierarchy must match maxcpus: {shape} != maxcpus ({max_cpus})");
    }
    if max_cpus < cpus {
        bail!(
            "Invalid CPU topology: maxcpus must be equal to or greater than smp: {shape} == maxcpus ({max_cpus}) < smp_cpus ({cpus})"
        );
    }
    Ok(Smp { cpus, max_cpus, sockets, cores, threads })
}
