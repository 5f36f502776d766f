//! Registers of an 8237A (Intel 231466-005).

use lockstep_vmstate::LoadError;

use super::{DmaChannelState, DmaState};

const ADDRESS: usize = 0;
const COUNT: usize = 1;
/// Addresses go down.
const MODE_DOWN: u8 = 0x20;
/// Memory to memory, compressed timing, rotating priority, extended write and the polarities are not used on a PC.
const COMMAND_UNUSED: u8 = 0x01 | 0x02 | 0x10 | 0x20 | 0x40 | 0x80;

/// A controller.
#[derive(Clone, Debug, PartialEq)]
pub struct DmaRegs {
    command: u8,
    mask: u8,
    status: u8,
    second_byte: bool,
    shift: u8,
    channels: [DmaChannelState; 4],
}

impl DmaRegs {
    pub(super) fn new(shift: u8) -> Self {
        let channels = std::array::from_fn(|_| DmaChannelState::default());
        Self { command: 0, mask: 0xff, status: 0, second_byte: false, shift, channels }
    }

    fn take_second(&mut self) -> bool {
        self.second_byte = !self.second_byte;
        !self.second_byte
    }

    pub(super) fn read_channel(&mut self, register: usize) -> u8 {
        let second = self.take_second();
        let c = &self.channels[(register / 2) & 3];
        let value = if register % 2 == COUNT {
            (i32::from(c.base[COUNT]) << self.shift) - c.now[COUNT]
        } else {
            let step = if c.mode & MODE_DOWN != 0 { -1 } else { 1 };
            c.now[ADDRESS].wrapping_add(c.now[COUNT].wrapping_mul(step))
        };
        (value >> (u32::from(self.shift) + if second { 8 } else { 0 })) as u8
    }

    pub(super) fn write_channel(&mut self, register: usize, value: u8) {
        let second = self.take_second();
        let c = &mut self.channels[(register / 2) & 3];
        let base = &mut c.base[register % 2];
        if second {
            *base = *base & 0x00ff | u16::from(value) << 8;
            c.now = [i32::from(c.base[ADDRESS]) << self.shift, 0];
        } else {
            *base = *base & 0xff00 | u16::from(value);
        }
    }

    pub(super) fn read_control(&mut self, register: u8) -> u8 {
        match register {
            0 => {
                let value = self.status;
                // Reached terminal counts are told once.
                self.status &= 0xf0;
                value
            }
            // At the command register's second place as well, where QEMU has it.
            1 | 7 => self.mask,
            _ => 0,
        }
    }

    pub(super) fn write_control(&mut self, register: u8, value: u8) {
        let channel = 1 << (value & 3);
        match register {
            0 if value & COMMAND_UNUSED == 0 => self.command = value,
            1 => {
                let request = channel << 4;
                self.status = if value & 4 != 0 { self.status | request } else { self.status & !request };
                self.status &= !channel;
            }
            2 => self.mask = if value & 4 != 0 { self.mask | channel } else { self.mask & !channel },
            3 => self.channels[usize::from(value & 3)].mode = value,
            4 => self.second_byte = false,
            5 => self.master_clear(),
            6 => self.mask = 0,
            7 => self.mask = value,
            _ => {}
        }
    }

    pub(super) fn master_clear(&mut self) {
        (self.second_byte, self.mask, self.status, self.command) = (false, 0xff, 0, 0);
    }

    pub(super) fn page(&self, channel: usize) -> u8 {
        self.channels[channel].page
    }

    pub(super) fn set_page(&mut self, channel: usize, value: u8) {
        self.channels[channel].page = value;
    }

    pub(super) fn save(&self) -> DmaState {
        DmaState {
            command: self.command,
            mask: self.mask,
            flip_flop: self.second_byte.into(),
            dshift: self.shift.into(),
            regs: self.channels.clone(),
        }
    }

    pub(super) fn validate(&self, wire: &DmaState) -> Result<(), LoadError> {
        if wire.dshift != i32::from(self.shift) {
            return Err(LoadError::invalid("dma: the controller has another width"));
        }
        Ok(())
    }

    pub(super) fn load(&mut self, wire: &DmaState) {
        self.command = wire.command;
        self.mask = wire.mask;
        self.second_byte = wire.flip_flop != 0;
        self.channels = wire.regs.clone();
    }
}
