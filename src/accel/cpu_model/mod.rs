//! CPU models: what `-cpu NAME,feature=on,...` means in CPUID leaves.
//!
//! Names and bits are those of the Intel SDM (volume 2, CPUID), the AMD APM (volume 3, appendix E) and
//! `Documentation/virt/kvm/x86/cpuid.rst`, as QEMU spells them.

/// A CPUID leaf, as engines tell of theirs.
pub use kvm_bindings::kvm_cpuid_entry2 as CpuidEntry;
use kvm_bindings::kvm_cpuid_entry2;
use lockstep_util::{Result, bail, err};

use leaves::{entry, model_id_of, numbers_of, vendor_of};
use models::{MODELS, find};
pub use words::Word;
use words::{OTHER_NAMES, TABLE, WORDS, WordInfo, available};

mod leaves;
mod models;
#[cfg(test)]
mod tests;
mod words;

/// What identifies a processor beside its names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Family, as `-cpu` has it: base and extended family added.
    pub family: u32,
    /// Model number.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
    /// The highest basic leaf; features of higher ones raise it.
    pub level: u32,
    /// The highest extended leaf, likewise.
    pub xlevel: u32,
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
    /// The user's `level` and `xlevel`, which no feature raises.
    own_level: Option<u32>,
    own_xlevel: Option<u32>,
    physical_bits: Option<u32>,
    /// KVM is told of.
    shows_kvm: bool,
    check: bool,
    enforce: bool,
    /// Cores in the one socket.
    cores: u32,
}

/// KVM's own features that are on unless asked otherwise.
const KVM_DEFAULTS: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 24;

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
            own_level: None,
            own_xlevel: None,
            physical_bits: None,
            shows_kvm: true,
            check: true,
            enforce: false,
            cores: 1,
        };
        if matches!(name, "host" | "max") {
            return Some(model);
        }
        model.everything = false;
        model.features = [0; WORDS];
        if name == "base" {
            model.numbers = Numbers::default();
            model.own_vendor = Some([0; 12]);
            return Some(model);
        }
        let (info, version) = find(name)?;
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

    /// The model of this name with all that the engine has where it asks for everything, its vendor's name too: what
    /// `query-cpu-model-expansion` shows. None: there is no such model.
    pub fn expansion(
        name: &str,
        changes: &[(&str, String)],
        supported: &[kvm_cpuid_entry2],
        engine: Engine,
    ) -> Option<Result<Self>> {
        let mut model = Self::named(name, engine)?;
        for (name, value) in changes {
            if let Err(e) = model.set(name, value) {
                return Some(Err(e));
            }
        }
        if model.everything {
            model.features = model.granted(supported, engine);
            if model.numbers.family == 0 {
                let Numbers { family, model: number, stepping, .. } = numbers_of(entry(supported, 1, 0).eax);
                model.numbers = Numbers { family, model: number, stepping, ..model.numbers };
            }
            if model.model_id.is_empty() {
                model.model_id = model_id_of(supported);
            }
        }
        if !model.shows_kvm {
            model.features[Word::KvmEax as usize] = 0;
        }
        if engine == Engine::Kvm || model.everything {
            model.own_vendor = model.own_vendor.or_else(|| Some(vendor_of(supported)));
        }
        Some(Ok(model))
    }

    /// A property of a model that is a number, with its limit.
    fn number(&mut self, name: &str) -> Option<(&mut u32, u32)> {
        let n = &mut self.numbers;
        Some(match name {
            "family" => (&mut n.family, 255 + 15),
            "model" => (&mut n.model, 255),
            "stepping" => (&mut n.stepping, 15),
            "min-level" => (&mut n.level, u32::MAX),
            "min-xlevel" => (&mut n.xlevel, u32::MAX),
            _ => return None,
        })
    }

    /// The limit of a property that is a number.
    fn limit(&mut self, name: &str) -> Option<u32> {
        match name {
            "level" | "xlevel" | "phys-bits" => Some(u32::MAX),
            _ => self.number(name).map(|(_, most)| most),
        }
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
        let name = &name.replace('_', "-");
        let other = OTHER_NAMES.iter().find(|(n, _)| n == name).map_or(name.as_str(), |(_, n)| n);
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
        let raised = self.numbers_for(&self.features);
        let n = &self.numbers;
        let vendor = self.own_vendor.or(self.vendor).unwrap_or_default();
        let vendor = String::from_utf8_lossy(&vendor).trim_end_matches('\0').to_owned();
        all.extend([
            ("family", Property::Number(n.family)),
            ("model", Property::Number(n.model)),
            ("stepping", Property::Number(n.stepping)),
            ("level", Property::Number(self.own_level.unwrap_or(raised.level))),
            ("xlevel", Property::Number(self.own_xlevel.unwrap_or(raised.xlevel))),
            ("min-level", Property::Number(raised.level)),
            ("min-xlevel", Property::Number(raised.xlevel)),
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
        if let Some(most) = self.limit(name) {
            // A number below zero is a large one.
            let decimal = || value.parse().or_else(|e| value.parse().map(i64::cast_unsigned).map_err(|_| e));
            let digits = value.strip_prefix("0x").map_or_else(decimal, |hex| u64::from_str_radix(hex, 16));
            let wanted: u64 = digits.map_err(|_| err!("Parameter '{name}' expects uint64"))?;
            let wanted = match u32::try_from(wanted) {
                Ok(wanted) if wanted <= most => wanted,
                _ if most == u32::MAX => bail!("Parameter '{name}' expects uint32_t"),
                _ => bail!("parameter '{name}' can be at most {most}"),
            };
            match name {
                // The greatest of all stands for none.
                "level" => self.own_level = Some(wanted).filter(|n| *n != u32::MAX),
                "xlevel" => self.own_xlevel = Some(wanted).filter(|n| *n != u32::MAX),
                "phys-bits" => self.physical_bits = Some(wanted).filter(|n| *n != 0),
                _ => {
                    if let Some((number, _)) = self.number(name) {
                        *number = wanted;
                    }
                }
            }
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
        all.push(("base".into(), "base CPU model type with no features enabled".into()));
        all.push(("host".into(), "processor with all supported host features ".into()));
        all.push(("max".into(), "Enables all features supported by the accelerator in the current host".into()));
        all
    }

    /// The names of all models, versions too, as QEMU lists them.
    pub fn type_names() -> Vec<String> {
        let mut names: Vec<_> = Self::list().into_iter().map(|(name, _)| name).collect();
        names.truncate(names.len() - 3);
        names.sort_by(|a, b| b.cmp(a));
        ["max", "host", "base"].map(str::to_owned).into_iter().chain(names).collect()
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

    /// The features that are asked for and to be had.
    fn granted(&self, supported: &[kvm_cpuid_entry2], engine: Engine) -> [u32; WORDS] {
        let mut features = self.features;
        for (value, info) in features.iter_mut().zip(&TABLE) {
            *value &= available(info, supported, engine);
        }
        if self.everything {
            features[Word::Leaf1Ecx as usize] &= !(1 << 3);
            features[Word::ThermalEax as usize] &= 1 << 2;
        }
        features
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
        let mut features = self.granted(supported, engine);
        if self.cores > 1 {
            features[Word::Leaf1Edx as usize] |= 1 << 28;
        }
        let host = |leaf: u32, index: u32| entry(supported, leaf, index);
        Ok(self.leaves(&features, engine, apic_id, &host))
    }
}
