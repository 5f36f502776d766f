//! The guest's page tables as a debugger reads them: nothing is set in them (Intel SDM volume 3, chapter 4).

use lockstep_memory::AddressSpace;

use crate::{CpuState, cpu_state::msr};

/// A mapped page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Linear address of its first byte.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// The entry that maps it.
    pub entry: u64,
    /// What all entries on the way allow: bit 1 writing, bit 2 the user.
    pub rights: u64,
}

impl Page {
    /// Physical address of its first byte.
    pub fn physical(&self) -> u64 {
        self.entry & 0x000f_ffff_ffff_f000 & !(self.size - 1)
    }
}

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const TABLE: u64 = 0x000f_ffff_ffff_f000;

/// The levels of a mode's tables, from the top.
struct Mode {
    /// Where an index begins, its bits, whether an entry may map a page.
    levels: &'static [(u32, u32, bool)],
    /// Bytes of an entry.
    width: u64,
    root: u64,
    long: bool,
}

impl Mode {
    fn of(s: &CpuState) -> Self {
        let pae = s.cr4 >> 5 & 1 != 0;
        let long = s.msr(msr::EFER) >> 10 & 1 != 0;
        let pse = s.cr4 >> 4 & 1 != 0;
        match (long, pae) {
            (true, _) => Self {
                levels: &[(39, 9, false), (30, 9, true), (21, 9, true), (12, 9, true)],
                width: 8,
                root: s.cr3 & TABLE,
                long,
            },
            (false, true) => {
                let levels = &[(30, 2, false), (21, 9, true), (12, 9, true)];
                Self { levels, width: 8, root: s.cr3 & 0xffff_ffe0, long }
            }
            (false, false) if pse => {
                Self { levels: &[(22, 10, true), (12, 10, true)], width: 4, root: s.cr3 & 0xffff_f000, long }
            }
            _ => Self { levels: &[(22, 10, false), (12, 10, true)], width: 4, root: s.cr3 & 0xffff_f000, long },
        }
    }

    fn entry(&self, memory: &AddressSpace, table: u64, index: u64) -> u64 {
        let mut bytes = [0; 8];
        let width = self.width as usize;
        // Where there is no memory there is no entry.
        let read = memory.read(table + index * self.width, &mut bytes[..width]);
        if read.is_ok() { u64::from_le_bytes(bytes) } else { 0 }
    }

    /// What an entry at `depth` says: a page that begins at `address`, or the table below with the rights so far.
    fn look(&self, depth: usize, address: u64, entry: u64, rights: u64) -> Option<Result<Page, (u64, u64)>> {
        let (shift, _, may_map) = self.levels[depth];
        if entry & PRESENT == 0 {
            return None;
        }
        // The top entries of PAE have no rights.
        let rights = if self.width == 8 && !self.long && depth == 0 { rights } else { rights & entry };
        let mut mapped = entry;
        if shift != 12 && !(may_map && entry & LARGE != 0) {
            return Some(Err((entry & TABLE, rights)));
        }
        if shift == 22 {
            // Bits 32 to 39 of the address are in 13 to 20.
            mapped = entry & 0xffc0_0fff | (entry >> 13 & 0xff) << 32;
        }
        Some(Ok(Page { address, size: 1 << shift, entry: mapped, rights }))
    }
}

/// The physical address of a linear one; nothing if it is not mapped.
pub fn physical(state: &CpuState, memory: &AddressSpace, address: u64) -> Option<u64> {
    if state.cr0 >> 31 == 0 {
        return Some(address);
    }
    let mode = Mode::of(state);
    let address = if mode.long { address } else { address & 0xffff_ffff };
    if mode.long && ((address as i64) << 16 >> 16) as u64 != address {
        return None;
    }
    let (mut table, mut rights) = (mode.root, 6);
    for (depth, &(shift, bits, _)) in mode.levels.iter().enumerate() {
        let entry = mode.entry(memory, table, address >> shift & ((1 << bits) - 1));
        match mode.look(depth, address & !((1 << shift) - 1), entry, rights)? {
            Ok(page) => return Some(page.physical() | address & (page.size - 1)),
            Err(below) => (table, rights) = below,
        }
    }
    None
}

/// How many tables are looked at: tables that lead in circles would never end.
const MOST_TABLES: usize = 1 << 15;

/// Calls `each` for the mapped pages in the order of their addresses until it returns false.
pub fn pages(state: &CpuState, memory: &AddressSpace, each: &mut dyn FnMut(Page) -> bool) {
    if state.cr0 >> 31 != 0 {
        let mode = Mode::of(state);
        below(&mode, memory, 0, (mode.root, 6), 0, &mut 0, each);
    }
}

fn below(
    mode: &Mode,
    memory: &AddressSpace,
    depth: usize,
    (table, rights): (u64, u64),
    base: u64,
    tables: &mut usize,
    each: &mut dyn FnMut(Page) -> bool,
) -> bool {
    let (shift, bits, _) = mode.levels[depth];
    *tables += 1;
    if *tables > MOST_TABLES {
        return false;
    }
    (0..1u64 << bits).all(|index| {
        let mut address = base | index << shift;
        if mode.long && depth == 0 {
            address = ((address as i64) << 16 >> 16) as u64;
        }
        match mode.look(depth, address, mode.entry(memory, table, index), rights) {
            None => true,
            Some(Ok(page)) => each(page),
            Some(Err(next)) => below(mode, memory, depth + 1, next, address, tables, each),
        }
    })
}
