//! The feature bits: which register of which leaf they are in, and what they are called.

use kvm_bindings::kvm_cpuid_entry2;

use super::{Engine, leaves::entry};

/// A register of a CPUID leaf that holds feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Leaf 1, EDX.
    Leaf1Edx,
    /// Leaf 1, ECX.
    Leaf1Ecx,
    /// Leaf 7.0, EBX.
    Leaf7Ebx,
    /// Leaf 7.0, ECX.
    Leaf7Ecx,
    /// Leaf 7.0, EDX.
    Leaf7Edx,
    /// Leaf 7.1, EAX.
    Leaf71Eax,
    /// Leaf 0x8000_0001, EDX.
    ExtendedEdx,
    /// Leaf 0x8000_0001, ECX.
    ExtendedEcx,
    /// Leaf 0x8000_0007, EDX.
    PowerEdx,
    /// Leaf 0x8000_0008, EBX.
    Extended8Ebx,
    /// Leaf 0x8000_0021, EAX.
    Extended21Eax,
    /// KVM's leaf 0x4000_0001, EAX.
    KvmEax,
    /// Leaf 0x8000_000a, EDX.
    SvmEdx,
    /// Leaf 0xd.1, EAX.
    XsaveEax,
    /// Leaf 6, EAX.
    ThermalEax,
    /// MSR 0x10a, which the engine sets up.
    Capabilities,
}

pub(super) const WORDS: usize = 16;

