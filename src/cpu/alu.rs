//! Arithmetic with flags, by the host's own instructions.

use std::arch::asm;

use crate::mem::Word;

/// Operations in the order of their encoding (Intel SDM volume 2, group 1); TEST is added.
#[allow(missing_docs)]
pub(crate) mod kind {
    pub const ADD: u8 = 0;
    pub const OR: u8 = 1;
    pub const ADC: u8 = 2;
    pub const SBB: u8 = 3;
    pub const AND: u8 = 4;
    pub const SUB: u8 = 5;
    pub const XOR: u8 = 6;
    pub const CMP: u8 = 7;
    pub const TEST: u8 = 8;
}

/// Shifts in the order of their encoding (group 2).
#[allow(missing_docs)]
pub(crate) mod shift {
    pub const ROL: u8 = 0;
    pub const ROR: u8 = 1;
    pub const SHL: u8 = 4;
    pub const SHR: u8 = 5;
    pub const SAR: u8 = 7;
}

/// What the integer widths can do. `cc` is [`Hot::cc`](crate::state::Hot).
pub(crate) trait Alu: Word {
    fn add(a: Self, b: Self, cc: &mut u16) -> Self;
    fn or(a: Self, b: Self, cc: &mut u16) -> Self;
    fn adc(a: Self, b: Self, cc: &mut u16) -> Self;
    fn sbb(a: Self, b: Self, cc: &mut u16) -> Self;
    fn and(a: Self, b: Self, cc: &mut u16) -> Self;
    fn sub(a: Self, b: Self, cc: &mut u16) -> Self;
    fn xor(a: Self, b: Self, cc: &mut u16) -> Self;
    fn imul(a: Self, b: Self, cc: &mut u16) -> Self;
    fn inc(a: Self, cc: &mut u16) -> Self;
    fn dec(a: Self, cc: &mut u16) -> Self;
    fn neg(a: Self, cc: &mut u16) -> Self;
    /// `count` is masked already and not 0.
    fn shift(kind: u8, a: Self, count: u8, cc: &mut u16) -> Self;
}

