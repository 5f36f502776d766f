//! Processors of one machine that work on the same memory.

use super::support::{CODE, DATA, STACK, long_mode_pair};
use crate::{Cpu, Engine, Exit, state::gpr};
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
