//! The tables of the machine, as files in fw_cfg with a script by which firmware puts them together (QEMU's `docs/specs/acpi_*.rst` and
//! the table loader's commands as SeaBIOS runs them).

mod dsdt;
mod fixed;
mod loader;
mod state;

#[cfg(test)]
mod tests;

pub use fixed::{AcpiConfig, Ports};
pub use loader::{LOADER_SIZE, RSDP_SIZE, TABLES_SIZE};
pub use state::{AcpiBuildState, AcpiTables};

/// The three files.
pub struct Files {
    /// `etc/acpi/tables`.
    pub tables: Vec<u8>,
    /// `etc/acpi/rsdp`.
    pub rsdp: Vec<u8>,
    /// `etc/table-loader`.
    pub loader: Vec<u8>,
}

/// Builds the files.
pub fn build(config: &AcpiConfig) -> Files {
    let mut linker = loader::Linker::default();
    let facs = linker.append(&fixed::facs());
    let dsdt = linker.append_table(b"DSDT", 1, &dsdt::body(config));
    let fadt = linker.append_table(b"FACP", 1, &fixed::fadt_body(config));
    linker.point(fadt + fixed::FADT_FACS, facs);
    linker.point(fadt + fixed::FADT_DSDT, dsdt);
    let mut listed = vec![fadt, linker.append_table(b"APIC", 3, &fixed::madt_body(config))];
    if config.hpet {
        listed.push(linker.append_table(b"HPET", 1, &fixed::hpet_body()));
    }
    listed.push(linker.append_table(b"WAET", 1, &fixed::waet_body()));
    let rsdt = linker.append_table(b"RSDT", 1, &vec![0; 4 * listed.len()]);
    for (n, table) in listed.into_iter().enumerate() {
        linker.point(rsdt + fixed::HEADER + 4 * n, table);
    }
    linker.finish(rsdt)
}
