//! The SMBus host controller (290562-001, section 7.3) with eight memories (serial presence detect) of 256 zero bytes at 50h to 57h.
//! Transfers finish at once.

use super::vmstate::{EepromState, I2cSlaveState, SmbusDeviceState, SmbusState};

const STATUS: u8 = 0x00;
const CONTROL: u8 = 0x02;
const COMMAND: u8 = 0x03;
const ADDRESS: u8 = 0x04;
const DATA_0: u8 = 0x05;
const DATA_1: u8 = 0x06;
const BLOCK: u8 = 0x07;

/// Interrupt: the command is done.
const STATUS_DONE: u8 = 0x02;
const STATUS_DEVICE_ERROR: u8 = 0x04;
const STATUS_BITS: u8 = 0x1e;
const CONTROL_START: u8 = 0x40;

const READ: u8 = 1;

const QUICK: u8 = 0;
const BYTE: u8 = 1;
const BYTE_DATA: u8 = 2;
const WORD_DATA: u8 = 3;
const BLOCK_DATA: u8 = 5;

/// Where the memories answer.
const MEMORIES: std::ops::RangeInclusive<u8> = 0x50..=0x57;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Smbus {
    status: u8,
    control: u8,
    command: u8,
    address: u8,
    data: [u8; 2],
    block: [u8; 32],
    block_index: u32,
    memories: Box<[[u8; 256]; 8]>,
    /// Where each memory reads next.
    offsets: [u8; 8],
    /// Which memories were used since power-on.
    accessed: [bool; 8],
}

impl Default for Smbus {
    fn default() -> Self {
        Self {
            status: 0,
            control: 0,
            command: 0,
            address: 0,
            data: [0; 2],
            block: [0; 32],
            block_index: 0,
            memories: Box::new([[0; 256]; 8]),
            offsets: [0; 8],
            accessed: [false; 8],
        }
    }
}

impl Smbus {
    pub(super) fn read(&mut self, register: u8) -> u8 {
        match register {
            STATUS => self.status,
            CONTROL => {
                self.block_index = 0;
                self.control & !CONTROL_START
            }
            COMMAND => self.command,
            ADDRESS => self.address,
            DATA_0 => self.data[0],
            DATA_1 => self.data[1],
            BLOCK => {
                let byte = self.block[self.block_index as usize & 31];
                self.block_index = (self.block_index + 1) & 31;
                byte
            }
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, register: u8, value: u8) {
        match register {
            STATUS => {
                self.status &= !(value & STATUS_BITS);
                self.block_index = 0;
            }
            CONTROL => {
                self.control = value & !CONTROL_START;
                if value & CONTROL_START != 0 {
                    self.start();
                }
            }
            COMMAND => self.command = value,
            ADDRESS => self.address = value,
            DATA_0 => self.data[0] = value,
            DATA_1 => self.data[1] = value,
            BLOCK => {
                self.block[self.block_index as usize & 31] = value;
                self.block_index = (self.block_index + 1) & 31;
            }
            _ => {}
        }
    }

    fn start(&mut self) {
        let address = self.address >> 1;
        let done = MEMORIES.contains(&address) && self.transfer(usize::from(address - MEMORIES.start()));
        self.status |= if done { STATUS_DONE } else { STATUS_DEVICE_ERROR };
    }

    /// False for a protocol that the controller does not have.
    fn transfer(&mut self, n: usize) -> bool {
        self.accessed[n] = true;
        let reads = self.address & READ != 0;
        let command = self.command;
        match (self.control >> 2 & 7, reads) {
            (QUICK, _) => {}
            (BYTE, true) => self.data[0] = self.next(n),
            (BYTE, false) => self.offsets[n] = command,
            (BYTE_DATA, true) => {
                self.offsets[n] = command;
                self.data[0] = self.next(n);
            }
            (WORD_DATA, true) => {
                self.offsets[n] = command;
                self.data = [self.next(n), self.next(n)];
            }
            (BYTE_DATA, false) => self.store(n, command, &[self.data[0]]),
            (WORD_DATA, false) => self.store(n, command, &{ self.data }),
            (BLOCK_DATA, true) => {
                self.offsets[n] = command;
                let len = self.next(n).min(32);
                self.data[0] = len;
                for i in 0..usize::from(len) {
                    self.block[i] = self.next(n);
                }
                self.block_index = 0;
            }
            (BLOCK_DATA, false) => {
                let len = self.data[0].min(32);
                self.store(n, command, &[len]);
                let block = self.block;
                self.store(n, command.wrapping_add(1), &block[..usize::from(len)]);
                self.block_index = 0;
            }
            _ => return false,
        }
        true
    }

    fn next(&mut self, n: usize) -> u8 {
        let at = self.offsets[n];
        self.offsets[n] = at.wrapping_add(1);
        self.memories[n][usize::from(at)]
    }

    fn store(&mut self, n: usize, at: u8, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            self.memories[n][usize::from(at.wrapping_add(i as u8))] = byte;
        }
    }

    /// The memories hold what they held at power-on.
    pub(super) fn reset_memories(&mut self) {
        (*self.memories, self.offsets) = ([[0; 256]; 8], [0; 8]);
    }

    /// Memory `n` as it migrates.
    pub(super) fn save_memory(&self, n: usize) -> EepromState {
        let address = MEMORIES.start() + n as u8;
        EepromState {
            smbusdev: SmbusDeviceState { i2c: I2cSlaveState { address }, mode: 0, data_len: 0, data_buf: [0; 34] },
            data: self.memories[n],
            offset: self.offsets[n],
            accessed: self.accessed[n],
        }
    }

    pub(super) fn load_memory(&mut self, n: usize, wire: &EepromState) {
        (self.memories[n], self.offsets[n], self.accessed[n]) = (wire.data, wire.offset, wire.accessed);
    }

    pub(super) fn save(&self) -> SmbusState {
        SmbusState {
            smb_stat: self.status,
            smb_ctl: self.control,
            smb_cmd: self.command,
            smb_addr: self.address,
            smb_data0: self.data[0],
            smb_data1: self.data[1],
            smb_index: self.block_index,
            smb_data: self.block,
            // Blocks go through the buffer of 32 bytes.
            smb_auxctl: 2,
            smb_blkdata: 0,
            i2c_enable: false,
            op_done: true,
            in_i2c_block_read: false,
            start_transaction_on_status_read: false,
        }
    }

    pub(super) fn load(&mut self, wire: &SmbusState) {
        self.status = wire.smb_stat;
        self.control = wire.smb_ctl;
        self.command = wire.smb_cmd;
        self.address = wire.smb_addr;
        self.data = [wire.smb_data0, wire.smb_data1];
        self.block = wire.smb_data;
        self.block_index = wire.smb_index & 31;
        if wire.start_transaction_on_status_read {
            self.start();
        }
    }
}
