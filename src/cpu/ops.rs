//! The operations that most of a program consists of. Each ends by calling the next one in tail position.

use crate::{
    Cpu,
    alignment::natural,
    alu::{Alu, apply, condition, kind},
    block::{Block, END, FAULT, Next, Op, Slow, form},
    fault::R,
    host::{Class, Stub},
    mem::{Access, Word, crosses_page},
    state::{gpr, seg},
};

/// Reads a general register by its offset in bytes.
///
/// # Safety
/// `at` comes from the decoder.
#[inline(always)]
unsafe fn get<T: Word>(cpu: &Cpu, at: u8) -> T {
    // SAFETY: the decoder gives offsets inside the array that fit the type.
    unsafe { (&raw const cpu.hot.gpr).cast::<u8>().add(at.into()).cast::<T>().read_unaligned() }
}

/// Writes a general register by its offset in bytes; 32-bit writes clear the upper half.
///
/// # Safety
/// `at` comes from the decoder.
#[inline(always)]
unsafe fn put<T: Word>(cpu: &mut Cpu, at: u8, value: T) {
    // SAFETY: the decoder gives offsets inside the array that fit the type.
    unsafe {
        let at = (&raw mut cpu.hot.gpr).cast::<u8>().add(at.into());
        if T::SIZE >= 4 {
            at.cast::<u64>().write_unaligned(value.into());
        } else {
            at.cast::<T>().write_unaligned(value);
        }
    }
}

/// The linear address of a memory operand.
#[inline(always)]
unsafe fn address(cpu: &mut Cpu, op: &Op, size: u32, write: bool) -> R<u64> {
    // SAFETY: register offsets come from the decoder.
    let a = unsafe {
        get::<u64>(cpu, op.base).wrapping_add(get::<u64>(cpu, op.index) << op.scale).wrapping_add(op.disp as u64)
    };
    if op.form == 0 { Ok(a) } else { cpu.address_special(op, a, size, write) }
}

impl Cpu {
    #[inline(never)]
    fn address_special(&mut self, op: &Op, a: u64, size: u32, write: bool) -> R<u64> {
        let a = match op.form & 3 {
            0 => a,
            form::MASK32 => a & 0xffff_ffff,
            _ => a & 0xffff,
        };
        if op.form & form::SEGMENT == 0 { Ok(a) } else { self.segment_address(op.seg.into(), a, size, write) }
    }
}

