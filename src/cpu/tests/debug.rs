//! A debugger's stops.

use super::support::{CODE, DATA, STACK, long_mode_with, put64};
use crate::{Cpu, DebugControl, DebugStop, Engine, Exit, WatchKind, Watchpoint, state::gpr};

const ENGINES: [Engine; 2] = [Engine::Interpreter, Engine::Translator];

/// A loop: `inc rax; mov [rbx], rax; push rax; pop rcx; cmp rax, 1000; jne; hlt`.
const LOOP: &[u8] = &[0x48, 0xff, 0xc0, 0x48, 0x89, 0x03, 0x50, 0x59, 0x48, 0x3d, 0xe8, 0x03, 0, 0, 0x75, 0xf0, 0xf4];

fn looping(engine: Engine) -> Box<Cpu> {
    let (mut cpu, ram) = long_mode_with(engine);
    ram.write(CODE, LOOP).unwrap();
    put64(&ram, DATA, 0);
    let mut r = cpu.registers();
    (r.rip, r.gpr[gpr::RAX], r.gpr[gpr::RBX], r.gpr[gpr::RSP]) = (CODE, 0, DATA, STACK);
    cpu.set_registers(&r);
    cpu
}

fn rip(cpu: &mut Cpu) -> u64 {
    cpu.registers().rip
}

fn rax(cpu: &mut Cpu) -> u64 {
    cpu.registers().gpr[gpr::RAX]
}

#[test]
fn a_breakpoint_stops_before_its_instruction_each_time() {
    for engine in ENGINES {
        let mut cpu = looping(engine);
        for round in 1..5 {
            cpu.set_debug(&DebugControl { software: vec![CODE + 6], ..DebugControl::default() });
            assert_eq!(cpu.run(), Exit::Debug(DebugStop::Breakpoint));
            assert_eq!((rip(&mut cpu), rax(&mut cpu)), (CODE + 6, round));
            cpu.set_debug(&DebugControl { step: true, ..DebugControl::default() });
            assert_eq!(cpu.run(), Exit::Debug(DebugStop::Step));
            assert_eq!(rip(&mut cpu), CODE + 7);
        }
        cpu.set_debug(&DebugControl::default());
        assert_eq!(cpu.run(), Exit::Halted);
        assert_eq!(rax(&mut cpu), 1000);
    }
}

#[test]
fn a_watchpoint_stops_behind_the_access_and_only_for_its_kind() {
    for engine in ENGINES {
        let mut cpu = looping(engine);
        // So that the loop is translated.
        cpu.set_debug(&DebugControl { hardware: vec![CODE + 0x1000], ..DebugControl::default() });
        let write = Watchpoint { address: DATA + 4, len: 4, kind: WatchKind::Write };
        for round in 1..50 {
            cpu.set_debug(&DebugControl { watchpoints: vec![write], ..DebugControl::default() });
            assert_eq!(cpu.run(), Exit::Debug(DebugStop::Watchpoint(write)));
            assert_eq!((rip(&mut cpu), rax(&mut cpu)), (CODE + 6, round));
        }
        let stack = Watchpoint { address: STACK - 8, len: 1, kind: WatchKind::Read };
        cpu.set_debug(&DebugControl { watchpoints: vec![stack], ..DebugControl::default() });
        assert_eq!(cpu.run(), Exit::Debug(DebugStop::Watchpoint(stack)));
        assert_eq!(rip(&mut cpu), CODE + 8, "POP reads, PUSH does not");
        let read = Watchpoint { kind: WatchKind::Read, ..write };
        cpu.set_debug(&DebugControl { watchpoints: vec![read], ..DebugControl::default() });
        assert_eq!(cpu.run(), Exit::Halted);
    }
}

#[test]
fn the_push_of_an_exception_is_seen_and_stops_at_the_handler() {
    for engine in ENGINES {
        let (mut cpu, ram) = long_mode_with(engine);
        ram.write(CODE, &[0x0f, 0x0b]).unwrap();
        let mut r = cpu.registers();
        (r.rip, r.gpr[gpr::RSP]) = (CODE, STACK);
        cpu.set_registers(&r);
        let frame = Watchpoint { address: STACK - 8, len: 8, kind: WatchKind::Access };
        cpu.set_debug(&DebugControl { watchpoints: vec![frame], ..DebugControl::default() });
        assert_eq!(cpu.run(), Exit::Debug(DebugStop::Watchpoint(frame)));
        assert_eq!(rip(&mut cpu), 0xa000 + 16 * 6);
    }
}
