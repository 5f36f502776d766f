//! What a guest may use: the model's features, as far as this processor and the host have them.

use iced_x86::{CpuidFeature as F, Instruction};

use crate::{platform::CpuidLeaf, state::cr};

/// Features of a model that change what instructions and registers do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Features {
    edx1: u32,
    ecx1: u32,
    ebx7: u32,
    ecx7: u32,
    ext_edx: u32,
    ext_ecx: u32,
    pub smap: bool,
    pub gigabyte_pages: bool,
}

/// Leaf 1, EDX: all that the processor itself does.
const EDX1: u32 = 0x0f8b_fbff;
/// Leaf 1, ECX, what needs nothing of the host: SSE3 and so on are of the host.
const ECX1_OWN: u32 = 1 << 13 | 1 << 17 | 1 << 21 | 1 << 22 | 1 << 24 | 1 << 31 | 1 << 26;
const ECX1_HOST: u32 =
    1 | 1 << 1 | 1 << 9 | 1 << 12 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 25 | 1 << 28 | 1 << 29 | 1 << 30;
/// FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, SMAP, CLFLUSHOPT, CLWB.
const EBX7_OWN: u32 = 1 | 1 << 1 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 20 | 1 << 23 | 1 << 24;
/// BMI1, AVX2, BMI2, RDSEED, ADX, SHA.
const EBX7_HOST: u32 = 1 << 3 | 1 << 5 | 1 << 8 | 1 << 18 | 1 << 19 | 1 << 29;
/// UMIP, RDPID.
const ECX7_OWN: u32 = 1 << 2 | 1 << 22;
/// GFNI, VAES, VPCLMULQDQ.
const ECX7_HOST: u32 = 1 << 8 | 1 << 9 | 1 << 10;
/// SYSCALL, NX, PDPE1GB, RDTSCP, LM, and AMD's copies of leaf 1.
const EXT_EDX_OWN: u32 = 0x0183_f3ff | 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
/// LAHF, CMP_LEGACY, CR8, PREFETCHW.
const EXT_ECX_OWN: u32 = 1 | 1 << 1 | 1 << 4 | 1 << 8;
/// LZCNT, SSE4A is left out.
const EXT_ECX_HOST: u32 = 1 << 5;

/// Family 6, model 6, stepping 3, of AMD: what QEMU's TCG calls itself where no model is named. The host's own would have systems
/// work around errors of a processor that is not there: each return of a Linux kernel takes a detour on Zen 3 and 4.
const SIGNATURE: u32 = 0x663;
const MODEL_ID: &[u8; 48] = b"QEMU TCG CPU version 2.5+\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[cfg(target_arch = "x86_64")]
fn host(leaf: u32, subleaf: u32) -> std::arch::x86_64::CpuidResult {
    use std::arch::x86_64::__cpuid_count;
    if __cpuid_count(leaf & 0xffff_0000, 0).eax < leaf {
        return std::arch::x86_64::CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    }
    __cpuid_count(leaf, subleaf)
}

/// Whether the host's system saves AVX state.
fn host_has_avx_state() -> bool {
    let ecx = host(1, 0).ecx;
    if ecx & (1 << 27) == 0 || ecx & 1 << 28 == 0 {
        return false;
    }
    let (low, _high): (u32, u32);
    // SAFETY: OSXSAVE is set, so the instruction is there.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _high, options(nomem, nostack));
    }
    low & 6 == 6
}

