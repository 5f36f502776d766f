//! The guest's own breakpoints of data and of ports (DR0 to DR3, DR7).

use super::support::{CODE, DATA, IDT, STACK, long_mode_with, make_flat, put64};
use crate::{
    Cpu, Engine, Exit,
    state::{cr, gpr},
};
use lockstep_memory::RamBlock;

/// Kinds of DR7.
const WRITE: u64 = 1;
const PORT: u64 = 2;
const ACCESS: u64 = 3;
/// Lengths of DR7.
const ONE: u64 = 0;
const EIGHT: u64 = 2;
const FOUR: u64 = 3;
/// Where the handler of vector `n` is, and that it has been left there.
const fn handler(n: u64) -> u64 {
    0xa000 + 16 * n + 1
}

/// All ways to run code: translated at once too.
const WAYS: [(Engine, u16); 3] = [(Engine::Interpreter, 0), (Engine::Translator, 12), (Engine::Translator, 0)];

struct Machine {
    cpu: Box<Cpu>,
    ram: RamBlock,
}

impl Machine {
    /// A machine that is about to run `code` with breakpoint 0.
    fn new((engine, hot): (Engine, u16), code: &[u8], (at, kind, len): (u64, u64, u64)) -> Self {
        let (mut cpu, ram) = long_mode_with(engine);
        cpu.translator.hot = hot;
        ram.write(CODE, code).unwrap();
        let mut r = cpu.registers();
        (r.dr[0], r.dr[7]) = (at, 0x401 | kind << 16 | len << 18);
        (r.gpr[gpr::RDI], r.gpr[gpr::RSI], r.gpr[gpr::RCX]) = (DATA, DATA + 0x100, 16);
        r.gpr[gpr::RBP] = STACK + 0x100;
        cpu.set_registers(&r);
        Self { cpu, ram }
    }

    /// The same for a breakpoint of ports, with CR4.DE.
    fn with_port(way: (Engine, u16), code: &[u8], port: u64, len: u64) -> Self {
        let mut this = Self::new(way, code, (port, PORT, len));
        let mut r = this.cpu.registers();
        r.cr4 |= cr::CR4_DE;
        (r.gpr[gpr::RDX], r.gpr[gpr::RSI]) = (0x60, DATA);
        this.cpu.set_registers(&r);
        this
    }

    /// Runs to a halt: where the debug exception returns to, if there was one, or none if another handler or the code's end came first.
    fn trap(&mut self) -> Option<u64> {
        assert_eq!(self.cpu.run(), Exit::Halted);
        if self.cpu.hot.gpr[gpr::RIP] != handler(1) {
            return None;
        }
        assert_eq!(self.cpu.dr[6] & 0xe00f, 1);
        let mut back = [0; 8];
        self.ram.read(self.cpu.hot.gpr[gpr::RSP], &mut back).unwrap();
        Some(u64::from_le_bytes(back))
    }
}

#[test]
fn what_instructions_push_is_seen() {
    let pushes: [(&[u8], &str); 9] = [
        (&[0x50, 0xf4], "push rax"),
        (&[0x6a, 7, 0xf4], "push 7"),
        (&[0xff, 0x37, 0xf4], "push [rdi]"),
        (&[0x9c, 0xf4], "pushfq"),
        (&[0x0f, 0xa0, 0xf4], "push fs"),
        (&[0xe8, 1, 0, 0, 0, 0xcc, 0xf4], "call"),
        (&[0xff, 0xd0], "call rax"),
        (&[0xff, 0x17], "call [rdi]"),
        (&[0xc8, 16, 0, 0, 0xf4], "enter 16, 0"),
    ];
    for way in WAYS {
        for (code, name) in pushes {
            let target = CODE + 0x200;
            let next = match name {
                "call" => CODE + 6,
                _ if name.starts_with("call") => target,
                _ => CODE + code.len() as u64 - 1,
            };
            let mut m = Machine::new(way, code, (STACK - 8, WRITE, EIGHT));
            m.ram.write(target, &[0xf4]).unwrap();
            put64(&m.ram, DATA, target);
            m.cpu.hot.gpr[gpr::RAX] = target;
            assert_eq!(m.trap(), Some(next), "{name} {way:?}");
            let mut m = Machine::new(way, code, (STACK - 7, ACCESS, ONE));
            m.ram.write(target, &[0xf4]).unwrap();
            put64(&m.ram, DATA, target);
            m.cpu.hot.gpr[gpr::RAX] = target;
            assert_eq!(m.trap(), Some(next), "a byte in the middle: {name} {way:?}");
            let mut m = Machine::new(way, &[0x90, 0xf4], (STACK - 8, ACCESS, EIGHT));
            assert_eq!(m.trap(), None);
        }
    }
}

