//! Translations across changes of CR3, against the architecture's rules (Intel SDM volume 3, 4.10).
//!
//! Two address spaces have a page of their own at 1 GiB and a global one beside it. The page tables are changed behind the processor's
//! back, so that what it reads shows whether it kept a translation.

use lockstep_memory::RamBlock;

use super::support::{CODE, DATA, long_mode_with, put64};
use crate::{
    Cpu, Engine, Exit,
    state::{cr, gpr},
};

const PAGE: u64 = 1 << 30;
const GLOBAL: u64 = PAGE + 0x1000;
/// Roots of the two address spaces, and where their entries of `PAGE` are.
const ROOTS: [u64; 2] = [0x1_0000, 0x2_0000];
const KEEP: u64 = 1 << 63;

/// A processor that has read both pages of both spaces, as identifiers 1 and 2; it is in the first. The private pages hold 10 and 20, the
/// global one 30; by tables that the processor may have forgotten or not they now hold 11, 21 and 31.
fn two_spaces(engine: Engine) -> (Box<Cpu>, RamBlock) {
    let (mut cpu, ram) = long_mode_with(engine);
    cpu.translator.hot = 0;
    for (i, root) in (0..).zip(ROOTS) {
        put64(&ram, root, (root + 0x1000) | 7);
        put64(&ram, root + 0x1000, 0x3000 | 7);
        put64(&ram, root + 0x1008, (root + 0x2000) | 7);
        put64(&ram, root + 0x2000, (root + 0x3000) | 7);
        put64(&ram, root + 0x3000, (DATA + i * 0x2000) | 0x67);
        put64(&ram, root + 0x3008, (DATA + 0x8000) | 0x167);
        put64(&ram, DATA + i * 0x2000, 10 + 10 * i);
        put64(&ram, DATA + i * 0x2000 + 0x1000, 11 + 10 * i);
    }
    put64(&ram, DATA + 0x8000, 30);
    put64(&ram, DATA + 0x9000, 31);
    cpu.cr4 |= cr::CR4_PCIDE | cr::CR4_PGE;
    cpu.cr3 = ROOTS[0] | 1;
    cpu.flush_tlb();
    for (i, wanted) in [(1, 20), (0, 10)] {
        switch(&mut cpu, &ram, ROOTS[i] | (i as u64 + 1) | KEEP);
        assert_eq!((read(&mut cpu, &ram, PAGE), read(&mut cpu, &ram, GLOBAL)), (wanted, 30));
    }
    for root in ROOTS {
        for at in [root + 0x3000, root + 0x3008] {
            let mut entry = [0; 8];
            ram.read(at, &mut entry).unwrap();
            put64(&ram, at, u64::from_le_bytes(entry) + 0x1000);
        }
    }
    (cpu, ram)
}

fn run(cpu: &mut Cpu, ram: &RamBlock, code: &[u8]) {
    ram.write(CODE, &[code, &[0xf4]].concat()).unwrap();
    cpu.forget_all_code();
    cpu.hot.gpr[gpr::RIP] = CODE;
    cpu.halted = false;
    assert_eq!(cpu.run(), Exit::Halted);
}

/// mov rax, [rbx]
fn read(cpu: &mut Cpu, ram: &RamBlock, at: u64) -> u64 {
    cpu.hot.gpr[gpr::RBX] = at;
    run(cpu, ram, &[0x48, 0x8b, 0x03]);
    cpu.hot.gpr[gpr::RAX]
}

/// mov cr3, rax
fn switch(cpu: &mut Cpu, ram: &RamBlock, cr3: u64) {
    cpu.hot.gpr[gpr::RAX] = cr3;
    run(cpu, ram, &[0x0f, 0x22, 0xd8]);
    assert_eq!(cpu.cr3, cr3 & !KEEP);
}

/// invpcid rax, [rbx]. False: a general-protection exception.
fn invpcid(cpu: &mut Cpu, ram: &RamBlock, kind: u64, pcid: u64, address: u64) -> bool {
    put64(ram, DATA + 0x10_0000, pcid);
    put64(ram, DATA + 0x10_0008, address);
    (cpu.hot.gpr[gpr::RAX], cpu.hot.gpr[gpr::RBX]) = (kind, DATA + 0x10_0000);
    let faults = cpu.fault_count;
    run(cpu, ram, &[0x66, 0x0f, 0x38, 0x82, 0x03]);
    cpu.hot.gpr[gpr::RSP] = super::support::STACK;
    cpu.fault_count == faults
}

