//! From instructions to operations.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::{
    Cpu,
    alu::{kind, shift},
    block::{Block, Handler, Op, Slow, form},
    execute::{condition_code, segment_index},
    host::NoStub,
    ops::{self, one},
    state::{gpr, seg},
};

/// What became of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The block may go on.
    More,
    /// It ends here.
    Ends,
    /// It had to end before.
    Before,
}

/// The offset in bytes of a general register.
fn place(register: Register) -> u8 {
    let n = register.full_register().number() as u8 * 8;
    match register {
        Register::None => gpr::ZERO as u8 * 8,
        Register::RIP | Register::EIP => gpr::RIP as u8 * 8,
        Register::AH | Register::CH | Register::DH | Register::BH => n + 1,
        _ => n,
    }
}

/// Fills in the memory operand.
fn memory(cpu: &Cpu, insn: &Instruction, op: &mut Op) {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    op.base = place(base);
    op.index = if index.is_vector_register() { gpr::ZERO as u8 * 8 } else { place(index) };
    op.scale = insn.memory_index_scale().trailing_zeros() as u8;
    op.disp = insn.memory_displacement64() as i64;
    let width = [base, index].into_iter().filter(|r| r.is_gpr() || r.is_ip()).map(|r| r.size()).max();
    let width = width.unwrap_or(insn.memory_displ_size() as usize);
    op.form = match width {
        2 => form::MASK16,
        8 => 0,
        _ => form::MASK32,
    };
    op.seg = segment_index(insn.memory_segment()) as u8;
    if cpu.bits != 2 || usize::from(op.seg) >= seg::FS {
        op.form |= form::SEGMENT;
    }
}

/// How the address in RDI is cut, of an instruction whose operand it is without saying so.
fn implicit(insn: &Instruction) -> Option<u8> {
    (0..insn.op_count()).find_map(|i| match insn.op_kind(i) {
        OpKind::MemorySegRDI => Some(0),
        OpKind::MemorySegEDI => Some(form::MASK32),
        OpKind::MemorySegDI => Some(form::MASK16),
        _ => None,
    })
}

/// What encodings mean to a processor without the feature that gave them a meaning of their own: TZCNT is BSF with a prefix
/// that is ignored, hints do nothing (Intel SDM volume 2, TZCNT, NOP).
pub(crate) fn without_feature(insn: &mut Instruction) {
    let code = match insn.code() {
        Code::Tzcnt_r16_rm16 => Code::Bsf_r16_rm16,
        Code::Tzcnt_r32_rm32 => Code::Bsf_r32_rm32,
        Code::Tzcnt_r64_rm64 => Code::Bsf_r64_rm64,
        Code::Lzcnt_r16_rm16 => Code::Bsr_r16_rm16,
        Code::Lzcnt_r32_rm32 => Code::Bsr_r32_rm32,
        Code::Lzcnt_r64_rm64 => Code::Bsr_r64_rm64,
        Code::Wbnoinvd => Code::Wbinvd,
        _ => match insn.mnemonic() {
            Mnemonic::Rdsspd | Mnemonic::Rdsspq | Mnemonic::Cldemote | Mnemonic::Prefetchwt1 => Code::Nopd,
            Mnemonic::Bndmov
            | Mnemonic::Bndcl
            | Mnemonic::Bndcu
            | Mnemonic::Bndcn
            | Mnemonic::Bndmk
            | Mnemonic::Bndldx
            | Mnemonic::Bndstx => Code::Nopd,
            _ => return,
        },
    };
    if code == Code::Nopd {
        let (ip, len) = (insn.ip(), insn.len());
        *insn = Instruction::default();
        insn.set_ip(ip);
        insn.set_len(len);
    }
    insn.set_code(code);
}

