//! CPU models: what `-cpu NAME,feature=on,...` means in CPUID leaves.
//!
//! Names and bits are those of the Intel SDM (volume 2, CPUID), the AMD APM (volume 3, appendix E) and
//! `Documentation/virt/kvm/x86/cpuid.rst`, as QEMU spells them.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use lockstep_util::{Result, bail, err};

use models::MODELS;

#[path = "cpu_models.rs"]
mod models;

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

const WORDS: usize = 16;

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
static OTHER_NAMES: [(&str, &str); 7] = [
    ("sse3", "pni"),
    ("sse4-1", "sse4.1"),
    ("sse4-2", "sse4.2"),
    ("pclmuldq", "pclmulqdq"),
    ("i64", "lm"),
    ("xd", "nx"),
    ("ffxsr", "fxsr-opt"),
];

/// What identifies a processor beside its names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Family, as `-cpu` has it: base and extended family added.
    pub family: u32,
    /// Model number.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
    /// The highest basic leaf.
    pub level: u32,
    /// The highest extended leaf.
    pub xlevel: u32,
}

/// A model, with its versions from 1 on.
struct ModelInfo {
    name: &'static str,
    vendor: &'static [u8; 12],
    numbers: Numbers,
    /// Features of version 1.
    features: &'static str,
    versions: &'static [VersionInfo],
}

/// What a version of a model changes of version 1.
struct VersionInfo {
    /// A name of its own.
    alias: &'static str,
    model_id: &'static str,
    note: &'static str,
    changes: &'static str,
}

/// The value of a property of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Property {
    /// A feature, or another switch.
    Switch(bool),
    /// A number.
    Number(u32),
    /// Text.
    Text(String),
}

/// What the vCPUs run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// KVM: the vendor is the host's.
    Kvm,
    /// The software CPU.
    Tcg,
}

/// A CPU model with the user's changes.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuModel {
    name: String,
    numbers: Numbers,
    /// The model's.
    vendor: Option<[u8; 12]>,
    /// The user's.
    own_vendor: Option<[u8; 12]>,
    model_id: String,
    features: [u32; WORDS],
    /// Takes all that the host has.
    everything: bool,
    /// The user has set `level` and `xlevel`.
    fixed_level: bool,
    fixed_xlevel: bool,
    physical_bits: Option<u32>,
    /// KVM is told of.
    shows_kvm: bool,
    check: bool,
    enforce: bool,
    /// Cores in the one socket.
    cores: u32,
}

/// The bits of leaf 0x8000_0001 EDX that AMD repeats from leaf 1.
const AMD_ALIASES: u32 = 0x0183_f3ff;

/// KVM's own features that are on unless asked otherwise.
const KVM_DEFAULTS: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 24;

impl CpuModel {
    /// The model of a `-cpu` argument.
    ///
    /// # Errors
    /// With QEMU's texts: unknown model or property, bad value.
    pub fn parse(option: &str, engine: Engine) -> Result<Self> {
        let mut parts = option.split(',');
        let name = parts.next().unwrap_or("");
        let mut model = Self::named(name, engine).ok_or_else(|| err!("unable to find CPU model '{name}'"))?;
        if name == "host" && engine == Engine::Tcg {
            bail!("CPU model 'host' requires KVM or HVF");
        }
        let parts: Vec<_> = parts.filter(|p| !p.is_empty()).collect();
        // Signs win, whatever the order: they are looked at last.
        for part in &parts {
            if !part.starts_with(['+', '-']) {
                let (name, value) = part.split_once('=').unwrap_or((part, "on"));
                let place = format!("can't apply global {}-x86_64-cpu.{name}={value}: ", model.name);
                model.set(name, value).map_err(|e| e.prepend(place))?;
            }
        }
        for (sign, value) in [('+', "on"), ('-', "off")] {
            for name in parts.iter().filter_map(|p| p.strip_prefix(sign)) {
                model.set(name, value)?;
            }
        }
        if let Some(bits) = model.physical_bits.filter(|b| !(32..=52).contains(b)) {
            bail!("phys-bits should be between 32 and 52  (but is {bits})");
        }
        Ok(model)
    }

