//! Decoded code: blocks of operations, found by where their bytes lie in the host, so that mappings share them.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
};

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use crate::{
    Cpu, Engine, decode,
    fault::R,
    host::Stub,
    jit::Translation,
    mem::{Access, TLB_SIZE},
    platform::CodeNews,
    state::{gpr, seg},
};

/// What an operation's handler returns: [`END`], [`FAULT`], or the address of the block to go on with.
pub(crate) type Next = usize;
/// The block is over and `RIP` is set.
pub(crate) const END: Next = 0;
/// The instruction did not complete.
pub(crate) const FAULT: Next = 1;

/// Executes one operation and, by a tail call, those that follow.
pub(crate) type Handler = unsafe fn(*mut Cpu, *const Op) -> Next;

/// One instruction, ready to run.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Op {
    pub run: Handler,
    /// Immediate operand, or the address of a [`Slow`].
    pub imm: u64,
    pub disp: i64,
    /// Offsets in bytes of the destination and source in the general registers.
    pub d: u8,
    pub s: u8,
    pub base: u8,
    pub index: u8,
    pub scale: u8,
    /// Address form: 0 is 64-bit without a segment, see [`form`].
    pub form: u8,
    pub seg: u8,
    pub spare: u8,
    /// Where the instruction begins and ends, from the block's start.
    pub at: u16,
    pub next: u16,
}

/// Bits of [`Op::form`].
pub(crate) mod form {
    pub const MASK32: u8 = 1;
    pub const MASK16: u8 = 2;
    /// Add the segment's base; outside 64-bit mode check its limit and rights.
    pub const SEGMENT: u8 = 4;
}

/// An instruction that takes the long way.
pub(crate) struct Slow {
    pub insn: Instruction,
    pub stub: Option<Stub>,
}

/// A run of instructions that ends with a jump, or where the page does.
pub(crate) struct Block {
    pub ops: Vec<Op>,
    /// Owners of what `imm` of some operations points to.
    #[allow(clippy::vec_box, reason = "operations point at them: they may not move when the list grows")]
    pub slow: Vec<Box<Slow>>,
    pub bytes: u16,
    /// Instructions.
    pub count: u16,
    /// The host page, and the second one for an instruction that crosses into it; 0 if none does.
    pub page: u64,
    /// See `page`.
    pub second: u64,
    /// Blocks of the same page that follow: by the jump, and without it.
    pub links: [usize; 2],
    /// The instructions' bytes, of a block that may be translated.
    pub code: Box<[u8]>,
    /// How often it was interpreted, until it is translated.
    pub heat: u16,
    /// Machine code made of it: one for each address it is mapped at and privilege it runs with.
    #[allow(clippy::vec_box, reason = "the code has their addresses")]
    pub translations: Vec<Box<Translation>>,
}

impl Block {
    /// Bytes that it takes of the host, with its place in the table and one translation's record.
    pub fn weight(&self) -> usize {
        // Of each piece of memory from the host's allocator.
        const OVERHEAD: usize = 16;
        let slow = self.slow.len() * (size_of::<Slow>() + size_of::<Box<Slow>>() + OVERHEAD);
        let own = size_of::<Self>() + size_of::<Translation>() + 6 * OVERHEAD;
        own + self.ops.len() * size_of::<Op>() + slow + self.code.len()
    }

    /// A block without instructions.
    pub fn empty() -> Self {
        Self {
            ops: vec![],
            slow: vec![],
            bytes: 0,
            count: 0,
            page: 0,
            second: 0,
            links: [0; 2],
            code: Box::default(),
            heat: 0,
            translations: vec![],
        }
    }
}

impl Block {
    /// Whether this is an instruction that writes SS as MOV and POP do.
    pub fn loads_stack_segment(&self) -> bool {
        let last = self.slow.last().map(|s| &s.insn);
        last.is_some_and(|i| {
            matches!(i.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
                && i.op0_kind() == OpKind::Register
                && i.op0_register() == Register::SS
        })
    }

    /// The machine code for an address and a privilege context.
    pub fn translation(&self, rip: u64, mmu: usize) -> Option<*const u8> {
        self.translations.iter().find(|t| t.rip == rip && t.mmu == mmu).map(|t| t.entry)
    }
}

impl Block {
    /// Whether there is machine code for a page's address and a privilege context that has no cells.
    pub fn needs_quickening(&self, page: u64, mmu: usize) -> bool {
        let mut all = self.translations.iter().filter(|t| t.rip & !0xfff == page && t.mmu == mmu);
        all.next().is_some_and(|t| !t.is_quick())
    }
}

/// The blocks of one host page.
#[derive(Default)]
pub(crate) struct CodePage {
    blocks: HashMap<u32, Box<Block>, Fast>,
    /// Which of its 64-byte pieces hold decoded bytes.
    pieces: u64,
    /// Pages whose last instruction ends here.
    neighbours: Vec<u64>,
    /// Which 64-byte pieces are parts of loops.
    loops: u64,
    /// What its blocks take of the host, in bytes.
    weight: usize,
}

impl CodePage {
    /// Notes that a loop lies there.
    pub fn quicken(&mut self, first: u64, last: u64) {
        self.loops |= pieces(first, last - first + 1);
    }

