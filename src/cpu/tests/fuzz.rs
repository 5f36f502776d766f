//! Hostile code.

use super::{
    instructions::random_bytes,
    support::{CODE, DATA, RAM, Random, long_mode},
};
use crate::request;

/// Pages around guest memory that nobody may touch, as far as nothing else is there.
struct Guards(Vec<usize>);

const GUARD: usize = 1 << 20;

impl Guards {
    fn around(first: usize, len: usize) -> Self {
        let map = |at: usize| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
            // SAFETY: a new mapping that replaces none.
            let got = unsafe { libc::mmap(at as *mut _, GUARD, libc::PROT_NONE, flags, -1, 0) };
            (got as usize == at).then_some(at)
        };
        Self([first - GUARD, first + len].into_iter().filter_map(map).collect())
    }
}

impl Drop for Guards {
    fn drop(&mut self) {
        for &at in &self.0 {
            // SAFETY: mapped in `around`, used by nobody.
            unsafe { libc::munmap(at as *mut _, GUARD) };
        }
    }
}

#[test]
fn random_streams_of_instructions_end_when_asked_and_stay_inside_ram() {
    let mut random = Random(3);
    for round in 0..64 {
        let (mut cpu, ram) = long_mode();
        // Half of the rounds translate everything at once, the others what is run often.
        cpu.translator.hot = if round % 8 < 4 { 0 } else { cpu.translator.hot };
        let _guards = Guards::around(ram.host_address() as usize, RAM as usize);
        let mut r = cpu.registers();
        for g in &mut r.gpr {
            *g = match random.below(3) {
                0 => random.value(),
                1 => random.below(RAM),
                _ => DATA,
            };
        }
        match round % 4 {
            // 32-bit protected mode.
            1 => {
                r.efer = 0;
                r.cr0 = 0x11;
                r.segs[1].flags = 0xc0_9b00;
            }
            // Real mode.
            2 => {
                r.efer = 0;
                r.cr0 = 0x10;
                for s in &mut r.segs {
                    *s = crate::state::Segment { selector: 0x1000, base: 0x1_0000, limit: 0xffff, flags: 0x9300 };
                }
                r.rip = 0;
            }
            _ => {}
        }
        r.ymm.iter_mut().flatten().for_each(|b| *b = random.next() as u8);
        cpu.set_registers(&r);
        let at = if round % 4 == 2 { 0x1_0000 } else { CODE };
        for i in 0..2000u64 {
            ram.write(at + i * 4, &random_bytes(&mut random)).unwrap();
        }
        // What the streams do is theirs; that they end is ours. Halts and resets go on elsewhere.
        for _ in 0..20 {
            let link = cpu.link().clone();
            std::thread::scope(|s| {
                let watch = s.spawn(|| {
                    std::thread::sleep(std::time::Duration::from_micros(300));
                    link.raise(request::EXIT);
                });
                cpu.run();
                let _ = watch.join();
            });
            cpu.link().clear(request::EXIT);
            let mut r = cpu.registers();
            r.events.halted = false;
            r.rip = if round % 4 == 2 { random.below(0xfff0) } else { CODE + random.below(8000) };
            cpu.set_registers(&r);
        }
    }
}
