//! The USB controller of the PIIX3 (82371SB, section 2.8): a UHCI with two ports.

mod regs;
mod schedule;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock, Weak};

use lockstep_event::{Clock, Clocks, Timer};
use lockstep_memory::AccessRules;
use lockstep_util::Result;
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::{Mutex, MutexGuard};

pub use vmstate::{UhciPortState, UhciState};

use super::bus::{Upstream, UsbBus, UsbDevice};
use crate::{
    core::{
        Board, BusNode, Category, CreateContext, Device, DeviceType, IrqLine, Property, PropertyKind, ResetKind,
        io_handler,
    },
    pci::{BarKind, DmaSpace, PCI_DEVICE_PROPERTIES, PCI_PARENTS, PciDevice, PciFunction, PciIdentity, PciPlace},
};
use regs::{Action, PORTS, Regs, command, port, status};
use schedule::Frame;

const IDENTITY: PciIdentity = PciIdentity {
    vendor: 0x8086,
    device: 0x7020,
    revision: 1,
    class: 0x0c03,
    prog_if: 0,
    subsystem: PciIdentity::SUBSYSTEM,
    pin: 4,
};

const PROPERTIES: &[Property] =
    &[Property::new("bandwidth", PropertyKind::U32, "1280"), Property::new("maxframes", PropertyKind::U32, "128")];

/// The type.
pub static PIIX3_UHCI: DeviceType = DeviceType {
    name: "piix3-usb-uhci",
    alias: None,
    parents: PCI_PARENTS,
    bus: "PCI",
    category: Category::Usb,
    description: "",
    properties: &[PROPERTIES, PCI_DEVICE_PROPERTIES],
    create: Some(create),
};

/// The name of the kind of bus that it provides.
const BUS_KIND: &str = "usb-bus";

/// A frame, in nanoseconds.
const FRAME_NS: i64 = 1_000_000;
/// Frames that are done at once after a pause.
const MOST_FRAMES: i64 = 100;

/// Serial bus release 1.0.
const RELEASE: (usize, u8) = (0x60, 0x10);
const MISCELLANEOUS: usize = 0x6a;

struct State {
    regs: Regs,
    /// When the next frame begins.
    due: i64,
}

/// The controller.
pub struct Uhci {
    function: PciFunction,
    dma: DmaSpace,
    irq: IrqLine,
    clocks: Clocks,
    timer: Timer,
    bandwidth: u32,
    most_behind: i64,
    state: Mutex<State>,
    /// Held while frames are done, so that there is one at a time.
    frames: Mutex<()>,
    bus: Arc<UsbBus>,
    node: OnceLock<Arc<BusNode>>,
    section: OnceLock<u32>,
    board: Board,
}

fn create(context: &mut CreateContext<'_>) -> Result<Arc<dyn Device>> {
    let place = PciPlace::of(context)?;
    let (bandwidth, most_behind) = (context.properties.u32("bandwidth"), context.properties.u32("maxframes"));
    let uhci = Uhci::new(context.board, &place, bandwidth, most_behind)?;
    place.plug(context, uhci.clone());
    Ok(uhci)
}

