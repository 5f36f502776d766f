//! One PCI function: configuration space, BARs, interrupt pin, bus mastering.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU8, Ordering},
};

use lockstep_memory::{AddressSpace, IoHandler, RamBlock, Region, Transaction};
use lockstep_util::Result;
use lockstep_vmstate::LoadError;
use parking_lot::Mutex;

use super::{ConfigSpace, DmaSpace, PciBus, PciDeviceState, command, offset};
use crate::core::{Board, Device, Guarded, IrqLine, IrqSink, ReentrancyGuard};

/// A device on a PCI bus.
pub trait PciDevice: Device {
    /// The function's common part.
    fn function(&self) -> &PciFunction;

    /// A guest reads `len` bytes (1, 2 or 4) of configuration space.
    fn config_read(&self, at: usize, len: usize) -> u32 {
        self.function().config_read(at, len)
    }

    /// A guest writes `len` bytes (1, 2 or 4) of configuration space. Implementors call [`PciFunction::config_write`] and then look
    /// at what they care for.
    fn config_write(&self, at: usize, value: u32, len: usize) {
        self.function().config_write(at, value, len);
    }
}

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciIdentity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class and sub-class, as `0x0200` for Ethernet.
    pub class: u16,
    /// Programming interface.
    pub prog_if: u8,
    /// Subsystem vendor and device.
    pub subsystem: (u16, u16),
    /// Interrupt pin: 0 for none, 1 to 4 for INTA to INTD.
    pub pin: u8,
}

impl PciIdentity {
    /// The subsystem of devices that have none of their own.
    pub const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
}

/// What a base address register maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// The expansion ROM (number 6).
    Rom,
}

/// A base address register as users see it (`info pci`).
#[derive(Clone, Debug)]
pub struct Bar {
    /// 0 to 5, 6 for the ROM.
    pub number: usize,
    /// What it maps.
    pub kind: BarKind,
    /// Size in bytes, a power of two.
    pub size: u64,
    /// Where it is mapped now.
    pub address: Option<u64>,
}

struct BarSlot {
    bar: Bar,
    region: Region,
}

/// The part that all PCI functions have in common. A handle: clones are the same function.
#[derive(Clone)]
pub struct PciFunction {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Weak<PciBus>,
    devfn: u8,
    name: String,
    guard: ReentrancyGuard,
    master_window: Region,
    dma: DmaSpace,
    /// Held while BARs are moved, so that two CPUs' writes end in the map that the registers say.
    state: Mutex<State>,
    irq: Arc<Pin>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A device that could not be finished gives its place back.
        if let Some(bus) = self.bus.upgrade() {
            bus.release_reserved(self.devfn);
        }
    }
}

struct State {
    config: ConfigSpace,
    bars: Vec<BarSlot>,
    multifunction: bool,
}

