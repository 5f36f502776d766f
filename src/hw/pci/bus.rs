//! A PCI bus: which functions are on it, and how their interrupt pins are wired.

use std::sync::{Arc, OnceLock};

use lockstep_memory::Region;
use lockstep_util::{Result, bail, err};
use lockstep_vmstate::{LoadError, Snapshot, VmState};
use parking_lot::{Mutex, RwLock};

use super::PciDevice;
use crate::core::IrqLine;

/// The number of interrupt lines of a bus.
const LINES: usize = 4;

#[derive(Clone)]
enum Place {
    Reserved { name: String, multifunction: bool },
    Plugged { name: String, id: Option<String>, device: Arc<dyn PciDevice> },
}

/// Bus 0, the only one.
pub struct PciBus {
    memory: Region,
    io: Region,
    places: RwLock<Vec<Option<Place>>>,
    lines: OnceLock<[IrqLine; LINES]>,
    /// How many functions hold each line up. Locked while a line changes: a leaf but for the lines behind it.
    counts: Mutex<[i32; LINES]>,
}

impl PciBus {
    /// A bus whose BARs appear in `memory` and `io`.
    pub fn new(memory: &Region, io: &Region) -> Arc<Self> {
        Arc::new(Self {
            memory: memory.clone(),
            io: io.clone(),
            places: RwLock::new(vec![None; 256]),
            lines: OnceLock::new(),
            counts: Mutex::default(),
        })
    }

    /// Connects the bus's four lines (PIRQA to PIRQD). Once.
    pub fn connect(&self, lines: [IrqLine; 4]) {
        let fresh = self.lines.set(lines).is_ok();
        debug_assert!(fresh, "a PCI bus was connected twice");
    }

    /// Where memory BARs appear.
    pub fn memory(&self) -> &Region {
        &self.memory
    }

    /// Where I/O BARs appear.
    pub fn io(&self) -> &Region {
        &self.io
    }

    /// Keeps a place for a function that is being made.
    pub(super) fn reserve(&self, devfn: Option<u8>, name: &str, multifunction: bool) -> Result<u8> {
        let mut places = self.places.write();
        let devfn = match devfn {
            None => {
                let free = (0..=255u8).step_by(8).find(|&d| places[usize::from(d)].is_none());
                free.ok_or_else(|| err!("PCI: no slot/function available for {name}, all in use or reserved"))?
            }
            Some(devfn) => {
                let (slot, function) = (devfn >> 3, devfn & 7);
                if let Some(taken) = &places[usize::from(devfn)] {
                    let (by, id) = taken.owner();
                    bail!("PCI: slot {slot} function {function} not available for {name}, in use by {by},id={id}");
                }
                if function != 0
                    && let Some(first) = &places[usize::from(slot << 3)]
                    && !first.is_multifunction()
                {
                    bail!("PCI: single function device can't be populated in function {slot:x}.{function:x}");
                }
                if function == 0 && !multifunction && (1..8).any(|f| places[usize::from(devfn + f)].is_some()) {
                    let other = (1..8).find(|f| places[usize::from(devfn + f)].is_some()).unwrap_or(1);
                    bail!("PCI: {slot:x}.0 indicates single function, but {slot:x}.{other:x} is already populated.");
                }
                devfn
            }
        };
        places[usize::from(devfn)] = Some(Place::Reserved { name: name.to_owned(), multifunction });
        Ok(devfn)
    }

    /// Makes a device visible in the place that its function has.
    pub fn plug(&self, device: Arc<dyn PciDevice>, id: Option<&str>) {
        let (devfn, name) = (device.function().devfn(), device.function().name().to_owned());
        self.places.write()[usize::from(devfn)] = Some(Place::Plugged { name, id: id.map(Into::into), device });
    }

    /// Gives a place up.
    pub fn release(&self, devfn: u8) {
        self.places.write()[usize::from(devfn)] = None;
    }

