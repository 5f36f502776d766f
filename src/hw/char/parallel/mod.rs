//! The parallel port in its simplest mode (IBM Personal Computer Technical Reference, "Printer Adapter"): what the guest strobes
//! out goes to a character device.

use std::sync::Arc;

use lockstep_util::{Result, bail};
use lockstep_vmstate::{Snapshot, VmState};
use parking_lot::Mutex;

use super::{CharSink, connect::Line};
use crate::{
    core::{
        Board, Category, CreateContext, Device, DeviceType, IrqLine, Property, PropertyKind, ResetKind, byte_registers,
    },
    pc::IsaBus,
};

const STATUS_READY: u8 = 0x80;
const STATUS_ACK: u8 = 0x40;
const STATUS_ONLINE: u8 = 0x10;
const STATUS_NO_ERROR: u8 = 0x08;
const STATUS_TIMEOUT: u8 = 0x01;
const IDLE: u8 = STATUS_READY | STATUS_ACK | STATUS_ONLINE | STATUS_NO_ERROR;

const CONTROL_INPUT: u8 = 0x20;
const CONTROL_INTERRUPT: u8 = 0x10;
const CONTROL_SELECT: u8 = 0x08;
const CONTROL_INIT: u8 = 0x04;
const CONTROL_STROBE: u8 = 0x01;
const CONTROL_ONES: u8 = 0xc0;

/// The section `parallel_isa`.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "parallel_isa", version = 1)]
#[allow(missing_docs)]
pub struct ParallelState {
    #[vmstate(name = "state.dataw")]
    pub data_written: u8,
    #[vmstate(name = "state.datar")]
    pub data_read: u8,
    #[vmstate(name = "state.status")]
    pub status: u8,
    #[vmstate(name = "state.control")]
    pub control: u8,
    #[vmstate(name = "state.irq_pending")]
    pub irq_pending: i32,
    #[vmstate(name = "state.epp_timeout")]
    pub epp_timeout: i32,
}

impl Default for ParallelState {
    fn default() -> Self {
        Self {
            data_written: 0xff,
            data_read: 0xff,
            status: IDLE | STATUS_TIMEOUT,
            control: CONTROL_SELECT | CONTROL_INIT | CONTROL_ONES,
            irq_pending: 0,
            epp_timeout: 0,
        }
    }
}

/// A parallel port.
pub struct Parallel {
    state: Mutex<ParallelState>,
    irq: IrqLine,
    sink: Arc<dyn CharSink>,
}

impl Parallel {
    /// A port at `base`, with `sink` the printer.
    pub fn new(board: &Board, base: u16, irq: IrqLine, sink: Arc<dyn CharSink>) -> Arc<Self> {
        let port = Arc::new(Self { state: Mutex::default(), irq, sink });
        let registers = byte_registers(
            "parallel",
            8,
            &port,
            |p: &Self, offset| p.read(offset),
            |p: &Self, offset, value| p.write(offset, value),
        );
        board.ports.add(base.into(), &registers);
        port
    }

    fn follow(&self, state: &ParallelState) {
        self.irq.set(state.irq_pending != 0);
    }

    fn read(&self, offset: u64) -> u8 {
        let mut s = self.state.lock();
        match offset {
            0 if s.control & CONTROL_INPUT != 0 => s.data_read,
            0 => s.data_written,
            1 => {
                let value = s.status;
                s.irq_pending = 0;
                if s.status & STATUS_READY == 0 && s.control & CONTROL_STROBE == 0 {
                    // The printer acknowledges for one read, then is ready.
                    if s.status & STATUS_ACK != 0 {
                        s.status &= !STATUS_ACK;
                    } else {
                        s.status |= STATUS_ACK | STATUS_READY;
                    }
                }
                self.follow(&s);
                value
            }
            2 => s.control,
            _ => 0xff,
        }
    }

    fn write(&self, offset: u64, value: u8) {
        let mut s = self.state.lock();
        let mut sent = None;
        match offset {
            0 => s.data_written = value,
            2 => {
                let value = value | CONTROL_ONES;
                if value & CONTROL_INIT == 0 {
                    s.status = IDLE;
                } else if value & CONTROL_SELECT != 0 {
                    if value & CONTROL_STROBE != 0 {
                        s.status &= !STATUS_READY;
                        sent = (s.control & CONTROL_STROBE == 0).then_some(s.data_written);
                    } else if s.control & CONTROL_INTERRUPT != 0 {
                        s.irq_pending = 1;
                    }
                }
                s.control = value;
            }
            _ => {}
        }
        self.follow(&s);
        drop(s);
        if let Some(byte) = sent {
            self.sink.send(&[byte]);
        }
    }

