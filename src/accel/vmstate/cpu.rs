//! The section `cpu`.

use lockstep_vmstate::{LoadError, VmState};

use crate::cpu_state::{CpuState, FpuState, MpState, PendingEvents, Segment, TableRegister, msr, seg};

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "segment", version = 1)]
struct SegmentWire {
    selector: u32,
    base: u64,
    limit: u32,
    flags: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "fpreg", version = 0)]
struct X87Wire {
    #[vmstate(name = "tmp", kind = "tmp")]
    value: Float80,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "fpreg_tmp", version = 0)]
struct Float80 {
    tmp_mant: u64,
    tmp_exp: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "xmm_reg", version = 1)]
struct XmmWire {
    #[vmstate(name = "_q_ZMMReg[0]")]
    q0: u64,
    #[vmstate(name = "_q_ZMMReg[1]")]
    q1: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "ymmh_reg", version = 1)]
struct YmmHighWire {
    #[vmstate(name = "_q_ZMMReg[2]")]
    q2: u64,
    #[vmstate(name = "_q_ZMMReg[3]")]
    q3: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "mtrr_var", version = 1)]
struct MtrrWire {
    base: u64,
    mask: u64,
}

/// A vCPU's registers as QEMU's stream has them.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "cpu", version = 12, minimum = 11)]
pub struct CpuWire {
    #[vmstate(name = "env.regs")]
    regs: [u64; 16],
    #[vmstate(name = "env.eip")]
    eip: u64,
    #[vmstate(name = "env.eflags")]
    eflags: u64,
    #[vmstate(name = "env.hflags")]
    hflags: u32,
    #[vmstate(name = "env.fpuc")]
    fpuc: u16,
    #[vmstate(name = "env.fpus_vmstate")]
    fpus: u16,
    #[vmstate(name = "env.fptag_vmstate")]
    fptag: u16,
    #[vmstate(name = "env.fpregs_format_vmstate")]
    fpregs_format: u16,
    #[vmstate(name = "env.fpregs")]
    fpregs: [X87Wire; 8],
    #[vmstate(name = "env.segs")]
    segs: [SegmentWire; 6],
    #[vmstate(name = "env.ldt")]
    ldt: SegmentWire,
    #[vmstate(name = "env.tr")]
    tr: SegmentWire,
    #[vmstate(name = "env.gdt")]
    gdt: SegmentWire,
    #[vmstate(name = "env.idt")]
    idt: SegmentWire,
    #[vmstate(name = "env.sysenter_cs")]
    sysenter_cs: u32,
    #[vmstate(name = "env.sysenter_esp")]
    sysenter_esp: u64,
    #[vmstate(name = "env.sysenter_eip")]
    sysenter_eip: u64,
    #[vmstate(name = "env.cr[0]")]
    cr0: u64,
    #[vmstate(name = "env.cr[2]")]
    cr2: u64,
    #[vmstate(name = "env.cr[3]")]
    cr3: u64,
    #[vmstate(name = "env.cr[4]")]
    cr4: u64,
    #[vmstate(name = "env.dr")]
    dr: [u64; 8],
    #[vmstate(name = "env.a20_mask")]
    a20_mask: i32,
    #[vmstate(name = "env.mxcsr")]
    mxcsr: u32,
    #[vmstate(name = "env.xmm_regs")]
    xmm: [XmmWire; 16],
    #[vmstate(name = "env.efer")]
    efer: u64,
    #[vmstate(name = "env.star")]
    star: u64,
    #[vmstate(name = "env.lstar")]
    lstar: u64,
    #[vmstate(name = "env.cstar")]
    cstar: u64,
    #[vmstate(name = "env.fmask")]
    fmask: u64,
    #[vmstate(name = "env.kernelgsbase")]
    kernelgsbase: u64,
    #[vmstate(name = "env.smbase")]
    smbase: u32,
    #[vmstate(name = "env.pat")]
    pat: u64,
    #[vmstate(name = "env.hflags2")]
    hflags2: u32,
    #[vmstate(name = "env.vm_hsave")]
    vm_hsave: u64,
    #[vmstate(name = "env.vm_vmcb")]
    vm_vmcb: u64,
    #[vmstate(name = "env.tsc_offset")]
    tsc_offset: u64,
    #[vmstate(name = "env.intercept")]
    intercept: u64,
    #[vmstate(name = "env.intercept_cr_read")]
    intercept_cr_read: u16,
    #[vmstate(name = "env.intercept_cr_write")]
    intercept_cr_write: u16,
    #[vmstate(name = "env.intercept_dr_read")]
    intercept_dr_read: u16,
    #[vmstate(name = "env.intercept_dr_write")]
    intercept_dr_write: u16,
    #[vmstate(name = "env.intercept_exceptions")]
    intercept_exceptions: u32,
    #[vmstate(name = "env.v_tpr")]
    v_tpr: u8,
    #[vmstate(name = "env.mtrr_fixed")]
    mtrr_fixed: [u64; 11],
    #[vmstate(name = "env.mtrr_deftype")]
    mtrr_deftype: u64,
    #[vmstate(name = "env.mtrr_var")]
    mtrr_var: [MtrrWire; 8],
    #[vmstate(name = "env.interrupt_injected")]
    interrupt_injected: i32,
    #[vmstate(name = "env.mp_state")]
    mp_state: u32,
    #[vmstate(name = "env.tsc")]
    tsc: u64,
    #[vmstate(name = "env.exception_nr")]
    exception_nr: i32,
    #[vmstate(name = "env.soft_interrupt")]
    soft_interrupt: u8,
    #[vmstate(name = "env.nmi_injected")]
    nmi_injected: u8,
    #[vmstate(name = "env.nmi_pending")]
    nmi_pending: u8,
    #[vmstate(name = "env.has_error_code")]
    has_error_code: u8,
    #[vmstate(name = "env.sipi_vector")]
    sipi_vector: u32,
    #[vmstate(name = "env.mcg_cap")]
    mcg_cap: u64,
    #[vmstate(name = "env.mcg_status")]
    mcg_status: u64,
    #[vmstate(name = "env.mcg_ctl")]
    mcg_ctl: u64,
    #[vmstate(name = "env.mce_banks")]
    mce_banks: [u64; 40],
    #[vmstate(name = "env.tsc_aux")]
    tsc_aux: u64,
    #[vmstate(name = "env.system_time_msr")]
    system_time_msr: u64,
    #[vmstate(name = "env.wall_clock_msr")]
    wall_clock_msr: u64,
    #[vmstate(name = "env.xcr0", since = 12)]
    xcr0: u64,
    #[vmstate(name = "env.xstate_bv", since = 12)]
    xstate_bv: u64,
    #[vmstate(name = "env.xmm_regs", since = 12)]
    ymmh: [YmmHighWire; 16],
    #[vmstate(subsection)]
    exception_info: Option<ExceptionInfo>,
    #[vmstate(subsection)]
    async_pf: Option<AsyncPf>,
    #[vmstate(subsection)]
    async_pf_int: Option<AsyncPfInt>,
    #[vmstate(subsection)]
    pv_eoi: Option<PvEoi>,
    #[vmstate(subsection)]
    steal_time: Option<StealTime>,
    #[vmstate(subsection)]
    fpop_ip_dp: Option<FpopIpDp>,
    #[vmstate(subsection)]
    tsc_adjust: Option<TscAdjust>,
    #[vmstate(subsection)]
    tsc_deadline: Option<TscDeadline>,
    #[vmstate(subsection)]
    misc_enable: Option<MiscEnable>,
    #[vmstate(subsection)]
    feature_control: Option<FeatureControl>,
    #[vmstate(subsection)]
    avx512: Option<Avx512>,
    #[vmstate(subsection)]
    xss: Option<Xss>,
    #[vmstate(subsection)]
    tsc_khz: Option<TscKhz>,
    #[vmstate(subsection)]
    spec_ctrl: Option<SpecCtrl>,
    #[vmstate(subsection)]
    poll_control: Option<PollControl>,
    #[vmstate(subsection)]
    smi_count: Option<SmiCount>,
    #[vmstate(subsection)]
    pvm: Option<Pvm>,
}