/// Appends an instruction that lies from `at` to `next` of the block.
pub(crate) fn push(cpu: &mut Cpu, block: &mut Block, insn: &Instruction, at: usize, next: usize) -> Pushed {
    let mut op = Op {
        run: ops::nop,
        imm: 0,
        disp: 0,
        d: 0,
        s: 0,
        base: gpr::ZERO as u8 * 8,
        index: gpr::ZERO as u8 * 8,
        scale: 0,
        form: if cpu.bits == 2 { 0 } else { form::MASK32 },
        seg: seg::DS as u8,
        spare: 0,
        at: at as u16,
        next: next as u16,
    };
    let has_memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
    if has_memory {
        memory(cpu, insn, &mut op);
    } else if let Some(mask) = implicit(insn) {
        (op.base, op.form, op.seg) = (gpr::RDI as u8 * 8, mask, segment_index(insn.memory_segment()) as u8);
        if cpu.bits != 2 || usize::from(op.seg) >= seg::FS {
            op.form |= form::SEGMENT;
        }
    }
    let known = !insn.is_invalid() && cpu.features.has(insn);
    if known
        && !insn.has_lock_prefix()
        && let Some((run, ends)) = fast(cpu, insn, &mut op, has_memory)
    {
        op.run = run;
        block.ops.push(op);
        return if ends { Pushed::Ends } else { Pushed::More };
    }
    let mut slow = Slow { insn: if known { *insn } else { invalid(insn) }, stub: None };
    if known {
        match cpu.stubs.make(insn) {
            Ok(stub) => slow.stub = Some(stub),
            Err(NoStub::Unsuitable) => {}
            Err(NoStub::Full) if !block.ops.is_empty() => return Pushed::Before,
            Err(NoStub::Full) => {
                cpu.forget_all_code();
                cpu.stubs.clear();
                slow.stub = cpu.stubs.make(insn).ok();
            }
        }
    }
    let stub = slow.stub.is_some();
    op.run = if stub { ops::stub } else { ops::slow };
    let slow = Box::new(slow);
    op.imm = (&raw const *slow) as u64;
    block.slow.push(slow);
    block.ops.push(op);
    let stops = !known
        || insn.flow_control() != FlowControl::Next
        || insn.is_privileged()
        || matches!(insn.mnemonic(), Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq | Mnemonic::Cpuid);
    if !stub && stops {
        // Should the instruction not end the block itself, it ends here.
        finish(block, cpu.bits == 2);
        return Pushed::Ends;
    }
    Pushed::More
}

/// The same bytes as an instruction that is none.
fn invalid(insn: &Instruction) -> Instruction {
    let mut new = Instruction::default();
    new.set_code(Code::INVALID);
    new.set_ip(insn.ip());
    new.set_len(insn.len());
    new
}

/// Ends a block that goes on behind its last instruction.
pub(crate) fn finish(block: &mut Block, long: bool) {
    if let Some(last) = block.ops.last() {
        let mut op = *last;
        op.run = ops::fall;
        // The form is the jump's here, not that of the last instruction's operand.
        op.form = if long { 0 } else { form::MASK32 };
        block.ops.push(op);
    }
}

macro_rules! sized {
    ($size:expr, $f:ident $(, $k:expr)?) => {
        match $size {
            1 => ops::$f::<u8 $(, { $k })?> as Handler,
            2 => ops::$f::<u16 $(, { $k })?> as Handler,
            4 => ops::$f::<u32 $(, { $k })?> as Handler,
            _ => ops::$f::<u64 $(, { $k })?> as Handler,
        }
    };
}
/// Without 8 bits.
macro_rules! wide {
    ($size:expr, $f:ident $(, $k:expr)?) => {
        match $size {
            2 => ops::$f::<u16 $(, { $k })?> as Handler,
            4 => ops::$f::<u32 $(, { $k })?> as Handler,
            _ => ops::$f::<u64 $(, { $k })?> as Handler,
        }
    };
}
macro_rules! nine {
    ($k:expr, $size:expr, $f:ident) => {
        match $k {
            0 => sized!($size, $f, 0),
            1 => sized!($size, $f, 1),
            2 => sized!($size, $f, 2),
            3 => sized!($size, $f, 3),
            4 => sized!($size, $f, 4),
            5 => sized!($size, $f, 5),
            6 => sized!($size, $f, 6),
            7 => sized!($size, $f, 7),
            _ => sized!($size, $f, 8),
        }
    };
}
macro_rules! conditions {
    ($c:expr, $make:ident) => {
        match $c {
            0 => $make!(0),
            1 => $make!(1),
            2 => $make!(2),
            3 => $make!(3),
            4 => $make!(4),
            5 => $make!(5),
            6 => $make!(6),
            7 => $make!(7),
            8 => $make!(8),
            9 => $make!(9),
            10 => $make!(10),
            11 => $make!(11),
            12 => $make!(12),
            13 => $make!(13),
            14 => $make!(14),
            _ => $make!(15),
        }
    };
}

