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
    assert_eq!((of("sse4_1"), of("lahf_lm")), (Some(Property::Switch(true)), Some(Property::Switch(true))));
    assert_eq!((of("model"), of("nosuch")), (Some(Property::Number(5)), None));
    assert_eq!(of("vendor"), Some(Property::Text("GenuineIntel".into())));
    let names = CpuModel::type_names();
    assert_eq!(names[..4], ["max", "host", "base", "qemu64-v1"]);
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

fn expansion(name: &str, changes: &[(&str, &str)], engine: Engine) -> CpuModel {
    let changes: Vec<_> = changes.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let mut supported = all_supported();
    // An AMD EPYC without AVX2.
    supported.retain(|l| ![0, 1, 7].contains(&l.function));
    for (function, index, eax, ebx, ecx, edx) in [
        (0, 0, 13, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
        (1, 0, 0x00a1_0f11, 0, 1, 1),
        (7, 0, 0, 1 << 7, 0, 0),
        (0x8000_0002, 0, 0x2044_4d41, 0x4359_5045, 0, 0),
    ] {
        supported.push(kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() });
    }
    CpuModel::expansion(name, &changes, &supported, engine).unwrap().unwrap()
}

#[test]
fn the_expansion_of_host_and_max_has_what_the_engine_has_and_no_more() {
    for engine in [Engine::Kvm, Engine::Tcg] {
        for name in ["host", "max"] {
            let model = expansion(name, &[("pni", "off")], engine);
            for (property, wanted) in [
                ("family", Property::Number(25)),
                ("model", Property::Number(17)),
                ("stepping", Property::Number(1)),
                ("vendor", Property::Text("AuthenticAMD".into())),
                ("model-id", Property::Text("AMD EPYC".into())),
                ("smep", Property::Switch(true)),
                ("avx2", Property::Switch(false)),
                ("pni", Property::Switch(false)),
            ] {
                assert_eq!(model.property(property), Some(wanted), "{property} of {name}");
            }
        }
    }
}

#[test]
fn a_named_model_has_the_hosts_vendor_under_kvm_unless_the_user_gives_one() {
    let vendor = |changes: &[(&str, &str)], engine| expansion("Haswell", changes, engine).property("vendor");
    let text = |t: &str| Some(Property::Text(t.to_owned()));
    assert_eq!(vendor(&[], Engine::Kvm), text("AuthenticAMD"));
    assert_eq!(vendor(&[], Engine::Tcg), text("GenuineIntel"));
    assert_eq!(vendor(&[("vendor", "SomebodyElse")], Engine::Kvm), text("SomebodyElse"));
}

#[test]
fn a_model_spelt_out_on_base_is_that_model() {
    let of = |option: &str| CpuModel::parse(option, Engine::Tcg).unwrap();
    assert!(of("base").features.iter().all(|word| *word == 0));
    for name in ["qemu64", "EPYC", "SandyBridge"] {
        let model = of(name);
        let mut spelt = String::from("base");
        for (property, value) in model.properties() {
            match value {
                Property::Switch(on) if !["check", "enforce", "kvm"].contains(&property) => {
                    spelt += &format!(",{property}={}", if on { "on" } else { "off" });
                }
                Property::Number(n) if !["level", "xlevel", "phys-bits"].contains(&property) => {
                    spelt += &format!(",{property}={n}");
                }
                Property::Text(text) => spelt += &format!(",{property}={text}"),
                _ => {}
            }
        }
        let leaves = |m: &CpuModel| m.cpuid(&all_supported(), Engine::Tcg, 0, &mut |_| {}).unwrap();
        assert_eq!(leaves(&of(&spelt)), leaves(&model), "{name}");
    }
}

#[test]
fn a_level_that_is_given_is_final_and_a_least_one_is_raised_by_features() {
    let leaf = leaves("base,min-level=2,+smep,min-xlevel=0x80000001,+invtsc", Engine::Tcg);
    assert_eq!((leaf(0).eax, leaf(0x8000_0000).eax), (7, 0x8000_0007));
    let leaf = leaves("base,level=2,+smep,xlevel=0x80000001,+invtsc", Engine::Tcg);
    assert_eq!((leaf(0).eax, leaf(0x8000_0000).eax), (2, 0x8000_0001));
}

#[test]
fn numbers_below_zero_are_too_large() {
    for (option, why) in [
        ("qemu64,level=-1", "can't apply global qemu64-x86_64-cpu.level=-1: Parameter 'level' expects uint32_t"),
        ("qemu64,model=-1", "can't apply global qemu64-x86_64-cpu.model=-1: parameter 'model' can be at most 255"),
    ] {
        assert_eq!(CpuModel::parse(option, Engine::Tcg).unwrap_err().message(), why);
    }
}

#[test]
fn paravirtual_spinlocks_are_there_for_those_who_ask() {
    let bit = |option: &str| leaves(option, Engine::Kvm)(0x4000_0001).eax & 1 << 7;
    assert_eq!((bit("qemu64"), bit("qemu64,+kvm-pv-unhalt")), (0, 1 << 7));
}
