//! The network card RTL8139C+ (Realtek, RTL8139C(L)+ datasheet 1.6), with this test as the network.

use std::{os::unix::net::UnixDatagram, time::Duration};

use tempfile::TempDir;

use crate::qtest::Qtest;

const FUNCTION: u8 = 3 << 3;
const BASE: u16 = 0xc000;
const TX_STATUS: u16 = BASE + 0x10;
const TX_ADDRESS: u16 = BASE + 0x20;
const RX_BUFFER: u16 = BASE + 0x30;
const COMMAND: u16 = BASE + 0x37;
const READ_POINTER: u16 = BASE + 0x38;
const MASK: u16 = BASE + 0x3c;
const STATUS: u16 = BASE + 0x3e;
const TX_CONFIG: u16 = BASE + 0x40;
const RX_CONFIG: u16 = BASE + 0x44;
const TX_POLL: u16 = BASE + 0xd9;
const PLUS_COMMAND: u16 = BASE + 0xe0;
const TX_RING: u16 = BASE + 0x20;
const RX_RING: u16 = BASE + 0xe4;

const ROK: u16 = 1;
const TOK: u16 = 4;

const RING: u64 = 0x10_0000;
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

struct Rig {
    q: Qtest,
    wire: UnixDatagram,
    card: std::path::PathBuf,
    _dir: TempDir,
}

fn rig() -> Rig {
    let dir = TempDir::new().expect("a folder");
    let (card, test) = (dir.path().join("card"), dir.path().join("test"));
    let wire = UnixDatagram::bind(&test).expect("a socket");
    wire.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    let netdev = format!(
        "dgram,id=n,local.type=unix,local.path={},remote.type=unix,remote.path={}",
        card.display(),
        test.display()
    );
    let mut q = Qtest::start(&["-netdev", &netdev, "-device", "rtl8139,netdev=n,addr=3,mac=52:54:00:12:34:56"]);
    q.enable_ports(FUNCTION, 0x10, BASE);
    Rig { q, wire, card, _dir: dir }
}

/// A frame to the card with a number in it.
fn frame(len: usize, number: u8) -> Vec<u8> {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5]].concat();
    frame.resize(len, number);
    frame
}

impl Rig {
    fn sent(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; 4096];
        let len = self.wire.recv(&mut buffer).expect("a frame");
        buffer.truncate(len);
        buffer
    }

    /// Gives the card a frame, and waits until it has it: the network is on a thread of its own.
    fn deliver(&mut self, frame: &[u8], has_it: impl Fn(&mut Qtest) -> bool) {
        self.wire.send_to(frame, &self.card).expect("the card's socket");
        for _ in 0..2000 {
            if has_it(&mut self.q) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the card took nothing");
    }

    /// Receiver and transmitter on; a ring of 8 KiB and 16 bytes, all frames to the card or all.
    fn start(&mut self) {
        self.q.outb(COMMAND, 0x10);
        assert_eq!(self.q.inb(COMMAND), 0x01, "after a reset the buffer is empty");
        self.q.outl(RX_BUFFER, RING as u32);
        self.q.outb(COMMAND, 0x0c);
        self.q.outl(RX_CONFIG, 0x0a);
        self.q.outl(TX_CONFIG, 0x0700);
    }

    /// Sends by descriptor `n`.
    fn send(&mut self, n: u16, frame: &[u8]) {
        let address = 0x8000 + u64::from(n) * 0x800;
        self.q.write(address, frame);
        self.q.outl(TX_ADDRESS + 4 * n, address as u32);
        self.q.outl(TX_STATUS + 4 * n, frame.len() as u32);
    }
}

#[test]
fn it_shows_its_identity_and_address() {
    let mut r = rig();
    assert_eq!((r.q.config(FUNCTION, 0), r.q.config(FUNCTION, 8) >> 8), (0x8139_10ec, 0x02_0000));
    for (n, byte) in MAC.into_iter().enumerate() {
        assert_eq!(r.q.inb(BASE + n as u16), byte);
    }
    assert_eq!(r.q.inl(TX_CONFIG) & 0x7cc0_0000, 0x7480_0000, "its version: C+");
    assert_eq!(r.q.inl(TX_STATUS) & 0x2000, 0x2000, "the descriptors are the driver's");
}

#[test]
fn four_descriptors_send_in_turn() {
    let mut r = rig();
    r.start();
    for n in 0..8u16 {
        let sent = frame(60 + usize::from(n), n as u8);
        r.send(n % 4, &sent);
        assert_eq!(r.sent(), sent);
        let status = r.q.inl(TX_STATUS + 4 * (n % 4));
        assert_eq!(status & 0xa000, 0xa000, "sent, and the driver's again");
        assert_eq!(r.q.inw(STATUS) & TOK, TOK);
        r.q.outw(STATUS, TOK);
        assert_eq!(r.q.inw(STATUS) & TOK, 0);
    }
}

