//! The timers as a kernel uses them.

use lockstep_vmstate::{VmState, vmstate_roundtrip};

use super::*;
use crate::timer::pit::Pit;

struct Setup {
    board: Board,
    hpet: Arc<Hpet>,
    seen: Arc<Mutex<Vec<(u32, bool)>>>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let seen = Arc::new(Mutex::new(vec![]));
    let log = seen.clone();
    let sink = Arc::new(move |n: u32, level: bool| log.lock().push((n, level)));
    let gsis: Vec<_> = (0..24).map(|n| IrqLine::new(sink.clone(), n)).collect();
    let hpet = Hpet::new(&board, &gsis);
    let pit = Pit::new(&board, gsis[0].clone());
    hpet.map(&board, pit);
    Setup { board, hpet, seen }
}

impl Setup {
    fn write(&self, offset: u64, value: u64) {
        self.board.memory_space.write_u64(HPET_ADDRESS + offset, value);
    }

    fn read(&self, offset: u64) -> u64 {
        self.board.memory_space.read_u64(HPET_ADDRESS + offset)
    }

    fn advance(&self, ns: i64) {
        self.board.clocks.advance_virtual_to(self.board.clocks.now_ns(Clock::Virtual) + ns);
    }

    /// How often interrupt `n` rose.
    fn rises(&self, n: u32) -> usize {
        std::mem::take(&mut *self.seen.lock()).iter().filter(|s| **s == (n, true)).count()
    }
}

const MS: i64 = 1_000_000;

#[test]
fn it_says_what_it_is_and_counts_while_enabled() {
    let s = setup();
    assert_eq!(s.read(0), 0x0098_9680_8086_a201);
    assert_eq!(s.read(0x100), 0x4_0000_0030);
    s.write(0xf0, 1000);
    s.advance(MS);
    assert_eq!(s.read(0xf0), 1000);
    s.write(0x10, 1);
    s.write(0xf0, 5);
    s.advance(MS);
    assert_eq!(s.read(0xf0), 101_000);
    assert_eq!(s.board.memory_space.read_u32(HPET_ADDRESS + 0xf0), 101_000);
    s.write(0x10, 0);
    s.advance(MS);
    assert_eq!(s.read(0xf0), 101_000);
}

#[test]
fn a_periodic_timer_replaces_the_8254() {
    let s = setup();
    s.write(0x10, 3);
    s.write(0x100, 0x4c);
    s.write(0x108, 100_000);
    s.write(0x108, 100_000);
    s.rises(0);
    s.advance(10 * MS);
    assert_eq!(s.rises(0), 10);
    s.write(0x10, 1);
    s.write(0x100, 0);
    s.rises(0);
    s.advance(110 * MS);
    assert!(s.rises(0) >= 1, "the 8254 interrupts again");
}

#[test]
fn a_level_stays_until_it_is_cleared() {
    let s = setup();
    s.write(0x10, 1);
    s.write(0x120, 0x406);
    s.write(0x128, 500);
    s.advance(MS);
    assert_eq!(*s.seen.lock(), [(2, true)]);
    assert_eq!(s.read(0x20), 2);
    s.write(0x20, 2);
    assert_eq!(s.seen.lock()[1], (2, false));
    s.advance(MS);
    assert_eq!(s.seen.lock().len(), 2, "one shot");
}

#[test]
fn the_clocks_interrupt_goes_through_unless_it_is_replaced() {
    let s = setup();
    let rtc = s.hpet.rtc_line();
    rtc.set(true);
    assert_eq!(s.rises(8), 1);
    s.write(0x10, 2);
    rtc.set(false);
    rtc.set(true);
    assert_eq!(s.rises(8), 0);
    s.write(0x10, 0);
    assert_eq!(s.rises(8), 1, "its level comes back");
}

#[test]
fn a_tiny_period_does_not_keep_the_host_busy() {
    let s = setup();
    s.write(0x10, 1);
    s.write(0x100, 0x44c);
    s.write(0x108, 1);
    s.advance(10 * MS);
    assert!(s.rises(2) <= 101);
}

#[test]
fn the_wire_form_has_qemus_length() {
    let mut out = lockstep_vmstate::Encoder::new();
    setup().hpet.snapshot().encode(&mut out);
    assert_eq!(out.into_bytes().len(), 151);
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        s.write(0x10, 3);
        s.write(0x120, 0x10e);
        s.write(0x128, 77);
        s.hpet.rtc_line().set(true);
        s.hpet
    },
    || setup().hpet
);