macro_rules! two {
    ($name:ident, $t:ty, $insn:literal, $class:ident) => {
        #[inline(always)]
        fn $name(a: $t, b: $t, cc: &mut u16) -> $t {
            let r: $t;
            let f: u16;
            // SAFETY: registers only.
            unsafe {
                asm!($insn, "lahf", "seto al", inout($class) a => r, in($class) b, out("ax") f, options(pure, nomem, nostack));
            }
            *cc = f;
            r
        }
    };
}
macro_rules! two_carry {
    ($name:ident, $t:ty, $insn:literal, $class:ident) => {
        #[inline(always)]
        fn $name(a: $t, b: $t, cc: &mut u16) -> $t {
            let r: $t;
            let f: u16;
            // SAFETY: registers only. CF is bit 8.
            unsafe {
                asm!("bt {2:e}, 8", $insn, "lahf", "seto al", inout($class) a => r, in($class) b, in(reg) u32::from(*cc), out("ax") f, options(pure, nomem, nostack));
            }
            *cc = f;
            r
        }
    };
}
macro_rules! one_carry {
    ($name:ident, $t:ty, $insn:literal, $class:ident) => {
        #[inline(always)]
        fn $name(a: $t, cc: &mut u16) -> $t {
            let r: $t;
            let f: u16;
            // SAFETY: registers only. CF is bit 8 and stays.
            unsafe {
                asm!("bt {1:e}, 8", $insn, "lahf", "seto al", inout($class) a => r, in(reg) u32::from(*cc), out("ax") f, options(pure, nomem, nostack));
            }
            *cc = f;
            r
        }
    };
}
macro_rules! shifts {
    ($a:ident, $count:ident, $cc:ident, $kind:ident, $t:ty, $class:ident, $( $k:path => $insn:literal ),*) => {
        match $kind {
            $( $k => {
                let r: $t;
                let f: u16;
                // SAFETY: registers only. Flags come in as they are: rotates leave some.
                unsafe {
                    asm!("add al, 127", "sahf", $insn, "lahf", "seto al", inout($class) $a => r, in("cl") $count,
                        inout("ax") *$cc => f, options(pure, nomem, nostack));
                }
                *$cc = f;
                r
            } )*
            _ => $a,
        }
    };
}
// `asm!` takes literals only, so each width is spelled out by this macro.
macro_rules! width {
    ($t:ty, $class:ident, $add:literal $or:literal $adc:literal $sbb:literal $and:literal $sub:literal $xor:literal
     $inc:literal $dec:literal $neg:literal $rol:literal $ror:literal $shl:literal $shr:literal $sar:literal, { $($imul:tt)* }) => {
        impl Alu for $t {
            two!(add, $t, $add, $class);
            two!(or, $t, $or, $class);
            two_carry!(adc, $t, $adc, $class);
            two_carry!(sbb, $t, $sbb, $class);
            two!(and, $t, $and, $class);
            two!(sub, $t, $sub, $class);
            two!(xor, $t, $xor, $class);
            one_carry!(inc, $t, $inc, $class);
            one_carry!(dec, $t, $dec, $class);
            one_carry!(neg, $t, $neg, $class);
            $($imul)*
            #[inline(always)]
            fn shift(kind: u8, a: Self, count: u8, cc: &mut u16) -> Self {
                shifts!(a, count, cc, kind, $t, $class, shift::ROL => $rol, shift::ROR => $ror, shift::SHL => $shl,
                    shift::SHR => $shr, shift::SAR => $sar)
            }
        }
    };
}
macro_rules! imul {
    ($t:ty, $insn:literal) => {
        #[inline(always)]
        fn imul(a: $t, b: $t, cc: &mut u16) -> $t {
            let r: $t;
            let f: u16;
            // SAFETY: registers only. Flags come in as they are: the undefined ones may stay.
            unsafe {
                asm!("add al, 127", "sahf", $insn, "lahf", "seto al", inout(reg) a => r, in(reg) b, inout("ax") *cc => f, options(pure, nomem, nostack));
            }
            *cc = f;
            r
        }
    };
}
width!(u8, reg_byte, "add {0}, {1}" "or {0}, {1}" "adc {0}, {1}" "sbb {0}, {1}" "and {0}, {1}" "sub {0}, {1}" "xor {0}, {1}"
    "inc {0}" "dec {0}" "neg {0}" "rol {0}, cl" "ror {0}, cl" "shl {0}, cl" "shr {0}, cl" "sar {0}, cl",
    { #[inline(always)] fn imul(a: u8, _b: u8, _cc: &mut u16) -> u8 { a } });
width!(u16, reg, "add {0:x}, {1:x}" "or {0:x}, {1:x}" "adc {0:x}, {1:x}" "sbb {0:x}, {1:x}" "and {0:x}, {1:x}" "sub {0:x}, {1:x}"
    "xor {0:x}, {1:x}" "inc {0:x}" "dec {0:x}" "neg {0:x}" "rol {0:x}, cl" "ror {0:x}, cl" "shl {0:x}, cl" "shr {0:x}, cl"
    "sar {0:x}, cl", { imul!(u16, "imul {0:x}, {1:x}"); });
width!(u32, reg, "add {0:e}, {1:e}" "or {0:e}, {1:e}" "adc {0:e}, {1:e}" "sbb {0:e}, {1:e}" "and {0:e}, {1:e}" "sub {0:e}, {1:e}"
    "xor {0:e}, {1:e}" "inc {0:e}" "dec {0:e}" "neg {0:e}" "rol {0:e}, cl" "ror {0:e}, cl" "shl {0:e}, cl" "shr {0:e}, cl"
    "sar {0:e}, cl", { imul!(u32, "imul {0:e}, {1:e}"); });
width!(u64, reg, "add {0:r}, {1:r}" "or {0:r}, {1:r}" "adc {0:r}, {1:r}" "sbb {0:r}, {1:r}" "and {0:r}, {1:r}" "sub {0:r}, {1:r}"
    "xor {0:r}, {1:r}" "inc {0:r}" "dec {0:r}" "neg {0:r}" "rol {0:r}, cl" "ror {0:r}, cl" "shl {0:r}, cl" "shr {0:r}, cl"
    "sar {0:r}, cl", { imul!(u64, "imul {0:r}, {1:r}"); });

/// One of the nine of [`kind`].
#[inline(always)]
pub(crate) fn apply<T: Alu, const K: u8>(a: T, b: T, cc: &mut u16) -> T {
    match K {
        kind::ADD => T::add(a, b, cc),
        kind::OR => T::or(a, b, cc),
        kind::ADC => T::adc(a, b, cc),
        kind::SBB => T::sbb(a, b, cc),
        kind::AND | kind::TEST => T::and(a, b, cc),
        kind::SUB | kind::CMP => T::sub(a, b, cc),
        _ => T::xor(a, b, cc),
    }
}

/// Whether a condition of the architecture's encoding holds (Intel SDM volume 1, appendix B).
#[inline(always)]
pub(crate) fn condition(code: u8, cc: u16) -> bool {
    const CF: u16 = 1 << 8;
    const PF: u16 = 4 << 8;
    const ZF: u16 = 0x40 << 8;
    const SF: u16 = 0x80 << 8;
    const OF: u16 = 1;
    let less = (cc & SF != 0) != (cc & OF != 0);
    let base = match code >> 1 {
        0 => cc & OF != 0,
        1 => cc & CF != 0,
        2 => cc & ZF != 0,
        3 => cc & (CF | ZF) != 0,
        4 => cc & SF != 0,
        5 => cc & PF != 0,
        6 => less,
        _ => less || cc & ZF != 0,
    };
    base ^ (code & 1 != 0)
}
