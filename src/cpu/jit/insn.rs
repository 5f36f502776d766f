//! Instructions that go on to the next: the guest's own, with registers renamed and the memory operand where the host has it.

use iced_x86::{Code, Instruction, Mnemonic as M, OpAccess, OpKind, Register, RflagsBits};

use crate::{
    execute::segment_index,
    host::{Class, alignment, class_of},
    state::{flag, seg},
};

use super::{
    asm::{Fixup, Mem, ext, r},
    layout::{self, HOST, IN_MEMORY},
    stubs,
    translate::{ColdCell, TooHard, Tx},
};

type Result<T> = std::result::Result<T, TooHard>;

const ARITHMETIC: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// A guest register as part of an address.
#[derive(Clone, Copy, Debug)]
enum Part {
    Host(u8),
    Memory(usize),
}

/// A memory operand's address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ea {
    base: Option<Part>,
    index: Option<Part>,
    scale: u8,
    disp: i32,
    segment: Option<i32>,
    /// All of it is known.
    constant: Option<u64>,
}

impl Ea {
    /// A guest register and a distance.
    pub fn register(n: usize, disp: i32) -> Self {
        Self { base: Some(part(n)), index: None, scale: 0, disp, segment: None, constant: None }
    }

    fn simple(&self) -> Option<u8> {
        match self {
            Self { base: Some(Part::Host(h)), index: None, segment: None, constant: None, .. } => Some(*h),
            _ => None,
        }
    }
}

fn part(n: usize) -> Part {
    if HOST[n] == IN_MEMORY { Part::Memory(n) } else { Part::Host(HOST[n]) }
}

/// What an access needs to be let through.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub size: i32,
    pub write: bool,
    pub align: i32,
}

/// A general register of a size in bytes; not AH to BH.
fn sized(n: u8, size: usize) -> Register {
    use Register as R;
    let n = usize::from(n);
    match size {
        1 => {
            const LOW: [Register; 16] = [
                R::AL,
                R::CL,
                R::DL,
                R::BL,
                R::SPL,
                R::BPL,
                R::SIL,
                R::DIL,
                R::R8L,
                R::R9L,
                R::R10L,
                R::R11L,
                R::R12L,
                R::R13L,
                R::R14L,
                R::R15L,
            ];
            LOW[n]
        }
        2 => R::AX + n as u32,
        4 => R::EAX + n as u32,
        _ => R::RAX + n as u32,
    }
}

/// Which of the guest's flags an instruction wants in place before it runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Nothing,
    Carry,
    All,
}

fn wants(insn: &Instruction) -> Wants {
    let (read, modified) = (insn.rflags_read() & ARITHMETIC, insn.rflags_modified() & ARITHMETIC);
    // What is left undefined may stay as it was (SF, ZF, AF, PF of a multiplication on AMD). The interpreter has it so.
    let kept = match insn.mnemonic() {
        M::Imul | M::Mul | M::Tzcnt | M::Lzcnt => true,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd => {
            (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i) == Register::CL)
        }
        _ => false,
    };
    let missing = if modified == 0 { 0 } else { ARITHMETIC & !modified };
    if kept {
        Wants::All
    } else if (read | missing) == 0 {
        Wants::Nothing
    } else if (read | missing) == RflagsBits::CF {
        Wants::Carry
    } else {
        Wants::All
    }
}