macro_rules! msr_subsection {
    ($type:ident, $name:literal, $field:ident: $int:ty, $wire:literal) => {
        #[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
        #[vmstate(name = $name, version = 1)]
        struct $type {
            #[vmstate(name = $wire)]
            $field: $int,
        }
    };
}

msr_subsection!(AsyncPf, "cpu/async_pf_msr", value: u64, "env.async_pf_en_msr");
msr_subsection!(AsyncPfInt, "cpu/async_pf_int_msr", value: u64, "env.async_pf_int_msr");
msr_subsection!(PvEoi, "cpu/async_pv_eoi_msr", value: u64, "env.pv_eoi_en_msr");
msr_subsection!(StealTime, "cpu/steal_time_msr", value: u64, "env.steal_time_msr");
msr_subsection!(TscAdjust, "cpu/msr_tsc_adjust", value: u64, "env.tsc_adjust");
msr_subsection!(TscDeadline, "cpu/msr_tscdeadline", value: u64, "env.tsc_deadline");
msr_subsection!(MiscEnable, "cpu/msr_ia32_misc_enable", value: u64, "env.msr_ia32_misc_enable");
msr_subsection!(Xss, "cpu/xss", value: u64, "env.xss");
msr_subsection!(TscKhz, "cpu/tsc_khz", value: i64, "env.tsc_khz");
msr_subsection!(SpecCtrl, "cpu/spec_ctrl", value: u64, "env.spec_ctrl");
msr_subsection!(FeatureControl, "cpu/msr_ia32_feature_control", value: u64, "env.msr_ia32_feature_control");
msr_subsection!(SmiCount, "cpu/msr_smi_count", value: u64, "env.msr_smi_count");
msr_subsection!(PollControl, "cpu/poll_control_msr", value: u64, "env.poll_control_msr");
// Ours: QEMU cannot carry a guest that runs natively under kvm-pvm.
msr_subsection!(Pvm, "cpu/lockstep_pvm", value: u64, "pvm_vcpu_struct");

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "cpu/exception_info", version = 1)]
struct ExceptionInfo {
    #[vmstate(name = "env.exception_pending")]
    pending: u8,
    #[vmstate(name = "env.exception_injected")]
    injected: u8,
    #[vmstate(name = "env.exception_has_payload")]
    has_payload: u8,
    #[vmstate(name = "env.exception_payload")]
    payload: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "cpu/fpop_ip_dp", version = 1)]
