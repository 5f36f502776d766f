//! What a debugger outside the guest asks of a processor. Nothing of it is in the way of blocks: an instruction in a page with a
//! breakpoint is run alone, and so is one that touches a page with a watchpoint.

use crate::{
    Cpu,
    fault::{Fault, R, Reason},
    interrupt::TripleFault,
    platform::request,
};

/// Which accesses a watchpoint stops at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    /// Writes.
    Write,
    /// Reads.
    Read,
    /// Both.
    Access,
}

/// Memory that a debugger watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    /// Linear address of the first byte.
    pub address: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// Which accesses.
    pub kind: WatchKind,
}

impl Watchpoint {
    fn last(&self) -> u64 {
        self.address.saturating_add(self.len.max(1) - 1)
    }

    fn touches(&self, first: u64, last: u64) -> bool {
        first <= self.last() && self.address <= last
    }

    fn stops(&self, first: u64, last: u64, write: bool) -> bool {
        let kind = match self.kind {
            WatchKind::Write => write,
            WatchKind::Read => !write,
            WatchKind::Access => true,
        };
        kind && self.touches(first, last)
    }
}

/// Where a processor is to stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugControl {
    /// Linear addresses of instructions, for breakpoints in the guest's code.
    pub software: Vec<u64>,
    /// Linear addresses of instructions, for breakpoints in the processor.
    pub hardware: Vec<u64>,
    /// Watched memory.
    pub watchpoints: Vec<Watchpoint>,
    /// After one instruction; interrupts wait meanwhile.
    pub step: bool,
}

/// Why a processor stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// One instruction is done.
    Step,
    /// An instruction with a breakpoint comes next.
    Breakpoint,
    /// Watched memory was touched.
    Watchpoint(Watchpoint),
}

/// A debugger's wishes, and what came of them.
#[derive(Default)]
pub(crate) struct Debugging {
    control: DebugControl,
    /// Accesses are looked at now, and noted: an instruction runs alone, or an event is being delivered.
    pub noting: bool,
    hit: Option<Watchpoint>,
    stop: Option<DebugStop>,
}

impl Cpu {
    /// Sets where to stop, in place of what was set before. To be called while the processor stands.
    pub fn set_debug(&mut self, control: &DebugControl) {
        self.debugging = (*control != DebugControl::default())
            .then(|| Box::new(Debugging { control: control.clone(), ..Debugging::default() }));
        self.link.clear(request::DEBUG);
        self.flush_tlb();
        self.forget_all_code();
        self.flags_changed();
    }

    /// Whether one instruction is to be run.
    pub(crate) fn debug_steps(&self) -> bool {
        self.debugging.as_ref().is_some_and(|d| d.control.step)
    }

    /// Why the processor stopped.
    pub(crate) fn take_debug_stop(&mut self) -> Option<DebugStop> {
        self.debugging.as_mut()?.stop.take()
    }

    /// Whether code of a page may not be kept: it has breakpoints.
    pub(crate) fn has_breakpoints_at(&self, address: u64) -> bool {
        let here = |b: &u64| (b ^ address) & !0xfff == 0;
        self.debugging.as_ref().is_some_and(|d| d.control.software.iter().chain(&d.control.hardware).any(here))
    }

    /// Whether a page of linear memory has watchpoints, or data breakpoints of the guest.
    pub(crate) fn is_watched(&self, page: u64) -> bool {
        let here = |w: &Watchpoint| w.touches(page, page | 0xfff);
        self.has_data_breakpoints_at(page)
            || self.debugging.as_ref().is_some_and(|d| d.control.watchpoints.iter().any(here))
    }

    /// Looks at an access of the slow way. Fails if the instruction is to be run alone for it.
    pub(crate) fn watch(&mut self, address: u64, size: u32, write: bool) -> R<()> {
        let last = address.saturating_add(u64::from(size) - 1);
        self.note_data_access(address, last, write)?;
        let Some(debugging) = &mut self.debugging else { return Ok(()) };
        let Some(found) = debugging.control.watchpoints.iter().find(|w| w.stops(address, last, write)) else {
            return Ok(());
        };
        if !debugging.noting {
            self.reason = Reason::Alone;
            return Err(Fault);
        }
        debugging.hit.get_or_insert(*found);
        Ok(())
    }

    /// Runs what goes to a handler; its accesses are noted.
    pub(crate) fn note_delivery(&mut self, deliver: impl FnOnce(&mut Self) -> R<()>) -> R<()> {
        let alone = std::mem::replace(&mut self.counting.alone, true);
        let result = self.note_accesses(deliver);
        self.counting.alone = alone;
        match result {
            Ok(()) => self.trap_after_delivery(),
            Err(_) => self.breakpoints.hits = 0,
        }
        result
    }

    fn note_accesses<T>(&mut self, deliver: impl FnOnce(&mut Self) -> T) -> T {
        let Some(debugging) = &mut self.debugging else { return deliver(self) };
        let was = std::mem::replace(&mut debugging.noting, true);
        let result = deliver(self);
        if let Some(debugging) = &mut self.debugging {
            debugging.noting = was;
        }
        if !was {
            self.stop_if_hit();
        }
        result
    }

    fn stop_if_hit(&mut self) {
        let Some(debugging) = &mut self.debugging else { return };
        if let Some(hit) = debugging.hit.take() {
            debugging.stop = Some(DebugStop::Watchpoint(hit));
            self.link.raise(request::DEBUG);
        }
    }

    /// Runs the one instruction at `RIP`, unless it has a breakpoint.
    pub(crate) fn step(&mut self) -> Result<(), TripleFault> {
        let address = self.code_address();
        let Some(debugging) = &mut self.debugging else { return self.step_now() };
        let control = &debugging.control;
        // A single step goes from a breakpoint.
        if !control.step && control.software.iter().chain(&control.hardware).any(|&b| b == address) {
            debugging.stop = Some(DebugStop::Breakpoint);
            self.link.raise(request::DEBUG);
            return Ok(());
        }
        (debugging.noting, debugging.hit) = (true, None);
        let result = self.step_now();
        if let Some(debugging) = &mut self.debugging {
            debugging.noting = false;
            if debugging.control.step {
                debugging.stop = Some(DebugStop::Step);
                self.link.raise(request::DEBUG);
            }
        }
        self.stop_if_hit();
        result
    }
}
