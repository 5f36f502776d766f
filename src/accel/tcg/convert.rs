//! Between the software CPU's registers and the neutral state.

use lockstep_cpu::{
    Events, Registers,
    msr::Msrs,
    state::{Segment as CpuSegment, Table},
};

use crate::cpu_state::{CpuState, FpuState, MpState, PendingEvents, Segment, TableRegister, msr};

fn segment_out(s: &CpuSegment) -> Segment {
    // A descriptor's second word has part of the limit, and QEMU's flags are that word.
    let raw = if s.flags & 1 << 23 != 0 { s.limit >> 12 } else { s.limit };
    Segment { selector: s.selector, base: s.base, limit: s.limit, flags: s.flags | raw & 0xf_0000 }
}

fn segment_in(s: &Segment) -> CpuSegment {
    CpuSegment { selector: s.selector, base: s.base, limit: s.limit, flags: s.flags & 0x00f0_ff00 }
}

fn table_in(t: &TableRegister) -> Table {
    Table { base: t.base, limit: t.limit as u16 }
}

/// The neutral state of registers. The APIC, CR8 and what is not a processor's are not filled in.
pub(crate) fn to_state(r: &Registers) -> CpuState {
    let word = |at: usize| u16::from_le_bytes([r.fx[at], r.fx[at + 1]]);
    let long = |at: usize| {
        let mut b = [0; 8];
        b.copy_from_slice(&r.fx[at..at + 8]);
        u64::from_le_bytes(b)
    };
    let mut st = [[0; 10]; 8];
    for (i, st) in st.iter_mut().enumerate() {
        st.copy_from_slice(&r.fx[32 + 16 * i..42 + 16 * i]);
    }
    let mut state = CpuState {
        regs: r.gpr,
        rip: r.rip,
        rflags: r.rflags,
        segs: r.segs.map(|s| segment_out(&s)),
        ldt: segment_out(&r.ldt),
        tr: segment_out(&r.tr),
        gdt: TableRegister { base: r.gdt.base, limit: r.gdt.limit.into() },
        idt: TableRegister { base: r.idt.base, limit: r.idt.limit.into() },
        cr0: r.cr0,
        cr2: r.cr2,
        cr3: r.cr3,
        cr4: r.cr4,
        dr: r.dr,
        xcr0: r.xcr0,
        fpu: FpuState {
            fcw: word(0),
            fsw: word(2),
            ftw: r.fx[4],
            fop: word(6),
            fip: long(8),
            fdp: long(16),
            st,
            mxcsr: u32::from(word(24)) | u32::from(word(26)) << 16,
            ymm: r.ymm,
            xstate_bv: r.xstate_bv,
            avx512: None,
        },
        events: PendingEvents {
            shadow: r.events.shadow,
            nmi_pending: r.events.nmi_pending,
            nmi_masked: r.events.nmi_masked,
            ..PendingEvents::default()
        },
        mp_state: match (r.events.wait_for_sipi, r.events.halted) {
            (true, _) => MpState::InitReceived,
            (_, true) => MpState::Halted,
            _ => MpState::Runnable,
        },
        ..CpuState::default()
    };
    if let Some((vector, code, external)) = r.events.injected {
        if external {
            state.events.interrupt = Some((vector, false));
        } else {
            state.events.exception = Some((vector, code));
        }
    }
    let m = &r.msrs;
    for (index, value) in [
        (msr::TSC, r.tsc),
        (msr::TSC_ADJUST, m.tsc_adjust),
        (msr::TSC_AUX, m.tsc_aux),
        (msr::EFER, r.efer),
        (msr::SYSENTER_CS, m.sysenter_cs),
        (msr::SYSENTER_ESP, m.sysenter_esp),
        (msr::SYSENTER_EIP, m.sysenter_eip),
        (msr::STAR, m.star),
        (msr::LSTAR, m.lstar),
        (msr::CSTAR, m.cstar),
        (msr::FMASK, m.fmask),
        (msr::FS_BASE, r.segs[4].base),
        (msr::GS_BASE, r.segs[5].base),
        (msr::KERNEL_GS_BASE, m.kernel_gs_base),
        (msr::PAT, m.pat),
        (msr::MISC_ENABLE, m.misc_enable),
        (msr::SPEC_CTRL, m.spec_ctrl),
        (msr::MTRR_DEF_TYPE, m.mtrr_def_type),
        (msr::MCG_STATUS, m.mcg_status),
        (msr::MCG_CTL, m.mcg_ctl),
        (msr::VM_HSAVE_PA, m.vm_hsave_pa),
    ] {
        state.set_msr(index, value);
    }
    for (i, &v) in m.mtrr_variable.iter().enumerate() {
        state.set_msr(msr::MTRR_PHYS_BASE0 + i as u32, v);
    }
    for (index, &v) in msr::MTRR_FIXED.into_iter().zip(&m.mtrr_fixed) {
        state.set_msr(index, v);
    }
    for (i, &v) in m.mc_banks.iter().enumerate() {
        state.set_msr(msr::MC0_CTL + i as u32, v);
    }
    state
}

