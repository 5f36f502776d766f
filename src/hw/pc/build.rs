//! Putting the machine together.

use std::sync::Arc;

use lockstep_memory::Region;
use lockstep_util::{Result, size::MIB};
use parking_lot::Mutex;

use super::{BootEntry, DiskCmos, IsaBus, PcConfig, boot, cmos, firmware, kernel, parts, smbios, types};
use crate::{
    acpi::{
        pm::{Eeprom, I2cBus, Piix4Pm, PmConfig},
        tables::{AcpiConfig, AcpiTables, Ports},
    },
    chipset::{
        add_dummy_ports,
        i440fx::{I440fx, PciHost},
        piix3::Piix3,
    },
    core::{Board, BusNode, DriveUser, IrqLine, IrqSink, PropertyInput, QomParent, ResetPhase, create_device},
    dma::{CONTROLLERS, Dma},
    fdc::Fdc,
    fw_cfg::{FwCfg, key},
    ide::{PIIX3_IDE, Piix3Ide},
    input::{
        i8042::{I8042, Pins},
        port92::Port92,
        vmport::VmPort,
    },
    irqchip::{
        GSI_COUNT, GsiRouter, IrqCounts, KernelIoApic, KernelIrqChip, KernelPic,
        apic::ApicBus,
        ioapic::{IoApic, IoApicRegs, KERNEL_VERSION},
        pic::{PicPair, PicState},
    },
    pci::PciBus,
    rtc::Rtc,
    timer::{
        hpet::{HPET_ADDRESS, HPET_BLOCK_ID, HPET_SIZE, Hpet},
        pcspk::Speaker,
        pit::{KernelPit, Pit, PitBackend},
    },
    usb::uhci::PIIX3_UHCI,
};

/// When the owner of the machine makes devices of its own, so that they come in QEMU's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Disks and CD-ROM drives on the IDE buses.
    Drives,
    /// The display adapter, in the first free slot.
    Display,
    /// Serial ports, then the parallel port.
    SuperIo,
}

/// What the machine gets from outside.
pub trait PcHooks {
    /// The kernel's interrupt controllers and timer; `None` to have them in this process.
    fn kernel_irqchip(&self) -> Option<Arc<dyn KernelIrqChip>> {
        None
    }

    /// The CPUs' A20 gate.
    fn a20(&self) -> IrqLine {
        IrqLine::unconnected()
    }

    /// The boot CPU's SMI input, pulsed.
    fn smi(&self) -> IrqLine {
        IrqLine::unconnected()
    }

    /// Makes the devices of a stage.
    ///
    /// # Errors
    /// When one cannot be made.
    fn make_devices(&mut self, stage: Stage, machine: &PcMachine) -> Result<()> {
        let _ = (stage, machine);
        Ok(())
    }
}

/// Interrupt controllers and timer, wherever they are.
enum Controllers {
    Kernel(Arc<dyn KernelIrqChip>),
    Here { pic: Arc<PicPair>, ioapic: Arc<IoApic>, apics: Arc<ApicBus>, router: Arc<GsiRouter> },
}

/// The machine.
pub struct PcMachine {
    /// The board.
    pub board: Board,
    /// What it was made of.
    pub config: PcConfig,
    /// The PCI bus.
    pub pci: Arc<PciBus>,
    /// The PCI bus in the tree.
    pub pci_node: Arc<BusNode>,
    /// The ISA bus in the tree; its object is an [`IsaBus`].
    pub isa_node: Arc<BusNode>,
    /// Global system interrupts.
    pub gsis: Vec<IrqLine>,
    /// The host bridge, with memory as system management mode sees it.
    pub host_bridge: Arc<I440fx>,
    /// The firmware configuration device.
    pub fw_cfg: Arc<FwCfg>,
    /// The clock.
    pub rtc: Arc<Rtc>,
    /// The IDE controller.
    pub ide: Arc<Piix3Ide>,
    /// Power management; none with `acpi=off`.
    pub pm: Option<Arc<Piix4Pm>>,
    controllers: Controllers,
    irq_counts: Arc<IrqCounts>,
    boot_first: Vec<BootEntry>,
    disks: Mutex<[Option<DiskCmos>; 4]>,
}