/// The same instruction without a register that its encoding fixes.
fn general(insn: &mut Instruction) {
    let code = match insn.code() {
        Code::Add_AL_imm8 => Code::Add_rm8_imm8,
        Code::Or_AL_imm8 => Code::Or_rm8_imm8,
        Code::Adc_AL_imm8 => Code::Adc_rm8_imm8,
        Code::Sbb_AL_imm8 => Code::Sbb_rm8_imm8,
        Code::And_AL_imm8 => Code::And_rm8_imm8,
        Code::Sub_AL_imm8 => Code::Sub_rm8_imm8,
        Code::Xor_AL_imm8 => Code::Xor_rm8_imm8,
        Code::Cmp_AL_imm8 => Code::Cmp_rm8_imm8,
        Code::Test_AL_imm8 => Code::Test_rm8_imm8,
        Code::Add_AX_imm16 => Code::Add_rm16_imm16,
        Code::Or_AX_imm16 => Code::Or_rm16_imm16,
        Code::Adc_AX_imm16 => Code::Adc_rm16_imm16,
        Code::Sbb_AX_imm16 => Code::Sbb_rm16_imm16,
        Code::And_AX_imm16 => Code::And_rm16_imm16,
        Code::Sub_AX_imm16 => Code::Sub_rm16_imm16,
        Code::Xor_AX_imm16 => Code::Xor_rm16_imm16,
        Code::Cmp_AX_imm16 => Code::Cmp_rm16_imm16,
        Code::Test_AX_imm16 => Code::Test_rm16_imm16,
        Code::Add_EAX_imm32 => Code::Add_rm32_imm32,
        Code::Or_EAX_imm32 => Code::Or_rm32_imm32,
        Code::Adc_EAX_imm32 => Code::Adc_rm32_imm32,
        Code::Sbb_EAX_imm32 => Code::Sbb_rm32_imm32,
        Code::And_EAX_imm32 => Code::And_rm32_imm32,
        Code::Sub_EAX_imm32 => Code::Sub_rm32_imm32,
        Code::Xor_EAX_imm32 => Code::Xor_rm32_imm32,
        Code::Cmp_EAX_imm32 => Code::Cmp_rm32_imm32,
        Code::Test_EAX_imm32 => Code::Test_rm32_imm32,
        Code::Add_RAX_imm32 => Code::Add_rm64_imm32,
        Code::Or_RAX_imm32 => Code::Or_rm64_imm32,
        Code::Adc_RAX_imm32 => Code::Adc_rm64_imm32,
        Code::Sbb_RAX_imm32 => Code::Sbb_rm64_imm32,
        Code::And_RAX_imm32 => Code::And_rm64_imm32,
        Code::Sub_RAX_imm32 => Code::Sub_rm64_imm32,
        Code::Xor_RAX_imm32 => Code::Xor_rm64_imm32,
        Code::Cmp_RAX_imm32 => Code::Cmp_rm64_imm32,
        Code::Test_RAX_imm32 => Code::Test_rm64_imm32,
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Xchg_r16_AX => Code::Xchg_rm16_r16,
        Code::Xchg_r32_EAX => Code::Xchg_rm32_r32,
        Code::Xchg_r64_RAX => Code::Xchg_rm64_r64,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        code => code,
    };
    insn.set_code(code);
}

/// Instructions that work on RAX without naming it (RDX, RCX and RBX are where the guest has them).
fn implicit_rax(insn: &Instruction) -> bool {
    match insn.mnemonic() {
        M::Mul
        | M::Cbw
        | M::Cwde
        | M::Cdqe
        | M::Cwd
        | M::Cdq
        | M::Cqo
        | M::Cmpxchg
        | M::Cmpxchg8b
        | M::Cmpxchg16b
        | M::Pcmpestri
        | M::Pcmpestrm
        | M::Pcmpestri64
        | M::Pcmpestrm64
        | M::Vpcmpestri
        | M::Vpcmpestrm
        | M::Vpcmpestri64
        | M::Vpcmpestrm64 => true,
        M::Imul => insn.op_count() == 1,
        _ => false,
    }
}