#[test]
fn each_of_eight_pushed_registers_is_seen() {
    for way in WAYS {
        for i in 0..8 {
            // pusha; hlt
            let mut m = Machine::new(way, &[0x60, 0xf4], (STACK - 32 + 4 * i, WRITE, ONE));
            make_flat(&mut m.cpu);
            assert_eq!(m.trap(), Some(CODE + 1), "{i} {way:?}");
        }
        let mut m = Machine::new(way, &[0x60, 0xf4], (STACK - 33, WRITE, ONE));
        make_flat(&mut m.cpu);
        assert_eq!(m.trap(), None);
    }
}

#[test]
fn a_pop_reads_and_does_not_write() {
    for way in WAYS {
        for code in [&[0x58, 0xf4][..], &[0x9d, 0xf4], &[0xc9, 0xf4]] {
            for (kind, seen) in [(ACCESS, Some(CODE + 1)), (WRITE, None)] {
                let mut m = Machine::new(way, code, (STACK, kind, EIGHT));
                m.cpu.hot.gpr[gpr::RBP] = STACK;
                put64(&m.ram, STACK, 2);
                assert_eq!(m.trap(), seen, "{code:x?} {way:?}");
            }
        }
        // A return: to the HLT behind it.
        let mut m = Machine::new(way, &[0xc3, 0xf4], (STACK, ACCESS, EIGHT));
        put64(&m.ram, STACK, CODE + 1);
        assert_eq!(m.trap(), Some(CODE + 1));
    }
}

#[test]
fn a_repetition_stops_behind_the_element_that_was_watched() {
    // REP with STOSB, MOVSB; REPNE SCASB; REP LODSB; REP STOSQ
    let strings: [(&[u8], u64, u64); 5] = [
        (&[0xf3, 0xaa], WRITE, 1),
        (&[0xf3, 0xa4], WRITE, 1),
        (&[0xf2, 0xae], ACCESS, 1),
        (&[0xf3, 0xac], ACCESS, 1),
        (&[0xf3, 0x48, 0xab], WRITE, 8),
    ];
    for way in WAYS {
        for (code, kind, size) in strings {
            let lods = code[1] == 0xac;
            for element in [0, 1, 5, 14, 15] {
                let all = [code, &[0xf4]].concat();
                let at = if lods { DATA + 0x100 } else { DATA } + element * size;
                let mut m = Machine::new(way, &all, (at, kind, ONE));
                m.cpu.hot.gpr[gpr::RAX] = 0x55;
                let next = if element == 15 { code.len() as u64 } else { 0 };
                assert_eq!(m.trap(), Some(CODE + next), "element {element} of {code:x?}, {way:?}");
                assert_eq!(m.cpu.hot.gpr[gpr::RCX], 15 - element);
                let pointer = if lods { gpr::RSI } else { gpr::RDI };
                let start = if lods { DATA + 0x100 } else { DATA };
                assert_eq!(m.cpu.hot.gpr[pointer], start + (element + 1) * size);
            }
            let all = [code, &[0xf4]].concat();
            let mut m = Machine::new(way, &all, (DATA + 0x200, kind, EIGHT));
            m.cpu.hot.gpr[gpr::RAX] = 0x55;
            assert_eq!((m.trap(), m.cpu.hot.gpr[gpr::RCX]), (None, 0));
        }
        // One element each, both operands: movsq; cmpsb
        for (code, at, kind) in
            [(&[0x48, 0xa5][..], DATA, WRITE), (&[0x48, 0xa5], DATA + 0x100, ACCESS), (&[0xa6], DATA, ACCESS)]
        {
            let mut m = Machine::new(way, &[code, &[0xf4]].concat(), (at, kind, ONE));
            assert_eq!(m.trap(), Some(CODE + code.len() as u64), "{code:x?} {way:?}");
        }
    }
}

