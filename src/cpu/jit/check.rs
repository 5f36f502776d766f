//! Lock-step: a block is interpreted, its effects are undone, it is run as machine code, and both must have done the same.
//!
//! While the block is interpreted no page is writable the fast way, so that every write to RAM passes the journal; what is translated
//! stays so, as machine code goes on with what is cached whatever the guest made of its page tables. Blocks that
//! reach devices or change the processor's system state cannot be undone; they are interpreted once and not compared.

use iced_x86::Mnemonic as M;

use crate::{
    Cpu,
    block::{Block, END, FAULT, Slow},
    fault::Reason,
    interrupt::TripleFault,
    mem::{Access, TLB_SIZE, TlbEntry, mmu},
    ops,
    paging::Walk,
    state::{Hot, Segment, flag, gpr},
};

use super::Leave;

/// A write to RAM.
struct Written {
    host: u64,
    size: u32,
    before: u64,
    /// By an instruction, not by a walk that marks an entry of a page table: machine code may know the translation already.
    compared: bool,
}

/// What was written to RAM.
#[derive(Default)]
pub(crate) struct Journal {
    writes: Vec<Written>,
    /// A device was reached.
    pub outside: bool,
}

/// Figures and work areas of a processor that checks.
#[derive(Default)]
pub(crate) struct Checker {
    pub journal: Option<Journal>,
    compared: u64,
    /// After its first runs a block is compared every so many runs.
    every: u64,
    turn: u64,
}

/// Runs of each block that are all compared.
const FIRST: u16 = 40;

/// What must not change in a block that is undone.
type System = ([Segment; 6], [u64; 5], u64, u8, usize, bool, u64, usize);

impl Drop for Checker {
    fn drop(&mut self) {
        if self.compared != 0 {
            eprintln!("lock-step: {} blocks compared, all equal", self.compared);
        }
    }
}

fn peek(host: u64, size: u32) -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the journal has addresses of RAM that the processor keeps alive, and sizes up to 8.
    unsafe { std::ptr::copy_nonoverlapping(host as *const u8, bytes.as_mut_ptr(), size as usize) };
    u64::from_le_bytes(bytes)
}

fn poke(host: u64, size: u32, value: u64) {
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), host as *mut u8, size as usize) };
}

impl Journal {
    /// To be called before a write.
    pub fn note(&mut self, host: u64, size: u32) {
        self.writes.push(Written { host, size, before: peek(host, size), compared: true });
    }

    /// To be called before an entry of a page table is marked.
    pub fn note_mark(&mut self, host: u64, size: u32) {
        self.writes.push(Written { host, size, before: peek(host, size), compared: false });
    }
}

impl Cpu {
    fn system(&self) -> System {
        let control = [self.cr0, self.cr2, self.cr3, self.cr4, self.efer];
        let rest = self.rest & !flag::RF;
        (self.segs, control, rest, self.cpl, self.mmu, self.halted, self.generation, self.graveyard.len())
    }

    /// Runs a block both ways.
    pub(super) fn run_checked(&mut self, block: *const Block, code: *const u8) -> Result<(), TripleFault> {
        // SAFETY: the block was found in this generation.
        let b = unsafe { &mut *block.cast_mut() };
        b.heat = b.heat.saturating_add(1);
        let checker = &mut self.checker;
        if checker.every == 0 {
            let asked = std::env::var("LOCKSTEP_CHECK_EVERY").ok().and_then(|v| v.parse().ok());
            checker.every = asked.filter(|&n| n > 0).unwrap_or(64);
        }
        checker.turn += 1;
        if !undoable(b) {
            return self.run_single(block);
        }
        if b.heat > FIRST && !checker.turn.is_multiple_of(checker.every) {
            return self.run_code(code);
        }
        let (hot, extra, system) = (self.hot.clone(), self.extra(), self.system());
        let tlb: Box<[TlbEntry; TLB_SIZE]> = Box::new(self.tlb[self.mmu]);
        let context = self.mmu;
        let (physical, filled) = (Box::new(self.tlb_physical[context]), self.filled[context].clone());
        self.tlb[context].iter_mut().for_each(TlbEntry::write_slowly);
        self.checker.journal = Some(Journal::default());
        self.running = block;
        let budget = self.shared.budget;
        self.charge_block(block);
        // SAFETY: as in `run_single`.
        let next = unsafe { (b.ops[0].run)(&raw mut *self, b.ops.as_ptr()) };
        self.link_way = 0;
        let journal = self.checker.journal.take().unwrap_or_default();
        if journal.outside || self.system() != system {
            self.flush_tlb();
            let result = if next == FAULT { self.fault() } else { Ok(()) };
            self.bury();
            return result;
        }
        let wanted = (self.hot.clone(), self.extra(), self.reason, self.fault_at);
        let by_instructions = journal.writes.iter().filter(|w| w.compared);
        let written: Vec<_> = by_instructions.map(|w| (w.host, w.size, peek(w.host, w.size))).collect();
        journal.writes.iter().rev().for_each(|w| poke(w.host, w.size, w.before));
        (self.tlb[context], self.tlb_physical[context]) = (*tlb, *physical);
        self.filled[context] = filled;
        self.hot = hot.clone();
        let left_over = std::mem::replace(&mut self.shared.budget, budget);
        self.set_extra(&extra);
        self.reason = Reason::None;
        self.refresh_shared();
        // SAFETY: as in `run_code`.
        let left = unsafe { (self.translator.stubs.enter)(code) };
        self.checker.compared += 1;
        let early = left == Leave::END && next == END && self.hot.gpr[gpr::RIP] != wanted.0.gpr[gpr::RIP];
        if !early {
            let mut wrong = vec![];
            if (left == Leave::FAULT) != (next == FAULT) {
                wrong.push(format!("left {left:#x}, interpreter {next:#x}"));
            }
            if next == FAULT && (self.reason, self.fault_at) != (wanted.2, wanted.3) {
                wrong.push(format!("{:?} at {}, not {:?} at {}", self.reason, self.fault_at, wanted.2, wanted.3));
            }
            for i in 0..18 {
                if self.hot.gpr[i] != wanted.0.gpr[i] {
                    wrong.push(format!("register {i} is {:#x}, not {:#x}", self.hot.gpr[i], wanted.0.gpr[i]));
                }
            }
            if self.shared.budget != left_over {
                wrong.push(format!("{} instructions are left, not {left_over}", self.shared.budget));
            }
            let same = |h: &Hot| (h.arith(), h.vec);
            if same(&self.hot) != same(&wanted.0) || self.extra() != wanted.1 {
                wrong.push(format!("flags {:#x}, not {:#x}; or vectors", self.hot.arith(), wanted.0.arith()));
            }
            for &(host, size, value) in &written {
                if peek(host, size) != value {
                    wrong.push(format!("{size} bytes of memory are {:#x}, not {value:#x}", peek(host, size)));
                }
            }
            if !wrong.is_empty() && !self.has_stale_translations() {
                let decoder =
                    iced_x86::Decoder::with_ip(if self.bits == 2 { 64 } else { 32 }, &b.code, hot.gpr[gpr::RIP], 0);
                let text: Vec<_> = decoder.into_iter().map(|i| format!("{:x} {i}", i.ip())).collect();
                panic!("{}\nfrom {:x?}\n{}", wrong.join("\n"), hot.gpr, text.join("\n"));
            }
        }
        let result = if left == Leave::FAULT { self.fault() } else { Ok(()) };
        self.bury();
        result
    }

