//! One processor: its state, and the loop that runs it.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use iced_x86::Instruction;

use crate::{
    block::{Block, CodePage, END, FAULT, Fast, JUMP_CACHE, Jump},
    breakpoints::Breakpoints,
    counting::Counting,
    debug::{DebugStop, Debugging},
    fault::Reason,
    features::Features,
    host::Stubs,
    interrupt::TripleFault,
    jit::{CELLS, Cell, Checker, Engine, MOST_MACHINE_CODE, Shared, Translator},
    machine::{Machine, RamRange},
    mem::{Filled, Large, TLB_SIZE, TlbEntry, mmu},
    msr::Msrs,
    pcid::Spaces,
    platform::{CpuLink, CpuidLeaf, Platform, request},
    state::{Hot, Segment, Table, flag, gpr, seg},
    trace::Tracer,
};

/// Why [`Cpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Somebody asked for it.
    Kicked,
    /// The guest waits for an interrupt: [`Cpu::wait`] sleeps until there may be one.
    Halted,
    /// Another processor's turn has come, where [`Platform::account`] says so.
    Turn,
    /// The machine is to be reset.
    TripleFault,
    /// A debugger wants to know.
    Debug(DebugStop),
}

/// A processor of an x86-64 machine.
pub struct Cpu {
    pub(crate) hot: Hot,
    /// `RFLAGS` without arithmetic flags and without the bit that is always set.
    pub(crate) rest: u64,
    /// es, cs, ss, ds, fs, gs.
    pub(crate) segs: [Segment; 6],
    pub(crate) ldt: Segment,
    pub(crate) tr: Segment,
    pub(crate) gdt: Table,
    pub(crate) idt: Table,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) xcr0: u64,
    pub(crate) dr: [u64; 8],
    pub(crate) mxcsr: u32,
    pub(crate) fop: u16,
    pub(crate) fpu_cs: u16,
    pub(crate) fpu_ds: u16,
    pub(crate) fip: u64,
    pub(crate) fdp: u64,
    pub(crate) msrs: Msrs,
    pub(crate) cpl: u8,
    /// Width of code: 0 is 16, 1 is 32, 2 is 64 bits.
    pub(crate) bits: u8,
    /// The privilege context, a position in `tlb`.
    pub(crate) mmu: usize,

    /// In place, so that generated code reaches it by a constant distance.
    pub(crate) tlb: [[TlbEntry; TLB_SIZE]; mmu::COUNT],
    /// The pages that accesses of generated code met last.
    pub(crate) cells: [Cell; CELLS],
    pub(crate) tlb_physical: Box<[[u64; TLB_SIZE]; mmu::COUNT]>,
    /// The region that large pages are cached of.
    pub(crate) large: Option<Large>,
    /// Counts flushes and drops of code: what is cached under an older number is stale.
    pub(crate) generation: u64,
    /// Counts drops of code only.
    pub(crate) code_generation: u64,
    /// Entries of each translation cache that were filled since it was emptied.
    pub(crate) filled: [Filled; mmu::COUNT],
    /// Translations of other address spaces.
    pub(crate) spaces: Spaces,
    pub(crate) ranges: Vec<RamRange>,
    pub(crate) last_range: usize,
    /// Former maps, kept until no instruction can hold an address in them.
    pub(crate) old_ranges: Vec<Vec<RamRange>>,
    pub(crate) apic_page: u64,
    pub(crate) a20_mask: u64,

    pub(crate) code: HashMap<u64, CodePage, Fast>,
    pub(crate) jumps: Box<[Jump]>,
    pub(crate) graveyard: Vec<CodePage>,
    /// What all blocks take of the host, in bytes, and what they may.
    pub(crate) code_weight: usize,
    pub(crate) code_limit: usize,
    pub(crate) stubs: Stubs,
    pub(crate) engine: Engine,
    pub(crate) translator: Translator,
    pub(crate) checker: Checker,
    pub(crate) shared: Shared,
    pub(crate) running: *const Block,
    /// 1 + way of the link that the block which just ended asks for, or 0.
    pub(crate) link_way: u8,
    pub(crate) link_count: usize,

    /// Where the faulting instruction is in its block.
    pub(crate) fault_at: u16,
    pub(crate) reason: Reason,
    /// Address of the instruction that takes the long way, and where it goes on.
    pub(crate) here: u64,
    pub(crate) next: u64,
    /// Instructions are to be run one at a time: TF or breakpoints.
    pub(crate) single: bool,
    /// The guest's own.
    pub(crate) breakpoints: Breakpoints,
    /// What a debugger outside the guest asks for, if there is one.
    pub(crate) debugging: Option<Box<Debugging>>,
    /// What is logged, if there is a log.
    pub(crate) tracer: Option<Box<Tracer>>,
    /// Every block is logged, so that they run one at a time.
    pub(crate) traced: bool,
    /// The next instruction is not interrupted (STI, MOV SS).
    pub(crate) shadow: bool,
    /// A debug trap is due: after a task switch, or the delivery of an event.
    pub(crate) trap_after: bool,
    pub(crate) halted: bool,
    /// An interrupt waits for IF.
    pub(crate) interrupt_waits: bool,
    pub(crate) nmi_masked: bool,
    pub(crate) nmi_waits: bool,
    /// An application processor between INIT and its start-up IPI.
    pub(crate) wait_for_sipi: bool,
    /// An event whose delivery another engine began.
    pub(crate) injected: Option<(u8, Option<u32>, bool)>,
    /// The instruction that was last found not to be one.
    pub(crate) unknown: Option<Instruction>,

    pub(crate) features: Features,
    pub(crate) cpuid: Vec<CpuidLeaf>,
    pub(crate) physical_bits: u32,
    pub(crate) huge: bool,
    pub(crate) has_smap: bool,
    pub(crate) vendor_is_intel: bool,
    pub(crate) cr4_allowed: u64,
    pub(crate) efer_allowed: u64,
    pub(crate) xcr0_allowed: u64,

    pub(crate) instructions: u64,
    pub(crate) counting: Counting,
    pub(crate) fault_count: u64,

    pub(crate) machine: Arc<Machine>,
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) link: Arc<CpuLink>,
}

