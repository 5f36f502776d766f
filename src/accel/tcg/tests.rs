//! The engine with a machine of RAM only.

use lockstep_event::Clocks;
use lockstep_memory::{AddressSpace, RamList, Region};

use super::*;
use crate::{CpuState, VcpuEvent, cpu_state::msr};

fn vcpu(code: &[u8]) -> (Box<dyn Vcpu>, RamList) {
    let root = Region::whole_space("memory");
    let list = RamList::new();
    let ram = list.allocate("pc.ram", 1 << 20).unwrap();
    root.add(0, &Region::ram("pc.ram", ram.clone()));
    root.add(0xffff_0000, &Region::alias("reset", &Region::ram("pc.ram", ram.clone()), 0xf_0000, 0x1_0000));
    ram.write(0xf_fff0, code).unwrap();
    let memory = AddressSpace::memory("memory", &root);
    let ports = AddressSpace::ports("io", &Region::whole_space("io"));
    let tcg = TcgMachine::new(Clocks::manual());
    tcg.attach_memory(&memory, &ports, &list).unwrap();
    let model = CpuModel::parse("qemu64", Engine::Tcg).unwrap();
    let cpuid = tcg.cpuid(&model, 0, &mut |w| panic!("{w}")).unwrap();
    let cpu = tcg.create_vcpu(0, &cpuid, 1).unwrap();
    (cpu, list)
}

#[test]
fn a_vcpu_starts_at_the_reset_vector_and_triple_faults_without_tables() {
    // mov ax, 0x1234; lidt of nothing is not needed: the IVT is zero, so int3 loops there until the stack is code...
    let (mut cpu, _ram) = vcpu(&[0xb8, 0x34, 0x12, 0x0f, 0x01, 0x1e, 0x00, 0x80, 0xcc]);
    assert_eq!(cpu.run(), VcpuEvent::TripleFault);
    assert_eq!(cpu.save().unwrap().regs[0], 0x1234);
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    let (mut cpu, _ram) = vcpu(&[0xf4]);
    let mut state = CpuState::reset(0, true, 0x600);
    state.regs = std::array::from_fn(|i| i as u64 * 0x1111_1111);
    state.rip = 0x1234;
    state.rflags = 0x246;
    state.set_msr(msr::LSTAR, 0xffff_8000_0000_1000);
    state.fpu.ymm[3] = [7; 32];
    state.fpu.st[2] = [9; 10];
    state.fpu.ftw = 4;
    cpu.load(&state).unwrap();
    let back = cpu.save().unwrap();
    assert_eq!((back.regs, back.rip, back.rflags), (state.regs, state.rip, state.rflags));
    assert_eq!((back.segs, back.tr, back.gdt), (state.segs, state.tr, state.gdt));
    assert_eq!((back.fpu.ymm, back.fpu.st, back.fpu.ftw), (state.fpu.ymm, state.fpu.st, 4));
    assert_eq!(back.msr(msr::LSTAR), 0xffff_8000_0000_1000);
}
