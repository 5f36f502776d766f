//! The section `uhci` in QEMU's layout.

use lockstep_vmstate::{LoadError, Timer, VmState};

use super::regs::{PORTS, Regs};
use crate::pci::PciDeviceState;

/// The section.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "uhci", version = 3, minimum = 1)]
#[allow(missing_docs)]
pub struct UhciState {
    pub dev: PciDeviceState,
    #[vmstate(kind = "uint8 equal")]
    pub num_ports_vmstate: u8,
    pub ports: [UhciPortState; PORTS],
    pub cmd: u16,
    pub status: u16,
    pub intr: u16,
    pub frnum: u16,
    pub fl_base_addr: u32,
    pub sof_timing: u8,
    pub status2: u8,
    pub frame_timer: Timer,
    #[vmstate(since = 2)]
    pub expire_time: i64,
    #[vmstate(since = 3)]
    pub pending_int_mask: u32,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "uhci port", version = 1)]
#[allow(missing_docs)]
pub struct UhciPortState {
    pub ctrl: u16,
}

impl UhciState {
    pub(super) fn save(dev: PciDeviceState, r: &Regs, frame_timer: Option<i64>, expire_time: i64) -> Self {
        Self {
            dev,
            num_ports_vmstate: PORTS as u8,
            ports: r.ports.map(|ctrl| UhciPortState { ctrl }),
            cmd: r.command,
            status: r.status,
            intr: r.enabled,
            frnum: r.frame,
            fl_base_addr: r.list,
            sof_timing: r.sof,
            status2: r.kinds,
            frame_timer: frame_timer.into(),
            expire_time,
            pending_int_mask: r.pending.into(),
        }
    }

    pub(super) fn check(&self) -> Result<(), LoadError> {
        if usize::from(self.num_ports_vmstate) != PORTS {
            return Err(LoadError::invalid("uhci: another number of ports"));
        }
        if self.frnum > 0x7ff || self.pending_int_mask > 3 {
            return Err(LoadError::invalid("uhci: a register is out of range"));
        }
        Ok(())
    }

    pub(super) fn load(&self, r: &mut Regs) {
        *r = Regs {
            command: self.cmd,
            status: self.status,
            kinds: self.status2,
            enabled: self.intr,
            frame: self.frnum,
            list: self.fl_base_addr & !0xfff,
            sof: self.sof_timing,
            ports: [self.ports[0].ctrl, self.ports[1].ctrl],
            pending: self.pending_int_mask as u8,
        };
    }
}
