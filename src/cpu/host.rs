//! Single instructions that the host executes on the guest's registers.
//!
//! Host and guest speak the same instruction set, so whatever only computes needs no semantics of ours: a stub loads the
//! registers that the instruction names, runs the very instruction with its memory operand at an address that we choose, and
//! stores what it wrote. Flags, including the undefined ones, and rounding are then those of a real processor.

use std::collections::HashMap;

use iced_x86::{
    Code, CpuidFeature, Encoder, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

use crate::{
    arena::Arena,
    gather,
    state::{Hot, offset},
};

/// Generated code: registers, and where the memory operand lies.
pub(crate) type StubFn = unsafe extern "sysv64" fn(*mut Hot, u64);

/// Which registers an instruction works on, and so what may forbid it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Integer,
    Sse,
    Avx,
    Mmx,
    X87,
}

/// What is known of an instruction that the host executes.
#[derive(Clone, Copy)]
pub(crate) struct Stub {
    pub run: StubFn,
    pub class: Class,
    /// Length of the memory operand, 0 if there is none.
    pub len: u8,
    pub read: bool,
    pub write: bool,
    /// The alignment that the memory operand must have, or 1.
    pub align: u8,
    /// Uses MXCSR.
    pub float: bool,
    /// What it does to memory is one step.
    pub locked: bool,
    /// BT and its kin with a register: the operand is a string of bits.
    pub bit_string: bool,
    /// MMX registers written.
    pub mm_written: u8,
}

const CODE_SIZE: usize = 16 << 20;

/// The stubs of one processor.
pub(crate) struct Stubs {
    arena: Arena,
    known: HashMap<Vec<u8>, StubFn>,
    info: InstructionInfoFactory,
}

const GPRS: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];
const CALLEE_SAVED: [usize; 6] = [3, 5, 12, 13, 14, 15];

/// Why no stub was made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoStub {
    /// The instruction is not one that only computes, or the host lacks it.
    Unsuitable,
    /// The code memory is full.
    Full,
}

/// Registers that an instruction touches.
#[derive(Default)]
struct Uses {
    gpr: u16,
    gpr_written: u16,
    vec: u16,
    vec_written: u16,
    mm: u8,
    mm_written: u8,
    high_byte: bool,
}

