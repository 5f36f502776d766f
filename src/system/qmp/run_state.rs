//! The run state, and who the machine is.

use lockstep_qapi::{Registry, cmd, event, schema::*};
use lockstep_util::{err, fds};

use super::Ctx;
use crate::monitor::hmp;

pub fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::QueryStatus>(async |vm: Ctx, _| {
        Ok(StatusInfo { running: vm.is_running(), status: vm.state() })
    });
    registry.register::<cmd::Stop>(async |vm: Ctx, _| {
        vm.user_stop().await;
        Ok(())
    });
    registry.register::<cmd::Cont>(async |vm: Ctx, _| vm.user_cont().await);
    registry.register::<cmd::SystemReset>(async |vm: Ctx, _| {
        vm.reset(ShutdownCause::HostQmpSystemReset).await;
        Ok(())
    });
    registry.register::<cmd::SystemPowerdown>(async |vm: Ctx, _| {
        vm.powerdown();
        Ok(())
    });
    registry.register::<cmd::SystemWakeup>(async |vm: Ctx, _| {
        if vm.state() != RunState::Suspended {
            return Err(err!("Unable to wake up: guest is not in suspended state"));
        }
        vm.handle_request(lockstep_hw::core::MachineRequest::Wakeup).await;
        Ok(())
    });
    registry.register::<cmd::Quit>(async |vm: Ctx, _| {
        vm.quit(ShutdownCause::HostQmpQuit);
        Ok(())
    });
    registry.register::<cmd::SetAction>(async |vm: Ctx, args: cmd::SetAction| {
        if let Some(action) = args.reboot {
            vm.on_reboot.set(action);
        }
        if let Some(action) = args.shutdown {
            vm.on_shutdown.set(action);
        }
        Ok(())
    });
    registry.register::<cmd::HumanMonitorCommand>(async |vm: Ctx, args: cmd::HumanMonitorCommand| {
        if args.cpu_index.is_some_and(|i| usize::try_from(i).map_or(true, |i| i >= vm.vcpus().map_or(0, |v| v.len()))) {
            return Err(err!("Parameter 'cpu-index' expects a CPU number"));
        }
        // The line runs on a human monitor of its own, to which nobody sends descriptors.
        let client = fds::Client::new(|| None);
        Ok(client.during(hmp::run_line(&vm, &args.command_line)).await)
    });
    registry.register::<cmd::QueryName>(async |vm: Ctx, _| Ok(NameInfo { name: vm.options.name.clone() }));
    registry.register::<cmd::QueryUuid>(async |vm: Ctx, _| Ok(UuidInfo { uuid: vm.uuid_text() }));
    registry.register::<cmd::QueryTarget>(async |_, _| Ok(TargetInfo { arch: SysEmuTarget::X8664 }));
    registry.announce::<event::Stop>();
    registry.announce::<event::Resume>();
    registry.announce::<event::Shutdown>();
    registry.announce::<event::Powerdown>();
    registry.announce::<event::Reset>();
    registry.announce::<event::Suspend>();
    registry.announce::<event::SuspendDisk>();
    registry.announce::<event::Wakeup>();
}
