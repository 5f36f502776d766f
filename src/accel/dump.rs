//! Registers as text, in QEMU's form: for `info registers` and the log.

use std::fmt::Write;

use lockstep_cpu::Registers;

use crate::{
    CpuState,
    cpu_state::{MpState, Segment, msr, seg},
};

/// What goes into the text beside the registers of the integer unit and of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// x87 and SSE.
    pub fpu: bool,
    /// In which form the arithmetic flags are kept. QEMU's log has that; here it is always that of the flags.
    pub flags: bool,
}

/// The registers of a software CPU, as its log has them.
pub(crate) fn for_log(registers: &Registers, fpu: bool) -> String {
    text(&crate::tcg::to_state(registers), Parts { fpu, flags: true })
}

/// The registers of a vCPU.
pub fn text(s: &CpuState, parts: Parts) -> String {
    let mut out = String::new();
    let long = s.msr(msr::EFER) & 1 << 10 != 0;
    let code64 = long && s.segs[seg::CS].flags & 1 << 21 != 0;
    let flag = |bit: u32, name: char| if s.rflags >> bit & 1 != 0 { name } else { '-' };
    let flags: String = [(11, 'O'), (10, 'D'), (7, 'S'), (6, 'Z'), (4, 'A'), (2, 'P'), (0, 'C')]
        .map(|(b, n)| flag(b, n))
        .iter()
        .collect();
    let cpl = s.segs[seg::SS].flags >> 13 & 3;
    let halted = u8::from(s.mp_state == MpState::Halted);
    let tail = format!(
        "[{flags}] CPL={cpl} II={} A20=1 SMM={} HLT={halted}",
        u8::from(s.events.shadow),
        u8::from(s.events.smm)
    );
    let r = &s.regs;
    if code64 {
        let names = ["RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP"];
        let order = [0, 3, 1, 2, 6, 7, 5, 4];
        for (i, (name, at)) in names.iter().zip(order).enumerate() {
            let _ = write!(out, "{name}={:016x}{}", r[at], if i % 4 == 3 { '\n' } else { ' ' });
        }
        for (i, value) in r.iter().enumerate().skip(8) {
            let _ = write!(out, "{:<3}={value:016x}{}", format!("R{i}"), if i % 4 == 3 { '\n' } else { ' ' });
        }
        let _ = writeln!(out, "RIP={:016x} RFL={:08x} {tail}", s.rip, s.rflags);
    } else {
        let names = ["EAX", "EBX", "ECX", "EDX", "ESI", "EDI", "EBP", "ESP"];
        let order = [0, 3, 1, 2, 6, 7, 5, 4];
        for (i, (name, at)) in names.iter().zip(order).enumerate() {
            let _ = write!(out, "{name}={:08x}{}", r[at] as u32, if i % 4 == 3 { '\n' } else { ' ' });
        }
        let _ = writeln!(out, "EIP={:08x} EFL={:08x} {tail}", s.rip as u32, s.rflags);
    }
    let address = |value: u64| if long { format!("{value:016x}") } else { format!("{:08x}", value as u32) };
    for (name, segment) in
        ["ES ", "CS ", "SS ", "DS ", "FS ", "GS "].iter().zip(&s.segs).chain([(&"LDT", &s.ldt), (&"TR ", &s.tr)])
    {
        let _ = writeln!(
            out,
            "{name}={:04x} {} {:08x} {:08x}{}",
            segment.selector,
            address(segment.base),
            segment.limit,
            segment.flags,
            if s.cr0 & 1 == 0 { String::new() } else { kind(segment, long) }
        );
    }
    let _ = writeln!(out, "GDT=     {} {:08x}", address(s.gdt.base), s.gdt.limit);
    let _ = writeln!(out, "IDT=     {} {:08x}", address(s.idt.base), s.idt.limit);
    let _ = writeln!(out, "CR0={:08x} CR2={} CR3={} CR4={:08x}", s.cr0, address(s.cr2), address(s.cr3), s.cr4);
    let d = &s.dr;
    let _ = writeln!(out, "DR0={:016x} DR1={:016x} DR2={:016x} DR3={:016x} ", d[0], d[1], d[2], d[3]);
    let _ = writeln!(out, "DR6={:016x} DR7={:016x}", d[6], d[7]);
    if parts.flags {
        let arithmetic = s.rflags & 0x8d5;
        let _ = writeln!(out, "CCS={} CCD={} CCO=EFLAGS", address(arithmetic), address(0));
    }
    let _ = writeln!(out, "EFER={:016x}", s.msr(msr::EFER));
    if parts.fpu {
        fpu(&mut out, s, code64);
    }
    out
}

