//! What a migration asks of this machine.

use std::{cell::RefCell, os::fd::OwnedFd, rc::Rc, sync::Arc, time::Instant};

use lockstep_accel::tcg::{Adjust, Icount, IcountState};
use lockstep_block::replication::{ReplicationMode, all};
use lockstep_event::Clock;
use lockstep_migration::{
    ClockState, Environment, FoundShift, GlobalState, InstructionCount, InstructionCounter, Migration,
    channel::FdSource,
    colo::{CheckpointCause, Steps},
    hooks::{AnnounceSchedule, ColoMode, DiskReplication, Event, LocalFuture, StopReason, VmControl},
    stream::Frames,
};
use lockstep_net::{Need, compare::Reason};
use lockstep_qapi::{
    EventMessage,
    schema::{RunState, ShutdownCause},
};
use lockstep_util::{Error, Result, err, fds, report};

use crate::{
    colo_net::ColoNet,
    vm::{Accelerator, Vm},
};

/// Registers the sections that come before all devices. To be called before any device is made.
pub fn register_first_sections(vm: &Vm) {
    let icount = match &vm.accelerator {
        Accelerator::Tcg(tcg) => tcg.icount(),
        _ => None,
    };
    let clock = match icount {
        Some(icount) => ClockState::counted(vm.clocks.clone(), Box::new(Counter(icount.clone()))),
        None => ClockState::new(vm.clocks.clone()),
    };
    vm.board.states.register("timer", Arc::new(clock));
    vm.board.states.reserve("ram");
}

/// The count of instructions as the clock's section has it.
struct Counter(Arc<Icount>);

impl InstructionCounter for Counter {
    fn save(&self) -> InstructionCount {
        let saved = self.0.save();
        let found = saved.adjust.map(|(shift, a)| FoundShift { shift, lead: a.lead, next: (a.real, a.virt) });
        InstructionCount { bias: saved.bias, count: saved.count, sleep: self.0.options().sleep, found }
    }

    fn load(&self, count: Option<InstructionCount>, now: i64) {
        let saved = count.map(|c| {
            let adjust = c.found.map(|f| (f.shift, Adjust { real: f.next.0, virt: f.next.1, lead: f.lead }));
            IcountState { bias: c.bias, count: c.count, adjust }
        });
        self.0.load(saved, now);
    }
}

/// Makes the machine's migration. To be called when all devices of the command line exist: its section is the last.
///
/// # Errors
/// When `LOCKSTEP_FAILPOINTS` is set and names what there is not.
pub fn create(vm: &Rc<Vm>) -> Result<Migration> {
    let failpoints = std::env::var("LOCKSTEP_FAILPOINTS").unwrap_or_default();
    let steps = Steps::from_text(&failpoints).map_err(|e| e.prepend("LOCKSTEP_FAILPOINTS: "))?;
    if !failpoints.is_empty() {
        let steps = steps.clone();
        all::TakeoverSteps::of(&vm.graph).tell(Rc::new(move |step| {
            let steps = steps.clone();
            Box::pin(async move {
                if let Err(e) = steps.at(step).await {
                    report::error(e.message());
                }
            })
        }));
    }
    let global_state = Arc::new(GlobalState::default());
    vm.board.states.register("globalstate", global_state.clone());
    let hooks = Rc::new(Hooks { vm: Rc::downgrade(vm), gate: RefCell::default() });
    let migration = Migration::new(Environment {
        machine: vm.options.machine.name.to_owned(),
        frames: Frames::of_machine(vm.options.machine.name),
        ram: vm.board.ram.clone(),
        states: vm.board.states.clone(),
        global_state,
        vm: hooks.clone(),
        disks: hooks.clone(),
        net: Rc::new(ColoNet::new(Rc::downgrade(vm))),
        fds: hooks,
        steps,
    });
    let trigger = migration.checkpoint_trigger();
    vm.net.set_checkpoint_notifier(Some(Arc::new(move |need| {
        let Need::Divergence(divergence) = need else { return trigger.request(CheckpointCause::Output) };
        let cause = match divergence.reason {
            Reason::Unanswered | Reason::AcknowledgementLags => CheckpointCause::Timeout,
            Reason::TooManyConnections => CheckpointCause::Full,
            Reason::ContentDiffers | Reason::EndDiffers => CheckpointCause::Mismatch,
        };
        trigger.differs(cause, divergence.protocol.as_str());
    })));
    Ok(migration)
}

struct Hooks {
    /// The machine owns its migration.
    vm: std::rc::Weak<Vm>,
    /// Holds the primary's disk writes back.
    gate: RefCell<Option<all::NbdWriteGate>>,
}

