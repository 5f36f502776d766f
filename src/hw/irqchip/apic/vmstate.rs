//! The section `apic` of an APIC in this process.
#![allow(missing_docs)]

use lockstep_vmstate::{LoadError, VmState};

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "apic", version = 3)]
pub struct ApicState {
    pub apicbase: u32,
    pub id: u8,
    pub arb_id: u8,
    pub tpr: u8,
    pub spurious_vec: u32,
    pub log_dest: u8,
    pub dest_mode: u8,
    pub isr: [u32; 8],
    pub tmr: [u32; 8],
    pub irr: [u32; 8],
    pub lvt: [u32; 6],
    pub esr: u32,
    pub icr: [u32; 2],
    pub divide_conf: u32,
    pub count_shift: i32,
    pub initial_count: u32,
    pub initial_count_load_time: i64,
    pub next_time: i64,
    pub timer_expiry: i64,
    #[vmstate(subsection)]
    pub sipi: Option<SipiState>,
}

/// A CPU that waits for a start-up message.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "apic_sipi", version = 1)]
pub struct SipiState {
    pub sipi_vector: i32,
    pub wait_for_sipi: i32,
}

impl ApicState {
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        // Vectors below 16 are the CPU's.
        let low = |bits: &[u32; 8]| bits[0] & 0xffff != 0;
        if low(&self.isr) || low(&self.irr) {
            return Err(LoadError::invalid("apic: an interrupt has an exception's vector"));
        }
        Ok(())
    }
}