    fn named(name: &str, engine: Engine) -> Option<Self> {
        let mut model = Self {
            name: name.to_owned(),
            numbers: Numbers { level: 0xd, xlevel: 0x8000_001f, ..Numbers::default() },
            vendor: None,
            own_vendor: None,
            model_id: String::new(),
            features: [u32::MAX; WORDS],
            everything: true,
            fixed_level: false,
            fixed_xlevel: false,
            physical_bits: None,
            shows_kvm: true,
            check: true,
            enforce: false,
            cores: 1,
        };
        if matches!(name, "host" | "max") {
            return Some(model);
        }
        let (info, version) = find(name)?;
        model.everything = false;
        model.features = [0; WORDS];
        model.numbers = info.numbers;
        model.vendor = Some(*info.vendor);
        model.model_id = version.model_id.to_owned();
        for feature in info.features.split_whitespace() {
            model.switch(feature, true);
        }
        for change in version.changes.split_whitespace() {
            match (change.strip_prefix('+'), change.strip_prefix('-')) {
                (Some(feature), _) => model.switch(feature, true),
                (_, Some(feature)) => model.switch(feature, false),
                _ => {
                    let (name, value) = change.split_once('=').unwrap_or((change, ""));
                    let (number, _) = model.number(name).unwrap_or_else(|| unreachable!("the table's own names"));
                    *number = value.parse().unwrap_or_default();
                    true
                }
            };
        }
        // What a guest gets only if it asks: power management, MONITOR and nested virtual machines.
        for feature in ["acpi", "monitor", "svm"] {
            model.switch(feature, false);
        }
        model.features[Word::SvmEdx as usize] = 0;
        for feature in ["hypervisor", "x2apic"] {
            model.switch(feature, true);
        }
        match engine {
            Engine::Kvm => model.features[Word::KvmEax as usize] = KVM_DEFAULTS,
            Engine::Tcg => {
                model.switch("vme", false);
            }
        }
        Some(model)
    }

    /// A property that is a number, with its limit.
    fn number(&mut self, name: &str) -> Option<(&mut u32, u32)> {
        let n = &mut self.numbers;
        Some(match name {
            "family" => (&mut n.family, 255 + 15),
            "model" => (&mut n.model, 255),
            "stepping" => (&mut n.stepping, 15),
            "level" => (&mut n.level, u32::MAX),
            "xlevel" => (&mut n.xlevel, u32::MAX),
            _ => return None,
        })
    }

    /// Switches all bits of this name; false: there are none.
    fn switch(&mut self, name: &str, on: bool) -> bool {
        let mut found = false;
        for (word, info) in TABLE.iter().enumerate() {
            for (bit, _) in info.names.iter().enumerate().filter(|(_, n)| !n.is_empty() && **n == name) {
                found = true;
                self.features[word] = self.features[word] & !(1 << bit) | u32::from(on) << bit;
            }
        }
        found
    }

    /// The value of a property, if there is one of this name.
    pub fn property(&self, name: &str) -> Option<Property> {
        let other = OTHER_NAMES.iter().find(|(n, _)| *n == name).map_or(name, |(_, n)| n);
        self.properties().into_iter().find(|(n, _)| *n == other).map(|(_, property)| property)
    }

