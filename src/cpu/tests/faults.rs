//! Exceptions and their order, paging, self-modifying code.

use super::support::{CODE, DATA, STACK, long_mode, put64};
use crate::{Cpu, Exit, state::gpr};

/// Runs code until it halts; gives the vector if it halted in a handler.
fn run_to_halt(cpu: &mut Cpu) -> Option<u64> {
    assert_eq!(cpu.run(), Exit::Halted);
    let rip = cpu.hot.gpr[gpr::RIP];
    (0xa000..0xb000).contains(&rip).then(|| (rip - 0xa001) / 16)
}

#[test]
fn a_program_runs_to_its_end() {
    let (mut cpu, ram) = long_mode();
    // mov ecx, 1000; xor eax, eax; l: add rax, rcx; dec ecx; jnz l; hlt
    ram.write(CODE, &[0xb9, 0xe8, 3, 0, 0, 0x31, 0xc0, 0x48, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf9, 0xf4]).unwrap();
    assert_eq!(run_to_halt(&mut cpu), None);
    assert_eq!(cpu.hot.gpr[gpr::RAX], 500_500);
}

#[test]
fn a_write_to_a_page_that_is_not_there_says_so() {
    let (mut cpu, ram) = long_mode();
    // mov [rbx], eax
    ram.write(CODE, &[0x90, 0x89, 0x03, 0xf4]).unwrap();
    cpu.hot.gpr[gpr::RBX] = 1 << 30;
    assert_eq!(run_to_halt(&mut cpu), Some(14));
    assert_eq!(cpu.cr2, 1 << 30);
    let mut frame = [0; 48];
    ram.read(STACK - 48, &mut frame).unwrap();
    let words: Vec<u64> = frame.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(words[..3], [2, CODE + 1, 8], "error code, instruction, segment");
    assert_eq!(words[4], STACK);
}

#[test]
fn an_address_that_is_not_canonical_is_a_general_protection_fault() {
    let (mut cpu, ram) = long_mode();
    ram.write(CODE, &[0x89, 0x03, 0xf4]).unwrap();
    cpu.hot.gpr[gpr::RBX] = 1 << 48;
    assert_eq!(run_to_halt(&mut cpu), Some(13));
}

#[test]
fn code_that_changes_the_next_instruction_runs_the_new_one() {
    let (mut cpu, ram) = long_mode();
    // mov byte [rip+1], 0x41 (the second byte of `mov al, 1` becomes 0x41...); mov al, 1; hlt
    ram.write(CODE, &[0xc6, 0x05, 1, 0, 0, 0, 0x41, 0xb0, 1, 0xf4]).unwrap();
    assert_eq!(run_to_halt(&mut cpu), None);
    assert_eq!(cpu.hot.gpr[gpr::RAX] & 0xff, 0x41);
}

#[test]
fn code_that_was_run_and_then_overwritten_is_decoded_anew() {
    let (mut cpu, ram) = long_mode();
    // call DATA-relative routine twice, changing it in between: routine at CODE+0x100: mov al, 1; ret
    let mut code = vec![];
    code.extend([0xe8, 0xfb, 0, 0, 0]); // call +0xfb -> CODE+0x100
    code.extend([0x88, 0xc3]); // mov bl, al
    code.extend([0xc6, 0x05, 0xf3, 0, 0, 0, 7]); // mov byte [CODE+0x101], 7
    code.extend([0xe8, 0xed, 0, 0, 0]); // call CODE+0x100
    code.push(0xf4);
    ram.write(CODE, &code).unwrap();
    ram.write(CODE + 0x100, &[0xb0, 1, 0xc3]).unwrap();
    assert_eq!(run_to_halt(&mut cpu), None);
    assert_eq!((cpu.hot.gpr[gpr::RBX] & 0xff, cpu.hot.gpr[gpr::RAX] & 0xff), (1, 7));
}

