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
    let tcg = TcgMachine::new(Clocks::manual(), 64 << 20);
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

/// What two vCPUs that share one count note in turn: the time and who it was, 2000 times. `disturb` is called again and again meanwhile.
fn notes_of_two(options: IcountOptions, disturb: impl Fn(&crate::VcpuSet)) -> Vec<u8> {
    let root = Region::whole_space("memory");
    let list = RamList::new();
    let ram = list.allocate("pc.ram", 1 << 20).unwrap();
    root.add(0, &Region::ram("pc.ram", ram.clone()));
    root.add(0xffff_0000, &Region::alias("reset", &Region::ram("pc.ram", ram.clone()), 0xf_0000, 0x1_0000));
    // jmp -0x30; there: l: mov ax, 1; lock xadd [0x500], ax; cmp ax, 2000; jae e; mov cx, 200; loop $; shl ax, 3; mov si, ax; rdtsc; mov [si+0x1000], eax;
    // mov [si+0x1004], bl; jmp l; e: hlt; jmp e
    ram.write(0xf_fff0, &[0xeb, 0xce]).unwrap();
    let code = [
        0xb8, 1, 0, 0xf0, 0x0f, 0xc1, 0x06, 0x00, 0x05, 0x3d, 0xd0, 0x07, 0x73, 0x17, 0xb9, 0xc8, 0x00, 0xe2, 0xfe,
        0xc1, 0xe0, 0x03, 0x89, 0xc6, 0x0f, 0x31, 0x66, 0x89, 0x84, 0x00, 0x10, 0x88, 0x9c, 0x04, 0x10, 0xeb, 0xdb,
        0xf4, 0xeb, 0xfd,
    ];
    ram.write(0xf_ffc0, &code).unwrap();
    let memory = AddressSpace::memory("memory", &root);
    let ports = AddressSpace::ports("io", &Region::whole_space("io"));
    let tcg = TcgMachine::counted(Clocks::manual(), 64 << 20, options);
    tcg.attach_memory(&memory, &ports, &list).unwrap();
    let model = CpuModel::parse("qemu64", Engine::Tcg).unwrap();
    let cpus: Vec<_> = (0..2)
        .map(|n| {
            let cpuid = tcg.cpuid(&model, n, &mut |w| panic!("{w}")).unwrap();
            let mut cpu = tcg.create_vcpu(n, &cpuid, 2).unwrap();
            let mut state = CpuState::reset(n, true, 0x600);
            state.regs[3] = n.into();
            cpu.load(&state).unwrap();
            cpu
        })
        .collect();
    let set = crate::VcpuSet::start(cpus, |_, e| panic!("{e:?}")).unwrap();
    set.resume();
    let mut count = [0; 2];
    while u16::from_le_bytes(count) < 2002 {
        disturb(&set);
        std::thread::yield_now();
        ram.read(0x500, &mut count).unwrap();
    }
    drop(set);
    let mut notes = vec![0; 2000 * 8];
    ram.read(0x1000, &mut notes).unwrap();
    notes
}

#[test]
fn vcpus_that_are_counted_take_turns_in_the_same_way_each_time() {
    let options = IcountOptions { shift: Some(1), align: false, sleep: false };
    let wanted = notes_of_two(options, |_| {});
    for who in 0..2 {
        let n = wanted.chunks(8).filter(|c| c[4] == who).count();
        assert!(n > 500, "{n} notes of vCPU {who}");
    }
    assert_eq!(notes_of_two(options, crate::VcpuSet::kick_all), wanted);
    let stops = |set: &crate::VcpuSet| {
        set.pause();
        set.resume();
    };
    assert_eq!(notes_of_two(options, stops), wanted);
}

#[test]
fn a_halted_vcpu_lets_time_jump_to_the_next_timer() {
    for sleep in [false, true] {
        let clocks = Clocks::manual();
        let icount = Icount::new(IcountOptions { shift: Some(3), align: false, sleep }, clocks.clone());
        let link = icount.add_cpu();
        assert!(icount.account(0, 1000) > 1 << 59, "no timer: as far as the clock goes");
        let timer = {
            let link = link.clone();
            clocks.timer(lockstep_event::Clock::Virtual, move || link.raise(lockstep_cpu::request::INTERRUPT))
        };
        timer.arm(8_000 + 20_001);
        assert!(link.take(lockstep_cpu::request::CLOCK), "an earlier deadline is told");
        assert_eq!(icount.account(0, 0), 2501, "rounded up");
        icount.idle(0, lockstep_cpu::request::INTERRUPT);
        assert_eq!(clocks.now_ns(lockstep_event::Clock::Virtual), 28_001);
        assert_eq!((icount.count(), icount.save().bias), (1000, 20_001));
        // What was saved goes on where it was.
        let other = Icount::new(IcountOptions { shift: Some(3), align: false, sleep }, Clocks::manual());
        other.load(Some(icount.save()), 0);
        assert_eq!(other.save(), icount.save());
    }
}

#[test]
fn a_shift_that_is_found_follows_real_time_and_the_clock_never_jumps() {
    let clocks = Clocks::manual();
    let icount = Icount::new(IcountOptions { shift: None, align: false, sleep: true }, clocks.clone());
    icount.add_cpu();
    let (mut last, mut shift) = (0, 3);
    for _ in 0..200 {
        // Far more instructions than real time has room for: each is given less time.
        icount.account(0, 1 << 30);
        let now = clocks.now_ns(lockstep_event::Clock::Virtual);
        let adjusted = icount.save().adjust.unwrap().0;
        assert!(adjusted <= shift);
        assert_eq!(now - last, 1 << 30 << shift);
        (last, shift) = (now, adjusted);
    }
    assert_eq!(shift, 0);
}

#[test]
fn a_count_from_a_hostile_stream_does_no_harm() {
    const FAR: [i64; 3] = [i64::MIN, 0, i64::MAX];
    for (bias, lead) in FAR.into_iter().flat_map(|bias| FAR.map(|lead| (bias, lead))) {
        for (next, align) in [(i64::MIN, false), (i64::MAX, false), (0, bias == i64::MIN)] {
            let icount = Icount::new(IcountOptions { shift: None, align, sleep: true }, Clocks::manual());
            icount.add_cpu();
            let adjust = Some((u8::MAX, Adjust { real: next, virt: next, lead }));
            icount.load(Some(IcountState { bias, count: 0, adjust }), 0);
            icount.account(0, 1);
            assert!(icount.save().adjust.unwrap().0 <= MAX_SHIFT);
        }
    }
}
