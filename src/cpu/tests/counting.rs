//! Counted instructions: what sees the time sees the same time whoever executes, however the run is cut into pieces.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use lockstep_memory::RamBlock;

use super::support::{CODE, DATA, STACK, long_mode_of, put64};
use crate::{Cpu, CpuLink, Engine, Exit, Platform, request, state::gpr};

/// A timer that interrupts (vector 0x40) every so many instructions, and time that is the number of instructions.
#[derive(Default)]
struct Timed {
    count: AtomicU64,
    period: u64,
    next: AtomicU64,
    raised: AtomicBool,
    link: OnceLock<Arc<CpuLink>>,
    /// Most instructions granted at once.
    most: u64,
    /// Every so many looks at the time the run is broken off.
    break_off: u64,
    looks: AtomicU64,
}

impl Timed {
    fn new(period: u64, most: u64, break_off: u64) -> Arc<Self> {
        Arc::new(Self { period, next: AtomicU64::new(period), most, break_off, ..Self::default() })
    }
}

impl Platform for Timed {
    fn interrupt_pending(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }
    fn take_interrupt(&self) -> Option<u8> {
        self.raised.swap(false, Ordering::SeqCst).then_some(0x40)
    }
    fn task_priority(&self) -> u8 {
        (self.count.load(Ordering::SeqCst) & 15) as u8
    }
    fn set_task_priority(&self, _value: u8) {}
    fn read_msr(&self, _index: u32) -> Option<u64> {
        None
    }
    fn write_msr(&self, _index: u32, _value: u64) -> bool {
        false
    }
    fn read_apic(&self, offset: u32) -> u32 {
        self.count.load(Ordering::SeqCst) as u32 ^ offset
    }
    fn write_apic(&self, _offset: u32, _value: u32) {
        // A timer that is set anew.
        self.next.store(self.count.load(Ordering::SeqCst) + 3, Ordering::SeqCst);
        self.link.get().unwrap().raise(request::CLOCK);
    }
    fn apic_base(&self) -> u64 {
        0xfee0_0900
    }
    fn tsc(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
    fn ferr(&self) {}
    fn account(&self, done: u64) -> u64 {
        let link = self.link.get().unwrap();
        link.take(request::CLOCK);
        let now = self.count.fetch_add(done, Ordering::SeqCst) + done;
        let next = self.next.load(Ordering::SeqCst);
        assert!(now <= next, "{now} is behind {next}");
        if now == next {
            self.next.fetch_add(self.period, Ordering::SeqCst);
            self.raised.store(true, Ordering::SeqCst);
            link.raise(request::INTERRUPT);
        }
        if self.break_off != 0 && self.looks.fetch_add(1, Ordering::SeqCst).is_multiple_of(self.break_off) {
            link.raise(request::EXIT);
        }
        (self.next.load(Ordering::SeqCst) - now).min(self.most)
    }
}

/// Loops, string instructions up and down, the time-stamp counter, a port, windows between CLI and STI, an undefined instruction, the APIC
/// in memory, flags, a division and CR8; assembled from:
/// `sti; again: mov ecx, 23; inner: lea eax, [rax+rcx*2+7]; xor edx, eax; add [rbx], edx; test cl, 3; jnz 1f; imul rdx, rdx, 17; push rdx;
/// pop rsi; 1: dec ecx; jnz inner; mov rdi, rbx; mov ecx, 300; rep stosb; lea rsi, [rbx+0x1f0]; lea rdi, [rbx+0xff0]; mov ecx, 37; std;
/// rep movsb; cld; xor ecx, ecx; rep stosd; rdtsc; mov [r8], eax; add r8, 4; in al, 0x80; cli; nop; nop; sti; nop; cli; mov r9, 5; 2: dec r9;
/// jnz 2b; sti; ud2; stc; call sub; mov r10d, 0x40000000; mov edx, [r10+8]; add [r10+16], edx; pushfq; popfq; dec r12; jnz again; cli; hlt;
/// sub: div r11; mov rdx, cr8; ret`
const GUEST: [u8; 135] = [
    0xfb, 0xb9, 0x17, 0x00, 0x00, 0x00, 0x8d, 0x44, 0x48, 0x07, 0x31, 0xc2, 0x01, 0x13, 0xf6, 0xc1, 0x03, 0x75, 0x06,
    0x48, 0x6b, 0xd2, 0x11, 0x52, 0x5e, 0xff, 0xc9, 0x75, 0xe9, 0x48, 0x89, 0xdf, 0xb9, 0x2c, 0x01, 0x00, 0x00, 0xf3,
    0xaa, 0x48, 0x8d, 0xb3, 0xf0, 0x01, 0x00, 0x00, 0x48, 0x8d, 0xbb, 0xf0, 0x0f, 0x00, 0x00, 0xb9, 0x25, 0x00, 0x00,
    0x00, 0xfd, 0xf3, 0xa4, 0xfc, 0x31, 0xc9, 0xf3, 0xab, 0x0f, 0x31, 0x41, 0x89, 0x00, 0x49, 0x83, 0xc0, 0x04, 0xe4,
    0x80, 0xfa, 0x90, 0x90, 0xfb, 0x90, 0xfa, 0x49, 0xc7, 0xc1, 0x05, 0x00, 0x00, 0x00, 0x49, 0xff, 0xc9, 0x75, 0xfb,
    0xfb, 0x0f, 0x0b, 0xf9, 0xe8, 0x17, 0x00, 0x00, 0x00, 0x41, 0xba, 0x00, 0x00, 0x00, 0x40, 0x41, 0x8b, 0x52, 0x08,
    0x41, 0x01, 0x52, 0x10, 0x9c, 0x9d, 0x49, 0xff, 0xcc, 0x75, 0x84, 0xfa, 0xf4, 0x49, 0xf7, 0xf3, 0x44, 0x0f, 0x20,
    0xc2, 0xc3,
];
/// `push rax; push rdx; mov eax, [rsp+16]; mov [r8], eax; rdtsc; mov [r8+4], eax; add r8, 8; pop rdx; pop rax; iretq`: where it came and when.
const INTERRUPT: [u8; 23] = [
    0x50, 0x52, 0x8b, 0x44, 0x24, 0x10, 0x41, 0x89, 0x00, 0x0f, 0x31, 0x41, 0x89, 0x40, 0x04, 0x49, 0x83, 0xc0, 0x08,
    0x5a, 0x58, 0x48, 0xcf,
];
/// `add qword ptr [rsp], 2; iretq`
const UNDEFINED: [u8; 7] = [0x48, 0x83, 0x04, 0x24, 0x02, 0x48, 0xcf];

const LOG: u64 = 0x40_0000;

fn counted(platform: Arc<Timed>, engine: Engine) -> (Box<Cpu>, RamBlock) {
    let (mut cpu, ram) = long_mode_of(platform.clone(), engine);
    platform.link.set(cpu.link().clone()).ok().unwrap();
    cpu.count_instructions();
    // At 1 GiB lies the APIC.
    put64(&ram, 0x2008, 0x4000 | 7);
    put64(&ram, 0x4000, 0x5000 | 7);
    put64(&ram, 0x5000, 0xfee0_0000 | 0x67);
    (cpu, ram)
}

/// Registers, the number of instructions, and what the guest noted.
fn run(platform: Arc<Timed>, engine: Engine, hot: u16, quick: bool) -> ([u64; 18], u64, Vec<u8>) {
    let (mut cpu, ram) = counted(platform.clone(), engine);
    (cpu.translator.hot, cpu.translator.quick) = (hot, quick || engine == Engine::Check);
    ram.write(CODE, &GUEST).unwrap();
    ram.write(0xa000 + 16 * 0x40, &INTERRUPT).unwrap();
    ram.write(0xa000 + 16 * 6, &UNDEFINED).unwrap();
    for (n, v) in [(gpr::RBX, DATA), (8, LOG), (12, 60), (gpr::R11, 3), (gpr::RSP, STACK)] {
        cpu.hot.gpr[n] = v;
    }
    let exit = loop {
        match cpu.run() {
            Exit::Kicked => {}
            exit => break exit,
        }
    };
    assert_eq!((exit, cpu.hot.gpr[12]), (Exit::Halted, 0));
    let mut log = vec![0; 1 << 16];
    ram.read(LOG, &mut log).unwrap();
    (cpu.hot.gpr, platform.count.load(Ordering::SeqCst), log)
}

#[test]
fn the_guest_sees_the_same_time_whoever_executes_it() {
    for period in [1009, 97] {
        let wanted = run(Timed::new(period, u64::MAX, 0), Engine::Interpreter, 0, false);
        assert!(wanted.1 > 30_000, "{}", wanted.1);
        for (engine, hot, quick) in [
            (Engine::Interpreter, 0, false),
            (Engine::Translator, 0, false),
            (Engine::Translator, 12, false),
            (Engine::Translator, 0, true),
            (Engine::Check, 0, true),
        ] {
            for (most, break_off) in [(u64::MAX, 0), (u64::MAX, 3), (50, 0), (1, 0), (7, 5)] {
                let (gprs, count, log) = run(Timed::new(period, most, break_off), engine, hot, quick);
                let what =
                    format!("{engine:?} {hot} {quick}, period {period}, {most} at once, broken off every {break_off}");
                let differs = log.iter().zip(&wanted.2).position(|(a, b)| a != b);
                assert_eq!(differs, None, "{what}");
                assert_eq!((gprs, count), (wanted.0, wanted.1), "{what}");
            }
        }
    }
}

#[test]
fn every_repetition_counts_and_a_faulting_instruction_does_too() {
    for engine in [Engine::Interpreter, Engine::Translator] {
        let platform = Timed::new(1 << 40, u64::MAX, 0);
        let (mut cpu, ram) = counted(platform.clone(), engine);
        cpu.translator.hot = 0;
        // mov ecx, 1000; rep stosb; nop; ud2, whose handler is a HLT
        ram.write(CODE, &[0xb9, 0xe8, 3, 0, 0, 0xf3, 0xaa, 0x90, 0x0f, 0x0b]).unwrap();
        cpu.hot.gpr[gpr::RDI] = DATA;
        assert_eq!(cpu.run(), Exit::Halted);
        assert_eq!(platform.count.load(Ordering::SeqCst), 1 + 1000 + 1 + 1 + 1, "{engine:?}");
    }
}

#[test]
fn a_processor_whose_turn_it_is_not_runs_nothing() {
    let (mut cpu, _ram) = counted(Timed::new(1 << 40, 0, 0), Engine::Translator);
    assert_eq!(cpu.run(), Exit::Turn);
    assert_eq!(cpu.hot.gpr[gpr::RIP], CODE);
}
