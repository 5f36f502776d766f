//! 32-bit code as machine code: what makes it flat, and what is different from 64-bit code.

use lockstep_memory::RamBlock;

use super::support::{CODE, DATA, STACK, long_mode_with, make_flat, put64};
use crate::{Cpu, Engine, Exit, state::gpr};

fn flat(engine: Engine) -> (Box<Cpu>, RamBlock) {
    let (mut cpu, ram) = long_mode_with(engine);
    make_flat(&mut cpu);
    cpu.translator.hot = 0;
    (cpu, ram)
}

/// Sums, routines, the stack and memory, assembled from
/// `mov ecx, 200; l: push ecx; mov eax, ecx; call f; add [ebx], eax; pop edx; inc esi; dec edi; lea ebp, [ebp+edx*4-3]; push dword [ebx];
/// pop dword [ebx+4]; pushfd; pop [ebx+8]; loop...`
const LOOP: &[u8] = &[
    0xb9, 0xc8, 0, 0, 0,    // mov ecx, 200
    0x51, // push ecx
    0x89, 0xc8, // mov eax, ecx
    0xe8, 0x1b, 0, 0, 0, // call f
    0x01, 0x03, // add [ebx], eax
    0x5a, // pop edx
    0x46, // inc esi
    0x4f, // dec edi
    0x8d, 0x6c, 0x95, 0xfd, // lea ebp, [ebp+edx*4-3]
    0xff, 0x33, // push dword [ebx]
    0x5a, // pop edx
    0x89, 0x53, 0x04, // mov [ebx+4], edx
    0x9c, // pushfd
    0x5a, // pop edx
    0x31, 0x53, 0x08, // xor [ebx+8], edx
    0x6a, 0xfe, // push -2
    0x5a, // pop edx
    0x49, // dec ecx
    0x75, 0xde, // jnz l
    0xf4, // hlt
    0x55, // f: push ebp
    0x89, 0xe5, // mov ebp, esp
    0x6b, 0xc0, 0x07, // imul eax, eax, 7
    0xc9, // leave
    0xc2, 0, 0, // ret 0
];

#[test]
fn a_loop_of_32_bit_code_is_machine_code_and_does_what_the_interpreter_does() {
    let mut results = vec![];
    for engine in [Engine::Interpreter, Engine::Translator, Engine::Check] {
        for quick in [false, true] {
            let (mut cpu, ram) = flat(engine);
            cpu.translator.quick |= quick;
            ram.write(CODE, LOOP).unwrap();
            cpu.hot.gpr[gpr::RBX] = DATA;
            assert_eq!(cpu.run(), Exit::Halted);
            assert_eq!(cpu.hot.gpr[gpr::RIP], CODE + 40, "{engine:?}");
            let mut bytes = [0; 16];
            ram.read(DATA, &mut bytes).unwrap();
            results.push((cpu.hot.gpr, bytes, cpu.rflags()));
            if engine == Engine::Translator {
                assert!(cpu.translator.slow_count < 30, "{}", cpu.translator.slow_count);
            }
        }
    }
    assert!(results.iter().all(|r| *r == results[0]), "{results:x?}");
    let sum = u32::from_le_bytes(results[0].1[..4].try_into().unwrap());
    assert_eq!(sum, (1..=200).sum::<u32>() * 7);
    assert_eq!(results[0].0[gpr::RSP], STACK);
}

#[test]
fn addresses_of_32_bits_wrap_and_upper_halves_do_not_count() {
    for engine in [Engine::Interpreter, Engine::Translator] {
        let (mut cpu, ram) = flat(engine);
        // mov eax, [ebx + ecx*4 + 0x10]; mov edx, [0x200008]; hlt
        ram.write(CODE, &[0x8b, 0x44, 0x8b, 0x10, 0x8b, 0x15, 8, 0, 0x20, 0, 0xf4]).unwrap();
        put64(&ram, DATA, 77);
        put64(&ram, DATA + 8, 88);
        cpu.hot.gpr[gpr::RBX] = 0xabcd_0000_ffff_fff0;
        cpu.hot.gpr[gpr::RCX] = 0x1234_0000_0000_0000 | DATA / 4;
        assert_eq!(cpu.run(), Exit::Halted);
        assert_eq!((cpu.hot.gpr[gpr::RAX], cpu.hot.gpr[gpr::RDX]), (77, 88), "{engine:?}");
    }
}

#[test]
fn an_access_over_the_end_of_the_address_space_is_refused() {
    for engine in [Engine::Interpreter, Engine::Translator] {
        let (mut cpu, ram) = flat(engine);
        // The last page is there: 3 GiB to 4 GiB as the first one.
        put64(&ram, 0x2018, 0x3000 | 7);
        ram.write(CODE, &[0x8b, 0x03, 0x8b, 0x43, 1, 0xf4]).unwrap();
        put64(&ram, 0x3ff8, 0x80 | 7);
        cpu.reload_map();
        cpu.hot.gpr[gpr::RBX] = 0xffff_fffc;
        assert_eq!(cpu.run(), Exit::Halted);
        // #GP of the second one.
        assert_eq!(cpu.hot.gpr[gpr::RIP], 0xa000 + 16 * 13 + 1, "{engine:?}");
        let mut rip = [0; 8];
        ram.read(cpu.hot.gpr[gpr::RSP] + 8, &mut rip).unwrap();
        assert_eq!(u64::from_le_bytes(rip), CODE + 2);
    }
}

#[test]
fn code_is_not_flat_any_more_once_a_segment_has_a_base() {
    for engine in [Engine::Interpreter, Engine::Translator] {
        let (mut cpu, ram) = flat(engine);
        // A data segment at 0x1000, of 4 GiB.
        put64(&ram, super::support::GDT + 32, 0x00cf_9300_1000_ffff);
        put64(&ram, DATA, 1);
        put64(&ram, DATA + 0x1000, 1000);
        // mov ecx, 100; l: add eax, [ebx]; mov ds, edi; add eax, [ebx]; mov ds, esi; dec ecx; jnz l; hlt
        let code = [0xb9, 100, 0, 0, 0, 0x03, 0x03, 0x8e, 0xdf, 0x03, 0x03, 0x8e, 0xde, 0x49, 0x75, 0xf5, 0xf4];
        ram.write(CODE, &code).unwrap();
        (cpu.hot.gpr[gpr::RBX], cpu.hot.gpr[gpr::RDI], cpu.hot.gpr[gpr::RSI]) = (DATA, 32, 16);
        assert_eq!(cpu.run(), Exit::Halted);
        assert_eq!(cpu.hot.gpr[gpr::RAX], 100 * 1001, "{engine:?}");
    }
}
