//! Page tables: 32-bit with large pages, PAE, and four levels (Intel SDM volume 3, chapter 4).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::{
    Cpu,
    fault::{Fault, R, Reason, vector},
    mem::Access,
    state::cr,
};

const P: u64 = 1;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// What a walk found.
pub(crate) struct Walk {
    pub physical: u64,
    pub readable: bool,
    /// Writable, and the entry's dirty bit is set, so that later writes need no walk.
    pub writable_now: bool,
    pub executable: bool,
    /// Size of the page if it is not 4 KiB, else 0.
    pub large: u64,
    /// In every address space.
    pub global: bool,
}

impl Cpu {
    /// Translates for one access, setting accessed and dirty bits.
    pub(crate) fn walk(&mut self, address: u64, access: Access, user: bool, ac: bool) -> R<Walk> {
        if self.cr0 & cr::CR0_PG == 0 {
            let physical = address & self.a20_mask;
            return Ok(Walk {
                physical,
                readable: true,
                writable_now: true,
                executable: true,
                large: 0,
                global: false,
            });
        }
        // An entry may change between the look and the setting of its bits: then again.
        for _ in 0..64 {
            if let Some(walk) = self.walk_once(address, access, user, ac)? {
                return Ok(walk);
            }
        }
        Err(self.page_fault(address, access, user, 0))
    }

    fn walk_once(&mut self, address: u64, access: Access, user: bool, ac: bool) -> R<Option<Walk>> {
        let pae = self.cr4 & cr::CR4_PAE != 0;
        let long = self.efer & cr::EFER_LMA != 0;
        let nxe = self.efer & cr::EFER_NXE != 0;
        // (bits of the index's position, index width, whether the entry may be a page)
        let levels: &[(u32, u32, bool)] = match (long, pae) {
            (true, _) => &[(39, 9, false), (30, 9, true), (21, 9, true), (12, 9, true)],
            (false, true) => &[(30, 2, false), (21, 9, true), (12, 9, true)],
            (false, false) => &[(22, 10, true), (12, 10, true)],
        };
        let wide = long || pae;
        let physical_limit = if wide { 1u64 << self.physical_bits } else { 1 << 40 };
        let mut table = if long {
            self.cr3 & (physical_limit - 1) & !0xfff
        } else if pae {
            self.cr3 & 0xffff_ffe0
        } else {
            self.cr3 & 0xffff_f000
        };
        let mut rights = W | U;
        let mut no_execute = false;
        let mut path = [(0u64, 0u64); 4];
        for (depth, &(shift, width, may_be_page)) in levels.iter().enumerate() {
            let index = address >> shift & ((1 << width) - 1);
            let at = table + index * if wide { 8 } else { 4 };
            let entry = self.physical_load(at & self.a20_mask, if wide { 8 } else { 4 });
            if entry & P == 0 {
                return Err(self.page_fault(address, access, user, 0));
            }
            let last = shift == 12;
            let pdpte = pae && !long && depth == 0;
            let page = last
                || may_be_page
                    && entry & PS != 0
                    && (wide || self.cr4 & cr::CR4_PSE != 0)
                    && (shift != 30 || self.huge);
            let mut reserved = if wide { !(physical_limit - 1) & !NX & ((1 << 52) - 1) } else { 0 };
            if wide && !nxe {
                reserved |= NX;
            }
            if pdpte {
                reserved |= NX | 0x1e6;
            } else if long && !may_be_page || !page && entry & PS != 0 && shift == 30 {
                reserved |= PS;
            }
            if page && !last {
                // Address bits below the page's size; bit 12 is PAT.
                reserved |= if wide { ((1u64 << shift) - 1) & !0x1fff } else { 1 << 21 };
            }
            if entry & reserved != 0 {
                return Err(self.page_fault(address, access, user, 1 | 8));
            }
            if !pdpte {
                rights &= entry;
                no_execute |= wide && entry & NX != 0;
            }
            path[depth] = (at, entry);
            if !page {
                table = if wide { entry & (physical_limit - 1) & !0xfff } else { entry & 0xffff_f000 };
                continue;
            }
            let user_page = rights & U != 0;
            let write_ok = rights & W != 0 || !user && self.cr0 & cr::CR0_WP == 0;
            let smap = self.cr4 & cr::CR4_SMAP != 0;
            let smep = self.cr4 & cr::CR4_SMEP != 0;
            let data_ok = if user { user_page } else { !(user_page && smap && !ac) };
            let fetch_ok = !no_execute && if user { user_page } else { !(user_page && smep) };
            let allowed = match access {
                Access::Read => data_ok,
                Access::Write => data_ok && write_ok,
                Access::Exec => fetch_ok,
            };
            if !allowed {
                return Err(self.page_fault(address, access, user, 1));
            }
            // Accessed on the way, dirty at the end.
            for (i, &(at, entry)) in path[..=depth].iter().enumerate() {
                let pdpte = pae && !long && i == 0;
                let want = if i == depth && access == Access::Write { A | D } else { A };
                if !pdpte && entry & want != want && !self.set_entry_bits(at & self.a20_mask, entry, want, wide) {
                    return Ok(None);
                }
            }
            let size = 1u64 << shift;
            let base = if last || wide {
                entry & ((1 << 52) - 1) & !(size - 1) & !0xfff
            } else {
                // PSE-36: bits 13 to 20 are bits 32 to 39 of the address.
                entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32
            };
            let dirty = access == Access::Write || entry & D != 0;
            return Ok(Some(Walk {
                physical: (base | address & (size - 1)) & self.a20_mask,
                readable: data_ok,
                writable_now: data_ok && write_ok && dirty,
                executable: fetch_ok,
                large: if last { 0 } else { size },
                global: entry & G != 0 && self.cr4 & cr::CR4_PGE != 0,
            }));
        }
        Err(self.page_fault(address, access, user, 0))
    }

    /// Sets bits of an entry if it is still what was read.
    fn set_entry_bits(&mut self, at: u64, old: u64, bits: u64, wide: bool) -> bool {
        let Some(range) = self.range_of(at) else { return true };
        if range.readonly {
            return true;
        }
        let offset = at - range.start;
        let (host, block, block_offset) = (range.host + offset, range.block.clone(), range.offset + offset);
        if let Some(journal) = &mut self.checker.journal {
            journal.note_mark(host, if wide { 8 } else { 4 });
        }
        // SAFETY: entries are aligned and lie inside the range, whose block is kept alive.
        let done = unsafe {
            if wide {
                let entry = AtomicU64::from_ptr(host as *mut u64);
                entry.compare_exchange(old, old | bits, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            } else {
                let entry = AtomicU32::from_ptr(host as *mut u32);
                entry.compare_exchange(old as u32, (old | bits) as u32, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            }
        };
        block.mark_dirty(block_offset, 8);
        done
    }

    #[cold]
    fn page_fault(&mut self, address: u64, access: Access, user: bool, bits: u32) -> Fault {
        let mut code = bits | u32::from(access == Access::Write) << 1 | u32::from(user) << 2;
        if access == Access::Exec && (self.efer & cr::EFER_NXE != 0 || self.cr4 & cr::CR4_SMEP != 0) {
            code |= 1 << 4;
        }
        self.reason = Reason::Exception { vector: vector::PF, code: Some(code), address };
        Fault
    }
}