const PIIX_SLOT: u8 = 1;
/// Where the SMBus ports are until firmware moves them.
const SMBUS_BASE: u16 = 0xb100;
/// Functions of the PIIX3's slot.
const IDE_DEVFN: u8 = PIIX_SLOT << 3 | 1;
const IDE_IRQS: [usize; 2] = [14, 15];
const EEPROMS: usize = 8;

impl PcMachine {
    /// Makes the board's own devices. CPUs and their sections were made before; devices of a user are made after.
    ///
    /// # Errors
    /// When RAM or an image is missing, or a setting is impossible.
    pub fn build(config: PcConfig, board: &Board, hooks: &mut dyn PcHooks) -> Result<Self> {
        let root = board.tree.root();
        let vapic = Arc::new(crate::irqchip::vapic::Vapic::default());
        // It comes with the first CPU's local APIC.
        board.states.register_after(("cpu", 0), "kvm-tpr-opt", vapic.clone());
        let unattached = || QomParent::Unattached;
        let device = parts::BoardDevice::new(move |_| vapic.reset());
        // The engine's devices have their places: the first CPU, the other CPUs, KVM's clock.
        board.tree.next_unattached();
        parts::plug(board, &types::VAPIC, &root, unattached(), Arc::new(device), Default::default());
        (1..config.cpus.len()).for_each(|_| drop(board.tree.next_unattached()));
        if hooks.kernel_irqchip().is_some() {
            // Its state is the kernel's: the CPUs' section has it.
            let properties = parts::properties(board, &types::KVMCLOCK, &[])?;
            let device = parts::BoardDevice::new(|_| ());
            parts::plug(board, &types::KVMCLOCK, &root, unattached(), Arc::new(device), properties);
        }

        // Controllers first: all lines lead there. Their sections come later.
        let controllers = match hooks.kernel_irqchip() {
            Some(chip) => Controllers::Kernel(chip),
            None => {
                let ids: Vec<_> = config.cpus.iter().map(|c| c.apic_id).collect();
                let apics = ApicBus::new(board, &ids);
                let (pic, ioapic) = (PicPair::new(board, apics.lint0()), IoApic::new(board));
                ioapic.connect(apics.clone(), pic.clone());
                apics.connect(&ioapic, &pic);
                for (n, cpu) in config.cpus.iter().enumerate() {
                    let Some(apic) = apics.apic(n).cloned() else { continue };
                    // A CPU's sections stand together.
                    let before = if n == 0 { ("kvm-tpr-opt", 0) } else { ("cpu", cpu.index) };
                    board.states.register_after(before, "apic", apic.clone());
                    board.resets.register(ResetPhase::Devices, move |_| apic.reset());
                }
                let router = GsiRouter::new(pic.clone(), ioapic.clone());
                Controllers::Here { pic, ioapic, apics, router }
            }
        };
        let sink: Arc<dyn IrqSink> = match &controllers {
            Controllers::Kernel(chip) => chip.clone(),
            Controllers::Here { router, .. } => router.clone(),
        };
        let irq_counts = IrqCounts::new(sink);
        let gsis: Vec<_> = (0..GSI_COUNT).map(|n| IrqLine::new(irq_counts.clone(), n)).collect();
        let isa_irqs: [IrqLine; 16] = std::array::from_fn(|n| gsis[n].clone());

        // Host bridge with RAM, firmware.
        let ram = board.ram.allocate("pc.ram", config.ram_size)?;
        let pci_memory = Region::whole_space("pci");
        let pci = PciBus::new(&pci_memory, &board.ports);
        let pci_node = BusNode::new("pci.0", "PCI", pci.clone());
        let host_bridge = I440fx::new(board, &pci, &pci_memory, &ram, config.below_4g())?;
        let host = PciHost::new(board, &pci);
        let settled = [
            ("below-4g-mem-size", config.below_4g().to_string()),
            ("above-4g-mem-size", config.above_4g().to_string()),
        ];
        let properties = parts::properties(board, &types::PCI_HOST, &settled)?;
        let resets = host.clone();
        let device = parts::BoardDevice::new(move |_| resets.reset()).with_bus(&pci_node);
        let path = "/machine/i440fx";
        parts::plug(board, &types::PCI_HOST, &root, QomParent::At(path.into()), Arc::new(device), properties);
        let properties = parts::properties(board, &types::I440FX, &[("addr", "00.0".into())])?;
        parts::plug(board, &types::I440FX, &pci_node, unattached(), host_bridge.clone(), properties);
        board.states.register("0000:00:00.0/I440FX", host_bridge.clone());
        board.states.register("PCIHost", host);
        board.states.register("PCIBUS", pci.clone());
        firmware::load(board, &pci_memory, &config.bios)?;
        let fw_cfg = FwCfg::new(board);
        boot::fill(&fw_cfg, &config)?;
        let resets = fw_cfg.clone();
        let device = parts::BoardDevice::new(move |_| resets.reset());
        let properties = parts::properties(board, &types::FW_CFG, &[])?;
        parts::plug(
            board,
            &types::FW_CFG,
            &root,
            QomParent::At("/machine/fw_cfg".into()),
            Arc::new(device),
            properties,
        );
        board.states.register("fw_cfg", fw_cfg.clone());

        // PIIX3 with what is in it.
        let isa = IsaBus::new(isa_irqs.clone());
        let isa_node = BusNode::new("isa.0", "ISA", isa.clone());
        let bridge = Piix3::new(board, &pci, PIIX_SLOT, isa_irqs.clone())?;
        let smm = if config.smm { "on" } else { "off" };
        let settled = [("addr", "01.0".into()), ("multifunction", "on".into()), ("smm-enabled", smm.into())];
        let properties = parts::properties(board, &types::PIIX3, &settled)?;
        let device = Arc::new(parts::WithBuses(bridge.clone(), vec![isa_node.clone()]));
        let piix_path = parts::plug(board, &types::PIIX3, &pci_node, unattached(), device, properties).path.clone();
        for (n, controller) in CONTROLLERS.into_iter().enumerate() {
            let dma = Dma::new(board, controller);
            board.states.register("dma", dma.clone());
            let device = parts::BoardDevice::new(move |_| dma.reset());
            let settled = [
                ("base", controller.base.to_string()),
                ("page-base", controller.page_base.to_string()),
                ("dshift", controller.shift.to_string()),
            ];
            let properties = parts::properties(board, &types::I8257, &settled)?;
            let place = QomParent::At(format!("{piix_path}/dma[{n}]"));
            parts::plug(board, &types::I8257, &isa_node, place, Arc::new(device), properties);
        }
        let hpet = config.hpet.then(|| Hpet::new(board, &gsis));
        let rtc_irq = hpet.as_ref().map_or_else(|| isa_irqs[8].clone(), Hpet::rtc_line);
        let rtc = Rtc::new(board, config.rtc, rtc_irq);
        let resets = rtc.clone();
        let device = parts::BoardDevice::new(move |_| resets.reset());
        let properties = parts::properties(board, &types::RTC, &[])?;
        let place = QomParent::At(format!("{piix_path}/rtc"));
        parts::plug(board, &types::RTC, &isa_node, place, Arc::new(device), properties);
        board.states.register("mc146818rtc", rtc.clone());
        let ide = Piix3Ide::new(board, &pci, IDE_DEVFN, IDE_IRQS.map(|n| isa_irqs[n].clone()))?;
        pci.plug(ide.clone(), None);
        let properties = parts::properties(board, &PIIX3_IDE, &[("addr", "01.1".into())])?;
        parts::plug(board, &PIIX3_IDE, &pci_node, QomParent::At(format!("{piix_path}/ide")), ide.clone(), properties);
        if config.usb {
            let place = QomParent::At(format!("{piix_path}/uhci"));
            let address = [("addr".to_owned(), PropertyInput::Text("01.2".into()))];
            create_device(board, &PIIX3_UHCI, None, Some("pci.0"), &address, place)?;
        }
        let i2c = BusNode::new("i2c", "i2c-bus", Arc::new(()));
        let pm = match config.acpi {
            false => None,
            true => Some(Self::make_pm(board, &config, &pci, &pci_node, &i2c, &piix_path, &isa_irqs[9], hooks.smi())?),
        };
        board.states.register("0000:00:01.0/PIIX3", bridge);

        let mut machine = Self {
            board: board.clone(),
            config,
            pci,
            pci_node,
            isa_node,
            gsis,
            host_bridge,
            fw_cfg,
            rtc,
            ide,
            pm,
            controllers,
            irq_counts,
            boot_first: vec![],
            disks: Mutex::default(),
        };
        hooks.make_devices(Stage::Drives, &machine)?;
        machine.add_controllers()?;
        hooks.make_devices(Stage::Display, &machine)?;
        machine.add_timers(hpet)?;
        hooks.make_devices(Stage::SuperIo, &machine)?;
        machine.add_floppy()?;
        machine.add_input(hooks)?;
        if let Some(pm) = &machine.pm {
            machine.add_eeproms(&i2c, pm)?;
        }
        add_dummy_ports(board);
        cmos::fill(&machine.rtc, &machine.config)?;
        if let Some(kernel) = &machine.config.kernel {
            machine.boot_first.push(kernel::load(board, &machine.fw_cfg, &machine.config, kernel)?);
        }
        Ok(machine)
    }