/// The handler's frame: arguments as references, then the body, then the next operation.
macro_rules! handler {
    ($(#[$m:meta])* $name:ident $(<$($g:ident: $b:path),*>)? $([$($c:ident: $ct:ty),*])?, |$cpu:ident, $op:ident| $body:block) => {
        $(#[$m])*
        pub(crate) unsafe fn $name<$($($g: $b,)*)? $($(const $c: $ct,)*)?>(cpu: *mut Cpu, op: *const Op) -> Next {
            // SAFETY: the dispatcher passes a processor that it holds and an operation of a block that it keeps; every block
            // ends with an operation that does not go on.
            unsafe {
                {
                    let ($cpu, $op) = (&mut *cpu, &*op);
                    $body
                }
                ((*op.add(1)).run)(cpu, op.add(1))
            }
        }
    };
}
macro_rules! tri {
    ($cpu:ident, $op:ident, $e:expr) => {
        match $e {
            Ok(v) => v,
            Err(_) => {
                $cpu.fault_at = $op.at;
                return FAULT;
            }
        }
    };
}

handler!(alu_rr<T: Alu>[K: u8], |cpu, op| {
    let r = apply::<T, K>(get(cpu, op.d), get(cpu, op.s), &mut cpu.hot.cc);
    if K != kind::CMP && K != kind::TEST {
        put(cpu, op.d, r);
    }
});
handler!(alu_ri<T: Alu>[K: u8], |cpu, op| {
    let r = apply::<T, K>(get(cpu, op.d), T::cut(op.imm), &mut cpu.hot.cc);
    if K != kind::CMP && K != kind::TEST {
        put(cpu, op.d, r);
    }
});
handler!(alu_rm<T: Alu>[K: u8], |cpu, op| {
    let at = tri!(cpu, op, address(cpu, op, T::SIZE as u32, false));
    let b = tri!(cpu, op, cpu.load::<T>(at));
    let r = apply::<T, K>(get(cpu, op.d), b, &mut cpu.hot.cc);
    if K != kind::CMP && K != kind::TEST {
        put(cpu, op.d, r);
    }
});

/// A memory destination: read, compute, write; flags change only when the write went through.
#[inline(always)]
unsafe fn modify<T: Word>(cpu: &mut Cpu, op: &Op, f: impl FnOnce(T, &mut u16) -> T) -> R<()> {
    // SAFETY: the operation comes from the decoder; a direct address is RAM that may be read and written.
    unsafe {
        let at = address(cpu, op, T::SIZE as u32, true)?;
        let mut cc = cpu.hot.cc;
        if let Some(host) = cpu.direct(at, T::SIZE, true) {
            let r = f(T::get(host), &mut cc);
            T::put(host, r);
        } else {
            let a = cpu.load_for_write::<T>(at)?;
            let r = f(a, &mut cc);
            cpu.store(at, r)?;
        }
        cpu.hot.cc = cc;
    }
    Ok(())
}

handler!(alu_mr<T: Alu>[K: u8], |cpu, op| {
    let b = get::<T>(cpu, op.s);
    if K == kind::CMP || K == kind::TEST {
        let at = tri!(cpu, op, address(cpu, op, T::SIZE as u32, false));
        let a = tri!(cpu, op, cpu.load::<T>(at));
        apply::<T, K>(a, b, &mut cpu.hot.cc);
    } else {
        tri!(cpu, op, modify::<T>(cpu, op, |a, cc| apply::<T, K>(a, b, cc)));
    }
});
handler!(alu_mi<T: Alu>[K: u8], |cpu, op| {
    let b = T::cut(op.imm);
    if K == kind::CMP || K == kind::TEST {
        let at = tri!(cpu, op, address(cpu, op, T::SIZE as u32, false));
        let a = tri!(cpu, op, cpu.load::<T>(at));
        apply::<T, K>(a, b, &mut cpu.hot.cc);
    } else {
        tri!(cpu, op, modify::<T>(cpu, op, |a, cc| apply::<T, K>(a, b, cc)));
    }
});

/// Operations on one operand, the third generic argument of [`one_r`] and [`one_m`].
#[allow(missing_docs)]
pub(crate) mod one {
    pub const INC: u8 = 0;
    pub const DEC: u8 = 1;
    pub const NEG: u8 = 2;
    pub const NOT: u8 = 3;
}

#[inline(always)]
fn unary<T: Alu, const K: u8>(a: T, cc: &mut u16) -> T {
    match K {
        one::INC => T::inc(a, cc),
        one::DEC => T::dec(a, cc),
        one::NEG => T::neg(a, cc),
        _ => T::cut(!a.into()),
    }
}
handler!(one_r<T: Alu>[K: u8], |cpu, op| {
    let r = unary::<T, K>(get(cpu, op.d), &mut cpu.hot.cc);
    put(cpu, op.d, r);
});
handler!(one_m<T: Alu>[K: u8], |cpu, op| {
    tri!(cpu, op, modify::<T>(cpu, op, |a, cc| unary::<T, K>(a, cc)));
});
handler!(shift_ri<T: Alu>[K: u8], |cpu, op| {
    let r = T::shift(K, get(cpu, op.d), op.imm as u8, &mut cpu.hot.cc);
    put(cpu, op.d, r);
});
handler!(shift_rc<T: Alu>[K: u8], |cpu, op| {
    let count = cpu.hot.gpr[gpr::RCX] as u8 & if T::SIZE == 8 { 63 } else { 31 };
    let r = T::shift(K, get(cpu, op.d), count, &mut cpu.hot.cc);
    put(cpu, op.d, r);
});
handler!(imul_rr<T: Alu>, |cpu, op| {
    let r = T::imul(get(cpu, op.d), get(cpu, op.s), &mut cpu.hot.cc);
    put(cpu, op.d, r);
});
handler!(imul_rri<T: Alu>, |cpu, op| {
    let r = T::imul(get(cpu, op.s), T::cut(op.imm), &mut cpu.hot.cc);
    put(cpu, op.d, r);
});
handler!(imul_rm<T: Alu>, |cpu, op| {
    let at = tri!(cpu, op, address(cpu, op, T::SIZE as u32, false));
    let b = tri!(cpu, op, cpu.load::<T>(at));
    let r = T::imul(get(cpu, op.d), b, &mut cpu.hot.cc);
    put(cpu, op.d, r);
});

handler!(mov_rr<T: Word>, |cpu, op| {
    let v = get::<T>(cpu, op.s);
    put(cpu, op.d, v);
});
handler!(mov_ri<T: Word>, |cpu, op| {
    put(cpu, op.d, T::cut(op.imm));
});
handler!(mov_rm<T: Word>, |cpu, op| {
    let at = tri!(cpu, op, address(cpu, op, T::SIZE as u32, false));
    let v = tri!(cpu, op, cpu.load::<T>(at));
    put(cpu, op.d, v);
});
handler!(mov_mr<T: Word>, |cpu, op| {
    let at = tri!(cpu, op, address(cpu, op, T::SIZE as u32, true));
    let v = get::<T>(cpu, op.s);
    tri!(cpu, op, cpu.store(at, v));
});
handler!(mov_mi<T: Word>, |cpu, op| {
    let at = tri!(cpu, op, address(cpu, op, T::SIZE as u32, true));
    tri!(cpu, op, cpu.store(at, T::cut(op.imm)));
});
handler!(zx_r<F: Word, T: Word>, |cpu, op| {
    let v: u64 = get::<F>(cpu, op.s).into();
    put(cpu, op.d, T::cut(v));
});
handler!(zx_m<F: Word, T: Word>, |cpu, op| {
    let at = tri!(cpu, op, address(cpu, op, F::SIZE as u32, false));
    let v: u64 = tri!(cpu, op, cpu.load::<F>(at)).into();
    put(cpu, op.d, T::cut(v));
});
#[inline(always)]
fn sign<F: Word>(v: F) -> u64 {
    let v: u64 = v.into();
    match F::SIZE {
        1 => v as i8 as u64,
        2 => v as i16 as u64,
        4 => v as i32 as u64,
        _ => v,
    }
}
handler!(sx_r<F: Word, T: Word>, |cpu, op| {
    let v = sign(get::<F>(cpu, op.s));
    put(cpu, op.d, T::cut(v));
});
handler!(sx_m<F: Word, T: Word>, |cpu, op| {
    let at = tri!(cpu, op, address(cpu, op, F::SIZE as u32, false));
    let v = sign(tri!(cpu, op, cpu.load::<F>(at)));
    put(cpu, op.d, T::cut(v));
});
handler!(lea<T: Word>, |cpu, op| {
    let a = get::<u64>(cpu, op.base).wrapping_add(get::<u64>(cpu, op.index) << op.scale).wrapping_add(op.disp as u64);
    let a = match op.form & 3 {
        0 => a,
        form::MASK32 => a & 0xffff_ffff,
        _ => a & 0xffff,
    };
    put(cpu, op.d, T::cut(a));
});
handler!(xchg_rr<T: Word>, |cpu, op| {
    let (a, b) = (get::<T>(cpu, op.d), get::<T>(cpu, op.s));
    put(cpu, op.s, a);
    put(cpu, op.d, b);
});
handler!(cmov_rr<T: Word>[C: u8], |cpu, op| {
    let v = if condition(C, cpu.hot.cc) { get::<T>(cpu, op.s) } else { get::<T>(cpu, op.d) };
    put(cpu, op.d, v);
});
handler!(cmov_rm<T: Word>[C: u8], |cpu, op| {
    let at = tri!(cpu, op, address(cpu, op, T::SIZE as u32, false));
    let m = tri!(cpu, op, cpu.load::<T>(at));
    let v = if condition(C, cpu.hot.cc) { m } else { get::<T>(cpu, op.d) };
    put(cpu, op.d, v);
});
handler!(set_r[C: u8], |cpu, op| {
    let v = u8::from(condition(C, cpu.hot.cc));
    put(cpu, op.d, v);
});
handler!(set_m[C: u8], |cpu, op| {
    let at = tri!(cpu, op, address(cpu, op, 1, true));
    let v = u8::from(condition(C, cpu.hot.cc));
    tri!(cpu, op, cpu.store(at, v));
});
handler!(cdqe, |cpu, _op| {
    cpu.hot.gpr[gpr::RAX] = cpu.hot.gpr[gpr::RAX] as i32 as u64;
});
handler!(cdq, |cpu, _op| {
    cpu.hot.gpr[gpr::RDX] = u64::from(((cpu.hot.gpr[gpr::RAX] as i32) >> 31) as u32);
});
handler!(cqo, |cpu, _op| {
    cpu.hot.gpr[gpr::RDX] = ((cpu.hot.gpr[gpr::RAX] as i64) >> 63) as u64;
});
handler!(nop, |_cpu, _op| {});

// The stack of 64-bit mode.
handler!(push_r, |cpu, op| {
    let sp = cpu.hot.gpr[gpr::RSP].wrapping_sub(8);
    let v = get::<u64>(cpu, op.s);
    tri!(cpu, op, cpu.store(sp, v));
    cpu.hot.gpr[gpr::RSP] = sp;
});
handler!(push_i, |cpu, op| {
    let sp = cpu.hot.gpr[gpr::RSP].wrapping_sub(8);
    tri!(cpu, op, cpu.store(sp, op.imm));
    cpu.hot.gpr[gpr::RSP] = sp;
});
handler!(push_m, |cpu, op| {
    let at = tri!(cpu, op, address(cpu, op, 8, false));
    let v = tri!(cpu, op, cpu.load::<u64>(at));
    let sp = cpu.hot.gpr[gpr::RSP].wrapping_sub(8);
    tri!(cpu, op, cpu.store(sp, v));
    cpu.hot.gpr[gpr::RSP] = sp;
});
handler!(pop_r, |cpu, op| {
    let sp = cpu.hot.gpr[gpr::RSP];
    let v = tri!(cpu, op, cpu.load::<u64>(sp));
    cpu.hot.gpr[gpr::RSP] = sp.wrapping_add(8);
    put(cpu, op.d, v);
});
handler!(leave, |cpu, op| {
    let bp = cpu.hot.gpr[gpr::RBP];
    let v = tri!(cpu, op, cpu.load::<u64>(bp));
    cpu.hot.gpr[gpr::RBP] = v;
    cpu.hot.gpr[gpr::RSP] = bp.wrapping_add(8);
});

/// Where a jump by a known distance leads.
#[inline(always)]
fn target(cpu: &Cpu, op: &Op) -> u64 {
    let rip = cpu.hot.gpr[gpr::RIP].wrapping_add(op.disp as u64);
    match op.form & 3 {
        0 => rip,
        form::MASK32 => rip & 0xffff_ffff,
        _ => rip & 0xffff,
    }
}

#[inline(always)]
fn after(cpu: &Cpu, op: &Op) -> u64 {
    let rip = cpu.hot.gpr[gpr::RIP].wrapping_add(op.next.into());
    if op.form & 3 == 0 { rip } else { rip & 0xffff_ffff }
}

/// Ends the block with `RIP` known: follows the link if there is one, or asks for it.
#[inline(always)]
unsafe fn go(cpu: &mut Cpu, way: usize, rip: u64) -> Next {
    let old = cpu.hot.gpr[gpr::RIP];
    cpu.hot.gpr[gpr::RIP] = rip;
    // SAFETY: the dispatcher sets the running block before it runs it.
    let link = unsafe { (*cpu.running).links[way] };
    // In a page, one linear address is one block. A link from another mapping of the page is as good, as long as the jump
    // stays inside; whether it does depends on offsets in the page only, if the segment's base is the same kind of page.
    let base = if cpu.bits == 2 { 0 } else { cpu.segs[seg::CS].base };
    if (old.wrapping_add(base) ^ rip.wrapping_add(base)) & !0xfff == 0 {
        if link != END {
            return link;
        }
        cpu.link_way = way as u8 + 1;
    }
    END
}

/// A jump on a condition ends a block.
pub(crate) unsafe fn jcc<const C: u8>(cpu: *mut Cpu, op: *const Op) -> Next {
    // SAFETY: see `handler`.
    unsafe {
        let (cpu, op) = (&mut *cpu, &*op);
        if condition(C, cpu.hot.cc) { go(cpu, 0, target(cpu, op)) } else { go(cpu, 1, after(cpu, op)) }
    }
}

/// A jump by a distance ends a block.
pub(crate) unsafe fn jmp(cpu: *mut Cpu, op: *const Op) -> Next {
    // SAFETY: see `handler`.
    unsafe {
        let (cpu, op) = (&mut *cpu, &*op);
        go(cpu, 0, target(cpu, op))
    }
}

/// The block ends because its page does, or because it is long.
pub(crate) unsafe fn fall(cpu: *mut Cpu, op: *const Op) -> Next {
    // SAFETY: see `handler`.
    unsafe {
        let (cpu, op) = (&mut *cpu, &*op);
        go(cpu, 1, after(cpu, op))
    }
}

/// CALL by a distance, 64-bit mode.
pub(crate) unsafe fn call(cpu: *mut Cpu, op: *const Op) -> Next {
    // SAFETY: see `handler`.
    unsafe {
        let (cpu, op) = (&mut *cpu, &*op);
        let sp = cpu.hot.gpr[gpr::RSP].wrapping_sub(8);
        let back = after(cpu, op);
        tri!(cpu, op, cpu.store(sp, back));
        cpu.hot.gpr[gpr::RSP] = sp;
        go(cpu, 0, target(cpu, op))
    }
}

/// CALL to what a register or memory holds, 64-bit mode.
pub(crate) unsafe fn call_to<const MEMORY: bool>(cpu: *mut Cpu, op: *const Op) -> Next {
    // SAFETY: see `handler`.
    unsafe {
        let (cpu, op) = (&mut *cpu, &*op);
        let to = if MEMORY {
            let at = tri!(cpu, op, address(cpu, op, 8, false));
            tri!(cpu, op, cpu.load::<u64>(at))
        } else {
            get::<u64>(cpu, op.s)
        };
        let sp = cpu.hot.gpr[gpr::RSP].wrapping_sub(8);
        let back = after(cpu, op);
        tri!(cpu, op, cpu.store(sp, back));
        cpu.hot.gpr[gpr::RSP] = sp;
        cpu.hot.gpr[gpr::RIP] = to;
        END
    }
}

/// JMP to what a register or memory holds, 64-bit mode.
pub(crate) unsafe fn jmp_to<const MEMORY: bool>(cpu: *mut Cpu, op: *const Op) -> Next {
    // SAFETY: see `handler`.
    unsafe {
        let (cpu, op) = (&mut *cpu, &*op);
        let to = if MEMORY {
            let at = tri!(cpu, op, address(cpu, op, 8, false));
            tri!(cpu, op, cpu.load::<u64>(at))
        } else {
            get::<u64>(cpu, op.s)
        };
        cpu.hot.gpr[gpr::RIP] = to;
        END
    }
}

/// RET, 64-bit mode.
pub(crate) unsafe fn ret(cpu: *mut Cpu, op: *const Op) -> Next {
    // SAFETY: see `handler`.
    unsafe {
        let (cpu, op) = (&mut *cpu, &*op);
        let sp = cpu.hot.gpr[gpr::RSP];
        let to = tri!(cpu, op, cpu.load::<u64>(sp));
        cpu.hot.gpr[gpr::RSP] = sp.wrapping_add(8).wrapping_add(op.imm);
        cpu.hot.gpr[gpr::RIP] = to;
        END
    }
}

// What the host executes.
handler!(stub, |cpu, op| {
    let slow = &*(op.imm as *const Slow);
    if let Some(stub) = &slow.stub {
        if stub.class == Class::Integer && stub.len == 0 {
            (stub.run)(&raw mut cpu.hot, 0);
        } else {
            tri!(cpu, op, run_stub(cpu, op, slow, stub));
        }
    }
});

unsafe fn run_stub(cpu: &mut Cpu, op: &Op, slow: &Slow, stub: &Stub) -> R<()> {
    if stub.class != Class::Integer {
        cpu.check_class(stub.class)?;
    }
    let len = u64::from(stub.len);
    let (mut at, mut adjust) = (0, 0);
    if len != 0 {
        // SAFETY: the operation comes from the decoder.
        at = unsafe { address(cpu, op, stub.len.into(), stub.write) }?;
        if stub.bit_string {
            adjust = cpu.bit_string_offset(&slow.insn, len);
            at = at.wrapping_add(adjust);
            if op.form & 3 == form::MASK16 || cpu.bits != 2 {
                at &= 0xffff_ffff;
            }
        }
        if stub.align > 1 && at & u64::from(stub.align - 1) != 0 {
            return Err(cpu.gp());
        }
        if cpu.checks_alignment() {
            cpu.check_alignment(at, natural(stub.class, len))?;
            // SAFETY: as for this function.
            return cpu.at_any_alignment(|cpu| unsafe { run_stub_at(cpu, op, slow, stub, at, adjust) });
        }
        if stub.locked && crosses_page(at, len) && cpu.is_ram(at) && cpu.is_ram(at.wrapping_add(len - 1)) {
            // SAFETY: as for this function.
            return cpu.exclusively(|cpu| unsafe { run_stub_at(cpu, op, slow, stub, at, adjust) });
        }
    }
    // SAFETY: as for this function.
    unsafe { run_stub_at(cpu, op, slow, stub, at, adjust) }
}

/// Runs it on the operand at a linear address; the host's instruction adds `adjust` to what it is given.
unsafe fn run_stub_at(cpu: &mut Cpu, op: &Op, slow: &Slow, stub: &Stub, at: u64, adjust: u64) -> R<()> {
    let mut memory = 0;
    let mut direct = true;
    // Written in place, and to be told of.
    let mut told = None;
    let len = u64::from(stub.len);
    if len != 0 {
        match cpu.direct(at, len, stub.write) {
            Some(host) => memory = host,
            None => {
                // Once it has run it is too late to find that it should have been alone.
                cpu.sees_time()?;
                direct = false;
                memory = (&raw mut cpu.hot.scratch) as u64;
                if stub.write {
                    cpu.probe_write(at, len)?;
                } else {
                    cpu.translate(at, Access::Read)?;
                }
                match cpu.direct(at, len, stub.write) {
                    Some(host) => {
                        memory = host;
                        direct = true;
                    }
                    None if stub.write
                        && let Some((host, physical)) = cpu.told_ram(at, len) =>
                    {
                        (memory, direct, told) = (host, true, Some(physical));
                    }
                    None if stub.read => {
                        let mut bytes = [0; 64];
                        cpu.load_bytes(at, &mut bytes[..stub.len.into()])?;
                        cpu.hot.scratch[..64].copy_from_slice(&bytes);
                    }
                    None => {}
                }
            }
        }
    }
    let memory = memory.wrapping_sub(adjust);
    let result = if stub.class == Class::Integer {
        // SAFETY: the stub touches the registers and `len` bytes at `memory`, which is RAM or the scratch area.
        unsafe { (stub.run)(&raw mut cpu.hot, memory) };
        Ok(())
    } else {
        // SAFETY: as above.
        unsafe { cpu.run_float(slow, stub, op, at, memory) }
    };
    if let Some(physical) = told {
        cpu.tell_write(physical, stub.len.into());
    }
    result?;
    if !direct && stub.write {
        let bytes = cpu.hot.scratch;
        cpu.store_bytes(at, &bytes[..stub.len.into()])?;
    }
    Ok(())
}

/// Whatever is not above.
pub(crate) unsafe fn slow(cpu: *mut Cpu, op: *const Op) -> Next {
    // SAFETY: see `handler`.
    unsafe {
        {
            let (cpu, op) = (&mut *cpu, &*op);
            let slow = &*(op.imm as *const Slow);
            let start = cpu.hot.gpr[gpr::RIP];
            let mask = if cpu.bits == 2 { u64::MAX } else { 0xffff_ffff };
            cpu.here = start.wrapping_add(op.at.into()) & mask;
            cpu.next = start.wrapping_add(op.next.into()) & mask;
            let stack = cpu.hot.gpr[gpr::RSP];
            match cpu.execute(&slow.insn, op) {
                Ok(true) => {
                    cpu.give_back(op.at, true);
                    cpu.hot.gpr[gpr::RIP] = cpu.next;
                    return END;
                }
                Ok(false) => {}
                Err(_) => {
                    cpu.hot.gpr[gpr::RSP] = stack;
                    cpu.fault_at = op.at;
                    return FAULT;
                }
            }
        }
        ((*op.add(1)).run)(cpu, op.add(1))
    }
}

/// The linear address of the memory operand of an operation that takes the long way.
pub(crate) fn operand_address(cpu: &mut Cpu, op: &Op, size: u32, write: bool) -> R<u64> {
    // SAFETY: the operation comes from the decoder.
    unsafe { address(cpu, op, size, write) }
}

/// The offset part alone, as LEA gives it.
pub(crate) fn operand_offset(cpu: &Cpu, op: &Op) -> u64 {
    // SAFETY: the operation comes from the decoder.
    let a = unsafe {
        get::<u64>(cpu, op.base).wrapping_add(get::<u64>(cpu, op.index) << op.scale).wrapping_add(op.disp as u64)
    };
    match op.form & 3 {
        0 => a,
        form::MASK32 => a & 0xffff_ffff,
        _ => a & 0xffff,
    }
}

const _: () = assert!(size_of::<Op>() == 40 && size_of::<*const Block>() == size_of::<Next>());
