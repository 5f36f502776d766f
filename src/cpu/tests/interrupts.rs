//! Interrupts between instructions.

use std::sync::Arc;

use super::support::{CODE, Quiet, long_mode_of, long_mode_on};
use crate::{Engine, Exit, state::gpr};

#[test]
fn an_interrupt_between_two_blocks_does_not_join_its_handler_to_the_first() {
    let platform = Arc::new(Quiet::default());
    let (mut cpu, ram) = long_mode_on(platform.clone());
    // mov ecx, 50; sti; nop; l: rdtsc; jmp n; n: inc esi; dec ecx; jnz l; cli; hlt
    let code = [0xb9, 50, 0, 0, 0, 0xfb, 0x90, 0x0f, 0x31, 0xeb, 0, 0xff, 0xc6, 0xff, 0xc9, 0x75, 0xf6, 0xfa, 0xf4];
    ram.write(CODE, &code).unwrap();
    // Vector 0x40: inc edi; iretq
    ram.write(0xa000 + 16 * 0x40, &[0xff, 0xc7, 0x48, 0xcf]).unwrap();
    platform.on_tsc.set((0x40, cpu.link().clone())).ok().unwrap();
    assert_eq!(cpu.run(), Exit::Halted);
    assert_eq!(cpu.hot.gpr[gpr::RIP], CODE + code.len() as u64);
    assert_eq!((cpu.hot.gpr[gpr::RSI], cpu.hot.gpr[gpr::RDI]), (50, 1));
}

#[test]
fn an_interrupt_finds_the_instruction_between_the_one_after_sti_and_cli() {
    for (engine, hot) in [(Engine::Interpreter, 0), (Engine::Translator, 12), (Engine::Translator, 0)] {
        // Taken between two NOPs; not between STI and the instruction after it.
        for (window, taken) in [(&[0xfb, 0x90, 0x90, 0xfa][..], 1), (&[0xfb, 0x90, 0xfa], 1), (&[0xfb, 0xfa], 0)] {
            let platform = Arc::new(Quiet::default());
            let (mut cpu, ram) = long_mode_of(platform.clone(), engine);
            cpu.translator.hot = hot;
            // cli; rdtsc; the window; hlt
            let code = [&[0xfa, 0x0f, 0x31], window, &[0xf4]].concat();
            ram.write(CODE, &code).unwrap();
            // Vector 0x40: inc edi; iretq
            ram.write(0xa000 + 16 * 0x40, &[0xff, 0xc7, 0x48, 0xcf]).unwrap();
            platform.on_tsc.set((0x40, cpu.link().clone())).ok().unwrap();
            assert_eq!(cpu.run(), Exit::Halted);
            assert_eq!(cpu.hot.gpr[gpr::RDI], taken, "{engine:?} {window:x?}");
        }
    }
}