impl Uhci {
    fn new(board: &Board, place: &PciPlace, bandwidth: u32, most_behind: u32) -> Result<Arc<Self>> {
        let function =
            PciFunction::new(board, &place.bus, place.devfn, "piix3-usb-uhci", &IDENTITY, place.multifunction)?;
        let number = board.tree.buses().iter().filter(|b| b.kind == BUS_KIND).count();
        let bus = UsbBus::new(number, function.bus_path(), PORTS);
        let uhci = Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let expired = move || {
                if let Some(uhci) = me.upgrade() {
                    uhci.run_frames();
                }
            };
            Self {
                dma: function.dma(),
                irq: function.irq(),
                clocks: board.clocks.clone(),
                timer: board.clocks.timer(Clock::Virtual, expired),
                bandwidth,
                most_behind: most_behind.into(),
                state: Mutex::new(State { regs: Regs::default(), due: 0 }),
                frames: Mutex::new(()),
                bus: bus.clone(),
                node: OnceLock::new(),
                section: OnceLock::new(),
                board: board.clone(),
                function,
            }
        });
        let upstream: Arc<dyn Upstream> = uhci.clone();
        bus.connect(Arc::downgrade(&upstream));
        let _ = uhci.node.set(BusNode::new(bus.name.clone(), BUS_KIND, bus));
        let (reader, writer) = (uhci.clone(), uhci.clone());
        let rules = AccessRules { valid_min: 1, valid_max: 4, unaligned: false, handled_min: 2, handled_max: 2 };
        let handler = io_handler(
            rules,
            move |at, _| reader.state.lock().regs.read(at).into(),
            move |at, _, value| writer.write(at, value as u16),
        );
        uhci.function.add_io_bar(4, BarKind::Io, "uhci", 32, handler);
        uhci.set_config();
        let section = board.states.register(&format!("{}/uhci", uhci.function.bus_path()), uhci.clone());
        let _ = uhci.section.set(section);
        Ok(uhci)
    }

    fn set_config(&self) {
        self.function.with_config(|c| {
            c.set(RELEASE.0, &[RELEASE.1]);
            c.set(MISCELLANEOUS, &[1, 0]);
        });
    }

    /// The bus.
    pub fn bus(&self) -> &Arc<UsbBus> {
        &self.bus
    }

    fn update_irq(&self, state: &MutexGuard<'_, State>) {
        self.irq.set(state.regs.irq());
    }

    fn write(&self, at: u64, value: u16) {
        let now = self.clocks.now_ns(Clock::Virtual);
        let mut state = self.state.lock();
        let action = state.regs.write(at, value);
        if action == Some(Action::Start) {
            state.due = now + FRAME_NS;
            self.timer.arm(state.due);
        }
        self.update_irq(&state);
        drop(state);
        match action {
            Some(Action::Reset) => self.reset_controller(),
            Some(Action::ResetPort(n)) => _ = self.bus.device(n).inspect(|d| d.bus_reset()),
            Some(Action::Start) | None => {}
        }
    }

    /// Registers as after power on; what is at the ports is found anew.
    fn reset_controller(&self) {
        let devices: [_; PORTS] = std::array::from_fn(|n| self.bus.device(n));
        let mut state = self.state.lock();
        state.regs.reset();
        for (n, device) in devices.iter().enumerate() {
            if device.is_some() {
                state.regs.attach(n);
            }
        }
        self.update_irq(&state);
        drop(state);
        self.set_config();
        devices.iter().flatten().for_each(|d| d.bus_reset());
    }

    /// Does the frames that are due.
    fn run_frames(&self) {
        let _one_at_a_time = self.frames.lock();
        let now = self.clocks.now_ns(Clock::Virtual);
        let mut left = {
            let mut state = self.state.lock();
            if !state.regs.is_running() {
                state.regs.status |= status::HALTED;
                return;
            }
            let due = now.saturating_sub(state.due.saturating_sub(FRAME_NS)).max(0) / FRAME_NS;
            let skipped = (due - self.most_behind).max(0);
            state.due = state.due.saturating_add(skipped.saturating_mul(FRAME_NS));
            state.regs.frame = (i64::from(state.regs.frame) + skipped % 0x800) as u16 & 0x7ff;
            (due - skipped).min(MOST_FRAMES)
        };
        while left > 0 && self.run_frame() {
            left -= 1;
        }
        let mut state = self.state.lock();
        let pending = std::mem::take(&mut state.regs.pending);
        if pending != 0 {
            state.regs.kinds |= pending;
            state.regs.status |= status::INTERRUPT;
            self.update_irq(&state);
        }
        if state.regs.is_running() {
            self.timer.arm(now + FRAME_NS);
        }
    }

    /// Does one frame. False when the controller does not run any more.
    fn run_frame(&self) -> bool {
        let (entry, enabled) = {
            let state = self.state.lock();
            if !state.regs.is_running() {
                return false;
            }
            let r = &state.regs;
            (r.list + u32::from(r.frame & 0x3ff) * 4, r.ports.map(|p| p & port::ENABLED != 0))
        };
        let devices: Vec<Arc<dyn UsbDevice>> =
            (0..PORTS).filter(|&n| enabled[n]).filter_map(|n| self.bus.device(n)).collect();
        let frame = Frame { dma: &self.dma, entry, devices, bandwidth: self.bandwidth };
        let outcome = frame.run();
        let mut state = self.state.lock();
        let regs = &mut state.regs;
        regs.pending |= outcome.interrupts;
        if outcome.error {
            regs.status |= status::ERROR;
        }
        if outcome.halt {
            regs.status |= status::PROCESS_ERROR;
            regs.command &= !command::RUN;
            regs.status |= status::HALTED;
        }
        regs.frame = (regs.frame + 1) & 0x7ff;
        state.due = state.due.saturating_add(FRAME_NS);
        if outcome.error || outcome.halt {
            self.update_irq(&state);
        }
        true
    }
}

impl Upstream for Uhci {
    fn wake(&self, port: usize) {
        let mut state = self.state.lock();
        state.regs.wake(port);
        self.update_irq(&state);
    }

    fn changed(&self, port: usize, present: bool) {
        let mut state = self.state.lock();
        if present {
            state.regs.attach(port)
        } else {
            state.regs.detach(port)
        }
        self.update_irq(&state);
    }
}

impl Device for Uhci {
    fn reset(&self, _: ResetKind) {
        self.timer.cancel();
        {
            let mut state = self.state.lock();
            state.regs.frame = 0;
            state.regs.pending = 0;
        }
        self.function.reset();
        self.reset_controller();
    }

    fn buses(&self) -> Vec<Arc<BusNode>> {
        self.node.get().cloned().into_iter().collect()
    }

    fn unplug(&self) -> Result<()> {
        self.timer.cancel();
        self.function.unplug();
        self.section.get().inspect(|id| self.board.states.unregister(**id));
        Ok(())
    }
}

impl PciDevice for Uhci {
    fn function(&self) -> &PciFunction {
        &self.function
    }
}

impl Snapshot for Uhci {
    type Wire = UhciState;

    fn snapshot(&self) -> UhciState {
        let state = self.state.lock();
        UhciState::save(self.function.save(), &state.regs, self.timer.deadline(), state.due)
    }

    fn validate(&self, wire: &UhciState) -> std::result::Result<(), LoadError> {
        self.function.validate(&wire.dev)?;
        wire.check()
    }

    fn restore(&self, wire: UhciState) {
        self.function.load(&wire.dev);
        let mut state = self.state.lock();
        wire.load(&mut state.regs);
        state.due = wire.expire_time;
        match wire.frame_timer.0 {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.cancel(),
        }
    }
}
