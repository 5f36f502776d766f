//! Registers of the MC146818A (Motorola ADI-1007). The time is not counted: it is worked out from a clock when it is read.

use lockstep_vmstate::{Timer, Unused};

use super::{DateTime, RtcState};

const SECONDS: usize = 0x00;
const MINUTES: usize = 0x02;
const HOURS: usize = 0x04;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const REG_A: usize = 0x0a;
const REG_B: usize = 0x0b;
const REG_C: usize = 0x0c;
const REG_D: usize = 0x0d;
/// Where PCs keep the century, and where PS/2s do.
const CENTURY: usize = 0x32;
const CENTURY_PS2: usize = 0x37;

/// Update in progress.
const A_UIP: u8 = 0x80;
const B_SET: u8 = 0x80;
const B_PERIODIC: u8 = 0x40;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_SQUARE_WAVE: u8 = 0x08;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_IRQ: u8 = 0x80;
const C_PERIODIC: u8 = 0x40;
const C_ALARM: u8 = 0x20;
const C_UPDATE: u8 = 0x10;

const NS: i64 = 1_000_000_000;
/// The time base, in Hz.
const BASE_HZ: i64 = 32_768;
/// How long UIP is set before an update: 8 cycles of the time base (244 us).
const UIP_NS: i64 = 8 * NS / BASE_HZ;

/// The registers.
#[derive(Clone, Debug, PartialEq)]
pub struct RtcRegs {
    cmos: [u8; 128],
    index: u8,
    /// The guest's time at `last_update` of the clock, in seconds, and the nanoseconds on top.
    base: i64,
    last_update: i64,
    offset: i64,
    period: u32,
    next_periodic: i64,
    periodic_deadline: Option<i64>,
    next_alarm: u64,
    update_deadline: Option<i64>,
}

impl RtcRegs {
    pub(super) fn new(base: i64, now: i64) -> Self {
        let mut regs = Self {
            cmos: [0; 128],
            index: 0,
            base,
            last_update: now,
            offset: 0,
            period: 0,
            next_periodic: 0,
            periodic_deadline: None,
            next_alarm: 0,
            update_deadline: None,
        };
        regs.cmos[REG_A] = 0x26;
        regs.cmos[REG_B] = B_24_HOURS;
        regs.cmos[REG_D] = 0x80;
        regs.show_time(now);
        regs.plan_update(now);
        regs
    }

    pub(super) fn irq(&self) -> bool {
        self.cmos[REG_C] & C_IRQ != 0
    }

    pub(super) fn periodic_deadline(&self) -> Option<i64> {
        self.periodic_deadline
    }

    pub(super) fn update_deadline(&self) -> Option<i64> {
        self.update_deadline
    }

    pub(super) fn set_cmos(&mut self, at: usize, value: u8) {
        if let Some(byte) = self.cmos.get_mut(at) {
            *byte = value;
        }
    }

    pub(super) fn cmos(&self, at: usize) -> u8 {
        self.cmos.get(at).copied().unwrap_or(0)
    }

    pub(super) fn reset(&mut self, now: i64) {
        self.cmos[REG_B] &= !(B_PERIODIC | B_ALARM | B_SQUARE_WAVE);
        self.cmos[REG_C] = 0;
        self.plan_periodic(now);
        self.plan_update(now);
    }

    pub(super) fn select(&mut self, value: u8) {
        // Bit 7 masks the NMI, of which there is none.
        self.index = value & 0x7f;
    }

