//! The 8259 pair (Intel 231468-003) and the I/O APIC (290566-001).

use crate::qtest::Qtest;

/// Vectors 30h and 38h, cascade at 2, automatic end of interrupt off, all masked.
fn initialize(q: &mut Qtest) {
    for (port, words) in [(0x20, [0x11, 0x30, 0x04, 0x01]), (0xa0, [0x11, 0x38, 0x02, 0x01])] {
        q.outb(port, words[0]);
        words[1..].iter().for_each(|&word| q.outb(port + 1, word));
        q.outb(port + 1, 0xff);
    }
}

/// A byte as if from the keyboard: interrupt 1 goes high; reading it takes it away.
fn key(q: &mut Qtest, byte: u8) {
    q.outb(0x64, 0xd2);
    q.outb(0x60, byte);
}

fn request_register(q: &mut Qtest, port: u16) -> u8 {
    q.outb(port, 0x0a);
    q.inb(port)
}

fn service_register(q: &mut Qtest, port: u16) -> u8 {
    q.outb(port, 0x0b);
    q.inb(port)
}

#[test]
fn the_8259_latches_masks_and_serves_by_priority() {
    let mut q = Qtest::start(&[]);
    q.ask("irq_intercept_out /machine/unattached/device[4]");
    q.outb(0x64, 0x60);
    q.outb(0x60, 0x01);
    initialize(&mut q);
    assert_eq!((q.inb(0x21), q.inb(0xa1)), (0xff, 0xff), "the masks can be read");
    key(&mut q, 0x1e);
    assert_eq!(request_register(&mut q, 0x20) & 2, 2, "a masked input is latched");
    assert_eq!(q.interrupts(), [], "but does not interrupt");
    q.outb(0x21, 0xfd);
    assert_eq!(q.interrupts(), [(0, true)]);
    // The poll command acknowledges (OCW3 with P): bit 7 and the input's number.
    q.outb(0x20, 0x0c);
    assert_eq!(q.inb(0x20), 0x81);
    assert_eq!(q.interrupts(), [(0, false)]);
    assert_eq!(service_register(&mut q, 0x20), 2, "in service");
    q.inb(0x60);
    q.outb(0x20, 0x61);
    assert_eq!(service_register(&mut q, 0x20), 0, "a specific end of interrupt");
}

#[test]
fn the_slave_interrupts_through_the_master() {
    let mut q = Qtest::start(&["-rtc", "clock=vm"]);
    initialize(&mut q);
    q.outb(0x21, 0xfb);
    q.outb(0xa1, 0xfe);
    // The clock's periodic interrupt, 8 kHz, is input 0 of the slave.
    for (register, value) in [(0x0a, 0x23), (0x0b, 0x42)] {
        q.outb(0x70, register);
        q.outb(0x71, value);
    }
    q.step(1_000_000);
    assert_eq!((request_register(&mut q, 0xa0) & 1, request_register(&mut q, 0x20) & 4), (1, 4));
    q.outb(0x20, 0x0c);
    assert_eq!(q.inb(0x20), 0x82);
    q.outb(0xa0, 0x0c);
    assert_eq!(q.inb(0xa0), 0x80);
    assert_eq!((service_register(&mut q, 0xa0), service_register(&mut q, 0x20)), (1, 4));
    q.outb(0xa0, 0x20);
    q.outb(0x20, 0x20);
    assert_eq!((service_register(&mut q, 0xa0), service_register(&mut q, 0x20)), (0, 0));
}

#[test]
fn trigger_modes_are_set_where_they_can_be() {
    let mut q = Qtest::start(&[]);
    q.outb(0x4d0, 0xff);
    q.outb(0x4d1, 0xff);
    // Not the timer, keyboard, cascade, clock and coprocessor (PIIX3, section 2.3.5).
    assert_eq!((q.inb(0x4d0), q.inb(0x4d1)), (0xf8, 0xde));
}

#[test]
fn the_io_apic_has_its_registers_behind_an_index() {
    let mut q = Qtest::start(&[]);
    let mut register = |index: u8, value: Option<u32>| {
        q.writeb(0xfec0_0000, index);
        value.into_iter().for_each(|v| q.writel(0xfec0_0010, v));
        q.readl(0xfec0_0010)
    };
    assert_eq!(register(1, None) >> 16 & 0xff, 23, "24 inputs");
    assert_eq!(register(0, Some(0x0500_0000)), 0x0500_0000, "its id");
    assert_eq!(register(0x12, None), 0x1_0000, "inputs are masked after reset");
    // The delivery status and the remote IRR are read only.
    assert_eq!(register(0x12, Some(0xffff_ffff)) & 0x5000, 0);
    assert_eq!(register(0x13, Some(0xff00_0000)), 0xff00_0000);
}