#[test]
fn a_loop_hits_each_time_and_goes_on_when_the_handler_returns() {
    for way in WAYS {
        // l: push rcx; add [rdi], rcx; pop rax; dec rcx; jnz l; hlt
        let code = [0x51, 0x48, 0x01, 0x0f, 0x58, 0x48, 0xff, 0xc9, 0x75, 0xf6, 0xf4];
        let mut m = Machine::new(way, &code, (DATA, WRITE, EIGHT));
        // The handler counts: inc r8; iretq
        m.ram.write(0xa000 + 16, &[0x49, 0xff, 0xc0, 0x48, 0xcf]).unwrap();
        put64(&m.ram, DATA, 0);
        m.cpu.hot.gpr[gpr::RCX] = 1000;
        m.cpu.hot.gpr[8] = 0;
        assert_eq!(m.trap(), None);
        assert_eq!((m.cpu.hot.gpr[gpr::RIP], m.cpu.hot.gpr[8]), (CODE + code.len() as u64, 1000), "{way:?}");
        let mut sum = [0; 8];
        m.ram.read(DATA, &mut sum).unwrap();
        assert_eq!(u64::from_le_bytes(sum), 500_500);
    }
}

#[test]
fn the_frame_of_an_exception_is_seen_before_its_handler_begins() {
    for way in WAYS {
        // ud2; int3
        for (code, vector) in [(&[0x0f, 0x0b][..], 6), (&[0xcc], 3)] {
            let mut m = Machine::new(way, code, (STACK - 8, WRITE, EIGHT));
            assert_eq!(m.trap(), Some(handler(vector) - 1), "{code:x?} {way:?}");
        }
    }
}

#[test]
fn an_instruction_that_faults_behind_its_access_is_not_reported() {
    for way in WAYS {
        // push [rax], from where nothing is mapped; movsq to there
        for code in [&[0x48, 0xa5, 0xf4][..], &[0x58, 0x8f, 0x00, 0xf4]] {
            let mut m = Machine::new(way, code, (DATA + 0x100, ACCESS, EIGHT));
            m.cpu.hot.gpr[gpr::RDI] = 1 << 40;
            m.cpu.hot.gpr[gpr::RAX] = 1 << 40;
            m.cpu.hot.gpr[gpr::RSP] = DATA + 0x100 - 8;
            put64(&m.ram, DATA + 0xf8, 1 << 40);
            // The frame of the page fault must not be what is seen.
            put64(&m.ram, IDT + 16 * 14, (0xa000 + 16 * 14) | 8 << 16 | 0x8e01 << 32);
            assert_eq!(m.trap(), None, "{code:x?} {way:?}");
            assert_eq!(m.cpu.hot.gpr[gpr::RIP], handler(14));
        }
    }
}

#[test]
fn loading_the_stack_segment_puts_the_trap_off_by_one_instruction() {
    for way in WAYS {
        // mov ss, [rdi]; nop; nop; hlt
        let mut m = Machine::new(way, &[0x8e, 0x17, 0x90, 0x90, 0xf4], (DATA, ACCESS, ONE));
        m.ram.write(DATA, &[16, 0]).unwrap();
        assert_eq!(m.trap(), Some(CODE + 3), "{way:?}");
    }
}

#[test]
fn a_breakpoint_that_the_guest_sets_or_clears_counts_at_once() {
    for way in WAYS {
        // mov [rdi], eax; mov dr7, rax; mov [rdi], eax; hlt
        let code = [0x89, 0x07, 0x0f, 0x23, 0xf8, 0x89, 0x07, 0xf4];
        let enabled = 0x401 | WRITE << 16 | EIGHT << 18;
        let mut m = Machine::new(way, &code, (DATA, WRITE, EIGHT));
        let mut r = m.cpu.registers();
        (r.dr[7], r.gpr[gpr::RAX]) = (0x400, enabled);
        m.cpu.set_registers(&r);
        assert_eq!(m.trap(), Some(CODE + 7), "{way:?}");
        let mut m = Machine::new(way, &code[2..], (DATA, WRITE, EIGHT));
        m.cpu.hot.gpr[gpr::RAX] = 0x400;
        assert_eq!(m.trap(), None, "{way:?}");
    }
}

