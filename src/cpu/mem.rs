//! Memory as instructions see it: the translation cache, and the slow ways behind it.

use std::sync::atomic::Ordering;

use lockstep_memory::PAGE_SIZE;

use crate::{
    Cpu,
    fault::{Fault, R, Reason, vector},
    machine::{RamRange, ram_ranges},
    platform::request,
    state::{cr, flag, seg},
};

/// Entries of one translation cache.
pub(crate) const TLB_SIZE: usize = 1024;
/// Privilege contexts with a cache of their own, positions in [`Cpu::tlb`].
pub(crate) mod mmu {
    /// Supervisor, pages of the user are forbidden (SMAP) or all pages are as one (no SMAP).
    pub const KERNEL: usize = 0;
    pub const USER: usize = 1;
    /// Supervisor with SMAP suspended by AC.
    pub const KERNEL_AC: usize = 2;
    /// User, and alignment is checked.
    pub const USER_AC: usize = 3;
    pub const COUNT: usize = 4;
}
/// In a tag: accesses go the slow way (registers, ROM, pages with code, logged pages). A bit of the offset in a page, above those
/// that generated code leaves in to check an operand's alignment.
const SLOW: u64 = 1 << 11;
const PAGE: u64 = !0xfff;
const NONE: u64 = u64::MAX;

/// One page's translation. A tag is the page's linear address, or something that no page has.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TlbEntry {
    pub read: u64,
    pub write: u64,
    pub exec: u64,
    /// Host address less linear address.
    pub addend: u64,
}

impl TlbEntry {
    pub const EMPTY: Self = Self { read: NONE, write: NONE, exec: NONE, addend: 0 };

    /// Whether this translates an address for an access, on whichever way.
    #[inline]
    pub fn lets(&self, address: u64, access: Access) -> bool {
        let tag = match access {
            Access::Read => self.read,
            Access::Write => self.write,
            Access::Exec => self.exec,
        };
        tag & !SLOW == address & PAGE && tag != NONE
    }

    /// The page of a tag, if it is one.
    pub fn page_of(tag: u64) -> Option<u64> {
        (tag != NONE).then_some(tag & PAGE)
    }

    /// Leaves the translation, and makes writes go the slow way.
    pub fn write_slowly(&mut self) {
        if self.write != NONE {
            self.write |= SLOW;
        }
    }
}

/// A region that large pages are cached of: the bits of `mask` are those of `base`. A mask of 0 is all memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Large {
    base: u64,
    mask: u64,
}

impl Large {
    fn of(address: u64, size: u64) -> Self {
        Self { base: address & !(size - 1), mask: !(size - 1) }
    }

    pub fn has(self, address: u64) -> bool {
        address & self.mask == self.base
    }

    /// The smallest region that covers both.
    fn with(self, other: Self) -> Self {
        let mut mask = self.mask & other.mask;
        while (self.base ^ other.base) & mask != 0 {
            mask <<= 1;
        }
        Self { base: self.base & mask, mask }
    }
}

/// Which entries of a translation cache are in use.
#[derive(Clone, Default)]
pub(crate) struct Filled {
    /// By entry: it was filled since it was last emptied.
    used: [u64; TLB_SIZE / 64],
    /// By entry: the page is global, a new CR3 leaves it.
    global: [u64; TLB_SIZE / 64],
}

impl Filled {
    fn note(&mut self, index: usize, global: bool) {
        let (word, bit) = (index / 64, 1 << (index % 64));
        self.used[word] |= bit;
        if global {
            self.global[word] |= bit;
        } else {
            self.global[word] &= !bit;
        }
    }

    /// The entries in use, which are empty from now on; those of global pages only if asked for.
    pub fn take(&mut self, global: bool) -> impl Iterator<Item = usize> {
        self.used.iter_mut().zip(&self.global).enumerate().flat_map(move |(word, (used, kept))| {
            let keep = if global { 0 } else { *kept };
            let mut bits = *used & !keep;
            *used &= keep;
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                bits &= bits - 1;
                Some(word * 64 + bit)
            })
        })
    }
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Exec,
}