    /// Resets it.
    pub fn reset(&self) {
        let mut s = self.state.lock();
        *s = ParallelState::default();
        self.follow(&s);
    }
}

impl Snapshot for Parallel {
    type Wire = ParallelState;

    fn snapshot(&self) -> ParallelState {
        self.state.lock().clone()
    }

    fn restore(&self, wire: ParallelState) {
        *self.state.lock() = wire;
    }
}

const PROPERTIES: &[Property] = &[
    Property::new("index", PropertyKind::U32, "4294967295"),
    Property::new("iobase", PropertyKind::U32, "4294967295"),
    Property::new("irq", PropertyKind::U32, "7"),
    Property::unset("chardev", PropertyKind::Chardev),
];

/// Ports of LPT1 to LPT3.
const LPT_PORTS: [u16; 3] = [0x378, 0x278, 0x3bc];

/// A parallel port on the ISA bus.
pub static ISA_PARALLEL: DeviceType = DeviceType {
    name: "isa-parallel",
    alias: None,
    parents: &["isa-device", "device", "object"],
    bus: "ISA",
    category: Category::Input,
    description: "",
    properties: &[PROPERTIES],
    create: Some(create),
};

impl Device for Parallel {
    fn reset(&self, _: ResetKind) {
        Parallel::reset(self);
    }
}

fn create(context: &mut CreateContext<'_>) -> Result<Arc<dyn Device>> {
    let bus = context.bus_object::<IsaBus>()?;
    let handle = match context.properties.str("chardev") {
        Some(id) => Some(context.board.backends.chardev(id, "isa-parallel.chardev")?),
        // The machine's own port may have nothing behind it.
        None if context.user_made => bail!("Can't create parallel device, empty char device"),
        None => None,
    };
    let index = match context.properties.u32("index") {
        u32::MAX => bus.next_parallel(),
        given => given,
    };
    let Some(&port) = LPT_PORTS.get(index as usize) else {
        bail!("Max. supported number of parallel ports is 3.");
    };
    let port = match context.properties.u32("iobase") {
        u32::MAX => port.into(),
        given => given,
    };
    let irq = context.properties.u32("irq");
    let Some(irq_line) = bus.irqs.get(irq as usize) else {
        bail!("Property 'isa-parallel.irq' doesn't take value '{irq}'");
    };
    if port > 0xfff8 {
        bail!("Property 'isa-parallel.iobase' doesn't take value '{port}'");
    }
    context.properties.set("index", index);
    context.properties.set("iobase", port);
    let line = Arc::new(Line::default());
    let parallel = Parallel::new(context.board, port as u16, irq_line.clone(), line.clone());
    // What a printer says is not listened to.
    if let Some(handle) = handle {
        line.connect(handle, || usize::MAX, |_| (), || ());
    }
    context.board.states.register("parallel_isa", parallel.clone());
    Ok(parallel)
}

#[cfg(test)]
mod tests {
    use lockstep_event::Clocks;
    use lockstep_vmstate::vmstate_roundtrip;

    use super::*;

    #[derive(Default)]
    struct Printer(Mutex<Vec<u8>>);

    impl CharSink for Printer {
        fn send(&self, bytes: &[u8]) {
            self.0.lock().extend(bytes);
        }
    }

    fn setup() -> (Board, Arc<Parallel>, Arc<Printer>) {
        let (board, printer) = (Board::new(Clocks::manual()), Arc::new(Printer::default()));
        let port = Parallel::new(&board, 0x378, IrqLine::unconnected(), printer.clone());
        (board, port, printer)
    }

    #[test]
    fn a_strobed_byte_is_printed_once() {
        let (board, _, printer) = setup();
        let ports = &board.port_space;
        for byte in *b"ok" {
            ports.write_u8(0x378, byte);
            ports.write_u8(0x37a, 0x0d);
            ports.write_u8(0x37a, 0x0d);
            assert_eq!(ports.read_u8(0x379) & 0x80, 0, "busy");
            ports.write_u8(0x37a, 0x0c);
            while ports.read_u8(0x379) & 0x80 == 0 {}
        }
        assert_eq!(*printer.0.lock(), b"ok");
        assert_eq!((ports.read_u8(0x378), ports.read_u8(0x37a)), (b'k', 0xcc));
    }

    vmstate_roundtrip!(
        state_survives_the_wire,
        || {
            let (board, port, _) = setup();
            board.port_space.write_u8(0x378, 7);
            board.port_space.write_u8(0x37a, 0x1d);
            port
        },
        || setup().1
    );
}
