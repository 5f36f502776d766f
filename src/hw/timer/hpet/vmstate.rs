//! The section `hpet`.
#![allow(missing_docs)]

use lockstep_vmstate::{LoadError, Timer, VmState};

use super::TIMERS;

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "hpet", version = 2, minimum = 1)]
pub struct HpetState {
    pub config: u64,
    pub isr: u64,
    pub hpet_counter: u64,
    #[vmstate(since = 2)]
    pub num_timers_save: u8,
    #[vmstate(count = num_timers_save, max = 32)]
    pub timer: Vec<HpetTimerState>,
    #[vmstate(subsection)]
    pub rtc_irq_level: Option<RtcLevelState>,
    #[vmstate(subsection)]
    pub offset: Option<OffsetState>,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "hpet_timer", version = 1)]
pub struct HpetTimerState {
    pub tn: u8,
    pub config: u64,
    pub cmp: u64,
    pub fsb: u64,
    pub period: u64,
    pub wrap_flag: u8,
    pub qemu_timer: Timer,
}

/// The level of the clock's interrupt while timer 1 has its place.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "hpet/rtc_irq_level", version = 1)]
pub struct RtcLevelState {
    pub rtc_irq_level: u8,
}

/// The counter's time less the virtual clock, in nanoseconds, while it counts.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "hpet/offset", version = 1)]
pub struct OffsetState {
    pub hpet_offset: u64,
}

impl HpetState {
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        if self.timer.len() != TIMERS {
            return Err(LoadError::invalid("hpet: another number of timers"));
        }
        if self.timer.iter().enumerate().any(|(n, t)| usize::from(t.tn) != n) {
            return Err(LoadError::invalid("hpet: timers out of order"));
        }
        Ok(())
    }
}
