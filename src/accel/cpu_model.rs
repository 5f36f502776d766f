//! CPU models: what `-cpu NAME,feature=on,...` means in CPUID leaves.
//!
//! Names and bits are those of the Intel SDM (volume 2, CPUID), the AMD APM (volume 3, appendix E) and
//! `Documentation/virt/kvm/x86/cpuid.rst`, as QEMU spells them.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use lockstep_util::{Result, err};

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
    /// Leaf 0xd.1, EAX.
    XsaveEax,
    /// Leaf 6, EAX.
    ThermalEax,
    /// Leaf 0x8000_0001, EDX.
    ExtendedEdx,
    /// Leaf 0x8000_0001, ECX.
    ExtendedEcx,
    /// Leaf 0x8000_0007, EDX.
    PowerEdx,
    /// Leaf 0x8000_0008, EBX.
    Extended8Ebx,
    /// KVM's leaf 0x4000_0001, EAX.
    KvmEax,
}

const WORDS: usize = 12;

struct WordInfo {
    word: Word,
    /// How QEMU's warnings name the register.
    label: &'static str,
    leaf: u32,
    index: Option<u32>,
    register: Register,
    names: [&'static str; 32],
}

#[derive(Clone, Copy)]
enum Register {
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
static TABLE: [WordInfo; WORDS] = [
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
        word: Word::KvmEax,
        label: "CPUID.40000001H:EAX",
        leaf: 0x4000_0001,
        index: None,
        register: Register::Eax,
        names: names!("kvmclock" "kvm-nopiodelay" "kvm-mmu" "kvmclock" "kvm-asyncpf" "kvm-steal-time" "kvm-pv-eoi" "kvm-pv-unhalt" ""
            "kvm-pv-tlb-flush" "" "kvm-pv-ipi" "kvm-poll-control" "kvm-pv-sched-yield" "kvm-asyncpf-int" "kvm-msi-ext-dest-id" "" ""
            "" "" "" "" "" "" "kvmclock-stable-bit"),
    },
];

/// A CPU model with the user's changes.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuModel {
    name: &'static str,
    level: u32,
    xlevel: u32,
    /// `None`: the host's.
    vendor: Option<[u8; 12]>,
    family: u32,
    model: u32,
    stepping: u32,
    model_id: &'static str,
    features: [u32; WORDS],
    /// Takes all that the host has.
    everything: bool,
    /// Cores in the one socket.
    cores: u32,
}

struct ModelInfo {
    name: &'static str,
    description: &'static str,
    level: u32,
    xlevel: u32,
    family: u32,
    model: u32,
    stepping: u32,
    model_id: &'static str,
    leaf1_edx: u32,
    leaf1_ecx: u32,
    ext_edx: u32,
    ext_ecx: u32,
}

/// What a Pentium Pro has.
const PPRO_EDX: u32 = 0x0781_abfd;
/// The bits of leaf 0x8000_0001 EDX that AMD repeats from leaf 1.
const AMD_ALIASES: u32 = 0x0183_f3ff;

static MODELS: &[ModelInfo] = &[
    ModelInfo {
        name: "qemu64",
        description: "(alias configured by machine type)",
        level: 0xd,
        xlevel: 0x8000_000a,
        family: 15,
        model: 107,
        stepping: 1,
        model_id: "QEMU Virtual CPU version 2.5+",
        // MTRR, CLFLUSH, MCA, PSE36 beside the Pentium Pro's.
        leaf1_edx: PPRO_EDX | 1 << 12 | 1 << 19 | 1 << 14 | 1 << 17,
        leaf1_ecx: 1 | 1 << 13,
        ext_edx: 1 << 29 | 1 << 11 | 1 << 20,
        ext_ecx: 1 | 1 << 2,
    },
    ModelInfo {
        name: "kvm64",
        description: "(alias configured by machine type)",
        level: 0xd,
        xlevel: 0x8000_0008,
        family: 15,
        model: 6,
        stepping: 1,
        model_id: "Common KVM processor",
        leaf1_edx: PPRO_EDX | 1 << 1 | 1 << 12 | 1 << 19 | 1 << 14 | 1 << 17,
        leaf1_ecx: 1 | 1 << 13,
        ext_edx: 1 << 29 | 1 << 11 | 1 << 20,
        ext_ecx: 0,
    },
];

/// KVM's own features that are on unless asked otherwise.
const KVM_DEFAULTS: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 24;

