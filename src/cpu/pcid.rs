//! Translations of address spaces that are not the current one: process-context identifiers (Intel SDM volume 3, 4.10).
//!
//! The translation cache holds one address space and the global pages, so that generated code need not look at identifiers. What was
//! used of it is put aside here when CR3 gets another identifier. Nothing is put back at once: what misses in the cache is looked for
//! here before the page tables are walked, so that a change of the address space costs what is used of it. An entry is in one of both
//! places only.

use crate::{
    Cpu,
    fault::R,
    mem::{Access, Large, TLB_SIZE, TlbEntry, mmu},
    state::cr,
    system::canonical,
};

/// Address spaces that have something put aside at most; the one that was left first goes first. (Linux uses six identifiers, twice if
/// kernel and programs have tables of their own.)
const SPACES: usize = 16;

/// The identifier's bits in CR3.
const PCID: u64 = 0xfff;

/// An entry of the translation cache, and its physical page.
#[derive(Clone, Copy)]
struct Aside {
    entry: TlbEntry,
    physical: u64,
}

/// What is put aside of one privilege context.
struct Table {
    used: [u64; TLB_SIZE / 64],
    entries: Box<[Aside; TLB_SIZE]>,
}

impl Table {
    fn new() -> Self {
        let empty = Aside { entry: TlbEntry::EMPTY, physical: 0 };
        Self { used: [0; TLB_SIZE / 64], entries: Box::new([empty; TLB_SIZE]) }
    }

    fn set(&mut self, index: usize, aside: Aside) {
        self.used[index / 64] |= 1 << (index % 64);
        self.entries[index] = aside;
    }

    /// Whether there is something at `index`; from now on there is not.
    fn clear(&mut self, index: usize) -> bool {
        let (word, bit) = (&mut self.used[index / 64], 1 << (index % 64));
        std::mem::replace(word, *word & !bit) & bit != 0
    }

    fn has(&self, index: usize) -> bool {
        self.used[index / 64] & 1 << (index % 64) != 0
    }

    fn used(&mut self) -> impl Iterator<Item = &mut TlbEntry> {
        let used = self.used;
        let is_used = move |i: usize| used[i / 64] & 1 << (i % 64) != 0;
        self.entries.iter_mut().enumerate().filter(move |(i, _)| is_used(*i)).map(|(_, a)| &mut a.entry)
    }
}

/// What is put aside of an address space; none of it is of a global page.
#[derive(Default)]
struct Space {
    pcid: u64,
    tables: [Option<Table>; mmu::COUNT],
    /// As [`Cpu::large`].
    large: Option<Large>,
}

impl Space {
    fn clear(&mut self) {
        self.tables.iter_mut().flatten().for_each(|t| t.used = [0; TLB_SIZE / 64]);
        self.large = None;
    }

    /// Forgets a page.
    fn clear_page(&mut self, address: u64) {
        let index = (address >> 12) as usize & (TLB_SIZE - 1);
        // A large page may be there in pieces: then all of it goes.
        if self.large.is_some_and(|l| l.has(address)) {
            return self.clear();
        }
        for table in self.tables.iter_mut().flatten() {
            table.clear(index);
        }
    }
}

/// What is put aside, the current address space at the end; nothing if identifiers are not in use.
#[derive(Default)]
pub(crate) struct Spaces(Vec<Space>);

