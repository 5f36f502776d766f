//! One block: its instructions in order, what is known between them, and the cold ends.

use iced_x86::{Decoder, DecoderOptions, Encoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic};

use crate::{Cpu, block::Block, decode, features::Features, ops, state::cr};

use super::{
    Translation,
    asm::{Asm, Fixup, Mem, ext, r},
    layout,
    stubs::{self, Leave, Stubs},
};

/// The instruction has to take the slow way always.
#[derive(Debug)]
pub(super) struct TooHard;

/// A way out of the block that is not worth a place in the hot part.
struct ColdExit {
    from: Fixup,
    way: usize,
    kind: u32,
}

/// Where an instruction took the slow way, and what must hold when it comes back.
struct ColdSlow {
    from: Fixup,
    index: usize,
    back: usize,
    vectors: bool,
}

/// Where an access was not to the page of its cell.
pub(super) struct ColdCell {
    pub from: Fixup,
    pub cell: usize,
    /// The operand is at a register and a distance; else its address is in RAX.
    pub simple: Option<(u8, i32)>,
    pub tag: i32,
    pub back: usize,
    /// Of the instruction, and where it ends.
    pub index: usize,
    pub end: usize,
    pub vectors: bool,
}

/// What host flags, memory and vector registers hold at a place in the code.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// The host's flags are the guest's.
    pub host_flags: bool,
    /// The flags in memory are the guest's.
    pub memory_flags: bool,
    /// Vector registers are live for SSE (bit 0) and AVX (bit 1).
    pub vectors: u8,
}

/// A block being translated.
pub(super) struct Tx<'a> {
    pub a: Asm,
    pub known: Known,
    pub features: &'a Features,
    pub stubs: &'a Stubs,
    pub encoder: &'a mut Encoder,
    pub info: &'a mut InstructionInfoFactory,
    pub rip: u64,
    /// 64-bit code; else flat 32-bit code.
    pub long: bool,
    /// The block's privilege context, and where its translation cache is.
    pub mmu: usize,
    pub tlb: i32,
    /// Supervisor mode may suspend SMAP: the privilege contexts differ.
    pub smap: bool,
    /// The instruction: its number, and its bytes' end.
    pub index: usize,
    pub next: u64,
    /// Jumps to the slow way of this instruction.
    pub misses: Vec<Fixup>,
    unchained: bool,
    /// Instructions are counted: so many are in the block.
    counted: Option<u16>,
    /// Accesses get cells, of which so many are given out.
    pub cells: Option<usize>,
    pub cold_cells: Vec<ColdCell>,
    cold_slow: Vec<ColdSlow>,
    cold_vectors: Vec<(Fixup, usize, usize, u8)>,
    cold_exits: Vec<ColdExit>,
    calls_slow: Vec<Fixup>,
    exits: [(u64, usize); 2],
}

/// The code, and for both exits where they lead and where the jump's distance is.
pub(super) fn translate(cpu: &mut Cpu, block: &Block, translation: &Translation) -> (Asm, [(u64, usize); 2]) {
    let t = &mut cpu.translator;
    let mut tx = Tx {
        a: Asm::default(),
        known: Known { host_flags: false, memory_flags: true, vectors: 0 },
        features: &cpu.features,
        stubs: &t.stubs,
        encoder: &mut t.encoder,
        info: &mut t.info,
        rip: translation.rip,
        long: cpu.bits == 2,
        mmu: translation.mmu,
        tlb: layout::tlb(translation.mmu),
        smap: cpu.cr4 & cr::CR4_SMAP != 0,
        index: 0,
        next: translation.rip,
        misses: vec![],
        unchained: t.unchained,
        counted: cpu.counting.on.then_some(block.count),
        cells: translation.is_quick().then_some(t.cells),
        cold_cells: vec![],
        cold_slow: vec![],
        cold_vectors: vec![],
        cold_exits: vec![],
        calls_slow: vec![],
        exits: [(0, 0); 2],
    };
    let beyond = tx.charge();
    let mut decoder =
        Decoder::with_ip(if tx.long { 64 } else { 32 }, &block.code, translation.rip, DecoderOptions::NONE);
    let mut insn = Instruction::default();
    let mut ended = false;
    while decoder.can_decode() && !ended && tx.index < block.ops.len() {
        decoder.decode_out(&mut insn);
        if !tx.features.has(&insn) {
            decode::without_feature(&mut insn);
        }
        tx.next = if tx.long { insn.next_ip() } else { insn.next_ip() & 0xffff_ffff };
        let op = &block.ops[tx.index];
        let nothing = std::ptr::fn_addr_eq(op.run, ops::nop as crate::block::Handler);
        if !nothing {
            ended = tx.instruction(&insn);
        }
        tx.index += 1;
    }
    if !ended {
        tx.save_flags();
        let next = tx.next;
        tx.exit(1, next);
    }
    if let Some(from) = beyond {
        tx.leave_unpaid(from);
    }
    tx.finish(translation);
    let (code, exits, cells) = (tx.a, tx.exits, tx.cells);
    if let Some(cells) = cells {
        t.cells = cells;
    }
    (code, exits)
}