fn fpu(out: &mut String, s: &CpuState, code64: bool) {
    let f = &s.fpu;
    let _ = writeln!(
        out,
        "FCW={:04x} FSW={:04x} [ST={}] FTW={:02x} MXCSR={:08x}",
        f.fcw,
        f.fsw & !0x3800,
        f.fsw >> 11 & 7,
        f.ftw,
        f.mxcsr
    );
    for (i, st) in f.st.iter().enumerate() {
        let mantissa = u64::from_le_bytes(std::array::from_fn(|b| st[b]));
        let exponent = u16::from_le_bytes([st[8], st[9]]);
        let _ = write!(out, "FPR{i}={mantissa:016x} {exponent:04x}{}", if i % 2 == 1 { '\n' } else { ' ' });
    }
    let quad = |ymm: &[u8; 32], at: usize| u64::from_le_bytes(std::array::from_fn(|b| ymm[at + b]));
    for (i, ymm) in f.ymm.iter().enumerate().take(if code64 { 16 } else { 8 }) {
        let _ =
            write!(out, "XMM{i:02}={:016x} {:016x}{}", quad(ymm, 8), quad(ymm, 0), if i % 2 == 1 { '\n' } else { ' ' });
    }
}

/// The types of system descriptors outside long mode, and in it.
const SYSTEM: [[&str; 16]; 2] = [
    [
        "Reserved",
        "TSS16-avl",
        "LDT",
        "TSS16-busy",
        "CallGate16",
        "TaskGate",
        "IntGate16",
        "TrapGate16",
        "Reserved",
        "TSS32-avl",
        "Reserved",
        "TSS32-busy",
        "CallGate32",
        "Reserved",
        "IntGate32",
        "TrapGate32",
    ],
    [
        "<hiword>",
        "Reserved",
        "LDT",
        "Reserved",
        "Reserved",
        "Reserved",
        "Reserved",
        "Reserved",
        "Reserved",
        "TSS64-avl",
        "Reserved",
        "TSS64-busy",
        "CallGate64",
        "Reserved",
        "IntGate64",
        "TrapGate64",
    ],
];

/// What a descriptor's type says, of segments that are present.
fn kind(s: &Segment, long: bool) -> String {
    if s.flags & 1 << 15 == 0 {
        return String::new();
    }
    let dpl = s.flags >> 13 & 3;
    let bit = |n: u32| s.flags >> n & 1 != 0;
    if !bit(12) {
        return format!(" DPL={dpl} {}", SYSTEM[usize::from(long)][(s.flags >> 8 & 15) as usize]);
    }
    if bit(11) {
        let size = if bit(21) {
            "CS64"
        } else if bit(22) {
            "CS32"
        } else {
            "CS16"
        };
        format!(
            " DPL={dpl} {size} [{}{}{}]",
            if bit(10) { 'C' } else { '-' },
            if bit(9) { 'R' } else { '-' },
            if bit(8) { 'A' } else { '-' }
        )
    } else {
        let size = if bit(22) || long { "DS  " } else { "DS16" };
        format!(
            " DPL={dpl} {size} [{}{}{}]",
            if bit(10) { 'E' } else { '-' },
            if bit(9) { 'W' } else { '-' },
            if bit(8) { 'A' } else { '-' }
        )
    }
}