#[test]
fn a_division_by_zero_is_reported_at_the_division() {
    let (mut cpu, ram) = long_mode();
    ram.write(CODE, &[0x31, 0xc9, 0xf7, 0xf1, 0xf4]).unwrap();
    assert_eq!(run_to_halt(&mut cpu), Some(0));
    let mut rip = [0; 8];
    ram.read(STACK - 40, &mut rip).unwrap();
    assert_eq!(u64::from_le_bytes(rip), CODE + 2);
}

#[test]
fn a_fault_while_delivering_a_fault_is_a_double_fault_and_then_a_reset() {
    let (mut cpu, ram) = long_mode();
    ram.write(CODE, &[0x0f, 0x0b]).unwrap();
    cpu.idt.limit = 0;
    assert_eq!(cpu.run(), Exit::TripleFault);
}

#[test]
fn sse_arithmetic_keeps_flags_and_results() {
    let (mut cpu, ram) = long_mode();
    // movsd xmm0,[rbx]; divsd xmm0,[rbx+8]; movsd [rbx+16],xmm0; hlt
    ram.write(CODE, &[0xf2, 0x0f, 0x10, 0x03, 0xf2, 0x0f, 0x5e, 0x43, 8, 0xf2, 0x0f, 0x11, 0x43, 16, 0xf4]).unwrap();
    put64(&ram, DATA, 1f64.to_bits());
    put64(&ram, DATA + 8, 3f64.to_bits());
    cpu.hot.gpr[gpr::RBX] = DATA;
    assert_eq!(run_to_halt(&mut cpu), None);
    let mut out = [0; 8];
    ram.read(DATA + 16, &mut out).unwrap();
    assert_eq!(f64::from_le_bytes(out), 1.0 / 3.0);
    assert_eq!(cpu.mxcsr & 0x3f, 0x20, "inexact");
}

#[test]
fn x87_loads_computes_and_stores() {
    let (mut cpu, ram) = long_mode();
    // fld qword [rbx]; fsqrt; fstp qword [rbx+8]; hlt
    ram.write(CODE, &[0xdd, 0x03, 0xd9, 0xfa, 0xdd, 0x5b, 8, 0xf4]).unwrap();
    put64(&ram, DATA, 2f64.to_bits());
    cpu.hot.gpr[gpr::RBX] = DATA;
    assert_eq!(run_to_halt(&mut cpu), None);
    let mut out = [0; 8];
    ram.read(DATA + 8, &mut out).unwrap();
    assert_eq!(f64::from_le_bytes(out), 2f64.sqrt());
}

#[test]
fn a_repeated_move_copies_across_pages() {
    let (mut cpu, ram) = long_mode();
    ram.write(CODE, &[0xf3, 0xa4, 0xf4]).unwrap();
    let bytes: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
    ram.write(DATA + 3, &bytes).unwrap();
    (cpu.hot.gpr[gpr::RSI], cpu.hot.gpr[gpr::RDI], cpu.hot.gpr[gpr::RCX]) = (DATA + 3, DATA + 0x8_0001, 10_000);
    assert_eq!(run_to_halt(&mut cpu), None);
    let mut copy = vec![0; 10_000];
    ram.read(DATA + 0x8_0001, &mut copy).unwrap();
    assert_eq!(copy, bytes);
    assert_eq!(cpu.hot.gpr[gpr::RCX], 0);
}

