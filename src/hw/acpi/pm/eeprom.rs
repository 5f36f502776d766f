//! A memory of the SMBus as a section of its own.

use std::sync::Arc;

use lockstep_vmstate::{LoadError, Snapshot};

use super::{Piix4Pm, vmstate::EepromState};

/// Memory `n` of the SMBus. A machine whose memories nobody used sends none, as QEMU does for receivers that do not know them.
pub struct Eeprom {
    pm: Arc<Piix4Pm>,
    n: usize,
}

impl Eeprom {
    /// The section of memory `n` (0 to 7).
    pub fn new(pm: &Arc<Piix4Pm>, n: usize) -> Arc<Self> {
        Arc::new(Self { pm: pm.clone(), n })
    }
}

impl Snapshot for Eeprom {
    type Wire = EepromState;

    fn snapshot(&self) -> EepromState {
        self.pm.state.lock().smbus.save_memory(self.n)
    }

    fn validate(&self, wire: &EepromState) -> Result<(), LoadError> {
        // Only a transfer under way has a length, and it must fit.
        if !(0..=34).contains(&wire.smbusdev.data_len) {
            return Err(LoadError::invalid("smbus-device: data_len is out of range"));
        }
        Ok(())
    }

    fn restore(&self, wire: EepromState) {
        self.pm.state.lock().smbus.load_memory(self.n, &wire);
    }

    fn is_needed(&self) -> bool {
        self.snapshot().accessed
    }
}