impl Tx<'_> {
    /// An instruction after which the next one runs.
    pub fn straight(&mut self, insn: &Instruction) -> Result<()> {
        match insn.mnemonic() {
            M::Push | M::Pop | M::Leave | M::Pushfq | M::Pushfd => return self.stack(insn),
            M::Div | M::Idiv => return self.divide(insn),
            M::Lea => return self.lea(insn),
            M::Vzeroupper | M::Vzeroall => {
                self.want_vectors(true);
                self.a.bytes(if insn.mnemonic() == M::Vzeroall { &[0xc5, 0xfc, 0x77] } else { &[0xc5, 0xf8, 0x77] });
                return Ok(());
            }
            M::Cli => {
                self.spoil_flags();
                self.supervisor_only();
                self.change_rest(flag::IF, false);
                return Ok(());
            }
            M::Cld | M::Std => {
                self.change_rest(flag::DF, insn.mnemonic() == M::Std);
                return Ok(());
            }
            M::Sti => {
                if self.is_counted() {
                    // The instruction behind it must be known where the grant ends.
                    return Err(TooHard);
                }
                self.spoil_flags();
                self.supervisor_only();
                // What is asked already is taken behind the next instruction, which may be the last before a CLI.
                stubs::test_byte(&mut self.a, layout::INTERRUPT_WAITS, 0xff);
                self.miss();
                self.a.load_gs(r::RAX, layout::REQUESTS);
                self.a.op_mem(false, &[], false, &[0x83], ext::CMP, Mem::base(r::RAX, 0));
                self.a.bytes(&[0]);
                self.miss();
                // BTS [rest], 9; the next instruction is not interrupted if this one did it.
                self.a.op_mem(true, &[], true, &[0x0f, 0xba], 5, Mem::at(layout::REST));
                self.a.bytes(&[flag::IF.trailing_zeros() as u8]);
                let was = self.a.jcc(ext::B);
                stubs::set_byte(&mut self.a, layout::SHADOW, 1);
                self.a.land(was);
                return Ok(());
            }
            M::Swapgs => {
                self.spoil_flags();
                self.supervisor_only();
                let base = layout::segment_base(seg::GS);
                self.a.load_gs(r::RAX, base);
                self.a.load_gs(r::R11, layout::KERNEL_GS_BASE);
                self.a.store_gs(base, r::R11);
                self.a.store_gs(layout::KERNEL_GS_BASE, r::RAX);
                return Ok(());
            }
            M::Rdrand | M::Rdseed => return Err(TooHard),
            M::Lahf | M::Sahf => return Err(TooHard),
            _ => {}
        }
        match class_of(insn) {
            Some(Class::Integer) => {}
            Some(Class::Sse) => self.want_vectors(false),
            Some(Class::Avx) => self.want_vectors(true),
            _ => return Err(TooHard),
        }
        self.plain(insn)
    }

    /// To the slow way unless the privilege level is 0.
    pub fn supervisor_only(&mut self) {
        self.a.op_mem(true, &[], false, &[0x80], ext::CMP, Mem::at(layout::CPL));
        self.a.bytes(&[0]);
        self.miss();
    }

    /// The guest's instruction with registers renamed.
    fn plain(&mut self, insn: &Instruction) -> Result<()> {
        let mut new = *insn;
        general(&mut new);
        let explicit: Vec<Register> = (0..insn.op_count())
            .filter(|&i| insn.op_kind(i) == OpKind::Register)
            .map(|i| insn.op_register(i))
            .filter(|r| r.is_gpr())
            .collect();
        let memory = (0..insn.op_count()).find(|&i| insn.op_kind(i) == OpKind::Memory);
        let odd = (0..insn.op_count())
            .any(|i| matches!(insn.op_kind(i), OpKind::MemorySegRDI | OpKind::MemorySegEDI | OpKind::MemorySegDI));
        if odd || insn.is_vsib() {
            return Err(TooHard);
        }
        let implicit = implicit_rax(insn);
        let names = |n: usize| explicit.iter().any(|r| r.full_register().number() == n);
        let info = self.info.info(insn);
        let (mut rax_written, mut access) = (false, Access { size: 0, write: false, align: 1 });
        let mut written = 0u16;
        for used in info.used_registers().iter().filter(|u| u.register().is_gpr()) {
            let n = used.register().full_register().number();
            let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
            written |= u16::from(writes) << n;
            let address = memory.is_some()
                && [insn.memory_base(), insn.memory_index()]
                    .iter()
                    .any(|r| r.is_gpr() && r.full_register().number() == n);
            let known = names(n) || address || n == 0 && implicit;
            if matches!(n, 0 | 4 | 9 | 10 | 11) && !known {
                return Err(TooHard);
            }
            // An address register that is also written without being named.
            if writes && !names(n) && matches!(n, 4 | 9 | 10 | 11) {
                return Err(TooHard);
            }
            rax_written |= writes && n == 0;
        }
        if let Some(i) = memory {
            access.size = insn.memory_size().size() as i32;
            access.align = alignment(insn, access.size as usize).into();
            access.write = !matches!(info.op_access(i), OpAccess::Read | OpAccess::CondRead);
            if access.size == 0 || access.size > 64 {
                return Err(TooHard);
            }
            let bits = matches!(insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc);
            if bits && !explicit.is_empty() {
                return Err(TooHard);
            }
        }
        // Named and implied at once, and written under both names.
        if implicit && names(0) && written & 1 != 0 && insn.mnemonic() == M::Cmpxchg {
            return Err(TooHard);
        }
        let high = |r: &Register| matches!(r, Register::AH | Register::BH | Register::CH | Register::DH);
        // AH to BH forbid the prefix that most registers of ours need: then RAX is where the host has it.
        let uses_high = explicit.iter().any(high);
        let uses_ah = uses_high && names(0);
        // Registers that stand in for those in memory.
        let mut spilt: Vec<usize> =
            explicit.iter().map(|r| r.full_register().number()).filter(|&n| HOST[n] == IN_MEMORY).collect();
        spilt.sort_unstable();
        spilt.dedup();
        let wants = wants(insn);
        let rax_taken = implicit || uses_ah;
        let mut pool = vec![];
        let operand = match memory {
            None => {
                pool.push(r::R11);
                None
            }
            Some(_) => {
                let ea = self.ea(insn)?;
                let at = self.probe(&ea, access)?;
                if uses_high && !rax_taken && wants != Wants::All {
                    self.a.lea(r::RAX, at);
                    Some(Mem::base(r::RAX, 0))
                } else if rax_taken || !spilt.is_empty() || wants == Wants::All {
                    if !(at.base == Some(r::R11) && at.index.is_none() && at.disp == 0) {
                        self.a.lea(r::R11, at);
                    }
                    Some(Mem::base(r::R11, 0))
                } else {
                    Some(at)
                }
            }
        };
        let rax_free = !(rax_taken || uses_high && memory.is_some());
        if rax_free {
            pool.push(r::RAX);
        }
        if spilt.len() > pool.len() {
            return Err(TooHard);
        }
        match wants {
            Wants::Nothing => {}
            Wants::Carry => self.load_carry(),
            Wants::All => self.load_flags(),
        }
        let modified = insn.rflags_modified() & ARITHMETIC;
        if modified == 0
            && matches!(insn.mnemonic(), M::Rcl | M::Rcr | M::Rol | M::Ror | M::Shl | M::Sal | M::Shr | M::Sar)
        {
            // A count that comes to nothing leaves the flags, except that some hosts clear OF: as in the interpreter, they stay.
            if memory.is_none() {
                self.spoil_flags();
            }
        }
        let stand_ins: Vec<(usize, u8)> = spilt.iter().copied().zip(pool).collect();
        for &(n, h) in &stand_ins {
            self.a.load_gs(h, layout::gpr(n));
        }
        if rax_taken {
            self.a.mov(r::RAX, HOST[0]);
        }
        for i in 0..insn.op_count() {
            if insn.op_kind(i) != OpKind::Register {
                continue;
            }
            let register = insn.op_register(i);
            if !register.is_gpr() || high(&register) {
                continue;
            }
            let n = register.full_register().number();
            let h = match stand_ins.iter().find(|s| s.0 == n) {
                Some(&(_, h)) => h,
                None if n == 0 && uses_ah => r::RAX,
                None => HOST[n],
            };
            new.set_op_register(i, sized(h, register.size()));
        }
        if let Some(m) = operand {
            set_memory(&mut new, m);
        }
        self.encode(&new)?;
        for &(n, h) in &stand_ins {
            if written & 1 << n != 0 {
                self.a.store_gs(layout::gpr(n), h);
            }
        }
        if rax_taken && rax_written {
            self.a.mov(HOST[0], r::RAX);
        }
        if modified != 0 {
            self.known.host_flags = true;
            self.known.memory_flags = false;
        }
        Ok(())
    }

    /// Appends an instruction.
    fn encode(&mut self, insn: &Instruction) -> Result<()> {
        let done = self.encoder.encode(insn, 0);
        // What could not be encoded may have left its beginning.
        let mut buffer = self.encoder.take_buffer();
        self.a.bytes(&buffer);
        buffer.clear();
        self.encoder.set_buffer(buffer);
        done.map(|_| ()).map_err(|_| TooHard)
    }

    /// The address of an instruction's memory operand.
    pub fn ea(&mut self, insn: &Instruction) -> Result<Ea> {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let segment = segment_index(insn.memory_segment());
        if !self.long && (segment >= seg::FS || segment == seg::CS) {
            // They have limits or must not be written.
            return Err(TooHard);
        }
        let segment = (segment >= seg::FS).then(|| layout::segment_base(segment));
        let width = if self.long { 8 } else { 4 };
        if base == Register::EIP || [base, index].iter().any(|r| r.is_gpr() && r.size() != width) {
            return Err(TooHard);
        }
        let disp = insn.memory_displacement64();
        if !self.long && base == Register::None && index == Register::None {
            if insn.memory_displ_size() == 2 {
                return Err(TooHard);
            }
            let constant = Some(disp & 0xffff_ffff);
            return Ok(Ea { base: None, index: None, scale: 0, disp: 0, segment, constant });
        }
        // An address of 32 bits wraps all the same.
        let disp = if self.long { disp } else { disp as i32 as u64 };
        let none = Ea { base: None, index: None, scale: 0, disp: 0, segment, constant: None };
        if base == Register::RIP || base == Register::None && index == Register::None {
            if base == Register::None && insn.memory_displ_size() == 4 && disp >> 31 == 1 {
                // A 32-bit address size: not extended by sign.
                return Err(TooHard);
            }
            return Ok(match segment {
                None => Ea { constant: Some(disp), ..none },
                Some(_) => Ea { disp: i32::try_from(disp as i64).map_err(|_| TooHard)?, ..none },
            });
        }
        let get = |r: Register| (r != Register::None).then(|| part(r.number()));
        Ok(Ea {
            base: get(base),
            index: get(index),
            scale: insn.memory_index_scale().trailing_zeros() as u8,
            disp: i32::try_from(disp as i64).map_err(|_| TooHard)?,
            ..none
        })
    }

    /// Computes an address into R11; into RAX first, if the index is in memory.
    fn compute(&mut self, ea: &Ea) {
        let a = &mut self.a;
        if let Some(v) = ea.constant {
            return a.constant(r::R11, v);
        }
        let index = match ea.index {
            Some(Part::Memory(n)) => {
                a.load_gs(r::RAX, layout::gpr(n));
                Some(r::RAX)
            }
            Some(Part::Host(h)) => Some(h),
            None => None,
        };
        let base = match ea.base {
            Some(Part::Memory(n)) => {
                a.load_gs(r::R11, layout::gpr(n));
                Some(r::R11)
            }
            Some(Part::Host(h)) => Some(h),
            None => None,
        };
        match (ea.segment, base, index) {
            (Some(s), None, None) => {
                a.load_gs(r::R11, s);
                if ea.disp != 0 {
                    a.lea(r::R11, Mem::base(r::R11, ea.disp));
                }
            }
            (segment, ..) => {
                let sum = Mem { base, index, scale: ea.scale, disp: ea.disp };
                a.op_mem(false, &[], self.long, &[0x8d], r::R11, sum);
                if let Some(s) = segment {
                    a.op_mem(true, &[], true, &[0x03], r::R11, Mem::at(s));
                }
            }
        }
    }

    /// Looks an address up in the translation cache. Gives where the host has it, in terms of RAX, and R11 or the guest's base;
    /// neither was changed but those two.
    pub fn probe(&mut self, ea: &Ea, access: Access) -> Result<Mem> {
        self.spoil_flags();
        let tag = self.tlb + if access.write { layout::TAG_WRITE } else { layout::TAG_READ };
        let last = access.size - 1;
        if let Some(at) = ea.constant {
            if (at & 0xfff) + last as u64 > 0xfff || at & (access.align as u64 - 1) != 0 {
                return Err(TooHard);
            }
            let entry = (at >> 12 & 1023) as i32 * 32;
            let page = at & !0xfff;
            if let Ok(page) = i32::try_from(page as i64) {
                self.a.op_mem(true, &[], true, &[0x81], ext::CMP, Mem::at(tag + entry));
                self.a.imm32(page);
            } else {
                self.a.constant(r::R11, page);
                self.a.op_mem(true, &[], true, &[0x3b], r::R11, Mem::at(tag + entry));
            }
            self.miss();
            self.a.load_gs(r::RAX, self.tlb + entry + layout::ADDEND);
            return Ok(match i32::try_from(at as i64) {
                Ok(at) => Mem::base(r::RAX, at),
                Err(_) => {
                    self.a.constant(r::R11, at);
                    Mem::sum(r::RAX, r::R11, 0)
                }
            });
        }
        if let Some(cell) = self.cells.filter(|&n| n < super::CELLS) {
            self.cells = Some(cell + 1);
            return Ok(self.probe_cell(ea, access, cell));
        }
        let mask = -4096 | (access.align - 1);
        let last = if access.align > 1 { 0 } else { last };
        // In 32-bit code a register may have an upper half, and the sum wraps.
        let simple = ea.simple().filter(|_| self.long && ea.disp.checked_add(last).is_some());
        if let Some(base) = simple {
            if ea.disp == 0 {
                self.a.mov(r::RAX, base);
            } else {
                self.a.lea(r::RAX, Mem::base(base, ea.disp));
            }
            self.index_of_page();
            self.a.lea(r::R11, Mem::base(base, ea.disp + last));
        } else {
            self.compute(ea);
            self.a.mov(r::RAX, r::R11);
            self.index_of_page();
            // The second look at the address must not need RAX.
            if matches!(ea.index, Some(Part::Memory(_))) {
                self.a.store_gs(layout::TEMPORARY, r::R11);
            }
            if last != 0 {
                self.a.lea(r::R11, Mem::base(r::R11, last));
            }
        }
        self.a.alu(true, ext::AND, r::R11, mask);
        self.a.op_mem(true, &[], true, &[0x3b], r::R11, Mem::base(r::RAX, tag));
        self.miss();
        self.a.op_mem(true, &[], true, &[0x8b], r::RAX, Mem::base(r::RAX, self.tlb + layout::ADDEND));
        if let Some(base) = simple {
            return Ok(Mem::sum(r::RAX, base, ea.disp));
        }
        if matches!(ea.index, Some(Part::Memory(_))) {
            self.a.load_gs(r::R11, layout::TEMPORARY);
        } else {
            self.compute(ea);
        }
        Ok(Mem::sum(r::RAX, r::R11, 0))
    }

    /// As [`probe`](Self::probe), with a cell: the page must be the one that this access met last, or it is looked up out of the way.
    fn probe_cell(&mut self, ea: &Ea, access: Access, cell: usize) -> Mem {
        let tag = self.tlb + if access.write { layout::TAG_WRITE } else { layout::TAG_READ };
        let last = if access.align > 1 { 0 } else { access.size - 1 };
        let simple = ea.simple().filter(|_| self.long && ea.disp.checked_add(last).is_some());
        let simple = simple.map(|base| (base, ea.disp));
        if let Some((base, disp)) = simple {
            self.a.lea(r::R11, Mem::base(base, disp + last));
        } else {
            self.compute(ea);
            self.a.mov(r::RAX, r::R11);
            if last != 0 {
                self.a.lea(r::R11, Mem::base(r::R11, last));
            }
        }
        let at = layout::cell(cell);
        self.a.alu(true, ext::AND, r::R11, -4096 | (access.align - 1));
        self.a.op_mem(true, &[], true, &[0x03], r::R11, Mem::at(layout::EPOCH));
        self.a.op_mem(true, &[], true, &[0x3b], r::R11, Mem::at(at + layout::CELL_TAG));
        let from = self.a.jcc(ext::NE);
        if last != 0 {
            // The last byte is in the cell's page. The first one need not be: a loop that goes downwards comes from there.
            if let Some((base, disp)) = simple {
                self.a.lea(r::RAX, Mem::base(base, disp));
            }
            self.a.op_reg(true, &[0x33], r::R11, r::RAX);
            self.a.alu(true, ext::CMP, r::R11, 0x1000);
            let crosses = self.a.jcc(ext::AE);
            self.misses.push(crosses);
        }
        if simple.is_some() {
            self.a.load_gs(r::RAX, at + layout::CELL_ADDEND);
        } else {
            self.a.op_mem(true, &[], true, &[0x03], r::RAX, Mem::at(at + layout::CELL_ADDEND));
        }
        let back = self.a.here();
        self.cold_cells.push(ColdCell { from, cell, simple, tag, back, index: 0, end: 0, vectors: false });
        match simple {
            Some((base, disp)) => Mem::sum(r::RAX, base, disp),
            None => Mem::base(r::RAX, 0),
        }
    }

    /// What lies out of the way of a cell: the translation cache, and the cell's new page. Gives the jump for what is not there.
    pub fn follow(&mut self, cold: &ColdCell) -> Fixup {
        let at = layout::cell(cold.cell);
        if let Some((base, disp)) = cold.simple {
            self.a.lea(r::RAX, Mem::base(base, disp));
        } else {
            self.a.store_gs(layout::FOLLOWED, r::RAX);
        }
        self.index_of_page();
        self.a.op_mem(true, &[], true, &[0x2b], r::R11, Mem::at(layout::EPOCH));
        self.a.op_mem(true, &[], true, &[0x3b], r::R11, Mem::base(r::RAX, cold.tag));
        let miss = self.a.jcc(ext::NE);
        self.a.op_mem(true, &[], true, &[0x8b], r::RAX, Mem::base(r::RAX, self.tlb + layout::ADDEND));
        self.a.op_mem(true, &[], false, &[0x83], ext::SUB, Mem::at(at + layout::CELL_CREDIT));
        self.a.bytes(&[1]);
        let spent = self.a.jcc(ext::S);
        self.a.store_gs(at + layout::CELL_ADDEND, r::RAX);
        self.a.op_mem(true, &[], true, &[0x03], r::R11, Mem::at(layout::EPOCH));
        self.a.store_gs(at + layout::CELL_TAG, r::R11);
        self.a.land(spent);
        if cold.simple.is_none() {
            self.a.op_mem(true, &[], true, &[0x03], r::RAX, Mem::at(layout::FOLLOWED));
        }
        let back = self.a.jmp();
        self.a.land_at(back, cold.back);
        miss
    }

    /// RAX from an address to its entry's place in the cache.
    fn index_of_page(&mut self) {
        self.a.shift(true, ext::SHR, r::RAX, 7);
        self.a.alu(false, ext::AND, r::RAX, 1023 << 5);
    }

    /// To the slow way if the comparison before was unequal.
    pub fn miss(&mut self) {
        let from = self.a.jcc(ext::NE);
        self.misses.push(from);
    }

    fn lea(&mut self, insn: &Instruction) -> Result<()> {
        let mut flat = *insn;
        flat.set_segment_prefix(Register::None);
        let ea = self.ea(&flat)?;
        let to = insn.op0_register();
        let n = to.number() & 15;
        let n = if to.is_gpr() { to.full_register().number() } else { n };
        let target = if HOST[n] == IN_MEMORY { r::R11 } else { HOST[n] };
        if to.size() == 2 {
            return Err(TooHard);
        }
        let wide = to.size() == 8;
        if let Some(v) = ea.constant {
            self.a.constant(target, if wide { v } else { v & 0xffff_ffff });
        } else if let (None | Some(Part::Host(_)), None | Some(Part::Host(_))) = (ea.base, ea.index) {
            let host = |p: Option<Part>| match p {
                Some(Part::Host(h)) => Some(h),
                _ => None,
            };
            let m = Mem { base: host(ea.base), index: host(ea.index), scale: ea.scale, disp: ea.disp };
            self.a.op_mem(false, &[], wide, &[0x8d], target, m);
        } else {
            // RAX holds nothing that the flags' place depends on: only flags may be live, and MOV and LEA keep them.
            self.compute(&ea);
            if target != r::R11 || !wide {
                self.a.op_reg(wide, &[0x89], r::R11, target);
            }
        }
        if HOST[n] == IN_MEMORY {
            self.a.store_gs(layout::gpr(n), r::R11);
        }
        Ok(())
    }

    /// DIV and IDIV of 32 and 64 bits, once it is certain that the host's will not fault. Flags stay, as in the interpreter.
    fn divide(&mut self, insn: &Instruction) -> Result<()> {
        let memory = insn.op_kind(0) == OpKind::Memory;
        let size = if memory { insn.memory_size().size() } else { insn.op_register(0).size() };
        if size < 4 {
            return Err(TooHard);
        }
        let wide = size == 8;
        self.spoil_flags();
        if memory {
            let ea = self.ea(insn)?;
            let at = self.probe(&ea, Access { size: size as i32, write: false, align: 1 })?;
            self.a.op_mem(false, &[], wide, &[0x8b], r::R11, at);
        } else {
            self.guest_to(r::R11, insn.op_register(0).full_register().number());
        }
        let rax = HOST[0];
        let signed = insn.mnemonic() == M::Idiv;
        if signed {
            // The dividend is a single one's extension, and the divisor neither 0 nor -1.
            self.a.op_reg(wide, &[0x89], rax, r::RAX);
            self.a.shift(wide, ext::SAR, r::RAX, if wide { 63 } else { 31 });
            self.a.op_reg(wide, &[0x39], r::RDX, r::RAX);
            self.miss();
            self.a.op_mem(false, &[], wide, &[0x8d], r::RAX, Mem::base(r::R11, 1));
            self.a.alu(wide, ext::CMP, r::RAX, 1);
            let small = self.a.jcc(ext::BE);
            self.misses.push(small);
        } else {
            // The upper half is below the divisor: the quotient fits.
            self.a.op_reg(wide, &[0x39], r::R11, r::RDX);
            let large = self.a.jcc(ext::AE);
            self.misses.push(large);
        }
        self.a.op_reg(wide, &[0x89], rax, r::RAX);
        self.a.op_reg(wide, &[0xf7], if signed { 7 } else { 6 }, r::R11);
        self.a.op_reg(wide, &[0x89], r::RAX, rax);
        Ok(())
    }

    /// Copies a guest register into a host register, as much of it as code of this width has.
    pub fn guest_to(&mut self, to: u8, n: usize) {
        match part(n) {
            Part::Host(h) => self.a.op_reg(self.long, &[0x89], h, to),
            Part::Memory(n) => self.a.load_gs(to, layout::gpr(n)),
        }
    }
}

fn set_memory(insn: &mut Instruction, m: Mem) {
    insn.set_segment_prefix(Register::None);
    let register = |n: Option<u8>| n.map_or(Register::None, |n| sized(n, 8));
    insn.set_memory_base(register(m.base));
    insn.set_memory_index(register(m.index));
    insn.set_memory_index_scale(1 << m.scale);
    insn.set_memory_displacement64(m.disp as i64 as u64);
    insn.set_memory_displ_size(u32::from(m.disp != 0));
}