/// A value that memory and registers hold.
pub(crate) trait Word: Copy + Into<u64> {
    const SIZE: u64;
    fn cut(v: u64) -> Self;
    /// # Safety
    /// `at` must be readable for the size.
    unsafe fn get(at: u64) -> Self;
    /// # Safety
    /// `at` must be writable for the size.
    unsafe fn put(at: u64, v: Self);
    /// Writes `n` times the same, upwards.
    ///
    /// # Safety
    /// `at` must be writable for `n` times the size.
    unsafe fn fill(at: u64, n: u64, v: Self);
}

macro_rules! word {
    ($t:ty, $size:literal, $load:literal, $store:literal, $class:ident, $fill:literal) => {
        impl Word for $t {
            const SIZE: u64 = $size;
            #[inline(always)]
            fn cut(v: u64) -> Self {
                v as $t
            }
            #[inline(always)]
            unsafe fn get(at: u64) -> Self {
                let v: $t;
                // One instruction, so that the access is as atomic as the guest's would be.
                // SAFETY: the caller says so.
                unsafe {
                    std::arch::asm!($load, out($class) v, in(reg) at, options(nostack, preserves_flags, readonly));
                }
                v
            }
            #[inline(always)]
            unsafe fn put(at: u64, v: Self) {
                // SAFETY: the caller says so.
                unsafe {
                    std::arch::asm!($store, in(reg) at, in($class) v, options(nostack, preserves_flags));
                }
            }
            #[inline(always)]
            unsafe fn fill(at: u64, n: u64, v: Self) {
                // The guest's own instruction. The direction flag is clear in Rust code.
                // SAFETY: the caller says so.
                unsafe {
                    std::arch::asm!(
                        $fill,
                        inout("rdi") at => _,
                        inout("rcx") n => _,
                        in("rax") v as u64,
                        options(nostack, preserves_flags)
                    );
                }
            }
        }
    };
}
word!(u8, 1, "mov {0}, byte ptr [{1}]", "mov byte ptr [{0}], {1}", reg_byte, "rep stosb");
word!(u16, 2, "mov {0:x}, word ptr [{1}]", "mov word ptr [{0}], {1:x}", reg, "rep stosw");
word!(u32, 4, "mov {0:e}, dword ptr [{1}]", "mov dword ptr [{0}], {1:e}", reg, "rep stosd");
word!(u64, 8, "mov {0:r}, qword ptr [{1}]", "mov qword ptr [{0}], {1:r}", reg, "rep stosq");

/// Whether `len` bytes are not all on one page.
pub(crate) fn crosses_page(address: u64, len: u64) -> bool {
    address & !PAGE > 0x1000 - len
}

impl Cpu {
    #[inline(always)]
    fn tlb_at(&self, address: u64) -> &TlbEntry {
        let index = (address >> 12) as usize & (TLB_SIZE - 1);
        // SAFETY: `mmu` is one of four contexts and the index is masked.
        unsafe { self.tlb.get_unchecked(self.mmu).get_unchecked(index) }
    }

    /// Reads from a linear address.
    #[inline(always)]
    pub(crate) fn load<T: Word>(&mut self, address: u64) -> R<T> {
        let entry = self.tlb_at(address);
        if entry.read == address.wrapping_add(T::SIZE - 1) & PAGE && entry.read == address & PAGE {
            // SAFETY: the entry translates this page to RAM that the processor keeps alive.
            return Ok(unsafe { T::get(address.wrapping_add(entry.addend)) });
        }
        self.load_slow(address, T::SIZE as u32).map(T::cut)
    }

    /// Writes to a linear address.
    #[inline(always)]
    pub(crate) fn store<T: Word>(&mut self, address: u64, value: T) -> R<()> {
        let entry = self.tlb_at(address);
        if entry.write == address.wrapping_add(T::SIZE - 1) & PAGE && entry.write == address & PAGE {
            // SAFETY: as above, and the page may be written without being noted.
            unsafe { T::put(address.wrapping_add(entry.addend), value) };
            return Ok(());
        }
        self.store_slow(address, T::SIZE as u32, value.into())
    }

