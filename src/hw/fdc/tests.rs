//! The controller as a BIOS and a driver probe it.

use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_vmstate::{VmState, vmstate_roundtrip};

use super::*;

struct Setup {
    board: Board,
    fdc: Arc<Fdc>,
    irq: Arc<AtomicBool>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let irq = Arc::new(AtomicBool::new(false));
    let level = irq.clone();
    let line = IrqLine::new(Arc::new(move |_: u32, l: bool| level.store(l, Ordering::Relaxed)), 6);
    let fdc = Fdc::new(&board, line);
    Setup { board, fdc, irq }
}

impl Setup {
    fn command(&self, bytes: &[u8]) -> Vec<u8> {
        for &byte in bytes {
            assert_eq!(self.status() & 0xc0, 0x80, "ready for a byte");
            self.board.port_space.write_u8(0x3f5, byte);
        }
        self.result()
    }

    fn result(&self) -> Vec<u8> {
        let mut bytes = vec![];
        while self.status() & 0xc0 == 0xc0 {
            bytes.push(self.board.port_space.read_u8(0x3f5));
        }
        bytes
    }

    fn status(&self) -> u8 {
        self.board.port_space.read_u8(0x3f4)
    }

    fn irq(&self) -> bool {
        self.irq.load(Ordering::Relaxed)
    }
}

#[test]
fn a_reset_interrupts_and_owes_four_senses() {
    let s = setup();
    s.board.port_space.write_u8(0x3f2, 0x00);
    assert!(!s.irq());
    s.board.port_space.write_u8(0x3f2, 0x1c);
    assert!(s.irq());
    for n in 0..4 {
        assert_eq!(s.command(&[0x08]), [0xc0 + n, 0]);
    }
    assert!(!s.irq());
    assert_eq!(s.command(&[0x08]), [0x80]);
}

#[test]
fn it_is_an_82078_with_drives_at_track_0() {
    let s = setup();
    assert_eq!(s.command(&[0x10]), [0x90]);
    assert_eq!(s.command(&[0x18]), [0x41]);
    assert_eq!(s.command(&[0x04, 0x00]), [0x78]);
    assert_eq!(s.command(&[0x94]), [0x10]);
    assert!(s.command(&[0x03, 0xaf, 0x02]).is_empty());
    assert_eq!(s.command(&[0x0e]), [0, 0, 0, 0, 0x0a, 0x03, 0, 0x80, 0x60, 0]);
    assert_eq!(s.command(&[0x1f]), [0x80], "no such command");
    assert_eq!(s.board.port_space.read_u8(0x3f7) & 0x80, 0x80, "the medium was changed");
}

#[test]
fn seeking_works_and_reading_does_not_without_a_medium() {
    let s = setup();
    assert!(s.command(&[0x07, 0]).is_empty());
    assert!(s.irq());
    assert_eq!(s.command(&[0x08]), [0x20, 0]);
    assert!(!s.irq());
    let result = s.command(&[0xe6, 0, 5, 1, 3, 2, 18, 0x1b, 0xff]);
    assert_eq!(result, [0x40, 0, 0, 5, 1, 3, 2]);
    assert!(!s.irq(), "reading the result takes the interrupt back");
}

#[test]
fn no_header_is_found() {
    let s = setup();
    assert!(s.command(&[0x4a, 0]).is_empty());
    assert_eq!((s.status(), s.irq()), (0x10, false));
    s.board.clocks.advance_virtual_to(READ_ID_NS);
    assert!(s.irq());
    assert_eq!(s.result()[..2], [0x40, 0x01]);
}

#[test]
fn the_wire_form_has_qemus_length() {
    let mut out = lockstep_vmstate::Encoder::new();
    setup().fdc.snapshot().encode(&mut out);
    assert_eq!(out.into_bytes().len(), 593);
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        s.board.port_space.write_u8(0x3f2, 0x00);
        s.board.port_space.write_u8(0x3f2, 0x1c);
        s.command(&[0x4a, 0]);
        s.fdc
    },
    || setup().fdc
);
