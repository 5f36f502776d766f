//! Loops that are made anew with cells for their operands' pages, and what must reach them all the same.

use super::support::{CODE, DATA, STACK, long_mode_with, put64};
use crate::{Cpu, Engine, Exit, state::gpr};
use lockstep_memory::RamBlock;

/// A processor with one page at 1 GiB, whose entry at 0x5000 leads to `DATA`.
fn with_a_page() -> (Box<Cpu>, RamBlock) {
    let (mut cpu, ram) = long_mode_with(Engine::Translator);
    put64(&ram, 0x2008, 0x4000 | 7);
    put64(&ram, 0x4000, 0x5000 | 7);
    put64(&ram, 0x5000, DATA | 0x67);
    put64(&ram, DATA, 1);
    put64(&ram, DATA + 0x1000, 1000);
    cpu.hot.gpr[gpr::RBX] = 1 << 30;
    cpu.hot.gpr[gpr::RSI] = 0x5000;
    (cpu, ram)
}

fn run_loop(cpu: &mut Cpu, ram: &RamBlock, body: &[u8], passes: u32) {
    // mov ecx, passes; l: body; dec ecx; jnz l; hlt
    let mut code = vec![0xb9];
    code.extend(passes.to_le_bytes());
    code.extend(body);
    code.extend([0xff, 0xc9, 0x75, (-(body.len() as i8) - 4) as u8, 0xf4]);
    ram.write(CODE, &code).unwrap();
    cpu.hot.gpr[gpr::RDX] = 0;
    assert_eq!(cpu.run(), Exit::Halted);
}

#[test]
fn a_loop_sees_a_page_that_is_mapped_elsewhere() {
    // add rdx, [rbx]; xor qword [rsi], 0x1000; then invlpg [rbx], or mov rax, cr3; mov cr3, rax
    for flush in [&[0x0f, 0x01, 0x3b][..], &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]] {
        let (mut cpu, ram) = with_a_page();
        let mut body = vec![0x48, 0x03, 0x13, 0x48, 0x81, 0x36, 0, 0x10, 0, 0];
        body.extend(flush);
        run_loop(&mut cpu, &ram, &body, 1000);
        assert_eq!(cpu.hot.gpr[gpr::RDX], 500 + 500_000);
    }
}

#[test]
fn a_loop_over_pages_reads_each() {
    let (mut cpu, ram) = with_a_page();
    // Every second address is in the page before; the last one goes across the two.
    put64(&ram, 0x5008, (DATA + 0x1000) | 0x67);
    put64(&ram, DATA + 0xff8, 7);
    // add rdx, [rbx]; xor rbx, 0x1000; add rdx, [rbx + rdi]; xor rdi, 0xffc
    cpu.hot.gpr[gpr::RDI] = 0xffc;
    let body =
        [0x48, 0x03, 0x13, 0x48, 0x81, 0xf3, 0, 0x10, 0, 0, 0x48, 0x03, 0x14, 0x3b, 0x48, 0x81, 0xf7, 0xfc, 0xf, 0, 0];
    ram.write(DATA + 0x2000, &[0; 8]).unwrap();
    put64(&ram, 0x5010, (DATA + 0x2000) | 0x67);
    run_loop(&mut cpu, &ram, &body, 5000);
    let (mut sum, mut rbx, mut rdi) = (0u64, 0u64, 0xffcu64);
    let mut bytes = [0; 8];
    for _ in 0..5000 {
        ram.read(DATA + rbx, &mut bytes).unwrap();
        sum = sum.wrapping_add(u64::from_le_bytes(bytes));
        rbx ^= 0x1000;
        ram.read(DATA + rbx + rdi, &mut bytes).unwrap();
        sum = sum.wrapping_add(u64::from_le_bytes(bytes));
        rdi ^= 0xffc;
    }
    assert_eq!(cpu.hot.gpr[gpr::RDX], sum);
}

#[test]
fn a_loop_may_write_the_code_that_it_calls() {
    let (mut cpu, ram) = long_mode_with(Engine::Translator);
    let routine = DATA + 0x800;
    ram.write(routine, &[0xb8, 0, 0, 0, 0, 0xc3]).unwrap();
    cpu.hot.gpr[gpr::RDI] = routine + 1;
    cpu.hot.gpr[8] = routine;
    // mov [rdi], ecx; test cl, 7; jnz +5; call r8; add rdx, rax
    let body = [0x89, 0x0f, 0xf6, 0xc1, 7, 0x75, 6, 0x41, 0xff, 0xd0, 0x48, 0x01, 0xc2];
    run_loop(&mut cpu, &ram, &body, 800);
    assert_eq!(cpu.hot.gpr[gpr::RDX], (1..=100).map(|n| n * 8).sum::<u64>());
}