impl PciFunction {
    /// A function at `devfn` of a bus, which keeps the place for it; `None` takes the next free slot. `name` is the type's.
    ///
    /// # Errors
    /// When the place is taken or no slot is free.
    pub fn new(
        board: &Board,
        bus: &Arc<PciBus>,
        devfn: Option<u8>,
        name: &str,
        identity: &PciIdentity,
        multifunction: bool,
    ) -> Result<Self> {
        let devfn = bus.reserve(devfn, name, multifunction)?;
        let mut config = ConfigSpace::new();
        config.set_u16(offset::VENDOR_ID, identity.vendor);
        config.set_u16(offset::DEVICE_ID, identity.device);
        config.set(offset::REVISION, &[identity.revision, identity.prog_if]);
        config.set_u16(offset::CLASS, identity.class);
        config.set_u16(offset::SUBSYSTEM_VENDOR, identity.subsystem.0);
        config.set_u16(offset::SUBSYSTEM_ID, identity.subsystem.1);
        config.set(offset::INTERRUPT_PIN, &[identity.pin]);
        if multifunction {
            config.set(offset::HEADER_TYPE, &[0x80]);
        }
        let container = Region::whole_space("bus master container");
        let master_window = Region::alias("bus master", &board.memory, 0, u64::MAX);
        master_window.set_enabled(false);
        container.add(0, &master_window);
        let guard = ReentrancyGuard::new();
        let dma = DmaSpace::new(AddressSpace::memory(name, &container), guard.clone());
        let irq = Arc::new(Pin {
            bus: Arc::downgrade(bus),
            devfn,
            pin: identity.pin.saturating_sub(1),
            bits: AtomicU8::new(0),
            order: Mutex::new(()),
        });
        let state = Mutex::new(State { config, bars: vec![], multifunction });
        let inner =
            Inner { bus: Arc::downgrade(bus), devfn, name: name.to_owned(), guard, master_window, dma, state, irq };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Device and function number.
    pub fn devfn(&self) -> u8 {
        self.inner.devfn
    }

    /// Device and function as `SS.F`.
    pub fn slot_text(&self) -> String {
        format!("{:02x}.{:x}", self.inner.devfn >> 3, self.inner.devfn & 7)
    }

    /// The path that prefixes names of sections and RAM blocks: `0000:00:04.0`.
    pub fn bus_path(&self) -> String {
        format!("0000:00:{}", self.slot_text())
    }

    /// The type's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The guard of the device's registers.
    pub fn guard(&self) -> &ReentrancyGuard {
        &self.inner.guard
    }

    /// Memory as the function sees it as a bus master.
    pub fn dma(&self) -> DmaSpace {
        self.inner.dma.clone()
    }

    /// The function's interrupt pin.
    pub fn irq(&self) -> IrqLine {
        IrqLine::new(self.inner.irq.clone(), 0)
    }

    /// Reads or prepares configuration space other than as a guest.
    pub fn with_config<T>(&self, f: impl FnOnce(&mut ConfigSpace) -> T) -> T {
        f(&mut self.inner.state.lock().config)
    }

    /// A copy of the 256 bytes, as the guest reads them.
    pub fn config_bytes(&self) -> [u8; 256] {
        let mut bytes = self.inner.state.lock().config.bytes;
        bytes[offset::STATUS] = self.with_interrupt_status(bytes[offset::STATUS]);
        bytes
    }

    /// Registers BAR `number` with registers behind it, guarded against the device's own DMA.
    pub fn add_io_bar(&self, number: usize, kind: BarKind, name: &str, size: u64, handler: Arc<dyn IoHandler>) {
        self.add_bar(number, kind, &Region::io(name, size, Guarded::new(&self.inner.guard, handler)));
    }

    /// Registers BAR `number` with memory behind it.
    pub fn add_ram_bar(&self, number: usize, prefetchable: bool, name: &str, block: &RamBlock) {
        self.add_bar(number, BarKind::Memory { prefetchable }, &Region::ram(name, block.clone()));
    }

    /// Registers BAR `number`, which is `region`; its size must be a power of two.
    pub fn add_bar(&self, number: usize, kind: BarKind, region: &Region) {
        let size = region.size();
        debug_assert!(size.is_power_of_two() && number <= 6);
        let mut state = self.inner.state.lock();
        let at = bar_offset(number);
        let flags = bar_flags(kind);
        let mask = !(size as u32 - 1) | u32::from(kind == BarKind::Rom);
        state.config.set_u32(at, flags);
        state.config.writable[at..at + 4].copy_from_slice(&mask.to_le_bytes());
        state.config.checked[at..at + 4].fill(0xff);
        let bar = Bar { number, kind, size, address: None };
        state.bars.push(BarSlot { bar, region: region.clone() });
    }

    /// The BARs in use.
    pub fn bars(&self) -> Vec<Bar> {
        let mut bars: Vec<_> = self.inner.state.lock().bars.iter().map(|b| b.bar.clone()).collect();
        bars.sort_by_key(|b| b.number);
        bars
    }

    /// Whether the function says that its slot has several.
    pub fn is_multifunction(&self) -> bool {
        self.inner.state.lock().multifunction
    }

    /// The common part of a guest's read.
    pub fn config_read(&self, at: usize, len: usize) -> u32 {
        let mut value = self.inner.state.lock().config.get(at, len);
        if at <= offset::STATUS && at + len > offset::STATUS {
            let shift = (offset::STATUS - at) * 8;
            let status = self.with_interrupt_status((value >> shift) as u8);
            value = value & !(0xff << shift) | u32::from(status) << shift;
        }
        value
    }

    /// The common part of a guest's write: masks, BARs moved, bus mastering and INTx switched.
    pub fn config_write(&self, at: usize, value: u32, len: usize) {
        let mut state = self.inner.state.lock();
        state.config.guest_write(at, value, len);
        let touches = |from: usize, size: usize| at < from + size && at + len > from;
        if touches(offset::COMMAND, 2) || touches(offset::BAR0, 24) || touches(offset::ROM, 4) {
            self.apply(&mut state);
        }
    }

    /// The common part of a reset: pin low, command and BARs cleared, nothing mapped.
    pub fn reset(&self) {
        self.inner.irq.change(|_| 0);
        let mut state = self.inner.state.lock();
        state.config.reset();
        let flags: Vec<_> = state.bars.iter().map(|b| (bar_offset(b.bar.number), bar_flags(b.bar.kind))).collect();
        for (at, flags) in flags {
            state.config.set_u32(at, flags);
        }
        self.apply(&mut state);
    }

    /// Takes the function off the map and its bus.
    pub fn unplug(&self) {
        self.reset();
        if let Some(bus) = self.inner.bus.upgrade() {
            bus.release(self.inner.devfn);
        }
    }

    /// The state for the device's wire struct.
    pub fn save(&self) -> PciDeviceState {
        let mut irq_state = [0; 4];
        let pin = usize::from(self.inner.irq.pin);
        irq_state[pin & 3] = self.inner.irq.level().into();
        PciDeviceState { version_id: 2, config: self.config_bytes(), irq_state }
    }

    /// Refuses the state of another device.
    ///
    /// # Errors
    /// Naming the first byte that differs.
    pub fn validate(&self, wire: &PciDeviceState) -> Result<(), LoadError> {
        if wire.version_id > 2 {
            return Err(LoadError::invalid("unknown version of the configuration space"));
        }
        let state = self.inner.state.lock();
        let config = &state.config;
        for i in 0..256 {
            let fixed = config.checked[i] & !config.writable[i] & !config.write_1_to_clear[i];
            if (wire.config[i] ^ config.bytes[i]) & fixed != 0 {
                return Err(LoadError::invalid(format!(
                    "Bad config data: i=0x{i:x} read: {:x} device: {:x} cmask: {:x} wmask: {:x} w1cmask:{:x}",
                    wire.config[i], config.bytes[i], config.checked[i], config.writable[i], config.write_1_to_clear[i]
                )));
            }
        }
        if wire.irq_state.iter().any(|&level| level > 1) {
            return Err(LoadError::invalid(format!("Bad irq state: {:x?}", wire.irq_state)));
        }
        Ok(())
    }

    /// Takes validated state over. The level of the pin is only remembered: the bus and the interrupt controllers load theirs.
    pub fn load(&self, wire: &PciDeviceState) {
        let mut state = self.inner.state.lock();
        state.config.bytes = wire.config;
        state.config.bytes[offset::STATUS] &= !STATUS_INTERRUPT;
        let level = wire.irq_state[usize::from(self.inner.irq.pin) & 3] != 0;
        let disabled = state.config.u16(offset::COMMAND) & command::INTX_DISABLE != 0;
        let bits = if level { LEVEL } else { 0 } | if disabled { DISABLED } else { 0 };
        self.inner.irq.bits.store(bits, Ordering::SeqCst);
        self.apply(&mut state);
    }

    fn with_interrupt_status(&self, status: u8) -> u8 {
        if self.inner.irq.level() { status | STATUS_INTERRUPT } else { status & !STATUS_INTERRUPT }
    }

    /// Has the map, bus mastering and the pin follow the registers.
    fn apply(&self, state: &mut State) {
        let Some(bus) = self.inner.bus.upgrade() else { return };
        let command = state.config.u16(offset::COMMAND);
        let _transaction = Transaction::begin();
        self.inner.master_window.set_enabled(command & command::MASTER != 0);
        let config = &state.config;
        for slot in &mut state.bars {
            let address = mapped_address(config, &slot.bar);
            if address == slot.bar.address {
                continue;
            }
            let root = if slot.bar.kind == BarKind::Io { bus.io() } else { bus.memory() };
            if slot.bar.address.is_some() {
                root.remove(&slot.region);
            }
            if let Some(address) = address {
                root.add_overlap(address, &slot.region, 1);
            }
            slot.bar.address = address;
        }
        let disabled = command & command::INTX_DISABLE != 0;
        self.inner.irq.change(|bits| if disabled { bits | DISABLED } else { bits & !DISABLED });
    }
}

const STATUS_INTERRUPT: u8 = 1 << 3;

fn bar_offset(number: usize) -> usize {
    if number == 6 { offset::ROM } else { offset::BAR0 + number * 4 }
}

fn bar_flags(kind: BarKind) -> u32 {
    match kind {
        BarKind::Io => 1,
        BarKind::Memory { prefetchable } => u32::from(prefetchable) << 3,
        BarKind::Rom => 0,
    }
}

/// Where the registers say that a BAR is; `None` when it is off, at 0, or would pass the end.
fn mapped_address(config: &ConfigSpace, bar: &Bar) -> Option<u64> {
    let raw = config.u32(bar_offset(bar.number));
    let enable = if bar.kind == BarKind::Io { command::IO } else { command::MEMORY };
    if config.u16(offset::COMMAND) & enable == 0 || bar.kind == BarKind::Rom && raw & 1 == 0 {
        return None;
    }
    let address = u64::from(raw) & !(bar.size - 1);
    let last = address + bar.size - 1;
    let end = if bar.kind == BarKind::Io { 0xffff } else { 0xffff_fffe };
    (address != 0 && last <= end).then_some(address)
}

const LEVEL: u8 = 1;
const DISABLED: u8 = 2;

/// The interrupt pin.
struct Pin {
    bus: Weak<PciBus>,
    devfn: u8,
    pin: u8,
    bits: AtomicU8,
    /// Held while a change goes on to the bus, so that changes arrive in order.
    order: Mutex<()>,
}

impl Pin {
    fn level(&self) -> bool {
        self.bits.load(Ordering::SeqCst) & LEVEL != 0
    }

    fn change(&self, f: impl Fn(u8) -> u8) {
        let _order = self.order.lock();
        let old = self.bits.load(Ordering::SeqCst);
        let new = f(old);
        if old == new {
            return;
        }
        self.bits.store(new, Ordering::SeqCst);
        let drives = |bits: u8| bits & LEVEL != 0 && bits & DISABLED == 0;
        if drives(old) != drives(new)
            && let Some(bus) = self.bus.upgrade()
        {
            bus.change_level(self.devfn, self.pin, drives(new));
        }
    }
}

impl IrqSink for Pin {
    fn set_irq(&self, _n: u32, level: bool) {
        self.change(|bits| if level { bits | LEVEL } else { bits & !LEVEL });
    }
}
