//! Segments: addresses through them, loading them, and far transfers (Intel SDM volume 3, chapters 3 and 5).

use crate::{
    Cpu,
    fault::{Fault, R, vector},
    mem::Word,
    state::{Segment, attr, cr, flag, gpr, seg},
};

/// A descriptor's two halves.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub low: u32,
    pub high: u32,
}

impl Descriptor {
    pub fn base(self) -> u64 {
        u64::from(self.low >> 16 | (self.high & 0xff) << 16 | self.high & 0xff00_0000)
    }
    pub fn limit(self) -> u32 {
        let limit = self.low & 0xffff | self.high & 0xf_0000;
        if self.high & attr::G != 0 { limit << 12 | 0xfff } else { limit }
    }
    pub fn dpl(self) -> u8 {
        (self.high >> 13 & 3) as u8
    }
    pub fn has(self, bits: u32) -> bool {
        self.high & bits == bits
    }
    /// Bits 8 to 12: type and S.
    pub fn kind(self) -> u32 {
        self.high >> 8 & 31
    }
    pub fn is_code(self) -> bool {
        self.has(attr::S | attr::CODE)
    }
    pub fn segment(self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), flags: self.high & 0x00f0_ff00 }
    }
}

/// A stack that is being pushed to, before it becomes the processor's.
#[derive(Clone, Copy)]
pub(crate) struct Stack {
    pub segment: Segment,
    pub sp: u64,
    pub long: bool,
}

impl Stack {
    fn mask(&self) -> u64 {
        match (self.long, self.segment.flags & attr::DB != 0) {
            (true, _) => u64::MAX,
            (_, true) => 0xffff_ffff,
            _ => 0xffff,
        }
    }

    pub fn push(&mut self, cpu: &mut Cpu, size: u32, value: u64) -> R<()> {
        let mask = self.mask();
        let sp = self.moved(0u64.wrapping_sub(size.into()));
        let at = self.at(cpu, sp & mask, size, true)?;
        match size {
            2 => cpu.store(at, value as u16)?,
            4 => cpu.store(at, value as u32)?,
            _ => cpu.store(at, value)?,
        }
        self.sp = sp;
        Ok(())
    }

    pub fn pop(&mut self, cpu: &mut Cpu, size: u32) -> R<u64> {
        let mask = self.mask();
        let at = self.at(cpu, self.sp & mask, size, false)?;
        let value = match size {
            2 => cpu.load::<u16>(at)?.into(),
            4 => cpu.load::<u32>(at)?.into(),
            _ => cpu.load::<u64>(at)?,
        };
        self.skip(size.into());
        Ok(value)
    }

    pub fn skip(&mut self, bytes: u64) {
        self.sp = self.moved(bytes);
    }

    /// The pointer moved upwards. One of 32 bits has no upper half, as with any register that is written so.
    fn moved(&self, bytes: u64) -> u64 {
        match self.mask() {
            0xffff => self.sp & !0xffff | self.sp.wrapping_add(bytes) & 0xffff,
            mask => self.sp.wrapping_add(bytes) & mask,
        }
    }

    fn at(&self, cpu: &mut Cpu, sp: u64, size: u32, write: bool) -> R<u64> {
        if self.long { Ok(sp) } else { cpu.through(&self.segment, seg::SS, sp, size, write) }
    }
}

impl Cpu {
    /// Whether segments are as in the 8086.
    pub(crate) fn real_mode(&self) -> bool {
        self.cr0 & cr::CR0_PE == 0 || self.rest & flag::VM != 0
    }

    pub(crate) fn vm86(&self) -> bool {
        self.rest & flag::VM != 0
    }

    pub(crate) fn long_mode(&self) -> bool {
        self.efer & cr::EFER_LMA != 0
    }

    /// Whether this is code of 32 bits whose segments are all memory, as all systems have them: then offsets are linear addresses, and
    /// only FS and GS have bases and limits of their own.
    pub(crate) fn is_flat(&self) -> bool {
        let all = |which: usize, want: u32| {
            let s = &self.segs[which];
            let kind = attr::P
                | attr::S
                | attr::CODE
                | if want & attr::CODE == 0 { attr::EXPAND_DOWN | attr::WRITABLE } else { 0 };
            s.base == 0 && s.limit == 0xffff_ffff && s.flags & kind == want
        };
        let data = attr::P | attr::S | attr::WRITABLE;
        self.bits == 1
            && !self.real_mode()
            && self.segs[seg::SS].flags & attr::DB != 0
            && all(seg::CS, attr::P | attr::S | attr::CODE)
            && [seg::ES, seg::SS, seg::DS].iter().all(|&s| all(s, data))
    }

