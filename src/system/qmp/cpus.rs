//! Processors and memory.

use lockstep_accel::cpu_model::CpuModel;
use lockstep_qapi::{Registry, cmd, schema::*};
use lockstep_util::{Error, ErrorClass, bail, err};

use super::Ctx;
use crate::{
    machine_options::{MachineKind, Smp},
    vm::{Accelerator, Vm},
};

pub(super) fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::QueryCpuDefinitions>(async |vm: Ctx, _| Ok(definitions(&vm)));
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

/// The models, as for this accelerator.
fn definitions(vm: &Vm) -> Vec<CpuDefinitionInfo> {
    let kvm = matches!(vm.accelerator, Accelerator::Kvm(_));
    let info = |name: &'static str| {
        let of_host = matches!(name, "host" | "max");
        CpuDefinitionInfo {
            name: name.to_owned(),
            migration_safe: Some(!of_host),
            static_: false,
            unavailable_features: Some(if name == "host" && !kvm { vec!["kvm".to_owned()] } else { vec![] }),
            typename: format!("{name}-x86_64-cpu"),
            alias_of: CpuModel::alias(name).map(str::to_owned),
            deprecated: false,
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