/// What both spaces and the global page hold, after a change that forgets nothing.
fn seen(cpu: &mut Cpu, ram: &RamBlock) -> [u64; 3] {
    let first = read(cpu, ram, PAGE);
    let global = read(cpu, ram, GLOBAL);
    switch(cpu, ram, ROOTS[1] | 2 | KEEP);
    [first, read(cpu, ram, PAGE), global]
}

const ENGINES: [Engine; 2] = [Engine::Interpreter, Engine::Translator];

#[test]
fn a_new_cr3_forgets_its_own_address_space_unless_bit_63_is_set() {
    for engine in ENGINES {
        // Nothing is forgotten.
        let (mut cpu, ram) = two_spaces(engine);
        assert_eq!(seen(&mut cpu, &ram), [10, 20, 30]);
        // The current one, written again.
        let (mut cpu, ram) = two_spaces(engine);
        switch(&mut cpu, &ram, ROOTS[0] | 1);
        assert_eq!(seen(&mut cpu, &ram), [11, 20, 30]);
        let (mut cpu, ram) = two_spaces(engine);
        switch(&mut cpu, &ram, ROOTS[0] | 1 | KEEP);
        assert_eq!(seen(&mut cpu, &ram), [10, 20, 30]);
        // There and back.
        let (mut cpu, ram) = two_spaces(engine);
        switch(&mut cpu, &ram, ROOTS[1] | 2);
        assert_eq!(read(&mut cpu, &ram, PAGE), 21);
        switch(&mut cpu, &ram, ROOTS[0] | 1 | KEEP);
        assert_eq!(seen(&mut cpu, &ram), [10, 21, 30]);
        // An identifier may be given to other tables, and then has what it had.
        let (mut cpu, ram) = two_spaces(engine);
        switch(&mut cpu, &ram, ROOTS[1] | 1 | KEEP);
        assert_eq!(read(&mut cpu, &ram, PAGE), 10);
        switch(&mut cpu, &ram, ROOTS[1] | 1);
        assert_eq!(read(&mut cpu, &ram, PAGE), 21);
    }
}

#[test]
fn invlpg_forgets_a_page_of_the_current_space_and_a_global_one_of_all() {
    for engine in ENGINES {
        let (mut cpu, ram) = two_spaces(engine);
        cpu.hot.gpr[gpr::RBX] = PAGE;
        run(&mut cpu, &ram, &[0x0f, 0x01, 0x3b]);
        assert_eq!(seen(&mut cpu, &ram), [11, 20, 30]);
        let (mut cpu, ram) = two_spaces(engine);
        switch(&mut cpu, &ram, ROOTS[1] | 2 | KEEP);
        cpu.hot.gpr[gpr::RBX] = GLOBAL;
        run(&mut cpu, &ram, &[0x0f, 0x01, 0x3b]);
        switch(&mut cpu, &ram, ROOTS[0] | 1 | KEEP);
        assert_eq!(seen(&mut cpu, &ram), [10, 20, 31]);
    }
}

#[test]
fn invpcid_forgets_what_each_of_its_types_names() {
    for engine in ENGINES {
        for (kind, pcid, address, wanted) in [
            (0, 1, PAGE, [11, 20, 30]),
            (0, 2, PAGE + 0xfff, [10, 21, 30]),
            (0, 3, PAGE, [10, 20, 30]),
            (0, 2, PAGE + 0x5000, [10, 20, 30]),
            (1, 1, 0, [11, 20, 30]),
            (1, 2, 0, [10, 21, 30]),
            (2, 0, 0, [11, 21, 31]),
            (3, 0, 0, [11, 21, 30]),
        ] {
            let (mut cpu, ram) = two_spaces(engine);
            assert!(invpcid(&mut cpu, &ram, kind, pcid, address));
            assert_eq!(seen(&mut cpu, &ram), wanted, "type {kind}, identifier {pcid}, {address:#x}");
        }
        for (kind, pcid, address) in [(4, 0, 0), (0, 0x1000, 0), (2, 1 << 40, 0), (0, 1, 1 << 60)] {
            let (mut cpu, ram) = two_spaces(engine);
            assert!(!invpcid(&mut cpu, &ram, kind, pcid, address), "{kind} {pcid:#x} {address:#x}");
        }
        // Without identifiers there is only 0.
        let (mut cpu, ram) = two_spaces(engine);
        switch(&mut cpu, &ram, ROOTS[0]);
        cpu.cr4 &= !cr::CR4_PCIDE;
        assert!(!invpcid(&mut cpu, &ram, 1, 1, 0));
        assert!(invpcid(&mut cpu, &ram, 1, 0, 0));
    }
}