    fn make_pm(
        board: &Board,
        config: &PcConfig,
        pci: &Arc<PciBus>,
        pci_node: &Arc<BusNode>,
        i2c: &Arc<BusNode>,
        piix_path: &str,
        sci: &IrqLine,
        smi: IrqLine,
    ) -> Result<Arc<Piix4Pm>> {
        let smm = if config.smm { "on" } else { "off" };
        let settled = [("addr", "01.3".into()), ("smb_io_base", SMBUS_BASE.to_string()), ("smm-enabled", smm.into())];
        let properties = parts::properties(board, &types::PIIX4_PM, &settled)?;
        let pm_config = PmConfig {
            smbus_base: properties.u32("smb_io_base") as u16,
            smm: config.smm,
            disable_s3: properties.u32("disable_s3") != 0,
            disable_s4: properties.u32("disable_s4") != 0,
            s4_value: properties.u32("s4_val") as u8,
            parallel: config.parallel,
            serial: config.serial,
        };
        let pm = Piix4Pm::new(board, pci, PIIX_SLOT, pm_config, sci.clone(), smi)?;
        let place = QomParent::At(format!("{piix_path}/pm"));
        let device = Arc::new(parts::WithBuses(pm.clone(), vec![i2c.clone()]));
        parts::plug(board, &types::PIIX4_PM, pci_node, place, device, properties);
        board.states.register("i2c_bus", Arc::new(I2cBus));
        board.states.register("0000:00:01.3/piix4_pm", pm.clone());
        Ok(pm)
    }