    /// Whether a loop lies there.
    pub fn is_quick(&self, at: u64) -> bool {
        self.loops & pieces(at, 1) != 0
    }

    /// What its blocks take, counted anew.
    #[cfg(test)]
    pub fn weigh(&self) -> usize {
        self.blocks.values().map(|block| block.weight()).sum()
    }

    /// The blocks of a width of code that begin there.
    pub fn blocks_between(&self, first: u64, last: u64, bits: u8) -> impl Iterator<Item = &Block> {
        let width = u32::from(bits) << 12;
        let keys = (first as u32 | width)..=(last as u32 | width);
        self.blocks.iter().filter(move |(k, _)| keys.contains(k)).map(|(_, b)| &**b)
    }
}

/// A cheap hash for addresses.
#[derive(Default, Clone, Copy)]
pub(crate) struct Mix(u64);
pub(crate) type Fast = BuildHasherDefault<Mix>;

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u64(b.into()));
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(v.into());
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

pub(crate) const JUMP_CACHE: usize = 16384;

/// The last block found for a linear address.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Jump {
    pub address: u64,
    /// [`Cpu::jump_key`] when it was last right.
    pub key: u64,
    /// [`Cpu::block_key`]: while it is the same, the block has not been dropped.
    pub stable: u64,
    /// Where the block's bytes are in this process; 0 if they cross into another page.
    pub host: u64,
    pub block: *const Block,
    /// Its machine code, or code that leaves.
    pub code: *const u8,
    pub spare: [u64; 2],
}

impl Jump {
    pub const EMPTY: Self = Self {
        address: 0,
        key: u64::MAX,
        stable: u64::MAX,
        host: 0,
        block: std::ptr::null(),
        code: std::ptr::null(),
        spare: [0; 2],
    };
}

/// Longest block, in instructions; what bounds the time until a request is seen.
const MAX_OPS: usize = 64;

impl Cpu {
    /// Where the next instruction lies.
    #[inline(always)]
    pub(crate) fn code_address(&self) -> u64 {
        let rip = self.hot.gpr[gpr::RIP];
        if self.bits == 2 { rip } else { self.segs[seg::CS].base.wrapping_add(rip) & 0xffff_ffff }
    }

    /// What blocks found now are valid for: translations, privilege and width.
    #[inline(always)]
    pub(crate) fn jump_key(&self) -> u64 {
        self.generation << 4 | (self.mmu as u64) << 2 | self.code_mode()
    }

    /// What blocks that are not dropped stay valid for, as long as their page is mapped where it was.
    #[inline(always)]
    pub(crate) fn block_key(&self) -> u64 {
        self.code_generation << 4 | (self.mmu as u64) << 2 | self.code_mode()
    }

    /// The block at `RIP`, or the fault of fetching it. Nothing: its code cannot be kept.
    #[inline]
    pub(crate) fn find_block(&mut self) -> R<Option<*const Block>> {
        Ok(self.find_jump()?.map(|at| self.jumps[at].block))
    }

