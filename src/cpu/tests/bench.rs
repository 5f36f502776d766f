//! Figures, when asked for: `cargo test --release -p lockstep-cpu speed -- --ignored --nocapture`.

use std::time::Instant;

use super::support::{CODE, DATA, Random, long_mode, put64};
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
    let n = 350_000_002u64;
    println!("{n} instructions, {:.0} MIPS", n as f64 / start.elapsed().as_secs_f64() / 1e6);
}

#[test]
#[ignore = "a measurement"]
fn speed_of_mixed_code() {
    // Routines of arithmetic, loads, stores, flags and jumps on registers below RSP, called one after the other.
    let (mut cpu, ram) = long_mode();
    let mut random = Random(9);
    let forms: &[&[u8]] = &[
        &[0x48, 0x01, 0xd8],
        &[0x31, 0xc2],
        &[0x48, 0x8b, 0x46, 0x10],
        &[0x89, 0x56, 0x20],
        &[0x48, 0x8d, 0x54, 0x02, 7],
        &[0x48, 0xc1, 0xe0, 5],
        &[0x0f, 0xb6, 0xd0],
        &[0x48, 0x85, 0xc0],
        &[0x83, 0xc2, 0x11],
        &[0x0f, 0x45, 0xc2],
        &[0x75, 0x00],
        &[0x66, 0x0f, 0xef, 0xc1],
        &[0x48, 0x0f, 0xaf, 0xc3],
        &[0x50, 0x5a],
    ];
    let mut main = vec![];
    let mut at = CODE + 0x2_0000;
    for _ in 0..2000 {
        let mut body = vec![];
        for _ in 0..10 {
            body.extend(forms[random.below(forms.len() as u64) as usize]);
        }
        body.push(0xc3);
        ram.write(at, &body).unwrap();
        let next = CODE + main.len() as u64 + 5;
        main.push(0xe8);
        main.extend(((at - next) as u32).to_le_bytes());
        at += body.len() as u64;
    }
    main.extend([0xff, 0xc9, 0x0f, 0x85]);
    main.extend((-(main.len() as i32) - 4).to_le_bytes());
    main.push(0xf4);
    ram.write(CODE, &main).unwrap();
    (cpu.hot.gpr[gpr::RSI], cpu.hot.gpr[gpr::RCX]) = (DATA, 1000);
    let start = Instant::now();
    assert_eq!(cpu.run(), Exit::Halted);
    let n = 25_471_002u64;
    println!("{n} instructions, {:.0} MIPS", n as f64 / start.elapsed().as_secs_f64() / 1e6);
}

/// User time of this thread in seconds: other load on the machine does not count.
fn thread_seconds() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a plain query.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

#[test]
#[ignore = "a measurement: LOCKSTEP_FLAT names files of code for address 0x400000 that end with HLT"]
fn speed_of_flat_code() {
    for file in std::env::var("LOCKSTEP_FLAT").unwrap_or_default().split_whitespace() {
        let (mut cpu, ram) = long_mode();
        ram.write(0x40_0000, &std::fs::read(file).unwrap()).unwrap();
        cpu.hot.gpr[gpr::RIP] = 0x40_0000;
        let start = thread_seconds();
        assert_eq!(cpu.run(), Exit::Halted);
        println!("{file}: {:.3} s, RIP {:#x}", thread_seconds() - start, cpu.hot.gpr[gpr::RIP]);
    }
}

/// Two address spaces with 32 pages of their own in use, by turns; with and without forgetting them each time.
#[test]
#[ignore = "a measurement"]
fn speed_of_changes_of_the_address_space() {
    for keep in [0, 1u64 << 63] {
        let (mut cpu, ram) = long_mode();
        for (i, root) in (0..).zip([0x1_0000u64, 0x2_0000]) {
            put64(&ram, root, (root + 0x1000) | 7);
            put64(&ram, root + 0x1000, 0x3000 | 7);
            put64(&ram, root + 0x1008, (root + 0x2000) | 7);
            put64(&ram, root + 0x2000, (root + 0x3000) | 7);
            (0..32).for_each(|n| put64(&ram, root + 0x3000 + 8 * n, (DATA + (32 * i + n) * 0x1000) | 0x67));
        }
        cpu.cr4 |= 1 << 17 | 1 << 7;
        // l: mov cr3, rbx; xchg rbx, rdi; mov rsi, rbp; mov edx, 32; p: add rax, [rsi]; add rsi, 4096; dec edx; jnz p; dec ecx; jnz l; hlt
        let code = [
            0x0f, 0x22, 0xdb, 0x48, 0x87, 0xfb, 0x48, 0x89, 0xee, 0xba, 32, 0, 0, 0, 0x48, 0x03, 0x06, 0x48, 0x81,
            0xc6, 0, 0x10, 0, 0, 0xff, 0xca, 0x75, 0xf2, 0xff, 0xc9, 0x75, 0xe0, 0xf4,
        ];
        ram.write(CODE, &code).unwrap();
        let n = 200_000;
        let general = [(gpr::RBX, 0x1_0001 | keep), (gpr::RDI, 0x2_0002 | keep), (gpr::RBP, 1 << 30), (gpr::RCX, n)];
        general.into_iter().for_each(|(r, v)| cpu.hot.gpr[r] = v);
        let start = thread_seconds();
        assert_eq!(cpu.run(), Exit::Halted);
        println!("{:.0} changes/s, keeping: {}", n as f64 / (thread_seconds() - start), keep != 0);
    }
}
