//! The 82371SB ISA bridge: routing of PCI interrupts, reset control (Intel 290550-002).

mod pirq;

#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use lockstep_memory::AccessRules;
use lockstep_util::Result;
use lockstep_vmstate::{LoadError, Snapshot, VmState};

pub use pirq::PirqRouter;

use crate::{
    core::{Board, Device, IrqLine, MachineRequest, ResetCause, ResetKind, io_handler},
    pci::{PciBus, PciDevice, PciDeviceState, PciFunction, PciIdentity},
};

/// Route control registers of the four PCI interrupts.
const PIRQ_ROUTES: usize = 0x60;

/// Registers that a reset sets (section 2.2).
const AT_RESET: [(usize, u8); 11] = [
    (0x07, 0x02),
    (0x4c, 0x4d),
    (0x4e, 0x03),
    (0x69, 0x02),
    (0x70, 0x80),
    (0x76, 0x0c),
    (0x77, 0x0c),
    (0x78, 0x02),
    (0xa0, 0x08),
    (0xa8, 0x0f),
    (0x60, 0x80),
];

/// Registers that a reset clears, besides.
const CLEARED: [usize; 15] = [0x4f, 0x79, 0x80, 0x82, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xae, 0x05];

const IDENTITY: PciIdentity = PciIdentity {
    vendor: 0x8086,
    device: 0x7000,
    revision: 0,
    class: 0x0601,
    prog_if: 0,
    subsystem: PciIdentity::SUBSYSTEM,
    pin: 0,
};

/// Reset control register: full reset, and reset the CPU.
const RCR_FULL: u8 = 2;
const RCR_RESET: u8 = 4;

/// The ISA bridge.
pub struct Piix3 {
    function: PciFunction,
    pirq: Arc<PirqRouter>,
    reset_control: AtomicU8,
}

impl Piix3 {
    /// The bridge as function 0 of `slot`. PCI interrupts go to `isa`, the 16 ISA interrupts.
    ///
    /// # Errors
    /// When the place on the bus is taken.
    pub fn new(board: &Board, bus: &Arc<PciBus>, slot: u8, isa: [IrqLine; 16]) -> Result<Arc<Self>> {
        let function = PciFunction::new(board, bus, Some(slot << 3), "PIIX3", &IDENTITY, true)?;
        let pirq = PirqRouter::new(isa);
        bus.connect(std::array::from_fn(|n| IrqLine::new(pirq.clone(), n as u32)));
        let bridge = Arc::new(Self { function, pirq, reset_control: AtomicU8::new(0) });
        let (reader, writer, requests) = (bridge.clone(), bridge.clone(), board.requests.clone());
        let control = io_handler(
            AccessRules::bytes(1),
            move |_, _| reader.reset_control.load(Ordering::SeqCst).into(),
            move |_, _, value| {
                let value = value as u8;
                if value & RCR_RESET != 0 {
                    requests.request(MachineRequest::Reset(ResetCause::GuestReset));
                } else {
                    writer.reset_control.store(value & RCR_FULL, Ordering::SeqCst);
                }
            },
        );
        // CF9h is inside the configuration address port.
        board.ports.add_overlap(0xcf9, &lockstep_memory::Region::io("piix-reset-control", 1, control), 1);
        bus.plug(bridge.clone(), None);
        bridge.set_registers_at_reset();
        Ok(bridge)
    }

    fn set_registers_at_reset(&self) {
        self.function.with_config(|c| {
            CLEARED.iter().for_each(|&at| c.set(at, &[0]));
            AT_RESET.iter().for_each(|&(at, value)| c.set(at, &[value]));
            c.set(PIRQ_ROUTES, &[0x80; 4]);
        });
    }

    fn apply(&self) {
        self.pirq.set_routes(self.function.with_config(|c| std::array::from_fn(|n| c.u8(PIRQ_ROUTES + n))));
    }
}

impl Device for Piix3 {
    fn reset(&self, _: ResetKind) {
        self.function.reset();
        self.set_registers_at_reset();
        self.apply();
        self.reset_control.store(0, Ordering::SeqCst);
    }

    fn qtree_lines(&self) -> Vec<String> {
        crate::pci::qtree_lines(&self.function)
    }
}

impl PciDevice for Piix3 {
    fn function(&self) -> &PciFunction {
        &self.function
    }

    fn config_write(&self, at: usize, value: u32, len: usize) {
        self.function.config_write(at, value, len);
        if at < PIRQ_ROUTES + 4 && at + len > PIRQ_ROUTES {
            self.apply();
        }
    }
}

/// The section `PIIX3`.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "PIIX3", version = 3)]
#[allow(missing_docs)]
pub struct Piix3State {
    pub dev: PciDeviceState,
    /// Levels of PIRQA to PIRQD.
    pub pci_irq_levels_vmstate: [i32; 4],
    #[vmstate(subsection)]
    pub rcr: Option<ResetControlState>,
}

/// The reset control register, when it is not 0.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "PIIX3/rcr", version = 1)]
#[allow(missing_docs)]
pub struct ResetControlState {
    pub rcr: u8,
}

impl Snapshot for Piix3 {
    type Wire = Piix3State;

    fn snapshot(&self) -> Piix3State {
        let rcr = self.reset_control.load(Ordering::SeqCst);
        Piix3State {
            dev: self.function.save(),
            pci_irq_levels_vmstate: self.pirq.levels().map(i32::from),
            rcr: (rcr != 0).then_some(ResetControlState { rcr }),
        }
    }

    fn validate(&self, wire: &Piix3State) -> Result<(), LoadError> {
        self.function.validate(&wire.dev)?;
        if wire.pci_irq_levels_vmstate.iter().any(|l| !(0..=1).contains(l)) {
            return Err(LoadError::invalid("PIIX3: a line has neither level"));
        }
        Ok(())
    }

    fn restore(&self, wire: Piix3State) {
        self.function.load(&wire.dev);
        // The interrupt controllers load their inputs themselves.
        self.pirq.load(
            self.function.with_config(|c| std::array::from_fn(|n| c.u8(PIRQ_ROUTES + n))),
            wire.pci_irq_levels_vmstate.map(|l| l != 0),
        );
        self.reset_control.store(wire.rcr.map_or(0, |r| r.rcr & RCR_FULL), Ordering::SeqCst);
    }
}