    fn add_controllers(&self) -> Result<()> {
        let board = &self.board;
        let (pic_type, ioapic_type) = match &self.controllers {
            Controllers::Kernel(_) => (&types::KVM_I8259, &types::KVM_IOAPIC),
            Controllers::Here { .. } => (&types::I8259, &types::IOAPIC),
        };
        for (slave, base, elcr, mask) in [(false, 0x20, 0x4d0, 0xf8), (true, 0xa0, 0x4d1, 0xde)] {
            let settled = [
                ("iobase", base.to_string()),
                ("elcr_addr", elcr.to_string()),
                ("elcr_mask", mask.to_string()),
                ("master", if slave { "off" } else { "on" }.into()),
            ];
            let properties = parts::properties(board, pic_type, &settled)?;
            let device = match &self.controllers {
                Controllers::Kernel(chip) => {
                    let chip = chip.clone();
                    board.states.register("i8259", KernelPic { chip: chip.clone(), slave });
                    parts::BoardDevice::new(move |_| {
                        report("8259", chip.set_pic(slave, &PicState::default()));
                    })
                }
                Controllers::Here { pic, .. } => {
                    board.states.register("i8259", pic.section(slave));
                    let pic = pic.clone();
                    // The pair is reset as one.
                    parts::BoardDevice::new(move |_| {
                        if !slave {
                            pic.reset()
                        }
                    })
                }
            };
            parts::plug(board, pic_type, &self.isa_node, QomParent::Unattached, Arc::new(device), properties);
        }
        let device = match &self.controllers {
            Controllers::Kernel(chip) => {
                let chip = chip.clone();
                board.states.register("ioapic", KernelIoApic { chip: chip.clone() });
                parts::BoardDevice::new(move |_| {
                    report("I/O APIC", chip.set_ioapic(&IoApicRegs::default().state()));
                })
            }
            Controllers::Here { ioapic, .. } => {
                board.states.register("ioapic", ioapic.clone());
                let ioapic = ioapic.clone();
                parts::BoardDevice::new(move |_| ioapic.reset())
            }
        };
        let device = device.with_line("mmio 00000000fec00000/0000000000001000");
        let properties = parts::properties(board, ioapic_type, &[])?;
        let place = QomParent::At("/machine/i440fx/ioapic".into());
        parts::plug(board, ioapic_type, &board.tree.root(), place, Arc::new(device), properties);
        Ok(())
    }

