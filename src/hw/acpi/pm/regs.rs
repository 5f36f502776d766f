//! Fixed ACPI registers (ACPI 1.0b, section 4.7): PM1 events and control, the timer, general-purpose events; and the APM ports.

use lockstep_vmstate::Timer;

use super::vmstate::{ApmState, GpeState, PmState};

/// The frequency of the power management timer, in Hz.
pub const PM_TIMER_HZ: u32 = 3_579_545;
const NS: i128 = 1_000_000_000;
/// The timer has 24 bits; the top one's changes are events.
const TIMER_MASK: i64 = 0xff_ffff;
const TIMER_HALF: i64 = 0x80_0000;

const EVENT_TIMER: u16 = 1 << 0;
const EVENT_GLOBAL: u16 = 1 << 5;
const EVENT_POWER_BUTTON: u16 = 1 << 8;
const EVENT_CLOCK: u16 = 1 << 10;
const EVENT_WAKE: u16 = 1 << 15;
const INTERRUPTING: u16 = EVENT_TIMER | EVENT_GLOBAL | EVENT_POWER_BUTTON | EVENT_CLOCK;

const CONTROL_SCI: u16 = 1;
const CONTROL_SLEEP: u16 = 1 << 13;

const APM_ACPI_ON: u8 = 0xf1;
const APM_ACPI_OFF: u8 = 0xf0;

/// What the guest goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// S5.
    PowerOff,
    /// S3.
    ToRam,
    /// S4.
    ToDisk,
}

/// The registers.
#[derive(Clone, Debug, PartialEq)]
pub struct PmRegs {
    status: u16,
    enable: u16,
    control: u16,
    /// When the timer's top bit changes next, in its cycles.
    overflow: i64,
    deadline: Option<i64>,
    gpe_status: u16,
    gpe_enable: u16,
    apm_control: u8,
    apm_status: u8,
    s4_value: u8,
    /// ACPI is on and stays on: there is no system management mode in which firmware could emulate what was before it.
    acpi_only: bool,
}

fn cycles(now: i64) -> i64 {
    (i128::from(now) * i128::from(PM_TIMER_HZ) / NS) as i64
}

impl PmRegs {
    pub(super) fn new(s4_value: u8, acpi_only: bool) -> Self {
        Self {
            status: 0,
            enable: 0,
            control: if acpi_only { CONTROL_SCI } else { 0 },
            overflow: 0,
            deadline: None,
            gpe_status: 0,
            gpe_enable: 0,
            apm_control: 0,
            apm_status: 0,
            s4_value,
            acpi_only,
        }
    }

    pub(super) fn reset(&mut self) {
        let fresh = Self::new(self.s4_value, self.acpi_only);
        *self = Self { apm_control: self.apm_control, apm_status: self.apm_status, ..fresh };
    }

    /// The level of the system control interrupt.
    pub(super) fn sci(&self) -> bool {
        self.status & self.enable & INTERRUPTING != 0 || self.gpe_status & self.gpe_enable != 0
    }

    pub(super) fn deadline(&self) -> Option<i64> {
        self.deadline
    }

    pub(super) fn timer(&self, now: i64) -> u32 {
        (cycles(now) & TIMER_MASK) as u32
    }

    pub(super) fn timer_expired(&mut self, now: i64) {
        self.refresh(now);
    }

    /// Notes a timer overflow, and waits for the next one if it is to interrupt.
    fn refresh(&mut self, now: i64) {
        if cycles(now) >= self.overflow {
            self.status |= EVENT_TIMER;
        }
        self.deadline = (self.enable & EVENT_TIMER != 0 && self.status & EVENT_TIMER == 0).then(|| {
            // Rounded up: at that time the cycle is complete.
            let ns = (i128::from(self.overflow) * NS + i128::from(PM_TIMER_HZ) - 1) / i128::from(PM_TIMER_HZ);
            i64::try_from(ns).unwrap_or(i64::MAX)
        });
    }

