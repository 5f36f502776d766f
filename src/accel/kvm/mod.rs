//! Linux KVM: the engine of the product.
//!
//! The interrupt controllers and the interval timer are the kernel's. One code path serves hosts with VMX or SVM and
//! `kvm-pvm`, where a guest that knows it can run without either.

mod debug;
mod fallback;
mod irqchip;
mod kvmclock;
mod slots;
mod vcpu;
pub use kvmclock::{KvmClock, NoKvmClock};

use std::{
    arch::x86_64::{__cpuid, CpuidResult},
    os::fd::AsRawFd,
    sync::{Arc, OnceLock},
    time::Instant,
};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_cpuid_entry2, kvm_irq_routing_entry,
    kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use lockstep_event::Clocks;
use lockstep_hw::timer::pit::PitState;
use lockstep_memory::{AddressSpace, RamList};
use lockstep_util::{Error, Result, err};
use parking_lot::Mutex;

use slots::Slots;
pub use vcpu::KvmVcpu;

use crate::{
    Vcpu,
    cpu_model::{CpuModel, Engine},
    cpu_state::msr,
};

/// Inputs of the in-kernel IOAPIC.
pub const GSI_COUNT: u32 = 24;

/// A virtual machine in the kernel.
pub struct KvmMachine {
    kvm: Kvm,
    vm: Arc<VmFd>,
    slots: Arc<Slots>,
    msr_indices: Arc<Vec<u32>>,
    clocks: Clocks,
    /// What software CPUs share that step in for the kernel.
    software: OnceLock<Arc<lockstep_cpu::Machine>>,
    /// State of the timer and the clock while the guest stands: the kernel's run on.
    stopped_pit: Mutex<Option<PitState>>,
    stopped_clock: Mutex<Option<u64>>,
    /// When the state was saved that is loaded now, if its guest's counters went on since.
    saved_at: Arc<Mutex<Option<Instant>>>,
}

