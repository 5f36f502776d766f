//! The section `serial`.
#![allow(missing_docs)]

use lockstep_vmstate::{Buffer, LoadError, Timer, VmState};

use super::regs::FIFO;

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "serial", version = 3, minimum = 2)]
pub struct SerialState {
    pub state: SerialPart,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "serial", version = 3, minimum = 2)]
pub struct SerialPart {
    pub divider: u16,
    pub rbr: u8,
    pub ier: u8,
    pub iir: u8,
    pub lcr: u8,
    pub mcr: u8,
    pub lsr: u8,
    pub msr: u8,
    pub scr: u8,
    #[vmstate(since = 3)]
    pub fcr_vmstate: u8,
    #[vmstate(subsection)]
    pub thr_ipending: Option<ThrPendingState>,
    #[vmstate(subsection)]
    pub tsr: Option<TransmitterState>,
    #[vmstate(subsection)]
    pub recv_fifo: Option<ReceiveFifoState>,
    #[vmstate(subsection)]
    pub xmit_fifo: Option<TransmitFifoState>,
    #[vmstate(subsection)]
    pub fifo_timeout_timer: Option<TimeoutTimerState>,
    #[vmstate(subsection)]
    pub timeout_ipending: Option<TimeoutPendingState>,
    #[vmstate(subsection)]
    pub poll: Option<PollState>,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "serial/thr_ipending", version = 1)]
pub struct ThrPendingState {
    pub thr_ipending: i32,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "serial/tsr", version = 1)]
pub struct TransmitterState {
    pub tsr_retry: u32,
    pub thr: u8,
    pub tsr: u8,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "serial/recv_fifo", version = 1)]
pub struct ReceiveFifoState {
    pub recv_fifo: Fifo8State,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "serial/xmit_fifo", version = 1)]
pub struct TransmitFifoState {
    pub xmit_fifo: Fifo8State,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "Fifo8", version = 1)]
pub struct Fifo8State {
    pub data: Buffer<FIFO>,
    pub head: u32,
    pub num: u32,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "serial/fifo_timeout_timer", version = 1)]
pub struct TimeoutTimerState {
    pub fifo_timeout_timer: Timer,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "serial/timeout_ipending", version = 1)]
pub struct TimeoutPendingState {
    pub timeout_ipending: i32,
}

/// Polling of a host's serial line: never here.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "serial/poll", version = 1)]
pub struct PollState {
    pub poll_msl: i32,
    pub modem_status_poll: Timer,
}

impl TransmitFifoState {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let f = &self.xmit_fifo;
        (0..f.num).map(|n| f.data[(f.head + n) as usize % FIFO]).collect()
    }
}

impl SerialState {
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        let s = &self.state;
        let fifos = [s.recv_fifo.as_ref().map(|f| &f.recv_fifo), s.xmit_fifo.as_ref().map(|f| &f.xmit_fifo)];
        if fifos.into_iter().flatten().any(|f| f.num as usize > FIFO || f.head as usize >= FIFO) {
            return Err(LoadError::invalid("serial: a FIFO is out of range"));
        }
        Ok(())
    }
}
