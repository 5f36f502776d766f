//! Configuration mechanism 1: address port CF8h, data port CFCh (PCI Local Bus Specification 3.0, section 3.2.2.3.2).

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use lockstep_memory::{AccessRules, Region};
use lockstep_vmstate::{Snapshot, VmState};

use crate::{
    core::{Board, io_handler},
    pci::PciBus,
};

const ENABLE: u32 = 1 << 31;

/// The two ports.
pub struct PciHost {
    address: AtomicU32,
    bus: Arc<PciBus>,
}

impl PciHost {
    /// The ports, in front of `bus`.
    pub fn new(board: &Board, bus: &Arc<PciBus>) -> Arc<Self> {
        let host = Arc::new(Self { address: AtomicU32::new(0), bus: bus.clone() });
        let (reader, writer) = (host.clone(), host.clone());
        let address = io_handler(
            AccessRules::default(),
            move |offset, size| {
                let value = u64::from(reader.address.load(Ordering::SeqCst));
                value >> (offset * 8) & (u64::MAX >> (64 - size * 8))
            },
            // Only all four bytes at once: byte writes are for the registers that share the ports (CF9h).
            move |offset, size, value| {
                if offset == 0 && size == 4 {
                    writer.address.store(value as u32, Ordering::SeqCst);
                }
            },
        );
        let (reader, writer) = (host.clone(), host.clone());
        let data = io_handler(
            AccessRules::default(),
            move |offset, size| match reader.target(offset) {
                Some(address) => reader.bus.config_read(address, size as usize).into(),
                None => u64::from(u32::MAX),
            },
            move |offset, size, value| {
                if let Some(address) = writer.target(offset) {
                    writer.bus.config_write(address, value as u32, size as usize);
                }
            },
        );
        board.ports.add(0xcf8, &Region::io("pci-conf-idx", 4, address));
        board.ports.add(0xcfc, &Region::io("pci-conf-data", 4, data));
        host
    }

    /// The bus behind the ports.
    pub fn bus(&self) -> &Arc<PciBus> {
        &self.bus
    }

    /// Resets it: no address.
    pub fn reset(&self) {
        self.address.store(0, Ordering::SeqCst);
    }

    fn target(&self, offset: u64) -> Option<u32> {
        let address = self.address.load(Ordering::SeqCst);
        (address & ENABLE != 0).then_some(address & 0x00ff_fffc | offset as u32)
    }
}

/// The section `PCIHost`.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "PCIHost", version = 1)]
#[allow(missing_docs)]
pub struct PciHostState {
    pub config_reg: u32,
}

impl Snapshot for PciHost {
    type Wire = PciHostState;

    fn snapshot(&self) -> PciHostState {
        PciHostState { config_reg: self.address.load(Ordering::SeqCst) }
    }

    fn restore(&self, wire: PciHostState) {
        self.address.store(wire.config_reg, Ordering::SeqCst);
    }
}