impl Tx<'_> {
    /// One instruction. True: the block ends with it.
    fn instruction(&mut self, insn: &Instruction) -> bool {
        let (start, known) = (self.a.here(), self.known);
        let colds = (self.a.outside.len(), self.cold_vectors.len(), self.cold_exits.len());
        let (cells, cold_cells) = (self.cells, self.cold_cells.len());
        let done = if insn.is_invalid() || !self.features.has(insn) {
            Err(TooHard)
        } else if insn.flow_control() != FlowControl::Next || matches!(insn.mnemonic(), Mnemonic::Stac | Mnemonic::Clac)
        {
            self.flow(insn)
        } else {
            self.straight(insn).map(|()| false)
        };
        if let Ok(ended) = done {
            let back = self.a.here();
            for from in std::mem::take(&mut self.misses) {
                let vectors = self.known.vectors != 0;
                self.cold_slow.push(ColdSlow { from, index: self.index, back, vectors });
            }
            for cold in &mut self.cold_cells[cold_cells..] {
                (cold.index, cold.end, cold.vectors) = (self.index, back, self.known.vectors != 0);
            }
            return ended;
        }
        self.a.code.truncate(start);
        self.a.outside.truncate(colds.0);
        self.cold_vectors.truncate(colds.1);
        self.cold_exits.truncate(colds.2);
        self.cold_cells.truncate(cold_cells);
        self.cells = cells;
        self.misses.clear();
        self.known = known;
        self.save_flags();
        self.a.constant(r::RAX, self.index as u64);
        let call = self.a.call();
        self.calls_slow.push(call);
        self.known = Known { host_flags: true, memory_flags: true, vectors: 0 };
        false
    }

    /// Stores the flags if memory has old ones. Spoils RAX.
    pub fn save_flags(&mut self) {
        if !self.known.memory_flags {
            // LAHF; SETO AL; MOV [cc], AX
            self.a.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
            self.a.op_mem(true, &[0x66], false, &[0x89], r::RAX, Mem::at(layout::CC));
            self.known.memory_flags = true;
        }
    }

    /// Charges for the block, if instructions are counted. Gives the jump for when the grant does not cover it. Nothing is in the host's
    /// flags yet.
    fn charge(&mut self) -> Option<Fixup> {
        let count = self.counted?;
        self.a.op_mem(true, &[], true, &[0x83], ext::SUB, Mem::at(layout::BUDGET));
        self.a.bytes(&[count as u8]);
        Some(self.a.jcc(ext::S))
    }

    /// The block is run one by one, by the interpreter.
    fn leave_unpaid(&mut self, from: Fixup) {
        self.a.land(from);
        self.a.op_mem(true, &[], true, &[0x83], ext::ADD, Mem::at(layout::BUDGET));
        self.a.bytes(&[self.counted.unwrap_or(0) as u8]);
        self.a.constant(r::R11, self.rip);
        self.a.store_gs(layout::RIP, r::R11);
        let out = self.a.jmp();
        self.a.land_outside(out, self.stubs.leave_end as u64);
    }

    /// The block ends with this instruction though more were to follow: gives back what they were charged. Spoils the host's flags.
    pub fn give_back(&mut self) {
        let left = usize::from(self.counted.unwrap_or(0)).saturating_sub(self.index + 1);
        if left != 0 {
            self.a.op_mem(true, &[], true, &[0x83], ext::ADD, Mem::at(layout::BUDGET));
            self.a.bytes(&[left as u8]);
        }
    }

    /// Whether instructions are counted.
    pub fn is_counted(&self) -> bool {
        self.counted.is_some()
    }

    /// Blocks are left one by one.
    pub fn unchained(&self) -> bool {
        self.unchained
    }

    /// Code that spoils the host's flags follows.
    pub fn spoil_flags(&mut self) {
        self.save_flags();
        self.known.host_flags = false;
    }

    /// Brings the flags into place. Spoils RAX.
    pub fn load_flags(&mut self) {
        if !self.known.host_flags {
            stubs::load_flags(&mut self.a);
            self.known.host_flags = true;
        }
    }

    /// Brings CF into place; the others are spoilt.
    pub fn load_carry(&mut self) {
        if !self.known.host_flags {
            // BT word [cc], 8
            self.a.op_mem(true, &[0x66], false, &[0x0f, 0xba], 4, Mem::at(layout::CC));
            self.a.bytes(&[8]);
        }
    }

    /// Has the vector registers loaded.
    pub fn want_vectors(&mut self, avx: bool) {
        let bit = if avx { 2 } else { 1 };
        if self.known.vectors & bit != 0 {
            return;
        }
        self.spoil_flags();
        stubs::test_byte(&mut self.a, layout::VECTORS_LIVE, bit);
        let cold = self.a.jcc(ext::E);
        let back = self.a.here();
        self.cold_vectors.push((cold, self.index, back, bit));
        self.known.vectors |= bit | 1;
    }

    /// Leaves for another block. Flags are in memory; RAX and R11 are free.
    pub fn exit(&mut self, way: usize, target: u64) {
        if self.unchained || (self.rip ^ target) & !0xfff != 0 {
            self.a.constant(r::R11, target);
            return self.look_up();
        }
        if target < self.next {
            self.a.load_gs(r::RAX, layout::REQUESTS);
            self.a.op_mem(false, &[], false, &[0x83], ext::CMP, Mem::base(r::RAX, 0));
            self.a.bytes(&[0]);
            let from = self.a.jcc(ext::NE);
            self.cold_exits.push(ColdExit { from, way, kind: Leave::POLLED });
        }
        let from = self.a.jmp();
        self.exits[way] = (target, Asm::position(from));
        self.cold_exits.push(ColdExit { from, way, kind: Leave::LINK });
    }

    /// Goes on at the address in R11. Flags are in memory.
    pub fn look_up(&mut self) {
        let leave = self.stubs.leave_end as u64;
        let a = &mut self.a;
        a.store_gs(layout::RIP, r::R11);
        if self.unchained {
            let out = a.jmp();
            return a.land_outside(out, leave);
        }
        let (out, again) = stubs::look_up(a);
        out.into_iter().for_each(|out| a.land_outside(out, leave));
        a.land_outside(again, self.stubs.look_again);
    }

    /// The cold parts.
    fn finish(&mut self, translation: &Translation) {
        let mut calls = [
            (std::mem::take(&mut self.calls_slow), self.stubs.slow),
            (vec![], self.stubs.slow_vectors),
            (vec![], self.stubs.load_sse),
            (vec![], self.stubs.load_avx),
        ];
        for cold in std::mem::take(&mut self.cold_cells) {
            self.a.land(cold.from);
            let from = self.follow(&cold);
            self.cold_slow.push(ColdSlow { from, index: cold.index, back: cold.end, vectors: cold.vectors });
        }
        let a = &mut self.a;
        for cold in &self.cold_slow {
            a.land(cold.from);
            a.constant(r::RAX, cold.index as u64);
            let call = a.call();
            calls[usize::from(cold.vectors)].0.push(call);
            let back = a.jmp();
            a.land_at(back, cold.back);
        }
        for &(from, index, back, bit) in &self.cold_vectors {
            a.land(from);
            a.constant(r::RAX, index as u64);
            let call = a.call();
            calls[if bit == 1 { 2 } else { 3 }].0.push(call);
            let jump = a.jmp();
            a.land_at(jump, back);
        }
        let mut leaves = vec![];
        for cold in &self.cold_exits {
            a.land(cold.from);
            a.constant(r::RAX, (cold.way as u64) << 8 | u64::from(cold.kind));
            leaves.push(a.jmp());
        }
        // Who asks: R11, then the stub.
        let who = std::ptr::from_ref(translation) as u64;
        for (from, stub) in calls.into_iter().chain([(leaves, self.stubs.leave_from)]) {
            if from.is_empty() {
                continue;
            }
            from.into_iter().for_each(|f| a.land(f));
            a.constant(r::R11, who);
            let jump = a.jmp();
            a.land_outside(jump, stub);
        }
    }
}
