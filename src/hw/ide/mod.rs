//! The IDE function of the PIIX3 (Intel 82371SB): two channels with bus master DMA, with ATA disks and ATAPI CD-ROM drives on them.

mod ata;
mod atapi;
mod busmaster;
mod channel;
mod drive;
mod identify;
mod mmc;
mod regs;
mod smart;
pub(crate) mod types;
mod vmstate;
mod wiring;

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use lockstep_memory::Region;
use lockstep_util::Result;
use lockstep_vmstate::{LoadError, Snapshot};

pub use drive::{DriveConfig, DriveKind, Geometry};
pub use types::{IDE_CD, IDE_HD, IdeBus, PIIX3_IDE};
pub use vmstate::IdeState;
pub use wiring::{Completion, Disk, IdeChannel};

use crate::{
    core::{Board, BusNode, Device, IrqLine, ResetKind},
    pci::{BarKind, PciBus, PciDevice, PciFunction, PciIdentity, offset},
};
use vmstate::ChannelState;

/// The types of devices of this module.
pub const TYPES: &[&crate::core::DeviceType] = &[&IDE_HD, &IDE_CD, &PIIX3_IDE];

const IDENTITY: PciIdentity = PciIdentity {
    vendor: 0x8086,
    device: 0x7010,
    revision: 0,
    class: 0x0101,
    // Bus master capable, both channels at their legacy ports.
    prog_if: 0x80,
    subsystem: PciIdentity::SUBSYSTEM,
    pin: 0,
};

/// Fast back-to-back, medium DEVSEL timing.
const STATUS: u16 = 0x0280;

/// Legacy ports: command block and control block of each channel (82371SB, section 2.7).
const PORTS: [(u64, u64); 2] = [(0x1f0, 0x3f6), (0x170, 0x376)];

/// The function.
pub struct Piix3Ide {
    function: PciFunction,
    channels: [Arc<IdeChannel>; 2],
    buses: OnceLock<[Arc<BusNode>; 2]>,
}

impl Piix3Ide {
    /// The function at `devfn` of `bus`, with its channels' interrupts on `lines` (ISA 14 and 15). Maps the legacy ports, and registers
    /// the section and the restart of requests when the machine runs again.
    ///
    /// # Errors
    /// When the place on the bus is taken.
    pub fn new(board: &Board, bus: &Arc<PciBus>, devfn: u8, lines: [IrqLine; 2]) -> Result<Arc<Self>> {
        let function = PciFunction::new(board, bus, Some(devfn), "piix3-ide", &IDENTITY, false)?;
        let channels = lines.map(|line| IdeChannel::new(line, function.dma()));
        let bus_master = Region::container("piix-bmdma-container", 16);
        for (i, channel) in channels.iter().enumerate() {
            board.ports.add(PORTS[i].0, &wiring::command_block(channel));
            board.ports.add(PORTS[i].1, &wiring::control_block(channel));
            bus_master.add(i as u64 * 8, &wiring::bus_master_block(channel));
            bus_master.add(i as u64 * 8 + 4, &wiring::table_address_block(channel));
        }
        function.add_bar(4, BarKind::Io, &bus_master);
        let ide = Arc::new(Self { function, channels, buses: OnceLock::new() });
        let nodes = [0, 1].map(|i| {
            let object = Arc::new(IdeBus::new(ide.channels[i].clone(), i));
            BusNode::new(format!("ide.{i}"), "IDE", object)
        });
        let _ = ide.buses.set(nodes);
        ide.reset(ResetKind::Cold);
        board.states.register(&format!("{}/ide", ide.function.bus_path()), ide.clone());
        let weak = Arc::downgrade(&ide);
        board.resumed.add(move || {
            if let Some(ide) = weak.upgrade() {
                ide.resume();
            }
        });
        Ok(ide)
    }

    /// A channel: 0 is the primary one.
    pub fn channel(&self, n: usize) -> &Arc<IdeChannel> {
        &self.channels[n & 1]
    }

    /// The machine runs again: what stopped on an error, or was under way when the state was saved, is tried once more.
    pub fn resume(&self) {
        self.channels.iter().for_each(|c| c.with(channel::Channel::resume));
    }
}

impl Device for Piix3Ide {
    fn reset(&self, _: ResetKind) {
        self.channels.iter().for_each(|c| c.with(channel::Channel::reset));
        self.function.reset();
        self.function.with_config(|c| c.set_u16(offset::STATUS, STATUS));
    }

    fn buses(&self) -> Vec<Arc<BusNode>> {
        // `info qtree` lists the bus made last first.
        self.buses.get().map_or(vec![], |[first, second]| vec![second.clone(), first.clone()])
    }
}

impl PciDevice for Piix3Ide {
    fn function(&self) -> &PciFunction {
        &self.function
    }
}

impl Snapshot for Piix3Ide {
    type Wire = IdeState;

    fn snapshot(&self) -> IdeState {
        let [a, b] = [0, 1].map(|i| self.channels[i].peek(ChannelState::save));
        IdeState {
            parent_obj: self.function.save(),
            bmdma: [a.bm, b.bm],
            bus: [a.bus, b.bus],
            ifs0: a.drives,
            ifs1: b.drives,
        }
    }

    fn validate(&self, wire: &IdeState) -> std::result::Result<(), LoadError> {
        self.function.validate(&wire.parent_obj)?;
        let states = split(wire.clone());
        self.channels.iter().zip(&states).try_for_each(|(c, state)| c.peek(|c| state.validate(c)))
    }

    fn restore(&self, wire: IdeState) {
        self.function.load(&wire.parent_obj);
        for (channel, state) in self.channels.iter().zip(split(wire)) {
            channel.load(|c| state.load(c));
        }
    }
}

fn split(wire: IdeState) -> [ChannelState; 2] {
    let ([bm0, bm1], [bus0, bus1]) = (wire.bmdma, wire.bus);
    [ChannelState { bm: bm0, bus: bus0, drives: wire.ifs0 }, ChannelState { bm: bm1, bus: bus1, drives: wire.ifs1 }]
}
