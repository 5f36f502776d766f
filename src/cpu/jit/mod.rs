//! The translator: blocks of 64-bit code become machine code of the host, which speaks the same instruction set.
//!
//! **Registers.** Thirteen guest registers live in host registers while generated code runs, three in memory; RAX and R11 are the
//! translator's ([`layout`]). GS leads to the processor's state, so no register is spent on it. Most instructions are the
//! guest's own with registers renamed ([`insn`]).
//!
//! **Memory.** An operand's address is looked up inline in the interpreter's translation cache: the entry's tag must be the page
//! of the operand's last byte, which also refuses operands that cross pages. Whatever does not match (a miss, a device, ROM,
//! a page with code, a logged page, a misaligned vector) leads to the *slow way*: the interpreter executes that one
//! instruction, before anything of it has happened here. So faults are precise without a table of addresses, and each rule
//! of the architecture is written once. The host itself never faults: divisors are looked at before dividing.
//!
//! **Flags** are in the host's flags or in [`Hot::cc`](crate::state::Hot), or both; the translator knows which at each place.
//! They are stored before a probe or a check spoils them, so they are right whenever the interpreter or a fault may look,
//! and they are in memory wherever a block begins or ends.
//!
//! **Vector registers** and MXCSR are loaded by the first instruction of a block that wants them, if the guest may use them at
//! all and has every exception masked; they stay until somebody else's code runs.
//!
//! **Chaining.** A jump inside its page is a direct jump once the target is translated. Others look the target up in the cache of
//! jumps, whose key has the generation of translations; an entry that is older is still right if its block was not dropped and
//! the translation cache has its page where it was. Requests from outside are looked at on backward jumps and on lookups,
//! so every loop sees them.
//!
//! **Loops.** A way back inside a page that is taken two dozen times in turn closes a loop worth more work: its blocks are made anew, and
//! each of their accesses has a [`Cell`] with the page that it met last. A pointer that is followed then waits for memory alone, as it
//! would natively, while the comparison of pages runs beside it. Cells are right for one epoch; whatever makes translations stale begins
//! another. The old code's first bytes become a jump to the new.
//!
//! **System calls.** SYSCALL and SYSRET of 64-bit programs, SWAPGS, CLI, STI, STAC, CLAC and PUSHF are machine code ([`system`]). Behind
//! another instruction that ends its block the slow way, generated code goes on where it leads, if nothing is asked of the processor.
//!
//! **Self-modifying code** is the business of [`block`](crate::block): pages with code are not writable the fast way. A block that is
//! dropped is not entered any more, because the generation changes; the slow way leaves generated code when that happens.

mod asm;
mod check;
mod flow;
mod insn;
mod layout;
mod stubs;
mod system;
mod translate;

use std::io;

use iced_x86::{Encoder, InstructionInfoFactory};

use crate::{
    Cpu,
    arena::Arena,
    block::{Block, END, FAULT, Jump, Next, Op},
    interrupt::TripleFault,
    platform::CpuLink,
    state::{cr, gpr},
};

pub(crate) use check::Checker;
use stubs::{Leave, Stubs};

/// Which part of the processor executes blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Engine {
    /// Every instruction is interpreted.
    Interpreter,
    /// What is run often is translated.
    #[default]
    Translator,
    /// Blocks are run both ways and compared.
    Check,
}

impl Engine {
    /// What the environment asks for (`LOCKSTEP_CPU`: `interpreter`, `check`), for tests and comparisons.
    pub(crate) fn chosen() -> Self {
        match std::env::var("LOCKSTEP_CPU").as_deref() {
            Ok("interpreter") => Self::Interpreter,
            Ok("check") => Self::Check,
            _ => Self::Translator,
        }
    }
}

/// Runs of a block before it is worth translating.
const HOT: u16 = 12;
/// The most machine code that one processor keeps, in bytes.
pub(crate) const MOST_MACHINE_CODE: usize = 128 << 20;
/// Passes of a loop one after the other that make it worth cells; passes in all before it is found to be none; bytes it may be long.
const PASSES: u8 = 24;
const TRIES: u8 = 72;
const LOOP: u64 = 1024;

/// The page that one access of generated code met last. Code that loops finds its operand's place without waiting for the translation
/// cache, whose entry depends on the address: here only a prediction does.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Cell {
    /// The page's linear address and the epoch, or 0.
    tag: u64,
    /// Host address less linear address.
    addend: u64,
    /// How often the page may still change; below 0 the cell is left alone.
    credit: i32,
}

