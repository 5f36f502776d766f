//! Instructions that take the long way: stack and flow in all modes, segments, division, flags.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::{
    Cpu,
    alu::{Alu, condition},
    block::Op,
    fault::{R, vector},
    interrupt::Source,
    ops,
    state::{attr, flag, gpr, seg},
    string,
};

/// The position of a segment register.
pub(crate) fn segment_index(register: Register) -> usize {
    match register {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

/// The condition of a Jcc, SETcc or CMOVcc, as encoded.
pub(crate) fn condition_code(insn: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match insn.condition_code() {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        _ => 15,
    }
}

impl Cpu {
    /// A general register of any width, AH to BH among them.
    pub(crate) fn register(&self, register: Register) -> u64 {
        let value = self.hot.gpr[register.full_register().number() & 15];
        match register {
            Register::AH | Register::BH | Register::CH | Register::DH => value >> 8 & 0xff,
            r if r.size() == 8 => value,
            r => value & ((1 << (r.size() * 8)) - 1),
        }
    }

    pub(crate) fn write_register(&mut self, register: Register, value: u64) {
        let index = register.full_register().number() & 15;
        match register {
            Register::AH | Register::BH | Register::CH | Register::DH => {
                let r = &mut self.hot.gpr[index];
                *r = *r & !0xff00 | (value & 0xff) << 8;
            }
            r => self.set_register(index, r.size() as u64, value),
        }
    }

    pub(crate) fn load_sized(&mut self, at: u64, size: u32) -> R<u64> {
        match size {
            1 => self.load::<u8>(at).map(u64::from),
            2 => self.load::<u16>(at).map(u64::from),
            4 => self.load::<u32>(at).map(u64::from),
            _ => self.load(at),
        }
    }

    pub(crate) fn store_sized(&mut self, at: u64, size: u32, value: u64) -> R<()> {
        match size {
            1 => self.store(at, value as u8),
            2 => self.store(at, value as u16),
            4 => self.store(at, value as u32),
            _ => self.store(at, value),
        }
    }

    /// The value of operand `n`: a general or segment register, memory, or an immediate.
    pub(crate) fn operand(&mut self, insn: &Instruction, op: &Op, n: u32) -> R<u64> {
        match insn.op_kind(n) {
            OpKind::Register => {
                let r = insn.op_register(n);
                Ok(if r.is_segment_register() { self.segs[segment_index(r)].selector.into() } else { self.register(r) })
            }
            OpKind::Memory => {
                let size = insn.memory_size().size() as u32;
                let at = ops::operand_address(self, op, size, false)?;
                self.load_sized(at, size)
            }
            _ => Ok(insn.immediate(n)),
        }
    }

    pub(crate) fn write_operand(&mut self, insn: &Instruction, op: &Op, n: u32, value: u64) -> R<()> {
        if insn.op_kind(n) == OpKind::Register {
            self.write_register(insn.op_register(n), value);
            return Ok(());
        }
        let size = insn.memory_size().size() as u32;
        let at = ops::operand_address(self, op, size, true)?;
        self.store_sized(at, size, value)
    }

    /// Executes an instruction. `here` and `next` are set. True: the block ends, `next` is where to go on.
    pub(crate) fn execute(&mut self, insn: &Instruction, op: &Op) -> R<bool> {
        if let Some((kind, size)) = string::kind_of(insn) {
            return self.string(insn, kind, size);
        }
        if let Some(done) = self.execute_flow(insn, op)? {
            return Ok(done);
        }
        if let Some(done) = self.execute_data(insn, op)? {
            return Ok(done);
        }
        if let Some(done) = self.execute_float(insn, op)? {
            return Ok(done);
        }
        if let Some(done) = self.execute_system(insn, op)? {
            return Ok(done);
        }
        self.unknown = Some(*insn);
        self.trace_unknown(insn.len());
        Err(self.ud())
    }

    /// The width of what the instruction pushes or pops, in bytes.
    fn stack_width(insn: &Instruction) -> u32 {
        insn.stack_pointer_increment().unsigned_abs()
    }

    fn branch(&mut self, insn: &Instruction) {
        let rip = self.here.wrapping_sub(insn.ip());
        self.next = match insn.op_kind(0) {
            OpKind::NearBranch16 => rip.wrapping_add(insn.near_branch16().into()) & 0xffff,
            OpKind::NearBranch32 => rip.wrapping_add(insn.near_branch32().into()) & 0xffff_ffff,
            _ => rip.wrapping_add(insn.near_branch64()),
        };
    }

    fn execute_flow(&mut self, insn: &Instruction, op: &Op) -> R<Option<bool>> {
        use Mnemonic as M;
        if insn.is_jcc_short_or_near() {
            if condition(condition_code(insn), self.hot.cc) {
                self.branch(insn);
            }
            return Ok(Some(true));
        }
        match insn.mnemonic() {
            M::Jcxz | M::Jecxz | M::Jrcxz | M::Loop | M::Loope | M::Loopne => {
                let mask = match insn.code() {
                    Code::Jcxz_rel8_16 | Code::Jcxz_rel8_32 => 0xffff,
                    Code::Jecxz_rel8_16 | Code::Jecxz_rel8_32 | Code::Jecxz_rel8_64 => 0xffff_ffff,
                    Code::Loop_rel8_16_CX
                    | Code::Loop_rel8_32_CX
                    | Code::Loope_rel8_16_CX
                    | Code::Loope_rel8_32_CX
                    | Code::Loopne_rel8_16_CX
                    | Code::Loopne_rel8_32_CX => 0xffff,
                    Code::Loop_rel8_16_ECX
                    | Code::Loop_rel8_32_ECX
                    | Code::Loop_rel8_64_ECX
                    | Code::Loope_rel8_16_ECX
                    | Code::Loope_rel8_32_ECX
                    | Code::Loope_rel8_64_ECX
                    | Code::Loopne_rel8_16_ECX
                    | Code::Loopne_rel8_32_ECX
                    | Code::Loopne_rel8_64_ECX => 0xffff_ffff,
                    _ => u64::MAX,
                };
                let m = insn.mnemonic();
                let jumps = if matches!(m, M::Jcxz | M::Jecxz | M::Jrcxz) {
                    self.hot.gpr[gpr::RCX] & mask == 0
                } else {
                    let old = self.hot.gpr[gpr::RCX];
                    let count = old.wrapping_sub(1) & mask;
                    self.hot.gpr[gpr::RCX] = if mask == 0xffff { old & !mask | count } else { count };
                    let zero = self.hot.cc & 0x4000 != 0;
                    count != 0 && if m == M::Loope { zero } else { m == M::Loop || !zero }
                };
                if jumps {
                    self.branch(insn);
                }
            }
            M::Call | M::Jmp => return self.call_or_jump(insn, op).map(Some),
            M::Ret => {
                let width = match insn.code() {
                    Code::Retnw | Code::Retnw_imm16 => 2,
                    Code::Retnd | Code::Retnd_imm16 => 4,
                    _ => 8,
                };
                let mut stack = self.stack();
                let rip = stack.pop(self, width)?;
                if insn.op_count() == 1 {
                    stack.skip(insn.immediate16().into());
                }
                self.hot.gpr[gpr::RSP] = stack.sp;
                self.next = rip;
            }
            M::Retf => {
                let width = match insn.code() {
                    Code::Retfw | Code::Retfw_imm16 => 2,
                    Code::Retfd | Code::Retfd_imm16 => 4,
                    _ => 8,
                };
                let release = if insn.op_count() == 1 { insn.immediate16().into() } else { 0 };
                let mut stack = self.stack();
                let rip = stack.pop(self, width)?;
                let cs = stack.pop(self, width)? as u16;
                if self.real_mode() {
                    stack.skip(release);
                    self.hot.gpr[gpr::RSP] = stack.sp;
                    self.segs[seg::CS].load_real(cs);
                    self.next = rip;
                } else {
                    self.far_return(width, cs, rip, stack, release, false)?;
                }
            }
            M::Iret => self.iret(2)?,
            M::Iretd => self.iret(4)?,
            M::Iretq => self.iret(8)?,
            M::Int => self.enter_traced(insn.immediate8(), None, Source::Software, self.here)?,
            M::Int3 => self.enter_traced(vector::BP, None, Source::Software, self.here)?,
            M::Int1 => self.enter_traced(vector::DB, None, Source::Exception, self.here)?,
            M::Into => {
                if self.hot.cc & 1 != 0 {
                    self.enter_traced(vector::OF, None, Source::Software, self.here)?;
                }
            }
            M::Bound => {
                let size = insn.op0_register().size() as u32;
                let at = ops::operand_address(self, op, size * 2, false)?;
                let cut = |v: u64| if size == 2 { i64::from(v as i16) } else { i64::from(v as i32) };
                let low = cut(self.load_sized(at, size)?);
                let high = cut(self.load_sized(at.wrapping_add(size.into()), size)?);
                let index = cut(self.register(insn.op0_register()));
                if index < low || index > high {
                    return Err(self.raise(vector::BR, None));
                }
                return Ok(Some(false));
            }
            M::Ud0 | M::Ud1 | M::Ud2 => return Err(self.ud()),
            M::INVALID => {
                self.trace_unknown(insn.len());
                return Err(self.ud());
            }
            _ => return Ok(None),
        }
        Ok(Some(true))
    }

    fn call_or_jump(&mut self, insn: &Instruction, op: &Op) -> R<bool> {
        let call = insn.mnemonic() == Mnemonic::Call;
        match insn.op_kind(0) {
            OpKind::FarBranch16 => {
                self.far_transfer(insn.far_branch_selector(), insn.far_branch16().into(), 2, call)?;
                return Ok(true);
            }
            OpKind::FarBranch32 => {
                self.far_transfer(insn.far_branch_selector(), insn.far_branch32().into(), 4, call)?;
                return Ok(true);
            }
            _ => {}
        }
        let far = match insn.code() {
            Code::Call_m1616 | Code::Jmp_m1616 => 2,
            Code::Call_m1632 | Code::Jmp_m1632 => 4,
            Code::Call_m1664 | Code::Jmp_m1664 => 8,
            _ => 0,
        };
        if far != 0 {
            let at = ops::operand_address(self, op, far + 2, false)?;
            let offset = self.load_sized(at, far)?;
            let selector = self.load::<u16>(at.wrapping_add(far.into()))?;
            self.far_transfer(selector, offset, far, call)?;
            return Ok(true);
        }
        let back = self.next;
        let target = if matches!(insn.op_kind(0), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) {
            self.branch(insn);
            self.next
        } else {
            self.operand(insn, op, 0)?
        };
        if call {
            self.push(Self::stack_width(insn), back)?;
        }
        self.next = target;
        Ok(true)
    }

    fn execute_data(&mut self, insn: &Instruction, op: &Op) -> R<Option<bool>> {
        use Mnemonic as M;
        match insn.mnemonic() {
            M::Push => {
                let width = Self::stack_width(insn);
                let value = match insn.op_kind(0) {
                    OpKind::Register | OpKind::Memory => self.operand(insn, op, 0)?,
                    _ => insn.immediate(0),
                };
                self.push(width, value)?;
            }
            M::Pop => return self.execute_pop(insn, op).map(Some),
            M::Pusha | M::Pushad => {
                let size = if insn.mnemonic() == M::Pusha { 2 } else { 4 };
                let mut stack = self.stack();
                for r in 0..8 {
                    let value = self.hot.gpr[r];
                    stack.push(self, size, value)?;
                }
                self.hot.gpr[gpr::RSP] = stack.sp;
            }
            M::Popa | M::Popad => {
                let size = if insn.mnemonic() == M::Popa { 2 } else { 4 };
                let mut stack = self.stack();
                let mut values = [0; 8];
                for r in (0..8).rev() {
                    values[r] = stack.pop(self, size)?;
                }
                self.hot.gpr[gpr::RSP] = stack.sp;
                for r in (0..8).filter(|&r| r != gpr::RSP) {
                    self.set_register(r, size.into(), values[r]);
                }
            }
            M::Pushf | M::Pushfd | M::Pushfq => {
                if self.vm86() && self.rest & flag::IOPL != flag::IOPL {
                    return Err(self.gp());
                }
                let value = self.rflags() & !(flag::RF | flag::VM);
                self.push(Self::stack_width(insn), value)?;
            }
            M::Popf | M::Popfd | M::Popfq => {
                if self.vm86() && self.rest & flag::IOPL != flag::IOPL {
                    return Err(self.gp());
                }
                let width = Self::stack_width(insn);
                let value = self.pop(width)? & !flag::RF;
                let mut keep = flag::VM | flag::VIF | flag::VIP;
                let iopl = (self.rest >> 12 & 3) as u8;
                if self.cpl != 0 && !self.real_mode() || self.vm86() {
                    keep |= flag::IOPL;
                }
                if self.cpl > iopl && !self.real_mode() {
                    keep |= flag::IF;
                }
                self.write_flags(value, width, keep);
                return Ok(Some(true));
            }
            M::Enter => {
                let size = Self::stack_width_of_enter(insn);
                let (bytes, levels) = (u64::from(insn.immediate16()), u64::from(insn.immediate8_2nd() & 31));
                let mut stack = self.stack();
                let bp = self.hot.gpr[gpr::RBP];
                stack.push(self, size, bp)?;
                let frame = stack.sp;
                let mut link = crate::segment::Stack { sp: bp, ..stack };
                for _ in 1..levels {
                    link.skip(0u64.wrapping_sub(size.into()));
                    let mut at = link;
                    let value = at.pop(self, size)?;
                    stack.push(self, size, value)?;
                }
                if levels > 0 {
                    stack.push(self, size, frame)?;
                }
                stack.skip(0u64.wrapping_sub(bytes));
                self.set_register(gpr::RBP, size.into(), frame);
                self.hot.gpr[gpr::RSP] = stack.sp;
            }
            M::Leave => {
                let size = match insn.code() {
                    Code::Leavew => 2,
                    Code::Leaved => 4,
                    _ => 8,
                };
                let mut stack = crate::segment::Stack { sp: self.hot.gpr[gpr::RBP], ..self.stack() };
                if !stack.long && stack.segment.flags & attr::DB == 0 {
                    stack.sp = self.hot.gpr[gpr::RSP] & !0xffff | stack.sp & 0xffff;
                }
                let value = stack.pop(self, size)?;
                self.hot.gpr[gpr::RSP] = stack.sp;
                self.set_register(gpr::RBP, size.into(), value);
            }
            M::Mov => return self.move_segment(insn, op),
            M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
                let size = insn.op0_register().size() as u32;
                let at = ops::operand_address(self, op, size + 2, false)?;
                let offset = self.load_sized(at, size)?;
                let selector = self.load::<u16>(at.wrapping_add(size.into()))?;
                let which = match insn.mnemonic() {
                    M::Lds => seg::DS,
                    M::Les => seg::ES,
                    M::Lfs => seg::FS,
                    M::Lgs => seg::GS,
                    _ => seg::SS,
                };
                self.load_segment(which, selector)?;
                self.write_register(insn.op0_register(), offset);
                return Ok(Some(true));
            }
            M::Lea => {
                let value = ops::operand_offset(self, op);
                self.write_register(insn.op0_register(), value);
            }
            M::Div | M::Idiv => self.divide(insn, op)?,
            M::Cld => {
                self.rest &= !flag::DF;
            }
            M::Std => {
                self.rest |= flag::DF;
            }
            M::Salc => {
                let value = if self.hot.cc & 0x100 != 0 { 0xff } else { 0 };
                self.set_register(gpr::RAX, 1, value);
            }
            M::Xlatb => {
                let mask = match insn.op_kind(0) {
                    OpKind::Memory => match insn.memory_base() {
                        Register::BX => 0xffff,
                        Register::EBX => 0xffff_ffff,
                        _ => u64::MAX,
                    },
                    _ => u64::MAX,
                };
                let offset = self.hot.gpr[gpr::RBX].wrapping_add(self.hot.gpr[gpr::RAX] & 0xff) & mask;
                let value: u8 = self.load_at(segment_index(insn.memory_segment()), offset)?;
                self.set_register(gpr::RAX, 1, value.into());
            }
            M::Aaa | M::Aas | M::Aam | M::Aad | M::Daa | M::Das => self.decimal(insn)?,
            M::Nop
            | M::Reservednop
            | M::Prefetch
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Prefetchw
            | M::Prefetchwt1
            | M::Pause
            | M::Endbr32
            | M::Endbr64
            | M::Clflush
            | M::Clflushopt
            | M::Clwb
            | M::Cldemote => {}
            _ => return Ok(None),
        }
        Ok(Some(false))
    }

    fn stack_width_of_enter(insn: &Instruction) -> u32 {
        match insn.code() {
            Code::Enterw_imm16_imm8 => 2,
            Code::Enterd_imm16_imm8 => 4,
            _ => 8,
        }
    }

    fn execute_pop(&mut self, insn: &Instruction, op: &Op) -> R<bool> {
        let width = Self::stack_width(insn);
        let before = self.hot.gpr[gpr::RSP];
        let value = self.pop(width)?;
        if insn.op_kind(0) == OpKind::Memory {
            // The address is computed with RSP already moved (Intel SDM volume 2, POP).
            let size = insn.memory_size().size() as u32;
            let at = ops::operand_address(self, op, size, true)?;
            self.store_sized(at, size, value)?;
            return Ok(false);
        }
        let r = insn.op_register(0);
        if r.is_segment_register() {
            let which = segment_index(r);
            let after = self.hot.gpr[gpr::RSP];
            self.hot.gpr[gpr::RSP] = before;
            self.load_segment(which, value as u16)?;
            self.hot.gpr[gpr::RSP] = after;
            if which == seg::SS {
                self.shadow = true;
                self.single = true;
            }
            return Ok(true);
        }
        self.write_register(r, value);
        Ok(false)
    }

    /// MOV with a segment register; with control and debug registers elsewhere.
    fn move_segment(&mut self, insn: &Instruction, op: &Op) -> R<Option<bool>> {
        let is = |n: u32| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_segment_register();
        if is(0) {
            let which = segment_index(insn.op_register(0));
            if which == seg::CS {
                return Err(self.ud());
            }
            let selector = if insn.op_kind(1) == OpKind::Memory {
                let at = ops::operand_address(self, op, 2, false)?;
                self.load::<u16>(at)?
            } else {
                self.operand(insn, op, 1)? as u16
            };
            self.load_segment(which, selector)?;
            if which == seg::SS {
                self.shadow = true;
                self.single = true;
            }
            return Ok(Some(true));
        }
        if is(1) {
            let selector = self.segs[segment_index(insn.op_register(1))].selector;
            if insn.op_kind(0) == OpKind::Memory {
                let at = ops::operand_address(self, op, 2, true)?;
                self.store(at, selector)?;
            } else {
                self.write_register(insn.op_register(0), selector.into());
            }
            return Ok(Some(false));
        }
        Ok(None)
    }

    fn divide(&mut self, insn: &Instruction, op: &Op) -> R<()> {
        let size =
            if insn.op_kind(0) == OpKind::Memory { insn.memory_size().size() } else { insn.op_register(0).size() };
        let divisor = self.operand(insn, op, 0)?;
        let (rax, rdx) = (self.hot.gpr[gpr::RAX], self.hot.gpr[gpr::RDX]);
        let bits = size as u32 * 8;
        let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        let dividend =
            if size == 1 { u128::from(rax & 0xffff) } else { u128::from(rdx & mask) << bits | u128::from(rax & mask) };
        let error = vector::DE;
        if divisor & mask == 0 {
            return Err(self.raise(error, None));
        }
        let (quotient, remainder) = if insn.mnemonic() == Mnemonic::Div {
            let d = u128::from(divisor & mask);
            let q = dividend / d;
            if q > mask.into() {
                return Err(self.raise(error, None));
            }
            (q as u64, (dividend % d) as u64)
        } else {
            let shift = 128 - 2 * bits;
            let a = (dividend << shift) as i128 >> shift;
            let d = i128::from((divisor << (64 - bits)) as i64 >> (64 - bits));
            let (Some(q), Some(r)) = (a.checked_div(d), a.checked_rem(d)) else {
                return Err(self.raise(error, None));
            };
            let limit = 1i128 << (bits - 1);
            if q < -limit || q >= limit {
                return Err(self.raise(error, None));
            }
            (q as u64, r as u64)
        };
        if size == 1 {
            self.set_register(gpr::RAX, 2, quotient & 0xff | (remainder & 0xff) << 8);
        } else {
            self.set_register(gpr::RAX, size as u64, quotient);
            self.set_register(gpr::RDX, size as u64, remainder);
        }
        Ok(())
    }

    /// Decimal adjustments (Intel SDM volume 2).
    fn decimal(&mut self, insn: &Instruction) -> R<()> {
        use Mnemonic as M;
        let ax = self.hot.gpr[gpr::RAX] as u16;
        let (al, ah) = (ax as u8, (ax >> 8) as u8);
        let flags = self.hot.arith();
        let (cf, af) = (flags & flag::CF != 0, flags & flag::AF != 0);
        let mut cc = self.hot.cc;
        match insn.mnemonic() {
            M::Aam => {
                let base = insn.immediate8();
                if base == 0 {
                    return Err(self.raise(vector::DE, None));
                }
                let (h, l) = (al / base, al % base);
                self.set_register(gpr::RAX, 2, u64::from(h) << 8 | u64::from(l));
                u8::or(l, l, &mut cc);
                self.hot.cc = cc;
                return Ok(());
            }
            M::Aad => {
                let l = u8::add(al, ah.wrapping_mul(insn.immediate8()), &mut cc);
                self.set_register(gpr::RAX, 2, l.into());
                self.hot.cc = cc;
                return Ok(());
            }
            M::Aaa | M::Aas => {
                let adjust = al & 15 > 9 || af;
                let new = match (adjust, insn.mnemonic() == M::Aaa) {
                    (false, _) => ax,
                    (true, true) => ax.wrapping_add(0x106),
                    (true, false) => ax.wrapping_sub(0x106),
                } & 0xff0f;
                self.set_register(gpr::RAX, 2, new.into());
                u8::or(new as u8, new as u8, &mut cc);
                self.hot.cc = cc;
                let keep = self.hot.arith() & !(flag::CF | flag::AF);
                self.hot.set_arith(keep | if adjust { flag::CF | flag::AF } else { 0 });
                return Ok(());
            }
            _ => {}
        }
        let subtract = insn.mnemonic() == M::Das;
        let step = |v: u8, by: u8| if subtract { v.wrapping_sub(by) } else { v.wrapping_add(by) };
        let mut new = al;
        let (mut carry, mut half) = (false, false);
        if al & 15 > 9 || af {
            new = step(new, 6);
            half = true;
            carry = cf || if subtract { al < 6 } else { al > 0xf9 };
        }
        if al > 0x99 || cf {
            new = step(new, 0x60);
            carry = true;
        }
        self.set_register(gpr::RAX, 1, new.into());
        u8::or(new, new, &mut cc);
        self.hot.cc = cc;
        let keep = self.hot.arith() & !(flag::CF | flag::AF);
        self.hot.set_arith(keep | if carry { flag::CF } else { 0 } | if half { flag::AF } else { 0 });
        Ok(())
    }
}