#[test]
fn all_spaces_are_forgotten_when_control_registers_change_or_the_map_does() {
    let change_cr4: &[u8] = &[0x0f, 0x20, 0xe0, 0x48, 0x0f, 0xba, 0xf8, 7, 0x0f, 0x22, 0xe0];
    // mov rax, cr4; btc rax, 7 (PGE); mov cr4, rax
    let (mut cpu, ram) = two_spaces(Engine::Translator);
    run(&mut cpu, &ram, change_cr4);
    assert_eq!(seen(&mut cpu, &ram), [11, 21, 31]);
    let (mut cpu, ram) = two_spaces(Engine::Translator);
    cpu.reload_map();
    assert_eq!(seen(&mut cpu, &ram), [11, 21, 31]);
}

#[test]
fn a_page_that_becomes_code_while_its_space_is_aside_is_not_written_unseen() {
    let (mut cpu, ram) = two_spaces(Engine::Translator);
    // In the second space the page is written, so that writes have a translation.
    switch(&mut cpu, &ram, ROOTS[1] | 2);
    (cpu.hot.gpr[gpr::RBX], cpu.hot.gpr[gpr::RAX]) = (PAGE, 0);
    run(&mut cpu, &ram, &[0x89, 0x03, 0x89, 0x03]);
    // In the first one the same memory is code: mov eax, 5; ret
    switch(&mut cpu, &ram, ROOTS[0] | 1);
    let routine = DATA + 0x3000;
    ram.write(routine, &[0xb8, 5, 0, 0, 0, 0xc3]).unwrap();
    // call rsi; mov cr3, rdi; mov byte [rbx + 1], 6; mov cr3, rdx; call rsi
    let code = [0xff, 0xd6, 0x0f, 0x22, 0xdf, 0xc6, 0x43, 1, 6, 0x0f, 0x22, 0xda, 0xff, 0xd6];
    (cpu.hot.gpr[gpr::RSI], cpu.hot.gpr[gpr::RBX]) = (routine, PAGE);
    (cpu.hot.gpr[gpr::RDI], cpu.hot.gpr[gpr::RDX]) = (ROOTS[1] | 2 | KEEP, ROOTS[0] | 1 | KEEP);
    run(&mut cpu, &ram, &code);
    assert_eq!(cpu.hot.gpr[gpr::RAX], 6);
}

#[test]
fn more_spaces_than_are_kept_are_walked_anew() {
    let (mut cpu, ram) = two_spaces(Engine::Translator);
    for pcid in 3..40 {
        switch(&mut cpu, &ram, ROOTS[1] | pcid | KEEP);
        assert_eq!(read(&mut cpu, &ram, PAGE), 21);
    }
    switch(&mut cpu, &ram, ROOTS[0] | 1 | KEEP);
    assert_eq!(read(&mut cpu, &ram, PAGE), 11);
}

#[test]
fn invlpg_of_a_large_page_forgets_all_of_it_wherever_other_large_pages_are() {
    for engine in ENGINES {
        let (mut cpu, ram) = long_mode_with(engine);
        // A large page in the upper half and one in the lower half, at 512 GiB.
        for (slot, table) in [(511, 0x1_0000), (1, 0x1_2000u64)] {
            put64(&ram, 0x1000 + 8 * slot, table | 7);
            put64(&ram, table, (table + 0x1000) | 7);
            put64(&ram, table + 0x1000, 0x20_0000 | 0x80 | 0x67);
        }
        let (high, low) = (0xffff_ff80_0000_0000u64, 512u64 << 30);
        put64(&ram, 0x20_5000, 1);
        put64(&ram, 0x40_5000, 2);
        assert_eq!((read(&mut cpu, &ram, high + 0x5000), read(&mut cpu, &ram, low + 0x5000)), (1, 1));
        put64(&ram, 0x1_3000, 0x40_0000 | 0x80 | 0x67);
        cpu.hot.gpr[gpr::RBX] = low;
        run(&mut cpu, &ram, &[0x0f, 0x01, 0x3b]);
        assert_eq!(read(&mut cpu, &ram, low + 0x5000), 2, "{engine:?}");
    }
}
