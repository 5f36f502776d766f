//! String instructions, alone and repeated. A repetition that is broken off goes on where its registers stand.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::{
    Cpu,
    alu::Alu,
    fault::R,
    state::{flag, gpr, seg},
};

/// Which of the seven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
    Ins,
    Outs,
}

/// The kind and element size of a string instruction.
pub(crate) fn kind_of(insn: &Instruction) -> Option<(Kind, u32)> {
    use Mnemonic as M;
    // MOVSD and CMPSD are also SSE2 instructions.
    if !insn.is_string_instruction() {
        return None;
    }
    Some(match insn.mnemonic() {
        M::Movsb => (Kind::Movs, 1),
        M::Movsw => (Kind::Movs, 2),
        M::Movsd => (Kind::Movs, 4),
        M::Movsq => (Kind::Movs, 8),
        M::Stosb => (Kind::Stos, 1),
        M::Stosw => (Kind::Stos, 2),
        M::Stosd => (Kind::Stos, 4),
        M::Stosq => (Kind::Stos, 8),
        M::Lodsb => (Kind::Lods, 1),
        M::Lodsw => (Kind::Lods, 2),
        M::Lodsd => (Kind::Lods, 4),
        M::Lodsq => (Kind::Lods, 8),
        M::Cmpsb => (Kind::Cmps, 1),
        M::Cmpsw => (Kind::Cmps, 2),
        M::Cmpsd => (Kind::Cmps, 4),
        M::Cmpsq => (Kind::Cmps, 8),
        M::Scasb => (Kind::Scas, 1),
        M::Scasw => (Kind::Scas, 2),
        M::Scasd => (Kind::Scas, 4),
        M::Scasq => (Kind::Scas, 8),
        M::Insb => (Kind::Ins, 1),
        M::Insw => (Kind::Ins, 2),
        M::Insd => (Kind::Ins, 4),
        M::Outsb => (Kind::Outs, 1),
        M::Outsw => (Kind::Outs, 2),
        M::Outsd => (Kind::Outs, 4),
        _ => return None,
    })
}

/// Most elements moved before requests are looked at.
const BURST: u64 = 4096;

impl Cpu {
    pub(crate) fn string(&mut self, insn: &Instruction, kind: Kind, size: u32) -> R<bool> {
        match size {
            1 => self.string_of::<u8>(insn, kind),
            2 => self.string_of::<u16>(insn, kind),
            4 => self.string_of::<u32>(insn, kind),
            _ => self.string_of::<u64>(insn, kind),
        }
    }

    fn string_of<T: Alu>(&mut self, insn: &Instruction, kind: Kind) -> R<bool> {
        let mut mask = 0xffff_ffff_ffff_ffff;
        for i in 0..insn.op_count() {
            match insn.op_kind(i) {
                OpKind::MemorySegSI | OpKind::MemoryESDI => mask = 0xffff,
                OpKind::MemorySegESI | OpKind::MemoryESEDI => mask = 0xffff_ffff,
                _ => {}
            }
        }
        let source = match insn.memory_segment() {
            Register::ES => seg::ES,
            Register::CS => seg::CS,
            Register::SS => seg::SS,
            Register::FS => seg::FS,
            Register::GS => seg::GS,
            _ => seg::DS,
        };
        let repeat = insn.has_rep_prefix() || insn.has_repne_prefix();
        let step = if self.rest & flag::DF != 0 { 0u64.wrapping_sub(T::SIZE) } else { T::SIZE };
        if matches!(kind, Kind::Ins | Kind::Outs) {
            self.sees_time()?;
            self.check_port(self.hot.gpr[gpr::RDX] as u16, T::SIZE as u32)?;
        }
        if !repeat {
            self.string_element::<T>(kind, source, mask, step)?;
            return Ok(matches!(kind, Kind::Ins | Kind::Outs));
        }
        let most = self.repetitions();
        let before = self.hot.gpr[gpr::RCX] & mask;
        let result = self.repeat::<T>(insn, kind, source, mask, step, most);
        let done = before - (self.hot.gpr[gpr::RCX] & mask);
        // The instruction was charged for one.
        self.charge(if result.is_ok() { done.saturating_sub(1) } else { done } as i64);
        result
    }

    /// Repeats a string instruction at most so many times, or until something is asked.
    fn repeat<T: Alu>(
        &mut self,
        insn: &Instruction,
        kind: Kind,
        source: usize,
        mask: u64,
        step: u64,
        mut most: u64,
    ) -> R<bool> {
        let mut burst = BURST;
        while self.hot.gpr[gpr::RCX] & mask != 0 {
            if burst == 0 || most == 0 || self.link.any() && burst < BURST {
                // Comes back here after whatever is asked.
                self.next = self.here;
                return Ok(true);
            }
            let left = (self.hot.gpr[gpr::RCX] & mask).min(most);
            let done = if step == T::SIZE { self.string_run::<T>(kind, source, mask, left)? } else { 0 };
            if done != 0 {
                self.advance(gpr::RCX, mask, 0u64.wrapping_sub(done));
                burst = burst.saturating_sub(done.div_ceil(64)).max(1) - 1;
                most -= done;
                continue;
            }
            self.string_element::<T>(kind, source, mask, step)?;
            self.advance(gpr::RCX, mask, u64::MAX);
            most -= 1;
            burst -= 1;
            if matches!(kind, Kind::Cmps | Kind::Scas) {
                let zero = self.hot.cc & 0x4000 != 0;
                if zero == insn.has_repne_prefix() {
                    break;
                }
            }
            if self.breakpoints.hits != 0 && self.hot.gpr[gpr::RCX] & mask != 0 {
                // The trap comes between two elements (Intel SDM volume 3, 19.3.1.2).
                self.next = self.here;
                return Ok(true);
            }
        }
        Ok(true)
    }

