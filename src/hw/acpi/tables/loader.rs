//! The script by which firmware loads the tables: allocate, point, add up. Commands have 128 bytes.

use super::{Files, fixed};

/// Sizes of the memory blocks with the files, in bytes. They are part of the migration stream.
pub const TABLES_SIZE: u64 = 0x2_0000;
/// See [`TABLES_SIZE`].
pub const LOADER_SIZE: u64 = 0x1000;
/// See [`TABLES_SIZE`].
pub const RSDP_SIZE: u64 = 0x1000;

const TABLES: &str = "etc/acpi/tables";
const RSDP: &str = "etc/acpi/rsdp";
const NAME: usize = 56;
const COMMAND: usize = 128;

const ALLOCATE: u32 = 1;
const POINT: u32 = 2;
const CHECKSUM: u32 = 3;
/// Where to allocate: anywhere, or in the BIOS segment.
const ZONE_HIGH: u8 = 1;
const ZONE_BIOS: u8 = 2;

const OEM_ID: &[u8; 6] = b"BOCHS ";
const OEM_TABLE_ID: &[u8; 8] = b"BXPC    ";
const CREATOR: &[u8; 4] = b"BXPC";
/// Offset of the checksum in a table.
const CHECKSUM_AT: usize = 9;
/// Offsets in the root pointer.
const RSDP_CHECKSUM: usize = 8;
const RSDP_RSDT: usize = 16;
const RSDP_LENGTH: usize = 20;

fn command(kind: u32, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    fields.iter().for_each(|f| bytes.extend(*f));
    bytes.resize(COMMAND, 0);
    bytes
}

fn file(name: &str) -> [u8; NAME] {
    let mut field = [0; NAME];
    field[..name.len()].copy_from_slice(name.as_bytes());
    field
}

fn u32_at(at: usize) -> [u8; 4] {
    (at as u32).to_le_bytes()
}

/// Collects tables and the commands that join them.
#[derive(Default)]
pub(super) struct Linker {
    tables: Vec<u8>,
    /// Pointers come before checksums of the tables that they are in.
    commands: Vec<(usize, Vec<u8>)>,
}

impl Linker {
    /// Appends bytes as they are. Returns where.
    pub(super) fn append(&mut self, bytes: &[u8]) -> usize {
        let at = self.tables.len();
        self.tables.extend(bytes);
        at
    }

    /// Appends a table with a header, whose checksum firmware computes. Returns where.
    pub(super) fn append_table(&mut self, signature: &[u8; 4], revision: u8, body: &[u8]) -> usize {
        let length = fixed::HEADER + body.len();
        let mut table = signature.to_vec();
        table.extend(u32_at(length));
        table.extend([revision, 0]);
        table.extend(OEM_ID);
        table.extend(OEM_TABLE_ID);
        table.extend(1u32.to_le_bytes());
        table.extend(CREATOR);
        table.extend(1u32.to_le_bytes());
        table.extend(body);
        let at = self.append(&table);
        let fields: [&[u8]; 4] = [&file(TABLES), &u32_at(at + CHECKSUM_AT), &u32_at(at), &u32_at(length)];
        self.commands.push((1, command(CHECKSUM, &fields)));
        at
    }

    /// Has the 32-bit value at `at` point to a table.
    pub(super) fn point(&mut self, at: usize, to: usize) {
        self.tables[at..at + 4].copy_from_slice(&u32_at(to));
        let fields: [&[u8]; 4] = [&file(TABLES), &file(TABLES), &u32_at(at), &[4]];
        self.commands.push((0, command(POINT, &fields)));
    }

    /// Ends with the root pointer to the RSDT.
    pub(super) fn finish(mut self, rsdt: usize) -> Files {
        let mut rsdp = b"RSD PTR ".to_vec();
        rsdp.push(0);
        rsdp.extend(OEM_ID);
        rsdp.push(0);
        rsdp.extend(u32_at(rsdt));
        let mut loader = command(ALLOCATE, &[&file(RSDP), &16u32.to_le_bytes(), &[ZONE_BIOS]]);
        loader.extend(command(ALLOCATE, &[&file(TABLES), &64u32.to_le_bytes(), &[ZONE_HIGH]]));
        self.commands.sort_by_key(|(order, _)| *order);
        self.commands.iter().for_each(|(_, c)| loader.extend(c));
        let fields: [&[u8]; 4] = [&file(RSDP), &file(TABLES), &u32_at(RSDP_RSDT), &[4]];
        loader.extend(command(POINT, &fields));
        let fields: [&[u8]; 4] = [&file(RSDP), &u32_at(RSDP_CHECKSUM), &u32_at(0), &u32_at(RSDP_LENGTH)];
        loader.extend(command(CHECKSUM, &fields));
        self.tables.resize(TABLES_SIZE as usize, 0);
        loader.resize(LOADER_SIZE as usize, 0);
        Files { tables: self.tables, rsdp, loader }
    }
}