    pub(super) fn read(&mut self, now: i64) -> u8 {
        let index = match usize::from(self.index) {
            CENTURY_PS2 => CENTURY,
            index => index,
        };
        match index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY if self.runs() => self.show_time(now),
            REG_A => {
                self.cmos[REG_A] &= !A_UIP;
                if self.update_in_progress(now) {
                    self.cmos[REG_A] |= A_UIP;
                }
            }
            REG_C => {
                let value = std::mem::take(&mut self.cmos[REG_C]);
                if value & (C_UPDATE | C_ALARM) != 0 {
                    self.plan_update(now);
                }
                return value;
            }
            _ => {}
        }
        self.cmos[index]
    }

    /// Returns the guest's time when the guest set it.
    pub(super) fn write(&mut self, value: u8, now: i64) -> Option<i64> {
        let index = match usize::from(self.index) {
            CENTURY_PS2 => CENTURY,
            index => index,
        };
        match index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                // The other fields go on from where they are.
                if self.runs() {
                    self.show_time(now);
                }
                self.cmos[index] = value;
                if self.runs() {
                    self.take_time(now);
                    self.plan_update(now);
                    return Some(self.base);
                }
            }
            0x01 | 0x03 | 0x05 => {
                self.cmos[index] = value;
                self.plan_update(now);
            }
            REG_A => self.write_a(value, now),
            REG_B => return self.write_b(value, now),
            REG_C | REG_D => {}
            _ => self.cmos[index] = value,
        }
        None
    }

    fn write_a(&mut self, value: u8, now: i64) {
        if value & 0x60 == 0x60 {
            if self.runs() {
                self.show_time(now);
            }
        } else if self.cmos[REG_A] & 0x60 == 0x60 && value & 0x70 <= 0x20 {
            // The first update comes half a second after the divider is released.
            if self.cmos[REG_B] & B_SET == 0 {
                self.offset = NS / 2;
                self.take_time(now);
            }
        }
        self.cmos[REG_A] = value & !A_UIP;
        self.plan_periodic(now);
        self.plan_update(now);
    }

    fn write_b(&mut self, value: u8, now: i64) -> Option<i64> {
        let mut value = value;
        let mut set = None;
        if value & B_SET != 0 {
            if self.runs() {
                self.show_time(now);
            }
            self.cmos[REG_A] &= !A_UIP;
            value &= !B_UPDATE;
        } else if self.cmos[REG_B] & B_SET != 0 && self.cmos[REG_A] & 0x70 <= 0x20 {
            // The fields are in the form that the old value says.
            self.offset = self.guest_ns(now).rem_euclid(NS);
            self.take_time(now);
            set = Some(self.base);
        }
        // Enabling an interrupt whose flag is set raises it at once.
        if value & self.cmos[REG_C] & (C_PERIODIC | C_ALARM | C_UPDATE) != 0 {
            self.cmos[REG_C] |= C_IRQ;
        } else {
            self.cmos[REG_C] &= !C_IRQ;
        }
        self.cmos[REG_B] = value;
        self.plan_periodic(now);
        self.plan_update(now);
        set
    }

    /// Whether time goes on: not being set, and the divider not held.
    fn runs(&self) -> bool {
        self.cmos[REG_B] & B_SET == 0 && self.cmos[REG_A] & 0x70 <= 0x20
    }

    fn guest_ns(&self, now: i64) -> i64 {
        let ns = i128::from(self.base) * i128::from(NS) + i128::from(now) - i128::from(self.last_update)
            + i128::from(self.offset);
        i64::try_from(ns).unwrap_or(i64::MAX)
    }

    pub(super) fn guest_time(&mut self, now: i64) -> DateTime {
        if self.runs() {
            self.show_time(now);
        }
        self.fields()
    }

    /// Writes the time into its fields.
    fn show_time(&mut self, now: i64) {
        let t = DateTime::from_seconds(self.guest_ns(now).div_euclid(NS));
        let hour = match (self.cmos[REG_B] & B_24_HOURS != 0, t.hour) {
            (true, h) => self.encode(h),
            (false, h) => self.encode(if h % 12 == 0 { 12 } else { h % 12 }) | if h >= 12 { 0x80 } else { 0 },
        };
        self.cmos[SECONDS] = self.encode(t.second);
        self.cmos[MINUTES] = self.encode(t.minute);
        self.cmos[HOURS] = hour;
        self.cmos[WEEKDAY] = self.encode(t.weekday);
        self.cmos[DAY] = self.encode(t.day);
        self.cmos[MONTH] = self.encode(t.month);
        self.cmos[YEAR] = self.encode(t.year.rem_euclid(100) as u8);
        self.cmos[CENTURY] = self.encode(t.year.div_euclid(100).rem_euclid(100) as u8);
    }

    /// The fields as a date.
    fn fields(&self) -> DateTime {
        let f = |at: usize| self.decode(self.cmos[at]);
        DateTime {
            year: i64::from(f(CENTURY)) * 100 + i64::from(f(YEAR)),
            month: f(MONTH),
            day: f(DAY),
            weekday: f(WEEKDAY),
            hour: self.decode_hour(self.cmos[HOURS]),
            minute: f(MINUTES),
            second: f(SECONDS),
        }
    }

    fn take_time(&mut self, now: i64) {
        self.base = self.fields().to_seconds();
        self.last_update = now;
    }

    fn encode(&self, value: u8) -> u8 {
        if self.cmos[REG_B] & B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.cmos[REG_B] & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 15) }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.cmos[REG_B] & B_24_HOURS != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    fn update_in_progress(&self, now: i64) -> bool {
        self.runs() && self.guest_ns(now).rem_euclid(NS) >= NS - UIP_NS
    }

    /// Finds when the periodic interrupt comes next.
    fn plan_periodic(&mut self, now: i64) {
        let code = match self.cmos[REG_A] & 0x0f {
            code @ 1..=2 => code + 7,
            code => code,
        };
        if code == 0 || self.cmos[REG_B] & B_PERIODIC == 0 || self.cmos[REG_A] & 0x60 == 0x60 {
            self.period = 0;
            self.periodic_deadline = None;
            return;
        }
        let period = 1 << (code - 1);
        if period == self.period && self.periodic_deadline.is_some() {
            return;
        }
        self.period = period;
        self.next_periodic_after(now);
    }

    fn next_periodic_after(&mut self, now: i64) {
        let period = i128::from(self.period.max(1));
        let cycles = i128::from(now) * i128::from(BASE_HZ) / i128::from(NS);
        let next = (cycles.div_euclid(period) + 1) * period;
        self.next_periodic = (next * i128::from(NS) / i128::from(BASE_HZ)) as i64 + 1;
        self.periodic_deadline = Some(self.next_periodic);
    }

    pub(super) fn periodic_expired(&mut self) {
        if self.periodic_deadline.is_none() {
            return;
        }
        self.next_periodic_after(self.next_periodic);
        self.raise(C_PERIODIC);
    }

    fn raise(&mut self, flags: u8) {
        self.cmos[REG_C] |= flags;
        if flags & self.cmos[REG_B] & (B_PERIODIC | B_ALARM | B_UPDATE) != 0 {
            self.cmos[REG_C] |= C_IRQ;
        }
    }

    /// Finds when an update has an effect: it sets the update flag, or it reaches the alarm.
    fn plan_update(&mut self, now: i64) {
        if !self.runs() {
            self.update_deadline = None;
            return;
        }
        let guest = self.guest_ns(now);
        let next_update = now.saturating_add(NS - guest.rem_euclid(NS));
        let wait = self.seconds_to_alarm(guest.div_euclid(NS));
        self.next_alarm = next_update.saturating_add(wait.saturating_sub(1).saturating_mul(NS)) as u64;
        let flags = self.cmos[REG_C];
        self.update_deadline = if flags & C_UPDATE == 0 {
            Some(next_update)
        } else if self.cmos[REG_B] & B_ALARM != 0 && flags & C_ALARM == 0 {
            Some(self.next_alarm as i64)
        } else {
            None
        };
    }

    pub(super) fn update_expired(&mut self, now: i64) {
        if self.update_deadline.is_none() {
            return;
        }
        self.show_time(now);
        let alarm = if now as u64 >= self.next_alarm { C_ALARM } else { 0 };
        self.raise((C_UPDATE | alarm) & !self.cmos[REG_C]);
        self.plan_update(now);
    }

    /// Seconds until the alarm's fields match next: 1 to 86400. The upper two bits of a field set mean any value.
    fn seconds_to_alarm(&self, guest: i64) -> i64 {
        let any = |at: usize| self.cmos[at] & 0xc0 == 0xc0;
        let matches = |at: usize, value: i64, want: u8| any(at) || i64::from(want) == value;
        let (want_second, want_minute) = (self.decode(self.cmos[1]), self.decode(self.cmos[3]));
        let want_hour = self.decode_hour(self.cmos[5]);
        let mut wait = 1;
        while wait < 86400 {
            let t = (guest + wait).rem_euclid(86400);
            if !matches(5, t / 3600, want_hour) {
                wait += 3600 - t % 3600;
            } else if !matches(3, t / 60 % 60, want_minute) {
                wait += 60 - t % 60;
            } else if !matches(1, t % 60, want_second) {
                wait += 1;
            } else {
                break;
            }
        }
        wait.min(86400)
    }

    pub(super) fn save(&self) -> RtcState {
        RtcState {
            cmos_data: self.cmos.into(),
            cmos_index: self.index,
            unused0: Unused,
            periodic_timer: Timer(self.periodic_deadline),
            next_periodic_time: self.next_periodic,
            unused1: Unused,
            irq_coalesced: 0,
            period: self.period,
            base_rtc: self.base as u64,
            last_update: self.last_update as u64,
            offset: self.offset,
            update_timer: Timer(self.update_deadline),
            next_alarm_time: self.next_alarm,
            irq_reinject: None,
        }
    }

    pub(super) fn load(&mut self, wire: &RtcState) {
        *self = Self {
            cmos: wire.cmos_data.0,
            index: wire.cmos_index & 0x7f,
            base: wire.base_rtc as i64,
            last_update: wire.last_update as i64,
            offset: wire.offset,
            period: wire.period,
            next_periodic: wire.next_periodic_time,
            periodic_deadline: wire.periodic_timer.0,
            next_alarm: wire.next_alarm_time,
            update_deadline: wire.update_timer.0,
        };
    }
}
