//! Interrupts and exceptions: delivery through the IVT or IDT, and IRET (Intel SDM volume 3, chapter 6).

use crate::{
    Cpu,
    fault::{R, Reason, has_error_code, makes_double_fault, vector},
    segment::{Descriptor, Stack},
    state::{Segment, attr, flag, gpr, seg},
    task::Cause,
};

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A pin, the local APIC, or NMI.
    External,
    /// INT n, INT3, INTO: gates are checked against CPL.
    Software,
    /// An exception, or INT1.
    Exception,
}

/// The machine is to be reset.
#[derive(Debug)]
pub(crate) struct TripleFault;

impl Cpu {
    /// Delivers the exception that an instruction ended with. `RIP` is that of the instruction.
    pub(crate) fn deliver_exception(&mut self, reason: Reason) -> Result<(), TripleFault> {
        let Reason::Exception { vector: mut v, mut code, mut address } = reason else { return Ok(()) };
        let rip = self.hot.gpr[gpr::RIP];
        self.fault_count += 1;
        self.trace_exception(None, v);
        loop {
            if v == vector::PF {
                self.cr2 = address;
            }
            self.next = rip;
            let stack = self.hot.gpr[gpr::RSP];
            if self.note_delivery(|cpu| cpu.enter_traced(v, code, Source::Exception, rip)).is_ok() {
                self.hot.gpr[gpr::RIP] = self.next;
                return Ok(());
            }
            self.hot.gpr[gpr::RSP] = stack;
            let Reason::Exception { vector: second, code: second_code, address: second_address } =
                std::mem::take(&mut self.reason)
            else {
                // The stack lies in code of ours: it was forgotten, so that it works now.
                continue;
            };
            self.trace_exception(Some(v), second);
            if v == vector::DF {
                self.trace_triple_fault();
                return Err(TripleFault);
            }
            (v, code, address) = if makes_double_fault(v, second) {
                (vector::DF, Some(0), 0)
            } else {
                (second, second_code, second_address)
            };
        }
    }

