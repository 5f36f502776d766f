//! The controller as a BIOS and a driver use it.

use lockstep_event::Clocks;
use lockstep_vmstate::vmstate_roundtrip;

use super::*;
use crate::core::{Axis, IrqSink, Key, MouseButton};

#[derive(Default)]
struct Levels(Mutex<[bool; 3]>);

impl IrqSink for Levels {
    fn set_irq(&self, n: u32, level: bool) {
        self.0.lock()[n as usize] = level;
    }
}

struct Setup {
    board: Board,
    device: Arc<I8042>,
    levels: Arc<Levels>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let levels = Arc::new(Levels::default());
    let line = |n| IrqLine::new(levels.clone(), n);
    let device = I8042::new(&board, Pins { keyboard: line(0), mouse: line(1), a20: line(2) });
    Setup { board, device, levels }
}

impl Setup {
    fn data(&self, value: u8) {
        self.board.port_space.write_u8(0x60, value);
    }

    fn command(&self, value: u8) {
        self.board.port_space.write_u8(0x64, value);
    }

    fn status(&self) -> u8 {
        self.board.port_space.read_u8(0x64)
    }

    /// All bytes that are there.
    fn read(&self) -> Vec<u8> {
        let mut bytes = vec![];
        while self.status() & 1 != 0 {
            bytes.push(self.board.port_space.read_u8(0x60));
        }
        bytes
    }

    fn keyboard(&self, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|&b| self.data(b));
        self.read()
    }

    fn mouse(&self, byte: u8) -> Vec<u8> {
        self.command(0xd4);
        self.data(byte);
        self.read()
    }

    fn irqs(&self) -> (bool, bool) {
        let l = self.levels.0.lock();
        (l[0], l[1])
    }
}

#[test]
fn self_tests_pass() {
    let s = setup();
    s.command(0xaa);
    assert_eq!((s.status(), s.read()), (0x1d, vec![0x55]));
    s.command(0xab);
    assert_eq!(s.read(), [0]);
    assert_eq!(s.keyboard(&[0xff]), [0xfa, 0xaa]);
    assert_eq!(s.mouse(0xff), [0xfa, 0xaa, 0x00]);
}

#[test]
fn the_mode_byte_is_written_and_read_back() {
    let s = setup();
    s.command(0x60);
    s.data(0x61);
    s.command(0x20);
    assert_eq!(s.read(), [0x61]);
    assert_eq!(s.keyboard(&[0xf2]), [0xfa, 0xab, 0x41], "translated");
    s.command(0x60);
    s.data(0x21);
    assert_eq!(s.keyboard(&[0xf2]), [0xfa, 0xab, 0x83]);
}

#[test]
fn keys_arrive_in_the_set_that_is_chosen() {
    let s = setup();
    let key = |code, down| s.board.input.send(&InputEvent::Key(Key(code), down));
    s.command(0x60);
    s.data(0x41);
    key(30, true);
    assert_eq!(s.irqs(), (true, false));
    key(30, false);
    key(105, true);
    assert_eq!(s.read(), [0x1e, 0x9e, 0xe0, 0x4b]);
    assert_eq!(s.irqs(), (false, false));
    s.command(0x60);
    s.data(0x01);
    key(30, false);
    key(105, false);
    assert_eq!(s.read(), [0xf0, 0x1c, 0xe0, 0xf0, 0x6b]);
    assert_eq!(s.keyboard(&[0xf0, 0x01]), [0xfa], "the second reply replaces the first, which was not read");
    key(119, true);
    assert_eq!(s.read(), [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
    s.keyboard(&[0xf5]);
    key(30, true);
    assert!(s.read().is_empty(), "scanning is off");
}

#[test]
fn a_disabled_keyboard_keeps_what_it_has() {
    let s = setup();
    s.command(0xad);
    s.board.input.send(&InputEvent::Key(Key(2), true));
    assert!(s.read().is_empty());
    s.command(0xae);
    assert_eq!(s.read(), [0x16]);
}

#[test]
fn a_full_queue_loses_whole_keys() {
    let s = setup();
    for _ in 0..100 {
        s.board.input.send(&InputEvent::Key(Key(105), false));
    }
    let bytes = s.read();
    assert_eq!((bytes.len(), bytes.len() % 3), (15, 0));
}

#[test]
fn the_mouse_is_found_with_its_wheel_and_reports() {
    let s = setup();
    for (rate, reply) in [(200, 0xfa), (100, 0xfa), (80, 0xfa)] {
        s.mouse(0xf3);
        assert_eq!(s.mouse(rate), [reply]);
    }
    assert_eq!(s.mouse(0xf2), [0xfa, 3]);
    s.mouse(0xf4);
    let send = |e| s.board.input.send(&e);
    send(InputEvent::Relative(Axis::X, 5));
    send(InputEvent::Relative(Axis::Y, 3));
    send(InputEvent::Button(MouseButton::Left, true));
    send(InputEvent::Button(MouseButton::WheelUp, true));
    s.board.input.sync();
    assert_eq!(s.irqs(), (false, true));
    assert_eq!(s.status() & 0x21, 0x21);
    assert_eq!(s.read(), [0x29, 5, 0xfd, 0xff]);
    send(InputEvent::Relative(Axis::X, -300));
    s.board.input.sync();
    assert_eq!(s.read(), [0x19, 0x81, 0, 0, 0x19, 0x81, 0, 0, 0x19, 0xd2, 0, 0]);
    assert_eq!(s.mouse(0xe9), [0xfa, 0x21, 2, 80]);
}

#[test]
fn the_output_port_gates_a20_and_resets() {
    let s = setup();
    let resets = Arc::new(Mutex::new(0));
    let count = resets.clone();
    s.board.requests.set_receiver(move |_| *count.lock() += 1);
    s.command(0xd1);
    s.data(0xdf);
    assert!(s.levels.0.lock()[2]);
    s.command(0xdd);
    assert!(!s.levels.0.lock()[2]);
    s.command(0xd0);
    assert_eq!(s.read(), [0xdd]);
    assert_eq!(*resets.lock(), 0);
    s.command(0xfe);
    s.command(0xff);
    s.command(0xd1);
    s.data(0xce);
    assert_eq!(*resets.lock(), 2);
}

#[test]
fn a_hostile_queue_is_refused() {
    let section = setup().device.sections().0;
    let good = section.snapshot();
    for (rptr, count) in [(-1, 0), (256, 0), (0, 257), (0, -1)] {
        let mut bad = good.clone();
        (bad.parent_obj.rptr, bad.parent_obj.count) = (rptr, count);
        assert!(section.validate(&bad).is_err());
    }
}

fn busy() -> Arc<I8042> {
    let s = setup();
    s.command(0x60);
    s.data(0x43);
    s.data(0xed);
    s.read();
    s.data(0x02);
    s.board.input.send(&InputEvent::Key(Key(30), true));
    s.mouse(0xf4);
    s.board.input.send(&InputEvent::Relative(Axis::X, 5));
    s.board.input.sync();
    s.command(0xd1);
    s.data(0xdd);
    s.command(0x20);
    s.device
}

vmstate_roundtrip!(keyboard_state_survives_the_wire, || busy().sections().0, || setup().device.sections().0);
vmstate_roundtrip!(mouse_state_survives_the_wire, || busy().sections().1, || setup().device.sections().1);
vmstate_roundtrip!(controller_state_survives_the_wire, || busy().sections().2, || setup().device.sections().2);
