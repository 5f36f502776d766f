//! The section `vmmouse`.
#![allow(missing_docs)]

use lockstep_vmstate::{LoadError, VmState};

use super::mouse::CAPACITY;

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "vmmouse", version = 0)]
pub struct VmMouseState {
    #[vmstate(kind = "int32 equal")]
    pub queue_size: i32,
    pub queue: [u32; CAPACITY],
    pub nb_queue: u16,
    pub status: u16,
    pub absolute: u8,
}

impl VmMouseState {
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        if self.queue_size != CAPACITY as i32 || usize::from(self.nb_queue) > CAPACITY {
            return Err(LoadError::invalid("vmmouse: the queue is out of range"));
        }
        Ok(())
    }
}
