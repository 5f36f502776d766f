//! Processors of one machine that work on the same memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::support::{CODE, DATA, STACK, long_mode_pair, put64};
use crate::{Cpu, Engine, Exit, request, state::gpr};
use lockstep_memory::RamBlock;

const ENGINES: [Engine; 2] = [Engine::Interpreter, Engine::Translator];

/// Lets both run until they halt.
fn run_both(first: &mut Cpu, second: &mut Cpu) {
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(first.run(), Exit::Halted));
        assert_eq!(second.run(), Exit::Halted);
    });
}

fn number(ram: &RamBlock, at: u64) -> u32 {
    let mut bytes = [0; 4];
    ram.read(at, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn locked_operations_hold_on_a_page_that_has_code_too() {
    const TIMES: u32 = 100_000;
    for engine in ENGINES {
        let (mut first, mut second, ram) = long_mode_pair(engine);
        // mov ecx, TIMES; l: lock inc dword [rbx]; mov eax, 1; lock xadd [rbx + 4], eax;
        // m: mov eax, [rbx + 8]; lea edx, [rax + 1]; lock cmpxchg [rbx + 8], edx; jnz m; dec ecx; jnz l; hlt
        let mut code = vec![0xb9];
        code.extend(TIMES.to_le_bytes());
        code.extend([0xf0, 0xff, 0x03, 0xb8, 1, 0, 0, 0, 0xf0, 0x0f, 0xc1, 0x43, 4]);
        code.extend([
            0x8b, 0x43, 8, 0x8d, 0x50, 1, 0xf0, 0x0f, 0xb1, 0x53, 8, 0x75, 0xf3, 0xff, 0xc9, 0x75, 0xe2, 0xf4,
        ]);
        ram.write(CODE, &code).unwrap();
        for cpu in [&mut first, &mut second] {
            cpu.hot.gpr[gpr::RBX] = CODE + 0x800;
        }
        run_both(&mut first, &mut second);
        for at in [0x800, 0x804, 0x808] {
            assert_eq!(number(&ram, CODE + at), 2 * TIMES, "{at:#x}, {engine:?}");
        }
    }
}

/// Maps 2 MiB anew, by pages of 4 KiB, the first two of which lie on frames that are no neighbours. Gives the linear
/// address of the second.
fn scattered_pages(ram: &RamBlock) -> u64 {
    const TABLE: u64 = 0x6000;
    put64(ram, 0x3000 + 8 * 4, TABLE | 7);
    put64(ram, TABLE, (DATA + 0x9000) | 7);
    put64(ram, TABLE + 8, (DATA + 0x3000) | 7);
    0x80_1000
}

/// mov r8d, times; l: the body; dec r8d; jnz l; hlt
fn repeated(ram: &RamBlock, at: u64, times: u32, body: &[u8]) {
    let mut code = vec![0x41, 0xb8];
    code.extend(times.to_le_bytes());
    code.extend(body);
    code.extend([0x41, 0xff, 0xc8, 0x75, 0u8.wrapping_sub(body.len() as u8 + 5), 0xf4]);
    ram.write(at, &code).unwrap();
}

#[test]
fn locked_operations_that_cross_a_page_hold_against_those_that_do_not() {
    const TIMES: u32 = 3_000;
    for engine in ENGINES {
        for scattered in [false, true] {
            let (mut first, mut second, ram) = long_mode_pair(engine);
            let end = if scattered { scattered_pages(&ram) } else { DATA + 0x1000 };
            let upper = if scattered { DATA + 0x3000 } else { end };
            // The upper half is the number behind the page's end.
            repeated(
                &ram,
                CODE,
                TIMES,
                &[
                    0xf0, 0x48, 0x01, 0x03, // lock add [rbx], rax
                    0x48, 0x89, 0xc2, 0xf0, 0x48, 0x0f, 0xc1, 0x13, // mov rdx, rax; lock xadd [rbx], rdx
                ],
            );
            // lock inc dword [rdi], which is on one page
            repeated(&ram, CODE + 0x1000, 40 * TIMES, &[0xf0, 0xff, 0x07]);
            let g = &mut first.hot.gpr;
            (g[gpr::RBX], g[gpr::RAX]) = (end - 4, 1 << 32);
            let g = &mut second.hot.gpr;
            (g[gpr::RDI], g[gpr::RIP]) = (end, CODE + 0x1000);
            run_both(&mut first, &mut second);
            assert_eq!(number(&ram, upper), 42 * TIMES, "{engine:?}, scattered {scattered}");
        }
    }
}

#[test]
fn exchanges_that_cross_a_page_exclude_each_other() {
    const TIMES: u32 = 2_000;
    for engine in ENGINES {
        let (mut first, mut second, ram) = long_mode_pair(engine);
        // xchg [rdi], r9d; s: mov eax, [rsi]; mov edx, [rsi + 4]; lea ebx, [rax + 1]; lea ecx, [rdx + 2]; lock cmpxchg8b [rsi]; jnz s
        let body = [
            0x44, 0x87, 0x0f, 0x8b, 0x06, 0x8b, 0x56, 4, 0x8d, 0x58, 1, 0x8d, 0x4a, 2, 0xf0, 0x0f, 0xc7, 0x0e, 0x75,
            0xef,
        ];
        repeated(&ram, CODE, TIMES, &body);
        let (token, pair) = (DATA + 0x1000 - 1, DATA + 0x2000 - 6);
        ram.write(token, &0x0101_0101u32.to_le_bytes()).unwrap();
        for (cpu, token_held) in [(&mut first, 0x0202_0202), (&mut second, 0x0303_0303)] {
            let g = &mut cpu.hot.gpr;
            (g[gpr::RDI], g[gpr::RSI], g[9]) = (token, pair, token_held);
        }
        run_both(&mut first, &mut second);
        let mut tokens = [number(&ram, token).into(), first.hot.gpr[9], second.hot.gpr[9]];
        tokens.sort_unstable();
        assert_eq!(tokens, [0x0101_0101, 0x0202_0202, 0x0303_0303], "{engine:?}");
        assert_eq!([number(&ram, pair), number(&ram, pair + 4)], [2 * TIMES, 4 * TIMES], "{engine:?}");
    }
}

#[test]
fn a_processor_that_stops_others_for_a_locked_operation_gets_past_those_that_halt_or_are_stopped() {
    const TIMES: u32 = 500;
    for engine in ENGINES {
        let (mut first, mut second, ram) = long_mode_pair(engine);
        repeated(&ram, CODE, TIMES, &[0xf0, 0xff, 0x03]);
        repeated(&ram, CODE + 0x1000, 4 * TIMES, &[0xf0, 0xff, 0x03]);
        for cpu in [&mut first, &mut second] {
            cpu.hot.gpr[gpr::RBX] = DATA + 0x1000 - 3;
        }
        second.hot.gpr[gpr::RIP] = CODE + 0x1000;
        let links = [first.link().clone(), second.link().clone()];
        let running = AtomicUsize::new(2);
        std::thread::scope(|scope| {
            for cpu in [&mut first, &mut second] {
                scope.spawn(|| {
                    while cpu.run() != Exit::Halted {}
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }
            while running.load(Ordering::SeqCst) != 0 {
                links.iter().for_each(|l| l.raise(request::EXIT | request::FLUSH));
                std::thread::yield_now();
            }
        });
        assert_eq!(number(&ram, DATA + 0x1000 - 3), 5 * TIMES, "{engine:?}");
    }
}

/// The first processor changes functions, each time another one that lies `stride` further on, and says so; the second, which has
/// called the function all the time, calls it once more after a serializing instruction. Returns how often it was the old one.
fn stale_calls(engine: Engine, rounds: u32, stride: u64) -> u32 {
    const FLAG: u64 = DATA;
    // mov eax, 0; ret: with the number at an aligned place.
    let functions = 0x40_0003;
    let (mut writer, mut reader, ram) = long_mode_pair(engine);
    for n in 0..u64::from(rounds) {
        ram.write(functions + n * stride, &[0xb8, 0, 0, 0, 0, 0xc3]).unwrap();
    }
    // mov eax, 1; l: mov [rbx + 1], eax; mov [r8], eax; w: cmp [r8 + 8], eax; jne w; add rbx, rdx; inc eax; dec ecx; jnz l; hlt
    let mut code = vec![0xb8, 1, 0, 0, 0, 0x89, 0x43, 1, 0x41, 0x89, 0x00, 0x41, 0x39, 0x40, 8, 0x75, 0xfa];
    code.extend([0x48, 0x01, 0xd3, 0xff, 0xc0, 0xff, 0xc9, 0x75, 0xeb, 0xf4]);
    ram.write(CODE, &code).unwrap();
    // mov esi, 1; l: call r9; cmp [r8], esi; jne l; xor eax, eax; cpuid; call r9; cmp eax, esi; je ok; inc dword [r8 + 16];
    // ok: mov [r8 + 8], esi; add r9, r10; inc esi; dec r11d; jnz l; hlt
    let mut code = vec![0xbe, 1, 0, 0, 0, 0x41, 0xff, 0xd1, 0x41, 0x39, 0x30, 0x75, 0xf8, 0x31, 0xc0, 0x0f, 0xa2];
    code.extend([0x41, 0xff, 0xd1, 0x39, 0xf0, 0x74, 4, 0x41, 0xff, 0x40, 16, 0x41, 0x89, 0x70, 8, 0x4d, 0x01, 0xd1]);
    code.extend([0xff, 0xc6, 0x41, 0xff, 0xcb, 0x75, 0xdb, 0xf4]);
    ram.write(CODE + 0x1000, &code).unwrap();
    let g = &mut writer.hot.gpr;
    (g[gpr::RBX], g[gpr::RDX], g[gpr::RCX], g[8]) = (functions, stride, rounds.into(), FLAG);
    let g = &mut reader.hot.gpr;
    (g[gpr::RIP], g[gpr::RSP]) = (CODE + 0x1000, STACK - 0x8000);
    (g[8], g[9], g[10], g[11]) = (FLAG, functions, stride, rounds.into());
    run_both(&mut writer, &mut reader);
    assert_eq!(number(&ram, FLAG + 8), rounds);
    number(&ram, FLAG + 16)
}

#[test]
fn code_that_another_processor_changes_is_new_after_a_serializing_instruction() {
    for engine in ENGINES {
        assert_eq!(stale_calls(engine, 5_000, 0), 0, "{engine:?}");
    }
}

#[test]
fn code_that_another_processor_changes_while_it_is_first_called_is_new_after_a_serializing_instruction() {
    for engine in ENGINES {
        assert_eq!(stale_calls(engine, 1_000, 0x1000), 0, "{engine:?}");
    }
}
