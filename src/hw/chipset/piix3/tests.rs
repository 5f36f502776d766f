//! Routing and reset control.

use lockstep_event::Clocks;
use lockstep_memory::Region;
use lockstep_vmstate::vmstate_roundtrip;
use parking_lot::Mutex;

use super::*;
use crate::core::IrqSink;

struct Setup {
    board: Board,
    bridge: Arc<Piix3>,
    seen: Arc<Mutex<Vec<(u32, bool)>>>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let bus = PciBus::new(&Region::whole_space("pci"), &board.ports);
    let seen = Arc::new(Mutex::new(vec![]));
    let log = seen.clone();
    let sink = Arc::new(move |n: u32, level: bool| log.lock().push((n, level)));
    let isa = std::array::from_fn(|n| IrqLine::new(sink.clone(), n as u32));
    let bridge = Piix3::new(&board, &bus, 1, isa).unwrap();
    Setup { board, bridge, seen }
}

impl Setup {
    fn take(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.seen.lock())
    }
}

#[test]
fn a_pci_interrupt_goes_where_its_route_says() {
    let s = setup();
    let pirq = &s.bridge.pirq;
    pirq.set_irq(0, true);
    assert_eq!(s.take(), []);
    s.bridge.config_write(0x60, 0x0b0b_0a0a, 4);
    assert_eq!(s.take(), [(10, true)]);
    pirq.set_irq(1, true);
    pirq.set_irq(0, false);
    assert_eq!(s.take(), [], "shared with PIRQB");
    s.bridge.config_write(0x61, 0x0b, 1);
    assert_eq!(s.take(), [(10, false), (11, true)]);
    s.bridge.reset(ResetKind::Warm);
    assert_eq!(s.take(), [(11, false)]);
    assert_eq!(s.bridge.config_read(0x60, 4), 0x8080_8080);
}

#[test]
fn registers_after_reset_are_the_datasheets() {
    let s = setup();
    s.bridge.config_write(0x4c, 0xffff_ffff, 1);
    s.bridge.config_write(0x78, 0xffff, 2);
    s.bridge.reset(ResetKind::Cold);
    let read = |at| s.bridge.config_read(at, 4);
    assert_eq!([read(0x00), read(0x08), read(0x4c), read(0x68)], [0x7000_8086, 0x0601_0000, 0x0003_004d, 0x200]);
    assert_eq!([read(0x04), read(0x0c)], [0x0200_0000, 0x0080_0000]);
    assert_eq!([read(0x70), read(0x74), read(0x78), read(0xa0), read(0xa8)], [0x80, 0x0c0c_0000, 2, 8, 0xf]);
}

#[test]
fn the_reset_control_register_asks_for_a_reset() {
    let s = setup();
    let asked = Arc::new(Mutex::new(vec![]));
    let log = asked.clone();
    s.board.requests.set_receiver(move |r| log.lock().push(r));
    s.board.port_space.write_u8(0xcf9, 0x02);
    assert_eq!(s.board.port_space.read_u8(0xcf9), 2);
    s.board.port_space.write_u8(0xcf9, 0x06);
    assert_eq!(*asked.lock(), [MachineRequest::Reset(ResetCause::GuestReset)]);
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        s.bridge.config_write(0x60, 0x0b0b_0a0a, 4);
        s.bridge.pirq.set_irq(3, true);
        s.board.port_space.write_u8(0xcf9, 0x02);
        s.bridge
    },
    || setup().bridge
);