    /// Delivers an interrupt between two instructions.
    pub(crate) fn deliver_interrupt(&mut self, v: u8) -> Result<(), TripleFault> {
        let rip = self.hot.gpr[gpr::RIP];
        self.next = rip;
        let stack = self.hot.gpr[gpr::RSP];
        for _ in 0..4 {
            match self.note_delivery(|cpu| cpu.enter_traced(v, None, Source::External, rip)) {
                Ok(()) => {
                    self.hot.gpr[gpr::RIP] = self.next;
                    return Ok(());
                }
                Err(_) => {
                    self.hot.gpr[gpr::RSP] = stack;
                    match std::mem::take(&mut self.reason) {
                        Reason::Alone | Reason::None => {}
                        reason => return self.deliver_exception(reason),
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes to a handler. On entry `next` is where the handler returns to; on success it is where the handler begins.
    pub(crate) fn enter(&mut self, v: u8, code: Option<u32>, source: Source) -> R<()> {
        debug_assert!(source != Source::Exception || code.is_some() == has_error_code(v) || v == vector::DB);
        if self.cr0 & crate::state::cr::CR0_PE == 0 {
            return self.enter_real(v);
        }
        let long = self.long_mode();
        let external = u32::from(source != Source::Software);
        let index_code = u32::from(v) << 3 | 2;
        let size = if long { 16 } else { 8 };
        let at = u64::from(v) * size;
        if at + size - 1 > self.idt.limit.into() {
            return Err(self.raise(vector::GP, Some(index_code | external)));
        }
        if self.vm86() && source == Source::Software && v != 3 && v != 4 && self.rest & flag::IOPL != flag::IOPL {
            return Err(self.gp());
        }
        let base = self.idt.base.wrapping_add(at);
        let (first, upper) = self.as_supervisor(|cpu| {
            Ok((cpu.load::<u64>(base)?, if long { cpu.load::<u64>(base.wrapping_add(8))? } else { 0 }))
        })?;
        let gate = Descriptor { low: first as u32, high: (first >> 32) as u32 };
        let kind = gate.kind();
        let valid = if long { matches!(kind, 0xe | 0xf) } else { matches!(kind, 5 | 6 | 7 | 0xe | 0xf) };
        if !valid || source == Source::Software && gate.dpl() < self.cpl {
            return Err(self.raise(vector::GP, Some(index_code | external)));
        }
        if !gate.has(attr::P) {
            return Err(self.raise(vector::NP, Some(index_code | external)));
        }
        let selector = (gate.low >> 16) as u16;
        if kind == 5 {
            return self.task_switch(selector, Cause::Interrupt, code);
        }
        let offset = u64::from(gate.low & 0xffff)
            | if kind & 8 != 0 { u64::from(gate.high & 0xffff_0000) } else { 0 }
            | upper << 32;
        if selector & !3 == 0 {
            return Err(self.raise(vector::GP, Some(external)));
        }
        let Some(mut d) = self.find_descriptor(selector)? else {
            return Err(self.raise(vector::GP, Some(u32::from(selector & !3) | external)));
        };
        if !d.is_code() || d.dpl() > self.cpl || long && (!d.has(attr::L) || d.has(attr::DB)) {
            return Err(self.raise(vector::GP, Some(u32::from(selector & !3) | external)));
        }
        if !d.has(attr::P) {
            return Err(self.raise(vector::NP, Some(u32::from(selector & !3) | external)));
        }
        let width = if long {
            8
        } else if kind & 8 != 0 {
            4
        } else {
            2
        };
        let conforming = d.has(attr::EXPAND_DOWN);
        let from_vm86 = self.vm86();
        let cpl = if conforming { self.cpl } else { d.dpl() };
        if from_vm86 && (conforming || cpl != 0) {
            return Err(self.raise(vector::GP, Some(u32::from(selector & !3) | external)));
        }
        let ist = if long { (gate.high & 7) as u8 } else { 0 };
        let inner = cpl < self.cpl;
        let mut flags = self.rflags();
        if source == Source::Exception && v != vector::DB && v != vector::BP && v != vector::OF {
            flags |= flag::RF;
        }
        let (old_ss, old_sp) = (self.segs[seg::SS].selector, self.hot.gpr[gpr::RSP]);
        let (old_cs, back) = (self.segs[seg::CS].selector, self.next);
        let mut stack = if inner || ist != 0 {
            self.inner_stack(cpl, ist)?
        } else if long {
            Stack { segment: self.segs[seg::SS], sp: old_sp, long: true }
        } else {
            self.stack()
        };
        // Pushes are made with the handler's privilege.
        let (old_cpl, old_rest) = (self.cpl, self.rest);
        self.cpl = cpl;
        self.rest &= !flag::VM;
        self.update_mode();
        let pushed = self.push_frame(
            &mut stack,
            width,
            long,
            inner || ist != 0,
            from_vm86,
            old_ss,
            old_sp,
            flags,
            old_cs,
            back,
            code,
        );
        if pushed.is_err() {
            self.cpl = old_cpl;
            self.rest = old_rest;
            self.update_mode();
            pushed?;
        }
        self.cpl = old_cpl;
        self.rest = old_rest;
        if let Err(e) = self.set_accessed(selector, &mut d) {
            self.update_mode();
            return Err(e);
        }
        if from_vm86 {
            for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
                self.segs[which] = Segment::default();
            }
        }
        if inner || (long && ist != 0) {
            if long && !inner {
                // SS keeps its meaning; only the pointer changes.
            } else {
                self.segs[seg::SS] =
                    if long { Segment { selector: cpl.into(), ..stack.segment } } else { stack.segment };
            }
        }
        self.hot.gpr[gpr::RSP] = stack.sp;
        let mut clear = flag::TF | flag::NT | flag::RF | flag::VM;
        if kind & 1 == 0 {
            clear |= flag::IF;
        }
        self.rest &= !clear;
        self.set_cs(selector, d, cpl);
        self.next = if long { offset } else { offset & 0xffff_ffff };
        Ok(())
    }

    fn push_frame(
        &mut self,
        stack: &mut Stack,
        width: u32,
        long: bool,
        with_stack: bool,
        from_vm86: bool,
        old_ss: u16,
        old_sp: u64,
        flags: u64,
        old_cs: u16,
        back: u64,
        code: Option<u32>,
    ) -> R<()> {
        if long {
            stack.sp &= !15;
        }
        if from_vm86 {
            for which in [seg::GS, seg::FS, seg::DS, seg::ES] {
                let selector = self.segs[which].selector;
                stack.push(self, width, selector.into())?;
            }
        }
        if long || with_stack {
            stack.push(self, width, old_ss.into())?;
            stack.push(self, width, old_sp)?;
        }
        stack.push(self, width, flags)?;
        stack.push(self, width, old_cs.into())?;
        stack.push(self, width, back)?;
        if let Some(code) = code {
            stack.push(self, width, code.into())?;
        }
        Ok(())
    }

    fn enter_real(&mut self, v: u8) -> R<()> {
        let at = u64::from(v) * 4;
        if at + 3 > self.idt.limit.into() {
            return Err(self.raise(if v == vector::DF { vector::DF } else { vector::GP }, Some(0)));
        }
        let pointer: u32 = self.load(self.idt.base.wrapping_add(at))?;
        let (flags, cs, back) = (self.rflags(), self.segs[seg::CS].selector, self.next);
        let mut stack = self.stack();
        stack.push(self, 2, flags)?;
        stack.push(self, 2, cs.into())?;
        stack.push(self, 2, back)?;
        self.hot.gpr[gpr::RSP] = stack.sp;
        self.rest &= !(flag::IF | flag::TF | flag::AC | flag::RF);
        self.segs[seg::CS].load_real((pointer >> 16) as u16);
        self.update_mode();
        self.next = u64::from(pointer & 0xffff);
        Ok(())
    }

    /// IRET, IRETD, IRETQ.
    pub(crate) fn iret(&mut self, size: u32) -> R<()> {
        let cut = |v: u64| {
            if size == 2 {
                v & 0xffff
            } else if size == 4 {
                v & 0xffff_ffff
            } else {
                v
            }
        };
        let mut stack = self.stack();
        if self.real_mode() {
            if self.vm86() && self.rest & flag::IOPL != flag::IOPL {
                return Err(self.gp());
            }
            let rip = stack.pop(self, size)?;
            let cs = stack.pop(self, size)? as u16;
            let flags = stack.pop(self, size)?;
            self.hot.gpr[gpr::RSP] = stack.sp;
            self.segs[seg::CS].load_real(cs);
            let mut keep = flag::VM | flag::VIF | flag::VIP;
            if self.vm86() {
                keep |= flag::IOPL;
            }
            self.write_flags(flags, size, keep);
            self.unmask_nmi();
            self.next = cut(rip);
            return Ok(());
        }
        if self.rest & flag::NT != 0 {
            if self.long_mode() {
                return Err(self.gp());
            }
            let back: u16 = {
                let base = self.tr.base;
                self.as_supervisor(|cpu| cpu.load(base))?
            };
            self.unmask_nmi();
            return self.task_switch(back, Cause::Return, None);
        }
        let rip = stack.pop(self, size)?;
        let cs = stack.pop(self, size)? as u16;
        let flags = stack.pop(self, size)?;
        if flags & flag::VM != 0 && self.cpl == 0 && size == 4 && !self.long_mode() {
            let sp = stack.pop(self, 4)?;
            let mut selectors = [0; 5];
            for s in &mut selectors {
                *s = stack.pop(self, 4)? as u16;
            }
            self.rest = flags & !flag::ARITH & 0x3f_7fd5 & !2;
            self.hot.set_arith(flags);
            self.cpl = 3;
            for (which, selector) in [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS].into_iter().zip(selectors) {
                self.segs[which] = Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, flags: 0xf300 };
            }
            self.segs[seg::CS] = Segment { selector: cs, base: u64::from(cs) << 4, limit: 0xffff, flags: 0xfb00 };
            self.update_mode();
            self.flags_changed();
            self.hot.gpr[gpr::RSP] = sp;
            self.unmask_nmi();
            self.next = rip & 0xffff;
            return Ok(());
        }
        let (old_cpl, iopl) = (self.cpl, (self.rest >> 12 & 3) as u8);
        self.far_return(size, cs, cut(rip), stack, 0, true)?;
        let mut keep = flag::VM;
        if old_cpl > iopl {
            keep |= flag::IF;
        }
        if old_cpl != 0 {
            keep |= flag::IOPL | flag::VIF | flag::VIP;
        }
        self.write_flags(flags, size, keep);
        self.unmask_nmi();
        Ok(())
    }

    /// Sets the flags from a popped value of `size` bytes, except for those in `keep`.
    pub(crate) fn write_flags(&mut self, value: u64, size: u32, keep: u64) {
        let mut change = flag::ARITH
            | flag::TF
            | flag::IF
            | flag::DF
            | flag::IOPL
            | flag::NT
            | flag::RF
            | flag::AC
            | flag::ID
            | flag::VIF
            | flag::VIP;
        if size == 2 {
            change &= 0xffff;
        }
        let new = self.rflags() & !(change & !keep) | value & change & !keep;
        self.set_rflags(new);
    }

    /// All flags.
    pub fn rflags(&self) -> u64 {
        self.rest | 2 | self.hot.arith()
    }

    /// Sets all flags.
    pub fn set_rflags(&mut self, value: u64) {
        self.hot.set_arith(value);
        self.rest = value & 0x3f_7700 & !flag::OF;
        self.update_mode();
        self.flags_changed();
    }

    /// What follows from new flags outside arithmetic.
    pub(crate) fn flags_changed(&mut self) {
        if self.rest & flag::IF != 0 && self.interrupt_waits {
            self.interrupt_waits = false;
            self.link.raise(crate::platform::request::INTERRUPT);
        }
        self.single = self.rest & flag::TF != 0 || self.breakpoints.code || self.debug_steps();
    }

    fn unmask_nmi(&mut self) {
        self.nmi_masked = false;
        if self.nmi_waits {
            self.nmi_waits = false;
            self.link.raise(crate::platform::request::NMI);
        }
    }
}
