//! The CPUID leaves of a model.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::{
    CpuModel, Engine, Numbers,
    words::{TABLE, WORDS, Word},
};

/// The bits of leaf 0x8000_0001 EDX that AMD repeats from leaf 1.
const AMD_ALIASES: u32 = 0x0183_f3ff;

/// "AuthenticAMD".
const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];

impl CpuModel {
    /// Leaves that have features are there, whatever the model's level.
    pub(super) fn numbers_for(&self, features: &[u32; WORDS]) -> Numbers {
        let mut numbers = self.numbers;
        for info in TABLE.iter().filter(|i| features[i.word as usize] != 0) {
            match info.leaf {
                0..=0xff => numbers.level = numbers.level.max(info.leaf),
                0x8000_0000..=0x8000_00ff => numbers.xlevel = numbers.xlevel.max(info.leaf),
                _ => {}
            }
        }
        numbers
    }

    pub(super) fn leaves(
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
        let mut numbers = self.numbers_for(features);
        // Unless the user has said up to where they go.
        numbers.level = self.own_level.unwrap_or(numbers.level);
        numbers.xlevel = self.own_xlevel.unwrap_or(numbers.xlevel);
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

pub(super) fn entry(supported: &[kvm_cpuid_entry2], leaf: u32, index: u32) -> kvm_cpuid_entry2 {
    let found = supported.iter().find(|e| e.function == leaf && (e.index == index || e.flags & 1 == 0));
    found.copied().unwrap_or_default()
}

/// EAX of leaf 1 (Intel SDM volume 2, figure 3-6).
fn signature(n: &Numbers) -> u32 {
    let (base, extended) = if n.family > 15 { (15, n.family - 15) } else { (n.family, 0) };
    extended << 20 | (n.model >> 4) << 16 | base << 8 | (n.model & 15) << 4 | n.stepping
}

/// Family, model and stepping of leaf 1's EAX.
pub(super) fn numbers_of(signature: u32) -> Numbers {
    let base = signature >> 8 & 15;
    let (family, extended) = if base == 15 { (base + (signature >> 20 & 0xff), true) } else { (base, base == 6) };
    let upper = if extended { signature >> 16 & 15 } else { 0 };
    Numbers { family, model: upper << 4 | signature >> 4 & 15, stepping: signature & 15, ..Numbers::default() }
}

/// The vendor's name in leaf 0.
pub(super) fn vendor_of(supported: &[kvm_cpuid_entry2]) -> [u8; 12] {
    let leaf = entry(supported, 0, 0);
    let mut name = [0; 12];
    for (part, word) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    name
}

/// The processor's name in leaves 0x8000_0002 to 0x8000_0004.
pub(super) fn model_id_of(supported: &[kvm_cpuid_entry2]) -> String {
    let leaves = (0x8000_0002..=0x8000_0004).map(|leaf| entry(supported, leaf, 0));
    let bytes: Vec<u8> = leaves.flat_map(|l| [l.eax, l.ebx, l.ecx, l.edx]).flat_map(u32::to_le_bytes).collect();
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}
