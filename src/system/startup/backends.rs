//! What devices are connected to: objects, character devices, disks.

use std::rc::Rc;

use lockstep_block::{Options, commands};
use lockstep_chardev::options::{describe, parse_short};
use lockstep_qapi::{
    Wire,
    cli::{self, Parsed},
    opts,
    schema::{NetdevBranch, RebootAction, ShutdownAction},
};
use lockstep_util::{Result, bail, err, fds, report};

use crate::{
    cmdline::{CommandLine, Occurrence, parameters},
    drive::{Interface, Media},
    gdb,
    machine::Defaults,
    machine_options::MachineKind,
    objects, qtest,
    vm::Vm,
};

/// `-no-reboot`, `-no-shutdown`, `-action`.
pub(super) fn set_actions(vm: &Vm, line: &CommandLine) -> Result<()> {
    if line.has("no-reboot") {
        vm.on_reboot.set(RebootAction::Shutdown);
    }
    if line.has("no-shutdown") {
        vm.on_shutdown.set(ShutdownAction::Pause);
    }
    for o in line.all("action") {
        let options = opts::parse(&o.value, None).map_err(|e| o.locate(e))?;
        for (key, value) in &options.items {
            let wrong = || o.locate(err!("Parameter '{key}' does not accept value '{value}'"));
            match (key.as_str(), value.as_str()) {
                ("reboot", "reset") => vm.on_reboot.set(RebootAction::Reset),
                ("reboot", "shutdown") => vm.on_reboot.set(RebootAction::Shutdown),
                ("shutdown", "poweroff") => vm.on_shutdown.set(ShutdownAction::Poweroff),
                ("shutdown", "pause") => vm.on_shutdown.set(ShutdownAction::Pause),
                ("reboot" | "shutdown", _) => return Err(wrong()),
                _ => return Err(o.locate(err!("Invalid parameter '{key}'"))),
            }
        }
    }
    Ok(())
}

fn object_options(o: &Occurrence) -> Result<lockstep_qapi::schema::ObjectOptions> {
    match cli::object(&o.value).map_err(|e| o.locate(e))? {
        Parsed::Value(options, warnings) => {
            warn(o, &warnings);
            Ok(options)
        }
        Parsed::Help(_) => bail!("{}: help is shown by '-object help' alone", o.location),
    }
}

/// Prints warnings of an option.
pub(super) fn warn(o: &Occurrence, warnings: &[(String, String)]) {
    report::within(&o.location, || {
        for (text, hint) in warnings {
            report::warn(text);
            eprintln!("{hint}");
        }
    });
}

/// Objects that need nothing else.
pub(super) async fn early_objects(vm: &Rc<Vm>, line: &CommandLine) -> Result<()> {
    let mut ids = std::collections::HashSet::new();
    for o in line.all("object") {
        let options = object_options(o)?;
        if !ids.insert(options.id.clone()) {
            return Err(o.locate(err!("Duplicate ID '{}' for object", options.id)));
        }
        if !objects::is_late(&options) {
            vm.objects.add(vm, options).await.map_err(|e| o.locate(e))?;
        }
    }
    Ok(())
}

/// Objects that need network backends or character devices. QEMU does not say where their errors come from.
pub(super) async fn late_objects(vm: &Rc<Vm>, line: &CommandLine) -> Result<()> {
    for o in line.all("object") {
        let options = object_options(o)?;
        if objects::is_late(&options) {
            vm.objects.add(vm, options).await?;
        }
    }
    Ok(())
}

/// `-netdev`.
pub(super) async fn netdevs(vm: &Rc<Vm>, line: &CommandLine) -> Result<()> {
    for o in line.all("netdev") {
        match cli::netdev(&o.value).map_err(|e| o.locate(e))? {
            Parsed::Value(options, warnings) => {
                warn(o, &warnings);
                // Options of the old kind are checked for their name before anything else.
                let new_kind = matches!(options.branch, NetdevBranch::Stream(_) | NetdevBranch::Dgram(_));
                if !new_kind && vm.net.has_netdev(&options.id) {
                    return Err(o.locate(err!("Duplicate ID '{}' for netdev", options.id)));
                }
                report::located(&o.location, vm.net.add_netdev(&options)).await.map_err(|e| o.locate(e))?;
            }
            Parsed::Help(_) => bail!("{}: help is shown by '-netdev help' alone", o.location),
        }
    }
    Ok(())
}