/// The handler of a common instruction, and whether it ends the block.
fn fast(cpu: &Cpu, insn: &Instruction, op: &mut Op, has_memory: bool) -> Option<(Handler, bool)> {
    use Mnemonic as M;
    let m = insn.mnemonic();
    let long = cpu.bits == 2;
    let register = |n: u32| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_gpr();
    let is_memory = |n: u32| insn.op_kind(n) == OpKind::Memory;
    let immediate = |n: u32| {
        matches!(
            insn.op_kind(n),
            OpKind::Immediate8
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
    };
    let size = if insn.op_count() == 0 {
        0
    } else if is_memory(0) {
        insn.memory_size().size()
    } else {
        insn.op_register(0).size()
    };
    let go = |h: Handler| Some((h, false));
    let conditional =
        insn.condition_code() != iced_x86::ConditionCode::None && insn.flow_control() == FlowControl::Next;

    if insn.is_jcc_short_or_near() {
        branch(insn, op);
        macro_rules! make {
            ($c:literal) => {
                ops::jcc::<$c> as Handler
            };
        }
        return Some((conditions!(condition_code(insn), make), true));
    }
    let alu = match m {
        M::Add => Some(kind::ADD),
        M::Or => Some(kind::OR),
        M::Adc => Some(kind::ADC),
        M::Sbb => Some(kind::SBB),
        M::And => Some(kind::AND),
        M::Sub => Some(kind::SUB),
        M::Xor => Some(kind::XOR),
        M::Cmp => Some(kind::CMP),
        M::Test => Some(kind::TEST),
        _ => None,
    };
    if let Some(k) = alu {
        return match (register(0), is_memory(0), register(1), is_memory(1)) {
            (true, _, true, _) => {
                (op.d, op.s) = (place(insn.op_register(0)), place(insn.op_register(1)));
                go(nine!(k, size, alu_rr))
            }
            (true, _, _, true) => {
                op.d = place(insn.op_register(0));
                go(nine!(k, size, alu_rm))
            }
            (_, true, true, _) => {
                op.s = place(insn.op_register(1));
                go(nine!(k, size, alu_mr))
            }
            (true, ..) if immediate(1) => {
                (op.d, op.imm) = (place(insn.op_register(0)), insn.immediate(1));
                go(nine!(k, size, alu_ri))
            }
            (_, true, ..) if immediate(1) => {
                op.imm = insn.immediate(1);
                go(nine!(k, size, alu_mi))
            }
            _ => None,
        };
    }
    match m {
        M::Mov => match (register(0), is_memory(0), register(1), is_memory(1)) {
            (true, _, true, _) => {
                (op.d, op.s) = (place(insn.op_register(0)), place(insn.op_register(1)));
                go(sized!(size, mov_rr))
            }
            (true, _, _, true) => {
                op.d = place(insn.op_register(0));
                go(sized!(size, mov_rm))
            }
            (_, true, true, _) => {
                op.s = place(insn.op_register(1));
                go(sized!(insn.op_register(1).size(), mov_mr))
            }
            (true, ..) if immediate(1) => {
                (op.d, op.imm) = (place(insn.op_register(0)), insn.immediate(1));
                go(sized!(size, mov_ri))
            }
            (_, true, ..) if immediate(1) => {
                op.imm = insn.immediate(1);
                go(sized!(size, mov_mi))
            }
            _ => None,
        },
        M::Movzx | M::Movsx | M::Movsxd => {
            op.d = place(insn.op_register(0));
            let from = if is_memory(1) { insn.memory_size().size() } else { insn.op_register(1).size() };
            if !is_memory(1) {
                op.s = place(insn.op_register(1));
            }
            macro_rules! pair {
                ($f:ident) => {
                    match (from, size) {
                        (1, 2) => ops::$f::<u8, u16> as Handler,
                        (1, 4) => ops::$f::<u8, u32> as Handler,
                        (1, _) => ops::$f::<u8, u64> as Handler,
                        (2, 2) => ops::$f::<u16, u16> as Handler,
                        (2, 4) => ops::$f::<u16, u32> as Handler,
                        (2, _) => ops::$f::<u16, u64> as Handler,
                        (_, 4) => ops::$f::<u32, u32> as Handler,
                        _ => ops::$f::<u32, u64> as Handler,
                    }
                };
            }
            go(match (m == M::Movzx, is_memory(1)) {
                (true, true) => pair!(zx_m),
                (true, false) => pair!(zx_r),
                (false, true) => pair!(sx_m),
                (false, false) => pair!(sx_r),
            })
        }
        M::Lea => {
            op.d = place(insn.op_register(0));
            op.form &= 3;
            go(wide!(size, lea))
        }
        M::Inc | M::Dec | M::Neg | M::Not => {
            macro_rules! which {
                ($f:ident) => {
                    match m {
                        M::Inc => sized!(size, $f, one::INC),
                        M::Dec => sized!(size, $f, one::DEC),
                        M::Neg => sized!(size, $f, one::NEG),
                        _ => sized!(size, $f, one::NOT),
                    }
                };
            }
            if has_memory {
                go(which!(one_m))
            } else {
                op.d = place(insn.op_register(0));
                go(which!(one_r))
            }
        }
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror if register(0) => {
            op.d = place(insn.op_register(0));
            macro_rules! which {
                ($f:ident) => {
                    match m {
                        M::Shl | M::Sal => sized!(size, $f, shift::SHL),
                        M::Shr => sized!(size, $f, shift::SHR),
                        M::Sar => sized!(size, $f, shift::SAR),
                        M::Rol => sized!(size, $f, shift::ROL),
                        _ => sized!(size, $f, shift::ROR),
                    }
                };
            }
            if immediate(1) {
                op.imm = u64::from(insn.immediate8()) & if size == 8 { 63 } else { 31 };
                go(which!(shift_ri))
            } else {
                go(which!(shift_rc))
            }
        }
        M::Imul if insn.op_count() == 2 => {
            op.d = place(insn.op_register(0));
            if is_memory(1) {
                go(wide!(size, imul_rm))
            } else {
                op.s = place(insn.op_register(1));
                go(wide!(size, imul_rr))
            }
        }
        M::Imul if insn.op_count() == 3 && register(1) => {
            (op.d, op.s, op.imm) = (place(insn.op_register(0)), place(insn.op_register(1)), insn.immediate(2));
            go(wide!(size, imul_rri))
        }
        M::Xchg if !has_memory => {
            (op.d, op.s) = (place(insn.op_register(0)), place(insn.op_register(1)));
            go(sized!(size, xchg_rr))
        }
        M::Cdqe => go(ops::cdqe),
        M::Cdq => go(ops::cdq),
        M::Cqo => go(ops::cqo),
        M::Nop
        | M::Endbr32
        | M::Endbr64
        | M::Pause
        | M::Prefetch
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Clflush
        | M::Clflushopt
        | M::Clwb
        | M::Reservednop => go(ops::nop),
        _ if conditional && insn.op_count() == 2 && register(0) => {
            op.d = place(insn.op_register(0));
            if is_memory(1) {
                macro_rules! make {
                    ($c:literal) => {
                        wide!(size, cmov_rm, $c)
                    };
                }
                go(conditions!(condition_code(insn), make))
            } else {
                op.s = place(insn.op_register(1));
                macro_rules! make {
                    ($c:literal) => {
                        wide!(size, cmov_rr, $c)
                    };
                }
                go(conditions!(condition_code(insn), make))
            }
        }
        _ if conditional && insn.op_count() == 1 => {
            if has_memory {
                macro_rules! make {
                    ($c:literal) => {
                        ops::set_m::<$c> as Handler
                    };
                }
                go(conditions!(condition_code(insn), make))
            } else {
                op.d = place(insn.op_register(0));
                macro_rules! make {
                    ($c:literal) => {
                        ops::set_r::<$c> as Handler
                    };
                }
                go(conditions!(condition_code(insn), make))
            }
        }
        M::Jmp if matches!(insn.op_kind(0), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) => {
            branch(insn, op);
            Some((ops::jmp, true))
        }
        _ if long => fast_stack(insn, op),
        _ => None,
    }
}

/// Where a near branch leads, from the block's start.
fn branch(insn: &Instruction, op: &mut Op) {
    (op.disp, op.form) = match insn.op_kind(0) {
        OpKind::NearBranch16 => (i64::from(insn.near_branch16()), form::MASK16),
        OpKind::NearBranch32 => (i64::from(insn.near_branch32()), form::MASK32),
        _ => (insn.near_branch64() as i64, 0),
    };
}

/// Stack and calls of 64-bit mode with their usual width.
fn fast_stack(insn: &Instruction, op: &mut Op) -> Option<(Handler, bool)> {
    Some(match insn.code() {
        Code::Push_r64 => {
            op.s = place(insn.op_register(0));
            (ops::push_r, false)
        }
        Code::Pushq_imm8 | Code::Pushq_imm32 => {
            op.imm = insn.immediate(0);
            (ops::push_i, false)
        }
        Code::Push_rm64 if insn.op_kind(0) == OpKind::Memory => (ops::push_m, false),
        Code::Push_rm64 => {
            op.s = place(insn.op_register(0));
            (ops::push_r, false)
        }
        Code::Pop_r64 => {
            op.d = place(insn.op_register(0));
            (ops::pop_r, false)
        }
        Code::Leaveq => (ops::leave, false),
        Code::Call_rel32_64 => {
            branch(insn, op);
            (ops::call, true)
        }
        Code::Call_rm64 if insn.op_kind(0) == OpKind::Memory => (ops::call_to::<true>, true),
        Code::Call_rm64 => {
            op.s = place(insn.op_register(0));
            (ops::call_to::<false>, true)
        }
        Code::Jmp_rm64 if insn.op_kind(0) == OpKind::Memory => (ops::jmp_to::<true>, true),
        Code::Jmp_rm64 => {
            op.s = place(insn.op_register(0));
            (ops::jmp_to::<false>, true)
        }
        Code::Retnq => (ops::ret, true),
        Code::Retnq_imm16 => {
            op.imm = insn.immediate16().into();
            (ops::ret, true)
        }
        _ => return None,
    })
}
