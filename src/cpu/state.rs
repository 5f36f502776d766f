//! The registers of one processor, laid out so that generated code can reach them.

/// Positions of general registers in [`Hot::gpr`].
#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R11: usize = 11;
    /// Always zero: a missing base or index.
    pub const ZERO: usize = 16;
    /// The instruction pointer; while a block runs, that of its first instruction.
    pub const RIP: usize = 17;
}

/// Positions of segment registers in [`Cpu::segs`](crate::Cpu), the architecture's encoding.
#[allow(missing_docs)]
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// Bits of `RFLAGS` (Intel SDM volume 1, 3.4.3).
#[allow(missing_docs)]
pub mod flag {
    pub const CF: u64 = 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// What arithmetic sets.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Bits of control registers and of EFER (Intel SDM volume 3, 2.5; AMD APM volume 2, 3.1).
#[allow(missing_docs)]
pub mod cr {
    pub const CR0_PE: u64 = 1;
    pub const CR0_MP: u64 = 1 << 1;
    pub const CR0_EM: u64 = 1 << 2;
    pub const CR0_TS: u64 = 1 << 3;
    pub const CR0_ET: u64 = 1 << 4;
    pub const CR0_NE: u64 = 1 << 5;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_AM: u64 = 1 << 18;
    pub const CR0_NW: u64 = 1 << 29;
    pub const CR0_CD: u64 = 1 << 30;
    pub const CR0_PG: u64 = 1 << 31;
    pub const CR4_VME: u64 = 1;
    pub const CR4_PVI: u64 = 1 << 1;
    pub const CR4_TSD: u64 = 1 << 2;
    pub const CR4_DE: u64 = 1 << 3;
    pub const CR4_PSE: u64 = 1 << 4;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_MCE: u64 = 1 << 6;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_PCE: u64 = 1 << 8;
    pub const CR4_OSFXSR: u64 = 1 << 9;
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub const CR4_UMIP: u64 = 1 << 11;
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    pub const CR4_PCIDE: u64 = 1 << 17;
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    pub const CR4_SMEP: u64 = 1 << 20;
    pub const CR4_SMAP: u64 = 1 << 21;
    pub const EFER_SCE: u64 = 1;
    pub const EFER_LME: u64 = 1 << 8;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;
    pub const EFER_FFXSR: u64 = 1 << 14;
}

/// Bits of [`Segment::flags`].
#[allow(missing_docs)]
pub mod attr {
    pub const ACCESSED: u32 = 1 << 8;
    pub const WRITABLE: u32 = 1 << 9;
    /// Conforming for code, expand-down for data.
    pub const EXPAND_DOWN: u32 = 1 << 10;
    pub const CODE: u32 = 1 << 11;
    pub const S: u32 = 1 << 12;
    pub const DPL: u32 = 3 << 13;
    pub const P: u32 = 1 << 15;
    pub const L: u32 = 1 << 21;
    pub const DB: u32 = 1 << 22;
    pub const G: u32 = 1 << 23;
}

/// A segment register with its hidden part. `flags` are bits 8 to 23 of a descriptor's second doubleword, in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The base address.
    pub base: u64,
    /// The limit in bytes.
    pub limit: u32,
    /// The attributes, see [`attr`].
    pub flags: u32,
}

impl Segment {
    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.flags >> 13 & 3) as u8
    }
    /// Whether a descriptor was loaded that is present.
    pub fn present(&self) -> bool {
        self.flags & attr::P != 0
    }
    /// Whether this is a code segment.
    pub fn is_code(&self) -> bool {
        self.flags & (attr::S | attr::CODE) == attr::S | attr::CODE
    }
    /// Sets what a load in real mode sets.
    pub fn load_real(&mut self, selector: u16) {
        self.selector = selector;
        self.base = u64::from(selector) << 4;
    }
}

/// `GDTR` or `IDTR`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The base address.
    pub base: u64,
    /// The limit in bytes.
    pub limit: u16,
}

/// Registers that generated code reads and writes by offset.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Hot {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15, zero, rip.
    pub gpr: [u64; 18],
    /// The arithmetic flags as LAHF and SETO leave AX: AH is SF ZF - AF - PF - CF, AL is OF.
    pub cc: u16,
    /// Full flags, for the rare instructions that need more.
    pub pad: [u16; 3],
    /// What MXCSR is while an instruction runs on the host: no exception unmasked, no flag set.
    pub mxcsr_run: u32,
    /// What MXCSR was after it.
    pub mxcsr_out: u32,
    /// The host's own.
    pub mxcsr_host: u32,
    pub(crate) fill: [u32; 7],
    /// x87 state in FXSAVE's 64-bit form; its XMM part and MXCSR are not the guest's.
    pub fx: [u8; 512],
    /// YMM registers; the low halves are XMM.
    pub vec: [[u8; 32]; 16],
    /// A memory operand that is not in RAM as one piece.
    pub scratch: [u8; 128],
}

/// Offsets in [`Hot`] for generated code.
pub mod offset {
    #![allow(missing_docs)]
    use super::Hot;
    use std::mem::offset_of;
    pub const CC: i64 = offset_of!(Hot, cc) as i64;
    pub const MXCSR_RUN: i64 = offset_of!(Hot, mxcsr_run) as i64;
    pub const MXCSR_OUT: i64 = offset_of!(Hot, mxcsr_out) as i64;
    pub const MXCSR_HOST: i64 = offset_of!(Hot, mxcsr_host) as i64;
    pub const FX: i64 = offset_of!(Hot, fx) as i64;
    pub const VEC: i64 = offset_of!(Hot, vec) as i64;
    const _: () = assert!(FX % 16 == 0 && VEC % 32 == 0 && offset_of!(Hot, scratch) % 64 == 0);
}

impl Hot {
    pub(crate) fn new() -> Self {
        let mut fx = [0; 512];
        fx[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        fx[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        Self {
            gpr: [0; 18],
            cc: 0,
            pad: [0; 3],
            mxcsr_run: 0x1f80,
            mxcsr_out: 0x1f80,
            mxcsr_host: 0x1f80,
            fill: [0; 7],
            fx,
            vec: [[0; 32]; 16],
            scratch: [0; 128],
        }
    }

    /// The arithmetic flags where `RFLAGS` has them.
    #[inline]
    pub fn arith(&self) -> u64 {
        u64::from(self.cc >> 8) & 0xd5 | u64::from(self.cc & 1) << 11
    }

    /// Sets the arithmetic flags from `RFLAGS`.
    #[inline]
    pub fn set_arith(&mut self, rflags: u64) {
        self.cc = ((rflags & 0xd5) << 8 | (rflags >> 11 & 1)) as u16;
    }
}