// SAFETY: the pointers among the fields lead to what the processor itself owns.
unsafe impl Send for Cpu {}

impl Cpu {
    /// A processor after power-on. `count` is how many the machine has.
    ///
    /// # Errors
    /// When the host gives no memory for generated code.
    pub fn new(
        machine: &Arc<Machine>,
        platform: Arc<dyn Platform>,
        link: Arc<CpuLink>,
        cpuid: Vec<CpuidLeaf>,
        count: usize,
    ) -> std::io::Result<Box<Self>> {
        Self::with_engine(machine, platform, link, cpuid, count, Engine::chosen())
    }

    /// As [`new`](Self::new), with a choice of what executes.
    ///
    /// # Errors
    /// As for `new`.
    pub fn with_engine(
        machine: &Arc<Machine>,
        platform: Arc<dyn Platform>,
        link: Arc<CpuLink>,
        cpuid: Vec<CpuidLeaf>,
        count: usize,
        engine: Engine,
    ) -> std::io::Result<Box<Self>> {
        machine.add_link(link.clone());
        let features = Features::of(&cpuid);
        let leaf = |n: u32| cpuid.iter().find(|l| l.leaf == n).copied().unwrap_or_default();
        let physical_bits = match leaf(0x8000_0008).eax & 0xff {
            0 => 36,
            n => n.clamp(32, 52),
        };
        // Blocks take about three times as much as the machine code that is made of them.
        let room = machine.code_room();
        let arena = (room / 4).min(MOST_MACHINE_CODE);
        let mut cpu = Box::new(Self {
            hot: Hot::new(),
            rest: 0,
            segs: [Segment::default(); 6],
            ldt: Segment::default(),
            tr: Segment::default(),
            gdt: Table::default(),
            idt: Table::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr: [0; 8],
            mxcsr: 0x1f80,
            fop: 0,
            fpu_cs: 0,
            fpu_ds: 0,
            fip: 0,
            fdp: 0,
            msrs: Msrs::default(),
            cpl: 0,
            bits: 0,
            mmu: 0,
            tlb: [[TlbEntry::EMPTY; TLB_SIZE]; mmu::COUNT],
            cells: [Cell::EMPTY; CELLS],
            tlb_physical: Box::new([[0; TLB_SIZE]; mmu::COUNT]),
            large: None,
            generation: 0,
            code_generation: 0,
            filled: Default::default(),
            spaces: Spaces::default(),
            ranges: vec![],
            last_range: 0,
            old_ranges: vec![],
            apic_page: u64::MAX,
            a20_mask: u64::MAX,
            code: HashMap::default(),
            jumps: vec![Jump::EMPTY; JUMP_CACHE].into(),
            graveyard: vec![],
            code_weight: 0,
            code_limit: room - arena,
            stubs: Stubs::new()?,
            engine,
            translator: Translator::new(engine, arena)?,
            checker: Checker::default(),
            shared: Shared::new(&link),
            running: std::ptr::null(),
            link_way: 0,
            link_count: count,
            fault_at: 0,
            reason: Reason::None,
            here: 0,
            next: 0,
            single: false,
            breakpoints: Breakpoints::default(),
            debugging: None,
            tracer: None,
            traced: false,
            shadow: false,
            trap_after: false,
            halted: false,
            interrupt_waits: false,
            nmi_masked: false,
            nmi_waits: false,
            wait_for_sipi: false,
            injected: None,
            unknown: None,
            physical_bits,
            huge: features.gigabyte_pages,
            has_smap: features.smap,
            vendor_is_intel: leaf(0).ebx == u32::from_le_bytes(*b"Genu"),
            cr4_allowed: features.cr4(),
            efer_allowed: features.efer(),
            xcr0_allowed: features.xcr0(),
            features,
            cpuid,
            instructions: 0,
            counting: Counting::default(),
            fault_count: 0,
            machine: machine.clone(),
            platform,
            link,
        });
        cpu.reset();
        cpu.reload_map();
        Ok(cpu)
    }

