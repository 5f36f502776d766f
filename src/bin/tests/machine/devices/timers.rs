//! The 8254 (Intel 231164-005), the real-time clock (MC146818A), and the power management timer (ACPI 1.0, section 4.7.3.3).

use crate::qtest::Qtest;

const SECOND: u64 = 1_000_000_000;
const PIT_HZ: u64 = 1_193_182;

fn cmos(q: &mut Qtest, register: u8) -> u8 {
    q.outb(0x70, register);
    q.inb(0x71)
}

fn set_cmos(q: &mut Qtest, register: u8, value: u8) {
    q.outb(0x70, register);
    q.outb(0x71, value);
}

#[test]
fn the_8254_counts_down_and_interrupts() {
    let mut q = Qtest::start(&[]);
    q.intercept_interrupts();
    // Channel 0 as a rate generator, 1000 counts.
    q.outb(0x43, 0x34);
    q.outb(0x40, 0xe8);
    q.outb(0x40, 0x03);
    q.interrupts();
    q.step(100 * SECOND / PIT_HZ + 400);
    q.outb(0x43, 0x00);
    let count = u16::from_le_bytes([q.inb(0x40), q.inb(0x40)]);
    assert_eq!(count, 900, "the latched count");
    q.step(2000 * SECOND / PIT_HZ);
    let rises = q.interrupts().iter().filter(|i| i.1).count();
    assert_eq!(rises, 2, "one interrupt every 1000 counts");
}

#[test]
fn the_8254_tells_its_status_and_stops_in_mode_0() {
    let mut q = Qtest::start(&[]);
    // Channel 2, mode 0, both bytes; its gate is port 61h's bit 0.
    q.outb(0x61, 0x01);
    q.outb(0x43, 0xb0);
    q.outb(0x42, 0x64);
    q.outb(0x42, 0x00);
    let status = |q: &mut Qtest| {
        q.outb(0x43, 0xe8);
        q.inb(0x42)
    };
    assert_eq!(status(&mut q) & 0xbf, 0x30, "output low, both bytes, mode 0");
    assert_eq!(q.inb(0x61) & 0x20, 0);
    q.step(110 * SECOND / PIT_HZ);
    assert_eq!(status(&mut q) & 0xbf, 0xb0, "output high at the end");
    assert_eq!(q.inb(0x61) & 0x20, 0x20, "as port 61h shows");
}

#[test]
fn a_square_wave_is_high_half_of_the_time() {
    let mut q = Qtest::start(&[]);
    q.outb(0x61, 0x01);
    q.outb(0x43, 0xb6);
    q.outb(0x42, 0xe8);
    q.outb(0x42, 0x03);
    let mut high = 0;
    for _ in 0..100 {
        q.step(10 * SECOND / PIT_HZ);
        high += u32::from(q.inb(0x61) >> 5 & 1);
    }
    assert!((48..=52).contains(&high), "{high}");
}

#[test]
fn the_clock_shows_its_time_in_bcd_and_binary() {
    let mut q = Qtest::start(&["-rtc", "base=2026-11-23T13:59:58,clock=vm"]);
    let time = |q: &mut Qtest| [0x32, 9, 8, 7, 6, 4, 2, 0].map(|r| cmos(q, r));
    // Century, year, month, day of month, day of week (Monday is 2), hours, minutes, seconds.
    assert_eq!(time(&mut q), [0x20, 0x26, 0x11, 0x23, 0x02, 0x13, 0x59, 0x58]);
    q.step(2 * SECOND);
    assert_eq!(time(&mut q)[5..], [0x14, 0x00, 0x00]);
    // Binary, 24 hours.
    set_cmos(&mut q, 0x0b, 0x06);
    assert_eq!(time(&mut q)[1..6], [26, 11, 23, 2, 14]);
    // 12 hours: afternoon has bit 7.
    set_cmos(&mut q, 0x0b, 0x04);
    assert_eq!(time(&mut q)[5], 0x82);
}