/// `-chardev`.
pub(super) async fn chardevs(vm: &Rc<Vm>, line: &CommandLine) -> Result<()> {
    for o in line.all("chardev") {
        let parsed = opts::parse(&o.value, Some("backend")).map_err(|e| o.locate(e))?;
        let warnings: Vec<_> = parsed.warnings().collect();
        warn(o, &warnings);
        if let Some(id) = parsed.id.as_deref().filter(|id| vm.chardevs.contains(id)) {
            return Err(o.locate(err!("Duplicate ID '{id}' for chardev")));
        }
        let described = describe(&parsed).map_err(|e| o.locate(e))?;
        report::located(&o.location, vm.add_chardev(described)).await.map_err(|e| o.locate(e))?;
    }
    Ok(())
}

/// `-blockdev`, `-drive`, `-hda` and their like.
pub(super) async fn disks(vm: &Rc<Vm>, line: &CommandLine) -> Result<()> {
    for o in line.all("blockdev") {
        let options = cli::blockdev(&o.value).map_err(|e| o.locate(e))?;
        let options = Options::from_json(&options.to_wire()).map_err(|e| o.locate(e))?;
        commands::blockdev_add(&vm.graph, options).await.map_err(|e| o.locate(e))?;
    }
    for o in line.iter() {
        let made = match (o.name, disk_of(o.name)) {
            ("drive", _) => report::located(&o.location, vm.drives.add(&vm.graph, &o.value)).await,
            (_, Some((index, media))) => {
                report::located(&o.location, vm.drives.add_file(&vm.graph, &o.value, index, media)).await
            }
            _ => continue,
        };
        made.map_err(|e| o.locate(e))?;
    }
    if default_cdrom(vm, line) {
        vm.drives.add_file(&vm.graph, "", 2, Media::Cdrom).await?;
    }
    Ok(())
}

/// Whether the machine gets an empty CD-ROM drive that nobody asked for: unless its place is taken, or a user makes IDE drives.
fn default_cdrom(vm: &Vm, line: &CommandLine) -> bool {
    vm.options.machine.kind == MachineKind::Pc
        && Defaults::of(line).cdrom
        && vm.drives.find(Interface::Ide, 1, 0).is_none()
}

/// The disk that an option such as `-hda` is short for.
fn disk_of(option: &str) -> Option<(usize, Media)> {
    Some(match option {
        "hda" => (0, Media::Disk),
        "hdb" => (1, Media::Disk),
        "hdc" => (2, Media::Disk),
        "hdd" => (3, Media::Disk),
        "cdrom" => (2, Media::Cdrom),
        _ => return None,
    })
}

/// `-add-fd`: sets of descriptors that were open at the start.
pub(super) fn descriptor_sets(line: &CommandLine) -> Result<()> {
    for o in line.all("add-fd") {
        let add = || {
            let options = opts::parse(&o.value, None)?;
            options.check(&parameters::descriptions("add-fd"))?;
            let number = |key| options.get_number(key).map(|n| n.and_then(|n| i32::try_from(n).ok()));
            let Some(fd) = number("fd")? else { bail!("fd option is required and must be non-negative") };
            if fd <= 2 {
                bail!("fd cannot be a standard I/O stream");
            }
            let Some(copy) = fds::copy_of_numbered(fd) else { bail!("fd is not valid or already in use") };
            let Some(set) = number("set")? else { bail!("set option is required and must be non-negative") };
            fds::add_to_set(copy, Some(set.into()), options.get("opaque").map(str::to_owned))
        };
        add().map_err(|e| o.locate(e))?;
    }
    Ok(())
}

