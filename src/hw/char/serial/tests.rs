//! The port as firmware and drivers use it.

use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_vmstate::vmstate_roundtrip;

use super::*;

#[derive(Default)]
struct Line {
    sent: Mutex<Vec<u8>>,
    asked: AtomicBool,
}

impl CharSink for Line {
    fn send(&self, bytes: &[u8]) {
        self.sent.lock().extend(bytes);
    }
    fn can_receive_more(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }
}

struct Setup {
    board: Board,
    serial: Arc<Serial>,
    line: Arc<Line>,
    irq: Arc<AtomicBool>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let (line, irq) = (Arc::new(Line::default()), Arc::new(AtomicBool::new(false)));
    let level = irq.clone();
    let pin = IrqLine::new(Arc::new(move |_: u32, l: bool| level.store(l, Ordering::Relaxed)), 4);
    let serial = Serial::new(&board, 0x3f8, pin, line.clone());
    Setup { board, serial, line, irq }
}

impl Setup {
    fn out(&self, register: u64, value: u8) {
        self.board.port_space.write_u8(0x3f8 + register, value);
    }

    fn inb(&self, register: u64) -> u8 {
        self.board.port_space.read_u8(0x3f8 + register)
    }

    fn irq(&self) -> bool {
        self.irq.load(Ordering::Relaxed)
    }
}

#[test]
fn it_is_found_to_be_a_16550a() {
    let s = setup();
    assert_eq!((s.inb(5), s.inb(6), s.inb(2)), (0x60, 0xb0, 0x01));
    s.out(2, 0x01);
    assert_eq!(s.inb(2), 0xc1);
    s.out(3, 0x83);
    s.out(0, 1);
    s.out(1, 0);
    assert_eq!((s.inb(0), s.inb(1)), (1, 0));
    s.out(3, 0x03);
    s.out(7, 0x5a);
    assert_eq!((s.inb(7), s.inb(1)), (0x5a, 0));
    s.out(4, 0x1a);
    assert_eq!(s.inb(6) & 0xf0, 0x90, "the loop-back test of drivers");
}

#[test]
fn what_is_written_is_sent_and_interrupts() {
    let s = setup();
    s.out(1, 2);
    assert!(s.irq());
    assert_eq!(s.inb(2) & 0x0f, 2);
    assert!(!s.irq());
    b"ok".iter().for_each(|&b| s.out(0, b));
    assert_eq!(*s.line.sent.lock(), b"ok");
    assert!(s.irq());
}

#[test]
fn a_byte_arrives_without_fifo() {
    let s = setup();
    s.out(1, 1);
    assert_eq!(s.serial.can_receive(), 1);
    s.serial.receive(b"a");
    assert_eq!((s.serial.can_receive(), s.irq(), s.inb(2), s.inb(5)), (0, true, 4, 0x61));
    assert_eq!(s.inb(0), b'a');
    assert!(s.line.asked.load(Ordering::Relaxed) && !s.irq());
    s.serial.receive(b"bc");
    assert_eq!((s.inb(5), s.inb(0)), (0x63, b'c'));
}

#[test]
fn the_fifo_interrupts_at_its_level_or_after_four_characters_of_silence() {
    let s = setup();
    s.out(2, 0x41);
    s.out(1, 1);
    s.serial.receive(b"abc");
    assert!(!s.irq());
    s.board.clocks.advance_virtual_to(1_000_000_000);
    assert_eq!((s.irq(), s.inb(2)), (true, 0xcc));
    assert_eq!(s.inb(0), b'a');
    assert!(!s.irq());
    s.serial.receive(b"de");
    assert_eq!((s.irq(), s.inb(2)), (true, 0xc4));
    assert_eq!([s.inb(0), s.inb(0), s.inb(0), s.inb(0)], *b"bcde");
    assert_eq!(s.inb(5), 0x60);
    s.serial.receive(&[b'x'; 20]);
    assert_eq!((s.serial.can_receive(), s.inb(5)), (0, 0x63));
}

#[test]
fn the_loop_carries_bytes_back() {
    let s = setup();
    s.out(4, 0x10);
    s.out(0, 0x77);
    assert_eq!((s.inb(5) & 1, s.inb(0)), (1, 0x77));
    assert!(s.line.sent.lock().is_empty());
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        s.out(2, 0x81);
        s.out(1, 3);
        s.serial.receive(b"abc");
        s.inb(0);
        s.serial
    },
    || setup().serial
);