    /// What machine code depends on of the mode: the width of code, or 3 for code that [is flat](Self::is_flat).
    #[inline]
    pub(crate) fn code_mode(&self) -> u64 {
        match self.bits {
            1 if self.is_flat() => 3,
            bits => bits.into(),
        }
    }

    /// Whether code of this mode may be translated.
    #[inline]
    pub(crate) fn is_translatable(&self) -> bool {
        self.bits == 2 || self.bits == 1 && self.is_flat()
    }

    /// The linear address of an offset in a segment, checked.
    pub(crate) fn segment_address(&mut self, which: usize, offset: u64, size: u32, write: bool) -> R<u64> {
        if self.bits == 2 {
            let base = if which >= seg::FS { self.segs[which].base } else { 0 };
            return Ok(base.wrapping_add(offset));
        }
        let segment = self.segs[which];
        self.through(&segment, which, offset, size, write)
    }

    /// As [`segment_address`](Self::segment_address), for a segment that is not loaded (yet).
    pub(crate) fn through(&mut self, s: &Segment, which: usize, offset: u64, size: u32, write: bool) -> R<u64> {
        let last = offset + u64::from(size.max(1)) - 1;
        let limit = u64::from(s.limit);
        let code = s.flags & attr::CODE != 0;
        let inside = if !code && s.flags & attr::EXPAND_DOWN != 0 && s.flags & attr::S != 0 {
            offset > limit && last <= if s.flags & attr::DB != 0 { 0xffff_ffff } else { 0xffff }
        } else {
            last <= limit
        };
        let rights = self.real_mode()
            || s.present()
                && if write { !code && s.flags & attr::WRITABLE != 0 } else { !code || s.flags & attr::WRITABLE != 0 };
        if !inside || !rights {
            let vector = if which == seg::SS { vector::SS } else { vector::GP };
            return Err(self.raise(vector, Some(0)));
        }
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Reads a descriptor of the GDT or LDT. Outside: an exception with the selector.
    pub(crate) fn descriptor(&mut self, selector: u16, fault: u8) -> R<Descriptor> {
        match self.find_descriptor(selector)? {
            Some(d) => Ok(d),
            None => Err(self.selector_fault(fault, selector)),
        }
    }

    pub(crate) fn find_descriptor(&mut self, selector: u16) -> R<Option<Descriptor>> {
        let (base, limit) = if selector & 4 != 0 {
            (self.ldt.base, if self.ldt.present() && self.ldt.selector & !3 != 0 { self.ldt.limit } else { 0 })
        } else {
            (self.gdt.base, self.gdt.limit.into())
        };
        let at = u32::from(selector & !7);
        if at + 7 > limit {
            return Ok(None);
        }
        let value: u64 = self.as_supervisor(|cpu| cpu.load(base.wrapping_add(at.into())))?;
        Ok(Some(Descriptor { low: value as u32, high: (value >> 32) as u32 }))
    }

    pub(crate) fn selector_fault(&mut self, vector: u8, selector: u16) -> Fault {
        self.raise(vector, Some(u32::from(selector & !3)))
    }

    /// Sets the accessed bit in memory.
    pub(crate) fn set_accessed(&mut self, selector: u16, d: &mut Descriptor) -> R<()> {
        if d.high & attr::ACCESSED == 0 {
            d.high |= attr::ACCESSED;
            let base = if selector & 4 != 0 { self.ldt.base } else { self.gdt.base };
            let at = base.wrapping_add(u64::from(selector & !7)).wrapping_add(5);
            let byte = (d.high >> 8) as u8;
            self.as_supervisor(|cpu| cpu.store(at, byte))?;
        }
        Ok(())
    }

    /// MOV to a segment register, POP, LDS and kin.
    pub(crate) fn load_segment(&mut self, which: usize, selector: u16) -> R<()> {
        if self.real_mode() {
            self.segs[which].load_real(selector);
            if self.vm86() {
                self.segs[which].limit = 0xffff;
                self.segs[which].flags = 0xf300;
            }
            return Ok(());
        }
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            if which == seg::SS && (self.bits != 2 || self.cpl == 3 || rpl != self.cpl) {
                return Err(self.gp());
            }
            // A null selector: unusable in legacy modes. Bases of FS and GS are cleared as AMD and Intel do for null loads.
            let flags = if which == seg::SS { u32::from(self.cpl) << 13 | attr::DB } else { 0 };
            self.segs[which] = Segment { selector, base: 0, limit: 0, flags };
            return Ok(());
        }
        let mut d = self.descriptor(selector, vector::GP)?;
        let allowed = if which == seg::SS {
            d.high & (attr::S | attr::CODE | attr::WRITABLE) == attr::S | attr::WRITABLE
                && rpl == self.cpl
                && d.dpl() == self.cpl
        } else {
            let readable = d.has(attr::S) && (!d.is_code() || d.has(attr::WRITABLE));
            let conforming = d.is_code() && d.has(attr::EXPAND_DOWN);
            readable && (conforming || d.dpl() >= self.cpl && d.dpl() >= rpl)
        };
        if !allowed {
            return Err(self.selector_fault(vector::GP, selector));
        }
        if !d.has(attr::P) {
            let v = if which == seg::SS { vector::SS } else { vector::NP };
            return Err(self.selector_fault(v, selector));
        }
        self.set_accessed(selector, &mut d)?;
        self.segs[which] = d.segment(selector);
        Ok(())
    }

