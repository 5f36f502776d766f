//! The machine.

use std::rc::Rc;

use lockstep_accel::dump;
use lockstep_qapi::schema::{RunState, ShutdownCause};
use lockstep_util::{Result, err, report};

use super::{Args, HmpCommand, args::Param, prefixed};
use crate::{
    QEMU_VERSION, gdb,
    objects::{IoThreadObject, LocalFuture},
    qmp::client,
    vm::{Accelerator, Vm},
};

const fn plain(names: &'static str, help: &'static str, run: super::Handler) -> HmpCommand {
    HmpCommand { names, params: &[], usage: "", help, run }
}

pub(super) static COMMANDS: &[HmpCommand] = &[
    HmpCommand {
        names: "closefd",
        params: &[Param::Word("fdname")],
        usage: "closefd name",
        help: "close a file descriptor previously passed via SCM rights",
        run: closefd,
    },
    HmpCommand {
        names: "gdbserver",
        params: &[Param::OptionalWord("device")],
        usage: "[device]",
        help: "start gdbserver on given device (default 'tcp::1234'), stop with 'none'",
        run: gdbserver,
    },
    HmpCommand {
        names: "getfd",
        params: &[Param::Word("fdname")],
        usage: "getfd name",
        help: "receive a file descriptor via SCM rights and assign it a name",
        run: getfd,
    },
    plain("stop|s", "stop emulation", stop),
    plain("cont|c", "resume emulation", cont),
    plain("quit|q", "quit the emulator", quit),
    plain("system_reset", "reset the system", system_reset),
    plain("system_powerdown", "send system power down event", system_powerdown),
];

pub(super) static INFO: &[HmpCommand] = &[
    plain("chardev", "show the character devices", info_chardev),
    plain("iothreads", "show iothreads", info_iothreads),
    plain("kvm", "show KVM information", info_kvm),
    plain("migrate", "show migration status", info_migrate),
    plain("name", "show the current VM name", info_name),
    plain("network", "show the network state", info_network),
    HmpCommand {
        names: "registers",
        params: &[Param::Flag('a'), Param::OptionalNumber("vcpu")],
        usage: "[-a|vcpu]",
        help: "show the cpu registers (-a: show register info for all cpus; vcpu: specific vCPU to query; show the current CPU's registers if no vcpu is specified)",
        run: info_registers,
    },
    plain("status", "show the current VM status (running|paused)", info_status),
    plain("uuid", "show the current VM UUID", info_uuid),
    plain("version", "show the version", info_version),
];

fn closefd<'a>(_: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { client().and_then(|c| c.close(args.word("fdname"))).map_err(prefixed) })
}

fn gdbserver<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let device = args.get("device").unwrap_or(gdb::DEFAULT_DEVICE);
        match gdb::start(vm, device).await {
            Ok(()) if device == "none" => out.push_str("Disabled gdbserver\n"),
            Ok(()) => out.push_str(&format!("Waiting for gdb connection on device '{device}'\n")),
            Err(e) => {
                report::warn(e.message());
                out.push_str(&format!("Could not open gdbserver on device '{device}'\n"));
            }
        }
        Ok(())
    })
}

fn getfd<'a>(_: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { client().and_then(|c| c.name(args.word("fdname"))).map_err(prefixed) })
}

fn stop<'a>(vm: &'a Rc<Vm>, _: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        vm.user_stop().await;
        Ok(())
    })
}

fn cont<'a>(vm: &'a Rc<Vm>, _: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { vm.user_cont().await.map_err(prefixed) })
}

fn quit<'a>(vm: &'a Rc<Vm>, _: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        vm.quit(ShutdownCause::HostQmpQuit);
        Ok(())
    })
}

fn system_reset<'a>(vm: &'a Rc<Vm>, _: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        vm.reset(ShutdownCause::HostQmpSystemReset).await;
        Ok(())
    })
}

fn system_powerdown<'a>(vm: &'a Rc<Vm>, _: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        vm.powerdown();
        Ok(())
    })
}

fn info_status<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let state = vm.state();
        out.push_str(&format!("VM status: {}", if vm.is_running() { "running" } else { "paused" }));
        if !matches!(state, RunState::Running | RunState::Paused) {
            out.push_str(&format!(" ({})", state.as_str()));
        }
        out.push('\n');
        Ok(())
    })
}

fn info_network<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        out.push_str(&vm.net.info_network().replace("\r\n", "\n"));
        Ok(())
    })
}

fn info_chardev<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        for device in vm.chardevs.query() {
            out.push_str(&format!("{}: filename={}\n", device.label, device.filename));
        }
        Ok(())
    })
}

fn info_migrate<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        out.push_str(&vm.migration()?.info().to_text().replace("\r\n", "\n"));
        Ok(())
    })
}

fn info_registers<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let Some(vcpus) = vm.vcpus().filter(|v| !v.is_empty()) else { return Err(err!("No CPU available")) };
        let wanted = match args.get("vcpu").map(str::parse::<usize>) {
            _ if args.flag('a') => 0..vcpus.len(),
            None => 0..1,
            Some(Ok(index)) if index < vcpus.len() => index..index + 1,
            Some(_) => return Err(err!("CPU#{} not available", args.get("vcpu").unwrap_or_default())),
        };
        for index in wanted {
            let state = vm.while_paused(|| vcpus.cpu(index).lock().save())?;
            out.push_str(&format!("\nCPU#{index}\n{}", dump::text(&state, dump::Parts { fpu: true, flags: false })));
        }
        Ok(())
    })
}

fn info_name<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        if let Some(name) = &vm.options.name {
            out.push_str(&format!("{name}\n"));
        }
        Ok(())
    })
}

fn info_uuid<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        out.push_str(&format!("{}\n", vm.uuid_text()));
        Ok(())
    })
}

fn info_version<'a>(_: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let [major, minor, micro] = QEMU_VERSION;
        out.push_str(&format!("{major}.{minor}.{micro}Lockstep {}\n", env!("CARGO_PKG_VERSION")));
        Ok(())
    })
}

fn info_kvm<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let enabled = matches!(vm.accelerator, Accelerator::Kvm(_));
        out.push_str(&format!("kvm support: {}\n", if enabled { "enabled" } else { "disabled" }));
        Ok(())
    })
}

fn info_iothreads<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        for (id, object) in vm.objects.all() {
            if let Ok(thread) = object.as_any().downcast::<IoThreadObject>() {
                let tid = thread.thread().thread_id();
                out.push_str(&format!(
                    "{id}:\n  thread_id={tid}\n  poll-max-ns=0\n  poll-grow=0\n  poll-shrink=0\n  aio-max-batch=0\n"
                ));
            }
        }
        Ok(())
    })
}
