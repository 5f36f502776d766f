//! The redirection table as a kernel drives it.

use lockstep_event::Clocks;
use lockstep_vmstate::vmstate_roundtrip;

use super::*;
use crate::core::IrqLine;

#[derive(Default)]
struct Log(Mutex<Vec<(u64, u32)>>);

impl MsiSink for Log {
    fn send_msi(&self, address: u64, data: u32) {
        self.0.lock().push((address, data));
    }
}

struct Setup {
    board: Board,
    ioapic: Arc<IoApic>,
    log: Arc<Log>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let (ioapic, log) = (IoApic::new(&board), Arc::new(Log::default()));
    ioapic.connect(log.clone(), PicPair::new(&board, IrqLine::unconnected()));
    Setup { board, ioapic, log }
}

impl Setup {
    fn write(&self, index: u32, value: u32) {
        self.board.memory_space.write_u32(IOAPIC_ADDRESS, index);
        self.board.memory_space.write_u32(IOAPIC_ADDRESS + 0x10, value);
    }

    fn read(&self, index: u32) -> u32 {
        self.board.memory_space.write_u32(IOAPIC_ADDRESS, index);
        self.board.memory_space.read_u32(IOAPIC_ADDRESS + 0x10)
    }

    fn sent(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.log.0.lock())
    }
}

#[test]
fn it_says_what_it_is() {
    let s = setup();
    s.write(0, 0xff00_0000);
    assert_eq!(
        (s.read(0), s.read(1), s.read(0x10), s.read(0x3f), s.read(0x40)),
        (0xf00_0000, 0x17_0020, 0x1_0000, 0, 0)
    );
}

#[test]
fn an_edge_is_sent_once_and_lost_while_masked() {
    let s = setup();
    s.ioapic.set_irq(4, true);
    s.write(0x10 + 8, 0x0831);
    s.write(0x10 + 9, 0x0300_0000);
    assert_eq!(s.sent(), []);
    s.ioapic.set_irq(4, false);
    s.ioapic.set_irq(4, true);
    assert_eq!(s.sent(), [(0xfee0_3004, 0x31)], "logical destination 3");
}

#[test]
fn a_line_that_stays_high_is_one_edge() {
    let s = setup();
    s.write(0x10 + 12, 0x36);
    s.ioapic.set_irq(6, true);
    s.ioapic.set_irq(6, true);
    assert_eq!(s.sent(), [(0xfee0_0000, 0x36)]);
    s.ioapic.set_irq(6, false);
    s.ioapic.set_irq(6, true);
    assert_eq!(s.sent(), [(0xfee0_0000, 0x36)]);
}

#[test]
fn a_level_is_sent_again_after_its_end_of_interrupt() {
    let s = setup();
    s.write(0x10 + 22, 0xa059);
    s.ioapic.set_irq(11, true);
    s.ioapic.set_irq(11, true);
    assert_eq!(s.sent(), [(0xfee0_0000, 0x8059)]);
    assert_eq!(s.read(0x10 + 22), 0xe059);
    s.ioapic.end_of_interrupt(0x58);
    assert_eq!(s.sent(), []);
    s.ioapic.end_of_interrupt(0x59);
    assert_eq!(s.sent(), [(0xfee0_0000, 0x8059)]);
    s.ioapic.set_irq(11, false);
    s.board.memory_space.write_u32(IOAPIC_ADDRESS + 0x40, 0x59);
    assert_eq!((s.sent(), s.read(0x10 + 22)), (vec![], 0xa059));
}

/// Has the guest end the service of a level as often, as long as it is sent again.
fn storm(s: &Setup, most: u32) -> u32 {
    (0..most)
        .find(|_| {
            s.ioapic.end_of_interrupt(0x59);
            s.sent().is_empty()
        })
        .unwrap_or(most)
}

#[test]
fn a_level_that_nothing_lowers_leaves_the_guest_time_for_something_else() {
    let s = setup();
    s.write(0x10 + 22, 0xa059);
    s.ioapic.set_irq(11, true);
    assert_eq!((s.sent().len(), storm(&s, 5000)), (1, 999));
    // Nobody else's interrupt lets it go.
    s.write(0x10 + 12, 0x36);
    s.ioapic.set_irq(6, true);
    assert_eq!(s.sent(), [(0xfee0_0000, 0x36)]);
    s.board.clocks.advance_virtual_to(999_999);
    assert_eq!(s.sent(), []);
    s.board.clocks.advance_virtual_to(1_000_000);
    assert_eq!((s.sent(), storm(&s, 5000)), (vec![(0xfee0_0000, 0x8059)], 999));
    // A line that was low meanwhile is as good as new.
    s.ioapic.set_irq(11, false);
    s.ioapic.set_irq(11, true);
    assert_eq!(s.sent(), [(0xfee0_0000, 0x8059)]);
    for _ in 0..5 {
        assert_eq!(storm(&s, 900), 900);
        s.ioapic.set_irq(11, false);
        s.ioapic.set_irq(11, true);
    }
}

#[test]
fn a_level_that_waits_is_sent_where_the_guest_goes_on() {
    let s = setup();
    s.write(0x10 + 22, 0xa059);
    s.ioapic.set_irq(11, true);
    assert_eq!((s.sent().len(), storm(&s, 5000)), (1, 999));
    let other = setup();
    other.ioapic.restore(s.ioapic.snapshot());
    assert_eq!(other.sent(), []);
    other.board.clocks.advance_virtual_to(1);
    assert_eq!(other.sent(), [(0xfee0_0000, 0x8059)]);
}

#[test]
fn the_timer_is_at_input_2() {
    let s = setup();
    s.write(0x14, 0x30);
    s.ioapic.set_irq(0, true);
    assert_eq!(s.sent(), [(0xfee0_0000, 0x30)]);
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        s.write(0x10 + 22, 0xa059);
        s.ioapic.set_irq(11, true);
        s.ioapic
    },
    || setup().ioapic
);
