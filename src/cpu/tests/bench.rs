//! Figures, when asked for: `cargo test --release -p lockstep-cpu speed -- --ignored --nocapture`.

use std::time::Instant;

use super::support::{CODE, DATA, long_mode};
use crate::{Exit, state::gpr};

#[test]
#[ignore = "a measurement"]
fn speed_of_a_loop() {
    let (mut cpu, ram) = long_mode();
    // l: add rax, rcx; xor rdx, rax; mov [rbx], rdx; mov rsi, [rbx+8]; lea rdi, [rsi+rdx*4+5]; dec rcx; jnz l; hlt
    let code = [
        0x48, 0x01, 0xc8, 0x48, 0x31, 0xc2, 0x48, 0x89, 0x13, 0x48, 0x8b, 0x73, 8, 0x48, 0x8d, 0x7c, 0x96, 5, 0x48,
        0xff, 0xc9, 0x75, 0xe9, 0xf4,
    ];
    ram.write(CODE, &code).unwrap();
    (cpu.hot.gpr[gpr::RBX], cpu.hot.gpr[gpr::RCX]) = (DATA, 50_000_000);
    let start = Instant::now();
    assert_eq!(cpu.run(), Exit::Halted);
    let n = cpu.instructions();
    println!("{n} instructions, {:.0} MIPS", n as f64 / start.elapsed().as_secs_f64() / 1e6);
}
