//! A local APIC as text, in QEMU's form (`info lapic`).

use std::fmt::Write;

/// The local vectors by the offset of their register: the timer comes last.
const VECTORS: [(&str, u64); 6] =
    [("LVT0", 0x350), ("LVT1", 0x360), ("LVTPC", 0x340), ("LVTERR", 0x370), ("LVTTHMR", 0x330), ("LVTT", TIMER)];
const TIMER: u64 = 0x320;
const DELIVERY: [&str; 8] = ["Fixed", "LowPri", "SMI", "", "NMI", "INIT", "SIPI", "ExtINT"];
const NMI: u32 = 4;
const MODES: [&str; 4] = ["one-shot", "periodic", "tsc-deadline", ""];
const SHORTHANDS: [&str; 4] = ["no-shorthand", "self", "all-self", "all"];
const FLAT: u32 = 0xf;

/// What `info lapic` prints of CPU `cpu`, whose register page `read` reads: 32 bits at multiples of 16.
pub fn text(cpu: u32, x2apic: bool, read: impl Fn(u64) -> u32) -> String {
    let mut out = format!("dumping local APIC state for CPU {cpu:<2}\n\n");
    for (name, at) in VECTORS {
        out += &vector(name, read(at), at == TIMER);
    }
    let divide = read(0x3e0);
    let shift = ((divide & 3 | divide >> 1 & 4) + 1) & 7;
    let _ = writeln!(
        out,
        "Timer\t DCR={divide:#x} (divide by {}) initial_count = {} current_count = {}",
        1 << shift,
        read(0x380),
        read(0x390)
    );
    let spurious = read(0xf0);
    let _ = writeln!(
        out,
        "SPIV\t {spurious:#010x} APIC {}, focus={}, spurious vec {}",
        if spurious >> 8 & 1 != 0 { "enabled" } else { "disabled" },
        if spurious >> 9 & 1 != 0 { "on" } else { "off" },
        spurious & 0xff
    );
    let (low, high, format) = (read(0x300), read(0x310), read(0xe0) >> 28);
    let logical = low >> 11 & 1 != 0;
    let shorthand = (low >> 18 & 3) as usize;
    let _ = writeln!(
        out,
        "ICR\t {low:#010x} {} {} {} {}",
        if logical { "logical" } else { "physical" },
        if low >> 15 & 1 != 0 { "level" } else { "edge" },
        if low >> 14 & 1 != 0 { "assert" } else { "de-assert" },
        SHORTHANDS[shorthand]
    );
    let _ = write!(out, "ICR2\t {high:#010x}");
    if shorthand == 0 {
        out += &destination(high, logical, format, x2apic);
    }
    let _ = writeln!(out, "\nESR\t {:#010x}", read(0x280));
    out += &interrupts("ISR", 0x100, &read);
    out += &interrupts("IRR", 0x200, &read);
    let logical_id = if x2apic { read(0xd0) } else { read(0xd0) >> 24 };
    let _ =
        write!(out, "\nAPR 0x{:02x} TPR 0x{:02x} DFR 0x{format:02x} LDR 0x{logical_id:02x}", read(0x90), read(0x80));
    if format == 0 {
        let _ = write!(out, "(cluster {}: id {})", logical_id >> 4, logical_id & 15);
    }
    let _ = writeln!(out, " PPR 0x{:02x}", read(0xa0));
    out
}

fn vector(name: &str, value: u32, timer: bool) -> String {
    let delivery = value >> 8 & 7;
    let mut line = format!(
        "{name}\t {value:#010x} {} {:<5} {:<6} {:<7} {:<12} {:<6}",
        if value >> 13 & 1 != 0 { "active-lo" } else { "active-hi" },
        if value >> 15 & 1 != 0 { "level" } else { "edge" },
        if value >> 16 & 1 != 0 { "masked" } else { "" },
        if value >> 12 & 1 != 0 { "pending" } else { "" },
        if timer { MODES[(value >> 17 & 3) as usize] } else { "" },
        DELIVERY[delivery as usize]
    );
    if delivery != NMI {
        let _ = write!(line, " (vec {})", value & 0xff);
    }
    line + "\n"
}

fn destination(high: u32, logical: bool, format: u32, x2apic: bool) -> String {
    let id = if x2apic { high } else { high >> 24 };
    let kind = if x2apic { "X2APIC" } else { "APIC" };
    match (logical, format) {
        (false, _) => format!(" cpu {id} ({kind} ID)"),
        (true, _) if x2apic => format!(" cluster {} mask {:016b} (X2APIC ID)", id >> 16, id & 0xffff),
        (true, FLAT) => format!(" mask {id:08b} (APIC ID)"),
        (true, _) => format!(" cluster {} mask {:04b} (APIC ID)", id >> 4, id & 15),
    }
}

fn interrupts(name: &str, at: u64, read: &impl Fn(u64) -> u32) -> String {
    const LEVELS: u64 = 0x180;
    let mut line = format!("{name}\t ");
    let bit = |at: u64, n: u64| read(at + n / 32 * 16) >> (n % 32) & 1 != 0;
    let found: Vec<_> = (0..256).filter(|&n| bit(at, n)).collect();
    if found.is_empty() {
        line += "(none)";
    }
    for n in found {
        let _ = write!(line, "{n}{} ", if bit(LEVELS, n) { "(level)" } else { "" });
    }
    line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_cpu_is_shown_as_qemu_does() {
        let registers = |at: u64| match at {
            0x350 => 0x8700,
            0x360 => 0x8400,
            0x320 => 0x2_10ef,
            0x330 | 0x340 | 0x370 => 0x1_0000,
            0x3e0 => 3,
            0x380 => 1000,
            0x390 => 7,
            0xf0 => 0x1ff,
            0x300 => 0x4610,
            0x310 => 0x0200_0000,
            0xe0 => 0xffff_ffff,
            0xd0 => 0x0100_0000,
            0x110 => 1 << 4,
            0x190 => 1 << 4,
            0x220 => 1 << 1,
            _ => 0,
        };
        let expected = "dumping local APIC state for CPU 1 \n\n\
            LVT0\t 0x00008700 active-hi level                             ExtINT (vec 0)\n\
            LVT1\t 0x00008400 active-hi level                             NMI   \n\
            LVTPC\t 0x00010000 active-hi edge  masked                      Fixed  (vec 0)\n\
            LVTERR\t 0x00010000 active-hi edge  masked                      Fixed  (vec 0)\n\
            LVTTHMR\t 0x00010000 active-hi edge  masked                      Fixed  (vec 0)\n\
            LVTT\t 0x000210ef active-hi edge         pending periodic     Fixed  (vec 239)\n\
            Timer\t DCR=0x3 (divide by 16) initial_count = 1000 current_count = 7\n\
            SPIV\t 0x000001ff APIC enabled, focus=off, spurious vec 255\n\
            ICR\t 0x00004610 physical edge assert no-shorthand\n\
            ICR2\t 0x02000000 cpu 2 (APIC ID)\n\
            ESR\t 0x00000000\n\
            ISR\t 36(level) \n\
            IRR\t 65 \n\n\
            APR 0x00 TPR 0x00 DFR 0x0f LDR 0x01 PPR 0x00\n";
        assert_eq!(text(1, false, registers), expected);
    }
}
