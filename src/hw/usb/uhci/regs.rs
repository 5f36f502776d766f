//! Registers of a UHCI controller (Universal Host Controller Interface design guide 1.1, chapter 2), without any I/O.

/// Ports of the root hub.
pub const PORTS: usize = 2;

/// Command register.
pub mod command {
    pub const RUN: u16 = 0x01;
    pub const HOST_RESET: u16 = 0x02;
    pub const GLOBAL_RESET: u16 = 0x04;
    pub const SUSPEND: u16 = 0x08;
    pub const RESUME: u16 = 0x10;
}

/// Status register.
pub mod status {
    pub const INTERRUPT: u16 = 0x01;
    pub const ERROR: u16 = 0x02;
    pub const RESUME: u16 = 0x04;
    pub const SYSTEM_ERROR: u16 = 0x08;
    pub const PROCESS_ERROR: u16 = 0x10;
    pub const HALTED: u16 = 0x20;
}

/// Port status and control.
pub mod port {
    pub const CONNECTED: u16 = 0x0001;
    pub const CONNECT_CHANGE: u16 = 0x0002;
    pub const ENABLED: u16 = 0x0004;
    pub const ENABLE_CHANGE: u16 = 0x0008;
    pub const RESUME: u16 = 0x0040;
    pub const ALWAYS: u16 = 0x0080;
    pub const LOW_SPEED: u16 = 0x0100;
    pub const RESET: u16 = 0x0200;
    pub const SUSPENDED: u16 = 0x1000;
    pub const READ_ONLY: u16 = 0x01bb;
    pub const CLEARED_BY_ONE: u16 = CONNECT_CHANGE | ENABLE_CHANGE;
}

/// Why [`Regs::pending`] interrupts: a transfer that asked for it, a short packet.
pub const ON_COMPLETE: u8 = 1;
/// See [`ON_COMPLETE`].
pub const ON_SHORT: u8 = 2;

/// What a write asks of the wiring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin with frames.
    Start,
    /// Reset the controller, then replug what is at the ports.
    Reset,
    /// Drive a reset at a port.
    ResetPort(usize),
}

/// All registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regs {
    pub command: u16,
    pub status: u16,
    /// Which of the two kinds the interrupt bit of the status is.
    pub kinds: u8,
    pub enabled: u16,
    pub frame: u16,
    pub list: u32,
    pub sof: u8,
    pub ports: [u16; PORTS],
    /// Interrupts that come at the end of the frame.
    pub pending: u8,
}

impl Default for Regs {
    fn default() -> Self {
        Self {
            command: 0,
            status: status::HALTED,
            kinds: 0,
            enabled: 0,
            frame: 0,
            list: 0,
            sof: 64,
            ports: [port::ALWAYS; PORTS],
            pending: 0,
        }
    }
}

impl Regs {
    /// A reset of the controller. Ports are empty until what is there is found anew.
    pub fn reset(&mut self) {
        *self = Self { frame: self.frame, pending: self.pending, ..Self::default() };
    }

    /// The level of the interrupt pin.
    pub fn irq(&self) -> bool {
        let on = |bit: u16| self.enabled & bit != 0;
        self.kinds & ON_COMPLETE != 0 && on(0x04)
            || self.kinds & ON_SHORT != 0 && on(0x08)
            || self.status & status::ERROR != 0 && on(0x01)
            || self.status & status::RESUME != 0 && on(0x02)
            || self.status & (status::SYSTEM_ERROR | status::PROCESS_ERROR) != 0
    }

    pub fn is_running(&self) -> bool {
        self.command & command::RUN != 0
    }

    /// Reads two bytes.
    pub fn read(&self, at: u64) -> u16 {
        match at {
            0x00 => self.command,
            0x02 => self.status,
            0x04 => self.enabled,
            0x06 => self.frame,
            0x08 => self.list as u16,
            0x0a => (self.list >> 16) as u16,
            0x0c => self.sof.into(),
            0x10 | 0x12 => self.ports[(at as usize - 0x10) / 2],
            // A port that is not there.
            _ => 0xff7f,
        }
    }

    /// Writes two bytes.
    pub fn write(&mut self, at: u64, value: u16) -> Option<Action> {
        match at {
            0x00 => return self.write_command(value),
            0x02 => {
                self.status &= !value;
                if value & status::INTERRUPT != 0 {
                    self.kinds = 0;
                }
            }
            0x04 => self.enabled = value,
            0x06 if self.status & status::HALTED != 0 => self.frame = value & 0x7ff,
            0x08 => self.list = self.list & 0xffff_0000 | u32::from(value & 0xf000),
            0x0a => self.list = self.list & 0xffff | u32::from(value) << 16,
            0x0c => self.sof = value as u8,
            0x10 | 0x12 => return self.write_port((at as usize - 0x10) / 2, value),
            _ => {}
        }
        None
    }

    fn write_command(&mut self, value: u16) -> Option<Action> {
        let starts = value & command::RUN != 0 && !self.is_running();
        if starts {
            self.status &= !status::HALTED;
        } else if value & command::RUN == 0 {
            self.status |= status::HALTED;
        }
        if value & (command::GLOBAL_RESET | command::HOST_RESET) != 0 {
            return Some(Action::Reset);
        }
        self.command = value;
        if value & command::SUSPEND != 0 && self.ports.iter().any(|p| p & port::RESUME != 0) {
            self.resume();
        }
        starts.then_some(Action::Start)
    }

    fn write_port(&mut self, n: usize, value: u16) -> Option<Action> {
        let old = self.ports[n];
        let resets = value & port::RESET != 0 && old & port::RESET == 0 && old & port::CONNECTED != 0;
        // Only a port with a device can be enabled.
        let allowed = if old & port::CONNECTED == 0 { !port::ENABLED } else { u16::MAX };
        let kept = old & port::READ_ONLY;
        self.ports[n] = (kept | value & allowed & !port::READ_ONLY) & !(value & port::CLEARED_BY_ONE);
        resets.then_some(Action::ResetPort(n))
    }

    /// Something on the bus wants the host.
    pub fn resume(&mut self) {
        if self.command & command::SUSPEND != 0 {
            self.command |= command::RESUME;
            self.status |= status::RESUME;
        }
    }

    /// A device at a suspended port wants the host.
    pub fn wake(&mut self, n: usize) {
        let suspended = self.ports[n] & port::SUSPENDED != 0 && self.ports[n] & port::RESUME == 0;
        if suspended {
            self.ports[n] |= port::RESUME;
            self.resume();
        }
    }

    /// A device was plugged in.
    pub fn attach(&mut self, n: usize) {
        self.ports[n] |= port::CONNECTED | port::CONNECT_CHANGE;
        self.ports[n] &= !port::LOW_SPEED;
        self.resume();
    }

    /// A device was taken out.
    pub fn detach(&mut self, n: usize) {
        if self.ports[n] & port::CONNECTED != 0 {
            self.ports[n] = self.ports[n] & !port::CONNECTED | port::CONNECT_CHANGE;
        }
        if self.ports[n] & port::ENABLED != 0 {
            self.ports[n] = self.ports[n] & !port::ENABLED | port::ENABLE_CHANGE;
        }
        self.resume();
    }
}
