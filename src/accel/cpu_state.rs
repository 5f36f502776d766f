//! A vCPU's registers in a form that every engine can take.

/// Indices of model-specific registers that code here names (Intel SDM volume 4; `Documentation/virt/kvm/x86/msr.rst`).
pub mod msr {
    #![allow(missing_docs)]
    pub use lockstep_cpu::msr::index::*;

    pub const SMI_COUNT: u32 = 0x34;
    pub const SMBASE: u32 = 0x9e;
    /// What `MCG_CAP` holds in every guest: ten banks, MCG_CTL, recoverable errors (Intel SDM volume 3, 16.3.1.1).
    pub const MCG_CAP_VALUE: u64 = 0x100_010a;
    pub const MTRR_PHYS_BASE0: u32 = 0x200;
    pub const MTRR_PHYS_MASK0: u32 = 0x201;
    pub const MTRR_PHYS_MASK7: u32 = 0x20f;
    pub const XSS: u32 = 0xda0;
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
    pub const KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;
    pub const KVM_STEAL_TIME: u32 = 0x4b56_4d03;
    pub const KVM_PV_EOI_EN: u32 = 0x4b56_4d04;
    pub const KVM_POLL_CONTROL: u32 = 0x4b56_4d05;
    pub const KVM_ASYNC_PF_INT: u32 = 0x4b56_4d06;
    /// Where a guest of kvm-pvm has its event page, and whether it runs natively.
    pub const PVM_VCPU_STRUCT: u32 = 0x4b56_4d10;
}

/// A segment register. `flags` are bits 8 to 23 of a descriptor's second doubleword, in place (type, S, DPL, P, AVL, L, D/B, G).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The base address.
    pub base: u64,
    /// The limit in bytes.
    pub limit: u32,
    /// The attributes.
    pub flags: u32,
}

/// `GDTR` or `IDTR`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// The base address.
    pub base: u64,
    /// The limit in bytes.
    pub limit: u32,
}

/// The x87, SSE and AVX registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FpuState {
    /// Control word.
    pub fcw: u16,
    /// Status word, with the top of stack in bits 11 to 13.
    pub fsw: u16,
    /// Abridged tags (FXSAVE's form): bit n is set when physical register n is in use.
    pub ftw: u8,
    /// Last opcode.
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last data pointer.
    pub fdp: u64,
    /// `ST(0)` to `ST(7)` as FXSAVE stores them: 80 bits each.
    pub st: [[u8; 10]; 8],
    /// MXCSR.
    pub mxcsr: u32,
    /// `YMM0` to `YMM15`; the low half is `XMMn`.
    pub ymm: [[u8; 32]; 16],
    /// Which components of the extended state are in use (XSAVE's XSTATE_BV).
    pub xstate_bv: u64,
    /// The opmask, upper ZMM and ZMM16 to 31 components (XSAVE components 5 to 7), 64 + 512 + 1024 bytes, when in use.
    pub avx512: Option<Box<[u8; 1600]>>,
}

impl Default for FpuState {
    fn default() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            st: [[0; 10]; 8],
            mxcsr: 0x1f80,
            ymm: [[0; 32]; 16],
            xstate_bv: 3,
            avx512: None,
        }
    }
}

/// Events that are under way when the vCPU stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingEvents {
    /// An exception being delivered: vector and error code.
    pub exception: Option<(u8, Option<u32>)>,
    /// The exception is not yet injected (it is pending, with this payload if any).
    pub exception_pending: bool,
    /// See [`exception_pending`](Self::exception_pending).
    pub exception_payload: Option<u64>,
    /// An external interrupt being delivered: vector, and whether software raised it.
    pub interrupt: Option<(u8, bool)>,
    /// An external interrupt waits at controllers that are not the engine's.
    pub interrupt_waits: bool,
    /// The interrupt shadow of STI or MOV SS.
    pub shadow: bool,
    /// An NMI is being delivered.
    pub nmi_injected: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// The vector of a start-up IPI that waits.
    pub sipi_vector: u32,
    /// In system management mode.
    pub smm: bool,
    /// An SMI waits.
    pub smi_pending: bool,
}

/// What a vCPU does (`KVM_GET_MP_STATE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MpState {
    /// Runs.
    #[default]
    Runnable,
    /// An application processor before its INIT.
    Uninitialized,
    /// Got INIT, waits for a start-up IPI.
    InitReceived,
    /// Executed HLT.
    Halted,
    /// Got a start-up IPI.
    SipiReceived,
}

/// The local APIC's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApicState {
    /// The register page: 32-bit registers at multiples of 16, as the hardware shows them (xAPIC layout).
    pub regs: Box<[u8; 1024]>,
}

impl Default for ApicState {
    fn default() -> Self {
        Self { regs: Box::new([0; 1024]) }
    }
}

impl ApicState {
    /// The register at `offset` (a multiple of 16).
    pub fn get(&self, offset: usize) -> u32 {
        u32::from_le_bytes([self.regs[offset], self.regs[offset + 1], self.regs[offset + 2], self.regs[offset + 3]])
    }