struct FpopIpDp {
    #[vmstate(name = "env.fpop")]
    fpop: u16,
    #[vmstate(name = "env.fpip")]
    fpip: u64,
    #[vmstate(name = "env.fpdp")]
    fpdp: u64,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "cpu/avx512", version = 1)]
struct Avx512 {
    #[vmstate(name = "env.opmask_regs")]
    opmask: [u64; 8],
    #[vmstate(name = "env.xmm_regs")]
    zmm_high: [[u64; 4]; 16],
    #[vmstate(name = "env.xmm_regs")]
    hi16: [[u64; 8]; 16],
}

/// KVM's number of "no interrupt" and "no exception".
const NONE: i32 = -1;

impl From<&Segment> for SegmentWire {
    fn from(s: &Segment) -> Self {
        Self { selector: s.selector.into(), base: s.base, limit: s.limit, flags: s.flags }
    }
}

impl From<&SegmentWire> for Segment {
    fn from(s: &SegmentWire) -> Self {
        Self { selector: s.selector as u16, base: s.base, limit: s.limit, flags: s.flags }
    }
}

fn table_wire(t: &TableRegister) -> SegmentWire {
    SegmentWire { base: t.base, limit: t.limit, ..SegmentWire::default() }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

impl CpuWire {
    pub(super) fn from_state(s: &CpuState) -> Self {
        let m = |index| s.msr(index);
        let nonzero = |index| Some(m(index)).filter(|&v| v != 0);
        let f = &s.fpu;
        let e = &s.events;
        let st = |i: usize| f.st[if in_stack_order(s.tsc_khz) { i } else { i.wrapping_sub(top(f.fsw)) & 7 }];
        Self {
            regs: s.regs,
            eip: s.rip,
            eflags: s.rflags,
            hflags: hflags(s),
            fpuc: f.fcw,
            fpus: f.fsw,
            fptag: f.ftw.into(),
            fpregs_format: 0,
            fpregs: std::array::from_fn(|i| {
                let st = st(i);
                let value = Float80 { tmp_mant: u64_at(&st, 0), tmp_exp: u16::from_le_bytes([st[8], st[9]]) };
                X87Wire { value }
            }),
            segs: std::array::from_fn(|i| (&s.segs[i]).into()),
            ldt: (&s.ldt).into(),
            tr: (&s.tr).into(),
            gdt: table_wire(&s.gdt),
            idt: table_wire(&s.idt),
            sysenter_cs: m(msr::SYSENTER_CS) as u32,
            sysenter_esp: m(msr::SYSENTER_ESP),
            sysenter_eip: m(msr::SYSENTER_EIP),
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            dr: s.dr,
            a20_mask: -1,
            mxcsr: f.mxcsr,
            xmm: f.ymm.map(|y| XmmWire { q0: u64_at(&y, 0), q1: u64_at(&y, 8) }),
            efer: m(msr::EFER),
            star: m(msr::STAR),
            lstar: m(msr::LSTAR),
            cstar: m(msr::CSTAR),
            fmask: m(msr::FMASK),
            kernelgsbase: m(msr::KERNEL_GS_BASE),
            smbase: if m(msr::SMBASE) == 0 { 0x3_0000 } else { m(msr::SMBASE) as u32 },
            pat: m(msr::PAT),
            hflags2: HFLAGS2_GIF | if e.nmi_masked { HFLAGS2_NMI } else { 0 },
            vm_hsave: m(msr::VM_HSAVE_PA),
            vm_vmcb: 0,
            tsc_offset: 0,
            intercept: 0,
            intercept_cr_read: 0,
            intercept_cr_write: 0,
            intercept_dr_read: 0,
            intercept_dr_write: 0,
            intercept_exceptions: 0,
            v_tpr: 0,
            mtrr_fixed: msr::MTRR_FIXED.map(m),
            mtrr_deftype: m(msr::MTRR_DEF_TYPE),
            mtrr_var: std::array::from_fn(|i| MtrrWire {
                base: m(msr::MTRR_PHYS_BASE0 + 2 * i as u32),
                mask: m(msr::MTRR_PHYS_MASK0 + 2 * i as u32),
            }),
            interrupt_injected: e.interrupt.map_or(NONE, |(vector, _)| vector.into()),
            mp_state: match s.mp_state {
                MpState::Runnable => 0,
                MpState::Uninitialized => 1,
                MpState::InitReceived => 2,
                MpState::Halted => 3,
                MpState::SipiReceived => 4,
            },
            tsc: m(msr::TSC),
            exception_nr: e.exception.map_or(NONE, |(vector, _)| vector.into()),
            soft_interrupt: e.interrupt.is_some_and(|(_, soft)| soft).into(),
            nmi_injected: e.nmi_injected.into(),
            nmi_pending: e.nmi_pending.into(),
            has_error_code: e.exception.is_some_and(|(_, code)| code.is_some()).into(),
            sipi_vector: e.sipi_vector,
            mcg_cap: msr::MCG_CAP_VALUE,
            mcg_status: m(msr::MCG_STATUS),
            mcg_ctl: m(msr::MCG_CTL),
            mce_banks: std::array::from_fn(|i| m(msr::MC0_CTL + i as u32)),
            tsc_aux: m(msr::TSC_AUX),
            system_time_msr: m(msr::KVM_SYSTEM_TIME),
            wall_clock_msr: m(msr::KVM_WALL_CLOCK),
            xcr0: s.xcr0,
            xstate_bv: f.xstate_bv,
            ymmh: f.ymm.map(|y| YmmHighWire { q2: u64_at(&y, 16), q3: u64_at(&y, 24) }),
            exception_info: e.exception_pending.then_some(ExceptionInfo {
                pending: 1,
                injected: 0,
                has_payload: e.exception_payload.is_some().into(),
                payload: e.exception_payload.unwrap_or(0),
            }),
            async_pf: nonzero(msr::KVM_ASYNC_PF_EN).map(|value| AsyncPf { value }),
            async_pf_int: nonzero(msr::KVM_ASYNC_PF_INT).map(|value| AsyncPfInt { value }),
            pv_eoi: nonzero(msr::KVM_PV_EOI_EN).map(|value| PvEoi { value }),
            steal_time: nonzero(msr::KVM_STEAL_TIME).map(|value| StealTime { value }),
            fpop_ip_dp: (f.fop != 0 || f.fip != 0 || f.fdp != 0).then_some(FpopIpDp {
                fpop: f.fop,
                fpip: f.fip,
                fpdp: f.fdp,
            }),
            tsc_adjust: nonzero(msr::TSC_ADJUST).map(|value| TscAdjust { value }),
            tsc_deadline: nonzero(msr::TSC_DEADLINE).map(|value| TscDeadline { value }),
            misc_enable: Some(m(msr::MISC_ENABLE)).filter(|&v| v != 1).map(|value| MiscEnable { value }),
            feature_control: nonzero(msr::FEATURE_CONTROL).map(|value| FeatureControl { value }),
            avx512: f.avx512.as_ref().map(|area| Avx512 {
                opmask: std::array::from_fn(|i| u64_at(&area[..], 8 * i)),
                zmm_high: std::array::from_fn(|r| std::array::from_fn(|q| u64_at(&area[..], 64 + 32 * r + 8 * q))),
                hi16: std::array::from_fn(|r| std::array::from_fn(|q| u64_at(&area[..], 576 + 64 * r + 8 * q))),
            }),
            xss: nonzero(msr::XSS).map(|value| Xss { value }),
            tsc_khz: (s.tsc_khz != 0).then_some(TscKhz { value: s.tsc_khz.into() }),
            spec_ctrl: nonzero(msr::SPEC_CTRL).map(|value| SpecCtrl { value }),
            poll_control: s
                .msrs
                .iter()
                .find(|&&(i, v)| i == msr::KVM_POLL_CONTROL && v != 1)
                .map(|&(_, value)| PollControl { value }),
            smi_count: nonzero(msr::SMI_COUNT).map(|value| SmiCount { value }),
            // Bits 10 and 11 show in any guest; one that has not registered can go where kvm-pvm is not known.
            pvm: nonzero(msr::PVM_VCPU_STRUCT).filter(|value| value & !0xc00 != 0).map(|value| Pvm { value }),
        }
    }

    /// What a vCPU cannot be.
    pub(super) fn check(&self) -> Result<(), LoadError> {
        let canonical = |a: u64| ((a << 16) as i64 >> 16) as u64 == a;
        let long_mode = self.efer & 1 << 10 != 0;
        if self.fpregs_format != 0 {
            return Err(LoadError::invalid("the floating-point registers are of an unknown form"));
        }
        if self.cr0 & 1 << 31 != 0 && self.cr0 & 1 == 0 {
            return Err(LoadError::invalid("CR0 has paging without protection"));
        }
        if long_mode && self.cr4 & 1 << 5 == 0 {
            return Err(LoadError::invalid("long mode without CR4.PAE"));
        }
        if self.mp_state > 4 {
            return Err(LoadError::invalid("mp_state is out of range"));
        }
        if self.xcr0 & 1 == 0 || self.xcr0 & 6 == 4 {
            return Err(LoadError::invalid("XCR0 is not a valid set of components"));
        }
        if !canonical(self.segs[seg::FS].base) || !canonical(self.segs[seg::GS].base) || !canonical(self.kernelgsbase) {
            return Err(LoadError::invalid("a segment's base is not canonical"));
        }
        for nr in [self.exception_nr, self.interrupt_injected] {
            if !(-1..256).contains(&nr) {
                return Err(LoadError::invalid("an event's vector is out of range"));
            }
        }
        Ok(())
    }

    /// The state, with the APIC of `base` kept; `waiting` is what [`CpuCommonWire`](super::CpuCommonWire) says.
    pub(super) fn into_state(self, base: CpuState, waiting: &super::CpuCommonWire) -> CpuState {
        let requested = |bit: u32| waiting.interrupt_request & bit != 0;
        let mut fpu = FpuState {
            fcw: self.fpuc,
            fsw: self.fpus,
            ftw: self.fptag as u8,
            mxcsr: self.mxcsr,
            xstate_bv: self.xstate_bv,
            ..FpuState::default()
        };
        if let Some(last) = self.fpop_ip_dp {
            (fpu.fop, fpu.fip, fpu.fdp) = (last.fpop, last.fpip, last.fpdp);
        }
        let tsc_khz = self.tsc_khz.map_or(0, |t| t.value as u32);
        let first = if in_stack_order(tsc_khz) { 0 } else { top(self.fpus) };
        for (i, to) in fpu.st.iter_mut().enumerate() {
            let from = &self.fpregs[(first + i) & 7].value;
            to[..8].copy_from_slice(&from.tmp_mant.to_le_bytes());
            to[8..].copy_from_slice(&from.tmp_exp.to_le_bytes());
        }
        for (to, (low, high)) in fpu.ymm.iter_mut().zip(self.xmm.iter().zip(&self.ymmh)) {
            for (part, value) in to.chunks_exact_mut(8).zip([low.q0, low.q1, high.q2, high.q3]) {
                part.copy_from_slice(&value.to_le_bytes());
            }
        }
        fpu.avx512 = self.avx512.map(|a| {
            let mut area = Box::new([0; 1600]);
            let words =
                a.opmask.into_iter().chain(a.zmm_high.into_iter().flatten()).chain(a.hi16.into_iter().flatten());
            for (part, value) in area.chunks_exact_mut(8).zip(words) {
                part.copy_from_slice(&value.to_le_bytes());
            }
            area
        });
        let mut state = CpuState {
            regs: self.regs,
            rip: self.eip,
            rflags: self.eflags,
            segs: std::array::from_fn(|i| (&self.segs[i]).into()),
            ldt: (&self.ldt).into(),
            tr: (&self.tr).into(),
            gdt: TableRegister { base: self.gdt.base, limit: self.gdt.limit },
            idt: TableRegister { base: self.idt.base, limit: self.idt.limit },
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: 0,
            dr: self.dr,
            xcr0: self.xcr0,
            fpu,
            msrs: Vec::with_capacity(96),
            events: PendingEvents {
                exception: u8::try_from(self.exception_nr).ok().map(|v| (v, (self.has_error_code != 0).then_some(0))),
                exception_pending: self.exception_info.is_some_and(|i| i.pending != 0),
                exception_payload: self.exception_info.filter(|i| i.has_payload != 0).map(|i| i.payload),
                interrupt: u8::try_from(self.interrupt_injected).ok().map(|v| (v, self.soft_interrupt != 0)),
                interrupt_waits: false,
                shadow: self.hflags & HFLAGS_SHADOW != 0,
                nmi_injected: self.nmi_injected != 0,
                nmi_pending: self.nmi_pending != 0 || requested(super::REQUEST_NMI),
                nmi_masked: self.hflags2 & HFLAGS2_NMI != 0,
                sipi_vector: self.sipi_vector,
                smm: self.hflags & HFLAGS_SMM != 0,
                smi_pending: requested(super::REQUEST_SMI),
            },
            mp_state: match self.mp_state {
                1 => MpState::Uninitialized,
                2 => MpState::InitReceived,
                3 => MpState::Halted,
                4 => MpState::SipiReceived,
                // A software CPU says it elsewhere.
                _ if waiting.halted != 0 => MpState::Halted,
                _ => MpState::Runnable,
            },
            apic: base.apic,
            tsc_khz,
        };
        let msrs = &mut state.msrs;
        msrs.extend([
            (msr::EFER, self.efer),
            (msr::STAR, self.star),
            (msr::LSTAR, self.lstar),
            (msr::CSTAR, self.cstar),
            (msr::FMASK, self.fmask),
            (msr::KERNEL_GS_BASE, self.kernelgsbase),
            (msr::SYSENTER_CS, self.sysenter_cs.into()),
            (msr::SYSENTER_ESP, self.sysenter_esp),
            (msr::SYSENTER_EIP, self.sysenter_eip),
            (msr::SMBASE, self.smbase.into()),
            (msr::PAT, self.pat),
            (msr::VM_HSAVE_PA, self.vm_hsave),
            (msr::MTRR_DEF_TYPE, self.mtrr_deftype),
            (msr::TSC, self.tsc),
            (msr::TSC_AUX, self.tsc_aux),
            (msr::SMI_COUNT, self.smi_count.map_or(0, |v| v.value)),
            (msr::FEATURE_CONTROL, self.feature_control.map_or(0, |v| v.value)),
            (msr::MCG_STATUS, self.mcg_status),
            (msr::MCG_CTL, self.mcg_ctl),
            (msr::KVM_SYSTEM_TIME, self.system_time_msr),
            (msr::KVM_WALL_CLOCK, self.wall_clock_msr),
            (msr::KVM_ASYNC_PF_INT, self.async_pf_int.map_or(0, |v| v.value)),
            (msr::KVM_ASYNC_PF_EN, self.async_pf.map_or(0, |v| v.value)),
            (msr::KVM_PV_EOI_EN, self.pv_eoi.map_or(0, |v| v.value)),
            (msr::KVM_STEAL_TIME, self.steal_time.map_or(0, |v| v.value)),
            (msr::KVM_POLL_CONTROL, self.poll_control.map_or(1, |v| v.value)),
            (msr::TSC_ADJUST, self.tsc_adjust.map_or(0, |v| v.value)),
            (msr::TSC_DEADLINE, self.tsc_deadline.map_or(0, |v| v.value)),
            (msr::MISC_ENABLE, self.misc_enable.map_or(1, |v| v.value)),
            (msr::XSS, self.xss.map_or(0, |v| v.value)),
            (msr::SPEC_CTRL, self.spec_ctrl.map_or(0, |v| v.value)),
            (msr::PVM_VCPU_STRUCT, self.pvm.map_or(0, |v| v.value)),
        ]);
        msrs.extend(msr::MTRR_FIXED.into_iter().zip(self.mtrr_fixed));
        for (n, mtrr) in (0..).zip(&self.mtrr_var) {
            msrs.push((msr::MTRR_PHYS_BASE0 + 2 * n, mtrr.base));
            msrs.push((msr::MTRR_PHYS_MASK0 + 2 * n, mtrr.mask));
        }
        msrs.extend((msr::MC0_CTL..).zip(self.mce_banks));
        state
    }
}

/// Summary bits that the registers do not imply: the shadow of STI and MOV SS, system management mode.
const HFLAGS_SHADOW: u32 = 1 << 3;
const HFLAGS_SMM: u32 = 1 << 19;
/// The global interrupt flag and its virtual twin of SVM, which are set outside of nested guests; NMIs are blocked.
const HFLAGS2_GIF: u32 = 0x101;
const HFLAGS2_NMI: u32 = 1 << 2;

/// The x87 register that is ST(0).
fn top(status: u16) -> usize {
    usize::from(status >> 11 & 7)
}

/// Whether x87 registers are in the order of the stack, as QEMU has them with KVM, or as they are numbered, as on its software CPU.
/// Only the former knows a frequency of the time-stamp counter.
fn in_stack_order(tsc_khz: u32) -> bool {
    tsc_khz != 0
}

/// QEMU's summary of the mode, which it saves although most of it can be derived; its software CPU takes it as it is. Bit numbers are
/// of its stream.
fn hflags(s: &CpuState) -> u32 {
    const PE: u32 = 7;
    const MP: u32 = 9;
    const EM: u32 = 10;
    const TS: u32 = 11;
    const LMA: u32 = 14;
    const CS64: u32 = 15;
    const SVME: u32 = 20;
    const OSFXSR: u32 = 22;
    const SMAP: u32 = 23;
    const UMIP: u32 = 27;
    const AVX: u32 = 28;
    let (cs, ss) = (&s.segs[seg::CS], &s.segs[seg::SS]);
    let efer = s.msr(msr::EFER);
    let lma = efer >> 10 & 1 != 0;
    let vm86 = s.rflags >> 17 & 1 != 0;
    let avx = s.cr4 >> 18 & 1 != 0 && s.xcr0 & 6 == 6;
    let mut flags = (ss.flags >> 13 & 3) | u32::from(avx) << AVX | (efer >> 12 & 1) as u32 * (1 << SVME);
    for (bit, to) in [(0, PE), (1, MP), (2, EM), (3, TS)] {
        flags |= (s.cr0 as u32 >> bit & 1) << to;
    }
    for (bit, to) in [(9, OSFXSR), (21, SMAP), (11, UMIP)] {
        flags |= (s.cr4 as u32 >> bit & 1) << to;
    }
    for (is, bit) in [(s.events.shadow, HFLAGS_SHADOW), (s.events.smm, HFLAGS_SMM), (lma, 1 << LMA)] {
        flags |= if is { bit } else { 0 };
    }
    if lma && cs.flags >> 21 & 1 != 0 {
        return flags | 1 << 4 | 1 << 5 | 1 << CS64;
    }
    flags |= (cs.flags >> 22 & 1) << 4 | (ss.flags >> 22 & 1) << 5;
    let bases = [seg::DS, seg::ES, seg::SS].iter().any(|&i| s.segs[i].base != 0);
    if s.cr0 & 1 == 0 || vm86 || cs.flags >> 22 & 1 == 0 || bases {
        flags |= 1 << 6;
    }
    flags
}