impl Cell {
    pub const EMPTY: Self = Self { tag: 0, addend: 0, credit: CREDIT };
}

/// Accesses that may have a cell.
pub(crate) const CELLS: usize = 4096;
/// Changes of page that are still worth it in the time of `RENEWAL`, some milliseconds of the host's counter: at most a few per cent of
/// it are lost by a cell that seldom finds its page.
const CREDIT: i32 = 16_000;
const RENEWAL: u64 = 8 << 20;
/// What counts epochs: the bits of a tag above those that an operand's alignment is checked with.
const EPOCH: u64 = 1 << 6;

/// State that generated code shares with us, beside [`Hot`](crate::state::Hot).
#[repr(C)]
pub(crate) struct Shared {
    /// [`Cpu::jump_key`] now.
    key: u64,
    /// [`Cpu::block_key`] now.
    block_key: u64,
    /// Distance of the privilege context's translation cache.
    tlb: i64,
    temporary: u64,
    /// The address that a cell's cold part looks up.
    followed: u64,
    /// In the tags of cells that are right.
    epoch: u64,
    requests: *const u32,
    jumps: *const Jump,
    cpu: *mut Cpu,
    /// What may still be run of the instructions that were granted.
    pub budget: i64,
    /// The translation that was left by one of its exits.
    from: *const Translation,
    /// Vector registers and MXCSR are in the host's registers: bit 0 for SSE, bit 1 for AVX.
    vectors_live: u8,
    /// The same bits: what the guest may use.
    vectors_allowed: u8,
    /// The slow way is to leave behind the instruction.
    leave_after: u8,
}

impl Shared {
    pub fn new(link: &CpuLink) -> Self {
        Self {
            key: 0,
            block_key: 0,
            tlb: 0,
            temporary: 0,
            followed: 0,
            epoch: EPOCH,
            requests: link.requests_word(),
            jumps: std::ptr::null(),
            cpu: std::ptr::null_mut(),
            budget: 0,
            from: std::ptr::null(),
            vectors_live: 0,
            vectors_allowed: 0,
            leave_after: 0,
        }
    }
}

/// A block's machine code for one address.
pub(crate) struct Translation {
    pub block: *const Block,
    pub rip: u64,
    pub mmu: usize,
    pub entry: *const u8,
    exits: [Exit; 2],
    /// How often a way back from here was taken, until it is direct.
    turns: u8,
    /// Its accesses have cells.
    quick: bool,
}

/// What a way back leads to.
enum Turns {
    /// It is not known yet.
    Wait,
    /// A loop of many passes.
    Loop,
    /// No loop, or one of few.
    NoLoop,
}

impl Translation {
    /// Its accesses have cells.
    pub fn is_quick(&self) -> bool {
        self.quick
    }
}

/// A jump to another block.
#[derive(Clone, Copy, Default)]
struct Exit {
    /// Where it leads.
    rip: u64,
    /// Address of the jump's distance, if it may be made direct.
    site: u64,
}

/// A way out that asks to be made direct.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    from: *const Translation,
    way: usize,
    generation: u64,
}

/// What makes machine code, one for each processor.
pub(crate) struct Translator {
    arena: Arena,
    stubs: Stubs,
    encoder: Encoder,
    info: InstructionInfoFactory,
    link: Option<Link>,
    /// Cells that were given out.
    cells: usize,
    /// The way back that was taken last: how often in turn.
    back: (*const Translation, u8),
    /// The host's counter when cells were renewed last.
    renewed: u64,
    /// Runs of a block before it is translated.
    pub hot: u16,
    /// Every access has a cell, for tests.
    pub quick: bool,
    /// Instructions that took the slow way.
    pub slow_count: u64,
    /// Blocks are left one by one.
    pub unchained: bool,
    /// The host can set GS without its kernel.
    fsgsbase: bool,
}

impl Translator {
    /// With room for so many bytes of machine code.
    pub fn new(engine: Engine, room: usize) -> io::Result<Self> {
        let mut arena = Arena::new(if engine == Engine::Interpreter { 1 << 16 } else { room })?;
        let stubs = Stubs::new(&mut arena)?;
        // SAFETY: a plain query.
        let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 != 0;
        Ok(Self {
            arena,
            stubs,
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            link: None,
            cells: 0,
            back: (std::ptr::null(), 0),
            renewed: 0,
            hot: HOT,
            quick: engine == Engine::Check,
            slow_count: 0,
            unchained: engine == Engine::Check,
            fsgsbase,
        })
    }

