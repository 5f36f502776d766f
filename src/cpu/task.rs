//! Task switches (Intel SDM volume 3, chapter 7).

use crate::{
    Cpu,
    fault::{R, vector},
    segment::Descriptor,
    state::{Segment, attr, cr, flag, gpr, seg},
};

/// What switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Jump,
    Call,
    Interrupt,
    Return,
}

/// Offsets of a task state segment's fields: of 286 (16-bit) and 386 (32-bit) form.
struct Layout {
    width: u64,
    cr3: Option<u64>,
    ip: u64,
    flags: u64,
    registers: u64,
    segments: u64,
    count: usize,
    ldt: u64,
    size: u32,
}

const WIDE: Layout = Layout {
    width: 4,
    cr3: Some(0x1c),
    ip: 0x20,
    flags: 0x24,
    registers: 0x28,
    segments: 0x48,
    count: 6,
    ldt: 0x60,
    size: 0x67,
};
const NARROW: Layout = Layout {
    width: 2,
    cr3: None,
    ip: 0xe,
    flags: 0x10,
    registers: 0x12,
    segments: 0x22,
    count: 4,
    ldt: 0x2a,
    size: 0x2b,
};
/// The order of segment registers in a task state segment is that of their encoding.
const BUSY: u32 = 1 << 9;

impl Cpu {
    fn task_load(&mut self, at: u64, width: u64) -> R<u32> {
        self.as_supervisor(|cpu| if width == 4 { cpu.load::<u32>(at) } else { cpu.load::<u16>(at).map(u32::from) })
    }

    fn task_store(&mut self, at: u64, width: u64, value: u32) -> R<()> {
        self.as_supervisor(|cpu| if width == 4 { cpu.store(at, value) } else { cpu.store(at, value as u16) })
    }

    fn set_busy(&mut self, selector: u16, busy: bool) -> R<()> {
        let at = self.gdt.base.wrapping_add(u64::from(selector & !7)).wrapping_add(4);
        let high = self.task_load(at, 4)?;
        self.task_store(at, 4, if busy { high | BUSY } else { high & !BUSY })
    }

    /// Switches to the task of a TSS selector. `next` is where the old task goes on; it becomes the new task's.
    pub(crate) fn task_switch(&mut self, selector: u16, cause: Cause, code: Option<u32>) -> R<()> {
        let fault = if cause == Cause::Return { vector::TS } else { vector::GP };
        if selector & 4 != 0 || self.long_mode() {
            return Err(self.selector_fault(fault, selector));
        }
        let d = self.descriptor(selector, fault)?;
        let busy_wanted = cause == Cause::Return;
        if !matches!(d.kind(), 1 | 3 | 9 | 0xb) || d.has(BUSY) != busy_wanted {
            return Err(self.selector_fault(fault, selector));
        }
        if !d.has(attr::P) {
            return Err(self.selector_fault(vector::NP, selector));
        }
        let new = if d.kind() & 8 != 0 { WIDE } else { NARROW };
        if d.limit() < new.size {
            return Err(self.selector_fault(vector::TS, selector));
        }
        // All of the new task is read before anything changes.
        let base = d.base();
        let w = new.width;
        let cr3 = match new.cr3 {
            Some(at) => Some(self.task_load(base + at, 4)?),
            None => None,
        };
        let ip = self.task_load(base + new.ip, w)?;
        let mut flags = self.task_load(base + new.flags, w)?;
        let mut registers = [0; 8];
        for (i, r) in registers.iter_mut().enumerate() {
            *r = self.task_load(base + new.registers + i as u64 * w, w)?;
        }
        let mut selectors = [0u16; 6];
        for (i, s) in selectors.iter_mut().enumerate().take(new.count) {
            *s = self.task_load(base + new.segments + i as u64 * w, 2)? as u16;
        }
        let ldt = self.task_load(base + new.ldt, 2)? as u16;
        let debug_trap = if w == 4 { self.task_load(base + 0x64, 2)? & 1 } else { 0 };

        let old = if self.tr.flags >> 11 & 1 != 0 { WIDE } else { NARROW };
        let (old_base, w) = (self.tr.base, old.width);
        let mut saved_flags = self.rflags() as u32;
        if cause == Cause::Return {
            saved_flags &= !(flag::NT as u32);
        }
        self.task_store(old_base + old.ip, w, self.next as u32)?;
        self.task_store(old_base + old.flags, w, saved_flags)?;
        for i in 0..8 {
            self.task_store(old_base + old.registers + i as u64 * w, w, self.hot.gpr[i] as u32)?;
        }
        for i in 0..old.count {
            self.task_store(old_base + old.segments + i as u64 * w, 2, self.segs[i].selector.into())?;
        }
        let old_selector = self.tr.selector;
        if matches!(cause, Cause::Call | Cause::Interrupt) {
            self.task_store(base, 2, old_selector.into())?;
            flags |= flag::NT as u32;
        } else {
            self.set_busy(old_selector, false)?;
        }
        if cause != Cause::Return {
            self.set_busy(selector, true)?;
        }

        // From here on faults belong to the new task.
        self.tr = Descriptor { low: d.low, high: d.high | BUSY }.segment(selector);
        if let Some(cr3) = cr3.filter(|_| self.cr0 & cr::CR0_PG != 0) {
            self.cr3 = cr3.into();
            self.flush_tlb();
        }
        self.cr0 |= cr::CR0_TS;
        self.next = ip.into();
        let rip = ip.into();
        for (i, r) in registers.into_iter().enumerate() {
            self.hot.gpr[i] = if new.width == 4 { r.into() } else { self.hot.gpr[i] & !0xffff | u64::from(r) & 0xffff };
        }
        self.hot.gpr[gpr::RIP] = rip;
        self.here = rip;
        self.set_rflags(flags.into());
        self.rest |= u64::from(flags) & flag::VM;
        self.dr[7] &= !0x155;
        self.breakpoints_changed();
        self.ldt = Segment { selector: ldt, ..Segment::default() };
        if ldt & !3 != 0 {
            let d = if ldt & 4 == 0 { self.find_descriptor(ldt)? } else { None };
            match d {
                Some(d) if d.kind() == 2 && d.has(attr::P) => self.ldt = d.segment(ldt),
                _ => return Err(self.selector_fault(vector::TS, ldt)),
            }
        }
        if self.vm86() {
            self.cpl = 3;
            for (i, selector) in selectors.into_iter().enumerate() {
                let flags = if i == seg::CS { 0xfb00 } else { 0xf300 };
                self.segs[i] = Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, flags };
            }
            self.update_mode();
        } else {
            for which in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
                self.segs[which] = Segment { selector: selectors[which], ..Segment::default() };
            }
            let cs = selectors[seg::CS];
            let mut d = self.descriptor(cs, vector::TS)?;
            let rpl = (cs & 3) as u8;
            let fits = d.is_code() && if d.has(attr::EXPAND_DOWN) { d.dpl() <= rpl } else { d.dpl() == rpl };
            if cs & !3 == 0 || !fits {
                return Err(self.selector_fault(vector::TS, cs));
            }
            if !d.has(attr::P) {
                return Err(self.selector_fault(vector::NP, cs));
            }
            self.set_accessed(cs, &mut d)?;
            self.set_cs(cs, d, rpl);
            for which in [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS] {
                self.load_segment(which, selectors[which])?;
            }
        }
        if let Some(code) = code {
            self.push(new.width as u32, code.into())?;
        }
        if debug_trap != 0 {
            self.dr[6] |= 1 << 15;
            self.trap_after = true;
        }
        Ok(())
    }
}
