//! Each kind of instruction as machine code, against the interpreter (which is checked against the host's processor).

use std::collections::BTreeMap;

use iced_x86::{CodeSize, FlowControl, Instruction, Mnemonic, OpKind};

use super::{
    instructions::decode_random_bytes,
    support::{CODE, DATA, Random, STACK, long_mode_with, make_flat},
};
use crate::{Cpu, Engine, state::gpr};

/// What became of a kind.
#[derive(Default)]
struct Kind {
    tries: u32,
    /// How often the interpreter was not needed.
    alone: u32,
}

/// Leads a memory operand to RAM by its base and index. False: they cannot.
fn aim(cpu: &mut Cpu, insn: &Instruction, at: u64) -> bool {
    if !(0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory) {
        return true;
    }
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let mut offset = insn.memory_displacement64();
    if index.is_gpr() {
        let n = index.full_register().number();
        cpu.hot.gpr[n] >>= 40;
        if insn.code_size() == CodeSize::Code32 {
            cpu.hot.gpr[n] &= 0xffff;
        }
        offset = offset.wrapping_add(cpu.hot.gpr[n] * u64::from(insn.memory_index_scale()));
    }
    if !base.is_gpr() || base == index {
        return false;
    }
    let value = at.wrapping_sub(offset);
    let narrow = insn.code_size() == CodeSize::Code32;
    if narrow && base.size() != 4 {
        return false;
    }
    cpu.hot.gpr[base.full_register().number()] = if narrow { value & 0xffff_ffff } else { value };
    true
}

#[test]
fn machine_code_of_every_kind_of_instruction_does_what_the_interpreter_does() {
    let (kinds, never) = compare(64);
    assert!(kinds > 900 && never < kinds / 2, "{never} of {kinds}");
}

#[test]
fn machine_code_of_flat_32_bit_code_does_what_the_interpreter_does() {
    let (kinds, never) = compare(32);
    assert!(kinds > 900 && never < kinds / 2, "{never} of {kinds}");
}

/// Runs each kind of instruction both ways. Gives their number, and how many are always interpreted.
fn compare(bitness: u32) -> (usize, usize) {
    let (mut cpu, ram) = long_mode_with(Engine::Translator);
    if bitness == 32 {
        make_flat(&mut cpu);
    }
    cpu.translator.hot = 0;
    cpu.translator.unchained = true;
    cpu.bind_thread();
    let mut random = Random(77);
    let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
    let start = cpu.registers();
    let around = |ram: &lockstep_memory::RamBlock, from: u64| {
        let mut bytes = [0; 512];
        ram.read(from, &mut bytes).unwrap();
        bytes
    };
    for _ in 0..1_500_000 {
        let Some((insn, bytes)) = decode_random_bytes(&mut random, bitness) else { continue };
        let whole = !cpu.features.has(&insn) || insn.is_privileged() || insn.flow_control() != FlowControl::Next;
        if whole || insn.is_string_instruction() || matches!(insn.mnemonic(), Mnemonic::Rdtsc | Mnemonic::Rdtscp) {
            continue;
        }
        let name = format!("{:?}", insn.code());
        // A string of bits leads anywhere.
        let far_bit =
            name.starts_with("Bt") && insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register;
        // x87 is always interpreted, and its pointers are not all among the registers that are put back.
        if name.starts_with('F') || name.contains("save") || name.contains("rstor") || far_bit {
            continue;
        }
        let kind = kinds.entry(name.clone()).or_default();
        if kind.tries == 32 {
            continue;
        }
        kind.tries += 1;
        // Half of them as in loops.
        cpu.translator.quick = kind.tries % 2 == 1;
        ram.write(CODE, &bytes[..insn.len()]).unwrap();
        ram.write(CODE + insn.len() as u64, &[0xf4]).unwrap();
        cpu.forget_all_code();
        cpu.graveyard.clear();
        let mut r = start.clone();
        r.gpr = std::array::from_fn(|_| random.value());
        if bitness == 32 {
            // Nothing else is left in registers by code of 32 bits.
            r.gpr.iter_mut().for_each(|v| *v &= 0xffff_ffff);
        }
        r.gpr[gpr::RSP] = STACK;
        r.rip = CODE;
        r.rflags = 2 | random.next() & 0x8d5;
        r.ymm.iter_mut().flatten().for_each(|b| *b = random.next() as u8);
        // Mostly aligned; now and then across a page.
        let at = DATA + if kind.tries % 8 == 7 { 0xffd } else { 64 * random.below(4) + random.below(3) / 2 };
        let contents: [u8; 512] = std::array::from_fn(|_| random.next() as u8);
        let mut results = vec![];
        let slow_before = cpu.translator.slow_count;
        for translated in [false, true] {
            cpu.set_registers(&r);
            cpu.graveyard.clear();
            if !aim(&mut cpu, &insn, at) {
                break;
            }
            ram.write(at - 128, &contents).unwrap();
            ram.write(STACK - 256, &contents).unwrap();
            // Translations are there already, so that the fast way is taken where it can be.
            for page in [at, at + 64, STACK - 8, STACK] {
                let _ = cpu.translate(page, crate::mem::Access::Write);
            }
            let Ok(Some(jump)) = cpu.find_jump() else { panic!("code is there") };
            let block = cpu.jumps[jump].block;
            let alive = if translated { cpu.run_translated(jump) } else { cpu.run_single(block) }.is_ok();
            results.push((
                alive,
                cpu.hot.gpr,
                cpu.rflags(),
                cpu.mxcsr,
                cpu.hot.vec,
                around(&ram, at - 128),
                around(&ram, STACK - 256),
            ));
        }
        if results.len() < 2 {
            kinds.entry(name).or_default().tries -= 1;
            continue;
        }
        // The HLT behind it takes the slow way too.
        kinds.entry(name).or_default().alone += u32::from(cpu.halted && cpu.translator.slow_count - slow_before == 1);
        let difference = || {
            let (a, b) = (&results[0], &results[1]);
            let registers: Vec<_> =
                (0..18).filter(|&i| a.1[i] != b.1[i]).map(|i| format!("{i}: {:x} {:x}", a.1[i], b.1[i])).collect();
            format!("{registers:?} flags {:x} {:x} mxcsr {:x} {:x}", a.2, b.2, a.3, b.3)
        };
        assert!(results[0] == results[1], "{insn} ({:?}) from {:x?}: {}", insn.code(), r.gpr, difference());
    }
    let never: Vec<_> = kinds.iter().filter(|k| k.1.alone == 0).map(|k| k.0.as_str()).collect();
    println!("{} kinds; {} always interpreted: {}", kinds.len(), never.len(), never.join(" "));
    (kinds.len(), never.len())
}

