//! The 256 bytes of a function's configuration space, and which of their bits the guest may change.

use super::offset::*;

/// Configuration space with its masks.
#[derive(Clone)]
pub struct ConfigSpace {
    /// The values.
    pub bytes: [u8; 256],
    /// Bits that the guest writes.
    pub writable: [u8; 256],
    /// Bits that the guest clears by writing ones.
    pub write_1_to_clear: [u8; 256],
    /// Bits that are this device's nature: a migration stream must have the same.
    pub checked: [u8; 256],
}

impl ConfigSpace {
    pub(super) fn new() -> Self {
        let mut checked = [0; 256];
        for at in [VENDOR_ID, VENDOR_ID + 1, DEVICE_ID, DEVICE_ID + 1, REVISION, PROG_IF, CLASS, CLASS + 1] {
            checked[at] = 0xff;
        }
        checked[STATUS] = 0x10;
        checked[HEADER_TYPE] = 0xff;
        checked[CAPABILITIES] = 0xff;
        let mut space = Self { bytes: [0; 256], writable: [0; 256], write_1_to_clear: [0; 256], checked };
        space.writable[CACHE_LINE_SIZE] = 0xff;
        space.writable[INTERRUPT_LINE] = 0xff;
        let command = super::command::IO
            | super::command::MEMORY
            | super::command::MASTER
            | super::command::INTX_DISABLE
            | super::command::SERR;
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&command.to_le_bytes());
        // What devices have for themselves is writable unless they say otherwise.
        space.writable[0x40..].fill(0xff);
        // Parity error, system error, master abort, target aborts: PCI 3.0 section 6.2.3.
        space.write_1_to_clear[STATUS + 1] = 0xf9;
        space
    }

    /// A byte.
    pub fn u8(&self, at: usize) -> u8 {
        self.bytes[at & 0xff]
    }

    /// Two bytes; 0 past the end.
    pub fn u16(&self, at: usize) -> u16 {
        self.get(at, 2) as u16
    }

    /// Four bytes; 0 past the end.
    pub fn u32(&self, at: usize) -> u32 {
        self.get(at, 4)
    }

    pub(super) fn get(&self, at: usize, len: usize) -> u32 {
        let mut value = [0; 4];
        let end = (at + len).min(256);
        if let Some(bytes) = self.bytes.get(at..end) {
            value[..bytes.len()].copy_from_slice(bytes);
        }
        u32::from_le_bytes(value)
    }

    /// Sets bytes, whatever the masks say.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Sets two bytes, whatever the masks say.
    pub fn set_u16(&mut self, at: usize, value: u16) {
        self.set(at, &value.to_le_bytes());
    }

    /// Sets four bytes, whatever the masks say.
    pub fn set_u32(&mut self, at: usize, value: u32) {
        self.set(at, &value.to_le_bytes());
    }

    /// A guest's write of `len` bytes.
    pub fn guest_write(&mut self, at: usize, value: u32, len: usize) {
        for (i, byte) in value.to_le_bytes().into_iter().take(len).enumerate() {
            let Some(slot) = self.bytes.get_mut(at + i) else { return };
            let mask = self.writable[at + i];
            *slot = *slot & !mask | byte & mask;
            *slot &= !(byte & self.write_1_to_clear[at + i]);
        }
    }

    /// The reset that all functions have in common; BARs are the function's.
    pub(super) fn reset(&mut self) {
        for at in [COMMAND, COMMAND + 1, STATUS, STATUS + 1, INTERRUPT_LINE] {
            self.bytes[at] &= !(self.writable[at] | self.write_1_to_clear[at]);
        }
        self.bytes[CACHE_LINE_SIZE] = 0;
    }
}