/// All that this processor can offer on this host, in the form of CPUID leaves: what a model's features are cut to.
pub fn supported_cpuid() -> Vec<CpuidLeaf> {
    let avx = host_has_avx_state();
    let (h1, h7, e1) = (host(1, 0), host(7, 0), host(0x8000_0001, 0));
    let vector = 1 << 12 | 1 << 28 | 1 << 29;
    let without = |bits: u32, off: u32| if avx { bits } else { bits & !off };
    let leaf = |leaf, subleaf, eax, ebx, ecx, edx| CpuidLeaf { leaf, subleaf, eax, ebx, ecx, edx };
    let [ebx, edx, ecx] = [b"Auth", b"enti", b"cAMD"].map(|part| u32::from_le_bytes(*part));
    let mut leaves = vec![
        leaf(0, None, 0xd, ebx, ecx, edx),
        leaf(1, None, SIGNATURE, 0, ECX1_OWN | without(h1.ecx & ECX1_HOST, vector), EDX1),
        leaf(6, None, 1 << 2, 0, 0, 0),
        leaf(
            7,
            Some(0),
            0,
            EBX7_OWN | without(h7.ebx & EBX7_HOST, 1 << 5),
            ECX7_OWN | without(h7.ecx & ECX7_HOST, 1 << 9 | 1 << 10),
            0,
        ),
        leaf(0xd, Some(0), if avx { 7 } else { 3 }, 832, 832, 0),
        leaf(0xd, Some(1), 1 | 1 << 2, 0, 0, 0),
        leaf(0xd, Some(2), 256, 576, 0, 0),
        leaf(0x8000_0000, None, 0x8000_0008, ebx, ecx, edx),
        leaf(0x8000_0001, None, SIGNATURE, 0, EXT_ECX_OWN | e1.ecx & EXT_ECX_HOST, EXT_EDX_OWN),
        leaf(0x8000_0007, None, 0, 0, 0, 1 << 8),
        leaf(0x8000_0008, None, 0x3028, 0, 0, 0),
    ];
    leaves.extend(MODEL_ID.as_chunks::<16>().0.iter().zip(0x8000_0002..).map(|(text, n)| {
        let word = |i: usize| u32::from_le_bytes([text[i], text[i + 1], text[i + 2], text[i + 3]]);
        leaf(n, None, word(0), word(4), word(8), word(12))
    }));
    leaves
}

impl Features {
    /// Those of a model's leaves, cut to what is supported.
    pub fn of(cpuid: &[CpuidLeaf]) -> Self {
        let have = supported_cpuid();
        let find = |list: &[CpuidLeaf], n: u32| {
            list.iter().find(|l| l.leaf == n && l.subleaf.unwrap_or(0) == 0).copied().unwrap_or_default()
        };
        let (a1, b1) = (find(cpuid, 1), find(&have, 1));
        let (a7, b7) = (find(cpuid, 7), find(&have, 7));
        let (ae, be) = (find(cpuid, 0x8000_0001), find(&have, 0x8000_0001));
        let ebx7 = a7.ebx & b7.ebx;
        let ext_edx = ae.edx & be.edx;
        Self {
            edx1: a1.edx & b1.edx,
            ecx1: a1.ecx & b1.ecx,
            ebx7,
            ecx7: a7.ecx & b7.ecx,
            ext_edx,
            ext_ecx: ae.ecx & be.ecx,
            smap: ebx7 & 1 << 20 != 0,
            gigabyte_pages: ext_edx & 1 << 26 != 0,
        }
    }

    /// The bits of CR4 that may be set.
    pub fn cr4(&self) -> u64 {
        let mut bits = cr::CR4_VME
            | cr::CR4_PVI
            | cr::CR4_TSD
            | cr::CR4_DE
            | cr::CR4_PSE
            | cr::CR4_PAE
            | cr::CR4_MCE
            | cr::CR4_PGE
            | cr::CR4_PCE;
        let mut allow = |have: bool, bit: u64| bits |= if have { bit } else { 0 };
        allow(self.edx1 & 1 << 24 != 0, cr::CR4_OSFXSR);
        allow(self.edx1 & 1 << 25 != 0, cr::CR4_OSXMMEXCPT);
        allow(self.ecx7 & 1 << 2 != 0, cr::CR4_UMIP);
        allow(self.ebx7 & 1 != 0, cr::CR4_FSGSBASE);
        allow(self.ecx1 & 1 << 17 != 0, cr::CR4_PCIDE);
        allow(self.ecx1 & 1 << 26 != 0, cr::CR4_OSXSAVE);
        allow(self.ebx7 & 1 << 7 != 0, cr::CR4_SMEP);
        allow(self.ebx7 & 1 << 20 != 0, cr::CR4_SMAP);
        bits
    }

