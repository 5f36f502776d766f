//! The section `dma`.
#![allow(missing_docs)]

use lockstep_vmstate::VmState;

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "dma", version = 1)]
pub struct DmaState {
    pub command: u8,
    pub mask: u8,
    pub flip_flop: u8,
    pub dshift: i32,
    pub regs: [DmaChannelState; 4],
}

#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "dma_regs", version = 1)]
pub struct DmaChannelState {
    /// Address, and how much was transferred.
    pub now: [i32; 2],
    pub base: [u16; 2],
    pub mode: u8,
    pub page: u8,
    pub pageh: u8,
    pub dack: u8,
    pub eop: u8,
}
