//! The bus master of a channel (82371SB, section 2.7): its three registers, and the walk over a table of physical regions.

use super::regs::{bm_command, bm_status};

/// Bytes that a descriptor table may have: it must not cross 64 KiB, and drivers keep it in a page.
const TABLE_LIMIT: u32 = 4096;

/// Registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusMaster {
    pub command: u8,
    pub status: u8,
    /// Where the table is.
    pub address: u32,
    /// How far it was walked.
    pub position: TableEnd,
}

/// How far a table was walked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableEnd {
    /// The next descriptor.
    pub next: u32,
    /// The last descriptor that was read had the end mark.
    pub last: bool,
    /// What is left of the region that was begun.
    pub region: u32,
    pub region_len: u32,
    /// The whole transfer fitted.
    pub complete: bool,
    /// The table describes more than the transfer moved.
    pub left_over: bool,
}

impl BusMaster {
    pub fn is_active(&self) -> bool {
        self.status & bm_status::ACTIVE != 0
    }

    /// Reads the byte registers 0 to 3; the reserved ones are ones.
    pub fn read(&self, register: u64) -> u8 {
        match register {
            0 => self.command,
            2 => self.status,
            _ => 0xff,
        }
    }

    /// Writes the command register. `Some(true)` when a transfer may start, `Some(false)` when it must stop.
    pub fn write_command(&mut self, value: u8) -> Option<bool> {
        let changed = (value ^ self.command) & bm_command::START != 0;
        self.command = value & bm_command::MASK;
        if !changed {
            return None;
        }
        if value & bm_command::START == 0 {
            self.status &= !bm_status::ACTIVE;
            return Some(false);
        }
        self.rewind();
        let idle = !self.is_active();
        self.status |= bm_status::ACTIVE;
        idle.then_some(true)
    }

    /// Writes the status register: some bits are cleared by ones.
    pub fn write_status(&mut self, value: u8) {
        let kept = self.status & !value & (bm_status::ERROR | bm_status::INTERRUPT);
        self.status = value & bm_status::CAPABLE | self.status & bm_status::ACTIVE | kept;
    }

    /// Reads `size` bytes of the table address from byte `at` on.
    pub fn read_address(&self, at: u64, size: u32) -> u32 {
        let value = self.address >> (at * 8);
        if size >= 4 { value } else { value & ((1 << (size * 8)) - 1) }
    }

    /// Writes `size` bytes of the table address from byte `at` on. The table is aligned to four bytes.
    pub fn write_address(&mut self, at: u64, size: u32, value: u32) {
        let (shift, ones) = (at as u32 * 8, if size >= 4 { u32::MAX } else { (1 << (size * 8)) - 1 });
        self.address &= !(ones << shift);
        self.address |= ((value & ones) << shift) & !3;
    }

    /// Has the next walk begin at the table's start.
    pub fn rewind(&mut self) {
        self.position = TableEnd { next: self.address, ..TableEnd::default() };
    }

    /// Where the next walk begins.
    pub fn table(&self) -> u32 {
        self.position.next
    }

    pub fn walked(&mut self, end: &TableEnd) {
        self.position = *end;
    }

    /// A reset of the drives ends a transfer.
    pub fn stop(&mut self) {
        self.status &= !bm_status::ACTIVE;
    }
}

/// Pieces of guest memory: address and length.
pub type ScatterList = Vec<(u32, u32)>;

/// Walks the table at `table` for at most `limit` bytes. `read` gives a descriptor's two words. Bounded by the table's size.
pub fn walk(table: u32, limit: u64, mut read: impl FnMut(u32) -> (u32, u32)) -> (ScatterList, TableEnd) {
    let mut list = ScatterList::new();
    let mut end = TableEnd { next: table, ..TableEnd::default() };
    let (mut taken, mut described) = (0_u64, 0_u64);
    while !end.last && end.next.wrapping_sub(table) < TABLE_LIMIT {
        let (address, flags) = read(end.next);
        end.next = end.next.wrapping_add(8);
        end.last = flags & 0x8000_0000 != 0;
        let len = match flags & 0xfffe {
            0 => 0x1_0000,
            n => n,
        };
        let part = (limit - taken).min(len.into()) as u32;
        if part > 0 {
            list.push((address, part));
        }
        taken += u64::from(part);
        described += u64::from(len);
    }
    end.complete = taken == limit;
    end.left_over = described > limit;
    (list, end)
}
