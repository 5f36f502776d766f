//! Disks.

use std::rc::Rc;

use lockstep_block::{
    Options, commands, hmp,
    jobs::Jobs,
    medium::{self, DriveName},
};
use lockstep_qapi::opts;
use lockstep_util::{Result, err, size::parse_size};

use super::{
    Args, HmpCommand,
    args::Param::{Device, Flag, OptionalDevice, OptionalWord, Word},
    hinted, prefixed,
};
use crate::{drive::Interface, objects::LocalFuture, vm::Vm};

pub(super) static COMMANDS: &[HmpCommand] = &[
    HmpCommand {
        names: "drive_add",
        params: &[Flag('n'), Word("pci_addr"), Word("opts")],
        usage: "[-n] [[<domain>:]<bus>:]<slot>\n[file=file][,if=type][,bus=n]\n[,unit=m][,media=d][,index=i]\n\
                [,readonly=on|off]",
        help: "add a block node (-n) or a drive without a device",
        run: drive_add,
    },
    HmpCommand {
        names: "drive_del",
        params: &[Device("id")],
        usage: "device",
        help: "remove host block device",
        run: drive_del,
    },
    HmpCommand {
        names: "block_job_cancel",
        params: &[Flag('f'), Device("device")],
        usage: "[-f] device",
        help: "end a background block operation (-f: at once, in sync or not)",
        run: block_job_cancel,
    },
    HmpCommand {
        names: "block_resize",
        params: &[Device("device"), Word("size")],
        usage: "device size",
        help: "resize a block image",
        run: block_resize,
    },
    HmpCommand {
        names: "change",
        params: &[Flag('f'), Device("device"), Word("target"), OptionalWord("format")],
        usage: "[-f] device filename [format]",
        help: "change a removable medium; force option closes the tray after it was opened",
        run: change,
    },
    HmpCommand {
        names: "eject",
        params: &[Flag('f'), Device("device")],
        usage: "[-f] device",
        help: "eject a removable medium (use -f to force it)",
        run: eject,
    },
    HmpCommand {
        names: "qemu-io",
        params: &[Flag('d'), Device("device"), Word("command")],
        usage: "[-d] [device] \"[command]\"",
        help: "run a qemu-io command on a block device",
        run: qemu_io,
    },
];

pub(super) static INFO: &[HmpCommand] = &[
    HmpCommand {
        names: "blockstats",
        params: &[],
        usage: "",
        help: "show block device statistics",
        run: info_blockstats,
    },
    HmpCommand {
        names: "block",
        params: &[Flag('n'), Flag('v'), OptionalDevice("device")],
        usage: "[-n] [-v] [device]",
        help: "show info of one block device or all block devices (-n: show named nodes; -v: show details)",
        run: info_block,
    },
    HmpCommand {
        names: "block-jobs",
        params: &[],
        usage: "",
        help: "show progress of ongoing block device operations",
        run: info_block_jobs,
    },
];

fn change<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        if args.word("device") == "vnc" && matches!(args.word("target"), "passwd" | "password") {
            let password = args.get("format").unwrap_or_default().to_owned();
            return vm.displays.set_password(None, password).map_err(|e| hinted(&e, out));
        }
        let name = DriveName::Backend(args.word("device").to_owned());
        let changed = medium::change(&vm.graph, &name, args.word("target"), args.get("format"), args.flag('f'), None);
        changed.await.map_err(prefixed)
    })
}

fn eject<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let name = DriveName::Backend(args.word("device").to_owned());
        medium::eject(&vm.graph, &name, args.flag('f')).await.map_err(prefixed)
    })
}

fn info_blockstats<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        const SHOWN: [&str; 11] = [
            "rd_bytes",
            "wr_bytes",
            "rd_operations",
            "wr_operations",
            "flush_operations",
            "wr_total_time_ns",
            "rd_total_time_ns",
            "flush_total_time_ns",
            "rd_merged",
            "wr_merged",
            "idle_time_ns",
        ];
        for info in vm.graph.query_blockstats(false) {
            let Some(device) = info["device"].as_str() else { continue };
            let shown = SHOWN.map(|name| format!(" {name}={}", info["stats"][name].as_u64().unwrap_or(0)));
            out.push_str(&format!("{device}:{}\n", shown.concat()));
        }
        Ok(())
    })
}

fn drive_add<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let text = args.word("opts");
        if args.flag('n') {
            let parsed = opts::parse(text, None)?;
            let pairs = parsed.items.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            return commands::drive_add_node(&vm.graph, Options::from_pairs(pairs)).await;
        }
        let drive = vm.drives.add(&vm.graph, text).await?;
        if drive.interface == Interface::None {
            out.push_str("OK\n");
        } else {
            let id = drive.backend.name();
            vm.drives.remove(&id);
            commands::drive_del(&vm.graph, &id).await?;
            out.push_str("Can't hot-add drive to type 0\n");
        }
        Ok(())
    })
}

fn drive_del<'a>(vm: &'a Rc<Vm>, args: &'a Args, _out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        commands::drive_del(&vm.graph, args.word("id")).await?;
        vm.drives.remove(args.word("id"));
        Ok(())
    })
}

fn block_job_cancel<'a>(vm: &'a Rc<Vm>, args: &'a Args, _out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { Jobs::of(&vm.graph).block_job_cancel(args.word("device"), args.flag('f')).map_err(prefixed) })
}

fn block_resize<'a>(vm: &'a Rc<Vm>, args: &'a Args, _out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let size = parse_size(args.word("size"), 'M').and_then(|n| i64::try_from(n).ok());
        let size = size.ok_or_else(|| err!("invalid size"))?;
        hmp::block_resize(&vm.graph, Some(args.word("device")), None, size).await.map_err(prefixed)
    })
}

/// What the command prints goes to the program's standard output, as people and scripts expect of it.
fn qemu_io<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let (device, command) = (args.word("device"), args.word("command"));
        let output = hmp::run_qemu_io(&vm.graph, device, args.flag('d'), command).await.map_err(prefixed)?;
        if let Some(text) = output.refused {
            out.push_str(&text);
            out.push('\n');
        }
        print!("{}", output.printed);
        // A reader that has gone is no error of the command.
        let _ = std::io::Write::flush(&mut std::io::stdout());
        Ok(())
    })
}

fn info_block<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        out.push_str(&hmp::info_block(&vm.graph, args.get("device"), args.flag('n'), args.flag('v')).await?);
        Ok(())
    })
}

fn info_block_jobs<'a>(vm: &'a Rc<Vm>, _args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let jobs = Jobs::of(&vm.graph).query_block_jobs();
        let jobs = jobs.as_array().map_or(&[][..], Vec::as_slice);
        if jobs.is_empty() {
            out.push_str("No active jobs\n");
        }
        for job in jobs {
            let number = |key: &str| job[key].as_i64().unwrap_or(0);
            let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
            out.push_str(&format!(
                "Type {}, device {}: Completed {} of {} bytes, speed limit {} bytes/s\n",
                text("type"),
                text("device"),
                number("offset"),
                number("len"),
                number("speed")
            ));
        }
        Ok(())
    })
}
