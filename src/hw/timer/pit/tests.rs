//! Modes of the counters, by the clock.

use std::sync::atomic::{AtomicUsize, Ordering};

use lockstep_vmstate::vmstate_roundtrip;

use super::*;

struct Setup {
    board: Board,
    pit: Arc<Pit>,
    edges: Arc<AtomicUsize>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let (edges, level) = (Arc::new(AtomicUsize::new(0)), Mutex::new(false));
    let count = edges.clone();
    let sink = move |_: u32, new: bool| {
        if new && !std::mem::replace(&mut *level.lock(), new) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        *level.lock() = new;
    };
    let pit = Pit::new(&board, IrqLine::new(Arc::new(sink), 0));
    Setup { board, pit, edges }
}

impl Setup {
    fn out(&self, port: u64, value: u8) {
        self.board.port_space.write_u8(port, value);
    }

    fn inb(&self, port: u64) -> u8 {
        self.board.port_space.read_u8(port)
    }

    fn advance(&self, ns: i64) {
        let now = self.board.clocks.now_ns(Clock::Virtual);
        self.board.clocks.advance_virtual_to(now + ns);
    }

    fn count(&self, channel: u64) -> u16 {
        self.out(0x43, (channel as u8) << 6);
        u16::from_le_bytes([self.inb(0x40 + channel), self.inb(0x40 + channel)])
    }

    fn take_edges(&self) -> usize {
        self.edges.swap(0, Ordering::Relaxed)
    }
}

const SECOND: i64 = 1_000_000_000;

#[test]
fn a_rate_generator_interrupts_at_its_rate() {
    for control in [0x34, 0x36] {
        let s = setup();
        s.out(0x43, control);
        s.out(0x40, 0xa9);
        s.out(0x40, 0x04);
        s.take_edges();
        s.advance(SECOND);
        // 1193182 / 1193
        assert!((999..=1001).contains(&s.take_edges()), "{control:#x}");
    }
}

#[test]
fn a_one_shot_interrupts_once() {
    let s = setup();
    s.out(0x43, 0x30);
    s.out(0x40, 0x00);
    s.out(0x40, 0x10);
    s.take_edges();
    s.advance(SECOND / i64::from(PIT_HZ) * 0x1000 - 10_000);
    assert_eq!(s.take_edges(), 0);
    s.advance(SECOND);
    assert_eq!(s.take_edges(), 1);
}

#[test]
fn counts_are_latched_and_read_in_two_bytes() {
    let s = setup();
    s.out(0x43, 0xb0);
    s.out(0x42, 0xe8);
    s.out(0x42, 0x03);
    s.pit.set_gate(2, true);
    s.advance(SECOND * 100 / i64::from(PIT_HZ) + 1);
    s.out(0x43, 0x80);
    s.advance(SECOND / 10);
    assert_eq!(u16::from_le_bytes([s.inb(0x42), s.inb(0x42)]), 900, "latched before");
    assert_eq!(s.inb(0x43), 0);
}

#[test]
fn the_read_back_command_gives_status_then_count() {
    let s = setup();
    s.out(0x43, 0x34);
    s.out(0x40, 0x10);
    s.out(0x40, 0x27);
    s.out(0x43, 0xc2);
    assert_eq!(s.inb(0x40), 0x34);
    assert_eq!(u16::from_le_bytes([s.inb(0x40), s.inb(0x40)]), 10000);
    assert_eq!(s.count(1), 0, "65536 cycles wrap to 0");
}

#[test]
fn the_gate_restarts_a_square_wave() {
    let s = setup();
    s.out(0x43, 0xb6);
    s.out(0x42, 0x00);
    s.out(0x42, 0x10);
    s.pit.set_gate(2, false);
    s.advance(12345);
    s.pit.set_gate(2, true);
    assert_eq!(s.pit.channel(2), ChannelInfo { gate: true, output: true, count: 0x1000 });
    s.advance(SECOND * 0x801 / i64::from(PIT_HZ) + 1);
    assert!(!s.pit.channel(2).output);
}

#[test]
fn disconnected_it_is_silent() {
    let s = setup();
    s.out(0x43, 0x34);
    s.out(0x40, 0);
    s.out(0x40, 1);
    s.pit.disable_irq(true);
    s.take_edges();
    s.advance(SECOND);
    assert_eq!(s.take_edges(), 0);
    s.pit.disable_irq(false);
    s.advance(SECOND);
    assert!(s.take_edges() > 4000);
}

#[test]
fn the_largest_times_do_not_overflow() {
    let mut wire = setup().pit.snapshot();
    wire.channels[0].count_load_time = i64::MIN;
    let s = setup();
    s.pit.restore(wire);
    s.out(0x43, 0);
    s.count(0);
    s.advance(SECOND);
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        s.out(0x43, 0x34);
        s.out(0x40, 0x10);
        s.out(0x40, 0x27);
        s.advance(1234);
        s.out(0x43, 0xc6);
        s.pit
    },
    || setup().pit
);