    /// Where in the cache of jumps the block at `RIP` is now.
    #[inline]
    pub(crate) fn find_jump(&mut self) -> R<Option<usize>> {
        let address = self.code_address();
        let key = self.jump_key();
        let at = (address ^ address >> 13) as usize & (JUMP_CACHE - 1);
        let slot = &self.jumps[at];
        if slot.address == address && slot.key == key {
            return Ok(Some(at));
        }
        if slot.address == address && slot.stable == self.block_key() && slot.host != 0 && self.is_translatable() {
            // Translations were forgotten since. Mostly they are the same again.
            let physical = self.translate(address, Access::Exec)?;
            let entry = &self.tlb[self.mmu][(address >> 12) as usize & (TLB_SIZE - 1)];
            if entry.exec == address & !0xfff && address.wrapping_add(entry.addend) == self.jumps[at].host {
                debug_assert_eq!(physical & 0xfff, address & 0xfff);
                self.jumps[at].key = self.jump_key();
                return Ok(Some(at));
            }
        }
        let Some(block) = self.find_block_slow(address)? else { return Ok(None) };
        let key = self.jump_key();
        // SAFETY: it was found just now.
        let b = unsafe { &*block };
        let code = b.translation(self.hot.gpr[gpr::RIP], self.mmu).unwrap_or(self.translator.leave());
        let host = if b.second == 0 { b.page << 12 | address & 0xfff } else { 0 };
        self.jumps[at] = Jump { address, key, stable: self.block_key(), host, block, code, spare: [0; 2] };
        Ok(Some(at))
    }

    fn find_block_slow(&mut self, address: u64) -> R<Option<*const Block>> {
        if self.bits != 2 && self.hot.gpr[gpr::RIP] > self.segs[seg::CS].limit.into() {
            return Err(self.gp());
        }
        if self.has_breakpoints_at(address) {
            return Ok(None);
        }
        let physical = self.translate(address, Access::Exec)?;
        let Some(range) = self.range_of(physical) else { return Ok(None) };
        if range.last - (physical & !0xfff) < 0xfff || range.start > physical & !0xfff {
            return Ok(None);
        }
        let host = range.host + (physical - range.start);
        if host & 0xfff != physical & 0xfff {
            return Ok(None);
        }
        let (ram, ram_offset) = (range.block.clone(), range.offset + (physical - range.start));
        let page = host >> 12;
        let key = (host & 0xfff) as u32 | u32::from(self.bits) << 12;
        let known = self.code.get(&page).and_then(|p| p.blocks.get(&key)).map(|b| (&raw const **b, b.second));
        if let Some((block, second)) = known {
            if second == 0 || self.second_page(address)? == Some(second) {
                return Ok(Some(block));
            }
            // The same page is mapped beside another one now.
            self.forget_page(page);
        }
        let mut bytes = [0u8; 512];
        let room = (0x1000 - (host & 0xfff) as usize).min(512);
        self.note_code_page(page, &ram, ram_offset);
        // SAFETY: within a page of a range whose block is kept alive. The guest may write meanwhile; any mix will do, its
        // writes are noted once the page is known to hold code, which it is by now.
        unsafe { std::ptr::copy_nonoverlapping(host as *const u8, bytes.as_mut_ptr(), room) };
        let mut second = 0;
        let mut block = match self.decode(&bytes[..room], MAX_OPS, false) {
            Some(block) => block,
            None if room == 512 => return Ok(None),
            None => {
                // The first instruction goes on in the next page.
                let Some(next) = self.second_page(address)? else { return Ok(None) };
                let physical = self.translate((address & !0xfff).wrapping_add(0x1000), Access::Exec)?;
                let Some(range) = self.range_of(physical) else { return Ok(None) };
                let (ram, offset) = (range.block.clone(), range.offset + (physical - range.start));
                self.note_code_page(next, &ram, offset);
                // SAFETY: as above, the first 15 bytes of the next page.
                unsafe {
                    std::ptr::copy_nonoverlapping((next << 12) as *const u8, bytes.as_mut_ptr().add(room), 15);
                }
                second = next;
                match self.decode(&bytes[..room + 15], 1, true) {
                    Some(block) => block,
                    None => return Ok(None),
                }
            }
        };
        block.page = page;
        block.second = second;
        if second == 0 && self.bits != 0 && self.engine != Engine::Interpreter {
            block.code = bytes[..usize::from(block.bytes)].into();
        }
        block.ops.shrink_to_fit();
        block.slow.shrink_to_fit();
        let weight = block.weight();
        if self.code_weight + weight > self.code_limit {
            self.forget_all_code();
        }
        self.code_weight += weight;
        let (first, len) = (host & 0xfff, u64::from(block.bytes));
        let entry = self.code.entry(page).or_default();
        entry.weight += weight;
        entry.pieces |= pieces(first, len.min(0x1000 - first));
        let pointer = &raw const **entry.blocks.entry(key).or_insert(Box::new(block));
        if second != 0 {
            let entry = self.code.entry(second).or_default();
            entry.pieces |= pieces(0, (first + len).saturating_sub(0x1000).max(1));
            entry.neighbours.push(page);
        }
        if self.tracer.is_some() {
            // SAFETY: it was put there just now.
            self.trace_code(address, &bytes[..usize::from(unsafe { (*pointer).bytes })]);
        }
        Ok(Some(pointer))
    }

