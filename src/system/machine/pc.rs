//! The pc machine as the command line asks for it.

use std::{rc::Rc, sync::Arc};

use lockstep_event::{Clock, Local};
use lockstep_hw::{
    core::{IrqLine, PropertyInput, QomParent, ResetKind, create_device},
    irqchip::KernelIrqChip,
    pc::{BootConfig, CpuSlot, KernelConfig, PcConfig, PcHooks, PcMachine, Stage},
    rtc::RtcConfig,
};
use lockstep_qapi::event;
use lockstep_qapi::schema::{ChardevBackend, ChardevVC, ChardevVCWrapper};
use lockstep_util::{Error, Result, err, report};

use super::{defaults::Defaults, device_types, firmware, vcpus};
use crate::{
    cmdline::CommandLine,
    drive::{Interface, Media},
    machine_options::{MachineOptions, RtcBase},
    vm::{Accelerator, Vm},
};

/// The machine and what was asked of it.
pub struct Pc {
    /// The machine.
    pub machine: PcMachine,
}

impl Pc {
    pub(super) fn finish(&self, vm: &Rc<Vm>) -> Result<()> {
        for (channel, unit, disk) in firmware::disks(vm) {
            self.machine.set_disk(channel, unit, disk);
        }
        self.machine.finish(&firmware::boot_entries(vm)?)
    }
}

/// What ports are connected to: ids of character devices.
struct Ports {
    /// By index. `None`: there is no such port (`-serial none`).
    serial: Vec<Option<String>>,
    parallel: Option<Option<String>>,
    debugcon: Option<String>,
}

struct Hooks<'a> {
    vm: &'a Rc<Vm>,
    ports: Ports,
    vga: bool,
}

impl Hooks<'_> {
    /// Makes a device that nobody asked for.
    fn default_device(&self, name: &str, options: &[(String, PropertyInput)]) -> Result<()> {
        let kind = device_types().find(name).ok_or_else(|| err!("'{name}' is not a valid device model name"))?;
        create_device(&self.vm.board, kind, None, None, options, QomParent::Unattached)?;
        Ok(())
    }
}

impl PcHooks for Hooks<'_> {
    fn kernel_irqchip(&self) -> Option<Arc<dyn KernelIrqChip>> {
        match &self.vm.accelerator {
            Accelerator::Kvm(kvm) => Some(kvm.clone()),
            Accelerator::Tcg(_) | Accelerator::Qtest | Accelerator::None => None,
        }
    }

    fn a20(&self) -> IrqLine {
        match &self.vm.accelerator {
            Accelerator::Tcg(tcg) => tcg.a20(),
            _ => IrqLine::unconnected(),
        }
    }

    fn make_devices(&mut self, stage: Stage, _machine: &PcMachine) -> Result<()> {
        match stage {
            Stage::Drives => drives(self.vm),
            Stage::Display if self.vga => self.default_device("VGA", &[]),
            Stage::Display => Ok(()),
            Stage::SuperIo => {
                for (n, chardev) in self.ports.serial.iter().enumerate() {
                    let Some(id) = chardev else { continue };
                    let text = |name: &str, value: &str| (name.to_owned(), PropertyInput::Text(value.to_owned()));
                    self.default_device("isa-serial", &[text("index", &n.to_string()), text("chardev", id)])?;
                }
                if let Some(chardev) = &self.ports.parallel {
                    let options: Vec<_> =
                        chardev.iter().map(|id| ("chardev".to_owned(), PropertyInput::Text(id.clone()))).collect();
                    self.default_device("isa-parallel", &options)?;
                }
                if let Some(id) = &self.ports.debugcon {
                    self.default_device("isa-debugcon", &[("chardev".to_owned(), PropertyInput::Text(id.clone()))])?;
                }
                Ok(())
            }
        }
    }
}

/// The drives with an interface of the machine's.
fn drives(vm: &Rc<Vm>) -> Result<()> {
    for drive in vm.drives.all().into_iter().filter(|d| d.interface == Interface::Ide) {
        let name = if drive.media == Media::Cdrom { "ide-cd" } else { "ide-hd" };
        let kind = device_types().find(name).ok_or_else(|| err!("'{name}' is not a valid device model name"))?;
        if drive.bus > 1 {
            return Err(err!("Too many IDE buses defined ({} > 2)", drive.bus + 1));
        }
        let options = [
            ("unit".to_owned(), PropertyInput::Text(drive.unit.to_string())),
            ("drive".to_owned(), PropertyInput::Text(drive.backend.name())),
        ];
        let bus = format!("ide.{}", drive.bus);
        create_device(&vm.board, kind, None, Some(&bus), &options, QomParent::Unattached)?;
    }
    Ok(())
}

