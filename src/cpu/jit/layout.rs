//! What generated code finds where: guest registers in host registers, and the processor's state by distances from GS.

use std::mem::offset_of;

use crate::{
    Cpu,
    mem::TlbEntry,
    msr::Msrs,
    state::{Hot, Segment},
};

use super::{Cell, Shared};

/// The host register of each guest register, or [`IN_MEMORY`]. RAX and R11 are free for the translator: LAHF, SETO and the
/// division want RAX, so the guest's is elsewhere. RSP is the host's own, because a signal may come at any time. The three
/// registers that compilers use least stay in memory.
pub(super) const HOST: [u8; 16] = [9, 1, 2, 3, 10, 5, 6, 7, 8, IN_MEMORY, IN_MEMORY, IN_MEMORY, 12, 13, 14, 15];
pub(super) const IN_MEMORY: u8 = 0xff;

/// Distance of a field of the processor from its first part, where GS points.
macro_rules! from_gs {
    ($($field:tt)*) => {
        (offset_of!(Cpu, $($field)*) as i64 - offset_of!(Cpu, hot) as i64) as i32
    };
}

pub(super) const RIP: i32 = gpr(17);
pub(super) const CC: i32 = offset_of!(Hot, cc) as i32;
pub(super) const VEC: i32 = offset_of!(Hot, vec) as i32;
pub(super) const HOST_MXCSR: i32 = offset_of!(Hot, mxcsr_host) as i32;
pub(super) const MXCSR: i32 = from_gs!(mxcsr);
pub(super) const KEY: i32 = from_gs!(shared) + offset_of!(Shared, key) as i32;
pub(super) const BLOCK_KEY: i32 = from_gs!(shared) + offset_of!(Shared, block_key) as i32;
pub(super) const TLB_DISTANCE: i32 = from_gs!(shared) + offset_of!(Shared, tlb) as i32;
pub(super) const CPL: i32 = from_gs!(cpl);
pub(super) const REST: i32 = from_gs!(rest);
pub(super) const SHADOW: i32 = from_gs!(shadow);
pub(super) const INTERRUPT_WAITS: i32 = from_gs!(interrupt_waits);
pub(super) const MMU: i32 = from_gs!(mmu);
pub(super) const EPOCH: i32 = from_gs!(shared) + offset_of!(Shared, epoch) as i32;
pub(super) const EFER: i32 = from_gs!(efer);
pub(super) const STAR: i32 = from_gs!(msrs) + offset_of!(Msrs, star) as i32;
pub(super) const LSTAR: i32 = from_gs!(msrs) + offset_of!(Msrs, lstar) as i32;
pub(super) const FMASK: i32 = from_gs!(msrs) + offset_of!(Msrs, fmask) as i32;
pub(super) const KERNEL_GS_BASE: i32 = from_gs!(msrs) + offset_of!(Msrs, kernel_gs_base) as i32;
pub(super) const TEMPORARY: i32 = from_gs!(shared) + offset_of!(Shared, temporary) as i32;
pub(super) const FOLLOWED: i32 = from_gs!(shared) + offset_of!(Shared, followed) as i32;
pub(super) const CR0: i32 = from_gs!(cr0);
pub(super) const REQUESTS: i32 = from_gs!(shared) + offset_of!(Shared, requests) as i32;
pub(super) const JUMPS: i32 = from_gs!(shared) + offset_of!(Shared, jumps) as i32;
pub(super) const CPU: i32 = from_gs!(shared) + offset_of!(Shared, cpu) as i32;
pub(super) const BUDGET: i32 = from_gs!(shared) + offset_of!(Shared, budget) as i32;
pub(super) const FROM: i32 = from_gs!(shared) + offset_of!(Shared, from) as i32;
pub(super) const VECTORS_LIVE: i32 = from_gs!(shared) + offset_of!(Shared, vectors_live) as i32;
pub(super) const VECTORS_ALLOWED: i32 = from_gs!(shared) + offset_of!(Shared, vectors_allowed) as i32;
pub(super) const LEAVE_AFTER: i32 = from_gs!(shared) + offset_of!(Shared, leave_after) as i32;

/// Where a guest register's memory is.
pub(super) const fn gpr(n: usize) -> i32 {
    (offset_of!(Hot, gpr) + 8 * n) as i32
}

/// Where the parts of a segment are.
macro_rules! segment {
    ($($name:ident, $field:ident;)*) => {
        $(pub(super) fn $name(n: usize) -> i32 {
            from_gs!(segs) + (n * size_of::<Segment>() + offset_of!(Segment, $field)) as i32
        })*
    };
}
segment!(segment_selector, selector; segment_base, base; segment_limit, limit; segment_flags, flags;);

/// Where the translation cache of a privilege context is.
pub(super) fn tlb(mmu: usize) -> i32 {
    from_gs!(tlb) + (mmu * crate::mem::TLB_SIZE * size_of::<TlbEntry>()) as i32
}

pub(super) const TAG_READ: i32 = offset_of!(TlbEntry, read) as i32;
pub(super) const TAG_WRITE: i32 = offset_of!(TlbEntry, write) as i32;
pub(super) const TAG_EXEC: i32 = offset_of!(TlbEntry, exec) as i32;
pub(super) const ADDEND: i32 = offset_of!(TlbEntry, addend) as i32;

/// Where a cell is, and its fields.
pub(super) fn cell(n: usize) -> i32 {
    from_gs!(cells) + (n * size_of::<Cell>()) as i32
}
pub(super) const CELL_TAG: i32 = offset_of!(Cell, tag) as i32;
pub(super) const CELL_ADDEND: i32 = offset_of!(Cell, addend) as i32;
pub(super) const CELL_CREDIT: i32 = offset_of!(Cell, credit) as i32;

/// Fields of an entry of the cache of jumps.
pub(super) mod jump {
    use crate::block::Jump;
    use std::mem::offset_of;
    pub const ADDRESS: i32 = offset_of!(Jump, address) as i32;
    pub const KEY: i32 = offset_of!(Jump, key) as i32;
    pub const STABLE: i32 = offset_of!(Jump, stable) as i32;
    pub const HOST: i32 = offset_of!(Jump, host) as i32;
    pub const CODE: i32 = offset_of!(Jump, code) as i32;
}

// The inline probe's shift and mask, and that of the cache of jumps.
const _: () = assert!(size_of::<TlbEntry>() == 32 && crate::mem::TLB_SIZE == 1024);
const _: () = assert!(size_of::<crate::block::Jump>() == 64 && crate::block::JUMP_CACHE == 16384);
