//! Counting instructions, for time that follows them (`-icount`).
//!
//! The platform grants a number of instructions. A block is charged as a whole before it runs: by [`Cpu::charge_block`], or by the
//! first instruction of its machine code. One that the grant does not cover is run instruction by instruction, so that the grant ends
//! at an exact one. What a block was charged for and did not run is given back.
//!
//! Whatever sees or moves time (a device, a port, the time-stamp counter) is run alone, so that all before it is accounted for. An
//! instruction that ends with an exception counts as one, and so does every repetition of a string instruction. So the count is a
//! function of what the guest did, not of which engine did it.

use iced_x86::Mnemonic;

use crate::{
    Cpu,
    block::Block,
    fault::{Fault, R, Reason},
    platform::request,
};

/// Counts of a processor that is counted.
#[derive(Default)]
pub(crate) struct Counting {
    pub on: bool,
    /// What the platform granted; [`Shared::budget`](crate::jit::Shared) of it is left.
    granted: i64,
    /// An instruction runs alone, or an event is delivered: it may see the time.
    pub alone: bool,
}

/// Most instructions granted at once.
const LARGEST: u64 = 1 << 40;

impl Cpu {
    /// Counts instructions from now on, by [`Platform::account`](crate::Platform::account). To be called while the processor stands.
    pub fn count_instructions(&mut self) {
        self.counting.on = true;
        self.forget_all_code();
    }

    /// Tells the platform what was run, and takes what it grants.
    pub(crate) fn account(&mut self) {
        let done = std::mem::take(&mut self.counting.granted) - std::mem::take(&mut self.shared.budget);
        debug_assert!(done >= 0);
        let granted = self.platform.account(done.max(0) as u64).min(LARGEST) as i64;
        (self.counting.granted, self.shared.budget) = (granted, granted);
    }

    /// Tells the platform what was run, and gives back what was granted.
    pub(crate) fn settle(&mut self) {
        if self.counting.granted != self.shared.budget {
            self.outside(|_| ());
        }
        (self.counting.granted, self.shared.budget) = (0, 0);
    }

    /// Before the next block: whether it is still this processor's turn.
    #[inline]
    pub(crate) fn has_turn(&mut self) -> bool {
        if !self.counting.on || self.shared.budget != 0 && self.link.pending() & request::CLOCK == 0 {
            return true;
        }
        // Device code runs in it.
        self.outside(|_| ());
        self.shared.budget != 0
    }

    /// Charges for a block that is about to run. False: the grant does not cover it.
    #[inline]
    pub(crate) fn charge_block(&mut self, block: *const Block) -> bool {
        if !self.counting.on {
            return true;
        }
        // SAFETY: the caller is about to run it.
        let count = i64::from(unsafe { &*block }.count);
        let covered = count <= self.shared.budget;
        if covered {
            self.shared.budget -= count;
        }
        covered
    }

    /// Whether the grant covers a block.
    #[inline]
    pub(crate) fn covers(&self, block: *const Block) -> bool {
        // SAFETY: the caller found it in this generation.
        !self.counting.on || i64::from(unsafe { &*block }.count) <= self.shared.budget
    }

    /// Charges for instructions that are not a block's.
    #[inline]
    pub(crate) fn charge(&mut self, count: i64) {
        if self.counting.on {
            self.shared.budget -= count;
        }
    }

    /// Gives back what the running block was charged for and does not run: all behind the instruction at `at`, and that one as well
    /// unless it was run.
    #[inline]
    pub(crate) fn give_back(&mut self, at: u16, ran: bool) {
        if !self.counting.on {
            return;
        }
        // SAFETY: null, or the block that runs, which is kept at least until it is over.
        if let Some(block) = unsafe { self.running.as_ref() } {
            let ops = &block.ops[..usize::from(block.count).min(block.ops.len())];
            let index = ops.partition_point(|op| op.at < at) + usize::from(ran);
            self.shared.budget += ops.len().saturating_sub(index) as i64;
        }
    }

    /// Fails if time is counted and the instruction, which is about to see it, does not run alone.
    #[inline]
    pub(crate) fn sees_time(&mut self) -> R<()> {
        if self.counting.on && !self.counting.alone {
            self.reason = Reason::Alone;
            return Err(Fault);
        }
        Ok(())
    }

    /// The same for an access to memory.
    pub(crate) fn memory_sees_time(&mut self, physical: u64, size: u32) -> R<()> {
        if !self.counting.on || self.counting.alone {
            return Ok(());
        }
        let last = physical + u64::from(size - 1);
        let plain = self.apic_page != physical & !0xfff && self.range_of(physical).is_some_and(|r| last <= r.last);
        if plain { Ok(()) } else { self.sees_time() }
    }

    /// How many repetitions of a string instruction may be run now, its first among them.
    pub(crate) fn repetitions(&self) -> u64 {
        if self.counting.on { self.shared.budget as u64 + 1 } else { u64::MAX }
    }
}

/// Instructions that read or move what follows time.
pub(crate) fn is_timed(m: Mnemonic) -> bool {
    matches!(
        m,
        Mnemonic::In
            | Mnemonic::Out
            | Mnemonic::Insb
            | Mnemonic::Insw
            | Mnemonic::Insd
            | Mnemonic::Outsb
            | Mnemonic::Outsw
            | Mnemonic::Outsd
            | Mnemonic::Rdtsc
            | Mnemonic::Rdtscp
            | Mnemonic::Rdmsr
            | Mnemonic::Wrmsr
    )
}
