//! The standard VGA: a VGA with Bochs VBE extensions and a linear frame buffer, on PCI.

mod edid;
mod regs;
mod render;
mod vmstate;
mod window;

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use lockstep_memory::{AccessRules, RamBlock, Region};
use lockstep_util::{Result, bail};
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub use vmstate::{VgaCommonState, VgaState};

use super::Image;
use crate::{
    core::{
        Board, Category, CreateContext, Device, DeviceType, Property, PropertyKind, ResetKind, byte_registers,
        io_handler,
    },
    pci::{BarKind, PCI_DEVICE_PROPERTIES, PCI_PARENTS, PciDevice, PciFunction, PciIdentity, PciPlace, add_option_rom},
};
use edid::Monitor;
use regs::{Action, Regs};

const IDENTITY: PciIdentity = PciIdentity {
    vendor: 0x1234,
    device: 0x1111,
    revision: 2,
    class: 0x0300,
    prog_if: 0,
    subsystem: PciIdentity::SUBSYSTEM,
    pin: 0,
};

const PROPERTIES: &[Property] = &[
    Property::new("vgamem_mb", PropertyKind::U32, "16"),
    Property::new("mmio", PropertyKind::Bool, "on"),
    Property::new("qemu-extended-regs", PropertyKind::Bool, "on"),
    Property::new("edid", PropertyKind::Bool, "on"),
    Property::new("xres", PropertyKind::U32, "1280"),
    Property::new("yres", PropertyKind::U32, "800"),
    Property::new("xmax", PropertyKind::U32, "0"),
    Property::new("ymax", PropertyKind::U32, "0"),
    Property::new("refresh_rate", PropertyKind::U32, "0"),
    Property::new("global-vmstate", PropertyKind::Bool, "off"),
    Property::new("romfile", PropertyKind::Str, "vgabios-stdvga.bin"),
];

/// The type.
pub static VGA: DeviceType = DeviceType {
    name: "VGA",
    alias: None,
    parents: PCI_PARENTS,
    bus: "PCI",
    category: Category::Display,
    description: "",
    properties: &[PROPERTIES, PCI_DEVICE_PROPERTIES],
    create: Some(create),
};

/// Ports: where, and how many. All are seen by the same registers.
const PORTS: [(u16, u64); 5] = [(0x3b4, 2), (0x3ba, 1), (0x3c0, 16), (0x3d4, 2), (0x3da, 1)];
const VBE_PORTS: u64 = 0x1ce;
const WINDOW: u64 = 0xa_0000;
const WINDOW_SIZE: u64 = 0x2_0000;

/// The device.
pub struct Vga {
    function: PciFunction,
    regs: Mutex<Regs>,
    vram: RamBlock,
    rom: OnceLock<Option<RamBlock>>,
}

fn create(context: &mut CreateContext<'_>) -> Result<Arc<dyn Device>> {
    let place = PciPlace::of(context)?;
    let megabytes = context.properties.u32("vgamem_mb");
    if !(1..=512).contains(&megabytes) {
        bail!("vgamem_mb must be between 1 and 512");
    }
    let vram_size = (megabytes << 20).next_power_of_two();
    let vga = Vga::new(context.board, &place, vram_size)?;
    let side = |name: &str| context.properties.u32(name).min(u16::MAX.into()) as u16;
    let monitor = Monitor {
        preferred: (side("xres"), side("yres")),
        largest: (side("xmax"), side("ymax")),
        refresh: context.properties.u32("refresh_rate"),
    };
    if context.properties.bool("mmio") {
        let edid = context.properties.bool("edid").then(|| edid::blocks(&monitor));
        vga.add_mmio(edid, context.properties.bool("qemu-extended-regs"));
    }
    let rom = add_option_rom(context.board, &vga.function, context.properties, "vga")?;
    let _ = vga.rom.set(rom);
    let name = match context.properties.bool("global-vmstate") {
        true => "vga".to_owned(),
        false => format!("{}/vga", vga.function.bus_path()),
    };
    context.board.states.register(&name, vga.clone());
    place.plug(context, vga.clone());
    Ok(vga)
}

impl Vga {
    /// The device with so many bytes of memory, its ports and its window mapped.
    fn new(board: &Board, place: &PciPlace, vram_size: u32) -> Result<Arc<Self>> {
        let function = PciFunction::new(board, &place.bus, place.devfn, "VGA", &IDENTITY, place.multifunction)?;
        let vram = board.ram.allocate(format!("{}/vga.vram", function.bus_path()), vram_size.into())?;
        let vga = Arc::new(Self { function, regs: Mutex::new(Regs::new(vram_size)), vram, rom: OnceLock::new() });
        for (first, count) in PORTS {
            let port = move |at: u64| first + at as u16;
            let region = byte_registers(
                "vga",
                count,
                &vga,
                move |vga: &Self, at| vga.regs.lock().read(port(at)),
                move |vga: &Self, at, value| vga.regs.lock().write(port(at), value),
            );
            place.bus.io().add(first.into(), &region);
        }
        place.bus.io().add(VBE_PORTS, &vga.vbe_ports());
        place.bus.memory().add_overlap(WINDOW, &vga.window(), 1);
        vga.function.add_ram_bar(0, true, "vga.vram", &vga.vram);
        Ok(vga)
    }