impl Hooks {
    fn vm(&self) -> Result<Rc<Vm>> {
        self.vm.upgrade().ok_or_else(|| err!("the machine is gone"))
    }
}

impl VmControl for Hooks {
    fn is_running(&self) -> bool {
        self.vm().is_ok_and(|vm| vm.is_running())
    }

    fn autostart(&self) -> bool {
        self.vm().is_ok_and(|vm| vm.autostart.get())
    }

    fn run_state(&self) -> String {
        self.vm().map_or_else(|_| String::new(), |vm| vm.state().as_str().to_owned())
    }

    fn stop(&self, reason: StopReason) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let vm = self.vm()?;
            let state = match reason {
                StopReason::Migration => RunState::FinishMigrate,
                StopReason::Colo => RunState::Colo,
            };
            // At a checkpoint nothing is flushed: what the guest asked for is on disk already.
            match reason {
                StopReason::Migration => vm.stop_and_flush(state).await.map_err(Error::from)?,
                StopReason::Colo => vm.stop(state).await,
            }
            vm.set_state(state);
            Ok(())
        })
    }

    fn start(&self) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            if let Ok(vm) = self.vm() {
                vm.start().await;
            }
        })
    }

    fn advance_clock(&self, ns: i64) {
        if let Ok(vm) = self.vm() {
            vm.clocks.set_virtual_ns(vm.clocks.now_ns(Clock::Virtual).saturating_add(ns));
            if let (Accelerator::Kvm(kvm), Ok(ns)) = (&vm.accelerator, u64::try_from(ns)) {
                let moved = kvm.clock().and_then(|clock| kvm.set_clock(clock.saturating_add(ns)));
                moved.unwrap_or_else(|e| report::error(e.message()));
            }
        }
    }

    fn loads_state_of(&self, at: Option<Instant>) {
        if let Ok(vm) = self.vm()
            && let Accelerator::Kvm(kvm) = &vm.accelerator
        {
            kvm.set_saved_at(at);
        }
    }

    fn set_run_state(&self, name: &str) {
        if let (Ok(vm), Some(state)) = (self.vm(), RunState::from_name(name)) {
            vm.set_state(state);
        }
    }

    fn activate_disks(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move { self.vm()?.graph.activate_all().await })
    }

    fn inactivate_disks(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move { self.vm()?.graph.inactivate_all().await })
    }

    fn emit(&self, event: Event) {
        let (name, data) = event.to_qmp();
        let data = data.as_object().cloned().unwrap_or_default();
        if let (Ok(vm), Some(message)) = (self.vm(), EventMessage::named(name, data)) {
            vm.monitors.broadcast(&message);
        }
    }

    fn announce(&self, schedule: AnnounceSchedule) {
        if let Ok(vm) = self.vm() {
            vm.announce(schedule);
        }
    }

    fn incoming_failed(&self, error: &Error) {
        report::error(error.message());
        if let Ok(vm) = self.vm() {
            vm.request_exit(ShutdownCause::HostError, 1);
        }
    }

    fn warn(&self, message: &str) {
        report::error(message);
    }
}

fn replication_mode(mode: ColoMode) -> ReplicationMode {
    match mode {
        ColoMode::Primary => ReplicationMode::Primary,
        ColoMode::Secondary => ReplicationMode::Secondary,
    }
}

impl DiskReplication for Hooks {
    fn start_all(&self, mode: ColoMode) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move { all::replication_start_all(&self.vm()?.graph, replication_mode(mode)).await })
    }

    fn checkpoint_all(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move { all::replication_do_checkpoint_all(&self.vm()?.graph).await })
    }

    fn error(&self) -> Result<()> {
        all::replication_get_error_all(&self.vm()?.graph)
    }

    fn peer_lost(&self) {
        if let Ok(vm) = self.vm() {
            all::replication_peer_lost(&vm.graph);
        }
    }

    fn stop_all(&self, failover: bool) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move { all::replication_stop_all(&self.vm()?.graph, failover).await })
    }

    fn gate_peer_writes(&self, held: bool) {
        let gate = match self.vm() {
            Ok(vm) if held => Some(all::NbdWriteGate::close(&vm.graph)),
            _ => None,
        };
        *self.gate.borrow_mut() = gate;
    }
}

impl FdSource for Hooks {
    fn take_fd(&self, name: &str) -> Result<OwnedFd> {
        fds::take(name)?.ok_or_else(|| fds::not_open(name))
    }
}