#[test]
fn a_block_that_ends_behind_a_segmented_operand_goes_on_at_a_whole_address() {
    let (mut cpu, ram) = long_mode();
    // The first 2 MiB are at 0xffff_ffff_8000_0000 too: 64 times `mov eax, gs:[rbx]`, then `mov eax, [ebx]` as often.
    put64(&ram, 0x1ff8, 0x4000 | 7);
    put64(&ram, 0x4ff0, 0x5000 | 7);
    put64(&ram, 0x5000, 0x80 | 7);
    let high = 0xffff_ffff_8000_0000 | CODE;
    let mut code = vec![];
    (0..70).for_each(|_| code.extend([0x65, 0x8b, 0x03]));
    (0..70).for_each(|_| code.extend([0x67, 0x8b, 0x03]));
    code.push(0xf4);
    ram.write(CODE, &code).unwrap();
    cpu.hot.gpr[gpr::RBX] = DATA;
    cpu.hot.gpr[gpr::RIP] = high;
    assert_eq!(run_to_halt(&mut cpu), None);
    assert_eq!(cpu.hot.gpr[gpr::RIP], high + code.len() as u64);
}

/// Calls what is at 0x280_0000 a hundred times, does `change`, and calls it a hundred times again.
fn call_before_and_after(change: &[u8]) -> u64 {
    let (mut cpu, ram) = long_mode();
    // That page by a table of its own.
    put64(&ram, 0x3000 + 8 * 20, 0x6000 | 7);
    put64(&ram, 0x6000, DATA | 7);
    ram.write(DATA, &[0x48, 0x83, 0xc0, 1, 0xc3]).unwrap();
    ram.write(DATA + 0x1000, &[0x48, 0x05, 0, 1, 0, 0, 0xc3]).unwrap();
    // mov rbx, 0x2800000; mov ecx, 100; l: call rbx; dec ecx; jnz l
    let mut code = vec![0x48, 0xc7, 0xc3, 0, 0, 0x80, 2];
    code.extend([0xb9, 100, 0, 0, 0, 0xff, 0xd3, 0xff, 0xc9, 0x75, 0xfa]);
    code.extend(change);
    code.extend([0xb9, 100, 0, 0, 0, 0xff, 0xd3, 0xff, 0xc9, 0x75, 0xfa, 0xf4]);
    ram.write(CODE, &code).unwrap();
    assert_eq!(run_to_halt(&mut cpu), None);
    cpu.hot.gpr[gpr::RAX]
}

/// mov qword [0x6000], the second page
const REMAP: [u8; 12] = [0x48, 0xc7, 0x04, 0x25, 0, 0x60, 0, 0, 7, 0x10, 0x20, 0];

#[test]
fn a_page_that_is_mapped_elsewhere_runs_the_code_that_is_there_now() {
    // invlpg [rbx]
    assert_eq!(call_before_and_after(&[&REMAP[..], &[0x0f, 0x01, 0x3b]].concat()), 100 + 25600);
    // mov rdx, cr3; mov cr3, rdx
    assert_eq!(call_before_and_after(&[&REMAP[..], &[0x0f, 0x20, 0xda, 0x0f, 0x22, 0xda]].concat()), 100 + 25600);
}

#[test]
fn a_flush_without_a_change_finds_the_same_code() {
    assert_eq!(call_before_and_after(&[0x0f, 0x01, 0x3b]), 200);
    assert_eq!(call_before_and_after(&[0x0f, 0x20, 0xda, 0x0f, 0x22, 0xda]), 200);
}

#[test]
fn a_translation_of_a_global_page_outlives_a_new_cr3_but_not_its_invalidation() {
    let run = |flush: &[u8]| {
        let (mut cpu, ram) = long_mode();
        let mut r = cpu.registers();
        r.cr4 |= 1 << 7;
        cpu.set_registers(&r);
        put64(&ram, 0x3000 + 8 * 20, 0x6000 | 7);
        put64(&ram, 0x6000, DATA | 0x100 | 7);
        put64(&ram, DATA, 1);
        put64(&ram, DATA + 0x1000, 2);
        // mov rbx, 0x2800000; mov rcx, [rbx]
        let mut code = vec![0x48, 0xc7, 0xc3, 0, 0, 0x80, 2, 0x48, 0x8b, 0x0b];
        code.extend(REMAP);
        code.extend(flush);
        // mov rax, [rbx]; hlt
        code.extend([0x48, 0x8b, 0x03, 0xf4]);
        ram.write(CODE, &code).unwrap();
        assert_eq!(run_to_halt(&mut cpu), None);
        cpu.hot.gpr[gpr::RAX]
    };
    assert_eq!(run(&[0x0f, 0x20, 0xda, 0x0f, 0x22, 0xda]), 1);
    assert_eq!(run(&[0x0f, 0x01, 0x3b]), 2);
}

