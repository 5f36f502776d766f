//! The disk: master of the primary IDE channel, bus-master DMA, completion by interrupt (ATA/ATAPI-6, PIIX3 data sheet).
use crate::cpu::{inb, outb, outl};
use crate::heap;
use crate::pci::Function;
use alloc::boxed::Box;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Largest transfer of one command in bytes.
pub const MAX_TRANSFER: usize = 128 << 10;
/// IRQ of the primary channel.
pub const IRQ: u8 = 14;

const BLOCK: usize = 64 << 10;
const COMMAND_BLOCK: u16 = 0x1f0;

/// What to do next with the disk. Lengths come from the buffer's filled part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Read `bytes` (a multiple of the sector size) at sector `lba` into the buffer.
    Read { lba: u32, bytes: usize },
    /// Write `bytes` (a multiple of the sector size) from the buffer at sector `lba`.
    Write { lba: u32, bytes: usize },
    /// Make everything written so far durable.
    Flush,
}

#[repr(C, align(8))]
struct Prd([u32; 4]);

/// The disk, with one command at a time.
pub struct Disk {
    bus_master: u16,
    prd: Box<Prd>,
    /// The DMA buffer, [`MAX_TRANSFER`] bytes.
    pub buffer: Box<[u8]>,
    busy: Option<Command>,
    /// Commands finished since boot.
    pub commands: u64,
    /// Commands that failed since boot.
    pub errors: u64,
}

impl Disk {
    /// Finds the controller.
    pub fn start() -> Option<Self> {
        let function = Function::find(|_, class| class >> 8 == 0x0101)?;
        function.enable();
        let buffer = heap::buffer(MAX_TRANSFER).into_boxed_slice();
        let address = buffer.as_ptr() as u32; // 64 KiB aligned by the heap, as physical region descriptors need
        let prd = Box::new(Prd([address, 0, address + BLOCK as u32, 0]));
        outb(0x3f6, 0); // interrupts on
        Some(Self { bus_master: function.ports(4), prd, buffer, busy: None, commands: 0, errors: 0 })
    }

    /// Is a command under way?
    pub fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// Starts a command; the disk must not be busy.
    pub fn submit(&mut self, command: Command) {
        assert!(self.busy.is_none(), "one disk command at a time");
        self.busy = Some(command);
        let (lba, bytes, opcode, direction) = match command {
            Command::Read { lba, bytes } => (lba, bytes, 0xc8, 8),
            Command::Write { lba, bytes } => (lba, bytes, 0xca, 0),
            Command::Flush => {
                outb(COMMAND_BLOCK + 6, 0xe0);
                return outb(COMMAND_BLOCK + 7, 0xe7);
            }
        };
        assert!(bytes != 0 && bytes <= MAX_TRANSFER && bytes % SECTOR == 0 && lba >> 28 == 0);
        let (first, second) = (bytes.min(BLOCK), bytes.saturating_sub(BLOCK));
        // A length of 64 KiB is written as 0.
        self.prd.0[1] = first as u32 & 0xffff | if second == 0 { 1 << 31 } else { 0 };
        self.prd.0[3] = second as u32 & 0xffff | 1 << 31;
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        outl(self.bus_master + 4, self.prd.0.as_ptr() as u32);
        outb(self.bus_master, direction);
        outb(self.bus_master + 2, 0x26); // clear error and interrupt, drive 0 can do DMA
        outb(COMMAND_BLOCK + 6, 0xe0 | (lba >> 24) as u8);
        outb(COMMAND_BLOCK + 2, (bytes / SECTOR) as u8); // 256 sectors are written as 0
        outb(COMMAND_BLOCK + 3, lba as u8);
        outb(COMMAND_BLOCK + 4, (lba >> 8) as u8);
        outb(COMMAND_BLOCK + 5, (lba >> 16) as u8);
        outb(COMMAND_BLOCK + 7, opcode);
        outb(self.bus_master, direction | 1);
    }

    /// After the channel's interrupt: the command that ended, and whether it succeeded. `None` if none did.
    pub fn finish(&mut self) -> Option<(Command, bool)> {
        let command = self.busy?;
        let mut dma_failed = false;
        if command != Command::Flush {
            let status = inb(self.bus_master + 2);
            if status & 4 == 0 {
                return None;
            }
            outb(self.bus_master, 0);
            outb(self.bus_master + 2, 0x26);
            dma_failed = status & 2 != 0;
        }
        let status = inb(COMMAND_BLOCK + 7);
        if status & 0x80 != 0 {
            return None;
        }
        self.busy = None;
        self.commands += 1;
        let good = status & 0x21 == 0 && !dma_failed;
        self.errors += u64::from(!good);
        Some((command, good))
    }
}