    /// Whether something is cached that the page tables no longer say. Then what a block does depends on what is still cached of
    /// it, of which machine code remembers more than the interpreter; the guest has to invalidate what it changes.
    fn has_stale_translations(&mut self) -> bool {
        let context = self.mmu;
        let user = context == mmu::USER || context == mmu::USER_AC;
        let cells = self.cached_by_cells().collect::<Vec<_>>();
        let entries = (0..TLB_SIZE).map(|i| (self.tlb[context][i], self.tlb_physical[context][i])).collect::<Vec<_>>();
        let reason = std::mem::replace(&mut self.reason, Reason::None);
        let mut is_stale = false;
        for (entry, physical) in entries {
            for (tag, access) in [(entry.read, Access::Read), (entry.write, Access::Write), (entry.exec, Access::Exec)]
            {
                let Some(page) = TlbEntry::page_of(tag) else { continue };
                // A read, so that no dirty bit is set.
                let access = if access == Access::Write { Access::Read } else { access };
                let walk = self.walk(page, access, user, context == mmu::KERNEL_AC);
                let writable = |w: &Walk| w.writable_now || entry.write == TlbEntry::EMPTY.write;
                is_stale |= !walk.is_ok_and(|w| w.physical & !0xfff == physical && writable(&w));
            }
        }
        for (page, host) in cells {
            let walk = self.walk(page, Access::Read, user, context == mmu::KERNEL_AC);
            let physical = walk.ok().map(|w| w.physical);
            let range = physical.and_then(|at| self.range_of(at).map(|r| r.host + (at - r.start)));
            is_stale |= range != Some(host);
        }
        self.reason = reason;
        is_stale
    }

    /// What instructions that only compute change beside [`Hot`].
    fn extra(&self) -> (u32, u16, u16, u16, u64, u64) {
        (self.mxcsr, self.fop, self.fpu_cs, self.fpu_ds, self.fip, self.fdp)
    }

    fn set_extra(&mut self, e: &(u32, u16, u16, u16, u64, u64)) {
        (self.mxcsr, self.fop, self.fpu_cs, self.fpu_ds, self.fip, self.fdp) = *e;
    }
}

/// Whether all that a block does can be undone and done again.
fn undoable(block: &Block) -> bool {
    block.ops.iter().all(|op| {
        let slow = std::ptr::fn_addr_eq(op.run, ops::slow as crate::block::Handler);
        let stub = std::ptr::fn_addr_eq(op.run, ops::stub as crate::block::Handler);
        if !slow && !stub {
            return true;
        }
        // SAFETY: these handlers' operations hold the address of what the block owns.
        let insn = unsafe { &(*(op.imm as *const Slow)).insn };
        if stub {
            return !matches!(insn.mnemonic(), M::Rdrand | M::Rdseed);
        }
        // A repetition may stop in the middle, where it likes.
        !(insn.has_rep_prefix() || insn.has_repne_prefix())
            && matches!(
                insn.mnemonic(),
                M::Div
                    | M::Idiv
                    | M::Movsb
                    | M::Movsw
                    | M::Movsd
                    | M::Movsq
                    | M::Stosb
                    | M::Stosw
                    | M::Stosd
                    | M::Stosq
                    | M::Lodsb
                    | M::Lodsq
                    | M::Cmpsb
                    | M::Scasb
                    | M::Pushfq
                    | M::Pushfd
                    | M::Call
                    | M::Ret
                    | M::Jmp
                    | M::Leave
                    | M::Jecxz
                    | M::Push
                    | M::Pop
                    | M::Jrcxz
                    | M::Loop
                    | M::Vzeroupper
                    | M::Cld
                    | M::Cmpxchg
                    | M::Xadd
                    | M::Add
                    | M::Sub
                    | M::Inc
                    | M::Dec
                    | M::And
                    | M::Or
                    | M::Bts
                    | M::Btr
            )
    })
}
