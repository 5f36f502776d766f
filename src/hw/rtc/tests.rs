//! The clock as BIOS and kernel use it, on a manual clock.

use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_vmstate::vmstate_roundtrip;

use super::*;

struct Setup {
    board: Board,
    rtc: Arc<Rtc>,
    irq: Arc<AtomicBool>,
}

/// 2000-02-28 23:59:58, a Monday.
const BASE: i64 = 951_782_398;
const SECOND: i64 = 1_000_000_000;

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let irq = Arc::new(AtomicBool::new(false));
    let level = irq.clone();
    let line = IrqLine::new(Arc::new(move |_: u32, l: bool| level.store(l, Ordering::Relaxed)), 8);
    let rtc = Rtc::new(&board, RtcConfig { clock: Clock::Virtual, base: BASE }, line);
    Setup { board, rtc, irq }
}

impl Setup {
    fn set(&self, index: u8, value: u8) {
        self.board.port_space.write_u8(0x70, index);
        self.board.port_space.write_u8(0x71, value);
    }

    fn get(&self, index: u8) -> u8 {
        self.board.port_space.write_u8(0x70, index);
        self.board.port_space.read_u8(0x71)
    }

    fn date(&self) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|i| self.get(i))
    }

    fn advance(&self, ns: i64) {
        self.board.clocks.advance_virtual_to(self.board.clocks.now_ns(Clock::Virtual) + ns);
    }

    fn irq(&self) -> bool {
        self.irq.load(Ordering::Relaxed)
    }
}

#[test]
fn time_goes_by_in_bcd_and_in_binary() {
    let s = setup();
    assert_eq!(s.date(), [0x20, 0x00, 0x02, 0x28, 0x02, 0x23, 0x59, 0x58]);
    s.advance(2 * SECOND);
    assert_eq!(s.date(), [0x20, 0x00, 0x02, 0x29, 0x03, 0x00, 0x00, 0x00]);
    s.set(0x0b, 0x06);
    s.advance(12 * 3600 * SECOND);
    assert_eq!(s.date(), [20, 0, 2, 29, 3, 12, 0, 0]);
    s.set(0x0b, 0x00);
    assert_eq!(s.get(4), 0x92, "12 pm");
    assert_eq!(s.get(0x37), 0x20);
}

#[test]
fn setting_the_time_stops_the_clock_meanwhile() {
    let s = setup();
    s.set(0x0b, 0x82);
    for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)] {
        s.set(index, value);
        s.advance(SECOND);
    }
    assert_eq!(s.get(0), 0x59);
    s.set(0x0b, 0x02);
    s.advance(SECOND);
    assert_eq!(s.date(), [0x20, 0x00, 0x01, 0x01, 0x07, 0x00, 0x00, 0x00]);
    let t = s.rtc.guest_time();
    assert_eq!((t.year, t.month, t.day), (2000, 1, 1));
}

#[test]
fn the_update_in_progress_bit_precedes_the_update() {
    let s = setup();
    assert_eq!(s.get(0x0a), 0x26);
    s.advance(SECOND - 200_000);
    assert_eq!(s.get(0x0a), 0xa6);
    s.advance(200_000);
    assert_eq!(s.get(0x0a), 0x26);
}

#[test]
fn the_update_flag_is_there_to_poll_and_to_interrupt() {
    let s = setup();
    s.advance(SECOND);
    assert_eq!((s.get(0x0c), s.irq()), (0x10, false));
    assert_eq!(s.get(0x0c), 0);
    s.set(0x0b, 0x12);
    s.advance(SECOND);
    assert!(s.irq());
    assert_eq!(s.get(0x0c) & !0x20, 0x90, "it is midnight: the alarm flag is set too");
    assert!(!s.irq());
}

#[test]
fn the_alarm_matches_its_fields() {
    let s = setup();
    s.set(1, 0x05);
    s.set(3, 0xc0);
    s.set(5, 0xff);
    s.set(0x0b, 0x22);
    s.advance(6 * SECOND);
    assert!(!s.irq());
    s.advance(SECOND);
    assert!(s.irq(), "23:59:58 to 00:00:05");
    assert_eq!(s.get(0x0c) & 0xa0, 0xa0);
    s.advance(59 * SECOND);
    assert!(!s.irq());
    s.advance(SECOND);
    assert!(s.irq());
}

#[test]
fn the_periodic_interrupt_comes_at_its_rate() {
    let s = setup();
    s.set(0x0b, 0x42);
    let mut count = 0;
    for _ in 0..4000 {
        s.advance(SECOND / 4000);
        count += u32::from(s.get(0x0c) & 0x40 != 0);
    }
    assert!((1023..=1025).contains(&count), "{count}");
    s.rtc.reset();
    s.advance(SECOND);
    assert!(!s.irq());
}

#[test]
fn cmos_ram_keeps_what_is_written() {
    let s = setup();
    s.set(0x8f, 0x0a);
    assert_eq!((s.get(0x0f), s.rtc.cmos(0x0f), s.board.port_space.read_u8(0x70)), (0x0a, 0x0a, 0xff));
    s.set(0x0d, 0);
    assert_eq!(s.get(0x0d), 0x80);
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        s.set(0x0b, 0x72);
        s.advance(SECOND * 3 / 2);
        s.set(0x10, 0x55);
        s.rtc
    },
    || setup().rtc
);
