//! The vCPUs of a machine.

use std::{rc::Rc, sync::Arc};

use lockstep_accel::{
    Vcpu, VcpuEvent, VcpuSet,
    cpu_model::{CpuModel, Engine},
    dump,
    kvm::{KvmClock, KvmMachine, NoKvmClock},
    tcg::{TcgMachine, kvm_cpuid_entry2},
    vmstate,
};
use lockstep_event::Local;
use lockstep_hw::core::{MachineRequest, ResetCause, ResetPhase, ShutdownCause};
use lockstep_qapi::schema::RunState;
use lockstep_util::{Log, Result, log::item, report};

use crate::vm::{Accelerator, Vm};

/// What firmware's tables say of the CPUs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuFacts {
    /// EAX and EDX of CPUID leaf 1.
    pub leaf_1: (u32, u32),
    /// Whether they are AMD's.
    pub amd: bool,
}

impl CpuFacts {
    fn of(cpuid: &[kvm_cpuid_entry2]) -> Self {
        let leaf = |function| cpuid.iter().find(|e| e.function == function);
        Self {
            leaf_1: leaf(1).map_or((0, 0), |e| (e.eax, e.edx)),
            // "Auth" of AuthenticAMD.
            amd: leaf(0).is_some_and(|e| e.ebx == 0x6874_7541),
        }
    }
}

/// Makes the vCPUs with their threads, stopped.
///
/// # Errors
/// QEMU's, of the model and of the engine.
pub(super) fn create(vm: &Rc<Vm>) -> Result<CpuFacts> {
    let engine = if matches!(vm.accelerator, Accelerator::Tcg(_)) { Engine::Tcg } else { Engine::Kvm };
    let model =
        CpuModel::parse(vm.options.cpu.as_deref().unwrap_or("qemu64"), engine)?.with_cores(vm.options.smp.cores);
    match &vm.accelerator {
        Accelerator::Kvm(kvm) => create_kvm(vm, kvm, &model),
        Accelerator::Tcg(tcg) => create_tcg(vm, tcg, &model),
        Accelerator::Qtest | Accelerator::None => {
            vm.set_vcpus(VcpuSet::start(vec![], |_, _| {})?);
            Ok(CpuFacts::default())
        }
    }
}

fn create_kvm(vm: &Rc<Vm>, kvm: &Arc<KvmMachine>, model: &CpuModel) -> Result<CpuFacts> {
    kvm.attach_memory(&vm.board.memory_space, &vm.board.port_space, &vm.board.ram);
    let mut cpus: Vec<Box<dyn Vcpu>> = vec![];
    let mut facts = CpuFacts::default();
    for index in 0..vm.options.smp.cpus {
        let cpuid = kvm.cpuid(model, index, &mut |w| report::warn(w))?;
        facts = CpuFacts::of(&cpuid);
        cpus.push(kvm.create_vcpu(index, &cpuid, &vm.board.memory_space, &vm.board.port_space)?);
    }
    let set = start(vm, cpus)?;
    vm.board.states.register("kvmclock", Arc::new(KvmClock(kvm.clone())));
    let clocks = kvm.clone();
    vm.add_state_listener(move |running, _| {
        let done = if running { clocks.starting() } else { clocks.stopped() };
        if let Err(e) = done {
            report::error(e.message());
        }
    });
    vm.set_vcpus(set);
    Ok(facts)
}

fn create_tcg(vm: &Rc<Vm>, tcg: &Arc<TcgMachine>, model: &CpuModel) -> Result<CpuFacts> {
    tcg.attach_memory(&vm.board.memory_space, &vm.board.port_space, &vm.board.ram)?;
    let mut cpus: Vec<Box<dyn Vcpu>> = vec![];
    let mut facts = CpuFacts::default();
    for index in 0..vm.options.smp.cpus {
        let cpuid = tcg.cpuid(model, index, &mut |w| report::warn(w))?;
        facts = CpuFacts::of(&cpuid);
        cpus.push(tcg.create_vcpu(index, &cpuid, vm.options.smp.cpus as usize)?);
    }
    let set = start(vm, cpus)?;
    vm.board.states.register("kvmclock", Arc::new(NoKvmClock));
    vm.set_vcpus(set);
    Ok(facts)
}

/// Starts the threads, and has states and resets reach the vCPUs.
fn start(vm: &Rc<Vm>, cpus: Vec<Box<dyn Vcpu>>) -> Result<VcpuSet> {
    let weak = Arc::new(Local::new(Rc::downgrade(vm)));
    let main = vm.main.clone();
    let set = VcpuSet::start(cpus, move |index, event| {
        let vm = weak.clone();
        main.spawn(move || async move {
            if let Some(vm) = vm.get().upgrade() {
                on_event(&vm, index, event).await;
            }
        });
    })?;
    for index in 0..set.len() {
        let cpu = set.cpu(index).clone();
        let register = match &vm.accelerator {
            Accelerator::Tcg(_) => vmstate::register_without_apic,
            _ => vmstate::register,
        };
        register(&vm.board.states, index as u32, cpu.clone(), &vm.clocks, |e| {
            // What can be wrong was looked for before: this host's CPU is not the sender's.
            report::error(format_args!("the vCPU's state cannot be loaded: {e}"));
        });
        vm.board.resets.register(ResetPhase::Cpus, move |_| {
            let mut cpu = cpu.lock();
            log_reset(index, &mut **cpu);
            if let Err(e) = cpu.reset() {
                report::error(format_args!("the vCPU cannot be reset: {e}"));
            }
        });
    }
    Ok(set)
}

/// `-d cpu_reset`: a vCPU's registers before it is reset.
fn log_reset(index: usize, cpu: &mut dyn Vcpu) {
    let log = Log::global();
    if log.has(item::CPU_RESET)
        && let Ok(state) = cpu.save()
    {
        let registers = dump::text(&state, dump::Parts { fpu: true, flags: true });
        log.write(&format!("CPU Reset (CPU {index})\n{registers}"));
    }
}

/// What a vCPU could not handle itself.
async fn on_event(vm: &Rc<Vm>, index: usize, event: VcpuEvent) {
    match event {
        VcpuEvent::Kicked => {}
        // Another one may have stopped the guest already.
        VcpuEvent::Debug(stop) => {
            if vm.is_running() {
                vm.debugger.note_stop(index, stop);
                vm.stop(RunState::Debug).await;
            }
        }
        VcpuEvent::TripleFault | VcpuEvent::SystemReset => {
            vm.handle_request(MachineRequest::Reset(ResetCause::GuestReset)).await;
        }
        VcpuEvent::SystemShutdown => vm.handle_request(MachineRequest::Shutdown(ShutdownCause::GuestShutdown)).await,
        VcpuEvent::InternalError(text) => {
            eprint!("{text}");
            if let Some(registers) = vm.vcpus().and_then(|v| v.cpu(0).try_lock()?.save().ok()) {
                eprintln!(
                    "RIP={:016x} RFL={:08x} CR0={:08x} CR3={:08x}",
                    registers.rip, registers.rflags, registers.cr0, registers.cr3
                );
            }
            vm.stop(RunState::InternalError).await;
        }
    }
}
