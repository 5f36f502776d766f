//! Small pieces that a machine is put together with.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use lockstep_util::{Result, bail};

use crate::core::{
    Board, BusNode, Device, DeviceNode, DeviceType, IrqLine, PropertyInput, PropertySet, QomParent, ResetKind,
    plug_device,
};

/// What a device on the ISA bus finds: `bus_object::<IsaBus>()`.
pub struct IsaBus {
    /// The ISA interrupts.
    pub irqs: [IrqLine; 16],
    serials: AtomicU32,
    parallels: AtomicU32,
}

impl IsaBus {
    /// A bus with these interrupts.
    pub fn new(irqs: [IrqLine; 16]) -> Arc<Self> {
        Arc::new(Self { irqs, serials: AtomicU32::new(0), parallels: AtomicU32::new(0) })
    }

    /// The number of the next serial port that has none of its own.
    pub fn next_serial(&self) -> u32 {
        self.serials.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of the next parallel port that has none of its own.
    pub fn next_parallel(&self) -> u32 {
        self.parallels.fetch_add(1, Ordering::Relaxed)
    }
}

/// A device of the board as the tree shows it, made of functions.
pub(super) struct BoardDevice {
    reset: Box<dyn Fn(ResetKind) + Send + Sync>,
    lines: Vec<String>,
    buses: Vec<Arc<BusNode>>,
}

impl BoardDevice {
    pub(super) fn new(reset: impl Fn(ResetKind) + Send + Sync + 'static) -> Self {
        Self { reset: Box::new(reset), lines: vec![], buses: vec![] }
    }

    pub(super) fn with_line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    pub(super) fn with_bus(mut self, bus: &Arc<BusNode>) -> Self {
        self.buses.push(bus.clone());
        self
    }
}

impl Device for BoardDevice {
    fn reset(&self, kind: ResetKind) {
        (self.reset)(kind);
    }

    fn buses(&self) -> Vec<Arc<BusNode>> {
        self.buses.clone()
    }

    fn qtree_lines(&self) -> Vec<String> {
        self.lines.clone()
    }
}

/// A device with buses of its own.
pub(super) struct WithBuses(pub(super) Arc<dyn Device>, pub(super) Vec<Arc<BusNode>>);

impl Device for WithBuses {
    fn reset(&self, kind: ResetKind) {
        self.0.reset(kind);
    }

    fn buses(&self) -> Vec<Arc<BusNode>> {
        self.1.clone()
    }

    fn qtree_lines(&self) -> Vec<String> {
        self.0.qtree_lines()
    }
}

/// The properties of one of the board's devices: defaults, `-global`, then what the machine settles.
///
/// # Errors
/// For a `-global` that does not fit.
pub(super) fn properties(board: &Board, kind: &'static DeviceType, settled: &[(&str, String)]) -> Result<PropertySet> {
    let globals = board.globals.of(kind.name, kind.parents);
    let settled: Vec<_> =
        settled.iter().map(|(name, value)| ((*name).to_owned(), PropertyInput::Text(value.clone()))).collect();
    // What the machine settles comes first, so that a user's `-global` wins.
    let mut set = PropertySet::resolve(kind.name, kind.properties(), &[], &settled)?;
    let given = PropertySet::resolve(kind.name, kind.properties(), &globals, &[])?;
    for property in kind.properties().filter(|p| given.is_given(p.name)) {
        let (name, value) = (property.name, given.get(property.name));
        if !CHANGEABLE.contains(&(kind.name, name)) && value != set.get(name) {
            bail!("Property '{}.{name}' can't be changed on this machine", kind.name);
        }
        if let Some(value) = value {
            set.set(name, value.clone());
        }
    }
    Ok(set)
}

/// Properties of the board's devices that `-global` changes.
const CHANGEABLE: [(&str, &str); 4] =
    [("PIIX4_PM", "disable_s3"), ("PIIX4_PM", "disable_s4"), ("PIIX4_PM", "s4_val"), ("PIIX4_PM", "smb_io_base")];

/// Puts one of the board's devices into the tree and the reset.
pub(super) fn plug(
    board: &Board,
    kind: &'static DeviceType,
    bus: &Arc<BusNode>,
    place: QomParent,
    device: Arc<dyn Device>,
    properties: PropertySet,
) -> Arc<DeviceNode> {
    let path = match place {
        QomParent::At(path) => path,
        QomParent::User | QomParent::Unattached => board.tree.next_unattached(),
    };
    plug_device(board, kind, None, path, bus, device, properties, false)
}
