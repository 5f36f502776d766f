//! The tables in memory blocks that migrate, built anew when firmware reads them: by then it has settled where the ports are.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use lockstep_memory::RamBlock;
use lockstep_util::{Result, err};
use lockstep_vmstate::{Snapshot, VmState};

use super::{AcpiConfig, LOADER_SIZE, RSDP_SIZE, TABLES_SIZE, build};
use crate::{core::Board, fw_cfg::FwCfg};

/// The section `acpi_build`.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "acpi_build", version = 1)]
pub struct AcpiBuildState {
    /// Whether firmware has read the tables.
    pub patched: u8,
}

/// The tables of a machine.
pub struct AcpiTables {
    tables: RamBlock,
    rsdp: RamBlock,
    loader: RamBlock,
    patched: AtomicU8,
    config: Box<dyn Fn() -> AcpiConfig + Send + Sync>,
}

impl AcpiTables {
    /// Makes the blocks and adds them to fw_cfg. `config` is asked each time the tables are built.
    ///
    /// # Errors
    /// When there is no memory, or no place in fw_cfg.
    pub fn new(
        board: &Board,
        fw_cfg: &FwCfg,
        config: impl Fn() -> AcpiConfig + Send + Sync + 'static,
    ) -> Result<Arc<Self>> {
        let this = Arc::new(Self {
            tables: board.ram.allocate("/rom@etc/acpi/tables", TABLES_SIZE)?,
            loader: board.ram.allocate("/rom@etc/table-loader", LOADER_SIZE)?,
            rsdp: board.ram.allocate("/rom@etc/acpi/rsdp", RSDP_SIZE)?,
            patched: AtomicU8::new(0),
            config: Box::new(config),
        });
        let rsdp = this.write()?;
        for (name, block, len) in [
            ("etc/acpi/tables", &this.tables, TABLES_SIZE),
            ("etc/table-loader", &this.loader, LOADER_SIZE),
            ("etc/acpi/rsdp", &this.rsdp, rsdp),
        ] {
            let selected = Arc::downgrade(&this);
            fw_cfg.add_memory_file(name, block, len)?;
            fw_cfg.on_select(name, move || selected.upgrade().iter().for_each(|t| t.read_by_firmware()));
        }
        board.states.register("acpi_build", this.clone());
        Ok(this)
    }

    /// Builds the tables into their blocks. Returns the length of the root pointer.
    fn write(&self) -> Result<u64> {
        let files = build(&(self.config)());
        for (block, bytes) in [(&self.tables, &files.tables), (&self.loader, &files.loader), (&self.rsdp, &files.rsdp)]
        {
            block.write(0, bytes).map_err(|_| err!("ACPI tables are too large"))?;
        }
        Ok(files.rsdp.len() as u64)
    }

    fn read_by_firmware(&self) {
        if self.patched.swap(1, Ordering::SeqCst) == 0
            && let Err(e) = self.write()
        {
            tracing::error!("cannot build the ACPI tables: {e}");
        }
    }

    /// Has the tables built anew when firmware reads them next.
    pub fn reset(&self) {
        self.patched.store(0, Ordering::SeqCst);
    }
}

impl Snapshot for AcpiTables {
    type Wire = AcpiBuildState;

    fn snapshot(&self) -> AcpiBuildState {
        AcpiBuildState { patched: self.patched.load(Ordering::SeqCst) }
    }

    fn restore(&self, wire: AcpiBuildState) {
        self.patched.store(wire.patched, Ordering::SeqCst);
    }
}
