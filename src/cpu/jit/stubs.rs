//! Code that all translations share: the way in, the way out, the slow way, and vector registers.

use std::io;

use crate::{arena::Arena, block::JUMP_CACHE};

use super::{
    asm::{Asm, Fixup, Mem, ext, r},
    layout::{self, HOST, IN_MEMORY, jump},
    slow_way, system,
};

/// Enters generated code; gives why it was left, see [`Leave`].
pub(super) type Enter = unsafe extern "sysv64" fn(*const u8) -> u32;

/// Why generated code was left.
pub(super) enum Leave {
    /// `RIP` is set.
    End,
    /// An instruction did not complete, as an operation's handler reports it.
    Fault,
    /// By an exit of the translation in [`Shared::from`](super::Shared); with `link` it may be made direct.
    Exit { way: usize, link: bool },
}

impl Leave {
    pub const END: u32 = 0;
    pub const FAULT: u32 = 1;
    /// The way is in bit 8.
    pub const LINK: u32 = 2;
    pub const POLLED: u32 = 3;
    /// Of the slow way: `RIP` is set, and generated code may go on there.
    pub const ON: u32 = 4;

    pub fn of(code: u32) -> Self {
        match code & 0xff {
            Self::END => Self::End,
            Self::FAULT => Self::Fault,
            kind => Self::Exit { way: (code >> 8 & 1) as usize, link: kind == Self::LINK },
        }
    }
}

/// Where they are.
pub(super) struct Stubs {
    pub enter: Enter,
    /// Leaves; `RIP` is stored already.
    pub leave_end: *const u8,
    /// Continues a look-up whose entry, at RAX, has an old key.
    pub look_again: u64,
    /// Leaves with the reason in EAX and the translation in R11.
    pub leave_from: u64,
    /// Called with the instruction's index in EAX and the translation in R11; comes back with flags in memory and in place.
    pub slow: u64,
    /// The same, and loads the vector registers again.
    pub slow_vectors: u64,
    /// Called like `slow`: loads the vector registers if SSE may be used, or else goes the slow way and leaves.
    pub load_sse: u64,
    /// The same for AVX.
    pub load_avx: u64,
    /// See [`system`].
    pub syscall: u64,
    pub sysret: u64,
}

const SAVED: [u8; 6] = [3, 5, 12, 13, 14, 15];

fn residents() -> impl Iterator<Item = (usize, u8)> {
    HOST.into_iter().enumerate().filter(|(_, h)| *h != IN_MEMORY)
}

fn store_registers(a: &mut Asm) {
    residents().for_each(|(g, h)| a.store_gs(layout::gpr(g), h));
}

fn load_registers(a: &mut Asm) {
    residents().for_each(|(g, h)| a.load_gs(h, layout::gpr(g)));
}

/// CMP or TEST of a byte of the processor's state.
pub(super) fn test_byte(a: &mut Asm, at: i32, bits: u8) {
    a.op_mem(true, &[], false, &[0xf6], 0, Mem::at(at));
    a.bytes(&[bits]);
}

pub(super) fn set_byte(a: &mut Asm, at: i32, value: u8) {
    a.op_mem(true, &[], false, &[0xc6], 0, Mem::at(at));
    a.bytes(&[value]);
}

fn vectors(a: &mut Asm, store: bool, avx: bool) {
    for n in 0..16u8 {
        let at = Mem::at(layout::VEC + 32 * i32::from(n));
        let opcode = if store { 0x11 } else { 0x10 };
        if avx {
            // VMOVUPS, 256 bits, with the short prefix.
            a.bytes(&[0x65, 0xc5, if n >= 8 { 0x7c } else { 0xfc }, opcode, (n & 7) << 3 | 4, 0x25]);
            a.imm32(at.disp);
        } else {
            a.op_mem(true, &[], false, &[0x0f, opcode], n, at);
        }
    }
}

fn mxcsr(a: &mut Asm, store: bool, at: i32) {
    a.op_mem(true, &[], false, &[0x0f, 0xae], if store { 3 } else { 2 }, Mem::at(at));
}

/// Stores the vector registers if they are live. Changes no general register.
fn save_vectors(a: &mut Asm, avx: bool) {
    test_byte(a, layout::VECTORS_LIVE, 3);
    let none = a.jcc(ext::E);
    vectors(a, true, avx);
    mxcsr(a, true, layout::MXCSR);
    mxcsr(a, false, layout::HOST_MXCSR);
    set_byte(a, layout::VECTORS_LIVE, 0);
    if avx {
        a.bytes(&[0xc5, 0xf8, 0x77]);
    }
    a.land(none);
}

