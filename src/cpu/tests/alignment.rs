//! Alignment checks, as an AMD EPYC does them (measured in a program that set AC).

use super::support::{CODE, DATA, STACK, long_mode_with, put64};
use crate::{
    Engine, Exit,
    state::{cr, flag, gpr},
};

/// A page that is not there.
const NOWHERE: u64 = 1 << 30;

/// What a program meets that runs `code`, which uses RBX, at privilege level 3; 0 is its own end. Vectors lead to HLT.
fn outcome(engine: Engine, code: &[u8], rbx: u64, am: bool, ac: bool) -> u8 {
    let (mut cpu, ram) = long_mode_with(engine);
    cpu.translator.hot = 0;
    let mut r = cpu.registers();
    r.cr0 |= if am { cr::CR0_AM } else { 0 };
    r.segs[1] = crate::state::Segment { selector: 0x2b, base: 0, limit: 0xffff_ffff, flags: 0xa0_fb00 };
    r.segs[2] = crate::state::Segment { selector: 0x23, base: 0, limit: 0xffff_ffff, flags: 0xc0_f300 };
    r.rflags |= if ac { flag::AC } else { 0 };
    r.gpr[gpr::RBX] = rbx;
    r.gpr[gpr::RDI] = rbx;
    r.gpr[gpr::RSP] = STACK - 0x4000;
    cpu.set_registers(&r);
    // INT 0x80 ends it.
    put64(&ram, 0x9800, 0xa800 | 8 << 16 | 0xee00 << 32);
    ram.write(CODE, &[code, &[0xcd, 0x80]].concat()).unwrap();
    assert_eq!(cpu.run(), Exit::Halted);
    let vector = (cpu.hot.gpr[gpr::RIP] - 0xa000) / 16;
    if vector == 17 {
        let (mut code, mut rip) = ([0; 8], [0; 8]);
        ram.read(cpu.hot.gpr[gpr::RSP], &mut code).unwrap();
        ram.read(cpu.hot.gpr[gpr::RSP] + 8, &mut rip).unwrap();
        assert_eq!((u64::from_le_bytes(code), u64::from_le_bytes(rip)), (0, CODE));
    }
    if vector == 0x80 { 0 } else { vector as u8 }
}

const AC: u8 = 17;
const GP: u8 = 13;
const PF: u8 = 14;