    /// Adds to a register, in as many bits as addresses have.
    fn advance(&mut self, register: usize, mask: u64, by: u64) {
        let old = self.hot.gpr[register];
        let new = old.wrapping_add(by) & mask;
        // 32-bit results clear the upper half, 16-bit ones leave it.
        self.hot.gpr[register] = if mask == 0xffff { old & !mask | new } else { new };
    }

    fn string_element<T: Alu>(&mut self, kind: Kind, source: usize, mask: u64, step: u64) -> R<()> {
        let size = T::SIZE as u32;
        let (si, di) = (self.hot.gpr[gpr::RSI] & mask, self.hot.gpr[gpr::RDI] & mask);
        match kind {
            Kind::Movs => {
                let from = self.segment_address(source, si, size, false)?;
                let value: T = self.load(from)?;
                let to = self.segment_address(seg::ES, di, size, true)?;
                self.store(to, value)?;
            }
            Kind::Stos => {
                let to = self.segment_address(seg::ES, di, size, true)?;
                let value = T::cut(self.hot.gpr[gpr::RAX]);
                self.store(to, value)?;
            }
            Kind::Lods => {
                let from = self.segment_address(source, si, size, false)?;
                let value: u64 = self.load::<T>(from)?.into();
                self.set_register(gpr::RAX, T::SIZE, value);
            }
            Kind::Cmps => {
                let from = self.segment_address(source, si, size, false)?;
                let a: T = self.load(from)?;
                let to = self.segment_address(seg::ES, di, size, false)?;
                let b: T = self.load(to)?;
                T::sub(a, b, &mut self.hot.cc);
            }
            Kind::Scas => {
                let to = self.segment_address(seg::ES, di, size, false)?;
                let b: T = self.load(to)?;
                T::sub(T::cut(self.hot.gpr[gpr::RAX]), b, &mut self.hot.cc);
            }
            Kind::Ins => {
                let to = self.segment_address(seg::ES, di, size, true)?;
                self.probe_write(to, T::SIZE)?;
                self.note_port_access(self.hot.gpr[gpr::RDX] as u16, size)?;
                let value = self.port_in(self.hot.gpr[gpr::RDX] as u16, size);
                self.store(to, T::cut(value))?;
            }
            Kind::Outs => {
                let from = self.segment_address(source, si, size, false)?;
                let value: u64 = self.load::<T>(from)?.into();
                self.note_port_access(self.hot.gpr[gpr::RDX] as u16, size)?;
                self.port_out(self.hot.gpr[gpr::RDX] as u16, size, value);
            }
        }
        if matches!(kind, Kind::Movs | Kind::Lods | Kind::Cmps | Kind::Outs) {
            self.advance(gpr::RSI, mask, step);
        }
        if matches!(kind, Kind::Movs | Kind::Stos | Kind::Cmps | Kind::Scas | Kind::Ins) {
            self.advance(gpr::RDI, mask, step);
        }
        Ok(())
    }

    /// Moves or fills upwards as much as lies in plain RAM in one page each. Gives the number of elements, 0 if none.
    fn string_run<T: Alu>(&mut self, kind: Kind, source: usize, mask: u64, left: u64) -> R<u64> {
        if !matches!(kind, Kind::Movs | Kind::Stos) || left < 4 {
            return Ok(0);
        }
        let (si, di) = (self.hot.gpr[gpr::RSI] & mask, self.hot.gpr[gpr::RDI] & mask);
        let to = self.segment_address(seg::ES, di, T::SIZE as u32, true)?;
        let mut room = 0x1000 - (to & 0xfff);
        let mut from = 0;
        if kind == Kind::Movs {
            from = self.segment_address(source, si, T::SIZE as u32, false)?;
            room = room.min(0x1000 - (from & 0xfff));
        }
        // The mask and, outside 64-bit mode, limits: only what is surely inside.
        let n = left.min(room / T::SIZE);
        let bytes = n * T::SIZE;
        if n < 4 || di.checked_add(bytes).is_none_or(|e| e > mask) || si.checked_add(bytes).is_none_or(|e| e > mask) {
            return Ok(0);
        }
        if self.bits != 2 {
            self.segment_address(seg::ES, di + bytes - 1, 1, true)?;
            if kind == Kind::Movs {
                self.segment_address(source, si + bytes - 1, 1, false)?;
            }
        }
        let Some(to) = self.direct(to, bytes, true) else { return Ok(0) };
        if kind == Kind::Movs {
            let Some(from) = self.direct(from, bytes, false) else { return Ok(0) };
            if to > from && to < from + bytes {
                return Ok(0);
            }
            // SAFETY: plain RAM inside one page each; an overlap is such that copying upwards is right.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes as usize) };
            self.advance(gpr::RSI, mask, bytes);
        } else {
            let value = T::cut(self.hot.gpr[gpr::RAX]);
            // SAFETY: plain RAM inside one page.
            unsafe { T::fill(to, n, value) };
        }
        self.advance(gpr::RDI, mask, bytes);
        Ok(n)
    }

    /// Writes a general register of 1, 2, 4 or 8 bytes.
    pub(crate) fn set_register(&mut self, register: usize, size: u64, value: u64) {
        let r = &mut self.hot.gpr[register];
        *r = match size {
            1 => *r & !0xff | value & 0xff,
            2 => *r & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }
}