#[test]
fn a_page_fault_in_a_loop_has_the_state_of_its_instruction() {
    let (mut cpu, ram) = with_a_page();
    // add rdx, 3; mov rax, [rbx]; add rbx, 8: until the page ends
    let body = [0x48, 0x83, 0xc2, 3, 0x48, 0x8b, 0x03, 0x48, 0x83, 0xc3, 8];
    run_loop(&mut cpu, &ram, &body, 5000);
    // The handler is a HLT: 512 whole passes, and the addition of one more.
    assert_eq!(cpu.hot.gpr[gpr::RDX], 513 * 3);
    assert_eq!((cpu.cr2, cpu.hot.gpr[gpr::RBX]), ((1 << 30) + 0x1000, (1 << 30) + 0x1000));
    let mut frame = [0; 8];
    ram.read(STACK - 40, &mut frame).unwrap();
    assert_eq!(u64::from_le_bytes(frame), CODE + 5 + 4);
    // 1539 has an even number of bits set in its low byte, and no other flag.
    ram.read(STACK - 24, &mut frame).unwrap();
    assert_eq!(u64::from_le_bytes(frame) & 0x8d5, 4);
}

/// As [`with_a_page`], with SMAP. The tables make all pages the user's: code and data must be the supervisor's, but for that page.
fn with_smap() -> (Box<Cpu>, RamBlock) {
    let (mut cpu, ram) = with_a_page();
    cpu.cr4 |= 1 << 21;
    put64(&ram, 0x3000, 0x83);
    put64(&ram, 0x3008, 0x20_0083);
    cpu.reload_map();
    (cpu, ram)
}

#[test]
fn smap_is_suspended_and_restored_in_machine_code() {
    let (mut cpu, ram) = with_smap();
    // stac; add rdx, [rbx]; clac
    run_loop(&mut cpu, &ram, &[0x0f, 0x01, 0xcb, 0x48, 0x03, 0x13, 0x0f, 0x01, 0xca], 300);
    assert_eq!((cpu.hot.gpr[gpr::RDX], cpu.rest & crate::state::flag::AC, cpu.cr2), (300, 0, 0));
    assert!(cpu.translator.slow_count < 200, "{}", cpu.translator.slow_count);
    // Without STAC the access is refused; and so it is at once after CLAC.
    for code in [&[0x48, 0x03, 0x13][..], &[0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca, 0x48, 0x03, 0x13]] {
        let (mut cpu, ram) = with_smap();
        run_loop(&mut cpu, &ram, code, 300);
        assert_eq!((cpu.hot.gpr[gpr::RDX], cpu.cr2), (0, 1 << 30));
    }
}

#[test]
fn a_loop_downwards_crosses_into_the_page_before() {
    // The two pages lie elsewhere in physical memory, the second one first.
    let (mut cpu, ram) = with_a_page();
    put64(&ram, 0x5008, (DATA - 0x3000) | 0x67);
    let byte = |at: u64| (at * at / 5 % 251) as u8;
    let page = |from: u64| (from..from + 0x1000).map(byte).collect::<Vec<_>>();
    ram.write(DATA, &page(0)).unwrap();
    ram.write(DATA - 0x3000, &page(0x1000)).unwrap();
    let word = |at: u64| u64::from_le_bytes(std::array::from_fn(|i| byte(at + i as u64)));
    // add rdx, [rbx]; sub rbx, 8; and, with an index, add rdx, [rsi + rdi]; sub rdi, 8
    let simple = [0x48, 0x03, 0x13, 0x48, 0x83, 0xeb, 8];
    let indexed = [0x48, 0x03, 0x14, 0x3e, 0x48, 0x83, 0xef, 8];
    for body in [&simple[..], &indexed] {
        for first in [0x1ff0, 0x1ff3, 0x1ff7] {
            cpu.hot.gpr[gpr::RBX] = (1 << 30) + first;
            (cpu.hot.gpr[gpr::RSI], cpu.hot.gpr[gpr::RDI]) = (1 << 30, first);
            cpu.hot.gpr[gpr::RIP] = CODE;
            cpu.halted = false;
            run_loop(&mut cpu, &ram, body, 900);
            let sum = (0..900).fold(0u64, |sum, pass| sum.wrapping_add(word(first - 8 * pass)));
            assert_eq!(cpu.hot.gpr[gpr::RDX], sum, "from {first:#x}");
        }
    }
}