    /// The host page that follows the one of `address`.
    fn second_page(&mut self, address: u64) -> R<Option<u64>> {
        let mut next = (address & !0xfff).wrapping_add(0x1000);
        if self.bits != 2 {
            next &= 0xffff_ffff;
        }
        let physical = self.translate(next, Access::Exec)?;
        Ok(self
            .range_of(physical)
            .filter(|r| r.last - physical >= 0xfff)
            .map(|r| r.host + (physical - r.start))
            .filter(|h| h & 0xfff == 0)
            .map(|h| h >> 12))
    }

    fn note_code_page(&mut self, page: u64, ram: &lockstep_memory::RamBlock, offset: u64) {
        if let Entry::Vacant(entry) = self.code.entry(page) {
            entry.insert(CodePage::default());
            let link = self.link.clone();
            self.machine.add_code(&link, page, ram, offset & !0xfff);
            self.protect_host_pages(|p| p == page);
        }
    }

    /// Decodes up to `max` instructions. Nothing: the first one is not whole. With `whole`, what is not whole is invalid.
    fn decode(&mut self, bytes: &[u8], max: usize, whole: bool) -> Option<Block> {
        let bitness = [16, 32, 64][usize::from(self.bits)];
        let mut decoder = Decoder::with_ip(bitness, bytes, 0, DecoderOptions::NONE);
        let mut block = Block::empty();
        let mut insn = Instruction::default();
        loop {
            let at = decoder.position();
            if at >= bytes.len() {
                break;
            }
            decoder.decode_out(&mut insn);
            if insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes && !whole {
                break;
            }
            if !self.features.has(&insn) {
                decode::without_feature(&mut insn);
            }
            let pushed = decode::push(self, &mut block, &insn, at, decoder.position());
            if pushed == decode::Pushed::Before {
                break;
            }
            block.count += 1;
            block.bytes = decoder.position() as u16;
            if pushed == decode::Pushed::Ends {
                return Some(block);
            }
            if block.ops.len() >= max {
                break;
            }
        }
        if block.ops.is_empty() {
            return None;
        }
        decode::finish(&mut block, self.bits == 2);
        Some(block)
    }

    /// Decodes the single instruction at `RIP` without keeping it.
    pub(crate) fn decode_one(&mut self) -> R<Block> {
        let address = self.code_address();
        if self.bits != 2 && self.hot.gpr[gpr::RIP] > self.segs[seg::CS].limit.into() {
            return Err(self.gp());
        }
        let room = (0x1000 - (address & 0xfff) as usize).min(15);
        let mut bytes = [0; 15];
        let fetch = |cpu: &mut Self, address: u64, to: &mut [u8]| -> R<()> {
            let physical = cpu.translate(address, Access::Exec)?;
            for (i, b) in to.iter_mut().enumerate() {
                *b = cpu.physical_load(physical + i as u64, 1) as u8;
            }
            Ok(())
        };
        fetch(self, address, &mut bytes[..room])?;
        if let Some(block) = self.decode(&bytes[..room], 1, room == 15) {
            self.trace_code(address, &bytes[..usize::from(block.bytes)]);
            return Ok(block);
        }
        let mut next = (address & !0xfff).wrapping_add(0x1000);
        if self.bits != 2 {
            next &= 0xffff_ffff;
        }
        fetch(self, next, &mut bytes[room..])?;
        match self.decode(&bytes, 1, true) {
            Some(block) => {
                self.trace_code(address, &bytes[..usize::from(block.bytes)]);
                Ok(block)
            }
            None => Err(self.ud()),
        }
    }

    /// Where in the host something lies, if it is RAM.
    fn host_of_ram(&mut self, physical: u64) -> Option<u64> {
        let range = self.range_of(physical).filter(|r| !r.readonly)?;
        Some(range.host + (physical - range.start))
    }

