//! The card at its registers: against recorded accesses of another implementation, and path by path.

use lockstep_vmstate::{Encoder, SaveState, check_roundtrip};

use super::*;
use crate::testing::{Random, Rig, hex, replay_with, unhex};

#[derive(Default)]
struct Wire {
    sent: Mutex<Vec<Vec<u8>>>,
    /// How many frames came at once.
    bursts: Mutex<Vec<usize>>,
    flushed: Mutex<u32>,
}

impl Cable for Wire {
    fn send(&self, frame: Vec<u8>) {
        self.sent.lock().push(frame);
    }

    fn send_all(&self, frames: Vec<Vec<u8>>) {
        self.bursts.lock().push(frames.len());
        self.sent.lock().extend(frames);
    }

    fn flush_queued(&self) {
        *self.flushed.lock() += 1;
    }
}

const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const PORT: u64 = 0xc000;

struct Setup {
    rig: Rig,
    card: Arc<Rtl8139>,
    wire: Arc<Wire>,
}

fn setup() -> Setup {
    let rig = Rig::new();
    let card = Rtl8139::new(&rig.board, &rig.bus, Some(0x20), false, MAC).unwrap();
    let wire = Arc::new(Wire::default());
    card.connect(wire.clone());
    rig.bus.plug(card.clone(), None);
    rig.enable(card.function(), &[(0, 0xc001), (1, 0xfebd_1000)]);
    Setup { rig, card, wire }
}

impl Setup {
    /// Receiver and transmitter on, everything accepted, ring of 8 KiB at 2 0000h.
    fn start(&self) {
        self.rig.outb(PORT + 0x37, 0x0c);
        self.rig.outl(PORT + 0x30, 0x2_0000);
        self.rig.outl(PORT + 0x44, 0x0f);
        self.rig.outw(PORT + 0x3c, 0xffff);
    }

    fn status(&self) -> u16 {
        self.rig.inw(PORT + 0x3e)
    }
}

fn summary(frame: &[u8]) -> String {
    if frame.len() <= 160 {
        return format!("0x{}", hex(frame));
    }
    let sum: u64 = frame.iter().map(|b| u64::from(*b)).sum();
    format!("0x{}/{sum:#x}/{:#x}", hex(&frame[..80]), frame.len())
}

#[test]
fn every_access_of_a_recorded_session_has_the_same_answer() {
    let s = setup();
    let mut waiting: Vec<Vec<u8>> = vec![];
    replay_with(&s.rig, include_str!("session.txt"), |words| match words[0] {
        "frame" => {
            waiting.push(unhex(words[1]));
            deliver(&s.card, &mut waiting);
            Some(String::new())
        }
        "link" => {
            s.card.set_link(words[1] == "on");
            Some(String::new())
        }
        "sent" => {
            let sent: Vec<_> = s.wire.sent.lock().drain(..).map(|f| summary(&f)).collect();
            Some(if sent.is_empty() { "none".into() } else { sent.join(",") })
        }
        _ => {
            if std::mem::take(&mut *s.wire.flushed.lock()) > 0 {
                deliver(&s.card, &mut waiting);
            }
            None
        }
    });
}

/// What the network's queue does.
fn deliver(card: &Rtl8139, waiting: &mut Vec<Vec<u8>>) {
    while !waiting.is_empty() && card.can_receive() && card.receive(&waiting[0]) {
        waiting.remove(0);
    }
}

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    frame.resize(len, 0x5a);
    frame
}

#[test]
fn a_full_ring_makes_frames_wait_until_the_driver_reads() {
    let s = setup();
    s.start();
    s.rig.outw(PORT + 0x3c, 0xffef);
    let mut taken = 0;
    while s.card.can_receive() {
        assert!(s.card.receive(&frame(MAC, 1514)));
        taken += 1;
    }
    assert_eq!(taken, 5);
    s.rig.outw(PORT + 0x3e, 0xffff);
    assert_eq!(*s.wire.flushed.lock(), 0);
    let read = s.rig.inw(PORT + 0x3a);
    s.rig.outw(PORT + 0x38, read.wrapping_sub(16));
    assert_eq!((*s.wire.flushed.lock(), s.card.can_receive()), (1, true));
}

#[test]
fn both_windows_show_the_same_registers() {
    let s = setup();
    s.rig.outl(PORT + 0x30, 0x1234_5678);
    assert_eq!(s.rig.read(0xfebd_1030), 0x1234_5678_u32.to_le_bytes());
    assert_eq!(s.rig.read(0xfebd_1000), MAC);
}

#[test]
fn the_timer_counts_the_pci_clock_and_interrupts() {
    let s = setup();
    let at = |ns| s.rig.board.clocks.advance_virtual_to(ns);
    at(1_000_000);
    s.rig.outw(PORT + 0x3c, 0x4000);
    s.rig.outl(PORT + 0x48, 0);
    s.rig.outl(PORT + 0x54, 1000);
    at(1_000_000 + 29_999);
    assert_eq!((s.status(), s.rig.inl(PORT + 0x48)), (0, 999));
    at(1_000_000 + 30_000);
    assert_eq!((s.status(), s.rig.inl(PORT + 0x48)), (0x4000, 1000));
    assert_eq!(s.rig.board.clocks.next_virtual_deadline(), Some(1_030_000 + (30 << 32)), "a turn of 32 bits later");
    s.rig.outl(PORT + 0x54, 0);
    assert_eq!(s.rig.board.clocks.next_virtual_deadline(), None);
}

