//! Alignment checks of programs: `#AC` (Intel SDM volume 3, 6.15, interrupt 17).
//!
//! While they are on, accesses are a privilege context of their own, whose translations all lead to the slow ways: what looks at addresses
//! is there. So blocks and machine code cost nothing for it while it is off, and are right while it is on.

use crate::{
    Cpu,
    fault::{R, vector},
    host::Class,
    mem::mmu,
    system::canonical,
};

impl Cpu {
    /// Whether accesses are looked at.
    #[inline]
    pub(crate) fn checks_alignment(&self) -> bool {
        self.mmu == mmu::USER_AC
    }

    /// `#AC` for an access that is not at a multiple of `align` though it has to be. It goes before page faults, but not before those of
    /// addresses that are not canonical.
    #[inline]
    pub(crate) fn check_alignment(&mut self, address: u64, align: u64) -> R<()> {
        if self.checks_alignment() && address & (align - 1) != 0 && (self.bits != 2 || canonical(address)) {
            return Err(self.raise(vector::AC, Some(0)));
        }
        Ok(())
    }

    /// Runs `f` without alignment checks.
    pub(crate) fn at_any_alignment<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        if !self.checks_alignment() {
            return f(self);
        }
        self.mmu = mmu::USER;
        let result = f(self);
        self.mmu = mmu::USER_AC;
        result
    }
}

/// What an operand of `len` bytes has to be at a multiple of, if alignment is checked: vectors at 16 bytes (those of 32 as well), numbers at
/// their size (those of 80 bits at 8), environments of the x87 at 4 or 2.
pub(crate) fn natural(class: Class, len: u64) -> u64 {
    match (class, len) {
        (Class::X87, 10) => 8,
        (Class::X87, 14 | 94) => 2,
        (Class::X87, 9..) => 4,
        (_, 16..) => 16,
        _ => 1 << len.max(1).ilog2(),
    }
}