    /// All properties, features first.
    pub fn properties(&self) -> Vec<(&'static str, Property)> {
        let mut all = vec![];
        for (info, value) in TABLE.iter().zip(&self.features) {
            let named = info.names.iter().enumerate().filter(|(_, n)| !n.is_empty());
            all.extend(named.map(|(bit, name)| (*name, Property::Switch(value >> bit & 1 != 0))));
        }
        // One name may stand for several bits.
        all.sort_by_key(|(name, _)| *name);
        all.dedup_by_key(|(name, _)| *name);
        let n = &self.numbers;
        let vendor = self.own_vendor.or(self.vendor).unwrap_or_default();
        let vendor = String::from_utf8_lossy(&vendor).trim_end_matches('\0').to_owned();
        all.extend([
            ("family", Property::Number(n.family)),
            ("model", Property::Number(n.model)),
            ("stepping", Property::Number(n.stepping)),
            ("level", Property::Number(n.level)),
            ("xlevel", Property::Number(n.xlevel)),
            ("phys-bits", Property::Number(self.physical_bits.unwrap_or(0))),
            ("vendor", Property::Text(vendor)),
            ("model-id", Property::Text(self.model_id.clone())),
            ("check", Property::Switch(self.check)),
            ("enforce", Property::Switch(self.enforce)),
            ("kvm", Property::Switch(self.shows_kvm)),
        ]);
        all
    }