impl CpuModel {
    /// The model of a `-cpu` argument, for KVM.
    ///
    /// # Errors
    /// With QEMU's texts: unknown model or property, bad value.
    pub fn parse(option: &str) -> Result<Self> {
        let mut parts = option.split(',');
        let name = parts.next().unwrap_or("");
        let mut model = Self::named(name).ok_or_else(|| err!("unable to find CPU model '{name}'"))?;
        for part in parts.filter(|p| !p.is_empty()) {
            match (part.strip_prefix('+'), part.strip_prefix('-')) {
                (Some(name), _) => model.set(name, "on")?,
                (_, Some(name)) => model.set(name, "off")?,
                _ => {
                    let (name, value) = part.split_once('=').unwrap_or((part, "on"));
                    let place = format!("can't apply global {}-x86_64-cpu.{name}={value}: ", model.name);
                    model.set(name, value).map_err(|e| e.prepend(place))?;
                }
            }
        }
        Ok(model)
    }

    fn named(name: &str) -> Option<Self> {
        let name = name.strip_suffix("-x86_64-cpu").unwrap_or(name);
        let base = name.strip_suffix("-v1").unwrap_or(name);
        if matches!(name, "host" | "max") {
            return Some(Self {
                name: if name == "host" { "host" } else { "max" },
                level: 0xd,
                xlevel: 0x8000_001f,
                vendor: None,
                family: 0,
                model: 0,
                stepping: 0,
                model_id: "",
                features: [u32::MAX; WORDS],
                everything: true,
                cores: 1,
            });
        }
        let info = MODELS.iter().find(|m| m.name == base)?;
        let mut features = [0; WORDS];
        features[Word::Leaf1Edx as usize] = info.leaf1_edx;
        features[Word::Leaf1Ecx as usize] = info.leaf1_ecx | 1 << 31 | 1 << 21;
        features[Word::ExtendedEdx as usize] = info.ext_edx;
        // KVM's guests get no nested SVM unless they ask.
        features[Word::ExtendedEcx as usize] = info.ext_ecx & !(1 << 2);
        features[Word::KvmEax as usize] = KVM_DEFAULTS;
        Some(Self {
            name: info.name,
            level: info.level,
            xlevel: info.xlevel,
            vendor: None,
            family: info.family,
            model: info.model,
            stepping: info.stepping,
            model_id: info.model_id,
            features,
            everything: false,
            cores: 1,
        })
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let on = match value {
            "on" | "yes" | "true" | "y" => true,
            "off" | "no" | "false" | "n" => false,
            _ => return Err(err!("Parameter '{name}' expects 'on' or 'off'")),
        };
        let canonical = name.replace('_', "-");
        let mut found = false;
        for (word, info) in TABLE.iter().enumerate() {
            for (bit, _) in info.names.iter().enumerate().filter(|(_, n)| !n.is_empty() && **n == canonical) {
                found = true;
                if on {
                    self.features[word] |= 1 << bit;
                } else {
                    self.features[word] &= !(1 << bit);
                }
            }
        }
        if found { Ok(()) } else { Err(err!("Property '{}-x86_64-cpu.{name}' not found", self.name)) }
    }

    /// The model's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Sets the number of cores that the guest is told of.
    pub fn with_cores(mut self, cores: u32) -> Self {
        self.cores = cores.max(1);
        self
    }

    /// The models there are, with QEMU's descriptions: what `-cpu help` lists.
    pub fn list() -> Vec<(&'static str, &'static str)> {
        let mut all: Vec<_> = MODELS.iter().map(|m| (m.name, m.description)).collect();
        all.push(("host", "processor with all supported host features "));
        all.push(("max", "Enables all features supported by the accelerator in the current host"));
        all
    }