    /// To be called before a write to RAM that does not go the fast way.
    pub(crate) fn before_code_write(&mut self, address: u64, physical: u64, size: u32) -> R<()> {
        let Some(host) = self.host_of_ram(physical) else { return Ok(()) };
        let (page, first) = (host >> 12, host & 0xfff);
        if !self.machine.has_code(page) {
            // Lock-step makes all writes slow.
            if self.link_count > 1 && self.checker.journal.is_none() {
                // Perhaps it had when the translation was made.
                self.forget_slow_write(address);
            }
            return Ok(());
        }
        let hit = self.code.get(&page).is_some_and(|p| p.pieces & pieces(first, size.into()) != 0);
        if hit {
            // SAFETY: null, or the block that runs, which is kept at least until it is over.
            let running = unsafe { self.running.as_ref() }.is_some_and(|b| b.page == page || b.second == page);
            self.forget_page(page);
            if running {
                self.reason = crate::fault::Reason::Alone;
                return Err(crate::fault::Fault);
            }
        }
        Ok(())
    }

    /// To be called after such a write: whoever reads the code from now on reads what was written, and who has read it before is told.
    pub(crate) fn after_code_write(&mut self, physical: u64, size: u32) {
        if self.link_count <= 1 {
            return;
        }
        let Some(host) = self.host_of_ram(physical).filter(|host| self.machine.has_code(host >> 12)) else { return };
        let written = pieces(host & 0xfff, size.into());
        self.machine.tell_others(&self.link, |news| *news.written.entry(host >> 12).or_insert(0) |= written);
    }

    /// Drops all blocks of a host page. They stay in memory until no block runs.
    pub(crate) fn forget_page(&mut self, page: u64) {
        let mut pages = vec![page];
        while let Some(page) = pages.pop() {
            if let Some(code) = self.code.remove(&page) {
                pages.extend(&code.neighbours);
                self.code_weight -= code.weight;
                self.graveyard.push(code);
                if !self.machine.remove_code(page) {
                    // Nobody else has code there: it is plain memory again.
                    self.unprotect_host_page(page);
                }
            }
        }
        self.new_generation();
        self.code_generation += 1;
    }

    /// Drops all blocks.
    pub(crate) fn forget_all_code(&mut self) {
        for (_, page) in self.code.iter_mut() {
            self.graveyard.push(std::mem::take(page));
        }
        self.reset_cells();
        self.new_generation();
        self.code_generation += 1;
        self.code_weight = 0;
    }

    /// What is cached of translations and code is stale from now on.
    pub(crate) fn new_generation(&mut self) {
        self.generation += 1;
        self.forget_cells();
    }

    /// Takes note of what others wrote to code, and of pages in which they found some.
    pub(crate) fn take_code_news(&mut self) {
        let CodeNews { written, stale, found } = std::mem::take(&mut *self.link.code_news.lock());
        for (page, written) in written {
            if self.code.get(&page).is_some_and(|p| p.pieces & written != 0) {
                self.forget_page(page);
            }
        }
        for page in stale.iter().filter(|page| self.code.contains_key(page)).copied().collect::<Vec<_>>() {
            // The page goes on as one with code: others write there, and that would begin again with the next block.
            self.forget_page(page);
            self.code.insert(page, CodePage::default());
            self.machine.keep_code(page);
        }
        self.protect_found(&found);
    }

    /// No longer writes unseen to pages in which others have found code; tells who did so until now.
    fn protect_found(&mut self, found: &HashSet<u64, Fast>) {
        if found.is_empty() {
            return;
        }
        let open = self.protect_host_pages(|page| found.contains(&page));
        if !open.is_empty() {
            self.machine.tell_others(&self.link, |news| news.stale.extend(&open));
        }
    }

    /// The same, before something that others can see.
    #[cold]
    pub(crate) fn protect_found_early(&mut self) {
        let found = std::mem::take(&mut self.link.code_news.lock().found);
        self.protect_found(&found);
    }

    /// Remembers which block follows `from` in its page.
    ///
    /// # Safety
    /// `from` must be a block that has not been dropped.
    pub(crate) unsafe fn link_blocks(&mut self, from: *const Block, way: usize, to: *const Block) {
        // SAFETY: the caller says so; both are kept by `code` or the graveyard.
        unsafe {
            let (a, b) = (&*from, &*to);
            if a.second == 0 && b.second == 0 {
                (*from.cast_mut()).links[way] = to as usize;
            }
        }
    }
}

/// The 64-byte pieces of a page that a range touches.
fn pieces(first: u64, len: u64) -> u64 {
    let last = (first + len.max(1) - 1).min(0xfff) / 64;
    let first = first / 64;
    (u64::MAX >> (63 - (last - first))) << first
}