fn load_vectors(a: &mut Asm, avx: bool) {
    vectors(a, false, avx);
    mxcsr(a, false, layout::MXCSR);
    // MOVZX EAX, byte; MOV byte, AL
    a.op_mem(true, &[], false, &[0x0f, 0xb6], r::RAX, Mem::at(layout::VECTORS_ALLOWED));
    a.op_mem(true, &[], false, &[0x88], r::RAX, Mem::at(layout::VECTORS_LIVE));
}

/// MOVZX EAX, [cc]; ADD AL, 127; SAHF.
pub(super) fn load_flags(a: &mut Asm) {
    a.op_mem(true, &[], false, &[0x0f, 0xb7], r::RAX, Mem::at(layout::CC));
    a.bytes(&[0x04, 0x7f, 0x9e]);
}

impl Stubs {
    pub fn new(arena: &mut Arena) -> io::Result<Self> {
        let avx = std::arch::is_x86_feature_detected!("avx");
        let mut a = Asm::default();
        let enter = a.here();
        for r in SAVED {
            push(&mut a, r);
        }
        a.alu(true, ext::SUB, 4, 8);
        a.mov(r::RAX, r::RDI);
        load_registers(&mut a);
        a.bytes(&[0xff, 0xe0]);

        let leave_end = a.here();
        a.constant(r::RAX, Leave::END.into());
        let skip = a.jmp();
        let leave_from = a.here();
        a.store_gs(layout::FROM, r::R11);
        a.land(skip);
        store_registers(&mut a);
        let leave_stored = a.here();
        save_vectors(&mut a, avx);
        a.alu(true, ext::ADD, 4, 8);
        for r in SAVED.into_iter().rev() {
            if r >= 8 {
                a.bytes(&[0x41]);
            }
            a.bytes(&[0x58 | r & 7]);
        }
        a.bytes(&[0xc3]);

        let look_again = look_again(&mut a, leave_end);
        let mut slow = [0; 2];
        for (again, at) in slow.iter_mut().enumerate() {
            *at = a.here();
            store_registers(&mut a);
            save_vectors(&mut a, avx);
            a.load_gs(r::RDI, layout::CPU);
            a.mov(r::RSI, r::R11);
            a.op_reg(false, &[0x89], r::RAX, r::RDX);
            a.alu(true, ext::SUB, 4, 8);
            a.constant(r::RAX, slow_way as *const () as u64);
            a.bytes(&[0xff, 0xd0]);
            // ADD RSP before the test: the flags are the test's.
            a.alu(true, ext::ADD, 4, 8);
            a.bytes(&[0x85, 0xc0]);
            let leave = a.jcc(ext::NE);
            load_registers(&mut a);
            if again == 1 {
                load_vectors(&mut a, avx);
            }
            load_flags(&mut a);
            a.bytes(&[0xc3]);
            a.land(leave);
            // DEC EAX; forget the way back.
            a.bytes(&[0xff, 0xc8]);
            a.alu(true, ext::ADD, 4, 8);
            a.alu(false, ext::CMP, r::RAX, Leave::ON as i32);
            let out = a.jcc(ext::NE);
            a.land_at(out, leave_stored);
            load_registers(&mut a);
            a.load_gs(r::R11, layout::RIP);
            let (out, again) = look_up(&mut a);
            out.into_iter().for_each(|out| a.land_at(out, leave_end));
            a.land_at(again, look_again);
        }

        let mut load = [0; 2];
        for (i, at) in load.iter_mut().enumerate() {
            *at = a.here();
            test_byte(&mut a, layout::VECTORS_ALLOWED, 1 << i);
            let fail = a.jcc(ext::E);
            // What is live already must not be loaded over.
            test_byte(&mut a, layout::VECTORS_LIVE, 3);
            let live = a.jcc(ext::NE);
            load_vectors(&mut a, avx);
            a.land(live);
            a.bytes(&[0xc3]);
            a.land(fail);
            set_byte(&mut a, layout::LEAVE_AFTER, 1);
            let out = a.jmp();
            a.land_at(out, slow[0]);
        }

        let mut calls = [0; 2];
        for (at, make) in calls.iter_mut().zip([system::syscall, system::sysret]) {
            *at = a.here();
            let (out, again) = make(&mut a);
            out.into_iter().for_each(|out| a.land_at(out, leave_end));
            a.land_at(again, look_again);
        }

        let base = arena.add(&a.code).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let at = |offset: usize| base as u64 + offset as u64;
        Ok(Self {
            // SAFETY: the code just written follows the calling convention of the type.
            enter: unsafe { std::mem::transmute::<u64, Enter>(at(enter)) },
            leave_end: at(leave_end) as *const u8,
            leave_from: at(leave_from),
            look_again: at(look_again),
            slow: at(slow[0]),
            slow_vectors: at(slow[1]),
            load_sse: at(load[0]),
            load_avx: at(load[1]),
            syscall: at(calls[0]),
            sysret: at(calls[1]),
        })
    }
}