impl Stubs {
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { arena: Arena::new(CODE_SIZE)?, known: HashMap::new(), info: InstructionInfoFactory::new() })
    }

    /// Forgets all stubs. No block may hold one any more.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.known.clear();
    }

    /// The stub for an instruction.
    pub fn make(&mut self, original: &Instruction) -> Result<Stub, NoStub> {
        let mut insn = *original;
        let class = class_of(&insn).ok_or(NoStub::Unsuitable)?;
        to_64_bit(&mut insn);
        let explicit = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
        let len = if explicit { insn.memory_size().size() } else { 0 };
        if len > 64 || (explicit && len == 0) {
            return Err(NoStub::Unsuitable);
        }
        insn.set_segment_prefix(Register::None);
        if explicit {
            insn.set_memory_base(Register::None);
            insn.set_memory_index(Register::None);
            insn.set_memory_index_scale(1);
            insn.set_memory_displacement64(0);
            insn.set_memory_displ_size(4);
        }
        let mut uses = Uses::default();
        let info = self.info.info(&insn);
        let (mut read, mut write) = (false, false);
        for i in 0..insn.op_count() {
            if insn.op_kind(i) == OpKind::Memory {
                let access = info.op_access(i);
                read |= !matches!(access, OpAccess::Write | OpAccess::CondWrite);
                write |= !matches!(access, OpAccess::Read | OpAccess::CondRead);
                // What is written conditionally is written back as it was.
                read |= matches!(access, OpAccess::CondWrite);
            }
        }
        for used in info.used_registers() {
            uses.add(used.register(), used.access());
        }
        for i in 0..insn.op_count() {
            if insn.op_kind(i) == OpKind::Register {
                uses.high_byte |=
                    matches!(insn.op_register(i), Register::AH | Register::BH | Register::CH | Register::DH);
            }
        }
        let flags = insn.rflags_read() | insn.rflags_modified() != 0;
        let vex = insn.encoding() == EncodingKind::VEX;
        let float = matches!(class, Class::Sse | Class::Avx | Class::Mmx) && uses_mxcsr(&insn);

        // Registers for the stub itself. RSP is the host's: the guest's goes into another.
        let mut taken = uses.gpr | 1 << 4 | 1;
        let mut take = |choices: &[usize]| {
            let found = choices.iter().copied().find(|&r| taken & 1 << r == 0).ok_or(NoStub::Unsuitable)?;
            taken |= 1 << found;
            Ok(found)
        };
        let memory = take(&[7, 6, 2, 1, 3])?;
        let base = take(&[3, 5, 13, 14, 15])?;
        let stack = if uses.gpr & 1 << 4 != 0 { Some(take(&[3, 1, 2, 6])?) } else { None };
        if let Some(r) = stack {
            for i in 0..insn.op_count() {
                if insn.op_kind(i) == OpKind::Register {
                    let replaced = replace_stack(insn.op_register(i), r);
                    insn.set_op_register(i, replaced);
                }
            }
        }
        if explicit {
            insn.set_memory_base(GPRS[memory]);
            insn.set_memory_displ_size(0);
        }

        let mut a = Assembler::default();
        let mut saved: Vec<usize> =
            CALLEE_SAVED.into_iter().filter(|&r| uses.gpr & 1 << r != 0 || [memory, base].contains(&r)).collect();
        if let Some(r) = stack.filter(|r| CALLEE_SAVED.contains(r) && !saved.contains(r)) {
            saved.push(r);
        }
        saved.iter().for_each(|&r| a.push(r));
        a.move_register(base, 7);
        if memory != 6 {
            a.move_register(memory, 6);
        }
        if class == Class::X87 {
            a.save_area(1, base);
        }
        if float {
            a.mxcsr(2, base, offset::MXCSR_RUN);
        }
        for n in (0..16).filter(|n| uses.vec & 1 << n != 0) {
            a.vector(vex, false, n, base);
        }
        for n in (0..8).filter(|n| uses.mm & 1 << n != 0) {
            a.mmx(false, n, base);
        }
        if flags {
            a.load_flags(base);
        }
        let place = |n: usize| if n == 4 { stack.unwrap_or(4) } else { n };
        for n in (0..16).filter(|n| uses.gpr & 1 << n != 0) {
            a.gpr(false, place(n), base, 8 * n as i64);
        }
        let mut encoder = Encoder::new(64);
        encoder.encode(&insn, 0).map_err(|_| NoStub::Unsuitable)?;
        a.code.extend(encoder.take_buffer());
        for n in (0..16).filter(|n| uses.gpr_written & 1 << n != 0) {
            a.gpr(true, place(n), base, 8 * n as i64);
        }
        for n in (0..16).filter(|n| uses.vec_written & 1 << n != 0) {
            a.vector(vex, true, n, base);
        }
        for n in (0..8).filter(|n| uses.mm_written & 1 << n != 0) {
            a.mmx(true, n, base);
        }
        if flags {
            a.save_flags(base);
        }
        if class == Class::X87 {
            a.save_area(0, base);
            // FNINIT: no pending exception stays behind.
            a.code.extend([0xdb, 0xe3]);
        }
        if float {
            a.mxcsr(3, base, offset::MXCSR_OUT);
        }
        if float || class == Class::X87 {
            a.mxcsr(2, base, offset::MXCSR_HOST);
        }
        if uses.mm != 0 {
            a.code.extend([0x0f, 0x77]);
        }
        if vex && uses.vec != 0 {
            a.code.extend([0xc5, 0xf8, 0x77]);
        }
        saved.iter().rev().for_each(|&r| a.pop(r));
        a.code.push(0xc3);

        let run = match self.known.get(&a.code) {
            Some(&run) => run,
            None => {
                let at = self.arena.add(&a.code).ok_or(NoStub::Full)?;
                // SAFETY: the code just written follows the calling convention of the type.
                let run = unsafe { std::mem::transmute::<*const u8, StubFn>(at) };
                self.known.insert(a.code, run);
                run
            }
        };
        let register_offset =
            insn.op_count() == 2 && insn.op_kind(0) == OpKind::Memory && insn.op_kind(1) == OpKind::Register;
        let bit_string =
            register_offset && matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
        let align = alignment(&insn, len);
        // XCHG with memory is, with or without the prefix (Intel SDM volume 3, 9.1.2.2).
        let locked = explicit && (insn.has_lock_prefix() || insn.mnemonic() == Mnemonic::Xchg);
        let (len, mm_written) = (len as u8, uses.mm_written);
        Ok(Stub { run, class, len, read, write, align, float, locked, bit_string, mm_written })
    }
}

impl Uses {
    fn add(&mut self, register: Register, access: OpAccess) {
        let written = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None);
        if register.is_gpr() {
            let bit = 1 << register.full_register().number();
            self.gpr |= bit;
            self.gpr_written |= if written { bit } else { 0 };
        } else if register.is_vector_register() {
            let bit = 1u16.checked_shl(register.number() as u32).unwrap_or(0);
            self.vec |= bit;
            self.vec_written |= if written { bit } else { 0 };
        } else if register.is_mm() {
            let bit = 1 << register.number();
            self.mm |= bit;
            self.mm_written |= if written { bit } else { 0 };
        }
    }
}