#[test]
fn frames_go_round_the_receive_ring() {
    let mut r = rig();
    r.start();
    r.q.outw(MASK, ROK);
    let (mut at, mut read) = (0u64, 0u16);
    // 30 frames of 1000 bytes: the ring of 8 KiB is gone round more than three times.
    for n in 0..30u8 {
        let sent = frame(1000, n);
        r.deliver(&sent, |q| q.inb(COMMAND) & 1 == 0);
        let header = r.q.read(RING + at, 4);
        assert_eq!((header[0] & 1, u16::from_le_bytes([header[2], header[3]])), (1, 1004), "good, with its checksum");
        let body: Vec<u8> = (0..1000).map(|i| (at + 4 + i) % 8192).map(|i| r.q.readb(RING + i)).take(32).collect();
        assert_eq!(body, sent[..32]);
        let last = r.q.readb(RING + (at + 4 + 999) % 8192);
        assert_eq!(last, n);
        assert_eq!(r.q.inw(STATUS) & ROK, ROK);
        r.q.outw(STATUS, ROK);
        // The next frame begins at a multiple of four; the register is 16 behind.
        at = (at + 4 + 1004 + 3 & !3) % 8192;
        read = at as u16;
        r.q.outw(READ_POINTER, read.wrapping_sub(16));
        assert_eq!(r.q.inb(COMMAND) & 1, 1, "empty again");
    }
    assert_eq!(r.q.inw(READ_POINTER), read.wrapping_sub(16));
}

#[test]
fn frames_for_others_are_left_out() {
    let mut r = rig();
    r.start();
    let mut other = frame(60, 1);
    other[5] = 0x57;
    r.wire.send_to(&other, &r.card).expect("the card's socket");
    let mut broadcast = frame(60, 2);
    broadcast[..6].fill(0xff);
    r.deliver(&broadcast, |q| q.inb(COMMAND) & 1 == 0);
    assert_eq!(r.q.read(RING + 4, 6), [0xff; 6], "the first that came in");
    // Promiscuous.
    r.q.outl(RX_CONFIG, 0x0b);
    let first = r.q.inw(BASE + 0x3a);
    r.deliver(&other, move |q| q.inw(BASE + 0x3a) != first);
}

#[test]
fn what_it_sends_to_itself_comes_back() {
    let mut r = rig();
    r.start();
    r.q.outl(TX_CONFIG, 0x0006_0700);
    let sent = frame(100, 9);
    r.send(0, &sent);
    assert_eq!(r.q.inb(COMMAND) & 1, 0);
    assert_eq!(r.q.read(RING + 4, 100), sent);
    assert_eq!(r.q.inw(STATUS) & (ROK | TOK), ROK | TOK);
}

#[test]
fn descriptors_of_the_c_plus_mode_send_and_receive() {
    const OWN: u32 = 1 << 31;
    const LAST: u32 = 1 << 30;
    const WHOLE: u32 = 3 << 28;
    let mut r = rig();
    r.start();
    r.q.outw(PLUS_COMMAND, 0x03);
    // A ring of two descriptors each way.
    let descriptor = |q: &mut Qtest, at: u64, control: u32, buffer: u32| {
        q.write(at, &[control.to_le_bytes(), [0; 4], buffer.to_le_bytes(), [0; 4]].concat());
    };
    let (tx, rx) = (0x6000u64, 0x7000u64);
    for (n, end) in [(0u64, 0), (1, LAST)] {
        descriptor(&mut r.q, rx + 16 * n, OWN | end | 2048, 0x20_0000 + n as u32 * 2048);
    }
    r.q.outl(TX_RING, tx as u32);
    r.q.outl(TX_RING + 4, 0);
    r.q.outl(RX_RING, rx as u32);
    r.q.outl(RX_RING + 4, 0);
    for n in 0..5u8 {
        let (slot, end) = (u64::from(n % 2), if n % 2 == 1 { LAST } else { 0 });
        let sent = frame(200, n);
        r.q.write(0x8000, &sent);
        descriptor(&mut r.q, tx + 16 * slot, OWN | end | WHOLE | 200, 0x8000);
        r.q.outb(TX_POLL, 0x40);
        assert_eq!(r.sent(), sent);
        assert_eq!(r.q.readl(tx + 16 * slot) & OWN, 0, "the driver's again");
        // And one comes in.
        let at = rx + 16 * slot;
        r.deliver(&sent, move |q| q.readl(at) & OWN == 0);
        assert_eq!(r.q.readl(at) & (WHOLE | 0x1fff), WHOLE | 204, "a whole frame with its checksum");
        assert_eq!(r.q.read(0x20_0000 + slot * 2048, 200), sent);
        descriptor(&mut r.q, at, OWN | end | 2048, 0x20_0000 + slot as u32 * 2048);
    }
    // Two pieces, one frame.
    let sent = frame(300, 0x77);
    r.q.write(0x8000, &sent);
    descriptor(&mut r.q, tx + 16, OWN | LAST | 1 << 29 | 100, 0x8000);
    descriptor(&mut r.q, tx, OWN | 1 << 28 | 200, 0x8064);
    r.q.outb(TX_POLL, 0x40);
    assert_eq!(r.sent(), sent);
}

#[test]
fn its_timer_and_eeprom_answer() {
    let mut r = rig();
    r.q.outl(BASE + 0x48, 0);
    r.q.step(1_000_000);
    let count = r.q.inl(BASE + 0x48);
    assert!((33_300..33_400).contains(&count), "33 MHz: {count}");
    // The EEPROM's first word by hand: select, start bit, READ, address 0, 16 bits (93C46).
    let clock = |q: &mut Qtest, bit: u8| {
        q.outb(BASE + 0x50, 0x88 | bit << 1);
        q.outb(BASE + 0x50, 0x8c | bit << 1);
        let read = q.inb(BASE + 0x50) & 1;
        q.outb(BASE + 0x50, 0x88 | bit << 1);
        read
    };
    r.q.outb(BASE + 0x50, 0x80);
    for bit in [1, 1, 0, 0, 0, 0, 0, 0, 0] {
        clock(&mut r.q, bit);
    }
    let word = (0..16).fold(0u16, |word, _| word << 1 | u16::from(clock(&mut r.q, 0)));
    assert_eq!(word, 0x8129);
}
