//! Configuration space, BARs, interrupts and bus mastering through the bus.

use std::sync::Arc;

use lockstep_event::Clocks;
use lockstep_memory::{IoHandler, RamBlock, Region};
use lockstep_vmstate::check_roundtrip;
use parking_lot::Mutex;

use super::*;
use crate::core::{Board, Device, IrqLine, ResetKind};

struct Plain(PciFunction);

impl Device for Plain {
    fn reset(&self, _: ResetKind) {
        self.0.reset();
    }
}

impl PciDevice for Plain {
    fn function(&self) -> &PciFunction {
        &self.0
    }
}

struct Echo;

impl IoHandler for Echo {
    fn read(&self, offset: u64, _: u32) -> u64 {
        0x40 + offset
    }
    fn write(&self, _: u64, _: u32, _: u64) {}
}

const IDENTITY: PciIdentity = PciIdentity {
    vendor: 0x10ec,
    device: 0x8139,
    revision: 0x20,
    class: 0x0200,
    prog_if: 0,
    subsystem: PciIdentity::SUBSYSTEM,
    pin: 1,
};

struct Setup {
    board: Board,
    bus: Arc<PciBus>,
    device: Arc<Plain>,
    levels: Arc<Mutex<Vec<(u32, bool)>>>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    board.memory.add(0, &Region::ram("ram", RamBlock::new("ram", 0x10_0000).unwrap()));
    let pci = Region::whole_space("pci");
    board.memory.add_overlap(0, &pci, -1);
    let bus = PciBus::new(&pci, &board.ports);
    let levels = Arc::new(Mutex::new(vec![]));
    let log = levels.clone();
    let sink = Arc::new(move |n: u32, level: bool| log.lock().push((n, level)));
    bus.connect(std::array::from_fn(|n| IrqLine::new(sink.clone(), n as u32)));
    let function = PciFunction::new(&board, &bus, Some(4 << 3), "rtl8139", &IDENTITY, false).unwrap();
    function.add_io_bar(0, BarKind::Io, "ports", 0x100, Arc::new(Echo));
    function.add_io_bar(1, BarKind::Memory { prefetchable: false }, "registers", 0x100, Arc::new(Echo));
    let device = Arc::new(Plain(function));
    bus.plug(device.clone(), Some("e0"));
    Setup { board, bus, device, levels }
}

const SLOT_4: u32 = 4 << 11;

#[test]
fn configuration_space_is_sized_and_masked() {
    let s = setup();
    assert_eq!(s.bus.config_read(SLOT_4, 4), 0x8139_10ec);
    assert_eq!(s.bus.config_read(SLOT_4 | 0x2c, 4), 0x1100_1af4);
    for bar in [0x10, 0x14, 0x18, 0x30] {
        s.bus.config_write(SLOT_4 | bar, u32::MAX, 4);
    }
    let sizes = [0x10, 0x14, 0x18, 0x30].map(|bar| s.bus.config_read(SLOT_4 | bar, 4));
    assert_eq!(sizes, [0xffff_ff01, 0xffff_ff00, 0, 0]);
    s.bus.config_write(SLOT_4, 0, 4);
    assert_eq!(s.bus.config_read(SLOT_4 | 2, 2), 0x8139);
    assert_eq!(s.bus.config_read(5 << 11, 4), 0xffff_ffff);
    assert_eq!(s.bus.config_read(SLOT_4 | 1 << 16, 2), 0xffff);
    assert_eq!(s.bus.config_read(SLOT_4 | 0xfe, 4), 0, "past the end");
}

#[test]
fn bars_are_mapped_while_the_command_register_allows_it() {
    let s = setup();
    s.bus.config_write(SLOT_4 | 0x10, 0xc001, 4);
    s.bus.config_write(SLOT_4 | 0x14, 0xfebd_1000, 4);
    assert_eq!(s.board.port_space.read_u8(0xc004), 0xff);
    s.bus.config_write(SLOT_4 | 4, 3, 2);
    assert_eq!(s.board.port_space.read_u8(0xc004), 0x44);
    assert_eq!(s.board.memory_space.read_u8(0xfebd_1002), 0x42);
    s.bus.config_write(SLOT_4 | 0x10, 0xd001, 4);
    assert_eq!((s.board.port_space.read_u8(0xc004), s.board.port_space.read_u8(0xd004)), (0xff, 0x44));
    s.bus.config_write(SLOT_4 | 0x10, 0x1_0001, 4);
    s.bus.config_write(SLOT_4 | 0x14, 0, 4);
    assert_eq!(s.device.0.bars().iter().map(|b| b.address).collect::<Vec<_>>(), [None, None]);
    s.device.reset(ResetKind::Warm);
    assert_eq!(s.bus.config_read(SLOT_4 | 4, 2), 0);
    assert_eq!(s.bus.config_read(SLOT_4 | 0x10, 4), 1);
}