/// Encodings that 64-bit mode lacks.
fn to_64_bit(insn: &mut Instruction) {
    let code = match insn.code() {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
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
    // Only a repeat prefix that is part of the instruction may stay, and that is in the code.
    insn.set_has_rep_prefix(false);
    insn.set_has_repne_prefix(false);
}

fn replace_stack(register: Register, by: usize) -> Register {
    let sizes = |a: [Register; 4]| match register {
        Register::RSP => Some(a[0]),
        Register::ESP => Some(a[1]),
        Register::SP => Some(a[2]),
        Register::SPL => Some(a[3]),
        _ => None,
    };
    let replaced = match by {
        1 => sizes([Register::RCX, Register::ECX, Register::CX, Register::CL]),
        2 => sizes([Register::RDX, Register::EDX, Register::DX, Register::DL]),
        3 => sizes([Register::RBX, Register::EBX, Register::BX, Register::BL]),
        _ => sizes([Register::RSI, Register::ESI, Register::SI, Register::SIL]),
    };
    replaced.unwrap_or(register)
}

/// Which instructions only compute, and on what. Nothing else may run on the host.
pub(crate) fn class_of(insn: &Instruction) -> Option<Class> {
    use Mnemonic as M;
    if insn.is_privileged() || insn.is_stack_instruction() || insn.is_string_instruction() || insn.has_op_mask() {
        return None;
    }
    if insn.flow_control() != iced_x86::FlowControl::Next || gather::is_masked(insn) {
        return None;
    }
    let integer = matches!(
        insn.mnemonic(),
        M::Add
            | M::Adc
            | M::Sub
            | M::Sbb
            | M::And
            | M::Or
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
            | M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
            | M::Imul
            | M::Mul
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Bswap
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Movbe
            | M::Crc32
            | M::Adcx
            | M::Adox
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsmsk
            | M::Blsr
            | M::Bzhi
            | M::Mulx
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
            | M::Rdrand
            | M::Rdseed
            | M::Lahf
            | M::Sahf
            | M::Cmc
            | M::Clc
            | M::Stc
            | M::Mfence
            | M::Lfence
            | M::Sfence
            | M::Movnti
            | M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
            | M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
    );
    if integer {
        // Segment, control and debug registers are not the host's business.
        let plain = (0..insn.op_count()).all(|i| insn.op_kind(i) != OpKind::Register || insn.op_register(i).is_gpr());
        return plain.then_some(Class::Integer);
    }
    if matches!(
        insn.mnemonic(),
        M::Ldmxcsr
            | M::Stmxcsr
            | M::Vldmxcsr
            | M::Vstmxcsr
            | M::Vzeroall
            | M::Vzeroupper
            | M::Emms
            | M::Clflush
            | M::Pause
            | M::Fninit
            | M::Finit
            | M::Fnclex
            | M::Fclex
            | M::Fnstsw
            | M::Fstsw
            | M::Fnstcw
            | M::Fstcw
            | M::Fnstenv
            | M::Fstenv
            | M::Fnsave
            | M::Fsave
            | M::Frstor
            | M::Fldenv
            | M::Wait
            | M::Fnop
            | M::Monitor
            | M::Mwait
            | M::Fneni
            | M::Feni
            | M::Fndisi
            | M::Fdisi
            | M::Fnsetpm
            | M::Fsetpm
            | M::Femms
    ) {
        return None;
    }
    let mut class = None;
    for feature in insn.cpuid_features() {
        use CpuidFeature as F;
        let this = match feature {
            F::FPU | F::FPU287 | F::FPU387 | F::CMOV => Class::X87,
            F::MMX => Class::Mmx,
            F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::AES
            | F::PCLMULQDQ
            | F::SHA
            | F::GFNI => Class::Sse,
            F::AVX | F::AVX2 | F::FMA | F::F16C | F::VAES | F::VPCLMULQDQ => Class::Avx,
            _ => return None,
        };
        class = Some(match class {
            None => this,
            Some(Class::X87) => Class::X87,
            Some(Class::Avx) => Class::Avx,
            Some(_) if this == Class::Avx => Class::Avx,
            Some(_) if this == Class::X87 => Class::X87,
            Some(other) => other,
        });
    }
    match (class?, insn.encoding()) {
        (Class::Avx | Class::Sse, EncodingKind::VEX) => Some(Class::Avx),
        (Class::Sse | Class::Mmx, EncodingKind::Legacy) => {
            let mm = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_mm());
            Some(if mm { Class::Mmx } else { Class::Sse })
        }
        (Class::X87, EncodingKind::Legacy) => Some(Class::X87),
        _ => None,
    }
}

