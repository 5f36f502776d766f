//! The section `fdc`.
#![allow(missing_docs)]

use lockstep_vmstate::{LoadError, Timer, VmState};

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fdc", version = 2)]
pub struct FdcState {
    pub state: FdcPart,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fdc", version = 2)]
pub struct FdcPart {
    pub sra: u8,
    pub srb: u8,
    pub dor_vmstate: u8,
    pub tdr: u8,
    pub dsr: u8,
    pub msr: u8,
    pub status0: u8,
    pub status1: u8,
    pub status2: u8,
    pub fifo: [u8; 512],
    pub data_pos: u32,
    pub data_len: u32,
    pub data_state: u8,
    pub data_dir: u8,
    pub eot: u8,
    pub timer0: u8,
    pub timer1: u8,
    pub precomp_trk: u8,
    pub config: u8,
    pub lock: u8,
    pub pwrd: u8,
    #[vmstate(kind = "uint8 equal")]
    pub num_floppies: u8,
    pub drives: [DriveState; 2],
    #[vmstate(subsection)]
    pub reset_sensei: Option<ResetSenseState>,
    #[vmstate(subsection)]
    pub result_timer: Option<ResultTimerState>,
    #[vmstate(subsection)]
    pub phase: Option<PhaseState>,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fdrive", version = 1)]
pub struct DriveState {
    pub head: u8,
    pub track: u8,
    pub sect: u8,
    #[vmstate(subsection)]
    pub media_changed: Option<MediaChangedState>,
    #[vmstate(subsection)]
    pub media_rate: Option<MediaRateState>,
    #[vmstate(subsection)]
    pub perpendicular: Option<PerpendicularState>,
}

/// Whether a medium was changed, of a drive that has one.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fdrive/media_changed", version = 1)]
pub struct MediaChangedState {
    pub media_changed: u8,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fdrive/media_rate", version = 1)]
pub struct MediaRateState {
    pub media_rate: u8,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fdrive/perpendicular", version = 1)]
pub struct PerpendicularState {
    pub perpendicular: u8,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fdc/reset_sensei", version = 1)]
pub struct ResetSenseState {
    pub reset_sensei: i32,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fdc/result_timer", version = 1)]
pub struct ResultTimerState {
    pub result_timer: Timer,
}

/// The phase, where the registers do not imply it.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fdc/phase", version = 1)]
pub struct PhaseState {
    pub phase: u8,
}

impl FdcState {
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        let s = &self.state;
        if s.num_floppies != 2 {
            return Err(LoadError::invalid("fdc: another number of drives"));
        }
        if s.data_len > 512 || s.data_pos > s.data_len {
            return Err(LoadError::invalid("fdc: the FIFO is out of range"));
        }
        Ok(())
    }
}