#[test]
fn a_pin_reaches_its_line_unless_disabled() {
    let s = setup();
    let irq = s.device.0.irq();
    irq.set(true);
    assert_eq!(s.bus.config_read(SLOT_4 | 6, 2) & 8, 8);
    irq.set(true);
    s.bus.config_write(SLOT_4 | 4, command::INTX_DISABLE.into(), 2);
    s.bus.config_write(SLOT_4 | 4, 0, 2);
    irq.set(false);
    // Slot 4, INTA: (0 + 4 - 1) mod 4.
    assert_eq!(*s.levels.lock(), [(3, true), (3, false), (3, true), (3, false)]);
    irq.set(true);
    s.device.reset(ResetKind::Warm);
    assert_eq!(s.levels.lock().len(), 6);
}

#[test]
fn bus_mastering_needs_its_bit_and_keeps_out_of_the_devices_own_registers() {
    let s = setup();
    let dma = s.device.0.dma();
    s.board.memory_space.write_u32(0x1000, 0x1234_5678);
    assert_eq!(dma.read_u32(0x1000), 0);
    s.bus.config_write(SLOT_4 | 0x14, 0xfebd_1000, 4);
    s.bus.config_write(SLOT_4 | 4, 6, 2);
    assert_eq!(dma.read_u32(0x1000), 0x1234_5678);
    assert_eq!(dma.read_u32(0xfebd_1000), 0);
    assert_eq!(s.board.memory_space.read_u32(0xfebd_1000), 0x40);
}

#[test]
fn a_taken_slot_is_refused_in_the_known_words() {
    let s = setup();
    let new = |devfn, multifunction| {
        PciFunction::new(&s.board, &s.bus, devfn, "VGA", &IDENTITY, multifunction).map(|f| f.devfn())
    };
    let text = |r: lockstep_util::Result<u8>| r.unwrap_err().message().to_owned();
    assert_eq!(text(new(Some(0x20), false)), "PCI: slot 4 function 0 not available for VGA, in use by rtl8139,id=e0");
    assert_eq!(text(new(Some(0x21), false)), "PCI: single function device can't be populated in function 4.1");
    assert_eq!((new(None, false), new(None, false)), (Ok(0), Ok(0)), "what is not plugged gives its place back");
    let kept: Vec<_> = (0..31).map(|_| PciFunction::new(&s.board, &s.bus, None, "VGA", &IDENTITY, false)).collect();
    assert!(kept.iter().all(Result::is_ok));
    assert_eq!(text(new(None, false)), "PCI: no slot/function available for VGA, all in use or reserved");
}

#[test]
fn state_of_another_device_is_refused() {
    let s = setup();
    let good = s.device.0.save();
    assert_eq!(s.device.0.validate(&good), Ok(()));
    for at in [0, 3, 8, 0x0b, 0x10, 0x34] {
        let mut bad = good.clone();
        bad.config[at] ^= 2;
        assert!(s.device.0.validate(&bad).is_err(), "byte {at:#x}");
    }
}

#[test]
fn loaded_state_maps_what_the_saved_device_had() {
    let s = setup();
    s.bus.config_write(SLOT_4 | 0x10, 0xc001, 4);
    s.bus.config_write(SLOT_4 | 4, 3, 2);
    s.device.0.irq().set(true);
    let wire = s.device.0.save();
    assert_eq!(wire.irq_state, [1, 0, 0, 0]);
    let t = setup();
    t.device.0.load(&wire);
    assert_eq!(t.board.port_space.read_u8(0xc001), 0x41);
    assert_eq!(t.device.0.save(), wire);
    check_roundtrip(&s.bus, &t.bus).unwrap();
    t.device.0.irq().set(false);
    assert_eq!(*t.levels.lock(), [(3, false)], "the loaded count falls to zero");
}