    fn add_timers(&self, hpet: Option<Arc<Hpet>>) -> Result<()> {
        let board = &self.board;
        if let Some(hpet) = &hpet {
            board.states.register("hpet", hpet.clone());
            let resets = hpet.clone();
            let device = parts::BoardDevice::new(move |_| resets.reset())
                .with_line(format!("mmio {HPET_ADDRESS:016x}/{HPET_SIZE:016x}"));
            let properties = parts::properties(board, &types::HPET, &[("hpet-intcap", 4.to_string())])?;
            parts::plug(board, &types::HPET, &board.tree.root(), QomParent::Unattached, Arc::new(device), properties);
        }
        let pit: Arc<dyn PitBackend> = match &self.controllers {
            Controllers::Kernel(chip) => {
                let pit = KernelPit::new(board, chip.clone());
                board.states.register("i8254", pit.clone());
                Arc::new(pit)
            }
            Controllers::Here { .. } => {
                let pit = Pit::new(board, self.gsis[0].clone());
                board.states.register("i8254", pit.clone());
                pit
            }
        };
        let kind = match &self.controllers {
            Controllers::Kernel(_) => &types::KVM_PIT,
            Controllers::Here { .. } => &types::PIT,
        };
        let resets = pit.clone();
        let device = parts::BoardDevice::new(move |_| resets.reset());
        let properties = parts::properties(board, kind, &[("iobase", 0x40.to_string())])?;
        parts::plug(board, kind, &self.isa_node, QomParent::Unattached, Arc::new(device), properties);
        if let Some(hpet) = hpet {
            hpet.map(board, pit.clone());
        }
        let speaker = Speaker::new(board, pit);
        board.states.register("pcspk", speaker);
        let properties = parts::properties(board, &types::SPEAKER, &[])?;
        let device = parts::BoardDevice::new(|_| ());
        parts::plug(board, &types::SPEAKER, &self.isa_node, QomParent::Unattached, Arc::new(device), properties);
        Ok(())
    }

    /// The floppy controller, and its drive unless there is none by default.
    fn add_floppy(&self) -> Result<()> {
        let board = &self.board;
        let fdc = Fdc::new(board, self.gsis[6].clone());
        board.states.register("fdc", fdc.clone());
        let drives = BusNode::new("floppy-bus.0", "floppy-bus", Arc::new(()));
        let device = parts::BoardDevice::new(move |_| fdc.reset()).with_bus(&drives);
        let properties = parts::properties(board, &types::FDC, &[])?;
        parts::plug(board, &types::FDC, &self.isa_node, QomParent::Unattached, Arc::new(device), properties);
        if self.config.floppy_drive {
            let backend = self.config.floppy_backend.as_deref();
            let mut settled = vec![
                ("unit", 0.to_string()),
                ("logical_block_size", 512.to_string()),
                ("physical_block_size", 512.to_string()),
            ];
            settled.extend(backend.map(|id| ("drive", id.to_owned())));
            let properties = parts::properties(board, &types::FLOPPY, &settled)?;
            let device = Arc::new(parts::BoardDevice::new(|_| ()));
            let path =
                parts::plug(board, &types::FLOPPY, &drives, QomParent::Unattached, device, properties).path.clone();
            let user = DriveUser {
                type_name: "floppy",
                name: path.clone(),
                path,
                writes: false,
                resizable: false,
                removable: true,
                has_tray: false,
                reports_errors: false,
                share_rw: false,
            };
            backend.map(|id| board.backends.drive(id, &user)).transpose()?;
        }
        Ok(())
    }