    /// Makes a code segment current. The caller has checked it.
    pub(crate) fn set_cs(&mut self, selector: u16, d: Descriptor, cpl: u8) {
        self.segs[seg::CS] = d.segment(selector & !3 | u16::from(cpl));
        self.cpl = cpl;
        self.update_mode();
    }

    /// The stack of the present SS.
    pub(crate) fn stack(&self) -> Stack {
        Stack { segment: self.segs[seg::SS], sp: self.hot.gpr[gpr::RSP], long: self.bits == 2 }
    }

    /// Pushes `size` bytes. The caller undoes RSP if the instruction fails later.
    pub(crate) fn push(&mut self, size: u32, value: u64) -> R<()> {
        let mut stack = self.stack();
        stack.push(self, size, value)?;
        self.hot.gpr[gpr::RSP] = stack.sp;
        Ok(())
    }

    pub(crate) fn pop(&mut self, size: u32) -> R<u64> {
        let mut stack = self.stack();
        let value = stack.pop(self, size)?;
        self.hot.gpr[gpr::RSP] = stack.sp;
        Ok(value)
    }

    /// The checks of a code segment for JMP and CALL (not through a gate). Gives the descriptor and the new CPL.
    fn direct_code(&mut self, selector: u16, mut d: Descriptor) -> R<(Descriptor, u8)> {
        let rpl = (selector & 3) as u8;
        let allowed =
            if d.has(attr::EXPAND_DOWN) { d.dpl() <= self.cpl } else { rpl <= self.cpl && d.dpl() == self.cpl };
        if !allowed || self.long_mode() && d.has(attr::L | attr::DB) {
            return Err(self.selector_fault(vector::GP, selector));
        }
        if !d.has(attr::P) {
            return Err(self.selector_fault(vector::NP, selector));
        }
        self.set_accessed(selector, &mut d)?;
        Ok((d, self.cpl))
    }

    /// JMP and CALL to a far pointer.
    pub(crate) fn far_transfer(&mut self, selector: u16, offset: u64, size: u32, call: bool) -> R<()> {
        let cut = |v: u64| match size {
            2 => v & 0xffff,
            4 => v & 0xffff_ffff,
            _ => v,
        };
        let (old_cs, back) = (self.segs[seg::CS].selector, self.next);
        if self.real_mode() {
            if call {
                self.push(size, old_cs.into())?;
                self.push(size, back)?;
            }
            self.segs[seg::CS].load_real(selector);
            self.next = cut(offset);
            return Ok(());
        }
        if selector & !3 == 0 {
            return Err(self.gp());
        }
        let d = self.descriptor(selector, vector::GP)?;
        if d.is_code() {
            let (d, cpl) = self.direct_code(selector, d)?;
            if call {
                self.push(size, old_cs.into())?;
                self.push(size, back)?;
            }
            self.set_cs(selector, d, cpl);
            self.next = cut(offset);
            return Ok(());
        }
        if d.has(attr::S) {
            return Err(self.selector_fault(vector::GP, selector));
        }
        let rpl = (selector & 3) as u8;
        match (d.kind() & 15, self.long_mode()) {
            (0xc, _) | (4, false) => self.call_gate(selector, d, call),
            (9 | 1, false) => {
                if d.dpl() < self.cpl || d.dpl() < rpl {
                    return Err(self.selector_fault(vector::GP, selector));
                }
                self.task_switch(selector, if call { crate::task::Cause::Call } else { crate::task::Cause::Jump }, None)
            }
            (5, false) => {
                if d.dpl() < self.cpl || d.dpl() < rpl {
                    return Err(self.selector_fault(vector::GP, selector));
                }
                if !d.has(attr::P) {
                    return Err(self.selector_fault(vector::NP, selector));
                }
                let tss = (d.low >> 16) as u16;
                self.task_switch(tss, if call { crate::task::Cause::Call } else { crate::task::Cause::Jump }, None)
            }
            _ => Err(self.selector_fault(vector::GP, selector)),
        }
    }