#[test]
fn code_that_is_changed_after_each_of_many_runs_is_translated_anew() {
    let (mut cpu, ram) = long_mode();
    // mov ecx, 60; l: call f; inc byte [f + 2]; dec ecx; jnz l; hlt; f (at CODE + 0x1000): add eax, 0; ret
    let mut code = vec![0xb9, 60, 0, 0, 0, 0xe8];
    code.extend((0x1000i32 - 10).to_le_bytes());
    code.extend([0xfe, 0x05]);
    code.extend((0x1002i32 - 16).to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xf1, 0xf4]);
    ram.write(CODE, &code).unwrap();
    ram.write(CODE + 0x1000, &[0x83, 0xc0, 0, 0xc3]).unwrap();
    assert_eq!(run_to_halt(&mut cpu), None);
    assert_eq!(cpu.hot.gpr[gpr::RAX], (0..60).sum::<u64>());
}

#[test]
fn a_loop_in_machine_code_ends_when_somebody_asks() {
    let (mut cpu, ram) = long_mode();
    // l: inc rax; jmp l
    ram.write(CODE, &[0x48, 0xff, 0xc0, 0xeb, 0xfb]).unwrap();
    let link = cpu.link().clone();
    std::thread::scope(|s| {
        s.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            link.raise(crate::request::EXIT);
        });
        assert_eq!(cpu.run(), Exit::Kicked);
    });
    assert!(cpu.hot.gpr[gpr::RAX] > 100);
    assert_eq!(cpu.hot.gpr[gpr::RIP] & !4, CODE & !4);
}

#[test]
fn a_gather_that_faults_has_done_what_came_before_and_goes_on_there() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return;
    }
    let (mut cpu, ram) = long_mode();
    let mut r = cpu.registers();
    r.cr4 |= 1 << 18;
    r.xcr0 = 7;
    cpu.set_registers(&r);
    // vpgatherdd ymm1, [rbx + ymm2 * 4 + 8], ymm3; hlt
    ram.write(CODE, &[0xc4, 0xe2, 0x65, 0x90, 0x4c, 0x93, 8, 0xf4]).unwrap();
    for i in 0..64u32 {
        ram.write(DATA + 8 + 4 * u64::from(i), &(1000 + i).to_le_bytes()).unwrap();
    }
    cpu.hot.gpr[gpr::RBX] = DATA;
    let mut put = |register: usize, values: [u32; 8]| {
        for (i, v) in values.iter().enumerate() {
            cpu.hot.vec[register][4 * i..4 * i + 4].copy_from_slice(&v.to_le_bytes());
        }
    };
    put(1, [7; 8]);
    // The sixth element lies where nothing is mapped.
    put(2, [3, 1, u32::MAX, 60, 0, 0x1000_0000, 5, 6]);
    put(3, [1 << 31, 0, 1 << 31, 1 << 31, 0, 1 << 31, 1 << 31, 0]);
    assert_eq!(run_to_halt(&mut cpu), Some(14));
    assert_eq!(cpu.cr2, DATA + 8 + 0x4000_0000);
    let lane = |cpu: &Cpu, n: usize| -> [u32; 8] {
        std::array::from_fn(|i| u32::from_le_bytes(cpu.hot.vec[n][4 * i..4 * i + 4].try_into().unwrap()))
    };
    assert_eq!(lane(&cpu, 1), [1003, 7, 0, 1060, 7, 7, 7, 7]);
    assert_eq!(lane(&cpu, 3), [0, 0, 0, 0, 0, 1 << 31, 1 << 31, 0]);
    // Again with an index that leads somewhere.
    cpu.hot.vec[2][20..24].copy_from_slice(&2u32.to_le_bytes());
    let mut r = cpu.registers();
    (r.rip, r.events.halted, r.gpr[gpr::RSP]) = (CODE, false, STACK);
    cpu.set_registers(&r);
    assert_eq!(run_to_halt(&mut cpu), None);
    assert_eq!(lane(&cpu, 1), [1003, 7, 0, 1060, 7, 1002, 1005, 7]);
    assert_eq!(lane(&cpu, 3), [0; 8]);
}

