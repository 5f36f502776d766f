//! The registers as gdb sees them. Their numbers are QEMU's; their features are gdb's (`features/i386`), so that gdb knows them for what
//! they are.

use std::{fmt::Write, sync::OnceLock};

use lockstep_accel::{CpuState, cpu_state::msr};

/// What a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A position in `CpuState::regs`.
    General(usize),
    Rip,
    Flags,
    /// A position in `CpuState::segs`.
    Selector(usize),
    Base(usize),
    KernelGs,
    Cr(u8),
    Efer,
    St(usize),
    /// Control, status, tags, instruction segment and offset, operand segment and offset, opcode.
    Float(u8),
    Xmm(usize),
    Mxcsr,
}

struct Register {
    name: String,
    bits: u16,
    /// Type in the description.
    ty: &'static str,
    feature: &'static str,
    kind: Kind,
}

const CORE: &str = "org.gnu.gdb.i386.core";
const SSE: &str = "org.gnu.gdb.i386.sse";
const SEGMENTS: &str = "org.gnu.gdb.i386.segments";
const SYSTEM: &str = "org.qemu.gdb.i386.sys";

/// All registers, by number.
fn table() -> &'static [Register] {
    static TABLE: OnceLock<Vec<Register>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut all = vec![];
        let mut add = |name: &str, bits, ty, feature, kind| {
            all.push(Register { name: name.to_owned(), bits, ty, feature, kind });
        };
        for (name, at) in ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"].iter().zip([0, 3, 1, 2, 6, 7, 5, 4])
        {
            let ty = if matches!(at, 4 | 5) { "data_ptr" } else { "int64" };
            add(name, 64, ty, CORE, Kind::General(at));
        }
        for n in 8..16 {
            add(&format!("r{n}"), 64, "int64", CORE, Kind::General(n));
        }
        add("rip", 64, "code_ptr", CORE, Kind::Rip);
        add("eflags", 32, "x64_eflags", CORE, Kind::Flags);
        for (name, at) in ["cs", "ss", "ds", "es", "fs", "gs"].iter().zip([1, 2, 3, 0, 4, 5]) {
            add(name, 32, "int32", CORE, Kind::Selector(at));
        }
        add("fs_base", 64, "int", SEGMENTS, Kind::Base(4));
        add("gs_base", 64, "int", SEGMENTS, Kind::Base(5));
        add("k_gs_base", 64, "int64", SYSTEM, Kind::KernelGs);
        for (name, ty, n) in [
            ("cr0", "x64_cr0", 0),
            ("cr2", "int64", 2),
            ("cr3", "x64_cr3", 3),
            ("cr4", "x64_cr4", 4),
            ("cr8", "int64", 8),
        ] {
            add(name, 64, ty, SYSTEM, Kind::Cr(n));
        }
        add("efer", 64, "x64_efer", SYSTEM, Kind::Efer);
        for n in 0..8 {
            add(&format!("st{n}"), 80, "i387_ext", CORE, Kind::St(n));
        }
        for (name, n) in ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"].iter().zip(0..) {
            add(name, 32, "int", CORE, Kind::Float(n));
        }
        for n in 0..16 {
            add(&format!("xmm{n}"), 128, "vec128", SSE, Kind::Xmm(n));
        }
        add("mxcsr", 32, "x64_mxcsr", SSE, Kind::Mxcsr);
        all
    })
}