impl KvmMachine {
    /// Opens `/dev/kvm` and makes a virtual machine with in-kernel interrupt controllers and timer.
    ///
    /// # Errors
    /// With QEMU's texts: KVM is missing, not permitted, or lacks what is needed.
    pub fn new(clocks: Clocks) -> Result<Self> {
        let kvm = Kvm::new().map_err(|e| {
            let e = std::io::Error::from(e);
            Error::with_errno("Could not access KVM kernel module", &e)
        })?;
        if kvm.get_api_version() != 12 {
            return Err(err!("kvm version not supported"));
        }
        let vm = kvm.create_vm().map_err(|e| kvm_error("ioctl(KVM_CREATE_VM) failed", e))?;
        for (cap, name) in [
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
            (Cap::Pit2, "KVM_CAP_PIT2"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        ] {
            if !vm.check_extension(cap) {
                return Err(err!("kvm does not support {name}"));
            }
        }
        // Three pages that Intel hosts need below 4 GiB, in the hole that SeaBIOS leaves below the firmware.
        vm.set_identity_map_address(0xfeff_c000).map_err(|e| kvm_error("KVM_SET_IDENTITY_MAP_ADDR", e))?;
        vm.set_tss_address(0xfeff_d000).map_err(|e| kvm_error("KVM_SET_TSS_ADDR", e))?;
        vm.create_irq_chip().map_err(|e| kvm_error("Create kernel irqchip failed", e))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(|e| kvm_error("Create kernel PIC irqchip failed", e))?;
        set_routing(&vm)?;
        let mut msr_indices =
            kvm.get_msr_index_list().map_err(|e| kvm_error("KVM_GET_MSR_INDEX_LIST", e))?.as_slice().to_vec();
        // kvm-pvm has it but does not list it; elsewhere reading it fails and it is left out.
        msr_indices.push(msr::PVM_VCPU_STRUCT);
        msr_indices.extend(msr::MC0_CTL..msr::MC0_CTL + 4 * (msr::MCG_CAP_VALUE as u32 & 0xff));
        let vm = Arc::new(vm);
        let slots = Arc::new(Slots::new(vm.clone(), kvm.get_nr_memslots()));
        let this = Self {
            kvm,
            vm,
            slots,
            msr_indices: Arc::new(msr_indices),
            clocks,
            software: OnceLock::new(),
            stopped_pit: Mutex::new(None),
            stopped_clock: Mutex::new(None),
            saved_at: Arc::default(),
        };
        // The guest stands until it is started.
        this.stopped()?;
        Ok(this)
    }

    /// Gives the guest its memory and follows its map and its dirty logging from now on.
    pub fn attach_memory(&self, memory: &AddressSpace, ports: &AddressSpace, ram: &RamList) {
        self.software.get_or_init(|| lockstep_cpu::Machine::new(memory, ports)).follow_logging(ram);
        ram.add_dirty_log(self.slots.clone());
        memory.add_listener(self.slots.clone());
    }

    /// What the host's kernel offers guests, as CPUID leaves.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>> {
        let supported = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let mut leaves = supported.map_err(|e| kvm_error("KVM_GET_SUPPORTED_CPUID", e))?.as_slice().to_vec();
        // Not every kernel passes the processor's name on: some list it as nothing.
        for function in 0x8000_0002..=0x8000_0004 {
            if !leaves.iter().any(|l| l.function == function && l.eax != 0) {
                leaves.retain(|l| l.function != function);
                let CpuidResult { eax, ebx, ecx, edx } = __cpuid(function);
                leaves.push(kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() });
            }
        }
        Ok(leaves)
    }

    /// The CPUID leaves of a vCPU. Warnings of features that the host lacks go to `warn`.
    ///
    /// # Errors
    /// When the kernel refuses, or the model insists on features that are missing.
    pub fn cpuid(&self, model: &CpuModel, index: u32, warn: &mut dyn FnMut(String)) -> Result<Vec<kvm_cpuid_entry2>> {
        model.cpuid(&self.supported_cpuid()?, Engine::Kvm, index, warn)
    }

    /// Makes a vCPU with these CPUID leaves.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create_vcpu(
        &self,
        index: u32,
        cpuid: &[kvm_cpuid_entry2],
        memory: &AddressSpace,
        ports: &AddressSpace,
    ) -> Result<Box<dyn Vcpu>> {
        let fd = self
            .vm
            .create_vcpu(index.into())
            .map_err(|e| kvm_error(&format!("kvm_init_vcpu: kvm_get_vcpu failed ({index})"), e))?;
        let list = kvm_bindings::CpuId::from_entries(cpuid).map_err(|e| err!("too many CPUID leaves: {e:?}"))?;
        fd.set_cpuid2(&list).map_err(|e| kvm_error("kvm_arch_init_vcpu: KVM_SET_CPUID2", e))?;
        self.set_up_machine_checks(&fd);
        let software = self.software.get().cloned();
        let (memory, ports) = (memory.clone(), ports.clone());
        let debug_flags = self.vm.check_extension_raw(debug::CAP_SET_GUEST_DEBUG2).max(0) as u32;
        let (msrs, saved_at) = (self.msr_indices.clone(), self.saved_at.clone());
        Ok(Box::new(KvmVcpu::new(fd, index, cpuid, msrs, memory, ports, software, debug_flags, saved_at)?))
    }

    /// Gives a vCPU the banks of machine checks that all have. A host without them has none to report.
    fn set_up_machine_checks(&self, fd: &VcpuFd) {
        const GET_SUPPORTED: libc::c_ulong = 0x8008_ae9d; // KVM_X86_GET_MCE_CAP_SUPPORTED
        const SET_UP: libc::c_ulong = 0x4008_ae9c; // KVM_X86_SETUP_MCE
        let mut supported = 0u64;
        // SAFETY: the request writes 8 bytes at its argument, which is a live u64.
        let known = unsafe { libc::ioctl(self.kvm.as_raw_fd(), GET_SUPPORTED, &raw mut supported) } >= 0;
        let wanted = msr::MCG_CAP_VALUE & (supported | 0xff);
        // SAFETY: the request reads 8 bytes at its argument, which is a live u64.
        if !known || unsafe { libc::ioctl(fd.as_raw_fd(), SET_UP, &raw const wanted) } < 0 {
            tracing::debug!("the host has no machine checks for guests");
        }
    }

    fn read_clock(&self) -> Result<u64> {
        self.vm.get_clock().map(|c| c.clock).map_err(|e| kvm_error("KVM_GET_CLOCK failed", e))
    }

    fn write_clock(&self, clock: u64) -> Result<()> {
        let data = kvm_clock_data { clock, ..Default::default() };
        self.vm.set_clock(&data).map_err(|e| kvm_error("KVM_SET_CLOCK failed", e))
    }

    /// The guest's paravirtual clock in nanoseconds. It stands while the guest does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clock(&self) -> Result<u64> {
        match *self.stopped_clock.lock() {
            Some(clock) => Ok(clock),
            None => self.read_clock(),
        }
    }

    /// vCPU states that are loaded from now on were saved at `at`, on a host where the guest's time stamp counter has gone on since:
    /// it is loaded as far ahead. `None`: it is loaded as it was saved.
    pub fn set_saved_at(&self, at: Option<Instant>) {
        *self.saved_at.lock() = at;
    }

    /// Sets the guest's paravirtual clock.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_clock(&self, clock: u64) -> Result<()> {
        let mut stopped = self.stopped_clock.lock();
        if stopped.is_some() {
            *stopped = Some(clock);
        }
        self.write_clock(clock)
    }
}

/// The PC's wiring: ISA interrupts reach both controllers, the timer at the IOAPIC's pin 2.
fn set_routing(vm: &VmFd) -> Result<()> {
    let mut entries = vec![];
    let mut add = |gsi: u32, irqchip: u32, pin: u32| {
        let mut entry =
            kvm_irq_routing_entry { gsi, type_: kvm_bindings::KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip = kvm_bindings::kvm_irq_routing_irqchip { irqchip, pin };
        entries.push(entry);
    };
    for gsi in (0..16).filter(|&gsi| gsi != 2) {
        let chip = if gsi < 8 { kvm_bindings::KVM_IRQCHIP_PIC_MASTER } else { kvm_bindings::KVM_IRQCHIP_PIC_SLAVE };
        add(gsi, chip, gsi % 8);
    }
    for gsi in (0..GSI_COUNT).filter(|&gsi| gsi != 2) {
        add(gsi, kvm_bindings::KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi });
    }
    let routing = kvm_bindings::KvmIrqRouting::from_entries(&entries).map_err(|e| err!("interrupt routes: {e:?}"))?;
    vm.set_gsi_routing(&routing).map_err(|e| kvm_error("kvm_irqchip_commit_routes", e))
}

fn kvm_error(what: &str, e: kvm_ioctls::Error) -> Error {
    Error::with_errno(what, &std::io::Error::from_raw_os_error(e.errno()))
}
