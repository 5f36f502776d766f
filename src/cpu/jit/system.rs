//! System calls and flags as a whole: what changes the privilege without leaving generated code.
//!
//! SYSCALL and SYSRET to and from 64-bit programs are code that all translations share. Where they come from checks what is rare
//! first, and takes the slow way for it.

use iced_x86::Code;

use crate::{
    Cpu,
    mem::mmu,
    state::{cr, flag, gpr, seg},
};

use super::{
    asm::{Asm, Mem, ext, r},
    layout,
    stubs::{look_up, test_byte},
    translate::{TooHard, Tx},
};

/// What SYSRET takes of R11 (AMD APM volume 3, SYSRET), and what of the flags is not in [`Hot::cc`](crate::state::Hot).
const SYSRET_FLAGS: i32 = 0x3c_7fd7;
const REST_FLAGS: i32 = 0x3f_7700;

/// All flags but `without` into R11. Spoils RAX.
fn gather_flags(a: &mut Asm, without: u64) {
    a.op_mem(true, &[], false, &[0x0f, 0xb7], r::RAX, Mem::at(layout::CC));
    a.op_reg(false, &[0x89], r::RAX, r::R11);
    a.shift(false, ext::SHR, r::R11, 8);
    a.alu(false, ext::AND, r::R11, 0xd5);
    a.alu(false, ext::AND, r::RAX, 1);
    a.shift(false, ext::SHL, r::RAX, 11);
    a.op_reg(false, &[0x09], r::RAX, r::R11);
    a.load_gs(r::RAX, layout::REST);
    a.alu(true, ext::AND, r::RAX, !(without as i32));
    a.op_reg(true, &[0x09], r::RAX, r::R11);
    a.alu(true, ext::OR, r::R11, 2);
}

/// Sets all flags from R11. Spoils RAX and R11.
fn scatter_flags(a: &mut Asm) {
    a.op_reg(false, &[0x89], r::R11, r::RAX);
    a.alu(false, ext::AND, r::RAX, 0xd5);
    a.shift(false, ext::SHL, r::RAX, 8);
    // BT R11D, 11; ADC EAX, 0
    a.op_reg(false, &[0x0f, 0xba], 4, r::R11);
    a.bytes(&[flag::OF.trailing_zeros() as u8]);
    a.alu(false, ext::ADC, r::RAX, 0);
    a.op_mem(true, &[0x66], false, &[0x89], r::RAX, Mem::at(layout::CC));
    a.alu(false, ext::AND, r::R11, REST_FLAGS);
    a.store_gs(layout::REST, r::R11);
}

/// Loads CS and SS with flat segments for a privilege level; the selector that CS's and SS's are counted from is in bits 0 to 15 of a
/// field of the processor.
fn segments(a: &mut Asm, from: i32, level: u8) {
    let offset = if level == 3 { 16 } else { 0 };
    for (which, add) in [(seg::CS, offset), (seg::SS, 8)] {
        let flat = Cpu::flat(0, which == seg::CS, level, which == seg::CS);
        a.op_mem(true, &[], false, &[0x0f, 0xb7], r::RAX, Mem::at(from));
        if level == 0 {
            a.alu(false, ext::AND, r::RAX, !3);
        }
        a.alu(false, ext::ADD, r::RAX, add);
        a.alu(false, ext::OR, r::RAX, level.into());
        a.op_mem(true, &[0x66], false, &[0x89], r::RAX, Mem::at(layout::segment_selector(which)));
        a.op_mem(true, &[], true, &[0xc7], 0, Mem::at(layout::segment_base(which)));
        a.imm32(0);
        for (at, value) in
            [(layout::segment_limit(which), flat.limit as i32), (layout::segment_flags(which), flat.flags as i32)]
        {
            a.op_mem(true, &[], false, &[0xc7], 0, Mem::at(at));
            a.imm32(value);
        }
    }
    a.op_mem(true, &[], false, &[0xc6], 0, Mem::at(layout::CPL));
    a.bytes(&[level]);
}

/// Changes the privilege context.
pub(super) fn change_context(a: &mut Asm, from: usize, to: usize) {
    for (at, bits) in [(layout::MMU, 0), (layout::KEY, 2), (layout::BLOCK_KEY, 2)] {
        a.op_mem(true, &[], true, &[0x83], ext::XOR, Mem::at(at));
        a.bytes(&[((from ^ to) << bits) as u8]);
    }
    a.op_mem(true, &[], true, &[0xc7], 0, Mem::at(layout::TLB_DISTANCE));
    a.imm32(layout::tlb(to));
}

