//! System calls between a program and its system, in machine code and interpreted.

use super::support::{CODE, DATA, long_mode_with};
use crate::{Cpu, Engine, Exit, Registers, state::gpr};

const HANDLER: u64 = CODE + 0x1000;
const PROGRAM: u64 = CODE + 0x2000;

/// A system whose handler is `handler`, and a program that makes `calls` calls with `flags` and then does what it may not.
pub fn with_calls(engine: Engine, handler: &[u8], calls: u32, flags: u32, mask: u64) -> Box<Cpu> {
    let (mut cpu, ram) = long_mode_with(engine);
    let mut r = cpu.registers();
    r.msrs.star = 8 << 32 | 24 << 48;
    (r.msrs.lstar, r.msrs.fmask) = (HANDLER, mask);
    cpu.set_registers(&r);
    // mov ecx, PROGRAM; mov r11d, flags; sysretq
    let mut start = vec![0xb9];
    start.extend((PROGRAM as u32).to_le_bytes());
    start.extend([0x41, 0xbb]);
    start.extend(flags.to_le_bytes());
    start.extend([0x48, 0x0f, 0x07]);
    ram.write(CODE, &start).unwrap();
    ram.write(HANDLER, handler).unwrap();
    // mov ebx, calls; l: add rdx, rcx; syscall; dec ebx; jnz l; hlt
    let mut program = vec![0xbb];
    program.extend(calls.to_le_bytes());
    program.extend([0x48, 0x01, 0xca, 0x0f, 0x05, 0xff, 0xcb, 0x75, 0xf7, 0xf4]);
    ram.write(PROGRAM, &program).unwrap();
    cpu.hot.gpr[gpr::RSI] = DATA;
    cpu
}

fn state(cpu: &mut Cpu) -> String {
    let r = Registers { tsc: 0, ..cpu.registers() };
    format!("{r:x?} {}", cpu.mmu)
}

#[test]
fn system_calls_do_in_machine_code_what_they_do_interpreted() {
    // add rsi, r11; pushfq; pop rax; add rdi, rax; cmp rdi, rsi; cld; std; sysretq
    let usual: &[u8] =
        &[0x4c, 0x01, 0xde, 0x9c, 0x58, 0x48, 0x01, 0xc7, 0x48, 0x39, 0xf7, 0xfc, 0xfd, 0x48, 0x0f, 0x07];
    // The same, and R11 is changed: or r11, 0x400; sysretq
    let other: &[u8] = &[0x9c, 0x58, 0x48, 0x01, 0xc7, 0x49, 0x81, 0xcb, 0, 4, 0, 0, 0x48, 0x0f, 0x07];
    for handler in [usual, other] {
        for (flags, mask) in [(0x202, 0x25_7fd5), (0x8d7, 0x4_0700), (0x4_0ad7, 0x4_0000), (0x20_3046, 0x700), (2, 0)] {
            let [mut a, mut b] = [Engine::Interpreter, Engine::Translator].map(|engine| {
                let mut cpu = with_calls(engine, handler, 300, flags, mask);
                assert_eq!(cpu.run(), Exit::Halted, "flags {flags:#x} mask {mask:#x}");
                cpu
            });
            assert_eq!(state(&mut a), state(&mut b), "flags {flags:#x} mask {mask:#x}");
            assert_ne!(a.hot.gpr[gpr::RDI], 0);
            // Without IF an interrupt may wait for it: SYSRET looks.
            if mask & 0x4_0000 != 0 && flags & 0x200 != 0 {
                assert!(b.translator.slow_count < 100, "{} the slow way", b.translator.slow_count);
            }
        }
    }
}

#[test]
fn what_system_calls_refuse_they_refuse_in_machine_code() {
    // Behind 200 usual returns: to an address that is none (mov rcx, 1 << 47 from RSI's bits); with TF; calls disabled.
    // inc rsi; cmp rsi, DATA + 200; jb +8; mov rcx, rdi (10 bytes in all); sysretq
    let mut handler = vec![0x48, 0xff, 0xc6, 0x48, 0x81, 0xfe];
    handler.extend((DATA as u32 + 200).to_le_bytes());
    handler.extend([0x72, 3, 0x48, 0x89, 0xf9, 0x48, 0x0f, 0x07]);
    for bad in [1 << 47, u64::MAX, 0xffff_8000_0000_0000] {
        let [mut a, mut b] = [Engine::Interpreter, Engine::Translator].map(|engine| {
            let mut cpu = with_calls(engine, &handler, 300, 0x202, 0x4_0700);
            cpu.hot.gpr[gpr::RDI] = bad;
            // What is there faults, whatever it is.
            assert_eq!(cpu.run(), Exit::Halted);
            cpu
        });
        assert_eq!(state(&mut a), state(&mut b), "to {bad:#x}");
    }
}

#[test]
fn a_call_from_32_bit_code_goes_to_the_handler_of_such_calls() {
    const COMPATIBLE: u64 = HANDLER + 0x100;
    let [mut a, mut b] = [Engine::Interpreter, Engine::Translator].map(|engine| {
        let (mut cpu, ram) = long_mode_with(engine);
        let mut r = cpu.registers();
        r.msrs.star = 8 << 32 | 24 << 48;
        (r.msrs.lstar, r.msrs.cstar, r.msrs.fmask) = (HANDLER, COMPATIBLE, 0x4_0700);
        cpu.set_registers(&r);
        // mov ecx, PROGRAM; mov r11d, 0x202; sysretd
        let mut start = vec![0xb9];
        start.extend((PROGRAM as u32).to_le_bytes());
        start.extend([0x41, 0xbb, 2, 2, 0, 0, 0x0f, 0x07]);
        ram.write(CODE, &start).unwrap();
        // The one of 64-bit code: hlt. The other one: inc rsi; sysretd.
        ram.write(HANDLER, &[0xf4]).unwrap();
        ram.write(COMPATIBLE, &[0x48, 0xff, 0xc6, 0x0f, 0x07]).unwrap();
        // mov ebx, 300; l: add edx, ecx; syscall; dec ebx; jnz l; hlt
        ram.write(PROGRAM, &[0xbb, 44, 1, 0, 0, 0x01, 0xca, 0x0f, 0x05, 0xff, 0xcb, 0x75, 0xf8, 0xf4]).unwrap();
        assert_eq!(cpu.run(), Exit::Halted);
        assert_eq!(cpu.hot.gpr[gpr::RSI], 300, "{engine:?}");
        cpu
    });
    assert_eq!(state(&mut a), state(&mut b));
}

#[test]
#[ignore = "a measurement"]
fn speed_of_system_calls() {
    let start = std::time::Instant::now();
    let mut cpu = with_calls(Engine::Translator, &[0x48, 0x0f, 0x07], 10_000_000, 0x202, 0x25_7fd5);
    assert_eq!(cpu.run(), Exit::Halted);
    println!("{:.1} ns a call", start.elapsed().as_secs_f64() * 100.0);
}
