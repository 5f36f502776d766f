//! The pair as a BIOS and a kernel drive it.

use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_event::Clocks;
use lockstep_vmstate::vmstate_roundtrip;

use super::*;

struct Setup {
    board: Board,
    pair: Arc<PicPair>,
    int: Arc<AtomicBool>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let int = Arc::new(AtomicBool::new(false));
    let pin = int.clone();
    let output = IrqLine::new(Arc::new(move |_: u32, level: bool| pin.store(level, Ordering::Relaxed)), 0);
    let pair = PicPair::new(&board, output);
    let s = Setup { board, pair, int };
    for (base, vector, cascade) in [(0x20, 0x08, 4), (0xa0, 0x70, 2)] {
        s.out(base, 0x11);
        s.out(base + 1, vector);
        s.out(base + 1, cascade);
        s.out(base + 1, 1);
        s.out(base + 1, 0);
    }
    s
}

impl Setup {
    fn out(&self, port: u64, value: u8) {
        self.board.port_space.write_u8(port, value);
    }

    fn inb(&self, port: u64) -> u8 {
        self.board.port_space.read_u8(port)
    }

    fn int(&self) -> bool {
        self.int.load(Ordering::Relaxed)
    }
}

#[test]
fn an_edge_is_served_once() {
    let s = setup();
    s.pair.set_irq(0, true);
    assert!(s.int());
    assert_eq!(s.pair.acknowledge(), 0x08);
    assert!(!s.int());
    s.out(0x20, 0x20);
    assert!(!s.int(), "the input is still high, but there was no new edge");
    s.pair.set_irq(0, false);
    s.pair.set_irq(0, true);
    assert!(s.int());
}

#[test]
fn a_level_stays_until_it_falls() {
    let s = setup();
    s.out(0x4d1, 0xff);
    assert_eq!(s.inb(0x4d1), 0xde, "the clock's and the FPU's inputs are edge triggered");
    s.pair.set_irq(10, true);
    assert_eq!(s.pair.acknowledge(), 0x72);
    s.out(0xa0, 0x20);
    s.out(0x20, 0x20);
    assert!(s.int());
    assert_eq!(s.pair.acknowledge(), 0x72);
    s.pair.set_irq(10, false);
    s.out(0xa0, 0x20);
    s.out(0x20, 0x20);
    assert!(!s.int());
}

#[test]
fn lower_priorities_wait_for_the_end_of_interrupt() {
    let s = setup();
    s.pair.set_irq(4, true);
    assert_eq!(s.pair.acknowledge(), 0x0c);
    s.pair.set_irq(6, true);
    assert!(!s.int());
    s.pair.set_irq(1, true);
    assert_eq!(s.pair.acknowledge(), 0x09);
    s.out(0x20, 0x0b);
    assert_eq!(s.inb(0x20), 0x12, "both in service");
    s.out(0x20, 0x20);
    s.out(0x20, 0x64);
    assert!(s.int());
    assert_eq!(s.pair.acknowledge(), 0x0e);
}

#[test]
fn masked_and_vanished_requests() {
    let s = setup();
    s.out(0x21, 0xff);
    s.pair.set_irq(3, true);
    assert!(!s.int());
    assert_eq!((s.inb(0x21), s.inb(0x20)), (0xff, 0x08));
    assert_eq!(s.pair.acknowledge(), 0x0f, "spurious");
    s.out(0x21, 0);
    assert!(s.int());
    s.out(0x20, 0x0c);
    assert_eq!(s.inb(0x20), 0x83, "polled");
    assert!(!s.int());
}

#[test]
fn rotation_makes_the_served_input_the_last() {
    let s = setup();
    s.out(0x20, 0xc2);
    s.pair.set_irq(1, true);
    s.pair.set_irq(3, true);
    assert_eq!(s.pair.acknowledge(), 0x0b);
    s.out(0x20, 0xa0);
    assert_eq!(s.pair.acknowledge(), 0x09);
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        s.pair.set_irq(4, true);
        s.pair.set_irq(9, true);
        s.out(0x4d1, 4);
        s.out(0x20, 0x11);
        s.out(0x21, 0x30);
        s.pair.section(false)
    },
    || setup().pair.section(false)
);