    /// Sets a property.
    ///
    /// # Errors
    /// With QEMU's texts: there is none of this name, or the value is not one for it.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        if let Some((number, most)) = self.number(name) {
            let digits = value.strip_prefix("0x").map_or_else(|| value.parse(), |hex| u64::from_str_radix(hex, 16));
            let wanted: u64 = digits.map_err(|_| err!("Parameter '{name}' expects uint64"))?;
            if wanted > most.into() {
                bail!("parameter '{name}' can be at most {most}");
            }
            *number = wanted as u32;
            self.fixed_level |= name == "level";
            self.fixed_xlevel |= name == "xlevel";
            return Ok(());
        }
        match name {
            "vendor" => {
                let vendor = <[u8; 12]>::try_from(value.as_bytes());
                let wrong = |_| err!("value of property 'vendor' must consist of exactly 12 characters");
                self.own_vendor = Some(vendor.map_err(wrong)?);
                return Ok(());
            }
            "model-id" => {
                self.model_id = value.to_owned();
                return Ok(());
            }
            "phys-bits" => {
                let bits: u64 = value.parse().map_err(|_| err!("Parameter '{name}' expects uint64"))?;
                self.physical_bits = (bits != 0).then(|| u32::try_from(bits).unwrap_or(u32::MAX));
                return Ok(());
            }
            _ => {}
        }
        let on = match value {
            "on" | "yes" | "true" | "y" => true,
            "off" | "no" | "false" | "n" => false,
            _ => return Err(err!("Parameter '{name}' expects 'on' or 'off'")),
        };
        match name {
            "check" => self.check = on,
            "enforce" => self.enforce = on,
            "kvm" => self.shows_kvm = on,
            _ => {
                let canonical = name.replace('_', "-");
                let other = OTHER_NAMES.iter().find(|(n, _)| *n == canonical).map_or(canonical.as_str(), |(_, n)| n);
                if !self.switch(other, on) {
                    return Err(err!("Property '{}-x86_64-cpu.{name}' not found", self.name));
                }
            }
        }
        Ok(())
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the number of cores that the guest is told of.
    pub fn with_cores(mut self, cores: u32) -> Self {
        self.cores = cores.max(1);
        self
    }

    /// The models there are, with QEMU's descriptions: what `-cpu help` lists.
    pub fn list() -> Vec<(String, String)> {
        let mut all = vec![];
        for info in MODELS {
            all.push((info.name.to_owned(), "(alias configured by machine type)".to_owned()));
            for (n, version) in info.versions.iter().enumerate() {
                let name = format!("{}-v{}", info.name, n + 1);
                if !version.alias.is_empty() {
                    all.push((version.alias.to_owned(), format!("(alias of {name})")));
                }
                let note = if version.note.is_empty() { String::new() } else { format!(" {}", version.note) };
                all.push((name, format!("{}{note}", version.model_id)));
            }
        }
        all.sort();
        all.push(("host".into(), "processor with all supported host features ".into()));
        all.push(("max".into(), "Enables all features supported by the accelerator in the current host".into()));
        all
    }

    /// The names of all models, versions too, as QEMU lists them.
    pub fn type_names() -> Vec<String> {
        let mut names: Vec<_> = Self::list().into_iter().map(|(name, _)| name).collect();
        names.truncate(names.len() - 2);
        names.sort_by(|a, b| b.cmp(a));
        ["max", "host"].map(str::to_owned).into_iter().chain(names).collect()
    }

    /// The version that a name without one stands for.
    pub fn alias(name: &str) -> Option<String> {
        let (info, version) = find(name)?;
        let n = info.versions.iter().position(|v| std::ptr::eq(v, version))? + 1;
        let full = format!("{}-v{n}", info.name);
        (full != name).then_some(full)
    }

    /// The names of all features that can be switched.
    pub fn feature_names() -> Vec<&'static str> {
        let mut names: Vec<_> = TABLE.iter().flat_map(|w| w.names.iter().copied()).filter(|n| !n.is_empty()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The features that are asked for and not to be had, as (word, bit).
    fn missing(&self, supported: &[kvm_cpuid_entry2], engine: Engine) -> Vec<(&'static WordInfo, u32)> {
        let mut missing = vec![];
        for (value, info) in self.features.iter().zip(&TABLE) {
            let lacks = value & !available(info, supported, engine);
            // KVM's own features are for KVM's guests.
            if info.word != Word::KvmEax && !self.everything {
                missing.extend((0..32).filter(|b| lacks & 1 << b != 0).map(|b| (info, b)));
            }
        }
        missing
    }

    /// The names of features that are asked for and not to be had.
    pub fn unavailable(&self, supported: &[kvm_cpuid_entry2], engine: Engine) -> Vec<&'static str> {
        self.missing(supported, engine).into_iter().map(|(info, bit)| info.names[bit as usize]).collect()
    }

    /// The CPUID leaves for one vCPU, of what the engine supports. Features that it lacks are left out with a warning.
    ///
    /// # Errors
    /// When features are missing and the user wants none to be.
    pub fn cpuid(
        &self,
        supported: &[kvm_cpuid_entry2],
        engine: Engine,
        apic_id: u32,
        warn: &mut dyn FnMut(String),
    ) -> Result<Vec<kvm_cpuid_entry2>> {
        let (lacks, refuses) = match engine {
            Engine::Kvm => ("host doesn't", "Host doesn't"),
            Engine::Tcg => ("TCG doesn't", "TCG doesn't"),
        };
        let missing = self.missing(supported, engine);
        if (self.check || self.enforce) && apic_id == 0 {
            for (info, bit) in &missing {
                let (label, name) = (info.label, info.names[*bit as usize]);
                warn(format!("{lacks} support requested feature: {label}.{name} [bit {bit}]"));
            }
        }
        if self.enforce && !missing.is_empty() {
            bail!("{refuses} support requested features");
        }
        let mut features = self.features;
        for (value, info) in features.iter_mut().zip(&TABLE) {
            *value &= available(info, supported, engine);
        }
        if self.everything {
            features[Word::Leaf1Ecx as usize] &= !(1 << 3);
            features[Word::ThermalEax as usize] &= 1 << 2;
        }
        if self.cores > 1 {
            features[Word::Leaf1Edx as usize] |= 1 << 28;
        }
        let host = |leaf: u32, index: u32| entry(supported, leaf, index);
        Ok(self.leaves(&features, engine, apic_id, &host))
    }

    /// Leaves that have features are there, unless the user has said up to where they go.
    fn numbers_for(&self, features: &[u32; WORDS]) -> Numbers {
        let mut numbers = self.numbers;
        for info in TABLE.iter().filter(|i| features[i.word as usize] != 0) {
            match info.leaf {
                0..=0xff if !self.fixed_level => numbers.level = numbers.level.max(info.leaf),
                0x8000_0000..=0x8000_00ff if !self.fixed_xlevel => numbers.xlevel = numbers.xlevel.max(info.leaf),
                _ => {}
            }
        }
        numbers
    }

    fn leaves(
        &self,
        features: &[u32; WORDS],
        engine: Engine,
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
        let vendor = match self.own_vendor.or(self.vendor.filter(|_| engine == Engine::Tcg)) {
            Some(v) => {
                let part = |i: usize| u32::from_le_bytes([v[i], v[i + 1], v[i + 2], v[i + 3]]);
                [part(0), part(4), part(8)]
            }
            None => {
                let leaf = host(0, 0);
                [leaf.ebx, leaf.edx, leaf.ecx]
            }
        };
        let amd = vendor == AMD;
        let numbers = self.numbers_for(features);
        let signature = if self.everything && numbers.family == 0 { host(1, 0).eax } else { signature(&numbers) };
        add(0, None, numbers.level, vendor[0], vendor[2], vendor[1]);
        let ebx = apic_id << 24 | 8 << 8 | if self.cores > 1 { self.cores << 16 } else { 0 };
        add(1, None, signature, ebx, word(Word::Leaf1Ecx), word(Word::Leaf1Edx));
        // A descriptor of each cache: 32 KiB L1, 4 MiB L2, 16 MiB L3 (Intel SDM, table 3-12).
        // AMD's processors have no such leaves.
        if !amd {
            add(2, None, 1, 0, 0x4d, 0x002c_307d);
        }
        let cores_field = (self.cores.next_power_of_two() - 1) << 26;
        for (index, kind, level, ways, sets, shared) in
            [(0, 1, 1, 8, 64, 0), (1, 2, 1, 8, 64, 0), (2, 3, 2, 16, 4096, 0), (3, 3, 3, 16, 16384, self.cores - 1)]
        {
            let eax = kind | level << 5 | 1 << 8 | shared << 14 | cores_field;
            if amd {
                continue;
            }
            add(4, Some(index), eax, (ways - 1) << 22 | 63, sets - 1, u32::from(level == 3) << 1 | 1);
        }
        add(5, None, 0, 0, 3, 0);
        add(6, None, word(Word::ThermalEax), 0, 0, 0);
        let sub = u32::from(word(Word::Leaf71Eax) != 0);
        if sub != 0 {
            add(7, Some(1), word(Word::Leaf71Eax), 0, 0, 0);
        }
        add(7, Some(0), sub, word(Word::Leaf7Ebx), word(Word::Leaf7Ecx), word(Word::Leaf7Edx));
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
        if self.shows_kvm {
            add(0x4000_0000, None, 0x4000_0001, kvm(0), kvm(4), kvm(8));
            add(0x4000_0001, None, word(Word::KvmEax), 0, 0, 0);
        }
        add(0x8000_0000, None, numbers.xlevel, vendor[0], vendor[2], vendor[1]);
        let mut edx = word(Word::ExtendedEdx);
        if amd {
            edx |= word(Word::Leaf1Edx) & AMD_ALIASES;
        }
        add(0x8000_0001, None, signature, 0, word(Word::ExtendedEcx), edx);
        for i in 0..3 {
            if self.everything && self.model_id.is_empty() {
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
        let address_bits = self.physical_bits.map_or(address_bits, |bits| address_bits & !0xff | bits);
        let ecx = self.cores.saturating_sub(1);
        add(0x8000_0008, None, address_bits, word(Word::Extended8Ebx), ecx, 0);
        if amd && numbers.xlevel >= 0x8000_001e {
            // Its own id, that of its core, one node.
            add(0x8000_001e, None, apic_id, apic_id & 0xff, 0, 0);
        }
        if word(Word::Extended21Eax) != 0 {
            add(0x8000_0021, None, word(Word::Extended21Eax), 0, 0, 0);
        }
        leaves
    }
}

/// "AuthenticAMD".
const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];