    /// Sets registers as after power-on (Intel SDM volume 3, table 9-1).
    pub fn reset(&mut self) {
        self.init();
        self.msrs = Msrs { tsc_offset: 0u64.wrapping_sub(self.platform.tsc()), ..Msrs::default() };
        self.hot.fx = Hot::new().fx;
        self.hot.vec = [[0; 32]; 16];
        self.mxcsr = 0x1f80;
        (self.fop, self.fip, self.fdp, self.fpu_cs, self.fpu_ds) = (0, 0, 0, 0, 0);
        self.xcr0 = 1;
        self.cr0 = 0x6000_0010;
        self.wait_for_sipi = false;
        self.forget_all_code();
    }

    /// Sets registers as INIT does.
    pub(crate) fn init(&mut self) {
        let data = Segment { selector: 0, base: 0, limit: 0xffff, flags: 0x9300 };
        self.hot.gpr = [0; 18];
        self.hot.gpr[gpr::RDX] = self.cpuid.iter().find(|l| l.leaf == 1).map_or(0, |l| l.eax.into());
        self.hot.gpr[gpr::RIP] = 0xfff0;
        self.segs = [data; 6];
        self.segs[seg::CS] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, flags: 0x9b00 };
        self.ldt = Segment { limit: 0xffff, flags: 0x8200, ..Segment::default() };
        self.tr = Segment { limit: 0xffff, flags: 0x8b00, ..Segment::default() };
        self.gdt = Table { base: 0, limit: 0xffff };
        self.idt = Table { base: 0, limit: 0xffff };
        self.cr0 = 0x6000_0010 & !0x6000_0000 | self.cr0 & 0x6000_0000;
        (self.cr2, self.cr3, self.cr4, self.efer) = (0, 0, 0, 0);
        self.dr = [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400];
        self.cpl = 0;
        self.hot.cc = 0;
        self.rest = 0;
        (self.shadow, self.halted, self.trap_after, self.breakpoints) = (false, false, false, Breakpoints::default());
        (self.interrupt_waits, self.nmi_masked, self.nmi_waits) = (false, false, false);
        self.flush_tlb();
        self.update_mode();
        self.flags_changed();
    }

    /// Has blocks translated once they have run this often, for tests that have no time.
    pub fn translate_after(&mut self, runs: u16) {
        self.translator.hot = runs;
    }

    /// Number of instructions run so far, about: those of a block that faults are counted whole.
    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// The way to this processor from other threads.
    pub fn link(&self) -> &Arc<CpuLink> {
        &self.link
    }

    /// What ends the wait of a processor that is halted, as bits of [`request`].
    pub fn waits_for(&self) -> u32 {
        if self.wait_for_sipi {
            request::EXIT | request::INIT | request::SIPI
        } else {
            request::EXIT | request::NMI | request::INIT | request::INTERRUPT
        }
    }

    /// Sleeps until something is asked of a processor that is halted.
    pub fn wait(&self) {
        self.link.sleep(self.waits_for());
    }

    /// Runs guest code until something outside is wanted.
    pub fn run(&mut self) -> Exit {
        self.bind_thread();
        self.enter_guest();
        let exit = self.run_inside();
        if self.counting.on {
            self.settle();
        }
        self.link.in_guest.store(0, Ordering::SeqCst);
        self.running = std::ptr::null();
        self.link_way = 0;
        self.translator.forget_link();
        exit
    }

    fn run_inside(&mut self) -> Exit {
        loop {
            if !self.has_turn() {
                return Exit::Turn;
            }
            let shadow = self.shadow && !self.single;
            if self.link.any() || self.halted || self.wait_for_sipi || self.trap_after {
                // An interrupt may go elsewhere than where the last block led.
                self.link_way = 0;
                self.translator.forget_link();
                match self.service() {
                    Ok(None) => {}
                    Ok(Some(exit)) => return exit,
                    Err(TripleFault) => return Exit::TripleFault,
                }
            }
            // The next instruction goes before any interrupt, and if one waits, that instruction alone: in the loops of firmware (sti; nop;
            // nop; cli) the interrupt has no other place.
            let alone = self.single || shadow && self.link.any();
            if shadow && !alone {
                self.shadow = false;
            }
            if alone {
                if self.traced {
                    self.trace_block(std::ptr::null());
                }
                if self.step().is_err() {
                    return Exit::TripleFault;
                }
                continue;
            }
            if self.traced {
                if self.run_traced(shadow).is_err() {
                    return Exit::TripleFault;
                }
                continue;
            }
            if self.engine != Engine::Interpreter && self.is_translatable() {
                let result = match self.find_jump() {
                    Ok(Some(at)) if self.covers(self.jumps[at].block) => self.run_translated(at),
                    Ok(_) => self.step(),
                    Err(_) => {
                        self.charge(1);
                        let reason = std::mem::take(&mut self.reason);
                        self.deliver_exception(reason)
                    }
                };
                if result.is_err() {
                    return Exit::TripleFault;
                }
                continue;
            }
            let from = (std::mem::take(&mut self.link_way), self.running, self.generation);
            match self.find_block() {
                Ok(Some(block)) if self.covers(block) => {
                    if from.0 != 0 && from.2 == self.generation {
                        // SAFETY: nothing was dropped since that block ran: the generation is the same.
                        unsafe { self.link_blocks(from.1, usize::from(from.0 - 1), block) };
                    }
                    if self.run_blocks(block).is_err() {
                        return Exit::TripleFault;
                    }
                }
                Ok(_) => {
                    if self.step().is_err() {
                        return Exit::TripleFault;
                    }
                }
                Err(_) => {
                    self.charge(1);
                    let reason = std::mem::take(&mut self.reason);
                    if self.deliver_exception(reason).is_err() {
                        return Exit::TripleFault;
                    }
                }
            }
        }
    }

    /// Logs the block at `RIP` and runs it, without those that its links lead to.
    fn run_traced(&mut self, shadow: bool) -> Result<(), TripleFault> {
        match self.find_block() {
            Ok(found) => {
                self.shadow = shadow;
                self.trace_block(found.unwrap_or(std::ptr::null()));
                self.shadow = false;
                match found {
                    Some(block) if self.covers(block) => self.run_single(block),
                    _ => self.step(),
                }
            }
            Err(_) => {
                self.charge(1);
                let reason = std::mem::take(&mut self.reason);
                self.deliver_exception(reason)
            }
        }
    }

    /// Runs a block and those that its links lead to.
    #[inline]
    fn run_blocks(&mut self, mut block: *const Block) -> Result<(), TripleFault> {
        loop {
            if !self.charge_block(block) {
                break;
            }
            self.running = block;
            // SAFETY: blocks that may run are kept by `code`, or by the graveyard, which is emptied below only.
            let next = unsafe {
                let ops = &(*block).ops;
                self.instructions += ops.len() as u64;
                (ops[0].run)(&raw mut *self, ops.as_ptr())
            };
            match next {
                END => break,
                FAULT => {
                    self.fault()?;
                    break;
                }
                next => {
                    if self.link.any() || !self.graveyard.is_empty() {
                        break;
                    }
                    block = next as *const Block;
                }
            }
        }
        if !self.graveyard.is_empty() {
            self.running = std::ptr::null();
            self.link_way = 0;
            self.graveyard.clear();
        }
        Ok(())
    }

    /// An instruction of the running block did not complete.
    #[cold]
    pub(crate) fn fault(&mut self) -> Result<(), TripleFault> {
        let mask = if self.bits == 2 { u64::MAX } else { 0xffff_ffff };
        self.hot.gpr[gpr::RIP] = self.hot.gpr[gpr::RIP].wrapping_add(self.fault_at.into()) & mask;
        self.link_way = 0;
        self.give_back(self.fault_at, self.reason != Reason::Alone);
        match std::mem::take(&mut self.reason) {
            Reason::Alone => {
                self.running = std::ptr::null();
                self.step()
            }
            reason => self.deliver_exception(reason),
        }
    }

    /// Runs the one instruction at `RIP`, without keeping it, with all that hangs on single instructions.
    pub(crate) fn step_now(&mut self) -> Result<(), TripleFault> {
        let alone = std::mem::replace(&mut self.counting.alone, true);
        let result = self.step_alone();
        self.counting.alone = alone;
        result
    }

    fn step_alone(&mut self) -> Result<(), TripleFault> {
        self.charge(1);
        let shadow = std::mem::take(&mut self.shadow);
        let trap = self.rest & flag::TF != 0;
        let rip = self.hot.gpr[gpr::RIP];
        if self.breakpoints.code && !shadow && self.rest & flag::RF == 0 {
            let hit = self.code_breakpoints();
            if hit != 0 {
                self.dr[6] |= hit;
                self.single = true;
                return self.deliver_exception(Reason::Exception { vector: 1, code: None, address: 0 });
            }
        }
        let block = match self.decode_one() {
            Ok(block) => block,
            Err(_) => {
                let reason = std::mem::take(&mut self.reason);
                let result = self.deliver_exception(reason);
                self.flags_changed();
                return result;
            }
        };
        self.running = &raw const block;
        let resume = self.rest & flag::RF;
        // SAFETY: the block lives until the end of this function, and its operations end.
        let next = unsafe { (block.ops[0].run)(&raw mut *self, block.ops.as_ptr()) };
        self.running = std::ptr::null();
        self.link_way = 0;
        self.instructions += 1;
        let result = if next == FAULT {
            let tried = self.hot.gpr[gpr::RIP].wrapping_add(self.fault_at.into());
            debug_assert_eq!(tried, rip);
            self.breakpoints.hits = 0;
            match std::mem::take(&mut self.reason) {
                Reason::Alone => Ok(()),
                reason => self.deliver_exception(reason),
            }
        } else {
            self.rest &= !resume;
            // After MOV SS and POP SS traps of data wait for the next instruction, and that of TF is lost (Intel SDM volume 3, 7.8.3).
            if self.shadow && block.loads_stack_segment() { Ok(()) } else { self.trap_if_hit(trap) }
        };
        self.graveyard.clear();
        self.flags_changed();
        self.single |= self.breakpoints.hits != 0;
        result
    }

    /// Runs exactly one instruction, for an engine that cannot. Interrupts are not looked at.
    ///
    /// # Errors
    /// [`Exit::TripleFault`].
    pub fn step_one(&mut self) -> Result<(), Exit> {
        self.enter_guest();
        if self.link.pending() & request::FLUSH != 0 {
            self.reload_map();
        }
        let result = self.step().map_err(|_| Exit::TripleFault);
        self.link.in_guest.store(0, Ordering::SeqCst);
        result
    }

    /// Does what was asked. An exit ends `run`.
    #[cold]
    fn service(&mut self) -> Result<Option<Exit>, TripleFault> {
        self.renew_cells();
        if self.link.is_asked(request::EXCLUSIVE) {
            self.enter_guest();
        }
        if self.link.pending() & request::FLUSH != 0 {
            self.reload_map();
            self.old_ranges.clear();
        }
        if self.link.clear(request::CODE) != 0 {
            self.take_code_news();
            self.running = std::ptr::null();
            self.link_way = 0;
            self.graveyard.clear();
        }
        if self.link.clear(request::LOG) != 0 {
            self.running = std::ptr::null();
            self.follow_log();
            self.graveyard.clear();
        }
        if self.link.clear(request::DEBUG) != 0
            && let Some(stop) = self.take_debug_stop()
        {
            return Ok(Some(Exit::Debug(stop)));
        }
        if self.link.clear(request::EXIT) != 0 {
            return Ok(Some(Exit::Kicked));
        }
        if self.debug_steps() && !self.halted && !self.wait_for_sipi {
            return Ok(None);
        }
        if self.link.clear(request::INIT) != 0 {
            self.trace_reset();
            self.init();
            self.wait_for_sipi = self.platform.apic_base() & 0x100 == 0;
        }
        if self.wait_for_sipi {
            if self.link.clear(request::SIPI) == 0 {
                return Ok(Some(Exit::Halted));
            }
            let vector = self.link.sipi_vector();
            self.wait_for_sipi = false;
            self.segs[seg::CS].selector = u16::from(vector) << 8;
            self.segs[seg::CS].base = u64::from(vector) << 12;
            self.hot.gpr[gpr::RIP] = 0;
        }
        self.link.clear(request::SIPI);
        if std::mem::take(&mut self.trap_after) {
            self.deliver_exception(Reason::Exception { vector: 1, code: None, address: 0 })?;
        }
        if let Some((vector, code, external)) = self.injected.take() {
            self.halted = false;
            if external {
                self.deliver_interrupt(vector)?;
            } else {
                let address = self.cr2;
                self.deliver_exception(Reason::Exception { vector, code, address })?;
            }
            return Ok(None);
        }
        if self.shadow {
            // One instruction goes first.
            return Ok(None);
        }
        if self.link.clear(request::NMI) != 0 {
            if self.nmi_masked {
                self.nmi_waits = true;
            } else {
                self.halted = false;
                self.deliver_interrupt(2)?;
                self.nmi_masked = true;
                return Ok(None);
            }
        }
        if self.link.clear(request::INTERRUPT) != 0 {
            if self.rest & flag::IF == 0 {
                self.interrupt_waits = true;
            } else if self.outside(|cpu| cpu.platform.interrupt_pending()) {
                self.machine.scan_device_writes();
                // More may wait behind it: look again when the handler is done, or at once if it lets us.
                if let Some(vector) = self.outside(|cpu| cpu.platform.take_interrupt()) {
                    self.halted = false;
                    self.interrupt_waits = true;
                    self.trace_interrupt(vector);
                    self.deliver_interrupt(vector)?;
                    self.flags_changed();
                    return Ok(None);
                }
            }
        }
        Ok(if self.halted { Some(Exit::Halted) } else { None })
    }
}
