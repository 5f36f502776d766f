//! The sections against QEMU's layout, and there and back.

use lockstep_vmstate::Encoder;

use super::*;
use crate::cpu_state::{PendingEvents, msr};

fn interesting() -> CpuState {
    let mut state = CpuState::reset(3, false, 0x60fb1);
    for (i, reg) in state.regs.iter_mut().enumerate() {
        *reg = 0x0101_0101_0101_0101 * i as u64;
    }
    for (i, ymm) in state.fpu.ymm.iter_mut().enumerate() {
        *ymm = std::array::from_fn(|b| (i * 32 + b) as u8);
    }
    for (i, st) in state.fpu.st.iter_mut().enumerate() {
        *st = std::array::from_fn(|b| (i * 10 + b) as u8);
    }
    state.fpu.avx512 = Some(Box::new(std::array::from_fn(|i| i as u8)));
    (state.fpu.fop, state.fpu.fip, state.fpu.fdp, state.fpu.xstate_bv) = (1, 2, 3, 0xe7);
    state.xcr0 = 0xe7;
    state.events = PendingEvents {
        interrupt: Some((0x31, true)),
        shadow: true,
        nmi_masked: true,
        exception: Some((14, Some(0))),
        exception_pending: true,
        exception_payload: Some(0x1000),
        ..PendingEvents::default()
    };
    for (n, index) in
        [msr::PVM_VCPU_STRUCT, msr::TSC_DEADLINE, msr::KVM_STEAL_TIME, msr::MISC_ENABLE].into_iter().enumerate()
    {
        state.set_msr(index, 0x1000 + n as u64);
    }
    state.tsc_khz = 2_600_000;
    state
}

#[test]
fn all_registers_survive_the_wire() {
    let state = interesting();
    let mut back = CpuWire::from_state(&state).into_state(CpuState::default(), &CpuCommonWire::default());
    ApicWire::from_state(&state, 1 << 40).apply(&mut back, 1 << 40);
    for &(index, value) in &state.msrs {
        assert_eq!(back.msr(index), value, "MSR {index:#x}");
    }
    back.msrs = state.msrs.clone();
    assert_eq!(back, state);
}

#[test]
fn the_fixed_part_has_the_size_of_qemus() {
    let mut out = Encoder::new();
    let mut state = CpuState::reset(0, true, 0);
    state.set_msr(msr::TSC_ADJUST, 0);
    CpuWire::from_state(&state).encode(&mut out);
    assert_eq!(out.len(), 1817, "up to the first subsection");
    let mut out = Encoder::new();
    ApicWire::from_state(&state, 0).encode(&mut out);
    assert_eq!(out.len(), 181);
}

#[test]
fn states_that_no_cpu_has_are_refused() {
    let good = CpuWire::from_state(&interesting());
    good.check().unwrap();
    let mut paging_without_protection = interesting();
    paging_without_protection.cr0 = 1 << 31;
    let mut wild_gs = interesting();
    wild_gs.segs[5].base = 1 << 50;
    for bad in [paging_without_protection, wild_gs] {
        CpuWire::from_state(&bad).check().unwrap_err();
    }
}

#[test]
fn a_timer_goes_on_where_it_was() {
    let mut state = interesting();
    // Divided by 2, at 700 of 1000.
    for (at, value) in [(0x320, 0x31), (0x380, 1000), (0x390, 700), (0x3e0, 0)] {
        state.apic.set(at, value);
    }
    let wire = ApicWire::from_state(&state, 50_000);
    let count_at = |now| {
        let mut back = CpuState::default();
        wire.apply(&mut back, now);
        (back.apic.get(0x380), back.apic.get(0x390))
    };
    assert_eq!(count_at(50_000), (1000, 700));
    assert_eq!(count_at(50_200), (1000, 600));
    assert_eq!(count_at(60_000), (0, 0), "it does not go off a second time");
}

#[test]
fn floating_point_registers_are_numbered_as_qemus_engine_numbers_them() {
    let mut state = interesting();
    state.fpu.fsw = 3 << 11;
    for tsc_khz in [0, 2_600_000] {
        state.tsc_khz = tsc_khz;
        let wire = CpuWire::from_state(&state);
        let mut out = Encoder::new();
        wire.encode(&mut out);
        // ST(0) is register 3 of the software CPU, and the first of KVM's.
        let at = 156 + if tsc_khz == 0 { 30 } else { 0 };
        let mantissa: Vec<u8> = state.fpu.st[0][..8].iter().rev().copied().collect();
        assert_eq!(out.bytes()[at..at + 8], mantissa);
        assert_eq!(wire.into_state(CpuState::default(), &CpuCommonWire::default()).fpu.st, state.fpu.st);
    }
}