    /// Sets the register at `offset` (a multiple of 16).
    pub fn set(&mut self, offset: usize, value: u32) {
        self.regs[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// All of a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuState {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub regs: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// es, cs, ss, ds, fs, gs.
    pub segs: [Segment; 6],
    /// Local descriptor table.
    pub ldt: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdt: TableRegister,
    /// Interrupt descriptor table.
    pub idt: TableRegister,
    /// Control registers.
    pub cr0: u64,
    /// Page-fault address.
    pub cr2: u64,
    /// Page-table base.
    pub cr3: u64,
    /// Control registers.
    pub cr4: u64,
    /// Task priority.
    pub cr8: u64,
    /// Debug registers.
    pub dr: [u64; 8],
    /// Extended control register 0.
    pub xcr0: u64,
    /// Floating point.
    pub fpu: FpuState,
    /// Model-specific registers, by index, those that are not above. Includes EFER and APIC_BASE.
    pub msrs: Vec<(u32, u64)>,
    /// Events under way.
    pub events: PendingEvents,
    /// What it does.
    pub mp_state: MpState,
    /// Its local APIC.
    pub apic: ApicState,
    /// Frequency of the time-stamp counter; 0 is unknown.
    pub tsc_khz: u32,
}

/// Positions in [`CpuState::segs`].
#[allow(missing_docs)]
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

impl CpuState {
    /// The value of a model-specific register, 0 if there is none.
    pub fn msr(&self, index: u32) -> u64 {
        self.msrs.iter().find(|(i, _)| *i == index).map_or(0, |(_, v)| *v)
    }

    /// Sets a model-specific register.
    pub fn set_msr(&mut self, index: u32, value: u64) {
        match self.msrs.iter_mut().find(|(i, _)| *i == index) {
            Some(entry) => entry.1 = value,
            None => self.msrs.push((index, value)),
        }
    }

    /// The state after power-on or INIT (Intel SDM volume 3, table 9-1): the boot processor at the reset vector, others
    /// waiting. `cpuid_signature` is what EDX holds.
    pub fn reset(apic_id: u32, is_bsp: bool, cpuid_signature: u32) -> Self {
        let data = Segment { selector: 0, base: 0, limit: 0xffff, flags: 0x9300 };
        let mut state = Self {
            rip: 0xfff0,
            rflags: 2,
            segs: [data; 6],
            ldt: Segment { limit: 0xffff, flags: 0x8200, ..Segment::default() },
            tr: Segment { limit: 0xffff, flags: 0x8b00, ..Segment::default() },
            gdt: TableRegister { base: 0, limit: 0xffff },
            idt: TableRegister { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            xcr0: 1,
            mp_state: if is_bsp { MpState::Runnable } else { MpState::Uninitialized },
            ..Self::default()
        };
        state.segs[seg::CS] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, flags: 0x9b00 };
        state.regs[2] = cpuid_signature.into();
        state.dr[6] = 0xffff_0ff0;
        state.dr[7] = 0x400;
        state.set_msr(msr::PAT, 0x0007_0406_0007_0406);
        state.set_msr(msr::APIC_BASE, 0xfee0_0800 | if is_bsp { 0x100 } else { 0 });
        state.set_msr(msr::MISC_ENABLE, 1);
        for index in [
            msr::EFER,
            msr::STAR,
            msr::LSTAR,
            msr::CSTAR,
            msr::FMASK,
            msr::KERNEL_GS_BASE,
            msr::SYSENTER_CS,
            msr::SYSENTER_ESP,
            msr::SYSENTER_EIP,
            msr::TSC,
            msr::TSC_AUX,
            msr::MTRR_DEF_TYPE,
            msr::KVM_WALL_CLOCK,
            msr::KVM_SYSTEM_TIME,
            msr::KVM_ASYNC_PF_EN,
            msr::KVM_STEAL_TIME,
            msr::KVM_PV_EOI_EN,
            msr::PVM_VCPU_STRUCT,
        ] {
            state.set_msr(index, 0);
        }
        state.set_msr(msr::KVM_POLL_CONTROL, 1);
        // All errors of all banks are reported.
        state.set_msr(msr::MCG_CTL, u64::MAX);
        for bank in 0..msr::MCG_CAP_VALUE as u32 & 0xff {
            state.set_msr(msr::MC0_CTL + 4 * bank, u64::MAX);
        }
        for index in msr::MTRR_FIXED {
            state.set_msr(index, 0);
        }
        for n in 0..8 {
            state.set_msr(msr::MTRR_PHYS_BASE0 + 2 * n, 0);
            state.set_msr(msr::MTRR_PHYS_MASK0 + 2 * n, 0);
        }
        state.apic = reset_apic(apic_id, is_bsp);
        state
    }
}

/// The local APIC after reset (Intel SDM volume 3, 11.4.7.1). With a boot processor that has LINT0 as ExtINT, as firmware
/// that never touches the APIC needs it.
fn reset_apic(apic_id: u32, is_bsp: bool) -> ApicState {
    let mut apic = ApicState::default();
    apic.set(0x20, apic_id << 24);
    apic.set(0x30, 0x0005_0014);
    apic.set(0xe0, 0xffff_ffff);
    apic.set(0xf0, 0xff);
    for lvt in (0x320..=0x370).step_by(0x10) {
        apic.set(lvt, 0x1_0000);
    }
    if is_bsp {
        apic.set(0x350, 0x700);
    }
    apic
}