/// The model and the version that a name means.
fn find(name: &str) -> Option<(&'static ModelInfo, &'static VersionInfo)> {
    MODELS.iter().find_map(|info| {
        let of_alias = info.versions.iter().find(|v| !v.alias.is_empty() && v.alias == name);
        let numbered = || {
            let rest = name.strip_prefix(info.name)?;
            let number = if rest.is_empty() { 1 } else { rest.strip_prefix("-v")?.parse::<usize>().ok()? };
            info.versions.get(number.checked_sub(1)?)
        };
        of_alias.or_else(numbered).map(|version| (info, version))
    })
}

fn entry(supported: &[kvm_cpuid_entry2], leaf: u32, index: u32) -> kvm_cpuid_entry2 {
    let found = supported.iter().find(|e| e.function == leaf && (e.index == index || e.flags & 1 == 0));
    found.copied().unwrap_or_default()
}

/// The bits of a word that an engine has.
fn available(info: &WordInfo, supported: &[kvm_cpuid_entry2], engine: Engine) -> u32 {
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

/// EAX of leaf 1 (Intel SDM volume 2, figure 3-6).
fn signature(n: &Numbers) -> u32 {
    let (base, extended) = if n.family > 15 { (15, n.family - 15) } else { (n.family, 0) };
    extended << 20 | (n.model >> 4) << 16 | base << 8 | (n.model & 15) << 4 | n.stepping
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

    fn leaves(option: &str, engine: Engine) -> impl Fn(u32) -> kvm_cpuid_entry2 {
        let model = CpuModel::parse(option, engine).unwrap();
        let leaves = model.cpuid(&all_supported(), engine, 0, &mut |w| panic!("{w}")).unwrap();
        move |f| *leaves.iter().find(|l| l.function == f).unwrap()
    }

    #[test]
    fn every_feature_of_the_table_has_a_bit() {
        for info in MODELS {
            let changes = info.versions.iter().flat_map(|v| v.changes.split_whitespace()).filter(|c| !c.contains('='));
            let names = info.features.split_whitespace().chain(changes.map(|c| &c[1..]));
            for name in names {
                assert!(TABLE.iter().any(|w| w.names.contains(&name)), "{name} of {}", info.name);
            }
            assert_eq!(find(info.name).unwrap().0.name, info.name);
        }
    }

    #[test]
    fn qemu64_is_family_15_model_107_and_takes_switches() {
        let leaf = leaves("qemu64,kvmclock=off,+aes,-nx", Engine::Kvm);
        assert_eq!(leaf(1).eax, 0x0006_0fb1);
        assert_ne!(leaf(1).ecx & 1 << 25, 0);
        assert_eq!(leaf(0x8000_0001).edx & 1 << 20, 0);
        assert_eq!(leaf(0x4000_0001).eax & 9, 0, "both of kvmclock's bits");
    }

    /// The values are those that a guest of QEMU 10.0.2 reads, but for what its TCG lacks and x2APIC.
    #[test]
    fn haswell_has_qemus_leaves() {
        let leaf = leaves("Haswell", Engine::Tcg);
        let of = |l: kvm_cpuid_entry2| [l.eax, l.ebx, l.ecx, l.edx];
        assert_eq!(of(leaf(0)), [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
        assert_eq!(leaf(1).eax, 0x0003_06c4);
        assert_eq!(leaf(1).ecx & !(1 << 17 | 1 << 24), 0xf6f8_3203);
        assert_eq!(leaf(7).ebx & !(1 << 4 | 1 << 10 | 1 << 11), 0x3a9);
        assert_eq!(of(leaf(0x8000_0001)), [0x0003_06c4, 0, 0x21, 0x2810_0800]);
        assert_eq!(of(leaf(0x8000_0002)), [0x6574_6e49, 0x6f43_206c, 0x5020_6572, 0x6563_6f72]);
        let other =
            leaves("Haswell-noTSX,vendor=AuthenticAMD,family=0x17,model=1,stepping=2,model-id=x,level=7", Engine::Kvm);
        assert_eq!((other(0).eax, other(0).ebx, other(1).eax), (7, 0x6874_7541, 0x0080_0f12));
        assert_eq!((other(7).ebx & (1 << 4 | 1 << 11), other(0x8000_0002).eax), (0, u32::from(b'x')));
        assert_eq!(leaves("Conroe,+bmi1,xlevel=0x80000004", Engine::Tcg)(0x8000_0000).eax, 0x8000_0004);
    }

    #[test]
    fn a_feature_that_the_host_lacks_is_left_out_with_a_warning() {
        let mut host = all_supported();
        host.iter_mut().filter(|e| e.function == 1).for_each(|e| e.ecx = !1);
        let try_it = |option| {
            let mut warnings = vec![];
            let model = CpuModel::parse(option, Engine::Kvm).unwrap();
            (model.cpuid(&host, Engine::Kvm, 0, &mut |w| warnings.push(w)), warnings)
        };
        let (leaves, warnings) = try_it("qemu64");
        assert_eq!(leaves.unwrap().iter().find(|l| l.function == 1).unwrap().ecx & 1, 0);
        assert_eq!(warnings, ["host doesn't support requested feature: CPUID.01H:ECX.pni [bit 0]"]);
        assert!(try_it("qemu64,check=off").1.is_empty());
        assert_eq!(try_it("qemu64,enforce").0.unwrap_err().message(), "Host doesn't support requested features");
        let model = CpuModel::parse("qemu64", Engine::Tcg).unwrap();
        assert_eq!(model.unavailable(&host, Engine::Tcg), ["pni"]);
    }

    #[test]
    fn names_are_those_of_qemu() {
        assert_eq!(CpuModel::alias("Haswell-noTSX-IBRS").as_deref(), Some("Haswell-v4"));
        assert_eq!(CpuModel::alias("EPYC").as_deref(), Some("EPYC-v1"));
        assert_eq!(CpuModel::alias("EPYC-v1"), None);
        let model = CpuModel::parse("Haswell,-aes,model=5", Engine::Tcg).unwrap();
        let of = |name| model.property(name);
        assert_eq!((of("sse3"), of("aes")), (Some(Property::Switch(true)), Some(Property::Switch(false))));
        assert_eq!((of("model"), of("nosuch")), (Some(Property::Number(5)), None));
        assert_eq!(of("vendor"), Some(Property::Text("GenuineIntel".into())));
        let names = CpuModel::type_names();
        assert_eq!(names[..4], ["max", "host", "qemu64-v1", "qemu64"]);
        for name in &names[2..] {
            assert!(CpuModel::parse(name, Engine::Tcg).is_ok(), "{name}");
        }
    }

    #[test]
    fn wrong_uses_get_qemus_errors() {
        let error = |text| CpuModel::parse(text, Engine::Tcg).unwrap_err().message().to_owned();
        assert_eq!(error("nosuch"), "unable to find CPU model 'nosuch'");
        assert_eq!(error("Haswell-v9"), "unable to find CPU model 'Haswell-v9'");
        assert_eq!(error("host"), "CPU model 'host' requires KVM or HVF");
        let global = "can't apply global qemu64-x86_64-cpu.";
        let unknown = "Property 'qemu64-x86_64-cpu.bogus' not found";
        assert_eq!(error("qemu64,bogus=on"), format!("{global}bogus=on: {unknown}"));
        assert_eq!(error("qemu64,bogus"), format!("{global}bogus=on: {unknown}"));
        assert_eq!(error("qemu64,+bogus"), unknown);
        assert_eq!(error("qemu64,nx=maybe"), format!("{global}nx=maybe: Parameter 'nx' expects 'on' or 'off'"));
        assert_eq!(error("qemu64,family=300"), format!("{global}family=300: parameter 'family' can be at most 270"));
        assert_eq!(error("qemu64,level=x"), format!("{global}level=x: Parameter 'level' expects uint64"));
        assert_eq!(error("qemu64,phys-bits=99"), "phys-bits should be between 32 and 52  (but is 99)");
        let vendor = "value of property 'vendor' must consist of exactly 12 characters";
        assert_eq!(error("qemu64,vendor=abc"), format!("{global}vendor=abc: {vendor}"));
    }
}
