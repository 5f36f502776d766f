//! Floating point: what the host does not do alone. Pending exceptions, environments, and saved areas.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::{
    Cpu,
    block::{Op, Slow},
    fault::{R, vector},
    host::{Class, Stub},
    ops,
    state::{cr, gpr, seg},
};

/// Offsets in the FXSAVE area (Intel SDM volume 1, table 10-2).
pub(crate) mod at {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const FOP: usize = 6;
    pub const FIP: usize = 8;
    pub const FDP: usize = 16;
    pub const MXCSR: usize = 24;
    pub const MASK: usize = 28;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
}
/// The bits of MXCSR that there are.
const MXCSR_MASK: u32 = 0xffff;

impl Cpu {
    fn fx16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.hot.fx[at], self.hot.fx[at + 1]])
    }

    fn set_fx16(&mut self, at: usize, value: u16) {
        self.hot.fx[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// Whether the registers of a class may be used now.
    pub(crate) fn check_class(&mut self, class: Class) -> R<()> {
        match class {
            Class::Integer => return Ok(()),
            Class::X87 => {
                if self.cr0 & (cr::CR0_EM | cr::CR0_TS) != 0 {
                    return Err(self.raise(vector::NM, None));
                }
                return self.check_pending();
            }
            Class::Mmx | Class::Sse => {
                if self.cr0 & cr::CR0_EM != 0 || class == Class::Sse && self.cr4 & cr::CR4_OSFXSR == 0 {
                    return Err(self.ud());
                }
            }
            Class::Avx => {
                if self.cr4 & cr::CR4_OSXSAVE == 0 || self.xcr0 & 6 != 6 || self.real_mode() {
                    return Err(self.ud());
                }
            }
        }
        if self.cr0 & cr::CR0_TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        if class == Class::Mmx {
            self.check_pending()?;
            self.enter_mmx();
        }
        Ok(())
    }

    /// `#MF` if an unmasked x87 exception waits.
    fn check_pending(&mut self) -> R<()> {
        let (fcw, fsw) = (self.fx16(at::FCW), self.fx16(at::FSW));
        if fsw & !fcw & 0x3f == 0 {
            return Ok(());
        }
        if self.cr0 & cr::CR0_NE != 0 {
            return Err(self.raise(vector::MF, None));
        }
        self.sees_time()?;
        // The way of the PC: an interrupt of the 8259. What waited is taken for handled.
        self.platform.ferr();
        self.set_fx16(at::FSW, fsw & !0x80ff);
        Ok(())
    }

    /// MMX registers are the physical x87 registers: the top of stack becomes 0 and all are in use.
    fn enter_mmx(&mut self) {
        let fsw = self.fx16(at::FSW);
        let top = usize::from(fsw >> 11 & 7);
        if top != 0 {
            let mut physical = [[0; 16]; 8];
            for i in 0..8 {
                physical[(i + top) & 7].copy_from_slice(&self.hot.fx[at::ST + 16 * i..at::ST + 16 * i + 16]);
            }
            for (i, r) in physical.iter().enumerate() {
                self.hot.fx[at::ST + 16 * i..at::ST + 16 * i + 16].copy_from_slice(r);
            }
        }
        self.set_fx16(at::FSW, fsw & !0x3800);
        self.hot.fx[at::FTW] = 0xff;
    }

    /// Runs a stub that is not of the integer class.
    ///
    /// # Safety
    /// `memory` must be what the stub may access.
    pub(crate) unsafe fn run_float(&mut self, slow: &Slow, stub: &Stub, op: &Op, linear: u64, memory: u64) -> R<()> {
        let hot = &raw mut self.hot;
        if stub.class == Class::X87 {
            // SAFETY: the caller says so.
            unsafe { (stub.run)(hot, memory) };
            if !matches!(slow.insn.mnemonic(), Mnemonic::Fldcw) {
                self.fip = self.hot.gpr[gpr::RIP].wrapping_add(op.at.into());
                self.fpu_cs = self.segs[seg::CS].selector;
                if stub.len != 0 {
                    self.fdp = linear;
                    self.fpu_ds = self.segs[usize::from(op.seg).min(5)].selector;
                }
            }
            return Ok(());
        }
        if !stub.float {
            // SAFETY: the caller says so.
            unsafe { (stub.run)(hot, memory) };
        } else {
            self.hot.mxcsr_run = (self.mxcsr | 0x1f80) & !0x3f;
            let unmasked = !(self.mxcsr >> 7) & 0x3f;
            if unmasked == 0 {
                // SAFETY: the caller says so.
                unsafe { (stub.run)(hot, memory) };
                self.mxcsr |= self.hot.mxcsr_out & 0x3f;
            } else {
                let saved = (self.hot.gpr, self.hot.vec, self.hot.cc);
                // SAFETY: the caller says so.
                unsafe { (stub.run)(hot, memory) };
                let raised = self.hot.mxcsr_out & 0x3f;
                self.mxcsr |= raised;
                if raised & unmasked != 0 {
                    (self.hot.gpr, self.hot.vec, self.hot.cc) = saved;
                    let v = if self.cr4 & cr::CR4_OSXMMEXCPT != 0 { vector::XM } else { vector::UD };
                    return Err(self.raise(v, None));
                }
            }
        }
        if stub.class == Class::Mmx {
            // A written MMX register reads as a NaN through x87.
            for n in (0..8).filter(|n| stub.mm_written & 1 << n != 0) {
                self.set_fx16(at::ST + 16 * n + 8, 0xffff);
            }
        }
        Ok(())
    }

    /// What BT and its kin add to the address for a bit outside the operand.
    pub(crate) fn bit_string_offset(&self, insn: &Instruction, len: u64) -> u64 {
        let register = insn.op_register(1).full_register().number();
        let value = self.hot.gpr[register & 15];
        let (value, shift) = match len {
            2 => (i64::from(value as i16), 4),
            4 => (i64::from(value as i32), 5),
            _ => (value as i64, 6),
        };
        ((value >> shift) * len as i64) as u64
    }

    /// The floating-point instructions that are not run on the host. Nothing: not one of them.
    pub(crate) fn execute_float(&mut self, insn: &Instruction, op: &Op) -> R<Option<bool>> {
        use Mnemonic as M;
        match insn.mnemonic() {
            M::Fninit
            | M::Finit
            | M::Fnclex
            | M::Fclex
            | M::Fnstsw
            | M::Fstsw
            | M::Fnstcw
            | M::Fstcw
            | M::Fnop
            | M::Fnstenv
            | M::Fstenv
            | M::Fnsave
            | M::Fsave
            | M::Fldenv
            | M::Frstor
            | M::Fneni
            | M::Feni
            | M::Fndisi
            | M::Fdisi
            | M::Fnsetpm
            | M::Fsetpm => self.execute_x87(insn, op)?,
            M::Wait => {
                if self.cr0 & (cr::CR0_MP | cr::CR0_TS) == cr::CR0_MP | cr::CR0_TS {
                    return Err(self.raise(vector::NM, None));
                }
                self.check_pending()?;
            }
            M::Emms | M::Femms => {
                self.check_class(Class::Mmx)?;
                self.hot.fx[at::FTW] = 0;
            }
            M::Ldmxcsr | M::Vldmxcsr => {
                self.check_class(if insn.mnemonic() == M::Ldmxcsr { Class::Sse } else { Class::Avx })?;
                let from = ops::operand_address(self, op, 4, false)?;
                let value: u32 = self.load(from)?;
                if value & !MXCSR_MASK != 0 {
                    return Err(self.gp());
                }
                self.mxcsr = value;
            }
            M::Stmxcsr | M::Vstmxcsr => {
                self.check_class(if insn.mnemonic() == M::Stmxcsr { Class::Sse } else { Class::Avx })?;
                let to = ops::operand_address(self, op, 4, true)?;
                let value = self.mxcsr;
                self.store(to, value)?;
            }
            M::Vzeroupper | M::Vzeroall => {
                self.check_class(Class::Avx)?;
                let all = insn.mnemonic() == M::Vzeroall;
                let count = if self.bits == 2 { 16 } else { 8 };
                for r in self.hot.vec.iter_mut().take(count) {
                    r[if all { 0 } else { 16 }..].fill(0);
                }
            }
            M::Fxsave | M::Fxsave64 => {
                self.check_save()?;
                let to = self.area_address(op, 512, 16, true)?;
                let area = self.legacy_area(insn.mnemonic() == M::Fxsave64, true);
                // What software keeps after the registers stays; outside of 64-bit mode there are eight.
                let count = if self.bits == 2 { 16 } else { 8 };
                self.store_bytes(to, &area[..at::XMM + 16 * count])?;
            }
            M::Fxrstor | M::Fxrstor64 => {
                self.check_save()?;
                let from = self.area_address(op, 512, 16, false)?;
                let mut area = [0; 512];
                self.load_bytes(from, &mut area)?;
                self.load_legacy(&area, insn.mnemonic() == M::Fxrstor64, true, true)?;
            }
            M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => {
                let wide = matches!(insn.mnemonic(), M::Xsave64 | M::Xsaveopt64);
                self.xsave(op, wide)?;
            }
            M::Xrstor | M::Xrstor64 => self.xrstor(op, insn.mnemonic() == M::Xrstor64)?,
            _ => return Ok(self.execute_masked(insn, op)?.then_some(false)),
        }
        Ok(Some(false))
    }

    fn check_save(&mut self) -> R<()> {
        if self.cr0 & cr::CR0_EM != 0 {
            return Err(self.ud());
        }
        if self.cr0 & cr::CR0_TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        Ok(())
    }

    fn area_address(&mut self, op: &Op, size: u32, align: u64, write: bool) -> R<u64> {
        let address = ops::operand_address(self, op, size, write)?;
        if address & (align - 1) != 0 {
            // What is not even at a multiple of 4 is an alignment check's, on AMD's processors.
            self.check_alignment(address, 4)?;
            return Err(self.gp());
        }
        Ok(address)
    }

    /// The FXSAVE image of the guest's state.
    pub(crate) fn legacy_area(&self, wide: bool, xmm: bool) -> [u8; 512] {
        let mut area = [0; 512];
        area[..at::FOP].copy_from_slice(&self.hot.fx[..at::FOP]);
        area[5] = 0;
        area[at::FOP..at::FOP + 2].copy_from_slice(&self.fop.to_le_bytes());
        if wide {
            area[at::FIP..at::FIP + 8].copy_from_slice(&self.fip.to_le_bytes());
            area[at::FDP..at::FDP + 8].copy_from_slice(&self.fdp.to_le_bytes());
        } else {
            area[at::FIP..at::FIP + 4].copy_from_slice(&(self.fip as u32).to_le_bytes());
            area[at::FIP + 4..at::FIP + 6].copy_from_slice(&self.fpu_cs.to_le_bytes());
            area[at::FDP..at::FDP + 4].copy_from_slice(&(self.fdp as u32).to_le_bytes());
            area[at::FDP + 4..at::FDP + 6].copy_from_slice(&self.fpu_ds.to_le_bytes());
        }
        area[at::MXCSR..at::MXCSR + 4].copy_from_slice(&self.mxcsr.to_le_bytes());
        area[at::MASK..at::MASK + 4].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for i in 0..8 {
            let s = at::ST + 16 * i;
            area[s..s + 10].copy_from_slice(&self.hot.fx[s..s + 10]);
        }
        if xmm {
            let count = if self.bits == 2 { 16 } else { 8 };
            for (i, r) in self.hot.vec.iter().enumerate().take(count) {
                area[at::XMM + 16 * i..at::XMM + 16 * i + 16].copy_from_slice(&r[..16]);
            }
        }
        area
    }

    /// Takes the x87 part, and the SSE part, of an FXSAVE image.
    pub(crate) fn load_legacy(&mut self, area: &[u8; 512], wide: bool, x87: bool, sse: bool) -> R<()> {
        let u32_at = |i: usize| u32::from_le_bytes([area[i], area[i + 1], area[i + 2], area[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        if sse && u32_at(at::MXCSR) & !MXCSR_MASK != 0 {
            return Err(self.gp());
        }
        if x87 {
            self.hot.fx[..5].copy_from_slice(&area[..5]);
            self.fop = (u32_at(at::FTW) >> 16) as u16 & 0x7ff;
            if wide {
                self.fip = u64_at(at::FIP);
                self.fdp = u64_at(at::FDP);
            } else {
                self.fip = u32_at(at::FIP).into();
                self.fpu_cs = u32_at(at::FIP + 4) as u16;
                self.fdp = u32_at(at::FDP).into();
                self.fpu_ds = u32_at(at::FDP + 4) as u16;
            }
            self.normalize_x87();
            for i in 0..8 {
                let s = at::ST + 16 * i;
                self.hot.fx[s..s + 10].copy_from_slice(&area[s..s + 10]);
            }
        }
        if sse {
            self.mxcsr = u32_at(at::MXCSR);
            let count = if self.bits == 2 { 16 } else { 8 };
            for (i, r) in self.hot.vec.iter_mut().enumerate().take(count) {
                r[..16].copy_from_slice(&area[at::XMM + 16 * i..at::XMM + 16 * i + 16]);
            }
        }
        Ok(())
    }

    /// Makes the summary bits of the status word and reserved bits of the control word what the hardware makes them.
    fn normalize_x87(&mut self) {
        let fcw = self.fx16(at::FCW) & 0x1f7f | 0x40;
        let mut fsw = self.fx16(at::FSW) & !0x8080;
        if fsw & !fcw & 0x3f != 0 {
            fsw |= 0x8080;
        }
        self.set_fx16(at::FCW, fcw);
        self.set_fx16(at::FSW, fsw);
    }

    fn xsave(&mut self, op: &Op, wide: bool) -> R<()> {
        if self.cr4 & cr::CR4_OSXSAVE == 0 {
            return Err(self.ud());
        }
        if self.cr0 & cr::CR0_TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        let wanted = (self.hot.gpr[gpr::RAX] & 0xffff_ffff | self.hot.gpr[gpr::RDX] << 32) & self.xcr0;
        let to = self.area_address(op, 576, 64, true)?;
        let len = if wanted & 4 != 0 { 832 } else { 576 };
        self.probe_write(to, 576)?;
        self.probe_write(to.wrapping_add(len - 1), 1)?;
        let area = self.legacy_area(wide, true);
        if wanted & 1 != 0 {
            self.store_bytes(to, &area[..at::MXCSR])?;
            self.store_bytes(to.wrapping_add(at::ST as u64), &area[at::ST..at::XMM])?;
        }
        if wanted & 6 != 0 {
            self.store_bytes(to.wrapping_add(at::MXCSR as u64), &area[at::MXCSR..at::ST])?;
        }
        let count = if self.bits == 2 { 16 } else { 8 };
        if wanted & 2 != 0 {
            self.store_bytes(to.wrapping_add(at::XMM as u64), &area[at::XMM..at::XMM + 16 * count])?;
        }
        if wanted & 4 != 0 {
            for i in 0..count {
                let high: [u8; 32] = self.hot.vec[i];
                self.store_bytes(to.wrapping_add(576 + 16 * i as u64), &high[16..])?;
            }
        }
        let header = to.wrapping_add(512);
        let old: u64 = self.load(header)?;
        let in_use = self.components_in_use();
        self.store(header, old & !wanted | wanted & in_use)
    }

    /// XSTATE_BV: what is not in its initial state.
    pub(crate) fn components_in_use(&self) -> u64 {
        let mut bits = 0;
        if self.fx16(at::FCW) != 0x37f || self.fx16(at::FSW) != 0 || self.hot.fx[at::FTW] != 0 {
            bits |= 1;
        }
        if self.mxcsr != 0x1f80 || self.hot.vec.iter().any(|r| r[..16] != [0; 16]) {
            bits |= 2;
        }
        if self.hot.vec.iter().any(|r| r[16..] != [0; 16]) {
            bits |= 4;
        }
        bits
    }

    fn xrstor(&mut self, op: &Op, wide: bool) -> R<()> {
        if self.cr4 & cr::CR4_OSXSAVE == 0 {
            return Err(self.ud());
        }
        if self.cr0 & cr::CR0_TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        let wanted = (self.hot.gpr[gpr::RAX] & 0xffff_ffff | self.hot.gpr[gpr::RDX] << 32) & self.xcr0;
        let from = self.area_address(op, 576, 64, false)?;
        let mut area = [0; 832];
        let len = if wanted & 4 != 0 { 832 } else { 576 };
        self.load_bytes(from, &mut area[..len])?;
        let word = |i: usize| {
            let mut b = [0; 8];
            b.copy_from_slice(&area[512 + 8 * i..520 + 8 * i]);
            u64::from_le_bytes(b)
        };
        let present = word(0);
        if word(1) != 0 || word(2) != 0 || present & !self.xcr0 != 0 {
            return Err(self.gp());
        }
        let mut legacy = [0; 512];
        legacy.copy_from_slice(&area[..512]);
        let mxcsr = u32::from_le_bytes([area[24], area[25], area[26], area[27]]);
        if wanted & 6 != 0 && mxcsr & !MXCSR_MASK != 0 {
            return Err(self.gp());
        }
        if wanted & 1 != 0 {
            if present & 1 != 0 {
                self.load_legacy(&legacy, wide, true, false)?;
            } else {
                self.init_x87();
            }
        }
        let count = if self.bits == 2 { 16 } else { 8 };
        if wanted & 2 != 0 {
            for i in 0..count {
                let low =
                    if present & 2 != 0 { &legacy[at::XMM + 16 * i..at::XMM + 16 * i + 16] } else { &[0; 16][..] };
                self.hot.vec[i][..16].copy_from_slice(low);
            }
        }
        if wanted & 6 != 0 {
            self.mxcsr = mxcsr;
        }
        if wanted & 4 != 0 {
            for i in 0..count {
                let high = if present & 4 != 0 { &area[576 + 16 * i..592 + 16 * i] } else { &[0; 16][..] };
                self.hot.vec[i][16..].copy_from_slice(high);
            }
        }
        Ok(())
    }

    fn init_x87(&mut self) {
        self.set_fx16(at::FCW, 0x37f);
        self.set_fx16(at::FSW, 0);
        self.hot.fx[at::FTW] = 0;
        (self.fop, self.fip, self.fdp, self.fpu_cs, self.fpu_ds) = (0, 0, 0, 0, 0);
    }

    fn execute_x87(&mut self, insn: &Instruction, op: &Op) -> R<()> {
        use Mnemonic as M;
        if self.cr0 & (cr::CR0_EM | cr::CR0_TS) != 0 {
            return Err(self.raise(vector::NM, None));
        }
        let m = insn.mnemonic();
        if matches!(
            m,
            M::Finit | M::Fclex | M::Fstsw | M::Fstcw | M::Fstenv | M::Fsave | M::Fldenv | M::Frstor | M::Fnop
        ) {
            self.check_pending()?;
        }
        match m {
            M::Fninit | M::Finit => self.init_x87(),
            M::Fnclex | M::Fclex => {
                let fsw = self.fx16(at::FSW) & !0x80ff;
                self.set_fx16(at::FSW, fsw);
            }
            M::Fnstsw | M::Fstsw | M::Fnstcw | M::Fstcw => {
                let value = self.fx16(if matches!(m, M::Fnstsw | M::Fstsw) { at::FSW } else { at::FCW });
                if insn.op_kind(0) == OpKind::Register && insn.op_register(0) == Register::AX {
                    self.set_register(gpr::RAX, 2, value.into());
                } else {
                    let to = ops::operand_address(self, op, 2, true)?;
                    self.store(to, value)?;
                }
            }
            M::Fnstenv | M::Fstenv | M::Fnsave | M::Fsave => {
                let save = matches!(m, M::Fnsave | M::Fsave);
                let wide = matches!(insn.memory_size().size(), 28 | 108);
                let mut bytes = self.environment(wide);
                if save {
                    for i in 0..8 {
                        bytes.extend(&self.hot.fx[at::ST + 16 * i..at::ST + 16 * i + 10]);
                    }
                }
                let to = ops::operand_address(self, op, bytes.len() as u32, true)?;
                self.check_alignment(to, if wide { 4 } else { 2 })?;
                self.store_bytes(to, &bytes)?;
                if save {
                    self.init_x87();
                } else {
                    let fcw = self.fx16(at::FCW) | 0x3f;
                    self.set_fx16(at::FCW, fcw);
                    self.normalize_x87();
                }
            }
            M::Fldenv | M::Frstor => {
                let wide = matches!(insn.memory_size().size(), 28 | 108);
                let len = if wide { 28 } else { 14 } + if m == M::Frstor { 80 } else { 0 };
                let from = ops::operand_address(self, op, len, false)?;
                self.check_alignment(from, if wide { 4 } else { 2 })?;
                let mut bytes = [0; 108];
                self.load_bytes(from, &mut bytes[..len as usize])?;
                self.load_environment(&bytes, wide);
                if m == M::Frstor {
                    let start = if wide { 28 } else { 14 };
                    for i in 0..8 {
                        self.hot.fx[at::ST + 16 * i..at::ST + 16 * i + 10]
                            .copy_from_slice(&bytes[start + 10 * i..start + 10 * i + 10]);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The environment as FSTENV stores it (Intel SDM volume 1, figures 8-9 to 8-12).
    fn environment(&self, wide: bool) -> Vec<u8> {
        let (fcw, fsw, tags) = (self.fx16(at::FCW), self.fx16(at::FSW), self.full_tags());
        let protected = !self.real_mode();
        let ip = if protected { self.fip as u32 } else { (u32::from(self.fpu_cs) << 4).wrapping_add(self.fip as u32) };
        let dp = if protected { self.fdp as u32 } else { (u32::from(self.fpu_ds) << 4).wrapping_add(self.fdp as u32) };
        let mut out = vec![];
        if wide {
            let words: [u32; 7] = if protected {
                [
                    u32::from(fcw) | 0xffff_0000,
                    u32::from(fsw) | 0xffff_0000,
                    u32::from(tags) | 0xffff_0000,
                    ip,
                    u32::from(self.fpu_cs) | u32::from(self.fop) << 16,
                    dp,
                    u32::from(self.fpu_ds) | 0xffff_0000,
                ]
            } else {
                [
                    u32::from(fcw) | 0xffff_0000,
                    u32::from(fsw) | 0xffff_0000,
                    u32::from(tags) | 0xffff_0000,
                    ip & 0xffff | 0xffff_0000,
                    (ip >> 16) << 12 | u32::from(self.fop),
                    dp & 0xffff | 0xffff_0000,
                    (dp >> 16) << 12,
                ]
            };
            words.iter().for_each(|w| out.extend(w.to_le_bytes()));
        } else {
            let words: [u16; 7] = if protected {
                [fcw, fsw, tags, ip as u16, self.fpu_cs, dp as u16, self.fpu_ds]
            } else {
                [fcw, fsw, tags, ip as u16, ((ip >> 16) << 12) as u16 | self.fop, dp as u16, ((dp >> 16) << 12) as u16]
            };
            words.iter().for_each(|w| out.extend(w.to_le_bytes()));
        }
        out
    }

    fn load_environment(&mut self, bytes: &[u8], wide: bool) {
        let word = |i: usize| {
            let at = if wide { 4 * i } else { 2 * i };
            u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
                | if wide { u32::from(u16::from_le_bytes([bytes[at + 2], bytes[at + 3]])) << 16 } else { 0 }
        };
        self.set_fx16(at::FCW, word(0) as u16);
        self.set_fx16(at::FSW, word(1) as u16);
        let tags = word(2) as u16;
        let mut abridged = 0;
        for i in 0..8 {
            if tags >> (2 * i) & 3 != 3 {
                abridged |= 1 << i;
            }
        }
        self.hot.fx[at::FTW] = abridged;
        self.normalize_x87();
        if !self.real_mode() {
            self.fip = word(3).into();
            self.fpu_cs = word(4) as u16;
            self.fop = if wide { (word(4) >> 16) as u16 & 0x7ff } else { 0 };
            self.fdp = word(5).into();
            self.fpu_ds = word(6) as u16;
        } else {
            self.fip = u64::from(word(3) & 0xffff | (word(4) >> 12 & 0xffff) << 16);
            self.fop = word(4) as u16 & 0x7ff;
            self.fdp = u64::from(word(5) & 0xffff | (word(6) >> 12 & 0xffff) << 16);
            (self.fpu_cs, self.fpu_ds) = (0, 0);
        }
    }

    /// Two bits a physical register: valid, zero, special, empty.
    fn full_tags(&self) -> u16 {
        let top = usize::from(self.fx16(at::FSW) >> 11 & 7);
        let mut tags = 0;
        for physical in 0..8 {
            let tag = if self.hot.fx[at::FTW] & 1 << physical == 0 {
                3
            } else {
                let s = at::ST + 16 * ((physical + 8 - top) & 7);
                let mantissa: u64 = (0..8).map(|i| u64::from(self.hot.fx[s + i]) << (8 * i)).sum();
                let exponent = u16::from_le_bytes([self.hot.fx[s + 8], self.hot.fx[s + 9]]) & 0x7fff;
                match (exponent, mantissa) {
                    (0, 0) => 1,
                    (0 | 0x7fff, _) => 2,
                    (_, m) if m >> 63 == 0 => 2,
                    _ => 0,
                }
            };
            tags |= tag << (2 * physical);
        }
        tags
    }
}
