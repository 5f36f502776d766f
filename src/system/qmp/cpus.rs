//! Processors and memory.

use lockstep_accel::{
    cpu_model::{CpuModel, CpuidEntry, Engine, Property},
    tcg::TcgMachine,
};
use lockstep_qapi::{Map, Registry, cmd, schema::*};
use lockstep_util::{Error, ErrorClass, Result, bail, err};
use serde_json::Value;

use super::Ctx;
use crate::{
    machine_options::{MachineKind, Smp},
    vm::{Accelerator, Vm},
};

pub(super) fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::QueryCpuDefinitions>(async |vm: Ctx, _| Ok(definitions(&vm)));
    registry.register::<cmd::QueryCpuModelExpansion>(async |vm: Ctx, a: cmd::QueryCpuModelExpansion| expand(&vm, a));
    registry.register::<cmd::QueryHotpluggableCpus>(async |vm: Ctx, _| {
        if vm.options.machine.kind == MachineKind::None {
            bail!("machine does not support hot-plugging CPUs");
        }
        Ok(places(&vm))
    });
    registry.register::<cmd::QueryMemdev>(async |vm: Ctx, _| Ok(memory_backends(&vm)));
    // No device adds memory, none takes it from the guest, and none tells it of a new generation.
    registry.register::<cmd::QueryMemoryDevices>(async |_, _| Ok(vec![]));
    registry.register::<cmd::QueryBalloon>(async |_, _| {
        Err(Error::with_class(ErrorClass::DeviceNotActive, "No balloon device has been activated"))
    });
    registry.register::<cmd::QueryVmGenerationId>(async |_, _| Err(err!("VM Generation ID device not found")));
    registry.register::<cmd::QueryCurrentMachine>(async |vm: Ctx, _| {
        Ok(CurrentMachineParams { wakeup_suspend_support: vm.options.machine.kind == MachineKind::Pc })
    });
    registry.register::<cmd::QueryTpmModels>(async |_, _| Ok(vec![]));
    registry.register::<cmd::QueryTpmTypes>(async |_, _| Ok(vec![]));
    registry.offer_only::<TpmModel>(&[]);
    registry.offer_only::<TpmType>(&[]);
}

/// A model with all its properties; asked for as `static`, as what has to be switched on in the model without features.
fn expand(vm: &Vm, wanted: cmd::QueryCpuModelExpansion) -> Result<CpuModelExpansionInfo> {
    let (engine, supported) = engine(vm);
    let name = wanted.model.name;
    let unknown = || err!("CPU model '{name}' not found");
    let plain = CpuModel::expansion(&name, &[], &supported, engine).ok_or_else(unknown)??;
    let given = match wanted.model.props {
        None => Map::new(),
        Some(Value::Object(members)) => members,
        Some(_) => bail!("Invalid parameter type for 'model.props', expected: object"),
    };
    let mut changes = vec![];
    for (property, value) in &given {
        let known =
            plain.property(property).ok_or_else(|| err!("Property '{name}-x86_64-cpu.{property}' not found"))?;
        let text = match (known, value) {
            (Property::Switch(_), Value::Bool(on)) => if *on { "on" } else { "off" }.to_owned(),
            (Property::Text(_), Value::String(text)) => text.clone(),
            // A number below zero is a large one.
            (Property::Number(_), number) if number.is_i64() || number.is_u64() => {
                number.as_u64().unwrap_or(u64::MAX).to_string()
            }
            (Property::Number(_), _) => bail!("Parameter 'model.props.{property}' expects uint64"),
            (Property::Switch(_), _) => {
                bail!("Invalid parameter type for 'model.props.{property}', expected: boolean")
            }
            (Property::Text(_), _) => bail!("Invalid parameter type for 'model.props.{property}', expected: string"),
        };
        changes.push((property.as_str(), text));
    }
    let model = CpuModel::expansion(&name, &changes, &supported, engine).ok_or_else(unknown)??;
    let fixed = wanted.type_ == CpuModelExpansionType::Static;
    let shown = model.properties().into_iter().filter(|(name, _)| !fixed || !OF_THE_MACHINE.contains(name));
    let props = shown.map(|(name, property)| {
        let value = match property {
            Property::Switch(on) => Value::Bool(on),
            Property::Number(n) => Value::from(n),
            Property::Text(text) => Value::String(text),
        };
        (name.to_owned(), value)
    });
    let props = Some(Value::Object(props.collect()));
    Ok(CpuModelExpansionInfo { model: CpuModelInfo { name: if fixed { "base".to_owned() } else { name }, props } })
}