    fn call_gate(&mut self, selector: u16, gate: Descriptor, call: bool) -> R<()> {
        let rpl = (selector & 3) as u8;
        if gate.dpl() < self.cpl || gate.dpl() < rpl {
            return Err(self.selector_fault(vector::GP, selector));
        }
        if !gate.has(attr::P) {
            return Err(self.selector_fault(vector::NP, selector));
        }
        let long = self.long_mode();
        let size = if long {
            8
        } else if gate.kind() & 8 != 0 {
            4
        } else {
            2
        };
        let mut offset = u64::from(gate.low & 0xffff);
        if size != 2 {
            offset |= u64::from(gate.high & 0xffff_0000);
        }
        if long {
            let upper: u64 = {
                let base = if selector & 4 != 0 { self.ldt.base } else { self.gdt.base };
                self.as_supervisor(|cpu| cpu.load(base.wrapping_add(u64::from(selector & !7) + 8)))?
            };
            offset |= upper << 32;
        }
        let target = (gate.low >> 16) as u16;
        if target & !3 == 0 {
            return Err(self.gp());
        }
        let mut d = self.descriptor(target, vector::GP)?;
        if !d.is_code() || d.dpl() > self.cpl || long && !d.has(attr::L) {
            return Err(self.selector_fault(vector::GP, target));
        }
        if !d.has(attr::P) {
            return Err(self.selector_fault(vector::NP, target));
        }
        let inner = call && !d.has(attr::EXPAND_DOWN) && d.dpl() < self.cpl;
        if !inner && !d.has(attr::EXPAND_DOWN) && d.dpl() != self.cpl {
            return Err(self.selector_fault(vector::GP, target));
        }
        let (old_cs, old_ss, old_sp, back) =
            (self.segs[seg::CS].selector, self.segs[seg::SS].selector, self.hot.gpr[gpr::RSP], self.next);
        if inner {
            let cpl = d.dpl();
            let mut stack = self.inner_stack(cpl, 0)?;
            let parameters = if long { 0 } else { gate.high & 31 };
            let mut values = vec![];
            let mut old = self.stack();
            for _ in 0..parameters {
                values.push(old.pop(self, size)?);
            }
            let mmu = std::mem::replace(&mut self.mmu, crate::mem::mmu::KERNEL);
            let pushed = (|| {
                stack.push(self, size, old_ss.into())?;
                stack.push(self, size, old_sp)?;
                for value in values.into_iter().rev() {
                    stack.push(self, size, value)?;
                }
                stack.push(self, size, old_cs.into())?;
                stack.push(self, size, back)
            })();
            self.mmu = mmu;
            pushed?;
            self.set_accessed(target, &mut d)?;
            self.segs[seg::SS] = stack.segment;
            self.hot.gpr[gpr::RSP] = stack.sp;
            self.set_cs(target, d, cpl);
        } else {
            if call {
                self.push(size, old_cs.into())?;
                self.push(size, back)?;
            }
            self.set_accessed(target, &mut d)?;
            self.set_cs(target, d, self.cpl);
        }
        self.next = offset;
        Ok(())
    }

    /// The stack that the task state has for an inner level; in long mode, `ist` not 0 chooses one of the others.
    pub(crate) fn inner_stack(&mut self, cpl: u8, ist: u8) -> R<Stack> {
        let tr = self.tr;
        if self.long_mode() {
            let at = if ist != 0 { 0x1c + u64::from(ist) * 8 } else { 4 + u64::from(cpl) * 8 };
            if at + 7 > tr.limit.into() {
                return Err(self.selector_fault(vector::TS, tr.selector));
            }
            let sp = self.as_supervisor(|cpu| cpu.load::<u64>(tr.base.wrapping_add(at)))?;
            let segment = Segment { selector: cpl.into(), base: 0, limit: 0, flags: u32::from(cpl) << 13 | attr::DB };
            return Ok(Stack { segment, sp, long: true });
        }
        let wide = tr.flags >> 11 & 1 != 0;
        let at = if wide { 4 + u64::from(cpl) * 8 } else { 2 + u64::from(cpl) * 4 };
        if at + if wide { 5 } else { 3 } > tr.limit.into() {
            return Err(self.selector_fault(vector::TS, tr.selector));
        }
        let (sp, ss) = self.as_supervisor(|cpu| {
            let at = tr.base.wrapping_add(at);
            Ok(if wide {
                (cpu.load::<u32>(at)?.into(), cpu.load::<u16>(at.wrapping_add(4))?)
            } else {
                (cpu.load::<u16>(at)?.into(), cpu.load::<u16>(at.wrapping_add(2))?)
            })
        })?;
        if ss & !3 == 0 {
            return Err(self.selector_fault(vector::TS, ss));
        }
        let mut d = self.descriptor(ss, vector::TS)?;
        let fits = d.high & (attr::S | attr::CODE | attr::WRITABLE) == attr::S | attr::WRITABLE;
        if (ss & 3) as u8 != cpl || d.dpl() != cpl || !fits {
            return Err(self.selector_fault(vector::TS, ss));
        }
        if !d.has(attr::P) {
            return Err(self.selector_fault(vector::SS, ss));
        }
        self.set_accessed(ss, &mut d)?;
        Ok(Stack { segment: d.segment(ss), sp, long: false })
    }