    fn vbe_ports(self: &Arc<Self>) -> Region {
        let (reader, writer) = (self.clone(), self.clone());
        let rules = AccessRules { unaligned: true, ..AccessRules::sizes(1, 4) };
        let handler = io_handler(
            rules,
            move |at, size| match (at, size) {
                (0, 2) => reader.regs.lock().vbe_index.into(),
                (1 | 2, 2) => {
                    let regs = reader.regs.lock();
                    regs.read_vbe(regs.vbe_index).into()
                }
                _ => u64::MAX,
            },
            move |at, size, value| match (at, size) {
                (0, 2) => writer.regs.lock().vbe_index = value as u16,
                (1 | 2, 2) => writer.write_vbe(None, value as u16),
                _ => {}
            },
        );
        Region::io("vbe", 4, handler)
    }

    fn write_vbe(&self, index: Option<u16>, value: u16) {
        let mut regs = self.regs.lock();
        let index = index.unwrap_or(regs.vbe_index);
        if let Some(Action::Clear(bytes)) = regs.write_vbe(index, value) {
            let _ = self.vram.fill(0, u64::from(bytes).min(self.vram.size()), 0);
        }
    }

    fn window(self: &Arc<Self>) -> Region {
        let (reader, writer) = (self.clone(), self.clone());
        let handler = io_handler(
            AccessRules::bytes(8),
            move |at, _| window::read(&mut reader.regs.lock(), &reader.vram, at).into(),
            move |at, _, value| window::write(&writer.regs.lock(), &writer.vram, at, value as u8),
        );
        Region::io("vga-lowmem", WINDOW_SIZE, handler)
    }

    /// The second BAR: what the monitor says of itself, and the ports again.
    fn add_mmio(self: &Arc<Self>, edid: Option<[u8; 384]>, extended: bool) {
        const PORTS_AT: u64 = 0x400;
        const VBE_AT: u64 = 0x500;
        const EXTENDED_AT: u64 = 0x600;
        let bar = Region::container("vga.mmio", 4096);
        let nothing = io_handler(AccessRules::bytes(8), |_, _| 0xff, |_, _, _| {});
        bar.add_overlap(0, &Region::io("vga.mmio", 4096, nothing), -1);
        if let Some(edid) = edid {
            let read = move |at: u64, _| edid.get(at as usize).copied().unwrap_or(0).into();
            bar.add(0, &Region::io("edid", 384, io_handler(AccessRules::bytes(4), read, |_, _, _| {})));
        }
        let ports = byte_registers(
            "vga ioports remapped",
            32,
            self,
            |vga: &Self, at| vga.regs.lock().read(0x3c0 + at as u16),
            |vga: &Self, at, value| vga.regs.lock().write(0x3c0 + at as u16, value),
        );
        bar.add(PORTS_AT, &ports);
        let (reader, writer) = (self.clone(), self.clone());
        let rules = AccessRules { valid_min: 1, valid_max: 4, unaligned: false, handled_min: 2, handled_max: 2 };
        let handler = io_handler(
            rules,
            move |at, _| reader.regs.lock().read_vbe((at >> 1) as u16).into(),
            move |at, _, value| writer.write_vbe(Some((at >> 1) as u16), value as u16),
        );
        bar.add(VBE_AT, &Region::io("bochs dispi interface", 22, handler));
        if extended {
            const LITTLE_ENDIAN: u64 = 0x1e1e_1e1e;
            let read = |at, _| if at == 0 { 8 } else { LITTLE_ENDIAN };
            let handler = io_handler(AccessRules::sizes(4, 4), read, |_, _, _| {});
            bar.add(EXTENDED_AT, &Region::io("qemu extended regs", 8, handler));
        }
        self.function.add_bar(2, BarKind::Memory { prefetchable: false }, &bar);
    }

    /// What is on the screen.
    pub fn screen(&self) -> Image {
        let regs = self.regs.lock().clone();
        render::render(&regs, &self.vram)
    }

    /// The characters on the screen, row by row, in the guest's code page; `None` in a graphics mode.
    pub fn text(&self) -> Option<Vec<Vec<u8>>> {
        let regs = self.regs.lock().clone();
        render::text_rows(&regs, &self.vram)
    }

    /// The video memory.
    pub fn vram(&self) -> &RamBlock {
        &self.vram
    }
}

impl Device for Vga {
    fn screen(&self) -> Option<Image> {
        Some(Self::screen(self))
    }

    fn reset(&self, _: ResetKind) {
        let mut regs = self.regs.lock();
        *regs = Regs::new(regs.vram_size);
        drop(regs);
        self.function.reset();
    }
}

impl PciDevice for Vga {
    fn function(&self) -> &PciFunction {
        &self.function
    }
}

impl Snapshot for Vga {
    type Wire = VgaState;

    fn snapshot(&self) -> VgaState {
        VgaState { dev: self.function.save(), vga: VgaCommonState::save(&self.regs.lock()) }
    }

    fn validate(&self, wire: &VgaState) -> std::result::Result<(), LoadError> {
        self.function.validate(&wire.dev)?;
        wire.vga.check(self.regs.lock().vram_size)
    }

    fn restore(&self, wire: VgaState) {
        self.function.load(&wire.dev);
        wire.vga.load(&mut self.regs.lock());
    }
}