/// Properties that say nothing about the processor, or follow from those that do.
const OF_THE_MACHINE: [&str; 6] = ["level", "xlevel", "phys-bits", "check", "enforce", "kvm"];

/// What runs the guest, and the leaves that it has.
fn engine(vm: &Vm) -> (Engine, Vec<CpuidEntry>) {
    match &vm.accelerator {
        Accelerator::Kvm(kvm) => (Engine::Kvm, kvm.supported_cpuid().unwrap_or_default()),
        _ => (Engine::Tcg, TcgMachine::supported_cpuid()),
    }
}

/// The models, as for this accelerator.
fn definitions(vm: &Vm) -> Vec<CpuDefinitionInfo> {
    let kvm = matches!(vm.accelerator, Accelerator::Kvm(_));
    let (engine, supported) = engine(vm);
    let info = |name: String| {
        let of_host = matches!(name.as_str(), "host" | "max");
        let unavailable = CpuModel::parse(&name, engine).map(|m| m.unavailable(&supported, engine)).unwrap_or_default();
        CpuDefinitionInfo {
            migration_safe: Some(!of_host),
            static_: name == "base",
            unavailable_features: Some(match name.as_str() {
                "host" if !kvm => vec!["kvm".to_owned()],
                _ => unavailable.into_iter().map(str::to_owned).collect(),
            }),
            typename: format!("{name}-x86_64-cpu"),
            alias_of: CpuModel::alias(&name),
            deprecated: false,
            name,
        }
    };
    CpuModel::type_names().into_iter().map(info).collect()
}

/// Where a vCPU sits.
pub(super) fn place(smp: &Smp, index: u32) -> CpuInstanceProperties {
    CpuInstanceProperties {
        socket_id: Some((index / (smp.cores * smp.threads)).into()),
        core_id: Some((index / smp.threads % smp.cores).into()),
        thread_id: Some((index % smp.threads).into()),
        ..CpuInstanceProperties::default()
    }
}

/// Where a vCPU is in the tree of objects. Behind the first there is what comes with its local APIC (`kvmvapic`).
pub fn qom_path(index: u32) -> String {
    format!("/machine/unattached/device[{}]", if index == 0 { 0 } else { index + 1 })
}

/// The places for vCPUs, the last first.
pub fn places(vm: &Vm) -> Vec<HotpluggableCPU> {
    let smp = vm.options.smp;
    let info = |index: u32| HotpluggableCPU {
        type_: format!("{}-x86_64-cpu", vm.cpu_model_name()),
        vcpus_count: 1,
        props: place(&smp, index),
        qom_path: (index < smp.cpus).then(|| qom_path(index)),
    };
    (0..smp.max_cpus).rev().map(info).collect()
}

/// The guest's memory as a backend.
pub fn memory_backends(vm: &Vm) -> Vec<Memdev> {
    if vm.options.machine.kind == MachineKind::None {
        return vec![];
    }
    vec![Memdev {
        id: Some("pc.ram".to_owned()),
        size: vm.options.ram_size,
        merge: true,
        dump: true,
        prealloc: false,
        share: false,
        reserve: Some(true),
        host_nodes: vec![],
        policy: HostMemPolicy::Default,
    }]
}
