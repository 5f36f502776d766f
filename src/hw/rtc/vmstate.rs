//! The section `mc146818rtc`.

use lockstep_vmstate::{Buffer, LoadError, Timer, Unused, VmState};

/// State of the clock. Times are in nanoseconds of its clock but for `base_rtc`, in seconds.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "mc146818rtc", version = 3, minimum = 3)]
#[allow(missing_docs)]
pub struct RtcState {
    pub cmos_data: Buffer<128>,
    pub cmos_index: u8,
    pub unused0: Unused<28>,
    pub periodic_timer: Timer,
    pub next_periodic_time: i64,
    pub unused1: Unused<24>,
    pub irq_coalesced: u32,
    pub period: u32,
    pub base_rtc: u64,
    pub last_update: u64,
    pub offset: i64,
    pub update_timer: Timer,
    pub next_alarm_time: u64,
    #[vmstate(subsection)]
    pub irq_reinject: Option<RtcReinjectState>,
}

/// Interrupts that were lost and are to be given again: not something this clock does.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "mc146818rtc/irq_reinject_on_ack_count", version = 1)]
#[allow(missing_docs)]
pub struct RtcReinjectState {
    pub irq_reinject_on_ack_count: u16,
}

impl RtcState {
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        // The longest period is half a second.
        if self.cmos_index > 127 || self.period > 1 << 14 {
            return Err(LoadError::invalid("mc146818rtc: a register is out of range"));
        }
        Ok(())
    }
}