#[test]
fn the_pin_follows_status_and_mask() {
    let s = setup();
    s.start();
    let pending = || s.card.config_read(0x06, 1) & 8 != 0;
    assert!(!pending());
    s.card.receive(&frame([0xff; 6], 64));
    assert!(pending());
    s.rig.outw(PORT + 0x3c, 0);
    assert!(!pending());
    s.rig.outw(PORT + 0x3c, 1);
    assert!(pending());
    s.rig.outw(PORT + 0x3e, 1);
    assert!(!pending());
}

#[test]
fn a_pulled_cable_shows_in_the_registers() {
    let s = setup();
    s.card.set_link(false);
    assert_eq!((s.rig.inw(PORT + 0x64), s.rig.inb(PORT + 0x58), s.status()), (0x7829, 0xd4, 0x20));
    s.rig.outb(PORT + 0x37, 0x10);
    assert_eq!(s.rig.inw(PORT + 0x64), 0x7829, "a reset does not plug it in");
    s.card.set_link(true);
    assert_eq!((s.rig.inw(PORT + 0x64), s.rig.inb(PORT + 0x58)), (0x782d, 0xd0));
}

#[test]
fn without_bus_mastering_nothing_reaches_memory() {
    let s = setup();
    s.start();
    s.card.function().config_write(4, 3, 2);
    s.card.receive(&frame(MAC, 64));
    assert_eq!(s.rig.read(0x2_0000), [0; 8]);
}

#[test]
fn dma_into_its_own_registers_does_not_come_back() {
    let s = setup();
    s.start();
    s.rig.outl(PORT + 0x30, 0xfebd_1000);
    s.card.receive(&frame(MAC, 64));
    assert_eq!(s.rig.read(0xfebd_1000), MAC);
    s.rig.outl(PORT + 0x20, 0xfebd_1000);
    s.rig.outl(PORT + 0x10, 64);
    assert_eq!(s.wire.sent.lock().len(), 1);
}

#[test]
fn state_survives_a_migration() {
    let s = setup();
    s.start();
    s.rig.board.clocks.advance_virtual_to(5_000_000);
    s.rig.outl(PORT + 0x48, 0);
    s.rig.outl(PORT + 0x54, 100_000);
    s.card.receive(&frame(MAC, 100));
    s.rig.outb(PORT + 0x50, 0x88);
    let fresh = setup();
    fresh.rig.board.clocks.set_virtual_ns(5_000_000);
    check_roundtrip(&s.card, &fresh.card).unwrap();
    let mut out = Encoder::new();
    s.card.save(&mut out).unwrap();
    assert_eq!(out.len(), 642);
    let deadline = |s: &Setup| s.rig.board.clocks.next_virtual_deadline();
    assert_eq!(deadline(&fresh), Some(8_000_000));
    fresh.card.receive(&frame(MAC, 100));
    assert_eq!(fresh.rig.inw(PORT + 0x3a), 2 * 108);
}

#[test]
fn frames_that_one_poll_finds_in_the_ring_go_on_the_wire_at_once() {
    let s = setup();
    s.start();
    s.rig.outw(PORT + 0xe0, 1);
    s.rig.outl(PORT + 0x20, 0x1_0000);
    s.rig.outl(PORT + 0x24, 0);
    let sent: Vec<_> = (0..3).map(|n| frame(MAC, 100 + n)).collect();
    for (n, frame) in sent.iter().enumerate() {
        let (descriptor, buffer) = (0x1_0000 + 16 * n as u64, 0x2_0000 + 0x1000 * n as u64);
        s.rig.write(buffer, frame);
        s.rig.write(descriptor, &(0xb000_0000 | frame.len() as u32).to_le_bytes());
        s.rig.write(descriptor + 8, &(buffer as u32).to_le_bytes());
    }
    s.rig.outb(PORT + 0xd9, 0x40);
    assert_eq!((&*s.wire.sent.lock(), &*s.wire.bursts.lock()), (&sent, &vec![3]));
}

#[test]
fn a_stream_that_no_card_can_be_in_is_refused() {
    let s = setup();
    let good = s.card.snapshot();
    assert!(s.card.validate(&good).is_ok());
    let spoil: [fn(&mut Rtl8139State); 6] = [
        |w| w.rx_buffer_size = 0,
        |w| w.rx_buf_addr = 8192,
        |w| w.curr_tx_desc = 4,
        |w| w.curr_cplus_tx_desc = 64,
        |w| w.eeprom_mode = 5,
        |w| w.tctr_base = i64::MIN,
    ];
    for change in spoil {
        let mut wire = good.clone();
        change(&mut wire);
        assert!(s.card.validate(&wire).is_err());
    }
}

#[test]
fn random_accesses_are_survived() {
    let s = setup();
    let mut random = Random(3);
    // Descriptors that point everywhere, all the chip's.
    let memory: Vec<_> = (0..0x4000).flat_map(|_| (random.next() as u32 | 1 << 31).to_le_bytes()).collect();
    s.rig.write(0x1_0000, &memory);
    for _ in 0..100_000 {
        let (at, value) = (PORT + random.below(256), random.next());
        match random.below(8) {
            0 => _ = s.rig.inb(at),
            1 => _ = s.rig.inl(at & !3),
            2 => s.rig.outb(at, value as u8),
            3 => s.rig.outw(at & !1, value as u16),
            4 => s.rig.outl(at & !3, value as u32),
            5 => {
                s.rig.outl(PORT + [0x20, 0x24, 0x30, 0xe4][random.below(4) as usize], 0x1_0000 | value as u32 & 0xfff0)
            }
            6 => s.rig.outb(PORT + [0x37, 0xd9, 0xe0][random.below(3) as usize], 0x4f),
            _ => _ = s.card.receive(&memory[..random.below(1600) as usize]),
        }
        s.wire.sent.lock().clear();
    }
    let wire = s.card.snapshot();
    s.card.validate(&wire).unwrap();
    s.card.restore(wire);
}