#[test]
fn a_masked_move_touches_only_what_its_mask_chooses() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return;
    }
    const EDGE: u64 = 8 << 20;
    // vmaskmovps ymm1, ymm3, [rbx] and vpmaskmovd [rbx], ymm3, ymm1, each with hlt behind it.
    for (store, code) in [(false, [0xc4, 0xe2, 0x65, 0x2c, 0x0b, 0xf4]), (true, [0xc4, 0xe2, 0x65, 0x8e, 0x0b, 0xf4])] {
        for (address, chosen, fault) in [
            (EDGE - 8, 0b11u32, None),
            (EDGE - 8, 0b10, None),
            (EDGE - 8, 0b101, Some(EDGE)),
            (EDGE - 2, 0b10000000, Some(EDGE + 26)),
            (EDGE, 0, None),
            (1 << 47, 0, None),
        ] {
            let (mut cpu, ram) = long_mode();
            put64(&ram, 0x3000 + 8 * (EDGE >> 21), 0);
            ram.write(CODE, &code).unwrap();
            put64(&ram, EDGE - 8, 0x2222_2222_1111_1111);
            cpu.hot.gpr[gpr::RBX] = address;
            for lane in 0..8 {
                let sign = if chosen & 1 << lane != 0 { 0x80 } else { 0x7f };
                cpu.hot.vec[3][4 * lane..4 * lane + 4].copy_from_slice(&[0xff, 0xff, 0xff, sign]);
                cpu.hot.vec[1][4 * lane..4 * lane + 4].copy_from_slice(&[lane as u8 + 1; 4]);
            }
            let (before, mut memory) = (cpu.hot.vec[1], [0; 8]);
            assert_eq!(run_to_halt(&mut cpu), fault.map(|_| 14), "{address:x} {chosen:b}");
            ram.read(EDGE - 8, &mut memory).unwrap();
            if let Some(at) = fault {
                assert_eq!((cpu.cr2, cpu.hot.vec[1], memory[0]), (at, before, 0x11));
            } else if store {
                let expected = |lane: usize, old: u8| if chosen & 1 << lane != 0 { lane as u8 + 1 } else { old };
                assert_eq!([memory[0], memory[4]], [expected(0, 0x11), expected(1, 0x22)]);
            } else {
                let expected = |lane: usize, new: u8| if chosen & 1 << lane != 0 { new } else { 0 };
                assert_eq!(
                    [0, 4, 8].map(|at| cpu.hot.vec[1][at]),
                    [expected(0, 0x11), expected(1, 0x22), 0],
                    "{chosen:b}"
                );
            }
        }
    }
}

