//! The named CPU models: what the processors that they are called after have, as QEMU's models of the same names say it.
//!
//! The features are those of version 1; later versions say what they change.

use super::Numbers;

/// A model, with its versions from 1 on.
pub(super) struct ModelInfo {
    pub name: &'static str,
    pub vendor: &'static [u8; 12],
    pub numbers: Numbers,
    /// Features of version 1.
    pub features: &'static str,
    pub versions: &'static [VersionInfo],
}

/// What a version of a model changes of version 1.
pub(super) struct VersionInfo {
    /// A name of its own.
    pub alias: &'static str,
    pub model_id: &'static str,
    pub note: &'static str,
    pub changes: &'static str,
}

/// The model and the version that a name means.
pub(super) fn find(name: &str) -> Option<(&'static ModelInfo, &'static VersionInfo)> {
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

#[rustfmt::skip]
pub(super) static MODELS: &[ModelInfo] = &[
    ModelInfo {
        name: "Broadwell",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 61, stepping: 2, level: 13, xlevel: 0x80000008 },
        features: "3dnowprefetch abm adx aes apic arat avx avx2 bmi1 bmi2 clflush cmov cx16 cx8 de erms f16c fma fpu \
            fsgsbase fxsr hle invpcid lahf-lm lm mca mce mmx movbe msr mtrr nx pae pat pcid pclmulqdq pge pni popcnt \
            pse pse36 rdrand rdseed rdtscp rtm sep smap smep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline \
            vme x2apic xsave xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Core Processor (Broadwell)", note: "", changes: "" },
            VersionInfo { alias: "Broadwell-noTSX", model_id: "Intel Core Processor (Broadwell, no TSX)", note: "", changes: "-hle -rtm" },
            VersionInfo { alias: "Broadwell-IBRS", model_id: "Intel Core Processor (Broadwell, IBRS)", note: "", changes: "+spec-ctrl" },
            VersionInfo { alias: "Broadwell-noTSX-IBRS", model_id: "Intel Core Processor (Broadwell, no TSX, IBRS)", note: "", changes: "+spec-ctrl -hle -rtm" },
        ],
    },
    ModelInfo {
        name: "Cascadelake-Server",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 85, stepping: 6, level: 13, xlevel: 0x80000008 },
        features: "3dnowprefetch abm adx aes apic arat avx avx2 avx512bw avx512cd avx512dq avx512f avx512vl avx512vnni bmi1 \
            bmi2 clflush clflushopt clwb cmov cx16 cx8 de erms f16c fma fpu fsgsbase fxsr hle invpcid lahf-lm lm mca \
            mce mmx movbe msr mtrr nx pae pat pcid pclmulqdq pdpe1gb pge pku pni popcnt pse pse36 rdrand rdseed \
            rdtscp rtm sep smap smep spec-ctrl ssbd sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline vme x2apic \
            xgetbv1 xsave xsavec xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Cascadelake)", note: "", changes: "" },
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Cascadelake)", note: "[ARCH_CAPABILITIES]", changes: "+arch-capabilities +ibrs-all +mds-no +rdctl-no +skip-l1dfl-vmentry" },
            VersionInfo { alias: "Cascadelake-Server-noTSX", model_id: "Intel Xeon Processor (Cascadelake)", note: "[ARCH_CAPABILITIES, no TSX]", changes: "+arch-capabilities +ibrs-all +mds-no +rdctl-no +skip-l1dfl-vmentry -hle -rtm" },
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Cascadelake)", note: "[ARCH_CAPABILITIES, EPT switching, no TSX]", changes: "+arch-capabilities +ibrs-all +mds-no +rdctl-no +skip-l1dfl-vmentry -hle -rtm" },
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Cascadelake)", note: "[ARCH_CAPABILITIES, EPT switching, XSAVES, no TSX]", changes: "+arch-capabilities +ibrs-all +mds-no +rdctl-no +skip-l1dfl-vmentry +xsaves -hle -rtm" },
        ],
    },
    ModelInfo {
        name: "Conroe",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 15, stepping: 3, level: 10, xlevel: 0x80000008 },
        features: "apic clflush cmov cx8 de fpu fxsr lahf-lm lm mca mce mmx msr mtrr nx pae pat pge pni pse pse36 sep sse \
            sse2 ssse3 syscall tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Celeron_4x0 (Conroe/Merom Class Core 2)", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "Cooperlake",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 85, stepping: 10, level: 13, xlevel: 0x80000008 },
        features: "3dnowprefetch abm adx aes apic arat arch-capabilities avx avx2 avx512-bf16 avx512bw avx512cd avx512dq \
            avx512f avx512vl avx512vnni bmi1 bmi2 clflush clflushopt clwb cmov cx16 cx8 de erms f16c fma fpu \
            fsgsbase fxsr hle ibrs-all invpcid lahf-lm lm mca mce mds-no mmx movbe msr mtrr nx pae pat pcid \
            pclmulqdq pdpe1gb pge pku pni popcnt pschange-mc-no pse pse36 rdctl-no rdrand rdseed rdtscp rtm sep \
            skip-l1dfl-vmentry smap smep spec-ctrl ssbd sse sse2 sse4.1 sse4.2 ssse3 stibp syscall taa-no tsc \
            tsc-deadline vme x2apic xgetbv1 xsave xsavec xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Cooperlake)", note: "", changes: "" },
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Cooperlake)", note: "[XSAVES]", changes: "+xsaves" },
        ],
    },
    ModelInfo {
        name: "Denverton",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 95, stepping: 1, level: 21, xlevel: 0x80000008 },
        features: "3dnowprefetch aes apic arat arch-capabilities clflush clflushopt cmov cx16 cx8 de erms fpu fsgsbase fxsr \
            lahf-lm lm mca mce mmx monitor movbe mpx msr mtrr nx pae pat pclmulqdq pdpe1gb pge pni popcnt pse pse36 \
            rdctl-no rdrand rdseed rdtscp sep sha-ni skip-l1dfl-vmentry smap smep spec-ctrl ssbd sse sse2 sse4.1 \
            sse4.2 ssse3 syscall tsc tsc-deadline vme x2apic xgetbv1 xsave xsavec xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Atom Processor (Denverton)", note: "", changes: "" },
            VersionInfo { alias: "", model_id: "Intel Atom Processor (Denverton)", note: "[no MPX, no MONITOR]", changes: "-monitor -mpx" },
            VersionInfo { alias: "", model_id: "Intel Atom Processor (Denverton)", note: "[XSAVES, no MPX, no MONITOR]", changes: "+xsaves -monitor -mpx" },
        ],
    },
    ModelInfo {
        name: "Dhyana",
        vendor: b"HygonGenuine",
        numbers: Numbers { family: 24, model: 0, stepping: 1, level: 13, xlevel: 0x8000001e },
        features: "3dnowprefetch abm adx apic arat avx avx2 bmi1 bmi2 clflush clflushopt cmov cr8legacy cx16 cx8 de f16c \
            fma fpu fsgsbase fxsr fxsr-opt ibpb lahf-lm lm mca mce misalignsse mmx mmxext monitor movbe msr mtrr npt \
            nrip-save nx osvw pae pat pdpe1gb pge pni popcnt pse pse36 rdrand rdseed rdtscp sep smap smep sse sse2 \
            sse4.1 sse4.2 sse4a ssse3 svm syscall topoext tsc vme xgetbv1 xsave xsavec xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "Hygon Dhyana Processor", note: "", changes: "" },
            VersionInfo { alias: "", model_id: "Hygon Dhyana Processor", note: "[XSAVES]", changes: "+xsaves" },
        ],
    },
    ModelInfo {
        name: "EPYC",
        vendor: b"AuthenticAMD",
        numbers: Numbers { family: 23, model: 1, stepping: 2, level: 13, xlevel: 0x8000001e },
        features: "3dnowprefetch abm adx aes apic arat avx avx2 bmi1 bmi2 clflush clflushopt cmov cr8legacy cx16 cx8 de \
            f16c fma fpu fsgsbase fxsr fxsr-opt lahf-lm lm mca mce misalignsse mmx mmxext monitor movbe msr mtrr npt \
            nrip-save nx osvw pae pat pclmulqdq pdpe1gb pge pni popcnt pse pse36 rdrand rdseed rdtscp sep sha-ni \
            smap smep sse sse2 sse4.1 sse4.2 sse4a ssse3 svm syscall topoext tsc vme xgetbv1 xsave xsavec xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "AMD EPYC Processor", note: "", changes: "" },
            VersionInfo { alias: "EPYC-IBPB", model_id: "AMD EPYC Processor (with IBPB)", note: "", changes: "+ibpb" },
            VersionInfo { alias: "", model_id: "AMD EPYC Processor", note: "", changes: "+clzero +ibpb +perfctr-core +xsaveerptr +xsaves" },
            VersionInfo { alias: "", model_id: "AMD EPYC-v4 Processor", note: "", changes: "+clzero +ibpb +perfctr-core +xsaveerptr +xsaves" },
        ],
    },
    ModelInfo {
        name: "EPYC-Milan",
        vendor: b"AuthenticAMD",
        numbers: Numbers { family: 25, model: 1, stepping: 1, level: 13, xlevel: 0x8000001e },
        features: "3dnowprefetch abm adx aes amd-ssbd amd-stibp apic arat avx avx2 bmi1 bmi2 clflush clflushopt clwb clzero \
            cmov cr8legacy cx16 cx8 de erms f16c fma fpu fsgsbase fsrm fxsr fxsr-opt ibpb ibrs invpcid lahf-lm lm \
            mca mce misalignsse mmx mmxext monitor movbe msr mtrr npt nrip-save nx osvw pae pat pcid pclmulqdq \
            pdpe1gb perfctr-core pge pku pni popcnt pse pse36 rdpid rdrand rdseed rdtscp sep sha-ni smap smep sse \
            sse2 sse4.1 sse4.2 sse4a ssse3 svm svme-addr-chk syscall topoext tsc umip vme wbnoinvd xgetbv1 xsave \
            xsavec xsaveerptr xsaveopt xsaves",
        versions: &[
            VersionInfo { alias: "", model_id: "AMD EPYC-Milan Processor", note: "", changes: "" },
            VersionInfo { alias: "", model_id: "AMD EPYC-Milan-v2 Processor", note: "", changes: "+amd-psfd +lfence-always-serializing +no-nested-data-bp +null-sel-clr-base +stibp-always-on \
                    +vaes +vpclmulqdq min-xlevel=2147483681" },
        ],
    },
    ModelInfo {
        name: "EPYC-Rome",
        vendor: b"AuthenticAMD",
        numbers: Numbers { family: 23, model: 49, stepping: 0, level: 13, xlevel: 0x8000001e },
        features: "3dnowprefetch abm adx aes amd-stibp apic arat avx avx2 bmi1 bmi2 clflush clflushopt clwb clzero cmov \
            cr8legacy cx16 cx8 de f16c fma fpu fsgsbase fxsr fxsr-opt ibpb lahf-lm lm mca mce misalignsse mmx mmxext \
            monitor movbe msr mtrr npt nrip-save nx osvw pae pat pclmulqdq pdpe1gb perfctr-core pge pni popcnt pse \
            pse36 rdpid rdrand rdseed rdtscp sep sha-ni smap smep sse sse2 sse4.1 sse4.2 sse4a ssse3 svm syscall \
            topoext tsc umip vme wbnoinvd xgetbv1 xsave xsavec xsaveerptr xsaveopt xsaves",
        versions: &[
            VersionInfo { alias: "", model_id: "AMD EPYC-Rome Processor", note: "", changes: "" },
            VersionInfo { alias: "", model_id: "AMD EPYC-Rome Processor", note: "", changes: "+amd-ssbd +ibrs" },
            VersionInfo { alias: "", model_id: "AMD EPYC-Rome-v3 Processor", note: "", changes: "+amd-ssbd +ibrs" },
            VersionInfo { alias: "", model_id: "AMD EPYC-Rome-v4 Processor (no XSAVES)", note: "", changes: "+amd-ssbd +ibrs -xsaves" },
        ],
    },
    ModelInfo {
        name: "Haswell",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 60, stepping: 4, level: 13, xlevel: 0x80000008 },
        features: "abm aes apic arat avx avx2 bmi1 bmi2 clflush cmov cx16 cx8 de erms f16c fma fpu fsgsbase fxsr hle \
            invpcid lahf-lm lm mca mce mmx movbe msr mtrr nx pae pat pcid pclmulqdq pge pni popcnt pse pse36 rdrand \
            rdtscp rtm sep smep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline vme x2apic xsave xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Core Processor (Haswell)", note: "", changes: "" },
            VersionInfo { alias: "Haswell-noTSX", model_id: "Intel Core Processor (Haswell, no TSX)", note: "", changes: "-hle -rtm stepping=1" },
            VersionInfo { alias: "Haswell-IBRS", model_id: "Intel Core Processor (Haswell, IBRS)", note: "", changes: "+spec-ctrl" },
            VersionInfo { alias: "Haswell-noTSX-IBRS", model_id: "Intel Core Processor (Haswell, no TSX, IBRS)", note: "", changes: "+spec-ctrl -hle -rtm stepping=1" },
        ],
    },
    ModelInfo {
        name: "Icelake-Server",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 134, stepping: 0, level: 13, xlevel: 0x80000008 },
        features: "3dnowprefetch abm adx aes apic arat avx avx2 avx512-vpopcntdq avx512bitalg avx512bw avx512cd avx512dq \
            avx512f avx512vbmi avx512vbmi2 avx512vl avx512vnni bmi1 bmi2 clflush clflushopt clwb cmov cx16 cx8 de \
            erms f16c fma fpu fsgsbase fxsr gfni hle invpcid la57 lahf-lm lm mca mce mmx movbe msr mtrr nx pae pat \
            pcid pclmulqdq pdpe1gb pge pku pni popcnt pse pse36 rdrand rdseed rdtscp rtm sep smap smep spec-ctrl \
            ssbd sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline umip vaes vme vpclmulqdq wbnoinvd x2apic \
            xgetbv1 xsave xsavec xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Icelake)", note: "", changes: "" },
            VersionInfo { alias: "Icelake-Server-noTSX", model_id: "Intel Xeon Processor (Icelake)", note: "[no TSX]", changes: "-hle -rtm" },
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Icelake)", note: "", changes: "+arch-capabilities +ibrs-all +mds-no +pschange-mc-no +rdctl-no +skip-l1dfl-vmentry +taa-no -hle \
                    -rtm" },
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Icelake)", note: "", changes: "+arch-capabilities +avx512ifma +fsrm +ibrs-all +mds-no +pschange-mc-no +rdctl-no +rdpid +sha-ni \
                    +skip-l1dfl-vmentry +taa-no -hle -rtm model=106" },
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Icelake)", note: "[XSAVES]", changes: "+arch-capabilities +avx512ifma +fsrm +ibrs-all +mds-no +pschange-mc-no +rdctl-no +rdpid +sha-ni \
                    +skip-l1dfl-vmentry +taa-no +xsaves -hle -rtm model=106" },
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Icelake)", note: "[5-level EPT]", changes: "+arch-capabilities +avx512ifma +fsrm +ibrs-all +mds-no +pschange-mc-no +rdctl-no +rdpid +sha-ni \
                    +skip-l1dfl-vmentry +taa-no +xsaves -hle -rtm model=106" },
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Icelake)", note: "[TSX, taa-no]", changes: "+arch-capabilities +avx512ifma +fsrm +ibrs-all +mds-no +pschange-mc-no +rdctl-no +rdpid +sha-ni \
                    +skip-l1dfl-vmentry +taa-no +xsaves model=106" },
        ],
    },
    ModelInfo {
        name: "IvyBridge",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 58, stepping: 9, level: 13, xlevel: 0x80000008 },
        features: "aes apic arat avx clflush cmov cx16 cx8 de erms f16c fpu fsgsbase fxsr lahf-lm lm mca mce mmx msr mtrr \
            nx pae pat pclmulqdq pge pni popcnt pse pse36 rdrand rdtscp sep smep sse sse2 sse4.1 sse4.2 ssse3 \
            syscall tsc tsc-deadline vme x2apic xsave xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Xeon E3-12xx v2 (Ivy Bridge)", note: "", changes: "" },
            VersionInfo { alias: "IvyBridge-IBRS", model_id: "Intel Xeon E3-12xx v2 (Ivy Bridge, IBRS)", note: "", changes: "+spec-ctrl" },
        ],
    },
    ModelInfo {
        name: "Nehalem",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 26, stepping: 3, level: 11, xlevel: 0x80000008 },
        features: "apic clflush cmov cx16 cx8 de fpu fxsr lahf-lm lm mca mce mmx msr mtrr nx pae pat pge pni popcnt pse \
            pse36 sep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Core i7 9xx (Nehalem Class Core i7)", note: "", changes: "" },
            VersionInfo { alias: "Nehalem-IBRS", model_id: "Intel Core i7 9xx (Nehalem Core i7, IBRS update)", note: "", changes: "+spec-ctrl" },
        ],
    },
    ModelInfo {
        name: "Opteron_G1",
        vendor: b"AuthenticAMD",
        numbers: Numbers { family: 15, model: 6, stepping: 1, level: 5, xlevel: 0x80000008 },
        features: "apic clflush cmov cx8 de fpu fxsr lm mca mce mmx msr mtrr nx pae pat pge pni pse pse36 sep sse sse2 \
            syscall tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "AMD Opteron 240 (Gen 1 Class Opteron)", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "Opteron_G2",
        vendor: b"AuthenticAMD",
        numbers: Numbers { family: 15, model: 6, stepping: 1, level: 5, xlevel: 0x80000008 },
        features: "apic clflush cmov cx16 cx8 de fpu fxsr lahf-lm lm mca mce mmx msr mtrr nx pae pat pge pni pse pse36 sep \
            sse sse2 svm syscall tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "AMD Opteron 22xx (Gen 2 Class Opteron)", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "Opteron_G3",
        vendor: b"AuthenticAMD",
        numbers: Numbers { family: 16, model: 2, stepping: 3, level: 5, xlevel: 0x80000008 },
        features: "abm apic clflush cmov cx16 cx8 de fpu fxsr lahf-lm lm mca mce misalignsse mmx monitor msr mtrr nx pae \
            pat pge pni popcnt pse pse36 rdtscp sep sse sse2 sse4a svm syscall tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "AMD Opteron 23xx (Gen 3 Class Opteron)", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "Opteron_G4",
        vendor: b"AuthenticAMD",
        numbers: Numbers { family: 21, model: 1, stepping: 2, level: 13, xlevel: 0x8000001a },
        features: "3dnowprefetch abm aes apic avx clflush cmov cx16 cx8 de fma4 fpu fxsr lahf-lm lm mca mce misalignsse mmx \
            msr mtrr npt nrip-save nx pae pat pclmulqdq pdpe1gb pge pni popcnt pse pse36 rdtscp sep sse sse2 sse4.1 \
            sse4.2 sse4a ssse3 svm syscall tsc vme xop xsave",
        versions: &[
            VersionInfo { alias: "", model_id: "AMD Opteron 62xx class CPU", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "Opteron_G5",
        vendor: b"AuthenticAMD",
        numbers: Numbers { family: 21, model: 2, stepping: 0, level: 13, xlevel: 0x8000001a },
        features: "3dnowprefetch abm aes apic avx clflush cmov cx16 cx8 de f16c fma fma4 fpu fxsr lahf-lm lm mca mce \
            misalignsse mmx msr mtrr npt nrip-save nx pae pat pclmulqdq pdpe1gb pge pni popcnt pse pse36 rdtscp sep \
            sse sse2 sse4.1 sse4.2 sse4a ssse3 svm syscall tbm tsc vme xop xsave",
        versions: &[
            VersionInfo { alias: "", model_id: "AMD Opteron 63xx class CPU", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "Penryn",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 23, stepping: 3, level: 10, xlevel: 0x80000008 },
        features: "apic clflush cmov cx16 cx8 de fpu fxsr lahf-lm lm mca mce mmx msr mtrr nx pae pat pge pni pse pse36 sep \
            sse sse2 sse4.1 ssse3 syscall tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Core 2 Duo P9xxx (Penryn Class Core 2)", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "SandyBridge",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 42, stepping: 1, level: 13, xlevel: 0x80000008 },
        features: "aes apic arat avx clflush cmov cx16 cx8 de fpu fxsr lahf-lm lm mca mce mmx msr mtrr nx pae pat pclmulqdq \
            pge pni popcnt pse pse36 rdtscp sep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline vme x2apic \
            xsave xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Xeon E312xx (Sandy Bridge)", note: "", changes: "" },
            VersionInfo { alias: "SandyBridge-IBRS", model_id: "Intel Xeon E312xx (Sandy Bridge, IBRS update)", note: "", changes: "+spec-ctrl" },
        ],
    },
    ModelInfo {
        name: "Skylake-Client",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 94, stepping: 3, level: 13, xlevel: 0x80000008 },
        features: "3dnowprefetch abm adx aes apic arat avx avx2 bmi1 bmi2 clflush cmov cx16 cx8 de erms f16c fma fpu \
            fsgsbase fxsr hle invpcid lahf-lm lm mca mce mmx movbe msr mtrr nx pae pat pcid pclmulqdq pge pni popcnt \
            pse pse36 rdrand rdseed rdtscp rtm sep smap smep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline \
            vme x2apic xgetbv1 xsave xsavec xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Core Processor (Skylake)", note: "", changes: "" },
            VersionInfo { alias: "Skylake-Client-IBRS", model_id: "Intel Core Processor (Skylake, IBRS)", note: "", changes: "+spec-ctrl" },
            VersionInfo { alias: "Skylake-Client-noTSX-IBRS", model_id: "Intel Core Processor (Skylake, IBRS, no TSX)", note: "", changes: "+spec-ctrl -hle -rtm" },
            VersionInfo { alias: "", model_id: "Intel Core Processor (Skylake, IBRS, no TSX)", note: "[IBRS, XSAVES, no TSX]", changes: "+spec-ctrl +xsaves -hle -rtm" },
        ],
    },
    ModelInfo {
        name: "Skylake-Server",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 85, stepping: 4, level: 13, xlevel: 0x80000008 },
        features: "3dnowprefetch abm adx aes apic arat avx avx2 avx512bw avx512cd avx512dq avx512f avx512vl bmi1 bmi2 \
            clflush clflushopt clwb cmov cx16 cx8 de erms f16c fma fpu fsgsbase fxsr hle invpcid lahf-lm lm mca mce \
            mmx movbe msr mtrr nx pae pat pcid pclmulqdq pdpe1gb pge pku pni popcnt pse pse36 rdrand rdseed rdtscp \
            rtm sep smap smep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline vme x2apic xgetbv1 xsave xsavec \
            xsaveopt",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Skylake)", note: "", changes: "" },
            VersionInfo { alias: "Skylake-Server-IBRS", model_id: "Intel Xeon Processor (Skylake, IBRS)", note: "", changes: "+spec-ctrl -clflushopt" },
            VersionInfo { alias: "Skylake-Server-noTSX-IBRS", model_id: "Intel Xeon Processor (Skylake, IBRS, no TSX)", note: "", changes: "+spec-ctrl -clflushopt -hle -rtm" },
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Skylake, IBRS, no TSX)", note: "[IBRS, EPT switching, no TSX]", changes: "+spec-ctrl -clflushopt -hle -rtm" },
            VersionInfo { alias: "", model_id: "Intel Xeon Processor (Skylake, IBRS, no TSX)", note: "[IBRS, XSAVES, EPT switching, no TSX]", changes: "+spec-ctrl +xsaves -clflushopt -hle -rtm" },
        ],
    },
    ModelInfo {
        name: "Westmere",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 44, stepping: 1, level: 11, xlevel: 0x80000008 },
        features: "aes apic arat clflush cmov cx16 cx8 de fpu fxsr lahf-lm lm mca mce mmx msr mtrr nx pae pat pclmulqdq pge \
            pni popcnt pse pse36 sep sse sse2 sse4.1 sse4.2 ssse3 syscall tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "Westmere E56xx/L56xx/X56xx (Nehalem-C)", note: "", changes: "" },
            VersionInfo { alias: "Westmere-IBRS", model_id: "Westmere E56xx/L56xx/X56xx (IBRS update)", note: "", changes: "+spec-ctrl" },
        ],
    },
    ModelInfo {
        name: "athlon",
        vendor: b"AuthenticAMD",
        numbers: Numbers { family: 6, model: 2, stepping: 3, level: 2, xlevel: 0x80000008 },
        features: "3dnow 3dnowext apic cmov cx8 de fpu fxsr mca mce mmx mmxext msr mtrr pae pat pge pse pse36 sep sse sse2 \
            tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "QEMU Virtual CPU version 2.5+", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "core2duo",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 15, stepping: 11, level: 10, xlevel: 0x80000008 },
        features: "acpi apic clflush cmov cx16 cx8 de fpu fxsr lahf-lm lm mca mce mmx monitor msr mtrr nx pae pat pge pni \
            pse pse36 sep ss sse sse2 ssse3 syscall tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "coreduo",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 14, stepping: 8, level: 10, xlevel: 0x80000008 },
        features: "acpi apic clflush cmov cx8 de fpu fxsr mca mce mmx monitor msr mtrr nx pae pat pge pni pse sep ss sse \
            sse2 tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "Genuine Intel(R) CPU           T2600  @ 2.16GHz", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "kvm32",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 15, model: 6, stepping: 1, level: 5, xlevel: 0x80000008 },
        features: "apic clflush cmov cx8 de fpu fxsr mca mce mmx msr mtrr pae pat pge pni pse pse36 sep sse sse2 tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "Common 32-bit KVM processor", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "kvm64",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 15, model: 6, stepping: 1, level: 13, xlevel: 0x80000008 },
        features: "apic clflush cmov cx16 cx8 de fpu fxsr lm mca mce mmx msr mtrr nx pae pat pge pni pse pse36 sep sse sse2 \
            syscall tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "Common KVM processor", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "n270",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 28, stepping: 2, level: 10, xlevel: 0x80000008 },
        features: "acpi apic clflush cmov cx8 de fpu fxsr lahf-lm mca mce mmx monitor movbe msr mtrr nx pae pat pge pni pse \
            sep ss sse sse2 ssse3 tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "Intel(R) Atom(TM) CPU N270   @ 1.60GHz", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "phenom",
        vendor: b"AuthenticAMD",
        numbers: Numbers { family: 16, model: 2, stepping: 3, level: 5, xlevel: 0x8000001a },
        features: "3dnow 3dnowext abm apic clflush cmov cx16 cx8 de fpu fxsr fxsr-opt lahf-lm lm mca mce mmx mmxext monitor \
            msr mtrr npt nx pae pat pdpe1gb pge pni popcnt pse pse36 rdtscp sep sse sse2 sse4a svm syscall tsc vme",
        versions: &[
            VersionInfo { alias: "", model_id: "AMD Phenom(tm) 9550 Quad-Core Processor", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "qemu32",
        vendor: b"GenuineIntel",
        numbers: Numbers { family: 6, model: 6, stepping: 3, level: 4, xlevel: 0x80000004 },
        features: "apic cmov cx8 de fpu fxsr mce mmx msr pae pat pge pni pse sep sse sse2 tsc",
        versions: &[
            VersionInfo { alias: "", model_id: "QEMU Virtual CPU version 2.5+", note: "", changes: "" },
        ],
    },
    ModelInfo {
        name: "qemu64",
        vendor: b"AuthenticAMD",
        numbers: Numbers { family: 15, model: 107, stepping: 1, level: 13, xlevel: 0x8000000a },
        features: "apic clflush cmov cx16 cx8 de fpu fxsr lahf-lm lm mca mce mmx msr mtrr nx pae pat pge pni pse pse36 sep \
            sse sse2 svm syscall tsc",
        versions: &[
            VersionInfo { alias: "", model_id: "QEMU Virtual CPU version 2.5+", note: "", changes: "" },
        ],
    },
];