/// Goes on at the address in R11, which is in `RIP`: gives the jumps for when there is none to go on to, or a request, and the one
/// for when the entry at RAX has an old key.
pub(super) fn look_up(a: &mut Asm) -> ([Fixup; 2], Fixup) {
    a.load_gs(r::RAX, layout::REQUESTS);
    a.op_mem(false, &[], false, &[0x83], ext::CMP, Mem::base(r::RAX, 0));
    a.bytes(&[0]);
    let asked = a.jcc(ext::NE);
    a.mov(r::RAX, r::R11);
    a.shift(true, ext::SHR, r::RAX, 13);
    a.op_reg(false, &[0x31], r::R11, r::RAX);
    a.alu(false, ext::AND, r::RAX, JUMP_CACHE as i32 - 1);
    a.shift(false, ext::SHL, r::RAX, 6);
    a.op_mem(true, &[], true, &[0x03], r::RAX, Mem::at(layout::JUMPS));
    a.op_mem(false, &[], true, &[0x3b], r::R11, Mem::base(r::RAX, jump::ADDRESS));
    let absent = a.jcc(ext::NE);
    a.load_gs(r::R11, layout::KEY);
    a.op_mem(false, &[], true, &[0x3b], r::R11, Mem::base(r::RAX, jump::KEY));
    let again = a.jcc(ext::NE);
    a.op_mem(false, &[], false, &[0xff], 4, Mem::base(r::RAX, jump::CODE));
    ([asked, absent], again)
}

/// The entry at RAX is for the address, but translations were forgotten since: it is right if its block is still kept and the
/// page is where it was. Then it gets the present key.
fn look_again(a: &mut Asm, leave_end: usize) -> usize {
    let start = a.here();
    a.load_gs(r::R11, layout::BLOCK_KEY);
    a.op_mem(false, &[], true, &[0x3b], r::R11, Mem::base(r::RAX, jump::STABLE));
    let dropped = a.jcc(ext::NE);
    a.land_at(dropped, leave_end);
    push(a, r::RDX);
    push(a, r::RSI);
    a.load(r::R11, Mem::base(r::RAX, jump::ADDRESS));
    a.mov(r::RDX, r::R11);
    a.shift(true, ext::SHR, r::RDX, 7);
    a.alu(false, ext::AND, r::RDX, 1023 << 5);
    a.op_mem(true, &[], true, &[0x03], r::RDX, Mem::at(layout::TLB_DISTANCE));
    a.mov(r::RSI, r::R11);
    a.alu(true, ext::AND, r::RSI, -4096);
    a.op_mem(true, &[], true, &[0x3b], r::RSI, Mem::base(r::RDX, layout::TAG_EXEC));
    let absent = a.jcc(ext::NE);
    a.op_mem(true, &[], true, &[0x03], r::R11, Mem::base(r::RDX, layout::ADDEND));
    a.op_mem(false, &[], true, &[0x3b], r::R11, Mem::base(r::RAX, jump::HOST));
    let moved = a.jcc(ext::NE);
    a.load_gs(r::RDX, layout::KEY);
    a.store(Mem::base(r::RAX, jump::KEY), r::RDX);
    a.bytes(&[0x5e, 0x5a]);
    a.op_mem(false, &[], false, &[0xff], 4, Mem::base(r::RAX, jump::CODE));
    a.land(absent);
    a.land(moved);
    a.bytes(&[0x5e, 0x5a]);
    let out = a.jmp();
    a.land_at(out, leave_end);
    start
}

fn push(a: &mut Asm, r: u8) {
    if r >= 8 {
        a.bytes(&[0x41]);
    }
    a.bytes(&[0x50 | r & 7]);
}
