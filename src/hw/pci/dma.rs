//! Memory as a bus master sees it.

use lockstep_memory::{AddressSpace, MemTxError};

use crate::core::ReentrancyGuard;

/// The memory that a device reads and writes by itself. Empty while the guest has not enabled bus mastering; the device's own
/// registers are never reached. Cheap to clone. Use it without the device's lock.
#[derive(Clone)]
pub struct DmaSpace {
    space: AddressSpace,
    guard: ReentrancyGuard,
}

impl DmaSpace {
    /// DMA of a device in `space`, kept out of what `guard` guards.
    pub fn new(space: AddressSpace, guard: ReentrancyGuard) -> Self {
        Self { space, guard }
    }

    /// Reads bytes; where nothing answers they are zero.
    ///
    /// # Errors
    /// When some of the range did not answer.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), MemTxError> {
        let _scope = self.guard.enter();
        self.space.read(address, to)
    }

    /// Writes bytes; dropped where nothing answers.
    ///
    /// # Errors
    /// When some of the range did not answer.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), MemTxError> {
        let _scope = self.guard.enter();
        self.space.write(address, from)
    }

    /// Reads a little-endian value; zero where nothing answers.
    pub fn read_u16(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        let _ = self.read(address, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Reads a little-endian value; zero where nothing answers.
    pub fn read_u32(&self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        let _ = self.read(address, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a little-endian value.
    pub fn write_u16(&self, address: u64, value: u16) {
        let _ = self.write(address, &value.to_le_bytes());
    }

    /// Writes a little-endian value.
    pub fn write_u32(&self, address: u64, value: u32) {
        let _ = self.write(address, &value.to_le_bytes());
    }

    /// The address space, for what needs no guard (a display reading its own memory).
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }
}
