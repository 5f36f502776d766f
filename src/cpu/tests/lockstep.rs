//! Interpreter and translator side by side: the same after every block.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};

use super::{
    instructions::random_bytes,
    support::{CODE, DATA, RAM, Random, STACK, long_mode_with, put64},
};
use crate::{Cpu, Engine, Exit, state::gpr};

/// One block, interpreted or as machine code that goes no further. False: the processor shut down.
fn run_block(cpu: &mut Cpu, translated: bool) -> bool {
    let found = if cpu.bits == 2 { cpu.find_jump() } else { Ok(None) };
    let result = match found {
        Ok(Some(at)) if translated => cpu.run_translated(at),
        Ok(Some(at)) => {
            let block = cpu.jumps[at].block;
            cpu.run_single(block)
        }
        Ok(None) => cpu.step(),
        Err(_) => {
            let reason = std::mem::take(&mut cpu.reason);
            cpu.deliver_exception(reason)
        }
    };
    let mut alive = result.is_ok();
    while alive && cpu.single && !cpu.halted {
        alive = cpu.step().is_ok();
    }
    alive
}

fn state(cpu: &Cpu) -> ([u64; 18], u64, u32, [[u8; 32]; 16]) {
    (cpu.hot.gpr, cpu.rflags(), cpu.mxcsr, cpu.hot.vec)
}

/// Random instructions that stay inside RAM mostly, with the kinds that were put in counted.
fn program(random: &mut Random, kinds: &mut BTreeMap<String, u32>) -> Vec<u8> {
    let mut code = vec![];
    let length = 4 + random.below(40);
    while (code.len() as u64) < length * 5 {
        let bytes = random_bytes(random);
        let mut decoder = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE);
        let insn: Instruction = decoder.decode();
        if insn.is_invalid() || insn.is_privileged() {
            continue;
        }
        match insn.flow_control() {
            FlowControl::Next => {}
            FlowControl::ConditionalBranch | FlowControl::Call | FlowControl::Return if random.below(3) == 0 => {}
            _ => continue,
        }
        if matches!(insn.mnemonic(), Mnemonic::Xbegin | Mnemonic::Xabort) {
            continue;
        }
        // Half of the rest again is of few bits, so that common instructions are common.
        let bytes = &bytes[..insn.len()];
        *kinds.entry(format!("{:?}", insn.code())).or_default() += 1;
        code.extend(bytes);
        // Memory operands lead somewhere: now and then the bases are set again.
        if random.below(4) == 0 {
            let r = random.below(16) as u8;
            if r != 4 {
                code.extend([0x48 | r >> 3, 0xc7, 0xc0 | r & 7]);
                code.extend((DATA as u32 + random.below(0x4000) as u32).to_le_bytes());
            }
        }
    }
    code.push(0xf4);
    code
}