    /// Code that leaves with `RIP` set: the code of a block that has none.
    #[inline(always)]
    pub fn leave(&self) -> *const u8 {
        self.stubs.leave_end
    }

    /// Has the memory for code seem full early.
    #[cfg(test)]
    pub fn limit_code(&mut self, size: usize) {
        self.arena.limit(size);
    }

    /// A way back was taken that is not direct yet.
    fn turn(&mut self, from: *const Translation) -> Turns {
        let (last, in_turn) = self.back;
        let in_turn = if last == from { in_turn + 1 } else { 1 };
        // SAFETY: the caller's, of this generation.
        let all = unsafe {
            let from = &mut *from.cast_mut();
            from.turns = from.turns.saturating_add(1);
            from.turns
        };
        self.back = (from, in_turn);
        if in_turn >= PASSES {
            self.back = (std::ptr::null(), 0);
            Turns::Loop
        } else if all >= TRIES {
            Turns::NoLoop
        } else {
            Turns::Wait
        }
    }

    pub fn forget_link(&mut self) {
        self.link = None;
    }
}

impl Cpu {
    /// Makes this thread's GS lead to the processor's state.
    pub(crate) fn bind_thread(&mut self) {
        if self.engine == Engine::Interpreter {
            return;
        }
        self.shared.cpu = &raw mut *self;
        self.shared.jumps = self.jumps.as_ptr();
        let base = (&raw const self.hot) as u64;
        // SAFETY: nothing else in the process uses GS; the instruction is there when the host's kernel says so.
        unsafe {
            if self.translator.fsgsbase {
                std::arch::asm!("wrgsbase {}", in(reg) base, options(nostack, preserves_flags));
            } else {
                const ARCH_SET_GS: i32 = 0x1001;
                libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base);
            }
        }
    }

    /// Tells generated code what may have changed outside it.
    #[inline]
    fn refresh_shared(&mut self) {
        self.shared.key = self.jump_key();
        self.shared.block_key = self.block_key();
        self.shared.tlb = layout::tlb(self.mmu).into();
        let masked = self.mxcsr & 0x1f80 == 0x1f80;
        let sse = masked && self.cr0 & (cr::CR0_EM | cr::CR0_TS) == 0 && self.cr4 & cr::CR4_OSFXSR != 0;
        let avx = sse && self.cr4 & cr::CR4_OSXSAVE != 0 && self.xcr0 & 6 == 6;
        self.shared.vectors_allowed = u8::from(sse) | u8::from(avx) << 1;
    }

    /// Has cells forget their pages.
    #[inline]
    pub(crate) fn forget_cells(&mut self) {
        self.shared.epoch += EPOCH;
        if self.shared.epoch >= 0x1000 {
            self.shared.epoch = EPOCH;
            let used = self.translator.cells.min(CELLS);
            self.cells[..used].iter_mut().for_each(|c| c.tag = 0);
        }
    }

    /// Pages that cells remember, with their host addresses.
    fn cached_by_cells(&self) -> impl Iterator<Item = (u64, u64)> {
        let (used, epoch) = (self.translator.cells.min(CELLS), self.shared.epoch);
        self.cells[..used].iter().filter(move |c| c.tag & 0xfff == epoch).map(|c| {
            let page = c.tag & !0xfff;
            (page, page.wrapping_add(c.addend))
        })
    }

    /// Takes all cells back: no code has any.
    pub(crate) fn reset_cells(&mut self) {
        let used = std::mem::take(&mut self.translator.cells).min(CELLS);
        self.cells[..used].fill(Cell::EMPTY);
    }

    /// Lets cells follow their pages again.
    pub(crate) fn renew_cells(&mut self) {
        // SAFETY: a plain counter.
        let now = unsafe { std::arch::x86_64::_rdtsc() };
        if now.wrapping_sub(self.translator.renewed) < RENEWAL {
            return;
        }
        self.translator.renewed = now;
        let used = self.translator.cells.min(CELLS);
        self.cells[..used].iter_mut().for_each(|c| c.credit = CREDIT);
    }

    /// Runs the block at a place of the cache of jumps, and those that its code goes on to.
    pub(crate) fn run_translated(&mut self, at: usize) -> Result<(), TripleFault> {
        let link = self.translator.link.take();
        let Jump { block, mut code, .. } = self.jumps[at];
        if code == self.translator.leave() {
            // SAFETY: the cache's keys are of this generation, so the block has not been dropped.
            let b = unsafe { &mut *block.cast_mut() };
            b.heat = b.heat.saturating_add(1);
            if b.heat < self.translator.hot || b.code.is_empty() {
                return self.run_single(block);
            }
            match self.translate_block(block, false) {
                Some(new) => {
                    code = new;
                    self.jumps[at].code = new;
                }
                None => return self.run_single(block),
            }
        }
        if self.engine == Engine::Check {
            return self.run_checked(block, code);
        }
        if let Some(link) = link
            && link.generation == self.generation
        {
            // SAFETY: nothing was dropped since the code that asks for it ran.
            let from = unsafe { &*link.from };
            let exit = from.exits[link.way];
            if exit.rip == self.hot.gpr[gpr::RIP] && from.mmu == self.mmu && exit.site != 0 {
                let closes = exit.rip <= from.rip && !from.quick && from.rip - exit.rip < LOOP;
                let turns = if closes { self.translator.turn(link.from) } else { Turns::NoLoop };
                match turns {
                    Turns::NoLoop => {
                        self.translator.arena.patch(exit.site, (code as u64).wrapping_sub(exit.site + 4) as i32);
                    }
                    Turns::Wait => {}
                    Turns::Loop => {
                        let generation = self.generation;
                        code = self.quicken(block, exit.rip & 0xfff, from.rip & 0xfff).unwrap_or(code);
                        if self.generation != generation {
                            // There was no room: all code is gone.
                            return self.run_single(block);
                        }
                        self.jumps[at].code = code;
                    }
                }
            }
        }
        self.run_code(code)
    }

    /// Runs machine code until it leaves.
    fn run_code(&mut self, code: *const u8) -> Result<(), TripleFault> {
        self.refresh_shared();
        // SAFETY: the code is that of a block of this generation, and GS was set by `bind_thread` on this thread.
        let left = unsafe { (self.translator.stubs.enter)(code) };
        let result = match Leave::of(left) {
            Leave::End => Ok(()),
            Leave::Fault => self.fault(),
            Leave::Exit { way, link } => {
                // SAFETY: set by the code that was left; its translation is kept at least until the graveyard is emptied.
                self.hot.gpr[gpr::RIP] = unsafe { &*self.shared.from }.exits[way].rip;
                if link {
                    self.translator.link = Some(Link { from: self.shared.from, way, generation: self.generation });
                }
                Ok(())
            }
        };
        self.bury();
        result
    }

    /// Interprets one block.
    pub(crate) fn run_single(&mut self, block: *const Block) -> Result<(), TripleFault> {
        self.running = block;
        self.charge_block(block);
        // SAFETY: the block was found in this generation.
        let next = unsafe {
            let ops = &(*block).ops;
            self.instructions += ops.len() as u64;
            (ops[0].run)(&raw mut *self, ops.as_ptr())
        };
        self.link_way = 0;
        let result = if next == FAULT { self.fault() } else { Ok(()) };
        self.bury();
        result
    }

    /// Frees dropped blocks: none runs.
    fn bury(&mut self) {
        if !self.graveyard.is_empty() {
            self.running = std::ptr::null();
            self.translator.link = None;
            self.graveyard.clear();
        }
    }

    /// Makes the blocks of a loop anew, with cells: those of the page of `block` that begin from `first` to `last`. Gives the new code
    /// of `block`.
    fn quicken(&mut self, block: *const Block, first: u64, last: u64) -> Option<*const u8> {
        // SAFETY: the block was found in this generation.
        let (page, base) = unsafe { ((*block).page, self.hot.gpr[gpr::RIP] & !0xfff) };
        let code = self.code.get_mut(&page)?;
        code.quicken(first, last);
        let blocks: Vec<*const Block> = code
            .blocks_between(first, last, self.bits)
            .filter(|b| b.needs_quickening(base, self.mmu))
            .map(std::ptr::from_ref)
            .collect();
        let rip = self.hot.gpr[gpr::RIP];
        let mut new = None;
        for &b in &blocks {
            // SAFETY: blocks of a page that has not been dropped.
            let old = unsafe { &*b }.translations.iter().find(|t| t.mmu == self.mmu && t.rip & !0xfff == base);
            let Some((at, old)) = old.map(|t| (t.rip, t.entry as u64)) else { continue };
            self.hot.gpr[gpr::RIP] = at;
            let code = self.translate_block(b, true);
            self.hot.gpr[gpr::RIP] = rip;
            let code = code?;
            // Who goes to the old code goes on to the new.
            self.translator.arena.redirect(old, code as u64);
            if b == block {
                new = Some(code);
            }
        }
        new
    }

    /// Machine code for a block at `RIP`. Nothing: it stays interpreted.
    fn translate_block(&mut self, block: *const Block, quick: bool) -> Option<*const u8> {
        let rip = self.hot.gpr[gpr::RIP];
        // SAFETY: the block was found in this generation.
        let b = unsafe { &*block };
        let quick = quick || self.translator.quick || self.code.get(&b.page).is_some_and(|p| p.is_quick(rip & 0xfff));
        let mut translation = Box::new(Translation {
            block,
            rip,
            mmu: self.mmu,
            entry: std::ptr::null(),
            exits: Default::default(),
            turns: 0,
            quick,
        });
        let (code, sites) = translate::translate(self, b, &translation);
        let mut code = code;
        let address = self.translator.arena.next_address();
        code.settle(address);
        let Some(entry) = self.translator.arena.add(&code.code) else {
            // Full: everything goes, and this block comes again.
            self.forget_all_code();
            self.translator.arena.clear();
            self.translator.stubs = Stubs::new(&mut self.translator.arena).ok()?;
            self.translator.link = None;
            return None;
        };
        translation.entry = entry;
        for (way, (rip, site)) in sites.into_iter().enumerate() {
            translation.exits[way] = Exit { rip, site: if site == 0 { 0 } else { address + site as u64 } };
        }
        // SAFETY: as above; nobody else holds a reference to it now.
        unsafe { &mut *block.cast_mut() }.translations.insert(0, translation);
        Some(entry)
    }
}