    /// The names of all models, versions too.
    pub fn type_names() -> Vec<&'static str> {
        vec!["max", "host", "qemu64-v1", "qemu64", "kvm64-v1", "kvm64"]
    }

    /// The version that a name without one stands for.
    pub fn alias(name: &str) -> Option<&'static str> {
        match name {
            "qemu64" => Some("qemu64-v1"),
            "kvm64" => Some("kvm64-v1"),
            _ => None,
        }
    }

    /// The names of all features that can be switched.
    pub fn feature_names() -> Vec<&'static str> {
        let mut names: Vec<_> = TABLE.iter().flat_map(|w| w.names.iter().copied()).filter(|n| !n.is_empty()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The CPUID leaves for one vCPU, of what the host supports. Features that it lacks are left out with a warning.
    pub fn cpuid_for_kvm(
        &self,
        supported: &[kvm_cpuid_entry2],
        apic_id: u32,
        warn: &mut dyn FnMut(String),
    ) -> Vec<kvm_cpuid_entry2> {
        let host = |leaf: u32, index: u32| {
            supported
                .iter()
                .find(|e| e.function == leaf && (e.index == index || e.flags & 1 == 0))
                .copied()
                .unwrap_or_default()
        };
        let mut features = self.features;
        for (value, info) in features.iter_mut().zip(&TABLE) {
            let entry = host(info.leaf, info.index.unwrap_or(0));
            let mut have = match info.register {
                Register::Eax => entry.eax,
                Register::Ebx => entry.ebx,
                Register::Ecx => entry.ecx,
                Register::Edx => entry.edx,
            };
            match info.word {
                // The kernel emulates these whether it lists them or not.
                Word::Leaf1Ecx => have |= 1 << 31 | 1 << 21 | 1 << 24,
                Word::ThermalEax => have |= 1 << 2,
                _ => {}
            }
            if !self.everything && apic_id == 0 && info.word != Word::KvmEax {
                for bit in (0..32).filter(|b| *value & !have & 1 << b != 0) {
                    let name = info.names[bit];
                    warn(format!("host doesn't support requested feature: {}.{name} [bit {bit}]", info.label));
                }
            }
            *value &= have;
        }
        if self.everything {
            features[Word::Leaf1Ecx as usize] &= !(1 << 3);
            features[Word::ThermalEax as usize] &= 1 << 2;
        }
        if self.cores > 1 {
            features[Word::Leaf1Edx as usize] |= 1 << 28;
        }
        self.leaves(&features, apic_id, &host)
    }

    fn leaves(
        &self,
        features: &[u32; WORDS],
        apic_id: u32,
        host: &dyn Fn(u32, u32) -> kvm_cpuid_entry2,
    ) -> Vec<kvm_cpuid_entry2> {
        let word = |w: Word| features[w as usize];
        let mut leaves: Vec<kvm_cpuid_entry2> = vec![];
        let mut add = |function: u32, index: Option<u32>, eax: u32, ebx: u32, ecx: u32, edx: u32| {
            let flags = if index.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            leaves.push(kvm_cpuid_entry2 {
                function,
                index: index.unwrap_or(0),
                flags,
                eax,
                ebx,
                ecx,
                edx,
                padding: [0; 3],
            });
        };
        let vendor = match self.vendor {
            Some(v) => {
                let part = |i: usize| u32::from_le_bytes([v[i], v[i + 1], v[i + 2], v[i + 3]]);
                [part(0), part(4), part(8)]
            }
            None => {
                let leaf = host(0, 0);
                [leaf.ebx, leaf.edx, leaf.ecx]
            }
        };
        let signature =
            if self.everything { host(1, 0).eax } else { signature(self.family, self.model, self.stepping) };
        add(0, None, self.level, vendor[0], vendor[2], vendor[1]);
        let ebx = apic_id << 24 | 8 << 8 | if self.cores > 1 { self.cores << 16 } else { 0 };
        add(1, None, signature, ebx, word(Word::Leaf1Ecx), word(Word::Leaf1Edx));
        // A descriptor of each cache: 32 KiB L1, 4 MiB L2, 16 MiB L3 (Intel SDM, table 3-12).
        add(2, None, 1, 0, 0x4d, 0x002c_307d);
        let cores_field = (self.cores.next_power_of_two() - 1) << 26;
        for (index, kind, level, ways, sets, shared) in
            [(0, 1, 1, 8, 64, 0), (1, 2, 1, 8, 64, 0), (2, 3, 2, 16, 4096, 0), (3, 3, 3, 16, 16384, self.cores - 1)]
        {
            let eax = kind | level << 5 | 1 << 8 | shared << 14 | cores_field;
            add(4, Some(index), eax, (ways - 1) << 22 | 63, sets - 1, u32::from(level == 3) << 1 | 1);
        }
        add(5, None, 0, 0, 3, 0);
        add(6, None, word(Word::ThermalEax), 0, 0, 0);
        add(7, Some(0), 0, word(Word::Leaf7Ebx), word(Word::Leaf7Ecx), word(Word::Leaf7Edx));
        let threads = self.cores;
        add(0xb, Some(0), 0, 1, 0x100, apic_id);
        add(0xb, Some(1), threads.next_power_of_two().trailing_zeros(), threads, 0x201, apic_id);
        if word(Word::Leaf1Ecx) & 1 << 26 != 0 {
            let area = host(0xd, 0);
            add(0xd, Some(0), area.eax, area.ebx, area.ecx, area.edx);
            let sizes = host(0xd, 1);
            add(0xd, Some(1), word(Word::XsaveEax), sizes.ebx, sizes.ecx, sizes.edx);
            for index in (2..32).filter(|i| area.eax & 1 << i != 0) {
                let part = host(0xd, index);
                add(0xd, Some(index), part.eax, part.ebx, part.ecx, part.edx);
            }
        }
        let kvm = |at: usize| {
            u32::from_le_bytes([
                b"KVMKVMKVM\0\0\0"[at],
                b"KVMKVMKVM\0\0\0"[at + 1],
                b"KVMKVMKVM\0\0\0"[at + 2],
                b"KVMKVMKVM\0\0\0"[at + 3],
            ])
        };
        add(0x4000_0000, None, 0x4000_0001, kvm(0), kvm(4), kvm(8));
        add(0x4000_0001, None, word(Word::KvmEax), 0, 0, 0);
        add(0x8000_0000, None, self.xlevel, vendor[0], vendor[2], vendor[1]);
        let mut edx = word(Word::ExtendedEdx);
        if vendor == [0x6874_7541, 0x6974_6e65, 0x444d_4163] {
            edx |= word(Word::Leaf1Edx) & AMD_ALIASES;
        }
        add(0x8000_0001, None, signature, 0, word(Word::ExtendedEcx), edx);
        for i in 0..3 {
            if self.everything {
                let id = host(0x8000_0002 + i, 0);
                add(0x8000_0002 + i, None, id.eax, id.ebx, id.ecx, id.edx);
            } else {
                let text = |at: usize| {
                    let byte = |n: usize| self.model_id.as_bytes().get(16 * i as usize + at + n).copied().unwrap_or(0);
                    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
                };
                add(0x8000_0002 + i, None, text(0), text(4), text(8), text(12));
            }
        }
        add(0x8000_0005, None, 0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140);
        add(0x8000_0006, None, 0, 0x4200_4200, 0x0200_8140, 0x0080_8140);
        add(0x8000_0007, None, 0, 0, 0, word(Word::PowerEdx));
        let address_bits = if self.everything { host(0x8000_0008, 0).eax & 0xffff } else { 0x3028 };
        let ecx = self.cores.saturating_sub(1);
        add(0x8000_0008, None, address_bits, word(Word::Extended8Ebx), ecx, 0);
        leaves
    }
}