/// The registers of a neutral state.
pub(crate) fn from_state(s: &CpuState) -> Registers {
    let mut fx = [0; 512];
    fx[0..2].copy_from_slice(&s.fpu.fcw.to_le_bytes());
    fx[2..4].copy_from_slice(&s.fpu.fsw.to_le_bytes());
    fx[4] = s.fpu.ftw;
    fx[6..8].copy_from_slice(&s.fpu.fop.to_le_bytes());
    fx[8..16].copy_from_slice(&s.fpu.fip.to_le_bytes());
    fx[16..24].copy_from_slice(&s.fpu.fdp.to_le_bytes());
    fx[24..28].copy_from_slice(&s.fpu.mxcsr.to_le_bytes());
    for (i, st) in s.fpu.st.iter().enumerate() {
        fx[32 + 16 * i..42 + 16 * i].copy_from_slice(st);
    }
    for (i, ymm) in s.fpu.ymm.iter().enumerate() {
        fx[160 + 16 * i..176 + 16 * i].copy_from_slice(&ymm[..16]);
    }
    let mut msrs = Msrs {
        tsc_offset: 0,
        tsc_adjust: s.msr(msr::TSC_ADJUST),
        tsc_aux: s.msr(msr::TSC_AUX),
        sysenter_cs: s.msr(msr::SYSENTER_CS),
        sysenter_esp: s.msr(msr::SYSENTER_ESP),
        sysenter_eip: s.msr(msr::SYSENTER_EIP),
        star: s.msr(msr::STAR),
        lstar: s.msr(msr::LSTAR),
        cstar: s.msr(msr::CSTAR),
        fmask: s.msr(msr::FMASK),
        kernel_gs_base: s.msr(msr::KERNEL_GS_BASE),
        pat: s.msr(msr::PAT),
        misc_enable: s.msr(msr::MISC_ENABLE),
        spec_ctrl: s.msr(msr::SPEC_CTRL),
        mtrr_def_type: s.msr(msr::MTRR_DEF_TYPE),
        mcg_status: s.msr(msr::MCG_STATUS),
        mcg_ctl: s.msr(msr::MCG_CTL),
        vm_hsave_pa: s.msr(msr::VM_HSAVE_PA),
        ..Msrs::default()
    };
    for (i, v) in msrs.mtrr_variable.iter_mut().enumerate() {
        *v = s.msr(msr::MTRR_PHYS_BASE0 + i as u32);
    }
    for (index, v) in msr::MTRR_FIXED.into_iter().zip(&mut msrs.mtrr_fixed) {
        *v = s.msr(index);
    }
    for (i, v) in msrs.mc_banks.iter_mut().enumerate() {
        *v = s.msr(msr::MC0_CTL + i as u32);
    }
    let events = &s.events;
    let injected = match (events.exception, events.interrupt) {
        (Some((vector, code)), _) => Some((vector, code, false)),
        (None, Some((vector, _))) => Some((vector, None, true)),
        _ => None,
    };
    Registers {
        gpr: s.regs,
        rip: s.rip,
        rflags: s.rflags,
        segs: s.segs.map(|s| segment_in(&s)),
        ldt: segment_in(&s.ldt),
        tr: segment_in(&s.tr),
        gdt: table_in(&s.gdt),
        idt: table_in(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        efer: s.msr(msr::EFER),
        xcr0: s.xcr0,
        dr: s.dr,
        fx,
        ymm: s.fpu.ymm,
        xstate_bv: s.fpu.xstate_bv,
        msrs,
        tsc: s.msr(msr::TSC),
        events: Events {
            shadow: events.shadow,
            halted: s.mp_state == MpState::Halted,
            nmi_masked: events.nmi_masked,
            nmi_pending: events.nmi_pending || events.nmi_injected,
            wait_for_sipi: matches!(s.mp_state, MpState::Uninitialized | MpState::InitReceived),
            injected,
        },
    }
}
