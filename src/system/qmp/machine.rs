//! The machine's kinds, CPUs and devices.

use lockstep_hw::core::PropertyInput;
use lockstep_qapi::{Map, Registry, cmd, schema::*};
use lockstep_util::bail;
use serde_json::Value;

use super::{Ctx, cpus};
use crate::{
    machine,
    machine_options::{AccelKind, MACHINE_TYPES, MachineKind, MachineType},
    vm::Accelerator,
};

pub fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::QueryMachines>(async |_: Ctx, a: cmd::QueryMachines| {
        if a.compat_props.is_some() {
            bail!("Parameter 'compat-props' is unexpected");
        }
        let info = |m: &MachineType| MachineInfo {
            name: m.name.to_owned(),
            alias: m.alias.map(str::to_owned),
            is_default: m.default.then_some(true),
            cpu_max: m.max_cpus.into(),
            hotpluggable_cpus: false,
            numa_mem_supported: false,
            deprecated: false,
            default_cpu_type: (m.kind == MachineKind::Pc).then(|| "qemu64-x86_64-cpu".to_owned()),
            default_ram_id: (m.kind == MachineKind::Pc).then(|| "pc.ram".to_owned()),
            acpi: m.kind == MachineKind::Pc,
            ..MachineInfo::default()
        };
        Ok(MACHINE_TYPES.iter().map(info).collect())
    });
    registry.register::<cmd::QueryCpusFast>(async |vm: Ctx, _| {
        let Some(vcpus) = vm.vcpus() else { return Ok(vec![]) };
        let smp = vm.options.smp;
        let info = |index: usize| CpuInfoFast {
            cpu_index: index as i64,
            qom_path: cpus::qom_path(index as u32),
            thread_id: vcpus.thread_id(index).into(),
            props: Some(cpus::place(&smp, index as u32)),
            branch: CpuInfoFastBranch::X8664,
        };
        Ok((0..vcpus.len()).map(info).collect())
    });
    registry.register::<cmd::QueryMemorySizeSummary>(async |vm: Ctx, _| {
        let base_memory = if vm.options.machine.kind == MachineKind::Pc { vm.options.ram_size } else { 0 };
        Ok(MemoryInfo { base_memory, plugged_memory: Some(0) })
    });
    registry.register::<cmd::QueryKvm>(async |vm: Ctx, _| {
        let enabled = match vm.accelerator {
            Accelerator::Kvm(_) => true,
            Accelerator::Tcg(_) | Accelerator::Qtest => false,
            // Nothing runs, but KVM is what would.
            Accelerator::None => {
                vm.options.accelerators.contains(&Ok(AccelKind::Kvm)) && std::fs::File::open("/dev/kvm").is_ok()
            }
        };
        Ok(KvmInfo { enabled, present: true })
    });
    registry.register::<cmd::DeviceAdd>(async |vm: Ctx, arguments: Map| {
        let options = arguments.into_iter().map(|(key, value)| (key, PropertyInput::Json(value))).collect();
        machine::add_device(&vm, options)?;
        Ok(Value::Object(Map::new()))
    });
    registry.register::<cmd::DeviceDel>(async |vm: Ctx, a: cmd::DeviceDel| machine::remove_device(&vm, &a.id));
    registry.announce::<lockstep_qapi::event::DeviceDeleted>();
    registry.announce::<lockstep_qapi::event::BlockIoError>();
}