/// EAX of leaf 1 (Intel SDM volume 2, figure 3-6).
fn signature(family: u32, model: u32, stepping: u32) -> u32 {
    let (base, extended) = if family > 15 { (15, family - 15) } else { (family, 0) };
    extended << 20 | (model >> 4) << 16 | base << 8 | (model & 15) << 4 | stepping
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_supported() -> Vec<kvm_cpuid_entry2> {
        TABLE
            .iter()
            .map(|i| kvm_cpuid_entry2 {
                function: i.leaf,
                index: i.index.unwrap_or(0),
                flags: u32::from(i.index.is_some()),
                eax: u32::MAX,
                ebx: u32::MAX,
                ecx: u32::MAX,
                edx: u32::MAX,
                padding: [0; 3],
            })
            .collect()
    }

    #[test]
    fn the_table_is_in_the_order_of_the_words() {
        for (i, info) in TABLE.iter().enumerate() {
            assert_eq!(info.word as usize, i);
        }
    }

    #[test]
    fn qemu64_is_family_15_model_107_and_takes_switches() {
        let model = CpuModel::parse("qemu64,kvmclock=off,+aes,-nx").unwrap();
        let leaves = model.cpuid_for_kvm(&all_supported(), 3, &mut |w| panic!("{w}"));
        let leaf = |f| leaves.iter().find(|l| l.function == f).unwrap();
        assert_eq!((leaf(1).eax, leaf(1).ebx >> 24), (0x0006_0fb1, 3));
        assert_ne!(leaf(1).ecx & 1 << 25, 0);
        assert_eq!(leaf(0x8000_0001).edx & 1 << 20, 0);
        assert_eq!(leaf(0x4000_0001).eax & 9, 0, "both of kvmclock's bits");
    }

    #[test]
    fn a_feature_that_the_host_lacks_is_left_out_with_a_warning() {
        let mut warnings = vec![];
        let mut host = all_supported();
        host.iter_mut().filter(|e| e.function == 1).for_each(|e| e.ecx = !1);
        let leaves = CpuModel::parse("qemu64").unwrap().cpuid_for_kvm(&host, 0, &mut |w| warnings.push(w));
        assert_eq!(leaves.iter().find(|l| l.function == 1).unwrap().ecx & 1, 0);
        assert_eq!(warnings, ["host doesn't support requested feature: CPUID.01H:ECX.pni [bit 0]"]);
    }

    #[test]
    fn wrong_uses_get_qemus_errors() {
        let error = |text| CpuModel::parse(text).unwrap_err().message().to_owned();
        assert_eq!(error("nosuch"), "unable to find CPU model 'nosuch'");
        let global = "can't apply global qemu64-x86_64-cpu.";
        let unknown = "Property 'qemu64-x86_64-cpu.bogus' not found";
        assert_eq!(error("qemu64,bogus=on"), format!("{global}bogus=on: {unknown}"));
        assert_eq!(error("qemu64,bogus"), format!("{global}bogus=on: {unknown}"));
        assert_eq!(error("qemu64,+bogus"), unknown);
        assert_eq!(error("qemu64,nx=maybe"), format!("{global}nx=maybe: Parameter 'nx' expects 'on' or 'off'"));
    }
}
