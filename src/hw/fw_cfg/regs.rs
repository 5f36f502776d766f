//! Which item is selected, how far it was read, and the DMA descriptor.

use super::{AcpiSizesState, DmaState, FwCfgState, Items};

/// What the DMA address register reads as, and so says that it is there.
pub(super) const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

pub(super) const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SKIP: u32 = 4;
const DMA_SELECT: u32 = 8;
const DMA_WRITE: u32 = 16;

/// No item.
const INVALID: u16 = 0xffff;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Window {
    entry: u16,
    offset: u32,
    dma_address: u64,
}

impl Window {
    pub(super) fn select(&mut self, key: u16, known: bool) {
        self.entry = if known { key } else { INVALID };
        self.offset = 0;
    }

    /// Reads on, with zeroes after the end. Says whether the end was passed.
    pub(super) fn read(&mut self, items: &Items, to: &mut [u8]) -> bool {
        let n = if self.entry == INVALID { 0 } else { items.read(self.entry, self.offset.into(), to) };
        to[n..].fill(0);
        self.offset = self.offset.saturating_add(n as u32);
        n < to.len()
    }

    /// Goes on without reading. Says whether the end was reached.
    pub(super) fn skip(&mut self, items: &Items, count: u32) -> bool {
        let len = if self.entry == INVALID { 0 } else { items.len(self.entry) };
        let to = u64::from(self.offset) + u64::from(count);
        self.offset = to.min(len) as u32;
        to >= len
    }

    /// A write to the big-endian address register. Returns the address of a descriptor to follow.
    pub(super) fn write_dma_address(&mut self, offset: u64, size: u32, value: u64) -> Option<u64> {
        match (offset, size) {
            (0, 4) => {
                self.dma_address = u64::from((value as u32).swap_bytes()) << 32;
                None
            }
            (4, 4) => Some(std::mem::take(&mut self.dma_address) | u64::from((value as u32).swap_bytes())),
            (0, 8) => Some(value.swap_bytes()),
            _ => None,
        }
    }

    pub(super) fn save(&self, items: &Items) -> FwCfgState {
        FwCfgState {
            cur_entry: self.entry,
            cur_offset: self.offset,
            dma: Some(DmaState { dma_addr: self.dma_address }),
            acpi_mr: items.acpi_sizes().map(|[table_mr_size, linker_mr_size, rsdp_mr_size]| AcpiSizesState {
                table_mr_size,
                linker_mr_size,
                rsdp_mr_size,
            }),
        }
    }

    pub(super) fn load(&mut self, wire: &FwCfgState) {
        let dma_address = wire.dma.as_ref().map_or(0, |d| d.dma_addr);
        *self = Self { entry: wire.cur_entry, offset: wire.cur_offset, dma_address };
    }
}

/// A DMA descriptor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Transfer {
    pub(super) select: Option<u16>,
    pub(super) reads: bool,
    pub(super) writes: bool,
    pub(super) length: u32,
    pub(super) address: u64,
}

impl Transfer {
    pub(super) fn parse(bytes: &[u8; 16]) -> Self {
        let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        let control = word(0);
        let (reads, writes) = (control & DMA_READ != 0, control & DMA_READ == 0 && control & DMA_WRITE != 0);
        let moves = reads || writes || control & DMA_SKIP != 0;
        Self {
            select: (control & DMA_SELECT != 0).then_some((control >> 16) as u16),
            reads,
            writes,
            length: if moves { word(4) } else { 0 },
            address: u64::from(word(8)) << 32 | u64::from(word(12)),
        }
    }
}