    /// RETF, and the last part of IRET: takes CS:RIP (popped), and SS:RSP if the level changes.
    pub(crate) fn far_return(
        &mut self,
        size: u32,
        selector: u16,
        rip: u64,
        mut stack: Stack,
        release: u64,
        iret: bool,
    ) -> R<()> {
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            return Err(self.gp());
        }
        let mut d = self.descriptor(selector, vector::GP)?;
        if !d.is_code() || rpl < self.cpl || if d.has(attr::EXPAND_DOWN) { d.dpl() > rpl } else { d.dpl() != rpl } {
            return Err(self.selector_fault(vector::GP, selector));
        }
        if !d.has(attr::P) {
            return Err(self.selector_fault(vector::NP, selector));
        }
        stack.skip(release);
        let to_long = self.long_mode() && d.has(attr::L);
        if rpl == self.cpl && !(iret && self.bits == 2) {
            self.set_accessed(selector, &mut d)?;
            self.set_cs(selector, d, rpl);
            self.hot.gpr[gpr::RSP] = stack.sp;
            self.next = rip;
            return Ok(());
        }
        let sp = stack.pop(self, size)?;
        let ss = stack.pop(self, size)? as u16;
        let ss_segment = if ss & !3 == 0 {
            if !to_long || rpl == 3 {
                return Err(self.gp());
            }
            Segment { selector: ss, base: 0, limit: 0, flags: u32::from(rpl) << 13 | attr::DB }
        } else {
            let mut s = self.descriptor(ss, vector::GP)?;
            let fits = s.high & (attr::S | attr::CODE | attr::WRITABLE) == attr::S | attr::WRITABLE;
            if (ss & 3) as u8 != rpl || !fits || s.dpl() != rpl {
                return Err(self.selector_fault(vector::GP, ss));
            }
            if !s.has(attr::P) {
                return Err(self.selector_fault(vector::SS, ss));
            }
            self.set_accessed(ss, &mut s)?;
            s.segment(ss)
        };
        self.set_accessed(selector, &mut d)?;
        let outer = rpl > self.cpl;
        self.segs[seg::SS] = ss_segment;
        self.set_cs(selector, d, rpl);
        let wide = ss_segment.flags & attr::DB != 0;
        self.hot.gpr[gpr::RSP] = match (to_long, wide) {
            (true, _) => sp,
            (_, true) => sp & 0xffff_ffff,
            _ => self.hot.gpr[gpr::RSP] & !0xffff | sp & 0xffff,
        };
        if !iret && release != 0 {
            let mut stack = self.stack();
            stack.skip(release);
            self.hot.gpr[gpr::RSP] = stack.sp;
        }
        if outer {
            self.drop_inner_segments();
        }
        self.next = rip;
        Ok(())
    }

    /// Data segments of a more privileged level become null when an outer level is returned to.
    fn drop_inner_segments(&mut self) {
        for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = &mut self.segs[which];
            let conforming = s.is_code() && s.flags & attr::EXPAND_DOWN != 0;
            // A null selector with a privilege level in it loses that.
            if s.selector & !3 == 0 || s.dpl() < self.cpl && !conforming && s.present() {
                // The base stays in the hidden part, as processors keep it in long mode.
                s.selector = 0;
                s.flags = 0;
            }
        }
    }

    /// Reads a value through a segment.
    pub(crate) fn load_at<T: Word>(&mut self, which: usize, offset: u64) -> R<T> {
        let at = self.segment_address(which, offset, T::SIZE as u32, false)?;
        self.load(at)
    }
}