/// SYSCALL of a 64-bit program; the address behind it is in R11. `RCX` is the guest's.
pub(super) fn syscall(a: &mut Asm) -> ([super::asm::Fixup; 2], super::asm::Fixup) {
    a.mov(r::RCX, r::R11);
    gather_flags(a, flag::RF);
    a.store_gs(layout::gpr(gpr::R11), r::R11);
    a.load_gs(r::RAX, layout::FMASK);
    // NOT EAX
    a.bytes(&[0xf7, 0xd0]);
    a.op_reg(false, &[0x21], r::RAX, r::R11);
    scatter_flags(a);
    segments(a, layout::STAR + 4, 0);
    change_context(a, mmu::USER, mmu::KERNEL);
    a.load_gs(r::R11, layout::LSTAR);
    a.store_gs(layout::RIP, r::R11);
    look_up(a)
}

/// SYSRET to a 64-bit program.
pub(super) fn sysret(a: &mut Asm) -> ([super::asm::Fixup; 2], super::asm::Fixup) {
    a.load_gs(r::R11, layout::gpr(gpr::R11));
    a.alu(false, ext::AND, r::R11, SYSRET_FLAGS);
    scatter_flags(a);
    segments(a, layout::STAR + 6, 3);
    change_context(a, mmu::KERNEL, mmu::USER);
    a.mov(r::R11, r::RCX);
    a.store_gs(layout::RIP, r::R11);
    look_up(a)
}

impl Tx<'_> {
    /// SYSCALL and SYSRET.
    pub fn system_call(&mut self, code: Code) -> Result<(), TooHard> {
        let call = code == Code::Syscall;
        // From 32-bit code SYSCALL goes elsewhere.
        if !self.long || self.mmu != if call { mmu::USER } else { mmu::KERNEL } || self.unchained() {
            return Err(TooHard);
        }
        self.spoil_flags();
        test_byte(&mut self.a, layout::EFER, cr::EFER_SCE as u8);
        let disabled = self.a.jcc(ext::E);
        self.misses.push(disabled);
        if call {
            // The handler's privilege context is the one without AC.
            test_byte(&mut self.a, layout::FMASK + 2, (flag::AC >> 16) as u8);
            let kept = self.a.jcc(ext::E);
            self.misses.push(kept);
            let next = self.next;
            self.a.constant(r::R11, next);
            let stub = self.a.jmp();
            self.a.land_outside(stub, self.stubs.syscall);
            return Ok(());
        }
        self.supervisor_only();
        test_byte(&mut self.a, layout::INTERRUPT_WAITS, 0xff);
        self.miss();
        test_byte(&mut self.a, layout::gpr(gpr::R11) + 1, (flag::TF >> 8) as u8);
        self.miss();
        // Whether alignment is checked changes the context.
        test_byte(&mut self.a, layout::gpr(gpr::R11) + 2, (flag::AC >> 16) as u8);
        let not_asked = self.a.jcc(ext::E);
        test_byte(&mut self.a, layout::CR0 + 2, (cr::CR0_AM >> 16) as u8);
        self.miss();
        self.a.land(not_asked);
        // Programs are in the lower half; anything else is looked at the slow way.
        self.a.mov(r::RAX, r::RCX);
        self.a.shift(true, ext::SAR, r::RAX, 47);
        self.miss();
        let stub = self.a.jmp();
        self.a.land_outside(stub, self.stubs.sysret);
        Ok(())
    }

    /// STAC and CLAC in supervisor mode, with SMAP. True: what follows is the code of another privilege context.
    pub fn suspend_smap(&mut self, suspend: bool) -> Result<bool, TooHard> {
        let to = if suspend { mmu::KERNEL_AC } else { mmu::KERNEL };
        // Without SMAP the contexts are as one.
        if matches!(self.mmu, mmu::USER | mmu::USER_AC) || !self.smap {
            return Err(TooHard);
        }
        self.spoil_flags();
        self.supervisor_only();
        self.change_rest(flag::AC, suspend);
        if self.mmu == to {
            return Ok(false);
        }
        change_context(&mut self.a, self.mmu, to);
        self.give_back();
        let next = self.next;
        self.a.constant(r::R11, next);
        self.look_up();
        Ok(true)
    }

    /// Sets or clears a flag that is not arithmetic. Spoils the host's flags.
    pub fn change_rest(&mut self, bit: u64, set: bool) {
        self.spoil_flags();
        self.a.op_mem(true, &[], true, &[0x81], if set { ext::OR } else { ext::AND }, Mem::at(layout::REST));
        self.a.imm32(if set { bit as i32 } else { !(bit as i32) });
    }

    /// All flags as PUSHF stores them, into the temporary field.
    pub fn keep_flags(&mut self) {
        self.spoil_flags();
        gather_flags(&mut self.a, flag::RF | flag::VM);
        self.a.store_gs(layout::TEMPORARY, r::R11);
    }
}
