//! The section `ioapic`.

use lockstep_vmstate::{LoadError, Unused, VmState};

/// State of the I/O APIC, also in the host's kernel.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ioapic", version = 3, minimum = 1)]
#[allow(missing_docs)]
pub struct IoApicState {
    pub id: u8,
    pub ioregsel: u8,
    #[vmstate(since = 2)]
    pub unused: Unused<8>,
    #[vmstate(since = 2)]
    pub irr: u32,
    pub ioredtbl: [u64; 24],
}

impl IoApicState {
    /// Refuses what no I/O APIC can be.
    ///
    /// # Errors
    /// When there are requests at inputs that do not exist.
    pub fn validate(&self) -> Result<(), LoadError> {
        if self.irr >> 24 != 0 {
            return Err(LoadError::invalid("ioapic: irr is out of range"));
        }
        Ok(())
    }
}