impl Spaces {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(Space::clear);
    }

    /// Forgets what is aside of the current address space.
    pub fn clear_current(&mut self) {
        if let Some(space) = self.0.last_mut() {
            space.clear();
        }
    }

    /// Forgets a page of the current address space.
    pub fn clear_page(&mut self, address: u64) {
        if let Some(space) = self.0.last_mut() {
            space.clear_page(address);
        }
    }

    /// All entries, for whoever changes what a host page may be used for.
    pub fn entries(&mut self) -> impl Iterator<Item = &mut TlbEntry> {
        self.0.iter_mut().flat_map(|s| s.tables.iter_mut().flatten()).flat_map(Table::used)
    }

    /// Takes the entry of a page of the current address space, if it is there and lets the access through.
    #[inline]
    pub fn take(&mut self, mmu: usize, address: u64, access: Access) -> Option<(TlbEntry, u64)> {
        let table = self.0.last_mut()?.tables[mmu].as_mut()?;
        let index = (address >> 12) as usize & (TLB_SIZE - 1);
        let aside = table.entries[index];
        (aside.entry.lets(address, access) && table.clear(index)).then_some((aside.entry, aside.physical))
    }

    /// The same, and leaves it there.
    pub fn peek(&self, mmu: usize, address: u64, access: Access) -> Option<(TlbEntry, u64)> {
        let table = self.0.last()?.tables[mmu].as_ref()?;
        let index = (address >> 12) as usize & (TLB_SIZE - 1);
        let aside = table.entries[index];
        (aside.entry.lets(address, access) && table.has(index)).then_some((aside.entry, aside.physical))
    }

    /// The address space of an identifier, which becomes the current one.
    fn make_current(&mut self, pcid: u64) -> &mut Space {
        let space = match self.0.iter().position(|s| s.pcid == pcid) {
            Some(at) => self.0.remove(at),
            None if self.0.len() < SPACES => Space { pcid, ..Space::default() },
            None => {
                let mut oldest = self.0.remove(0);
                oldest.clear();
                Space { pcid, ..oldest }
            }
        };
        self.0.push(space);
        let last = self.0.len() - 1;
        &mut self.0[last]
    }
}

impl Cpu {
    /// The identifier of the current address space.
    fn pcid(&self) -> u64 {
        if self.cr4 & cr::CR4_PCIDE != 0 { self.cr3 & PCID } else { 0 }
    }

    /// Sets CR3. With `keep` what is cached of the new address space stays.
    pub(crate) fn set_cr3(&mut self, value: u64, keep: bool) {
        let old = self.pcid();
        self.cr3 = value;
        let new = self.pcid();
        if old == new {
            if !keep {
                self.flush_tlb_but_global();
            }
            return;
        }
        let space = self.spaces.make_current(old);
        space.large = self.large;
        for (mmu, filled) in self.filled.iter_mut().enumerate() {
            for index in filled.take(self.cr4 & cr::CR4_PGE == 0) {
                let entry = std::mem::replace(&mut self.tlb[mmu][index], TlbEntry::EMPTY);
                let aside = Aside { entry, physical: self.tlb_physical[mmu][index] };
                space.tables[mmu].get_or_insert_with(Table::new).set(index, aside);
            }
        }
        let space = self.spaces.make_current(new);
        if !keep {
            space.clear();
        }
        // Global pages are still there.
        if let Some(large) = space.large {
            self.note_large(large);
        }
        self.new_generation();
    }

    /// INVPCID: `kind` is the register operand, the other two are the descriptor.
    pub(crate) fn invpcid(&mut self, kind: u64, pcid: u64, address: u64) -> R<()> {
        let disabled = self.cr4 & cr::CR4_PCIDE == 0;
        let bad =
            kind > 3 || pcid & !PCID != 0 || kind < 2 && disabled && pcid != 0 || kind == 0 && !canonical(address);
        if bad {
            return Err(self.gp());
        }
        let current = pcid == self.pcid();
        let other = |s: &&mut Space| s.pcid == pcid;
        match kind {
            0 if current => self.flush_page(address),
            0 => self.spaces.0.iter_mut().filter(other).for_each(|s| s.clear_page(address)),
            1 if current => self.flush_tlb_but_global(),
            1 => self.spaces.0.iter_mut().filter(other).for_each(Space::clear),
            2 => self.flush_tlb(),
            _ => {
                self.spaces.clear();
                self.flush_tlb_but_global();
            }
        }
        Ok(())
    }
}
