//! The guest's own breakpoints: DR0 to DR7 (Intel SDM volume 3, 19.2 and 19.3).
//!
//! Breakpoints of instructions have all instructions run one at a time. Pages with breakpoints of data go the slow way, where each
//! access is looked at, whoever makes it: operands, the stack, string instructions, descriptor tables, the frames of events. The
//! instruction that hits one is run alone, and traps when it is done. Ports are looked at by the instructions that access them, which are
//! all interpreted.

use crate::{
    Cpu,
    fault::{Fault, R, Reason},
    interrupt::TripleFault,
    state::cr,
};

/// Kinds of breakpoints, R/W in DR7.
mod kind {
    pub const EXECUTE: u64 = 0;
    pub const WRITE: u64 = 1;
    /// Only with CR4.DE.
    pub const PORT: u64 = 2;
    pub const ACCESS: u64 = 3;
}

/// What breakpoints of the guest ask of the processor.
#[derive(Clone, Copy, Default)]
pub(crate) struct Breakpoints {
    /// There are breakpoints of instructions.
    pub code: bool,
    /// There are breakpoints of data.
    pub data: bool,
    /// There are breakpoints of ports, which CR4.DE puts in use.
    pub ports: bool,
    /// Breakpoints of data and ports, as in DR6, that were hit by what is not yet completed.
    pub hits: u64,
}

impl Cpu {
    /// Sets a debug register, 4 and 5 excepted.
    pub(crate) fn set_debug_register(&mut self, n: usize, value: u64) -> R<()> {
        if n >= 6 && value >> 32 != 0 {
            return Err(self.gp());
        }
        self.dr[n] = match n {
            6 => value & 0xe00f | 0xffff_0ff0,
            7 => value & 0xffff_2fff | 0x400,
            _ => value,
        };
        self.breakpoints_changed();
        Ok(())
    }

    /// Follows the debug registers.
    pub(crate) fn breakpoints_changed(&mut self) {
        let had = self.breakpoints.data;
        let any = |of: [u64; 2]| (0..4).any(|i| self.breakpoint(i).is_some_and(|(kind, _, _)| of.contains(&kind)));
        let (code, data, ports) = (any([kind::EXECUTE; 2]), any([kind::WRITE, kind::ACCESS]), any([kind::PORT; 2]));
        self.breakpoints = Breakpoints { code, data, ports, ..self.breakpoints };
        if had || self.breakpoints.data {
            // Other pages go the slow way now.
            self.flush_tlb();
        }
        self.flags_changed();
    }

    /// Kind, first and last byte of breakpoint `i`, if it is enabled.
    fn breakpoint(&self, i: usize) -> Option<(u64, u64, u64)> {
        if self.dr[7] >> (2 * i) & 3 == 0 {
            return None;
        }
        let field = self.dr[7] >> (16 + 4 * i) & 15;
        let len = [1, 2, 8, 4][(field >> 2) as usize];
        let first = self.dr[i] & !(len - 1);
        Some((field & 3, first, first + (len - 1)))
    }

    /// The breakpoints of the instruction at `RIP`, as in DR6.
    pub(crate) fn code_breakpoints(&self) -> u64 {
        let address = self.code_address();
        let here = |&i: &usize| {
            self.breakpoint(i).is_some_and(|(kind, at, last)| kind == kind::EXECUTE && at == last && at == address)
        };
        (0..4).filter(here).fold(0, |hits, i| hits | 1 << i)
    }

    /// The data breakpoints that an access hits, as in DR6.
    fn data_breakpoints(&self, first: u64, last: u64, write: bool) -> u64 {
        self.breakpoints_among(first, last, |kind| kind == kind::ACCESS || kind == kind::WRITE && write)
    }

    /// The breakpoints of such kinds that lie somewhere from `first` to `last`, as in DR6.
    fn breakpoints_among(&self, first: u64, last: u64, of: impl Fn(u64) -> bool) -> u64 {
        let hit = |&i: &usize| self.breakpoint(i).is_some_and(|(kind, at, end)| of(kind) && first <= end && at <= last);
        (0..4).filter(hit).fold(0, |hits, i| hits | 1 << i)
    }

    /// Whether a page of linear memory has data breakpoints.
    pub(crate) fn has_data_breakpoints_at(&self, page: u64) -> bool {
        self.breakpoints.data && self.data_breakpoints(page, page | 0xfff, true) != 0
    }

    /// Notes an access of the slow way. Fails if the instruction is to be run alone for it.
    pub(crate) fn note_data_access(&mut self, first: u64, last: u64, write: bool) -> R<()> {
        if !self.breakpoints.data {
            return Ok(());
        }
        let hits = self.data_breakpoints(first, last, write);
        self.note_hits(hits)
    }

    /// Notes an access to ports that is about to be made. Fails if the instruction is to be run alone for it.
    pub(crate) fn note_port_access(&mut self, port: u16, size: u32) -> R<()> {
        if !self.breakpoints.ports || self.cr4 & cr::CR4_DE == 0 {
            return Ok(());
        }
        let first = u64::from(port);
        let hits = self.breakpoints_among(first, first + u64::from(size - 1), |kind| kind == kind::PORT);
        self.note_hits(hits)
    }

    fn note_hits(&mut self, hits: u64) -> R<()> {
        if hits != 0 && !self.counting.alone {
            self.reason = Reason::Alone;
            return Err(Fault);
        }
        self.breakpoints.hits |= hits;
        Ok(())
    }

    /// The traps of an instruction that has completed.
    pub(crate) fn trap_if_hit(&mut self, step: bool) -> Result<(), TripleFault> {
        let hits = std::mem::take(&mut self.breakpoints.hits);
        if !step && hits == 0 {
            return Ok(());
        }
        self.dr[6] |= hits | if step { 1 << 14 } else { 0 };
        self.deliver_exception(Reason::Exception { vector: 1, code: None, address: 0 })
    }

    /// An event has been delivered: what its frame hit traps before its handler begins.
    pub(crate) fn trap_after_delivery(&mut self) {
        let hits = std::mem::take(&mut self.breakpoints.hits);
        if hits != 0 {
            self.dr[6] |= hits;
            self.trap_after = true;
        }
    }
}
