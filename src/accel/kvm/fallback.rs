//! Instructions that the kernel cannot execute (`KVM_EXIT_INTERNAL_ERROR`, suberror 1): the software CPU does them, one at a time. On
//! a host without VMX and SVM, where the kernel emulates what is privileged, unmodified guests need it; elsewhere it is hardly met.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kvm_bindings::kvm_cpuid_entry2;
use lockstep_cpu::{Cpu, CpuLink, Engine, Machine, Platform};

use crate::{
    CpuState,
    cpu_state::{FpuState, msr},
    tcg::{from_state, leaf_of, to_state},
};

/// MSRs that an instruction may use without naming them, or that the software CPU keeps.
pub(super) const MSRS: [u32; 14] = [
    msr::TSC,
    msr::TSC_ADJUST,
    msr::TSC_AUX,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::FMASK,
    msr::KERNEL_GS_BASE,
    msr::PAT,
    msr::MISC_ENABLE,
    msr::SPEC_CTRL,
];

/// A software CPU beside a vCPU of the kernel's.
pub(super) struct Fallback {
    cpu: Box<Cpu>,
    surroundings: Arc<Surroundings>,
}

/// What the software CPU sees of the machine for the time of one instruction. Interrupts and MSRs are the kernel's business.
#[derive(Default)]
struct Surroundings {
    apic_base: AtomicU64,
    task_priority: AtomicU64,
    tsc: AtomicU64,
}

impl Platform for Surroundings {
    fn interrupt_pending(&self) -> bool {
        false
    }

    fn take_interrupt(&self) -> Option<u8> {
        None
    }

    fn task_priority(&self) -> u8 {
        self.task_priority.load(Ordering::Relaxed) as u8
    }

    fn set_task_priority(&self, value: u8) {
        self.task_priority.store(value.into(), Ordering::Relaxed);
    }

    fn read_msr(&self, _: u32) -> Option<u64> {
        None
    }

    fn write_msr(&self, _: u32, _: u64) -> bool {
        false
    }

    fn read_apic(&self, _: u32) -> u32 {
        0
    }

    fn write_apic(&self, _: u32, _: u32) {}

    fn apic_base(&self) -> u64 {
        self.apic_base.load(Ordering::Relaxed)
    }

    fn tsc(&self) -> u64 {
        self.tsc.load(Ordering::Relaxed)
    }

    fn ferr(&self) {}
}

impl Fallback {
    /// A software CPU with the vCPU's CPUID leaves.
    ///
    /// # Errors
    /// When the host has no memory for it.
    pub(super) fn new(machine: &Arc<Machine>, cpuid: &[kvm_cpuid_entry2]) -> io::Result<Self> {
        let surroundings = Arc::new(Surroundings::default());
        let leaves = cpuid.iter().map(leaf_of).collect();
        let cpu = Cpu::with_engine(machine, surroundings.clone(), CpuLink::new(), leaves, 2, Engine::Interpreter)?;
        Ok(Self { cpu, surroundings })
    }

    /// Executes the instruction at RIP. The state with what it changed; `None` if that was a triple fault.
    pub(super) fn step(&mut self, state: &CpuState) -> Option<CpuState> {
        let around = &self.surroundings;
        around.apic_base.store(state.msr(msr::APIC_BASE), Ordering::Relaxed);
        around.task_priority.store(state.cr8, Ordering::Relaxed);
        around.tsc.store(state.msr(msr::TSC), Ordering::Relaxed);
        self.cpu.set_registers(&from_state(state));
        // What the software CPU does not have must not get lost: only what the instruction changes is taken over.
        let before = to_state(&self.cpu.registers());
        self.cpu.step_one().ok()?;
        let after = to_state(&self.cpu.registers());
        let mut merged = state.clone();
        macro_rules! take {
            ($($field:ident),*) => {$(
                if after.$field != before.$field {
                    merged.$field = after.$field.clone();
                }
            )*};
        }
        take!(regs, rip, rflags, segs, ldt, tr, gdt, idt, cr0, cr2, cr3, cr4, dr, xcr0, mp_state);
        if after.fpu != before.fpu {
            let xstate_bv = state.fpu.xstate_bv | after.fpu.xstate_bv;
            merged.fpu = FpuState { avx512: merged.fpu.avx512.take(), xstate_bv, ..after.fpu.clone() };
        }
        merged.cr8 = around.task_priority.load(Ordering::Relaxed);
        merged.events.shadow = after.events.shadow;
        merged.events.nmi_masked = after.events.nmi_masked;
        for &(index, value) in &after.msrs {
            // The bases of FS and GS went with the segments.
            if value != before.msr(index) && !matches!(index, msr::FS_BASE | msr::GS_BASE | msr::TSC) {
                merged.set_msr(index, value);
            }
        }
        Some(merged)
    }
}
