//! The items: some have numbers of their own, files have names and a place in the directory.

use std::{collections::BTreeMap, sync::Arc};

use lockstep_memory::RamBlock;
use lockstep_vmstate::LoadError;

use super::{FwCfgState, key};

/// The longest name of a file, in bytes, without its final zero.
pub const FILE_NAME_MAX: usize = 55;
/// How many files there may be.
const SLOTS: u16 = 32;
/// Flags of a key: write channel, and architecture's own.
const WRITE_CHANNEL: u16 = 0x4000;
const ARCHITECTURE: u16 = 0x8000;

/// Files that are shown from memory blocks, in the order of their sizes on the wire.
const ACPI_FILES: [&str; 3] = ["etc/acpi/tables", "etc/table-loader", "etc/acpi/rsdp"];

/// Contents of an item.
#[derive(Clone)]
pub enum Blob {
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// The first bytes of a memory block.
    Memory(RamBlock, u64),
}

impl Blob {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Memory(_, len) => *len,
        }
    }

    /// Copies what there is from `offset` on, and says how much that is.
    fn read(&self, offset: u64, to: &mut [u8]) -> usize {
        let n = self.len().saturating_sub(offset).min(to.len() as u64) as usize;
        match self {
            _ if n == 0 => 0,
            Self::Bytes(bytes) => {
                to[..n].copy_from_slice(&bytes[offset as usize..offset as usize + n]);
                n
            }
            Self::Memory(block, _) => match block.read(offset, &mut to[..n]) {
                Ok(()) => n,
                Err(_) => 0,
            },
        }
    }
}

/// All items.
#[derive(Default)]
pub struct Items {
    numbered: BTreeMap<u16, Blob>,
    /// Sorted by name: a file's key is its place in the order.
    files: BTreeMap<String, Blob>,
    directory: Vec<u8>,
}

impl Items {
    pub(super) fn set(&mut self, key: u16, blob: Blob) {
        self.numbered.insert(key, blob);
    }

    pub(super) fn set_file(&mut self, name: &str, blob: Blob) -> Result<(), &'static str> {
        if name.is_empty() || name.len() > FILE_NAME_MAX {
            return Err("the name is empty or longer than 55 bytes");
        }
        if !self.files.contains_key(name) && self.files.len() >= usize::from(SLOTS) {
            return Err("the directory is full");
        }
        self.files.insert(name.to_owned(), blob);
        self.directory = self.build_directory();
        Ok(())
    }

    fn build_directory(&self) -> Vec<u8> {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (at, (name, blob)) in (0u16..).zip(&self.files) {
            directory.extend((blob.len() as u32).to_be_bytes());
            directory.extend((key::FIRST_FILE + at).to_be_bytes());
            directory.extend([0; 2]);
            let mut field = [0; FILE_NAME_MAX + 1];
            field[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(field);
        }
        directory
    }

    pub(super) fn files(&self) -> Vec<(String, u64)> {
        self.files.iter().map(|(name, blob)| (name.clone(), blob.len())).collect()
    }

    pub(super) fn file(&self, name: &str) -> Option<Vec<u8>> {
        let blob = self.files.get(name)?;
        let mut bytes = vec![0; blob.len() as usize];
        blob.read(0, &mut bytes);
        Some(bytes)
    }

    /// Whether a key may be selected at all.
    pub(super) fn in_range(&self, key: u16) -> bool {
        key & !(WRITE_CHANNEL | ARCHITECTURE) < key::FIRST_FILE + SLOTS
    }

    /// Copies from an item and says how much there was.
    pub(super) fn read(&self, key: u16, offset: u64, to: &mut [u8]) -> usize {
        let key = key & !WRITE_CHANNEL;
        if key == key::FILE_DIRECTORY {
            let rest = self.directory.get(offset as usize..).unwrap_or(&[]);
            let n = rest.len().min(to.len());
            to[..n].copy_from_slice(&rest[..n]);
            return n;
        }
        self.blob(key).map_or(0, |blob| blob.read(offset, to))
    }

    pub(super) fn len(&self, key: u16) -> u64 {
        let key = key & !WRITE_CHANNEL;
        match key {
            key::FILE_DIRECTORY => self.directory.len() as u64,
            _ => self.blob(key).map_or(0, Blob::len),
        }
    }

    /// The file that a key selects.
    pub(super) fn file_name(&self, key: u16) -> Option<&str> {
        let n = (key & !WRITE_CHANNEL).checked_sub(key::FIRST_FILE)?;
        self.files.keys().nth(n.into()).map(String::as_str)
    }

    fn blob(&self, key: u16) -> Option<&Blob> {
        match key {
            k if k & ARCHITECTURE == 0 && k >= key::FIRST_FILE => {
                self.files.values().nth(usize::from(k - key::FIRST_FILE))
            }
            k => self.numbered.get(&k),
        }
    }

    /// Sizes of the ACPI files that are shown from memory blocks: those of the files, as QEMU has them, not of the blocks' pages.
    pub(super) fn acpi_sizes(&self) -> Option<[u64; 3]> {
        let size = |name: &str| match self.files.get(name) {
            Some(Blob::Memory(_, len)) => Some(*len),
            _ => None,
        };
        Some([size(ACPI_FILES[0])?, size(ACPI_FILES[1])?, size(ACPI_FILES[2])?])
    }

    pub(super) fn check_sizes(&self, wire: &FwCfgState) -> Result<(), LoadError> {
        if let (Some(theirs), Some(ours)) = (&wire.acpi_mr, self.acpi_sizes())
            && [theirs.table_mr_size, theirs.linker_mr_size, theirs.rsdp_mr_size] != ours
        {
            return Err(LoadError::invalid("fw_cfg: the ACPI tables have another size"));
        }
        Ok(())
    }
}