fn soak(seed: u64, programs: usize) {
    let (mut a, ram_a) = long_mode_with(Engine::Translator);
    let (mut b, ram_b) = long_mode_with(Engine::Translator);
    b.translator.hot = 0;
    b.translator.unchained = true;
    b.bind_thread();
    let mut random = Random(seed);
    let mut kinds = BTreeMap::new();
    let mut whole = [vec![0; RAM as usize], vec![0; RAM as usize]];
    let mut start = a.registers();
    // Tables, which programs may write over.
    let mut low = vec![0; 0x1_0000];
    ram_a.read(0, &mut low).unwrap();
    for round in 0..programs {
        let code = program(&mut random, &mut kinds);
        for ram in [&ram_a, &ram_b] {
            ram.write(0, &low).unwrap();
            ram.write(CODE, &code).unwrap();
        }
        for r in 0..16 {
            start.gpr[r] = match random.below(4) {
                0 => random.value(),
                1 => random.below(64),
                _ => DATA + random.below(0x4000),
            };
        }
        start.gpr[gpr::RSP] = STACK - 64 + random.below(2) * random.below(64);
        start.rip = CODE;
        start.rflags = 2 | random.next() & 0x8d5;
        start.ymm.iter_mut().flatten().for_each(|b| *b = random.next() as u8);
        start.events.halted = false;
        b.translator.quick = round % 2 == 1;
        for cpu in [&mut a, &mut b] {
            cpu.set_registers(&start);
            cpu.forget_all_code();
            cpu.graveyard.clear();
            cpu.reload_map();
        }
        for blocks in 0..60 {
            let before = state(&a);
            let alive = run_block(&mut a, false);
            assert_eq!(run_block(&mut b, true), alive, "both shut down");
            if !alive {
                break;
            }
            // Machine code is left behind a write to code; the rest of the block follows alone.
            for _ in 0..64 {
                if a.hot.gpr[gpr::RIP] == b.hot.gpr[gpr::RIP] || b.step().is_err() {
                    break;
                }
            }
            let (left, right) = (state(&a), state(&b));
            if left != right {
                let rip = before.0[gpr::RIP];
                let mut bytes = [0; 200];
                let text = if rip < RAM - 200 {
                    ram_a.read(rip, &mut bytes).unwrap();
                    let decoder = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE);
                    decoder.into_iter().take(70).map(|i| format!("at {:x} {i}\n", i.ip())).collect()
                } else {
                    String::new()
                };
                let differ: Vec<_> =
                    (0..18).filter(|&i| left.0[i] != right.0[i]).map(|i| (i, left.0[i], right.0[i])).collect();
                let vectors: Vec<_> = (0..16).filter(|&i| left.3[i] != right.3[i]).collect();
                panic!(
                    "seed {seed} program {round} block {blocks}\n{text}after {:x?} before {:x?} flags {:x}\nregisters {differ:x?} flags {:x} {:x} mxcsr {:x} {:x} vectors {vectors:?}",
                    left.0, before.0, before.1, left.1, right.1, left.2, right.2
                );
            }
            // Without the host's pointers: the guest's are kept apart.
            assert_eq!((&a.hot.fx[..6], &a.hot.fx[32..160]), (&b.hot.fx[..6], &b.hot.fx[32..160]), "x87");
            assert_eq!((a.fip, a.fdp, a.fop), (b.fip, b.fdp, b.fop), "x87");
            if a.halted {
                break;
            }
        }
        if round % std::env::var("LOCKSTEP_STRIDE").ok().and_then(|s| s.parse().ok()).unwrap_or(64) == 0 {
            ram_a.read(0, &mut whole[0]).unwrap();
            ram_b.read(0, &mut whole[1]).unwrap();
            assert!(whole[0] == whole[1], "memory after program {round}");
        }
    }
    println!("{} kinds of instructions", kinds.len());
}

#[test]
fn interpreter_and_translator_agree_after_every_block_of_random_programs() {
    soak(1, 4000);
}

#[test]
#[ignore = "long: seeds from LOCKSTEP_SEED on, until it is stopped"]
fn soak_of_random_programs() {
    let first = std::env::var("LOCKSTEP_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(2);
    for seed in first..first + 1000 {
        soak(seed, 20_000);
        println!("seed {seed}");
    }
}

#[test]
fn what_is_cached_of_tables_that_the_guest_has_changed_is_the_same_for_both() {
    for identifiers in [false, true] {
        let (mut cpu, ram) = long_mode_with(Engine::Check);
        // lea rsi, [rip+2]; jmp rsi
        let on = [0x48, 0x8d, 0x35, 2, 0, 0, 0, 0xff, 0xe6];
        let code = [
            // mov rdx, [rcx] (the table's entry, not marked yet); mov [rbx], rax
            &[0x48, 0x8b, 0x11, 0x48, 0x89, 0x03][..],
            &on,
            // mov qword [rcx], 0; mov [rbx+8], rax
            &[0x48, 0xc7, 0x01, 0, 0, 0, 0, 0x48, 0x89, 0x43, 0x08],
            &on,
            // mov [rbx+16], rax
            &[0x48, 0x89, 0x43, 0x10],
            &on,
            // hlt
            &[0xf4],
        ]
        .concat();
        ram.write(CODE, &code).unwrap();
        let entry = 0x3000 + 8 * (DATA >> 21);
        // Machine code is made of what has run before.
        for round in 1..5 {
            put64(&ram, entry, DATA | 0x87);
            let mut r = cpu.registers();
            r.events.halted = false;
            r.cr4 |= u64::from(identifiers) << 17;
            (r.rip, r.gpr[gpr::RAX], r.gpr[gpr::RBX], r.gpr[gpr::RCX]) = (CODE, round, DATA, entry);
            cpu.set_registers(&r);
            assert_eq!(cpu.run(), Exit::Halted);
            let r = cpu.registers();
            assert_eq!((r.rip, r.cr2, r.gpr[gpr::RDX]), (CODE + code.len() as u64, 0, DATA | 0x87));
            let mut bytes = [0; 24];
            ram.read(DATA, &mut bytes).unwrap();
            assert_eq!(bytes.map(u64::from).iter().sum::<u64>(), 3 * round);
        }
    }
}
