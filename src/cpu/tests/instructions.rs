//! Instructions against the host's processor.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind};

use super::support::{CODE, DATA, RAM, Random, long_mode};
use crate::{
    Cpu,
    block::{Handler, Op},
    decode::{self, Pushed},
    host::Class,
    ops,
    state::gpr,
};

/// Random bytes that are likely to be an instruction.
pub fn random_bytes(random: &mut Random) -> [u8; 15] {
    let mut bytes = [0; 15];
    bytes.iter_mut().for_each(|b| *b = random.next() as u8);
    let mut at = 0;
    let mut put = |b: u8| {
        bytes[at] = b;
        at += 1;
    };
    if random.below(4) == 0 {
        put([0x66, 0xf2, 0xf3, 0x66][random.below(4) as usize]);
    }
    if random.below(2) == 0 {
        put(0x40 | random.below(16) as u8);
    }
    match random.below(4) {
        0 => put(0x0f),
        1 => {
            put(0x0f);
            put([0x38, 0x3a][random.below(2) as usize]);
        }
        _ => {}
    }
    bytes
}

/// A random instruction and its bytes.
pub fn decode_random_bytes(random: &mut Random, bitness: u32) -> Option<(Instruction, [u8; 15])> {
    let bytes = random_bytes(random);
    let insn = Decoder::with_ip(bitness, &bytes, 0, DecoderOptions::NONE).decode();
    (!insn.is_invalid()).then_some((insn, bytes))
}

fn decode_random(random: &mut Random) -> Option<Instruction> {
    decode_random_bytes(random, 64).map(|(insn, _)| insn)
}

fn is(a: Handler, b: Handler) -> bool {
    std::ptr::fn_addr_eq(a, b)
}

/// Runs one operation and what ends its block.
fn run(cpu: &mut Cpu, ops: &[Op]) -> usize {
    // SAFETY: the block ends with an operation that does not go on.
    unsafe { (ops[0].run)(&raw mut *cpu, ops.as_ptr()) }
}

#[test]
fn handlers_compute_what_the_host_computes() {
    let (mut cpu, ram) = long_mode();
    let mut random = Random(1);
    let mut seen = BTreeMap::new();
    let block_of = |cpu: &mut Cpu, insn: &Instruction| {
        let mut block = crate::block::Block::empty();
        let pushed = decode::push(cpu, &mut block, insn, 0, insn.len());
        (block, pushed)
    };
    let running = crate::block::Block::empty();
    cpu.running = &raw const running;
    for _ in 0..1_500_000 {
        let Some(insn) = decode_random(&mut random) else { continue };
        let (mut block, pushed) = block_of(&mut cpu, &insn);
        let count = block.ops.len();
        if pushed != Pushed::More || count != 1 || is(block.ops[0].run, ops::stub) || is(block.ops[0].run, ops::slow) {
            continue;
        }
        let tries = seen.entry(insn.code() as usize).or_insert(0u32);
        *tries += 1;
        if *tries > 400 {
            continue;
        }
        let Ok(stub) = cpu.stubs.make(&insn) else { continue };
        if insn.is_stack_instruction() {
            continue;
        }
        decode::finish(&mut block, true);
        // Registers, with a base that leads to RAM.
        for r in 0..16 {
            cpu.hot.gpr[r] = random.value();
        }
        let memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
        let at = DATA + random.below(64);
        if memory {
            let op = &mut block.ops[0];
            let base = usize::from(op.base) / 8;
            if base == gpr::RIP || op.form != 0 || op.base == op.index {
                continue;
            }
            op.disp = 0;
            let index = cpu.hot.gpr[usize::from(op.index) / 8] << op.scale;
            if base == gpr::ZERO {
                op.disp = at.wrapping_sub(index) as i64;
            } else {
                cpu.hot.gpr[base] = at.wrapping_sub(index);
            }
        }
        cpu.hot.gpr[gpr::RIP] = CODE;
        let value = random.value();
        ram.write(at, &value.to_le_bytes()).unwrap();
        cpu.hot.set_arith(random.next());
        let before = (cpu.hot.gpr, cpu.hot.cc);
        run(&mut cpu, &block.ops);
        let mut ours = (cpu.hot.gpr, cpu.hot.cc, [0; 8]);
        ram.read(at, &mut ours.2).unwrap();
        ours.0[gpr::RIP] = CODE;
        (cpu.hot.gpr, cpu.hot.cc) = before;
        ram.write(at, &value.to_le_bytes()).unwrap();
        let host = ram.host_address() as u64 + at;
        // SAFETY: the stub touches registers and bytes inside RAM.
        unsafe { (stub.run)(&raw mut cpu.hot, host) };
        let mut theirs = (cpu.hot.gpr, cpu.hot.cc, [0; 8]);
        ram.read(at, &mut theirs.2).unwrap();
        // Bits of AH that are no flags.
        (ours.1, theirs.1) = (ours.1 & 0xd5ff, theirs.1 & 0xd5ff);
        assert_eq!(ours, theirs, "{insn} ({:?}) from {before:x?} memory {value:#x}", insn.code());
    }
    cpu.running = std::ptr::null();
    assert!(seen.len() > 250, "{} kinds of instructions", seen.len());
}

#[test]
fn every_instruction_of_the_model_is_executed_or_known_not_to_be() {
    let (mut cpu, ram) = long_mode();
    let mut random = Random(2);
    let mut missing = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for _ in 0..600_000 {
        let Some(insn) = decode_random(&mut random) else { continue };
        if !cpu.features.has(&insn) || !seen.insert(insn.code() as usize) {
            continue;
        }
        let mut block = crate::block::Block::empty();
        decode::push(&mut cpu, &mut block, &insn, 0, insn.len());
        if !is(block.ops[0].run, ops::slow) {
            continue;
        }
        for r in 0..16 {
            cpu.hot.gpr[r] = DATA + 64 * r as u64;
        }
        ram.fill(DATA, 4096, 0).unwrap();
        let op = block.ops[0];
        cpu.unknown = None;
        cpu.here = CODE;
        cpu.next = CODE + 1;
        let saved = cpu.registers();
        let _ = cpu.execute(&insn, &op);
        if cpu.unknown.take().is_some() {
            missing.insert(format!("{:?}", insn.code()));
        }
        cpu.set_registers(&saved);
    }
    println!("{} of {} kinds are not covered: {missing:?}", missing.len(), seen.len());
    assert!(seen.len() > 900);
    assert!(missing.is_empty(), "{missing:?}");
    let _ = (RAM, Class::Integer, Code::INVALID);
}
