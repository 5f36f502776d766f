//! The section `i8254`.

use lockstep_vmstate::{LoadError, VmState};

/// State of an 8254, also in the host's kernel. Times are in nanoseconds of the virtual clock, -1 for never.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "i8254", version = 3)]
pub struct PitState {
    /// Whether channel 0 is disconnected from its interrupt.
    #[vmstate(name = "channels[0].irq_disabled")]
    pub irq_disabled: u32,
    /// The three counters.
    pub channels: [PitChannelState; 3],
    /// When channel 0's output changes next.
    #[vmstate(name = "channels[0].next_transition_time")]
    pub next_transition_time: i64,
}

/// State of one counter.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "pit channel", version = 2)]
#[allow(missing_docs)]
pub struct PitChannelState {
    pub count: i32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
    pub count_load_time: i64,
    pub next_transition_time: i64,
}

impl PitState {
    /// Refuses what no 8254 can be.
    ///
    /// # Errors
    /// When a number is out of its range.
    pub fn validate(&self) -> Result<(), LoadError> {
        let good = |c: &PitChannelState| {
            (0..=0x1_0000).contains(&c.count)
                && c.mode <= 7
                && c.bcd <= 1
                && c.rw_mode <= 3
                && [c.read_state, c.write_state, c.count_latched].iter().all(|&s| s <= 4)
        };
        match self.channels.iter().all(good) {
            true => Ok(()),
            false => Err(LoadError::invalid("i8254: a counter is out of range")),
        }
    }
}