#[test]
fn when_the_memory_for_code_is_full_all_code_is_made_anew() {
    let (mut cpu, ram) = long_mode_with(Engine::Translator);
    cpu.translator.hot = 0;
    cpu.translator.limit_code(8192);
    // mov ecx, 50; l: sixty times `add rax, [rbx]; jmp to the next`; dec ecx; jnz l; hlt
    let mut code = vec![0xb9, 50, 0, 0, 0];
    for _ in 0..60 {
        code.extend([0x48, 0x03, 0x03, 0xeb, 0]);
    }
    code.extend([0xff, 0xc9, 0x0f, 0x85]);
    code.extend((-(code.len() as i32 + 4 - 5)).to_le_bytes());
    code.push(0xf4);
    ram.write(CODE, &code).unwrap();
    ram.write(DATA, &3u64.to_le_bytes()).unwrap();
    cpu.hot.gpr[gpr::RBX] = DATA;
    assert_eq!(cpu.run(), crate::Exit::Halted);
    assert_eq!(cpu.hot.gpr[gpr::RAX], 50 * 60 * 3);
}

#[test]
fn a_guest_that_begins_at_every_byte_of_its_memory_takes_no_more_of_the_host_than_it_may() {
    for engine in [Engine::Interpreter, Engine::Translator] {
        let (mut cpu, ram) = long_mode_with(engine);
        (cpu.translator.hot, cpu.code_limit) = (0, 100_000);
        // l: call rbx; dec rbx; dec ecx; jnz l; hlt
        ram.write(CODE, &[0xff, 0xd3, 0x48, 0xff, 0xcb, 0xff, 0xc9, 0x75, 0xf7, 0xf4]).unwrap();
        // 63 times CMC, then RET
        let piece: [u8; 64] = std::array::from_fn(|n| if n < 63 { 0xf5 } else { 0xc3 });
        const BYTES: u64 = 0x4000;
        (0..BYTES).step_by(64).for_each(|at| ram.write(DATA + at, &piece).unwrap());
        (cpu.hot.gpr[gpr::RBX], cpu.hot.gpr[gpr::RCX]) = (DATA + BYTES - 1, BYTES);
        assert_eq!(cpu.run(), crate::Exit::Halted, "{engine:?}");
        assert_eq!(cpu.hot.gpr[gpr::RBX], DATA - 1, "{engine:?}");
        assert!(cpu.code_weight <= 100_000, "{engine:?}: {}", cpu.code_weight);
        assert!(cpu.code_weight > 10_000, "{engine:?}: what was run last is kept");
        let kept: usize = cpu.code.values().map(|page| page.weigh()).sum();
        assert_eq!(kept, cpu.code_weight, "{engine:?}");
        let pages: Vec<u64> = cpu.code.keys().copied().collect();
        pages.iter().for_each(|&page| cpu.forget_page(page));
        assert_eq!(cpu.code_weight, 0, "{engine:?}");
    }
}
