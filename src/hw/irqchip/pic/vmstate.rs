//! The section `i8259`.

use lockstep_vmstate::{LoadError, VmState};

/// State of one 8259A, also in the host's kernel.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "i8259", version = 1)]
#[allow(missing_docs)]
pub struct PicState {
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub priority_add: u8,
    pub irq_base: u8,
    pub read_reg_select: u8,
    pub poll: u8,
    pub special_mask: u8,
    pub init_state: u8,
    pub auto_eoi: u8,
    pub rotate_on_auto_eoi: u8,
    pub special_fully_nested_mode: u8,
    pub init4: u8,
    pub single_mode: u8,
    pub elcr: u8,
}

impl PicState {
    /// Refuses what no 8259 can be.
    ///
    /// # Errors
    /// When a number is out of its range.
    pub fn validate(&self) -> Result<(), LoadError> {
        if self.priority_add > 7 || self.init_state > 3 || self.irq_base & 7 != 0 {
            return Err(LoadError::invalid("i8259: a register is out of range"));
        }
        Ok(())
    }
}
