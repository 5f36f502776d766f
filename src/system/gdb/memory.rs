//! The guest's memory by linear address.

use lockstep_accel::{CpuState, walk};
use lockstep_memory::AddressSpace;

/// INT3.
const BREAKPOINT: u8 = 0xcc;

/// Calls `each` for the pieces of a range that lie in one page, with their physical address and their part of the range.
fn by_page(
    state: &CpuState,
    space: &AddressSpace,
    address: u64,
    len: usize,
    mut each: impl FnMut(u64, std::ops::Range<usize>) -> bool,
) -> bool {
    let mut done = 0;
    while done < len {
        let at = address.wrapping_add(done as u64);
        let room = (0x1000 - (at & 0xfff) as usize).min(len - done);
        let Some(physical) = walk::physical(state, space, at) else { return false };
        if !each(physical, done..done + room) {
            return false;
        }
        done += room;
    }
    true
}

/// Reads memory; false if some of it is not mapped. Where nothing answers, it is as the guest would read it.
pub fn read(state: &CpuState, space: &AddressSpace, address: u64, to: &mut [u8]) -> bool {
    by_page(state, space, address, to.len(), |physical, part| {
        let _ = space.read(physical, &mut to[part]);
        true
    })
}

/// Writes memory, ROM too; false if some of it is not mapped.
pub fn write(state: &CpuState, space: &AddressSpace, address: u64, from: &[u8]) -> bool {
    by_page(state, space, address, from.len(), |physical, part| {
        write_physical(space, physical, &from[part]);
        true
    })
}

fn write_physical(space: &AddressSpace, physical: u64, from: &[u8]) {
    match space.ram_at(physical) {
        Some((block, offset, room, true)) if room >= from.len() as u64 => {
            let _ = block.write(offset, from);
        }
        _ => {
            let _ = space.write(physical, from);
        }
    }
}

/// Whether a breakpoint can be put in the guest's code.
pub fn takes_int3(state: &CpuState, space: &AddressSpace, address: u64) -> bool {
    walk::physical(state, space, address).is_some_and(|physical| space.ram_at(physical).is_some())
}

/// Puts a breakpoint in the guest's code. Its physical address, and the byte that was there; nothing if there is no memory.
pub fn insert_int3(state: &CpuState, space: &AddressSpace, address: u64) -> Option<(u64, u8)> {
    let physical = walk::physical(state, space, address)?;
    space.ram_at(physical)?;
    let mut byte = [0];
    space.read(physical, &mut byte).ok()?;
    write_physical(space, physical, &[BREAKPOINT]);
    Some((physical, byte[0]))
}

/// Takes a breakpoint out of the guest's code, unless the guest has written something else there.
pub fn remove_int3(space: &AddressSpace, physical: u64, byte: u8) {
    let mut now = [0];
    if space.read(physical, &mut now).is_ok() && now[0] == BREAKPOINT {
        write_physical(space, physical, &[byte]);
    }
}
