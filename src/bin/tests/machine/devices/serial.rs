//! The 16550A (National PC16550D) and the parallel port.

use crate::qtest::Qtest;

const COM1: u16 = 0x3f8;
const IER: u16 = COM1 + 1;
const IIR: u16 = COM1 + 2;
const LCR: u16 = COM1 + 3;
const MCR: u16 = COM1 + 4;
const LSR: u16 = COM1 + 5;
const MSR: u16 = COM1 + 6;

#[test]
fn registers_are_as_after_reset_and_keep_their_bits() {
    let mut q = Qtest::start(&["-serial", "null"]);
    assert_eq!((q.inb(IER), q.inb(IIR), q.inb(LSR)), (0, 1, 0x60));
    q.outb(LCR, 0x83);
    q.outb(COM1, 0x0c);
    q.outb(IER, 0x01);
    assert_eq!((q.inb(COM1), q.inb(IER)), (0x0c, 0x01), "the divisor");
    q.outb(LCR, 0x03);
    assert_eq!((q.inb(LCR), q.inb(IER)), (0x03, 0));
    q.outb(COM1 + 7, 0x5a);
    assert_eq!(q.inb(COM1 + 7), 0x5a, "scratch");
    q.outb(IER, 0xff);
    assert_eq!(q.inb(IER), 0x0f);
    // FIFOs on: both top bits of the identification.
    q.outb(IIR, 0x01);
    assert_eq!(q.inb(IIR) & 0xc0, 0xc0);
}

#[test]
fn what_is_sent_arrives_and_the_empty_holding_register_interrupts() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let path = dir.path().join("out");
    let mut q = Qtest::start(&["-serial", &format!("file:{}", path.display())]);
    q.intercept_interrupts();
    // OUT2 lets the interrupt through (PC's wiring).
    q.outb(MCR, 0x08);
    q.outb(IER, 0x02);
    assert_eq!(q.interrupts(), [(4, true)], "the register is empty");
    assert_eq!(q.inb(IIR) & 0x0f, 0x02);
    assert_eq!(q.interrupts(), [(4, false)], "reading the cause takes it away");
    for byte in *b"hi\n" {
        q.outb(COM1, byte);
        assert_eq!(q.inb(LSR) & 0x60, 0x60);
    }
    q.step(1_000_000);
    assert_eq!(std::fs::read(&path).expect("a file"), b"hi\n");
}

#[test]
fn the_loop_carries_bytes_and_modem_lines_back() {
    let mut q = Qtest::start(&["-serial", "null"]);
    q.intercept_interrupts();
    q.outb(MCR, 0x1b);
    // DTR, RTS and OUT2 show as DSR, CTS and DCD.
    assert_eq!(q.inb(MSR) & 0xf0, 0xb0);
    q.outb(COM1, 0x42);
    q.step(10_000_000);
    assert_eq!(q.inb(LSR) & 0x01, 0x01, "data ready");
    assert_eq!(q.inb(COM1), 0x42);
    assert_eq!(q.inb(LSR) & 0x01, 0);
}

#[test]
fn ports_that_nobody_asked_for_are_not_there() {
    let mut q = Qtest::start(&[]);
    assert_eq!((q.inb(COM1 + 7), q.inb(0x378)), (0xff, 0xff));
}

#[test]
fn the_parallel_port_prints() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let path = dir.path().join("out");
    let mut q = Qtest::start(&["-parallel", &format!("file:{}", path.display())]);
    assert_eq!(q.inb(0x379) & 0xf8, 0xd8, "selected, with paper, not busy, no error");
    for byte in *b"ok" {
        q.outb(0x378, byte);
        // Strobe.
        q.outb(0x37a, 0x0d);
        q.outb(0x37a, 0x0c);
    }
    assert_eq!(q.inb(0x378), b'k');
    assert_eq!(std::fs::read(&path).expect("a file"), b"ok");
}