    fn add_input(&self, hooks: &dyn PcHooks) -> Result<()> {
        let board = &self.board;
        let mut i8042 = None;
        if self.config.i8042 {
            let pins = Pins { keyboard: self.gsis[1].clone(), mouse: self.gsis[12].clone(), a20: hooks.a20() };
            let device = I8042::new(board, pins);
            i8042 = Some(device.clone());
            let (keyboard, mouse, controller) = device.sections();
            board.states.register("ps2kbd", keyboard);
            board.states.register("ps2mouse", mouse);
            board.states.register("pckbd", controller);
            let device = parts::BoardDevice::new(move |_| device.reset());
            let properties = parts::properties(board, &types::I8042, &[])?;
            let node =
                parts::plug(board, &types::I8042, &self.isa_node, QomParent::Unattached, Arc::new(device), properties);
            for (kind, name) in [(&types::PS2_KEYBOARD, "ps2kbd"), (&types::PS2_MOUSE, "ps2mouse")] {
                let place = QomParent::At(format!("{}/{name}", node.path));
                let device = Arc::new(parts::BoardDevice::new(|_| ()));
                parts::plug(board, kind, &board.tree.root(), place, device, Default::default());
            }
        }
        if let Some(i8042) = i8042.filter(|_| self.config.vmport) {
            let vmport = VmPort::new(board, &i8042, self.config.ram_size);
            board.states.register("vmmouse", vmport.section());
            let port = Arc::new(parts::BoardDevice::new(|_| ()));
            let properties = parts::properties(board, &types::VMPORT, &[])?;
            parts::plug(board, &types::VMPORT, &self.isa_node, QomParent::Unattached, port, properties);
            let mouse = Arc::new(parts::BoardDevice::new(move |_| vmport.reset()));
            parts::plug(board, &types::VMMOUSE, &self.isa_node, QomParent::Unattached, mouse, Default::default());
        }
        let port92 = Port92::new(board, hooks.a20());
        board.states.register("port92", port92.clone());
        let device = parts::BoardDevice::new(move |_| port92.reset());
        let properties = parts::properties(board, &types::PORT92, &[])?;
        parts::plug(board, &types::PORT92, &self.isa_node, QomParent::Unattached, Arc::new(device), properties);
        Ok(())
    }

    fn add_eeproms(&self, i2c: &Arc<BusNode>, pm: &Arc<Piix4Pm>) -> Result<()> {
        for n in 0..EEPROMS {
            let settled = [("address", (0x50 + n).to_string())];
            let properties = parts::properties(&self.board, &types::SMBUS_EEPROM, &settled)?;
            let device = Arc::new(parts::BoardDevice::new(|_| ()));
            parts::plug(&self.board, &types::SMBUS_EEPROM, i2c, QomParent::Unattached, device, properties);
            self.board.states.register("smbus-eeprom", Eeprom::new(pm, n));
        }
        Ok(())
    }

    /// Tells the BIOS of a disk at an IDE channel (0 or 1) and unit (0 or 1).
    pub fn set_disk(&self, channel: usize, unit: usize, disk: DiskCmos) {
        if let Some(slot) = self.disks.lock().get_mut(channel * 2 + unit) {
            *slot = Some(disk);
        }
    }

    /// Writes what depends on all devices: disks in CMOS RAM, the boot order. Call it once, when the last device was made.
    ///
    /// # Errors
    /// When a file does not fit in fw_cfg's directory.
    pub fn finish(&self, boot_entries: &[BootEntry]) -> Result<()> {
        cmos::fill_disks(&self.rtc, &self.disks.lock());
        let mut entries = self.boot_first.clone();
        entries.extend_from_slice(boot_entries);
        self.fw_cfg.set_file("bootorder", boot::order(&entries, self.config.boot.strict))?;
        self.fw_cfg.set_file("bios-geometry", vec![])?;
        let (anchor, tables) = smbios::build(&self.config);
        self.fw_cfg.set_file("etc/smbios/smbios-anchor", anchor)?;
        self.fw_cfg.set_file("etc/smbios/smbios-tables", tables)?;
        if let Some(pm) = &self.pm {
            self.fw_cfg.set_file("etc/system-states", pm.system_states())?;
            let (pm, config, serial, parallel) =
                (pm.clone(), self.config.clone(), self.has_port(0x3f8), self.has_port(0x378));
            let serial = [serial, self.has_port(0x2f8)];
            let floppy = self.has_port(0x3f2);
            let tables = AcpiTables::new(&self.board, &self.fw_cfg, move || AcpiConfig {
                apic_ids: config.cpus.iter().map(|c| c.apic_id as u8).collect(),
                pci_hole: config.below_4g() as u32,
                pm_base: pm.port_base(),
                hpet: config.hpet,
                s3: !pm.config().disable_s3,
                s4: !pm.config().disable_s4,
                s4_value: pm.config().s4_value,
                ports: Ports { i8042: config.i8042, floppy, parallel, serial },
            })?;
            self.board.resets.register(ResetPhase::Devices, move |_| tables.reset());
        }
        if self.config.hpet {
            self.fw_cfg.set(key::HPET, hpet_configuration());
        }
        Ok(())
    }