pub(super) async fn create(vm: &Rc<Vm>, line: &CommandLine) -> Result<()> {
    let ports = ports(vm, line).await?;
    let facts = vcpus::create(vm)?;
    let defaults = Defaults::of(line);
    let floppy_backend = defaults.floppy.then(|| vm.drives.add_default_floppy(&vm.graph)).transpose()?;
    let options = &vm.options;
    let bios = line.last("bios").map_or("bios-256k.bin", |o| &o.value).to_owned();
    let config = PcConfig {
        ram_size: options.ram_size,
        max_ram_below_4g: None,
        cpus: (0..options.smp.cpus).map(|index| CpuSlot { index, apic_id: index }).collect(),
        max_cpus: options.smp.max_cpus,
        topology: (options.smp.threads, options.smp.cores),
        cpuid_1: facts.leaf_1,
        amd: facts.amd,
        uuid: options.uuid,
        bios,
        boot: BootConfig {
            order: options.boot_once.clone().unwrap_or_else(|| options.boot_order.clone()),
            menu: options.boot_menu,
            splash_time: options.splash_time.map(|t| t as u16),
            reboot_timeout: options.reboot_timeout.unwrap_or(-1) as i32,
            strict: options.boot_strict,
            ..BootConfig::default()
        },
        acpi: options.acpi,
        hpet: options.hpet,
        usb: options.usb,
        // No engine here has system management mode.
        smm: false,
        vmport: options.vmport,
        i8042: true,
        graphics: options.graphics,
        rtc: rtc(options, vm),
        kernel: options.kernel.clone().map(|image| KernelConfig {
            image,
            initrd: options.initrd.clone(),
            command_line: options.append.clone().unwrap_or_default(),
        }),
        floppy_drive: defaults.floppy,
        floppy_backend,
        serial: [0, 1].map(|n| ports.serial.get(n).is_some_and(Option::is_some)),
        parallel: ports.parallel.is_some(),
        machine_name: options.machine.name.to_owned(),
        files: firmware_files(line)?,
    };
    let vga = match line.last("vga").map(|o| o.value.as_str()) {
        Some("none") => false,
        Some("std") => true,
        Some(other) => return Err(err!("unknown vga type: {other}")),
        None => defaults.vga,
    } && device_types().find("VGA").is_some();
    let mut hooks = Hooks { vm, ports, vga };
    let machine = PcMachine::build(config, &vm.board, &mut hooks)?;
    if let (false, Some(ram)) = (options.dump_guest_core, vm.board.ram.find("pc.ram")) {
        ram.keep_out_of_core_dumps().map_err(|e| Error::with_errno("cannot keep memory out of core dumps", &e))?;
    }
    if let (Accelerator::Tcg(tcg), Some(pic), Some(apics)) = (&vm.accelerator, machine.pic(), machine.local_apics()) {
        tcg.connect(apics, pic);
        tcg.watch_code(&vm.board.ram)?;
    }
    let ide = machine.ide.clone();
    vm.add_state_listener(move |running, _| {
        if running {
            ide.resume();
        }
    });
    requests(vm);
    clock_changes(vm, &machine);
    if let (Some(_), once) = (&options.boot_once, options.boot_order.clone()) {
        // The order of the first boot only: the next reset brings back the other.
        let weak = Local::new(Rc::downgrade(vm));
        let first = std::sync::atomic::AtomicBool::new(true);
        vm.board.resets.register(lockstep_hw::core::ResetPhase::Devices, move |kind| {
            if kind == ResetKind::Warm
                && first.swap(false, std::sync::atomic::Ordering::SeqCst)
                && let Some(vm) = weak.get().upgrade()
                && let Some(pc) = vm.pc()
                && let Err(e) = pc.machine.set_boot_order(&once)
            {
                report::error(e.message());
            }
        });
    }
    vm.set_pc(Pc { machine });
    Ok(())
}

/// Devices ask for resets and power off on any thread; the machine answers on the main context.
fn requests(vm: &Rc<Vm>) {
    let (weak, main) = (Arc::new(Local::new(Rc::downgrade(vm))), vm.main.clone());
    vm.board.requests.set_receiver(move |request| {
        let vm = weak.clone();
        main.spawn(move || async move {
            if let Some(vm) = vm.get().upgrade() {
                vm.handle_request(request).await;
            }
        });
    });
}

/// Users are told when the guest sets its clock: how far that is from what `-rtc base` made it.
fn clock_changes(vm: &Rc<Vm>, machine: &PcMachine) {
    let (weak, main) = (Arc::new(Local::new(Rc::downgrade(vm))), vm.main.clone());
    let (clocks, ahead) = (vm.clocks.clone(), machine.config.rtc.base - host_seconds(vm));
    machine.rtc.on_change(move |seconds| {
        let offset = seconds - (clocks.now_ns(Clock::Host) / 1_000_000_000 + ahead);
        let vm = weak.clone();
        main.spawn(move || async move {
            let Some(vm) = vm.get().upgrade() else { return };
            let rtc = vm.board.tree.devices().into_iter().find(|d| d.kind.name == "mc146818rtc");
            let qom_path = rtc.map_or_else(String::new, |d| d.path.clone());
            vm.emit::<event::RtcChange>(&event::RtcChange { offset, qom_path });
        });
    });
}