    pub(super) fn read(&mut self, offset: u64, size: u32, now: i64) -> u16 {
        let word = match offset & !1 {
            0 => {
                self.refresh(now);
                self.status
            }
            2 => self.enable,
            _ => self.control,
        };
        if size == 1 { word >> ((offset & 1) * 8) & 0xff } else { word }
    }

    /// Returns what the guest goes into, if it does.
    pub(super) fn write(&mut self, offset: u64, size: u32, value: u16, now: i64) -> Option<Sleep> {
        let (shift, width) = ((offset & 1) * 8, if size == 1 { 0xff } else { 0xffff });
        let (bits, mask) = (value << shift, width << shift);
        match offset & !1 {
            0 => {
                self.refresh(now);
                if self.status & bits & EVENT_TIMER != 0 {
                    self.overflow = (cycles(now) + TIMER_HALF) & !(TIMER_HALF - 1);
                }
                self.status &= !bits;
                self.refresh(now);
            }
            2 => {
                self.enable = self.enable & !mask | bits & mask;
                self.refresh(now);
            }
            _ => {
                let control = self.control & !mask | bits & mask;
                self.control = control & !CONTROL_SLEEP | if self.acpi_only { CONTROL_SCI } else { 0 };
                if control & CONTROL_SLEEP != 0 {
                    return self.sleep(control);
                }
            }
        }
        None
    }

    fn sleep(&self, control: u16) -> Option<Sleep> {
        match (control >> 10 & 7) as u8 {
            0 => Some(Sleep::PowerOff),
            1 => Some(Sleep::ToRam),
            kind if kind == self.s4_value => Some(Sleep::ToDisk),
            _ => None,
        }
    }

    pub(super) fn power_button(&mut self) {
        if self.enable & EVENT_POWER_BUTTON != 0 {
            self.status |= EVENT_POWER_BUTTON;
        }
    }

    pub(super) fn wake(&mut self) {
        self.status |= EVENT_WAKE | EVENT_POWER_BUTTON;
    }

    pub(super) fn read_gpe(&self, offset: u64) -> u8 {
        let block = self.gpe_status.to_le_bytes().into_iter().chain(self.gpe_enable.to_le_bytes());
        block.clone().nth(offset as usize & 3).unwrap_or(0)
    }

    pub(super) fn write_gpe(&mut self, offset: u64, value: u8) {
        let bits = u16::from(value) << ((offset & 1) * 8);
        let mask = 0xff << ((offset & 1) * 8);
        if offset & 2 == 0 {
            self.gpe_status &= !bits;
        } else {
            self.gpe_enable = self.gpe_enable & !mask | bits;
        }
    }

    pub(super) fn read_apm(&self, offset: u64) -> u8 {
        if offset == 0 { self.apm_control } else { self.apm_status }
    }

    /// True for a command that is the firmware's to handle.
    pub(super) fn write_apm(&mut self, offset: u64, value: u8) -> bool {
        if offset != 0 {
            self.apm_status = value;
            return false;
        }
        self.apm_control = value;
        match value {
            APM_ACPI_ON => self.control |= CONTROL_SCI,
            APM_ACPI_OFF if !self.acpi_only => self.control &= !CONTROL_SCI,
            APM_ACPI_OFF => {}
            _ => return true,
        }
        false
    }

    /// The part of the wire form that these registers are.
    pub(super) fn save(&self) -> PmState {
        PmState {
            sts: self.status,
            en: self.enable,
            cnt: self.control,
            apm: ApmState { apmc: self.apm_control, apms: self.apm_status },
            timer: Timer(self.deadline),
            overflow_time: self.overflow,
            gpe: GpeState { sts: self.gpe_status, en: self.gpe_enable },
            ..lockstep_vmstate::Wire::absent()
        }
    }

    pub(super) fn load(&mut self, wire: &PmState) {
        *self = Self {
            status: wire.sts,
            enable: wire.en,
            control: wire.cnt,
            overflow: wire.overflow_time,
            deadline: wire.timer.0,
            gpe_status: wire.gpe.sts,
            gpe_enable: wire.gpe.en,
            apm_control: wire.apm.apmc,
            apm_status: wire.apm.apms,
            s4_value: self.s4_value,
            acpi_only: self.acpi_only,
        };
    }
}