#[test]
fn the_clock_says_when_it_updates_and_can_be_held() {
    let mut q = Qtest::start(&["-rtc", "base=2026-01-01,clock=vm"]);
    set_cmos(&mut q, 0x0a, 0x26);
    q.step(SECOND / 2);
    assert_eq!(cmos(&mut q, 0x0a) & 0x80, 0, "far from an update");
    q.step(SECOND / 2 - 100_000);
    assert_eq!(cmos(&mut q, 0x0a) & 0x80, 0x80, "244 us before it");
    q.step(200_000);
    assert_eq!((cmos(&mut q, 0x0a) & 0x80, cmos(&mut q, 0)), (0, 1));
    set_cmos(&mut q, 0x0b, 0x82);
    q.step(5 * SECOND);
    assert_eq!(cmos(&mut q, 0), 1, "SET holds it");
}

#[test]
fn the_clock_interrupts_at_an_alarm_at_updates_and_periodically() {
    let mut q = Qtest::start(&["-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
    q.intercept_interrupts();
    // An alarm at 00:00:03, whatever hour and minute.
    for (register, value) in [(1, 0x03), (3, 0xff), (5, 0xff), (0x0b, 0x22)] {
        set_cmos(&mut q, register, value);
    }
    q.step(2 * SECOND + SECOND / 2);
    assert_eq!(q.device_interrupts(), []);
    q.step(SECOND);
    assert_eq!(q.device_interrupts(), [(8, true)]);
    assert_eq!(cmos(&mut q, 0x0c) & 0xa0, 0xa0, "its cause");
    assert_eq!((q.device_interrupts(), cmos(&mut q, 0x0c)), (vec![(8, false)], 0), "reading the cause acknowledges it");
    set_cmos(&mut q, 0x0b, 0x12);
    q.step(SECOND);
    assert_eq!((q.device_interrupts(), cmos(&mut q, 0x0c) & 0x90), (vec![(8, true)], 0x90), "an update's end");
    // 1024 Hz.
    set_cmos(&mut q, 0x0a, 0x26);
    set_cmos(&mut q, 0x0b, 0x42);
    q.device_interrupts();
    let mut count = 0;
    for _ in 0..100 {
        q.step(976_563);
        count += u32::from(cmos(&mut q, 0x0c) & 0x40 != 0);
    }
    assert!((99..=101).contains(&count), "{count}");
}

#[test]
fn cmos_ram_keeps_what_is_written() {
    let mut q = Qtest::start(&[]);
    for register in 0x40..0x5b {
        set_cmos(&mut q, register, register ^ 0xa5);
    }
    for register in 0x40..0x5b {
        assert_eq!(cmos(&mut q, register), register ^ 0xa5);
    }
    assert_eq!(cmos(&mut q, 0x0d), 0x80, "the battery is good");
}

#[test]
fn the_power_management_timer_counts_and_interrupts() {
    const PM: u8 = 1 << 3 | 3;
    let mut q = Qtest::start(&[]);
    q.intercept_interrupts();
    assert_eq!(q.config(PM, 0), 0x7113_8086);
    q.set_config(PM, 0x40, 0x601);
    q.set_config_byte(PM, 0x80, 1);
    let before = q.inl(0x608);
    q.step(SECOND);
    assert_eq!(q.inl(0x608).wrapping_sub(before) & 0xff_ffff, 3_579_545);
    assert_eq!(q.inw(0x604) & 1, 1, "ACPI is on: there is no system management mode");
    // The timer's top bit changes every 2^23 cycles, 2.3 s; the interrupt is 9.
    q.outw(0x600, 0xffff);
    q.outw(0x602, 0x01);
    q.device_interrupts();
    q.step(3 * SECOND);
    assert_eq!((q.inw(0x600) & 1, q.device_interrupts()), (1, vec![(9, true)]));
    q.outw(0x600, 0x01);
    assert_eq!((q.inw(0x600) & 1, q.device_interrupts()), (0, vec![(9, false)]));
}

#[test]
fn general_purpose_events_are_latched_and_enabled() {
    let mut q = Qtest::start(&[]);
    assert_eq!(q.inb(0xafe0), 0);
    q.outb(0xafe2, 0x0e);
    assert_eq!(q.inb(0xafe2), 0x0e, "enables");
    q.outb(0xafe0, 0xff);
    assert_eq!(q.inb(0xafe0), 0, "a status is only cleared by writing");
}
