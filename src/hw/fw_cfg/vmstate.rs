//! The section `fw_cfg`.
#![allow(missing_docs)]

use lockstep_vmstate::VmState;

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fw_cfg", version = 2)]
pub struct FwCfgState {
    pub cur_entry: u16,
    #[vmstate(name = "cur_offset[1]")]
    pub cur_offset: u32,
    #[vmstate(subsection)]
    pub dma: Option<DmaState>,
    #[vmstate(subsection)]
    pub acpi_mr: Option<AcpiSizesState>,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fw_cfg/dma", version = 0)]
pub struct DmaState {
    pub dma_addr: u64,
}

/// Sizes of the files with the ACPI tables.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "fw_cfg/acpi_mr", version = 1)]
pub struct AcpiSizesState {
    pub table_mr_size: u64,
    pub linker_mr_size: u64,
    pub rsdp_mr_size: u64,
}