#[test]
fn a_masked_store_of_bytes_goes_where_its_segment_and_address_size_say() {
    let (mut cpu, ram) = long_mode();
    // fs maskmovdqu [edi], xmm1, xmm2; add rdi, 32; maskmovq [edi], mm1, mm2; hlt
    ram.write(CODE, &[0x64, 0x67, 0x66, 0x0f, 0xf7, 0xca, 0x48, 0x83, 0xc7, 32, 0x67, 0x0f, 0xf7, 0xca, 0xf4]).unwrap();
    let mut r = cpu.registers();
    r.segs[4].base = 0x100;
    cpu.set_registers(&r);
    cpu.hot.gpr[gpr::RDI] = 7 << 32 | DATA;
    for i in 0..16 {
        (cpu.hot.vec[1][i], cpu.hot.vec[2][i]) = (i as u8 + 1, 0x80 >> (i & 1));
    }
    for i in 0..8 {
        (cpu.hot.fx[32 + 16 + i], cpu.hot.fx[32 + 32 + i]) = (i as u8 + 65, 0x40 << (i & 1));
    }
    assert_eq!(run_to_halt(&mut cpu), None);
    let mut memory = [0; 16];
    ram.read(DATA + 0x100, &mut memory).unwrap();
    assert_eq!(memory, std::array::from_fn(|i| if i & 1 == 0 { i as u8 + 1 } else { 0 }));
    ram.read(DATA + 32, &mut memory).unwrap();
    assert_eq!(memory[..9], [0, 66, 0, 68, 0, 70, 0, 72, 0]);
}

#[test]
fn a_data_breakpoint_stops_at_accesses_and_not_at_addresses_that_are_only_named() {
    let (mut cpu, ram) = long_mode();
    // nop [rax]; lea rcx, [rax]; mov ecx, [rax]; hlt
    ram.write(CODE, &[0x0f, 0x1f, 0x00, 0x48, 0x8d, 0x08, 0x8b, 0x08, 0xf4]).unwrap();
    let mut r = cpu.registers();
    (r.dr[0], r.dr[7], r.gpr[gpr::RAX]) = (DATA, 0x3_0402, DATA);
    cpu.set_registers(&r);
    assert_eq!(run_to_halt(&mut cpu), Some(1));
    let mut rip = [0; 8];
    ram.read(cpu.hot.gpr[gpr::RSP], &mut rip).unwrap();
    assert_eq!((u64::from_le_bytes(rip), cpu.dr[6] & 15), (CODE + 8, 1));
}

#[test]
fn what_an_outer_level_may_not_use_is_null_there() {
    let (mut cpu, ram) = long_mode();
    // mov ds, [null with level 3]; mov es, [kernel data]; mov fs, [user data]; mov gs, [null with level 2]; iretq
    let load = |register: u8, value: u8| [0xb8, value, 0, 0, 0, 0x8e, 0xc0 | register << 3];
    let code = [load(3, 3), load(0, 16), load(4, 0x23), load(5, 2)].concat();
    ram.write(CODE, &code).unwrap();
    ram.write(CODE + code.len() as u64, &[0x48, 0xcf]).unwrap();
    // hlt, which is refused outside
    ram.write(CODE + 0x100, &[0xf4]).unwrap();
    for (i, value) in [CODE + 0x100, 0x2b, 2, STACK - 0x4000, 0x23].into_iter().enumerate() {
        put64(&ram, STACK + 8 * i as u64, value);
    }
    assert_eq!(run_to_halt(&mut cpu), Some(13));
    assert_eq!([3, 0, 4, 5].map(|n: usize| cpu.segs[n].selector), [0, 0, 0x23, 0]);
}

#[test]
fn outside_of_64_bit_mode_fxsave_stores_eight_registers() {
    let (mut cpu, ram) = long_mode();
    // fxsave [ebx]; hlt
    ram.write(CODE, &[0x0f, 0xae, 0x03, 0xf4]).unwrap();
    ram.write(DATA, &[0x55; 512]).unwrap();
    let mut r = cpu.registers();
    r.segs[1].flags = 0xc0_9b00;
    r.gpr[gpr::RBX] = DATA;
    r.ymm = [[0xaa; 32]; 16];
    cpu.set_registers(&r);
    assert_eq!(run_to_halt(&mut cpu), None);
    let mut area = [0; 512];
    ram.read(DATA, &mut area).unwrap();
    assert!(area[160..288].iter().all(|b| *b == 0xaa) && area[288..].iter().all(|b| *b == 0x55));
}