/// Seconds since the epoch on the host.
fn host_seconds(vm: &Vm) -> i64 {
    vm.clocks.now_ns(Clock::Host) / 1_000_000_000
}

fn rtc(options: &MachineOptions, vm: &Vm) -> RtcConfig {
    let clock = if options.rtc_virtual { Clock::Virtual } else { Clock::Host };
    let now = host_seconds(vm);
    let base = match options.rtc_base {
        RtcBase::Utc => now,
        RtcBase::LocalTime => now + local_offset(now),
        RtcBase::Date(date) => date,
    };
    RtcConfig { clock, base }
}

/// Seconds that the host's time zone is ahead of UTC.
fn local_offset(now: i64) -> i64 {
    // SAFETY: both pointers are to live values, and localtime_r fills in the second.
    unsafe {
        let mut time: libc::tm = std::mem::zeroed();
        libc::localtime_r(&now, &mut time);
        time.tm_gmtoff
    }
}

/// `-fw_cfg`.
fn firmware_files(line: &CommandLine) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![];
    for o in line.all("fw_cfg") {
        let options = lockstep_qapi::opts::parse(&o.value, Some("name")).map_err(|e| o.locate(e))?;
        let wrong = || o.locate(err!("name, plus exactly one of file, string and gen_id, are needed"));
        let name = options.get("name").filter(|n| !n.is_empty()).ok_or_else(wrong)?;
        if name.len() > 55 {
            return Err(o.locate(err!("name too long (max. 55 char)")));
        }
        let data = match (options.get("file"), options.get("string")) {
            (Some(file), None) => std::fs::read(file).map_err(|_| o.locate(err!("can't load {file}")))?,
            (None, Some(text)) => text.as_bytes().to_vec(),
            _ => return Err(wrong()),
        };
        if !name.starts_with("opt/") {
            report::warn(format_args!("externally provided fw_cfg item names should be prefixed with \"opt/\""));
        }
        files.push((name.to_owned(), data));
    }
    Ok(files)
}

/// The character devices of `-serial`, and the default ones.
async fn ports(vm: &Rc<Vm>, line: &CommandLine) -> Result<Ports> {
    let mut serial = vec![];
    for (n, o) in line.all("serial").enumerate() {
        if n >= 4 {
            return Err(o.locate(err!("too many serial ports")));
        }
        serial.push(serial_chardev(vm, n, &o.value).await.map_err(|e| {
            if !o.value.starts_with("chardev:") {
                report::error(o.locate(e));
            }
            o.locate(err!("could not connect serial device to character backend '{}'", o.value))
        })?);
    }
    let defaults = Defaults::of(line);
    if serial.is_empty() && line.has("nographic") && defaults.serial {
        let text = if line.has("monitor") || line.has("qmp") || line.has("mon") { "stdio" } else { "mon:stdio" };
        serial.push(serial_chardev(vm, 0, text).await?);
    } else if serial.is_empty() && defaults.serial {
        serial.push(serial_chardev(vm, 0, "vc").await?);
    }
    let parallel = match line.last("parallel") {
        Some(o) if o.value == "none" => None,
        Some(o) => Some(port_chardev(vm, "parallel0", &o.value).await.map_err(|e| o.locate(e))?),
        None if !defaults.parallel => None,
        None => Some(port_chardev(vm, "parallel0", "vc").await?),
    };
    let debugcon = match line.last("debugcon") {
        Some(o) => port_chardev(vm, "debugcon", &o.value).await.map_err(|e| o.locate(e))?,
        None => None,
    };
    Ok(Ports { serial, parallel, debugcon })
}

async fn serial_chardev(vm: &Rc<Vm>, n: usize, text: &str) -> Result<Option<String>> {
    port_chardev(vm, &format!("serial{n}"), text).await
}

/// The id of the character device that a port's option describes; it is made unless it exists.
async fn port_chardev(vm: &Rc<Vm>, label: &str, text: &str) -> Result<Option<String>> {
    use lockstep_chardev::options::{describe, parse_short};
    if text == "none" {
        return Ok(None);
    }
    if text == "vc" || text.starts_with("vc:") {
        vm.chardevs.create(label, ChardevBackend::Vc(ChardevVCWrapper { data: ChardevVC::default() })).await?;
        return Ok(Some(label.to_owned()));
    }
    if let Some(id) = text.strip_prefix("chardev:") {
        if !vm.chardevs.contains(id) {
            return Err(err!("chardev \"{id}\" not found"));
        }
        return Ok(Some(id.to_owned()));
    }
    vm.add_chardev(describe(&parse_short(label, text)?)?).await?;
    if text.starts_with("mon:") {
        crate::monitor::readline::start(vm, vm.chardevs.attach(label)?);
    }
    Ok(Some(label.to_owned()))
}