/// Bits of the registers that have names, as (type, bytes, fields), from the manuals.
type Flags = (&'static str, u8, &'static [(&'static str, u8, u8)]);

#[rustfmt::skip]
static FLAGS: &[(&str, Flags)] = &[
    (CORE, ("x64_eflags", 4, &[
        ("CF", 0, 0), ("PF", 2, 2), ("AF", 4, 4), ("ZF", 6, 6), ("SF", 7, 7), ("TF", 8, 8), ("IF", 9, 9), ("DF", 10, 10),
        ("OF", 11, 11), ("IOPL", 12, 13), ("NT", 14, 14), ("RF", 16, 16), ("VM", 17, 17), ("AC", 18, 18), ("VIF", 19, 19),
        ("VIP", 20, 20), ("ID", 21, 21),
    ])),
    (SYSTEM, ("x64_cr0", 8, &[
        ("PE", 0, 0), ("MP", 1, 1), ("EM", 2, 2), ("TS", 3, 3), ("ET", 4, 4), ("NE", 5, 5), ("WP", 16, 16), ("AM", 18, 18), ("NW", 29, 29),
        ("CD", 30, 30), ("PG", 31, 31),
    ])),
    (SYSTEM, ("x64_cr3", 8, &[("PCID", 0, 11), ("PDBR", 12, 63)])),
    (SYSTEM, ("x64_cr4", 8, &[
        ("VME", 0, 0), ("PVI", 1, 1), ("TSD", 2, 2), ("DE", 3, 3), ("PSE", 4, 4), ("PAE", 5, 5), ("MCE", 6, 6), ("PGE", 7, 7), ("PCE", 8, 8),
        ("OSFXSR", 9, 9), ("OSXMMEXCPT", 10, 10), ("UMIP", 11, 11), ("LA57", 12, 12), ("VMXE", 13, 13), ("SMXE", 14, 14),
        ("FSGSBASE", 16, 16), ("PCIDE", 17, 17), ("OSXSAVE", 18, 18), ("SMEP", 20, 20), ("SMAP", 21, 21), ("PKE", 22, 22),
    ])),
    (SYSTEM, ("x64_efer", 8, &[
        ("SCE", 0, 0), ("LME", 8, 8), ("LMA", 10, 10), ("NXE", 11, 11), ("SVME", 12, 12), ("LMSLE", 13, 13), ("FFXSR", 14, 14), ("TCE", 15, 15),
    ])),
    (SSE, ("x64_mxcsr", 4, &[
        ("FZ", 15, 15), ("PM", 12, 12), ("UM", 11, 11), ("OM", 10, 10), ("ZM", 9, 9), ("DM", 8, 8), ("IM", 7, 7), ("DAZ", 6, 6), ("PE", 5, 5), ("UE", 4, 4),
        ("OE", 3, 3), ("ZE", 2, 2), ("DE", 1, 1), ("IE", 0, 0),
    ])),
];

/// Element types of a vector register: name, type, how many.
#[rustfmt::skip]
static VECTORS: [(&str, &str, u8, &str); 6] = [
    ("v4f", "ieee_single", 4, "v4_float"), ("v2d", "ieee_double", 2, "v2_double"), ("v16i8", "int8", 16, "v16_int8"),
    ("v8i16", "int16", 8, "v8_int16"), ("v4i32", "int32", 4, "v4_int32"), ("v2i64", "int64", 2, "v2_int64"),
];

/// The target's description.
pub fn description() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(features)
}

fn features() -> String {
    let mut out = String::from("<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>");
    out.push_str("<architecture>i386:x86-64</architecture>\n");
    for feature in [CORE, SEGMENTS, SYSTEM, SSE] {
        let _ = writeln!(out, "<feature name=\"{feature}\">");
        for (_, (name, bytes, fields)) in FLAGS.iter().filter(|(f, _)| *f == feature) {
            let _ = writeln!(out, "<flags id=\"{name}\" size=\"{bytes}\">");
            // gdb shows the last ones first.
            for (field, first, last) in fields.iter().rev() {
                let _ = writeln!(out, "<field name=\"{field}\" start=\"{first}\" end=\"{last}\"/>");
            }
            out.push_str("</flags>\n");
        }
        if feature == SSE {
            for (name, of, count, _) in VECTORS {
                let _ = writeln!(out, "<vector id=\"{name}\" type=\"{of}\" count=\"{count}\"/>");
            }
            out.push_str("<union id=\"vec128\">\n");
            for (ty, _, _, field) in VECTORS {
                let _ = writeln!(out, "<field name=\"{field}\" type=\"{ty}\"/>");
            }
            out.push_str("<field name=\"uint128\" type=\"uint128\"/>\n</union>\n");
        }
        for (n, r) in table().iter().enumerate().filter(|(_, r)| r.feature == feature) {
            let group = match r.kind {
                Kind::Float(_) => " group=\"float\"",
                Kind::Mxcsr => " group=\"vector\"",
                _ => "",
            };
            let (name, bits, ty) = (&r.name, r.bits, r.ty);
            let _ = writeln!(out, "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{ty}\" regnum=\"{n}\"{group}/>");
        }
        out.push_str("</feature>\n");
    }
    out.push_str("</target>\n");
    out
}

/// How many registers there are.
pub fn count() -> usize {
    table().len()
}

/// Bytes of a register, if there is one of this number.
pub fn size(number: usize) -> Option<usize> {
    table().get(number).map(|r| usize::from(r.bits / 8))
}

/// The value of a register, if there is one of this number.
pub fn read(s: &CpuState, number: usize) -> Option<Vec<u8>> {
    let register = table().get(number)?;
    let value = match register.kind {
        Kind::St(n) => return Some(s.fpu.st[n].to_vec()),
        Kind::Xmm(n) => return Some(s.fpu.ymm[n][..16].to_vec()),
        Kind::General(n) => s.regs[n],
        Kind::Rip => s.rip,
        Kind::Flags => s.rflags,
        Kind::Selector(n) => s.segs[n].selector.into(),
        Kind::Base(n) => s.segs[n].base,
        Kind::KernelGs => s.msr(msr::KERNEL_GS_BASE),
        Kind::Cr(0) => s.cr0,
        Kind::Cr(2) => s.cr2,
        Kind::Cr(3) => s.cr3,
        Kind::Cr(4) => s.cr4,
        Kind::Cr(_) => s.cr8,
        Kind::Efer => s.msr(msr::EFER),
        Kind::Float(0) => s.fpu.fcw.into(),
        Kind::Float(1) => s.fpu.fsw.into(),
        Kind::Float(2) => full_tags(s).into(),
        // In 64-bit form there are no segments, the offsets are whole pointers.
        Kind::Float(3) => s.fpu.fip >> 32,
        Kind::Float(4) => s.fpu.fip & 0xffff_ffff,
        Kind::Float(5) => s.fpu.fdp >> 32,
        Kind::Float(6) => s.fpu.fdp & 0xffff_ffff,
        Kind::Float(_) => s.fpu.fop.into(),
        Kind::Mxcsr => s.fpu.mxcsr.into(),
    };
    Some(value.to_le_bytes()[..usize::from(register.bits / 8)].to_vec())
}

/// Two bits a physical register: valid, zero, special, empty (Intel SDM volume 1, 8.1.7).
fn full_tags(s: &CpuState) -> u16 {
    let top = usize::from(s.fpu.fsw >> 11 & 7);
    (0..8).fold(0, |tags, n| {
        let st = &s.fpu.st[(n + 8 - top) % 8];
        let exponent = u16::from_le_bytes([st[8], st[9]]) & 0x7fff;
        let tag = match (s.fpu.ftw >> n & 1, exponent) {
            (0, _) => 3,
            (_, 0) if st[..8] == [0; 8] => 1,
            (_, 0 | 0x7fff) => 2,
            _ if st[7] & 0x80 == 0 => 2,
            _ => 0,
        };
        tags | tag << (2 * n)
    })
}

/// Sets a register; `value` has its size. What the guest could not set either (CR0, EFER and their like) is cut to what
/// keeps the processor in a possible state by the engine.
pub fn write(s: &mut CpuState, number: usize, value: &[u8]) {
    let Some(register) = table().get(number) else { return };
    let mut bytes = [0; 8];
    let n = value.len().min(8);
    bytes[..n].copy_from_slice(&value[..n]);
    let word = u64::from_le_bytes(bytes);
    match register.kind {
        Kind::St(n) if value.len() == 10 => s.fpu.st[n].copy_from_slice(value),
        Kind::Xmm(n) if value.len() == 16 => {
            s.fpu.ymm[n][..16].copy_from_slice(value);
            s.fpu.xstate_bv |= 2;
        }
        Kind::St(_) | Kind::Xmm(_) => {}
        Kind::General(n) => s.regs[n] = word,
        Kind::Rip => s.rip = word,
        Kind::Flags => s.rflags = word & 0x3f_7fd5 | 2,
        Kind::Selector(n) => {
            s.segs[n].selector = word as u16;
            // A selector is the segment in these modes only.
            if s.cr0 & 1 == 0 || s.rflags >> 17 & 1 != 0 {
                s.segs[n].base = (word & 0xffff) << 4;
            }
        }
        Kind::Base(n) => s.segs[n].base = word,
        Kind::KernelGs => s.set_msr(msr::KERNEL_GS_BASE, word),
        Kind::Cr(0) => s.cr0 = word,
        Kind::Cr(2) => s.cr2 = word,
        Kind::Cr(3) => s.cr3 = word,
        Kind::Cr(4) => s.cr4 = word,
        Kind::Cr(_) => s.cr8 = word & 15,
        Kind::Efer => s.set_msr(msr::EFER, word),
        Kind::Float(0) => s.fpu.fcw = word as u16,
        Kind::Float(1) => s.fpu.fsw = word as u16,
        Kind::Float(2) => s.fpu.ftw = (0..8).fold(0, |tags, n| tags | u8::from(word >> (2 * n) & 3 != 3) << n),
        Kind::Float(3) => s.fpu.fip = s.fpu.fip & 0xffff_ffff | word << 32,
        Kind::Float(4) => s.fpu.fip = s.fpu.fip & !0xffff_ffff | word,
        Kind::Float(5) => s.fpu.fdp = s.fpu.fdp & 0xffff_ffff | word << 32,
        Kind::Float(6) => s.fpu.fdp = s.fpu.fdp & !0xffff_ffff | word,
        Kind::Float(_) => s.fpu.fop = word as u16 & 0x7ff,
        Kind::Mxcsr => s.fpu.mxcsr = word as u32 & 0xffff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes_are_qemus() {
        assert_eq!(count(), 66);
        assert_eq!((0..count()).filter_map(size).sum::<usize>(), 608);
        let names: Vec<_> = [7, 16, 17, 18, 24, 27, 33, 41, 49, 65].map(|n| table()[n].name.as_str()).into();
        assert_eq!(names, ["rsp", "rip", "eflags", "cs", "fs_base", "cr0", "st0", "fctrl", "xmm0", "mxcsr"]);
    }

    #[test]
    fn what_is_written_is_read() {
        let mut s = CpuState::default();
        for n in 0..count() {
            let small =
                matches!(table()[n].kind, Kind::Cr(8) | Kind::Flags | Kind::Float(_) | Kind::Selector(_) | Kind::Mxcsr);
            let mut value = vec![if small { 0 } else { 0x11 }; size(n).unwrap()];
            value[0] = 7;
            write(&mut s, n, &value);
            if table()[n].kind != Kind::Float(2) {
                assert_eq!(read(&s, n), Some(value), "{}", table()[n].name);
            }
            write(&mut s, n, &[]);
        }
        assert_eq!(read(&CpuState::default(), 43), Some(vec![0xff, 0xff, 0, 0]), "all empty");
    }
}