/// IN and OUT of all sizes, INS and OUTS, at port 0x60, and how many ports they touch.
const PORT_ACCESSES: [(&[u8], u64); 12] = [
    (&[0xe4, 0x60], 1),
    (&[0x66, 0xe5, 0x60], 2),
    (&[0xe5, 0x60], 4),
    (&[0xec], 1),
    (&[0xed], 4),
    (&[0xe6, 0x60], 1),
    (&[0xe7, 0x60], 4),
    (&[0x66, 0xef], 2),
    (&[0x6c], 1),
    (&[0x6d], 4),
    (&[0x6e], 1),
    (&[0x66, 0x6f], 2),
];

#[test]
fn an_access_to_a_port_with_a_breakpoint_traps_when_it_is_done() {
    for way in WAYS {
        for (code, size) in PORT_ACCESSES {
            let next = CODE + code.len() as u64;
            let all = [code, &[0xf4]].concat();
            for (port, len, ports) in [(0x60, ONE, 1), (0x5f, ONE, 1), (0x61, ONE, 1), (0x63, FOUR, 4), (0x64, FOUR, 4)]
            {
                let first = port & !(ports - 1);
                let seen = first < 0x60 + size && 0x60 < first + ports;
                let mut m = Machine::with_port(way, &all, port, len);
                assert_eq!(m.trap(), seen.then_some(next), "{code:x?}, {port:#x} of {ports}, {way:?}");
            }
            // Not in use without CR4.DE, and no breakpoint of memory: mov eax, [0x60]
            let mut m = Machine::with_port(way, &all, 0x60, ONE);
            let mut r = m.cpu.registers();
            r.cr4 &= !cr::CR4_DE;
            m.cpu.set_registers(&r);
            assert_eq!(m.trap(), None, "{code:x?} {way:?}");
        }
        let mut m = Machine::with_port(way, &[0x8b, 0x04, 0x25, 0x60, 0, 0, 0, 0xf4], 0x60, ONE);
        assert_eq!(m.trap(), None, "{way:?}");
    }
}

#[test]
fn a_repeated_access_to_a_port_with_a_breakpoint_traps_at_each_element() {
    for way in WAYS {
        for code in [[0xf3, 0x6c, 0xf4], [0xf3, 0x6e, 0xf4]] {
            for (count, left, next) in [(16, 15, 0), (1, 0, 2)] {
                let mut m = Machine::with_port(way, &code, 0x60, ONE);
                m.cpu.hot.gpr[gpr::RCX] = count;
                assert_eq!((m.trap(), m.cpu.hot.gpr[gpr::RCX]), (Some(CODE + next), left), "{code:x?} {way:?}");
            }
            let mut m = Machine::with_port(way, &code, 0x60, ONE);
            m.cpu.hot.gpr[gpr::RCX] = 0;
            assert_eq!(m.trap(), None, "no element, {way:?}");
        }
    }
}

#[test]
fn a_loop_that_accesses_a_port_with_a_breakpoint_traps_each_time() {
    for way in WAYS {
        // l: out dx, al; in al, 0x61; dec rcx; jnz l; hlt
        let code = [0xee, 0xe4, 0x61, 0x48, 0xff, 0xc9, 0x75, 0xf8, 0xf4];
        let mut m = Machine::with_port(way, &code, 0x60, ONE);
        // The handler counts: inc r8; iretq
        m.ram.write(0xa000 + 16, &[0x49, 0xff, 0xc0, 0x48, 0xcf]).unwrap();
        m.cpu.hot.gpr[gpr::RCX] = 1000;
        m.cpu.hot.gpr[8] = 0;
        assert_eq!((m.trap(), m.cpu.hot.gpr[8]), (None, 1000), "{way:?}");
    }
}

#[test]
fn the_other_names_of_debug_registers_are_gone_with_debugging_extensions() {
    for way in WAYS {
        // mov rax, dr4; mov dr5, rax
        for code in [[0x0f, 0x21, 0xe0, 0xf4], [0x0f, 0x23, 0xe8, 0xf4]] {
            let mut m = Machine::with_port(way, &code, 0x60, ONE);
            m.cpu.hot.gpr[gpr::RAX] = 0x400;
            assert_eq!((m.trap(), m.cpu.hot.gpr[gpr::RIP]), (None, handler(6)), "{code:x?} {way:?}");
            let mut m = Machine::new(way, &code, (0x60, PORT, ONE));
            m.cpu.hot.gpr[gpr::RAX] = 0x400;
            assert_eq!((m.trap(), m.cpu.hot.gpr[gpr::RIP]), (None, CODE + 4), "{code:x?} {way:?}");
        }
    }
}