    /// The bits of EFER that may be set.
    pub fn efer(&self) -> u64 {
        let mut bits = 0;
        let mut allow = |have: bool, bit: u64| bits |= if have { bit } else { 0 };
        allow(self.ext_edx & 1 << 11 != 0, cr::EFER_SCE);
        allow(self.ext_edx & 1 << 29 != 0, cr::EFER_LME | cr::EFER_LMA);
        allow(self.ext_edx & 1 << 20 != 0, cr::EFER_NXE);
        bits
    }

    /// The components that XCR0 may enable.
    pub fn xcr0(&self) -> u64 {
        if self.ecx1 & 1 << 28 != 0 { 7 } else { 3 }
    }

    /// Whether the guest has an instruction.
    pub fn has(&self, insn: &Instruction) -> bool {
        insn.cpuid_features().iter().all(|&f| self.has_feature(f))
    }

    fn has_feature(&self, feature: F) -> bool {
        let bit = |word: u32, n: u32| word & 1 << n != 0;
        match feature {
            F::INTEL8086
            | F::INTEL8086_ONLY
            | F::INTEL186
            | F::INTEL286
            | F::INTEL286_ONLY
            | F::INTEL386
            | F::INTEL386_ONLY
            | F::INTEL486
            | F::X64
            | F::CPUID
            | F::MULTIBYTENOP
            | F::PAUSE
            | F::CET_IBT
            | F::UDBG => true,
            F::FPU | F::FPU287 | F::FPU387 => bit(self.edx1, 0),
            F::TSC => bit(self.edx1, 4),
            F::MSR => bit(self.edx1, 5),
            F::CX8 => bit(self.edx1, 8),
            F::SEP => bit(self.edx1, 11),
            F::CMOV => bit(self.edx1, 15),
            F::CLFSH => bit(self.edx1, 19),
            F::MMX => bit(self.edx1, 23),
            F::FXSR => bit(self.edx1, 24),
            F::SSE => bit(self.edx1, 25),
            F::SSE2 => bit(self.edx1, 26),
            F::SSE3 => bit(self.ecx1, 0),
            F::PCLMULQDQ => bit(self.ecx1, 1),
            F::SSSE3 => bit(self.ecx1, 9),
            F::FMA => bit(self.ecx1, 12),
            F::CMPXCHG16B => bit(self.ecx1, 13),
            F::SSE4_1 => bit(self.ecx1, 19),
            F::SSE4_2 => bit(self.ecx1, 20),
            F::MOVBE => bit(self.ecx1, 22),
            F::POPCNT => bit(self.ecx1, 23),
            F::AES => bit(self.ecx1, 25),
            F::XSAVE => bit(self.ecx1, 26),
            F::XSAVEOPT => bit(self.ecx1, 26),
            F::AVX => bit(self.ecx1, 28),
            F::F16C => bit(self.ecx1, 29),
            F::RDRAND => bit(self.ecx1, 30),
            F::FSGSBASE => bit(self.ebx7, 0),
            F::BMI1 => bit(self.ebx7, 3),
            F::AVX2 => bit(self.ebx7, 5),
            F::BMI2 => bit(self.ebx7, 8),
            F::INVPCID => bit(self.ebx7, 10),
            F::RDSEED => bit(self.ebx7, 18),
            F::ADX => bit(self.ebx7, 19),
            F::SMAP => bit(self.ebx7, 20),
            F::CLFLUSHOPT => bit(self.ebx7, 23),
            F::CLWB => bit(self.ebx7, 24),
            F::SHA => bit(self.ebx7, 29),
            F::RDPID => bit(self.ecx7, 22),
            F::GFNI => bit(self.ecx7, 8),
            F::VAES => bit(self.ecx7, 9),
            F::VPCLMULQDQ => bit(self.ecx7, 10),
            F::SYSCALL => bit(self.ext_edx, 11),
            F::RDTSCP => bit(self.ext_edx, 27),
            F::LZCNT => bit(self.ext_ecx, 5),
            F::PREFETCHW => true,
            F::RDPMC => true,
            _ => false,
        }
    }
}