pub(super) struct WordInfo {
    pub word: Word,
    /// How QEMU's warnings name the register.
    pub label: &'static str,
    pub leaf: u32,
    pub index: Option<u32>,
    pub register: Register,
    pub names: [&'static str; 32],
}

#[derive(Clone, Copy)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

macro_rules! names {
    ($($n:literal)*) => {{
        let given = [$($n),*];
        let mut all = [""; 32];
        let mut i = 0;
        while i < given.len() { all[i] = given[i]; i += 1; }
        all
    }};
}

/// All words, in the order of [`Word`]. An empty name is a bit that cannot be asked for.
pub(super) static TABLE: [WordInfo; WORDS] = [
    WordInfo {
        word: Word::Leaf1Edx,
        label: "CPUID.01H:EDX",
        leaf: 1,
        index: None,
        register: Register::Edx,
        names: names!("fpu" "vme" "de" "pse" "tsc" "msr" "pae" "mce" "cx8" "apic" "" "sep" "mtrr" "pge" "mca" "cmov" "pat"
            "pse36" "pn" "clflush" "" "ds" "acpi" "mmx" "fxsr" "sse" "sse2" "ss" "ht" "tm" "ia64" "pbe"),
    },
    WordInfo {
        word: Word::Leaf1Ecx,
        label: "CPUID.01H:ECX",
        leaf: 1,
        index: None,
        register: Register::Ecx,
        names: names!("pni" "pclmulqdq" "dtes64" "monitor" "ds-cpl" "vmx" "smx" "est" "tm2" "ssse3" "cid" "" "fma" "cx16" "xtpr"
            "pdcm" "" "pcid" "dca" "sse4.1" "sse4.2" "x2apic" "movbe" "popcnt" "tsc-deadline" "aes" "xsave" "" "avx" "f16c"
            "rdrand" "hypervisor"),
    },
    WordInfo {
        word: Word::Leaf7Ebx,
        label: "CPUID.07H:EBX",
        leaf: 7,
        index: Some(0),
        register: Register::Ebx,
        names: names!("fsgsbase" "tsc-adjust" "sgx" "bmi1" "hle" "avx2" "fdp-excptn-only" "smep" "bmi2" "erms" "invpcid" "rtm" ""
            "zero-fcs-fds" "mpx" "" "avx512f" "avx512dq" "rdseed" "adx" "smap" "avx512ifma" "" "clflushopt" "clwb" "intel-pt"
            "avx512pf" "avx512er" "avx512cd" "sha-ni" "avx512bw" "avx512vl"),
    },
    WordInfo {
        word: Word::Leaf7Ecx,
        label: "CPUID.07H:ECX",
        leaf: 7,
        index: Some(0),
        register: Register::Ecx,
        names: names!("" "avx512vbmi" "umip" "pku" "" "waitpkg" "avx512vbmi2" "" "gfni" "vaes" "vpclmulqdq" "avx512vnni"
            "avx512bitalg" "" "avx512-vpopcntdq" "" "la57" "" "" "" "" "" "rdpid" "" "bus-lock-detect" "cldemote" "" "movdiri"
            "movdir64b" "" "sgxlc" "pks"),
    },
    WordInfo {
        word: Word::Leaf7Edx,
        label: "CPUID.07H:EDX",
        leaf: 7,
        index: Some(0),
        register: Register::Edx,
        names: names!("" "" "avx512-4vnniw" "avx512-4fmaps" "fsrm" "" "" "" "avx512-vp2intersect" "" "md-clear" "" "" "" "serialize"
            "" "tsx-ldtrk" "" "" "arch-lbr" "" "" "amx-bf16" "avx512-fp16" "amx-tile" "amx-int8" "spec-ctrl" "stibp" "flush-l1d"
            "arch-capabilities" "core-capability" "ssbd"),
    },
    WordInfo {
        word: Word::Leaf71Eax,
        label: "CPUID.07H_01H:EAX",
        leaf: 7,
        index: Some(1),
        register: Register::Eax,
        names: names!("" "" "" "" "avx-vnni" "avx512-bf16"),
    },
    WordInfo {
        word: Word::ExtendedEdx,
        label: "CPUID.80000001H:EDX",
        leaf: 0x8000_0001,
        index: None,
        register: Register::Edx,
        names: names!("" "" "" "" "" "" "" "" "" "" "" "syscall" "" "" "" "" "" "" "" "mp" "nx" "" "mmxext" "" "" "fxsr-opt" "pdpe1gb"
            "rdtscp" "" "lm" "3dnowext" "3dnow"),
    },
    WordInfo {
        word: Word::ExtendedEcx,
        label: "CPUID.80000001H:ECX",
        leaf: 0x8000_0001,
        index: None,
        register: Register::Ecx,
        names: names!("lahf-lm" "cmp-legacy" "svm" "extapic" "cr8legacy" "abm" "sse4a" "misalignsse" "3dnowprefetch" "osvw" "ibs" "xop"
            "skinit" "wdt" "" "lwp" "fma4" "tce" "" "nodeid-msr" "" "tbm" "topoext" "perfctr-core" "perfctr-nb"),
    },
    WordInfo {
        word: Word::PowerEdx,
        label: "CPUID.80000007H:EDX",
        leaf: 0x8000_0007,
        index: None,
        register: Register::Edx,
        names: names!("" "" "" "" "" "" "" "" "invtsc"),
    },
    WordInfo {
        word: Word::Extended8Ebx,
        label: "CPUID.80000008H:EBX",
        leaf: 0x8000_0008,
        index: None,
        register: Register::Ebx,
        names: names!("clzero" "" "xsaveerptr" "" "" "" "" "" "" "wbnoinvd" "" "" "ibpb" "" "ibrs" "amd-stibp" "" "stibp-always-on" "" ""
            "" "" "" "" "amd-ssbd" "virt-ssbd" "amd-no-ssb" "" "amd-psfd"),
    },
    WordInfo {
        word: Word::Extended21Eax,
        label: "CPUID.80000021H:EAX",
        leaf: 0x8000_0021,
        index: None,
        register: Register::Eax,
        names: names!("no-nested-data-bp" "fs-gs-base-ns" "lfence-always-serializing" "" "" "" "null-sel-clr-base" "" "auto-ibrs"),
    },
    WordInfo {
        word: Word::KvmEax,
        label: "CPUID.40000001H:EAX",
        leaf: 0x4000_0001,
        index: None,
        register: Register::Eax,
        names: names!("kvmclock" "kvm-nopiodelay" "kvm-mmu" "kvmclock" "kvm-asyncpf" "kvm-steal-time" "kvm-pv-eoi" "kvm-pv-unhalt" ""
            "kvm-pv-tlb-flush" "" "kvm-pv-ipi" "kvm-poll-control" "kvm-pv-sched-yield" "kvm-asyncpf-int" "kvm-msi-ext-dest-id" "" ""
            "" "" "" "" "" "" "kvmclock-stable-bit"),
    },
    WordInfo {
        word: Word::SvmEdx,
        label: "CPUID.8000000AH:EDX",
        leaf: 0x8000_000a,
        index: None,
        register: Register::Edx,
        names: names!("npt" "lbrv" "svm-lock" "nrip-save" "tsc-scale" "vmcb-clean" "flushbyasid" "decodeassists" "" "" "pause-filter"
            "" "pfthreshold" "avic" "" "v-vmsave-vmload" "vgif" "" "" "" "" "" "" "" "" "vnmi" "" "" "svme-addr-chk"),
    },
    WordInfo {
        word: Word::XsaveEax,
        label: "CPUID.0DH:EAX",
        leaf: 0xd,
        index: Some(1),
        register: Register::Eax,
        names: names!("xsaveopt" "xsavec" "xgetbv1" "xsaves" "xfd"),
    },
    WordInfo {
        word: Word::ThermalEax,
        label: "CPUID.06H:EAX",
        leaf: 6,
        index: None,
        register: Register::Eax,
        names: names!("" "" "arat"),
    },
    WordInfo {
        word: Word::Capabilities,
        label: "MSR(10AH)",
        leaf: u32::MAX,
        index: None,
        register: Register::Eax,
        names: names!("rdctl-no" "ibrs-all" "rsba" "skip-l1dfl-vmentry" "ssb-no" "mds-no" "pschange-mc-no" "tsx-ctrl" "taa-no"),
    },
];

/// Other names of features.
pub(super) static OTHER_NAMES: [(&str, &str); 7] = [
    ("sse3", "pni"),
    ("sse4-1", "sse4.1"),
    ("sse4-2", "sse4.2"),
    ("pclmuldq", "pclmulqdq"),
    ("i64", "lm"),
    ("xd", "nx"),
    ("ffxsr", "fxsr-opt"),
];

/// The bits of a word that an engine has.
pub(super) fn available(info: &WordInfo, supported: &[kvm_cpuid_entry2], engine: Engine) -> u32 {
    let entry = entry(supported, info.leaf, info.index.unwrap_or(0));
    let have = match info.register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    };
    match info.word {
        // The kernel emulates these whether it lists them or not.
        Word::Leaf1Ecx => have | 1 << 31 | 1 << 21 | 1 << 24,
        Word::ThermalEax => have | 1 << 2,
        // The kernel's own value is what its guests read.
        Word::Capabilities if engine == Engine::Kvm => u32::MAX,
        _ => have,
    }
}