    /// Where `len` bytes lie in this process, when they are plain RAM in one page that the fast way may use.
    #[inline(always)]
    pub(crate) fn direct(&mut self, address: u64, len: u64, write: bool) -> Option<u64> {
        let entry = self.tlb_at(address);
        let tag = if write { entry.write } else { entry.read };
        let page = address & PAGE;
        (tag == page && address.wrapping_add(len - 1) & PAGE == page).then(|| address.wrapping_add(entry.addend))
    }

    /// Reads what will be written: a fault is a write's.
    pub(crate) fn load_for_write<T: Word>(&mut self, address: u64) -> R<T> {
        self.check_alignment(address, T::SIZE)?;
        self.probe_write(address, T::SIZE)?;
        self.load(address)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow(&mut self, address: u64, size: u32) -> R<u64> {
        self.check_alignment(address, size.into())?;
        let room = 0x1000 - (address & 0xfff);
        if room >= size.into() {
            let physical = self.translate(address, Access::Read)?;
            self.watch(address, size, false)?;
            self.memory_sees_time(physical, size)?;
            return Ok(self.physical_load(physical, size));
        }
        let first = self.translate(address, Access::Read)?;
        let second = self.translate((address & PAGE).wrapping_add(0x1000), Access::Read)?;
        self.watch(address, size, false)?;
        self.memory_sees_time(first, room as u32)?;
        self.memory_sees_time(second, size - room as u32)?;
        let mut value = 0;
        for i in 0..u64::from(size) {
            let at = if i < room { first + i } else { second + (i - room) };
            value |= self.physical_load(at, 1) << (8 * i);
        }
        Ok(value)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow(&mut self, address: u64, size: u32, value: u64) -> R<()> {
        self.check_alignment(address, size.into())?;
        let room = 0x1000 - (address & 0xfff);
        let first = self.translate(address, Access::Write)?;
        if room >= size.into() {
            self.watch(address, size, true)?;
            self.before_code_write(address, first, size)?;
            self.memory_sees_time(first, size)?;
            self.physical_store(first, size, value);
            self.after_code_write(first, size);
            return Ok(());
        }
        let next = (address & PAGE).wrapping_add(0x1000);
        let second = self.translate(next, Access::Write)?;
        self.watch(address, size, true)?;
        self.before_code_write(address, first, room as u32)?;
        self.before_code_write(next, second, size - room as u32)?;
        self.memory_sees_time(first, room as u32)?;
        self.memory_sees_time(second, size - room as u32)?;
        for i in 0..u64::from(size) {
            let at = if i < room { first + i } else { second + (i - room) };
            self.physical_store(at, 1, value >> (8 * i));
        }
        self.after_code_write(first, room as u32);
        self.after_code_write(second, size - room as u32);
        Ok(())
    }

    /// Fails as a write would, without writing.
    pub(crate) fn probe_write(&mut self, address: u64, len: u64) -> R<()> {
        let physical = self.translate(address, Access::Write)?;
        let room = 0x1000 - (address & 0xfff);
        if len > room {
            let next = (address & PAGE).wrapping_add(0x1000);
            let second = self.translate(next, Access::Write)?;
            self.watch(address, len as u32, true)?;
            self.before_code_write(address, physical, room as u32)?;
            return self.before_code_write(next, second, (len - room) as u32);
        }
        self.watch(address, len as u32, true)?;
        self.before_code_write(address, physical, len as u32)?;
        Ok(())
    }

    /// Whether a byte of memory may be written and is no device's.
    pub(crate) fn is_ram(&mut self, address: u64) -> bool {
        let Ok(physical) = self.translate(address, Access::Write) else { return false };
        self.apic_page != physical & PAGE && self.range_of(physical).is_some()
    }

    /// Where `len` bytes that may be written lie in this process, and their physical address, when they are RAM in one page whose
    /// writes must be told of, by [`tell_write`](Self::tell_write). What works on them there is as atomic as on the host.
    pub(crate) fn told_ram(&mut self, address: u64, len: u64) -> Option<(u64, u64)> {
        if self.checker.journal.is_some() || address.wrapping_add(len - 1) & PAGE != address & PAGE {
            return None;
        }
        let physical = self.translate(address, Access::Write).ok()?;
        if self.apic_page == physical & PAGE {
            return None;
        }
        let range = self.range_of(physical).filter(|r| !r.readonly && r.last - physical >= len - 1)?;
        Some((range.host + (physical - range.start), physical))
    }

    /// Tells of a write to RAM whoever collects, or has code there.
    pub(crate) fn tell_write(&mut self, physical: u64, len: u32) {
        if let Some(r) = self.range_of(physical) {
            r.block.mark_dirty(r.offset + (physical - r.start), len.into());
        }
        self.after_code_write(physical, len);
    }

    /// Reads bytes, at any alignment.
    pub(crate) fn load_bytes(&mut self, address: u64, to: &mut [u8]) -> R<()> {
        if self.checks_alignment() {
            return self.at_any_alignment(|cpu| cpu.load_bytes(address, to));
        }
        if let Some(host) = self.direct(address, to.len() as u64, false) {
            // SAFETY: plain RAM of this length, kept alive; the destination is ours.
            unsafe { std::ptr::copy_nonoverlapping(host as *const u8, to.as_mut_ptr(), to.len()) };
            return Ok(());
        }
        let mut at = 0;
        while at < to.len() {
            let n = if to.len() - at >= 8 { 8 } else { 1 };
            let value = if n == 8 {
                self.load::<u64>(address.wrapping_add(at as u64))?
            } else {
                u64::from(self.load::<u8>(address.wrapping_add(at as u64))?)
            };
            to[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
            at += n;
        }
        Ok(())
    }

    /// Writes bytes, all or none, at any alignment.
    pub(crate) fn store_bytes(&mut self, address: u64, from: &[u8]) -> R<()> {
        if self.checks_alignment() {
            return self.at_any_alignment(|cpu| cpu.store_bytes(address, from));
        }
        if let Some(host) = self.direct(address, from.len() as u64, true) {
            // SAFETY: plain RAM of this length, kept alive.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), host as *mut u8, from.len()) };
            return Ok(());
        }
        self.probe_write(address, from.len() as u64)?;
        let mut at = 0;
        while at < from.len() {
            let left = from.len() - at;
            let address = address.wrapping_add(at as u64);
            if left >= 8 {
                let mut b = [0; 8];
                b.copy_from_slice(&from[at..at + 8]);
                self.store::<u64>(address, u64::from_le_bytes(b))?;
                at += 8;
            } else if left >= 4 {
                let mut b = [0; 4];
                b.copy_from_slice(&from[at..at + 4]);
                self.store::<u32>(address, u32::from_le_bytes(b))?;
                at += 4;
            } else {
                self.store::<u8>(address, from[at])?;
                at += 1;
            }
        }
        Ok(())
    }

    /// Runs `f` with a supervisor's implicit access: descriptor tables, task state.
    pub(crate) fn as_supervisor<T>(&mut self, f: impl FnOnce(&mut Self) -> R<T>) -> R<T> {
        let old = std::mem::replace(&mut self.mmu, mmu::KERNEL);
        let result = f(self);
        self.mmu = old;
        result
    }

    /// The physical address of a linear one, or the page fault (or `#GP`/`#SS` for an address that is not canonical).
    pub(crate) fn translate(&mut self, address: u64, access: Access) -> R<u64> {
        let index = (address >> 12) as usize & (TLB_SIZE - 1);
        if self.tlb[self.mmu][index].lets(address, access) {
            return Ok(self.tlb_physical[self.mmu][index] | address & 0xfff);
        }
        self.fill(address, access)
    }

    fn fill(&mut self, address: u64, access: Access) -> R<u64> {
        if self.bits == 2 && ((address as i64) << 16 >> 16) as u64 != address {
            // Accesses through the stack segment should give #SS: the caller that knows corrects it.
            return Err(self.raise(vector::GP, Some(0)));
        }
        let address = if self.efer & cr::EFER_LMA == 0 { address & 0xffff_ffff } else { address };
        let journaling = self.checker.journal.is_some();
        let index = (address >> 12) as usize & (TLB_SIZE - 1);
        let aside = if journaling {
            let mut aside = self.spaces.peek(self.mmu, address, access);
            aside.iter_mut().for_each(|(entry, _)| entry.write_slowly());
            aside
        } else {
            self.spaces.take(self.mmu, address, access)
        };
        if let Some((entry, physical)) = aside {
            self.tlb[self.mmu][index] = entry;
            self.tlb_physical[self.mmu][index] = physical;
            self.filled[self.mmu].note(index, false);
            return Ok(physical | address & 0xfff);
        }
        let checked = self.mmu == mmu::USER_AC;
        let user = self.mmu == mmu::USER || checked;
        let walk = self.walk(address, access, user, self.mmu == mmu::KERNEL_AC)?;
        let page = address & PAGE;
        let physical_page = walk.physical & PAGE;
        let apic = self.apic_page == physical_page;
        let watched = if checked || self.is_watched(page) { SLOW } else { 0 };
        let range = if apic { None } else { self.range_of(physical_page) };
        let (addend, slow, write) = match range {
            Some(r) => {
                let host = r.host + (physical_page - r.start);
                let write = if r.readonly || journaling {
                    Some(SLOW)
                } else if !r.block.is_logged_for_others() {
                    Some(watched)
                } else if access == Access::Write && walk.writable_now {
                    // Before the first write, and before the entry is there that lets others pass unseen.
                    r.block.unseen_writes().set((r.offset + (physical_page - r.start)) / PAGE_SIZE, 1);
                    Some(watched)
                } else {
                    None
                };
                let code = self.machine.has_code(host >> 12);
                (host.wrapping_sub(page), 0, if code { Some(SLOW) } else { write })
            }
            None => (0, SLOW, Some(SLOW)),
        };
        if walk.large != 0 {
            self.note_large(Large::of(address, walk.large));
        }
        let entry = &mut self.tlb[self.mmu][index];
        self.filled[self.mmu].note(index, walk.global);
        let same = |tag: u64| tag != NONE && tag & !SLOW == page;
        if !(same(entry.read) || same(entry.write) || same(entry.exec))
            || self.tlb_physical[self.mmu][index] != physical_page
        {
            *entry = TlbEntry::EMPTY;
        }
        self.tlb_physical[self.mmu][index] = physical_page;
        entry.addend = addend;
        if walk.readable {
            entry.read = page | slow | watched;
        }
        if walk.writable_now
            && let Some(how) = write
        {
            entry.write = page | how;
        }
        if walk.executable {
            entry.exec = page | slow;
        }
        Ok(walk.physical)
    }

    /// The memory range that a physical address is in.
    #[inline]
    pub(crate) fn range_of(&mut self, physical: u64) -> Option<&RamRange> {
        let last = self.last_range;
        if self.ranges.get(last).is_some_and(|r| r.start <= physical && physical <= r.last) {
            return self.ranges.get(last);
        }
        let at = self.ranges.partition_point(|r| r.last < physical);
        let found = self.ranges.get(at).filter(|r| r.start <= physical);
        if found.is_some() {
            self.last_range = at;
        }
        found
    }

    /// Reads physical memory or registers; within a page.
    pub(crate) fn physical_load(&mut self, physical: u64, size: u32) -> u64 {
        if self.apic_page == physical & PAGE {
            return self.apic_load(physical, size);
        }
        if let Some(r) = self.range_of(physical)
            && r.last - physical >= u64::from(size - 1)
        {
            let host = r.host + (physical - r.start);
            // SAFETY: inside the range, whose block is kept alive.
            return unsafe {
                match size {
                    1 => u8::get(host).into(),
                    2 => u16::get(host).into(),
                    4 => u32::get(host).into(),
                    _ => u64::get(host),
                }
            };
        }
        self.outside(|cpu| match cpu.machine.memory.load(physical, size) {
            Ok(value) => value,
            Err(_) => cpu.machine.memory.unassigned_value(size),
        })
    }

    /// Writes physical memory or registers; within a page. Notes the write for whoever collects.
    pub(crate) fn physical_store(&mut self, physical: u64, size: u32, value: u64) {
        if self.apic_page == physical & PAGE {
            return self.apic_store(physical, size, value);
        }
        let mut journal = self.checker.journal.take();
        if let Some(r) = self.range_of(physical)
            && r.last - physical >= u64::from(size - 1)
        {
            if r.readonly {
                self.checker.journal = journal;
                return;
            }
            let host = r.host + (physical - r.start);
            if let Some(journal) = &mut journal {
                journal.note(host, size);
            }
            // SAFETY: inside the range, whose block is kept alive.
            unsafe {
                match size {
                    1 => u8::put(host, value as u8),
                    2 => u16::put(host, value as u16),
                    4 => u32::put(host, value as u32),
                    _ => u64::put(host, value),
                }
            }
            // After the write: whoever takes the bit then reads the new bytes.
            r.block.mark_dirty(r.offset + (physical - r.start), size.into());
            self.checker.journal = journal;
            return;
        }
        self.checker.journal = journal;
        // Where nothing answers, writes are dropped.
        self.outside(|cpu| cpu.machine.memory.store(physical, size, value).unwrap_or(()));
    }

    /// Runs device code: the processor counts as standing, and what it was asked meanwhile is done after.
    pub(crate) fn outside<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        if let Some(journal) = &mut self.checker.journal {
            journal.outside = true;
        }
        if self.link.pending() & request::CODE != 0 {
            self.protect_found_early();
        }
        let was = self.link.in_guest.swap(0, Ordering::SeqCst);
        if self.counting.on {
            self.account();
        }
        let result = f(self);
        if was != 0 {
            self.enter_guest();
        }
        if self.link.pending() & request::FLUSH != 0 {
            self.reload_map();
        }
        result
    }

    fn apic_load(&mut self, physical: u64, size: u32) -> u64 {
        let (offset, shift) = ((physical & 0xff0) as u32, (physical & 3) * 8);
        let value = self.outside(|cpu| cpu.platform.read_apic(offset));
        let value = u64::from(value) >> shift;
        if size >= 4 { value } else { value & ((1 << (size * 8)) - 1) }
    }

    fn apic_store(&mut self, physical: u64, size: u32, value: u64) {
        // Registers are 32 bits wide and take only such writes (Intel SDM volume 3, 11.4.1).
        if size == 4 && physical & 15 == 0 {
            self.outside(|cpu| cpu.platform.write_apic((physical & 0xff0) as u32, value as u32));
        }
    }

    /// Takes the memory map anew and forgets all translations.
    pub(crate) fn reload_map(&mut self) {
        self.link.clear(request::FLUSH);
        let view = self.machine.memory.view();
        self.old_ranges.push(std::mem::replace(&mut self.ranges, ram_ranges(&view)));
        drop(view);
        self.last_range = 0;
        self.a20_mask = self.machine.a20_mask();
        let base = self.platform.apic_base();
        // Enabled and not in x2APIC mode.
        self.apic_page = if base & 0xc00 == 0x800 { base & 0xf_ffff_f000 } else { NONE };
        self.flush_tlb();
    }

    /// Forgets all translations.
    pub(crate) fn flush_tlb(&mut self) {
        self.spaces.clear();
        self.flush_current();
    }

    /// Forgets the translations of the current address space, and of global pages.
    fn flush_current(&mut self) {
        self.spaces.clear_current();
        for (tlb, filled) in self.tlb.iter_mut().zip(&mut self.filled) {
            filled.take(true).for_each(|i| tlb[i] = TlbEntry::EMPTY);
        }
        self.large = None;
        self.new_generation();
    }

    /// Forgets what a new CR3 makes invalid: translations of the current address space's pages that are not global.
    pub(crate) fn flush_tlb_but_global(&mut self) {
        if self.cr4 & cr::CR4_PGE == 0 {
            return self.flush_current();
        }
        self.spaces.clear_current();
        for (tlb, filled) in self.tlb.iter_mut().zip(&mut self.filled) {
            filled.take(false).for_each(|i| tlb[i] = TlbEntry::EMPTY);
        }
        self.new_generation();
    }

    /// Forgets the translation of one page, in the current address space or global.
    pub(crate) fn flush_page(&mut self, address: u64) {
        if self.large.is_some_and(|l| l.has(address)) {
            return self.flush_current();
        }
        self.spaces.clear_page(address);
        let index = (address >> 12) as usize & (TLB_SIZE - 1);
        for tlb in &mut self.tlb {
            tlb[index] = TlbEntry::EMPTY;
        }
        self.new_generation();
    }

    /// Drops write permission of host pages everywhere: they have code now. Gives those that could be written until now.
    pub(crate) fn protect_host_pages(&mut self, is_one: impl Fn(u64) -> bool) -> Vec<u64> {
        self.forget_cells();
        let mut open = vec![];
        for entry in self.tlb.iter_mut().flatten().chain(self.spaces.entries()) {
            let page = entry.write.wrapping_add(entry.addend) >> 12;
            if entry.write != NONE && entry.write & SLOW == 0 && is_one(page) {
                entry.write_slowly();
                open.push(page);
            }
        }
        open
    }

    /// Drops what makes writes to a page go the slow way, if that is in the translation cache: the next one looks whether they still
    /// have to.
    pub(crate) fn forget_slow_write(&mut self, address: u64) {
        let entry = &mut self.tlb[self.mmu][(address >> 12) as usize & (TLB_SIZE - 1)];
        if entry.write == address & PAGE | SLOW {
            entry.write = NONE;
        }
    }

    /// Drops write translations of a host page whose writes need not be noted any more.
    pub(crate) fn unprotect_host_page(&mut self, host_page: u64) {
        for entry in self.tlb.iter_mut().flatten().chain(self.spaces.entries()) {
            if entry.write != NONE && (entry.write & PAGE).wrapping_add(entry.addend) >> 12 == host_page {
                entry.write = NONE;
            }
        }
    }

    /// Remembers that a page larger than 4 KiB is cached: one region that covers all of them.
    pub(crate) fn note_large(&mut self, region: Large) {
        self.large = Some(self.large.map_or(region, |known| known.with(region)));
    }

    /// Records an exception.
    #[cold]
    pub(crate) fn raise(&mut self, vector: u8, code: Option<u32>) -> Fault {
        self.reason = Reason::Exception { vector, code, address: 0 };
        Fault
    }

    /// `#GP(0)`.
    #[cold]
    pub(crate) fn gp(&mut self) -> Fault {
        self.raise(vector::GP, Some(0))
    }

    /// `#UD`.
    #[cold]
    pub(crate) fn ud(&mut self) -> Fault {
        self.raise(vector::UD, None)
    }

    /// Chooses privilege and width from the registers. To be called whenever CS, SS, CPL, CR0, CR4, EFER or AC changes.
    pub(crate) fn update_mode(&mut self) {
        let long = self.efer & cr::EFER_LMA != 0;
        let cs = &self.segs[seg::CS];
        self.bits = if long && cs.flags & crate::state::attr::L != 0 {
            2
        } else {
            u8::from(cs.flags & crate::state::attr::DB != 0)
        };
        self.mmu = if self.cpl == 3 {
            let checked = self.cr0 & cr::CR0_AM != 0 && self.rest & flag::AC != 0;
            if checked { mmu::USER_AC } else { mmu::USER }
        } else if self.cr4 & cr::CR4_SMAP != 0 && self.rest & flag::AC != 0 {
            mmu::KERNEL_AC
        } else {
            mmu::KERNEL
        };
    }
}