#[test]
fn misaligned_accesses_of_a_program_that_asks_for_it_are_refused() {
    let movups = &[0x0f, 0x10, 0x03][..];
    let vmovups = &[0xc5, 0xfc, 0x10, 0x03][..];
    let fnstenv = &[0xd9, 0x33][..];
    for (name, code, at, wanted) in [
        ("mov ax, [rbx]", &[0x66, 0x8b, 0x03][..], DATA + 1, AC),
        ("mov eax, [rbx]", &[0x8b, 0x03], DATA + 2, AC),
        ("mov rax, [rbx]", &[0x48, 0x8b, 0x03], DATA + 4, AC),
        ("mov rax, [rbx]", &[0x48, 0x8b, 0x03], DATA + 8, 0),
        ("mov [rbx], al", &[0x88, 0x03], DATA + 1, 0),
        ("mov [rbx], rax", &[0x48, 0x89, 0x03], DATA + 4, AC),
        ("add [rbx], eax", &[0x01, 0x03], DATA + 2, AC),
        ("lock add [rbx], eax", &[0xf0, 0x01, 0x03], DATA + 2, AC),
        ("lock add [rbx], eax", &[0xf0, 0x01, 0x03], DATA + 4, 0),
        ("xadd [rbx], eax", &[0x0f, 0xc1, 0x03], DATA + 2, AC),
        ("movups xmm0, [rbx]", movups, DATA + 4, AC),
        ("movups xmm0, [rbx]", movups, DATA + 8, AC),
        ("movups xmm0, [rbx]", movups, DATA + 16, 0),
        ("vmovups ymm0, [rbx]", vmovups, DATA + 8, AC),
        ("vmovups ymm0, [rbx]", vmovups, DATA + 16, 0),
        ("movaps xmm0, [rbx]", &[0x0f, 0x28, 0x03], DATA + 8, GP),
        ("movaps xmm0, [rbx]", &[0x0f, 0x28, 0x03], DATA + 2, GP),
        ("movq xmm0, [rbx]", &[0xf3, 0x0f, 0x7e, 0x03], DATA + 4, AC),
        ("movss xmm0, [rbx]", &[0xf3, 0x0f, 0x10, 0x03], DATA + 2, AC),
        ("fld tbyte [rbx]", &[0xdb, 0x2b], DATA + 4, AC),
        ("fld tbyte [rbx]", &[0xdb, 0x2b], DATA + 8, 0),
        ("fstp tbyte [rbx]", &[0xdb, 0x3b], DATA + 4, AC),
        ("fstp tbyte [rbx]", &[0xdb, 0x3b], DATA + 8, 0),
        ("fnstenv [rbx]", fnstenv, DATA + 4, 0),
        ("fnstenv [rbx]", fnstenv, DATA + 2, AC),
        ("fnstcw [rbx]", &[0xd9, 0x3b], DATA + 1, AC),
        ("fxsave [rbx]", &[0x0f, 0xae, 0x03], DATA + 8, GP),
        ("fxsave [rbx]", &[0x0f, 0xae, 0x03], DATA + 2, AC),
        ("mov eax, [rbx]", &[0x8b, 0x03], NOWHERE + 1, AC),
        ("mov eax, [rbx]", &[0x8b, 0x03], NOWHERE + 4, PF),
        ("add [rbx], eax", &[0x01, 0x03], NOWHERE + 1, AC),
        ("mov eax, [rbx]", &[0x8b, 0x03], 0x8000_0000_0000_0001, GP),
        ("prefetcht0 [rbx]", &[0x0f, 0x18, 0x0b], DATA + 1, 0),
        ("stosd", &[0xab], DATA + 2, AC),
        ("rep stosd", &[0x31, 0xc9, 0xff, 0xc1, 0xf3, 0xab], DATA + 4, 0),
        ("mov rsp, rbx; push rax", &[0x48, 0x87, 0xe3, 0x50], DATA + 8, 0),
        ("cmpxchg8b [rbx]", &[0x0f, 0xc7, 0x0b], DATA + 4, AC),
    ] {
        for engine in [Engine::Interpreter, Engine::Translator, Engine::Check] {
            assert_eq!(outcome(engine, code, at, true, true), wanted, "{name} at {at:#x}, {engine:?}");
            // Without the mask in CR0, or the flag, only the other checks are left.
            let others = if wanted == AC && at & !0xfff == NOWHERE {
                PF
            } else if name.starts_with("fxsave") {
                GP
            } else if wanted == AC {
                0
            } else {
                wanted
            };
            assert_eq!(outcome(engine, code, at, false, true), others, "{name} at {at:#x} without AM");
            assert_eq!(outcome(engine, code, at, true, false), others, "{name} at {at:#x} without AC");
        }
    }
}

#[test]
fn popf_and_sysret_begin_and_end_the_check() {
    for engine in [Engine::Interpreter, Engine::Translator] {
        // pushfq; or dword [rsp], 0x40000; popfq; mov eax, [rbx]
        let begin = [0x9c, 0x81, 0x0c, 0x24, 0, 0, 4, 0, 0x9d];
        let (mut cpu, ram) = long_mode_with(engine);
        cpu.translator.hot = 0;
        let mut r = cpu.registers();
        r.cr0 |= cr::CR0_AM;
        r.msrs.star = 0x1b << 48 | 8 << 32;
        // The kernel: r11 = flags with or without AC, rcx = where to go; sysret
        r.gpr[gpr::RCX] = CODE + 0x1000;
        r.gpr[gpr::R11] = flag::AC | 2;
        r.gpr[gpr::RBX] = DATA + 1;
        cpu.set_registers(&r);
        ram.write(CODE, &[0x48, 0x0f, 0x07]).unwrap();
        ram.write(CODE + 0x1000, &[0x8b, 0x03]).unwrap();
        assert_eq!(cpu.run(), Exit::Halted);
        assert_eq!(cpu.hot.gpr[gpr::RIP], 0xa000 + 16 * 17 + 1, "{engine:?}");
        // The same program without AC goes on until it sets the flag itself.
        cpu.halted = false;
        r.gpr[gpr::R11] = 2;
        r.gpr[gpr::RSP] = STACK - 0x4000;
        cpu.set_registers(&r);
        let program = [&[0x8b, 0x03][..], &begin, &[0x8b, 0x03]].concat();
        ram.write(CODE + 0x1000, &program).unwrap();
        assert_eq!(cpu.run(), Exit::Halted);
        assert_eq!(cpu.hot.gpr[gpr::RIP], 0xa000 + 16 * 17 + 1);
        let mut rip = [0; 8];
        ram.read(cpu.hot.gpr[gpr::RSP] + 8, &mut rip).unwrap();
        assert_eq!(u64::from_le_bytes(rip), CODE + 0x1000 + program.len() as u64 - 2, "{engine:?}");
    }
}