/// Whether rounding, exceptions or flags of MXCSR concern an instruction. Told by the names: floating point arithmetic,
/// comparison and conversion end in the element type.
fn uses_mxcsr(insn: &Instruction) -> bool {
    let name = format!("{:?}", insn.mnemonic()).to_ascii_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    let starts = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "cmp", "cvt", "round", "hadd", "hsub", "dp", "comi", "ucomi",
        "fm", "fnm",
    ];
    starts.iter().any(|s| name.starts_with(s)) && !name.starts_with("cmpxchg")
}

/// What alignment `#GP` enforces (Intel SDM volume 2, 2.4: exception classes 1 and 4).
pub(crate) fn alignment(insn: &Instruction, len: usize) -> u8 {
    use Mnemonic as M;
    let m = insn.mnemonic();
    if m == M::Cmpxchg16b {
        return 16;
    }
    let streaming =
        matches!(m, M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa);
    let loose = matches!(
        m,
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu | M::Pcmpestri | M::Pcmpestrm | M::Pcmpistri | M::Pcmpistrm
    );
    match insn.encoding() {
        EncodingKind::Legacy if len == 16 && !loose => 16,
        EncodingKind::VEX if streaming => len as u8,
        _ => 1,
    }
}

/// Just enough of an assembler.
#[derive(Default)]
struct Assembler {
    code: Vec<u8>,
}

impl Assembler {
    fn push(&mut self, r: usize) {
        if r >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0x50 | (r & 7) as u8);
    }

    fn pop(&mut self, r: usize) {
        if r >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0x58 | (r & 7) as u8);
    }

    fn move_register(&mut self, to: usize, from: usize) {
        let rex = 0x48 | (from >> 3) as u8 * 4 | (to >> 3) as u8;
        self.code.extend([rex, 0x89, 0xc0 | ((from & 7) << 3 | to & 7) as u8]);
    }

    /// ModRM for `[base + disp32]`. `base` is neither RSP nor R12.
    fn operand(&mut self, reg: usize, base: usize, at: i64) {
        self.code.push(0x80 | ((reg & 7) << 3 | base & 7) as u8);
        self.code.extend((at as i32).to_le_bytes());
    }

    fn gpr(&mut self, store: bool, r: usize, base: usize, at: i64) {
        self.code.extend([0x48 | (r >> 3) as u8 * 4 | (base >> 3) as u8, if store { 0x89 } else { 0x8b }]);
        self.operand(r, base, at);
    }

    fn rex_b(&mut self, r: usize, base: usize) {
        let rex = 0x40 | (r >> 3) as u8 * 4 | (base >> 3) as u8;
        if rex != 0x40 {
            self.code.push(rex);
        }
    }

    fn vector(&mut self, whole: bool, store: bool, n: usize, base: usize) {
        let opcode = if store { 0x11 } else { 0x10 };
        if whole {
            // VMOVUPS, 256 bits.
            let inverted = (!(n >> 3) & 1) << 7 | 1 << 6 | (!(base >> 3) & 1) << 5 | 1;
            self.code.extend([0xc4, inverted as u8, 0x7c, opcode]);
        } else {
            self.rex_b(n, base);
            self.code.extend([0x0f, opcode]);
        }
        self.operand(n, base, offset::VEC + 32 * n as i64);
    }

    fn mmx(&mut self, store: bool, n: usize, base: usize) {
        self.rex_b(0, base);
        self.code.extend([0x0f, if store { 0x7f } else { 0x6f }]);
        self.operand(n, base, offset::FX + 32 + 16 * n as i64);
    }

    /// LDMXCSR (2), STMXCSR (3).
    fn mxcsr(&mut self, extension: usize, base: usize, at: i64) {
        self.rex_b(0, base);
        self.code.extend([0x0f, 0xae]);
        self.operand(extension, base, at);
    }

    /// FXSAVE64 (0), FXRSTOR64 (1).
    fn save_area(&mut self, extension: usize, base: usize) {
        self.code.extend([0x48 | (base >> 3) as u8, 0x0f, 0xae]);
        self.operand(extension, base, offset::FX);
    }

    /// MOVZX EAX, [cc]; ADD AL, 127 (OF from AL); SAHF (the others from AH).
    fn load_flags(&mut self, base: usize) {
        self.rex_b(0, base);
        self.code.extend([0x0f, 0xb7]);
        self.operand(0, base, offset::CC);
        self.code.extend([0x04, 0x7f, 0x9e]);
    }

    /// LAHF; SETO AL; MOV [cc], AX.
    fn save_flags(&mut self, base: usize) {
        self.code.extend([0x9f, 0x0f, 0x90, 0xc0, 0x66]);
        self.rex_b(0, base);
        self.code.push(0x89);
        self.operand(0, base, offset::CC);
    }
}