impl Cpu {
    /// After an instruction that ended its block by the slow way, with `RIP` set: whether generated code may go on there.
    fn onwards(&mut self) -> u32 {
        let leave = !self.is_translatable()
            || self.single
            || self.halted
            || self.shadow
            || self.trap_after
            || self.wait_for_sipi
            || !self.graveyard.is_empty()
            || self.translator.unchained;
        if leave {
            return Leave::END;
        }
        self.refresh_shared();
        Leave::ON
    }
}

/// What [`stop`] returns.
const STOPPED: Next = 2;

/// Follows an operation that is run alone.
unsafe fn stop(_cpu: *mut Cpu, _op: *const Op) -> Next {
    STOPPED
}

/// The slow way: interprets instruction `index` of the block that runs. Nothing of it has happened yet; registers and flags are in
/// memory. Gives 0 to go on behind it, or 1 more than why to leave.
unsafe extern "sysv64" fn slow_way(cpu: *mut Cpu, from: *const Translation, index: u32) -> u32 {
    // SAFETY: generated code passes its own translation and the processor that runs it.
    unsafe {
        let from = &*from;
        let op = (&(*from.block).ops)[index as usize];
        (*cpu).hot.gpr[gpr::RIP] = from.rip;
        (*cpu).running = from.block;
        (*cpu).translator.slow_count += 1;
        // What STI put off until behind the next instruction: this is it.
        (*cpu).shadow = false;
        let alone = [op, Op { run: stop, ..op }];
        let next = (op.run)(cpu, alone.as_ptr());
        let cpu = &mut *cpu;
        cpu.link_way = 0;
        match next {
            STOPPED => {
                let leave = std::mem::take(&mut cpu.shared.leave_after) != 0;
                if leave || !cpu.graveyard.is_empty() || cpu.mmu != from.mmu {
                    cpu.give_back(op.at, true);
                    cpu.hot.gpr[gpr::RIP] = from.rip.wrapping_add(op.next.into());
                    return 1 + if leave { Leave::END } else { cpu.onwards() };
                }
                cpu.refresh_shared();
                0
            }
            FAULT => {
                cpu.shared.leave_after = 0;
                1 + Leave::FAULT
            }
            _ => {
                debug_assert!(next == END || next > STOPPED);
                cpu.shared.leave_after = 0;
                1 + cpu.onwards()
            }
        }
    }
}
