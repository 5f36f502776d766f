//! Lockstep's own software CPU as an engine: for hosts without a usable KVM, and for tests anywhere.
//!
//! Interrupt controllers are the machine's own. The
//! time-stamp counter counts nanoseconds of the machine's virtual clock, so that it stands while the guest does.

mod convert;
mod icount;
mod platform;
mod vcpu;

pub(crate) use convert::{from_state, to_state};
pub use icount::{Adjust, Icount, IcountOptions, IcountState, MAX_SHIFT};

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

pub use kvm_bindings::kvm_cpuid_entry2;
use lockstep_cpu::{CpuLink, CpuidLeaf, Machine};
use lockstep_event::Clocks;
use lockstep_hw::{
    core::{IrqLine, IrqSink},
    irqchip::{apic::ApicBus, pic::PicPair},
};
use lockstep_memory::{AddressSpace, RamList};
use lockstep_util::{Error, Log, Result, err};
use parking_lot::Mutex;

use platform::TcgPlatform;
pub use vcpu::TcgVcpu;

use crate::{
    Vcpu,
    cpu_model::{CpuModel, Engine},
};

/// Frequency of the guest's time-stamp counter, in kHz.
pub const TSC_KHZ: u32 = 1_000_000;

/// A virtual machine whose CPUs are software.
pub struct TcgMachine {
    clocks: Clocks,
    /// Bytes of the host that all vCPUs together may take for what they make of the guest's code.
    code_memory: u64,
    icount: Option<Arc<Icount>>,
    platforms: Mutex<Vec<Arc<TcgPlatform>>>,
    machine: OnceLock<Arc<Machine>>,
}

impl TcgMachine {
    /// A machine without memory and CPUs yet. Its CPUs together take about `code_memory` bytes of the host for what they make of
    /// the guest's code.
    pub fn new(clocks: Clocks, code_memory: u64) -> Arc<Self> {
        Arc::new(Self { clocks, code_memory, icount: None, platforms: Mutex::default(), machine: OnceLock::new() })
    }

    /// What QEMU takes for code if nobody says more, too: an eighth of the host's memory, a gibibyte at most.
    pub fn usual_code_memory() -> u64 {
        const MOST: u64 = 1 << 30;
        // SAFETY: plain queries.
        let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        match (u64::try_from(pages), u64::try_from(size)) {
            (Ok(pages), Ok(size)) => (pages.saturating_mul(size) / 8).min(MOST),
            _ => MOST,
        }
    }

    /// The same, with time that follows the instructions. The clocks are those that are moved by hand.
    pub fn counted(clocks: Clocks, code_memory: u64, options: IcountOptions) -> Arc<Self> {
        let icount = Some(Icount::new(options, clocks.clone()));
        Arc::new(Self { clocks, code_memory, icount, platforms: Mutex::default(), machine: OnceLock::new() })
    }

    /// What counts the instructions, if anything.
    pub fn icount(&self) -> Option<&Arc<Icount>> {
        self.icount.as_ref()
    }

    /// Gives the guest its memory and ports, and follows the map and dirty logging from now on. Once, before any vCPU.
    ///
    /// # Errors
    /// When logging cannot be followed.
    pub fn attach_memory(&self, memory: &AddressSpace, ports: &AddressSpace, ram: &RamList) -> Result<()> {
        let machine = self.machine.get_or_init(|| Machine::new(memory, ports));
        machine.attach_ram(ram)
    }

    /// Has blocks that were made since noticed as well: to be called when the machine is complete.
    ///
    /// # Errors
    /// When logging cannot be followed.
    pub fn watch_code(&self, ram: &RamList) -> Result<()> {
        ram.set_logging(lockstep_memory::DirtyClient::Code, true)
    }

    /// Connects the vCPUs to the machine's interrupt controllers. Once, before the guest runs.
    pub fn connect(&self, apics: &ApicBus, pic: &Arc<PicPair>) {
        for (n, platform) in self.platforms.lock().iter().enumerate() {
            if let Some(apic) = apics.apic(n) {
                platform.connect(apic, pic);
            }
        }
    }

    /// The A20 gate.
    pub fn a20(self: &Arc<Self>) -> IrqLine {
        let this = self.clone();
        let sink: Arc<dyn IrqSink> = Arc::new(move |_: u32, level: bool| {
            if let Some(machine) = this.machine.get() {
                machine.set_a20(level);
            }
        });
        IrqLine::new(sink, 0)
    }

    /// What the software CPU offers guests on this host, as CPUID leaves.
    pub fn supported_cpuid() -> Vec<kvm_cpuid_entry2> {
        lockstep_cpu::supported_cpuid().iter().map(entry_of).collect()
    }

    /// The CPUID leaves of a vCPU. Warnings of features that are not there go to `warn`.
    ///
    /// # Errors
    /// When the model insists on features that are missing.
    pub fn cpuid(&self, model: &CpuModel, index: u32, warn: &mut dyn FnMut(String)) -> Result<Vec<kvm_cpuid_entry2>> {
        let mut leaves = model.cpuid(&Self::supported_cpuid(), Engine::Tcg, index, warn)?;
        // The hypervisor's leaves are KVM's there.
        let word = u32::from_le_bytes(*b"TCGT");
        leaves.retain(|l| l.function >> 16 != 0x4000);
        leaves.push(kvm_cpuid_entry2 {
            function: 0x4000_0000,
            eax: 0x4000_0001,
            ebx: word,
            ecx: u32::from_le_bytes(*b"CGTC"),
            edx: u32::from_le_bytes(*b"GTCG"),
            ..Default::default()
        });
        leaves.push(kvm_cpuid_entry2 { function: 0x4000_0001, ..Default::default() });
        Ok(leaves)
    }

    /// Makes a vCPU with these CPUID leaves; the machine will have `count`.
    ///
    /// # Errors
    /// When the host has no memory for generated code, or before memory was attached.
    pub fn create_vcpu(&self, index: u32, cpuid: &[kvm_cpuid_entry2], count: usize) -> Result<Box<dyn Vcpu>> {
        let machine = self.machine.get().ok_or_else(|| err!("a vCPU needs memory"))?;
        let link = self.icount.as_ref().map_or_else(CpuLink::new, |icount| icount.add_cpu());
        let platform = TcgPlatform::new(index, link.clone(), self.clocks.clone(), self.icount.clone());
        self.platforms.lock().push(platform.clone());
        let leaves: Vec<_> = cpuid.iter().map(leaf_of).collect();
        machine.set_code_room((self.code_memory / count.max(1) as u64) as usize);
        let mut cpu = lockstep_cpu::Cpu::new(machine, platform.clone(), link, leaves, count)
            .map_err(|e| Error::with_errno("cannot set up the software CPU", &e))?;
        cpu.set_log(Log::global(), index, crate::dump::for_log);
        let signature = cpuid.iter().find(|e| e.function == 1).map_or(0, |e| e.eax);
        Ok(Box::new(TcgVcpu::new(cpu, platform, index, signature, self.icount.clone())?))
    }
}

fn entry_of(leaf: &CpuidLeaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.leaf,
        index: leaf.subleaf.unwrap_or(0),
        flags: u32::from(leaf.subleaf.is_some()),
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        padding: [0; 3],
    }
}

/// A CPUID leaf in the software CPU's form.
pub(crate) fn leaf_of(entry: &kvm_cpuid_entry2) -> CpuidLeaf {
    CpuidLeaf {
        leaf: entry.function,
        subleaf: (entry.flags & 1 != 0).then_some(entry.index),
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}