/// `-msg`: what goes before messages.
pub(super) fn messages(line: &CommandLine) -> Result<()> {
    let mut prefix = report::Prefix::default();
    let mut with_guest = false;
    for o in line.all("msg") {
        let options = opts::parse(&o.value, None).map_err(|e| o.locate(e))?;
        let warnings: Vec<_> = options.warnings().collect();
        warn(o, &warnings);
        options.check(&parameters::descriptions("msg")).map_err(|e| o.locate(e))?;
        prefix.timestamp = options.get_bool("timestamp").map_err(|e| o.locate(e))?.unwrap_or(false);
        with_guest = options.get_bool("guest-name").map_err(|e| o.locate(e))?.unwrap_or(false);
    }
    let name = |o: &Occurrence| opts::parse(&o.value, Some("guest")).ok()?.take("guest");
    prefix.guest_name = line.last("name").filter(|_| with_guest).and_then(name);
    report::set_prefix(prefix);
    Ok(())
}

/// `-vnc`, `-display vnc=…`.
pub(super) async fn displays(vm: &Rc<Vm>, line: &CommandLine) -> Result<()> {
    for o in line.iter() {
        let words = match o.name {
            "vnc" => Some(o.value.as_str()),
            "display" => o.value.strip_prefix("vnc="),
            _ => None,
        };
        if let Some(words) = words {
            vm.displays.add(vm, words).await.map_err(|e| o.locate(e))?;
        }
    }
    Ok(())
}

/// `-display`, `-net none`, `-nic none`: what is asked for is what there is.
pub(super) fn display(line: &CommandLine) -> Result<()> {
    for o in line.all("display") {
        let (kind, rest) = o.value.split_once(',').unwrap_or((&o.value, ""));
        if kind == "vnc" {
            return Err(o.locate(err!("VNC requires a display argument vnc=<display>")));
        }
        if kind.starts_with("vnc=") {
            continue;
        }
        if kind != "none" {
            return Err(o.locate(err!("Parameter 'type' does not accept value '{kind}'")));
        }
        if let Some((key, _)) = rest.split_once('=') {
            return Err(o.locate(err!("Parameter '{key}' is unexpected")));
        }
    }
    for o in line.all("net").chain(line.all("nic")) {
        if o.value != "none" {
            let kind = o.value.split(',').next().unwrap_or_default();
            return Err(o.locate(err!("Parameter 'type' does not accept value '{kind}'")));
        }
    }
    Ok(())
}

/// `-gdb`, `-s`.
pub(super) async fn debuggers(vm: &Rc<Vm>, line: &CommandLine) -> Result<()> {
    for o in line.iter() {
        let device = match o.name {
            "gdb" => o.value.as_str(),
            "s" => gdb::DEFAULT_DEVICE,
            _ => continue,
        };
        let location = if o.name == "s" { format!("-gdb {device}") } else { o.location.clone() };
        let started = report::located(&location, gdb::start(vm, device)).await;
        started.map_err(|e| e.prepend(format_args!("{location}: ")))?;
    }
    Ok(())
}

/// `-qtest`.
pub(super) async fn qtest(vm: &Rc<Vm>, line: &CommandLine) -> Result<()> {
    let Some(o) = line.last("qtest") else { return Ok(()) };
    let log = qtest::Log::open(line.last("qtest-log").map(|o| o.value.as_str()))?;
    let id = match o.value.strip_prefix("chardev:") {
        Some(id) => id.to_owned(),
        None => {
            let made = match parse_short("qtest", &o.value).and_then(|opts| describe(&opts)) {
                Ok(described) => vm.add_chardev(described).await,
                Err(e) => Err(e),
            };
            if let Err(e) = made {
                report::error(e.message());
                bail!("Failed to initialize device for qtest: \"{}\"", o.value);
            }
            "qtest".to_owned()
        }
    };
    qtest::start(vm, vm.chardevs.attach(&id).map_err(|e| o.locate(e))?, log);
    Ok(())
}