    /// Whether a device answers at a port.
    fn has_port(&self, port: u64) -> bool {
        self.board.port_space.view().find(port).is_some()
    }

    /// Changes the boot order (`boot_set`, `-boot once=`).
    ///
    /// # Errors
    /// For letters that are no boot devices.
    pub fn set_boot_order(&self, order: &str) -> Result<()> {
        cmos::set_boot_order(&self.rtc, order, self.config.boot.floppy_check)
    }

    /// What `info pic` prints; nothing when the kernel has the controllers.
    pub fn describe_interrupts(&self) -> String {
        match &self.controllers {
            Controllers::Kernel(chip) => {
                let mut text = String::new();
                if let Ok(state) = chip.ioapic() {
                    let mut regs = IoApicRegs::default();
                    regs.load(&state);
                    text += &regs.describe(KERNEL_VERSION);
                }
                if let (Ok(master), Ok(slave)) = (chip.pic(false), chip.pic(true)) {
                    text += &PicPair::describe_states([&master, &slave]);
                }
                text
            }
            Controllers::Here { pic, ioapic, .. } => format!("{}{}", ioapic.describe(), pic.describe()),
        }
    }

    /// What `info irq` prints.
    pub fn describe_irq_counts(&self) -> String {
        let (ioapic, pic) = match &self.controllers {
            Controllers::Kernel(_) => ("kvm-ioapic", "kvm-i8259"),
            Controllers::Here { .. } => ("ioapic", "isa-i8259"),
        };
        self.irq_counts.describe(ioapic, pic)
    }

    /// The 8259 pair, when it is in this process.
    pub fn pic(&self) -> Option<&Arc<PicPair>> {
        match &self.controllers {
            Controllers::Here { pic, .. } => Some(pic),
            Controllers::Kernel(_) => None,
        }
    }

    /// The I/O APIC, when it is in this process.
    pub fn ioapic(&self) -> Option<&Arc<IoApic>> {
        match &self.controllers {
            Controllers::Here { ioapic, .. } => Some(ioapic),
            Controllers::Kernel(_) => None,
        }
    }

    /// Where all interrupt lines lead, unless the kernel has the controllers.
    pub fn gsi_router(&self) -> Option<&Arc<GsiRouter>> {
        match &self.controllers {
            Controllers::Here { router, .. } => Some(router),
            Controllers::Kernel(_) => None,
        }
    }

    /// The local APICs, when they are in this process. An engine connects its CPUs to them.
    pub fn local_apics(&self) -> Option<&Arc<ApicBus>> {
        match &self.controllers {
            Controllers::Here { apics, .. } => Some(apics),
            Controllers::Kernel(_) => None,
        }
    }

    /// RAM, in MiB, as messages say it.
    pub fn ram_mib(&self) -> u64 {
        self.config.ram_size / MIB
    }
}

/// What firmware without ACPI tables of its own is told of the HPET: one, its block, its address, no minimum tick, no protection.
fn hpet_configuration() -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend(HPET_BLOCK_ID.to_le_bytes());
    bytes.extend(HPET_ADDRESS.to_le_bytes());
    // Places for eight.
    bytes.resize(1 + 8 * 15, 0);
    bytes
}

fn report(what: &str, result: Result<()>) {
    if let Err(e) = result {
        tracing::error!("cannot reset the kernel's {what}: {e}");
    }
}