    /// Gives a place up that no device was plugged into.
    pub(super) fn release_reserved(&self, devfn: u8) {
        let mut places = self.places.write();
        let place = &mut places[usize::from(devfn)];
        if matches!(place, Some(Place::Reserved { .. })) {
            *place = None;
        }
    }

    /// The device at a place.
    pub fn device(&self, devfn: u8) -> Option<Arc<dyn PciDevice>> {
        match &self.places.read()[usize::from(devfn)] {
            Some(Place::Plugged { device, .. }) => Some(device.clone()),
            _ => None,
        }
    }

    /// All devices with the ids that users gave them, by device and function number.
    pub fn devices(&self) -> Vec<(Option<String>, Arc<dyn PciDevice>)> {
        let places = self.places.read();
        places
            .iter()
            .flatten()
            .filter_map(|p| match p {
                Place::Plugged { device, id, .. } => Some((id.clone(), device.clone())),
                Place::Reserved { .. } => None,
            })
            .collect()
    }

    /// Reads configuration space: `address` is bus, device, function and register as port 0xcf8 has them. Ones where nothing is.
    pub fn config_read(&self, address: u32, len: usize) -> u32 {
        match self.target(address) {
            Some(device) => device.config_read((address & 0xff) as usize, len),
            None => u32::MAX >> (32 - len * 8),
        }
    }

    /// Writes configuration space; dropped where nothing is.
    pub fn config_write(&self, address: u32, value: u32, len: usize) {
        if let Some(device) = self.target(address) {
            device.config_write((address & 0xff) as usize, value, len);
        }
    }

    fn target(&self, address: u32) -> Option<Arc<dyn PciDevice>> {
        // There are no bridges: bus 0 is all there is.
        if address >> 16 & 0xff != 0 {
            return None;
        }
        self.device((address >> 8) as u8)
    }

    /// Which of the four lines a pin (0 to 3) of a slot is wired to (the i440FX board's swizzle).
    pub fn line_of(devfn: u8, pin: u8) -> usize {
        usize::from((pin + (devfn >> 3)).wrapping_sub(1) & 3)
    }

    /// A function begins or ends to hold its line up.
    pub(super) fn change_level(&self, devfn: u8, pin: u8, up: bool) {
        let line = Self::line_of(devfn, pin);
        let mut counts = self.counts.lock();
        let before = counts[line];
        counts[line] += if up { 1 } else { -1 };
        // A stream's counts may disagree with its devices' pins.
        counts[line] = counts[line].max(0);
        if (before != 0) != (counts[line] != 0)
            && let Some(lines) = self.lines.get()
        {
            lines[line].set(counts[line] != 0);
        }
    }
}

impl Place {
    fn owner(&self) -> (&str, &str) {
        match self {
            Self::Reserved { name, .. } => (name, "(null)"),
            Self::Plugged { name, id, .. } => (name, id.as_deref().unwrap_or("(null)")),
        }
    }

    fn is_multifunction(&self) -> bool {
        match self {
            Self::Reserved { multifunction, .. } => *multifunction,
            Self::Plugged { device, .. } => device.function().is_multifunction(),
        }
    }
}

/// The section `PCIBUS`.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "PCIBUS", version = 1)]
pub struct PciBusState {
    /// Number of lines: 4.
    #[vmstate(kind = "int32 equal")]
    pub nirq: i32,
    /// How many functions hold each line up.
    pub irq_count: [i32; LINES],
}

impl Snapshot for PciBus {
    type Wire = PciBusState;

    fn snapshot(&self) -> PciBusState {
        PciBusState { nirq: LINES as i32, irq_count: *self.counts.lock() }
    }

    fn validate(&self, wire: &PciBusState) -> Result<(), LoadError> {
        if wire.nirq != LINES as i32 || wire.irq_count.iter().any(|c| !(0..=256).contains(c)) {
            return Err(LoadError::invalid("PCIBUS: impossible interrupt counts"));
        }
        Ok(())
    }

    fn restore(&self, wire: PciBusState) {
        *self.counts.lock() = wire.irq_count;
    }
}
