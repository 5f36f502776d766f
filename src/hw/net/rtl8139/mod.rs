//! The network card RTL8139 (an RTL8139C+): registers, its four ways to send and receive, its place on the PCI bus.

mod descriptor;
mod eeprom;
mod offload;
mod regs;
mod rx;
mod tx;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use lockstep_event::{Clock, Clocks, Timer};
use lockstep_memory::{AccessRules, RamBlock, Region};
use lockstep_net::{NetPeer, NicReceiver};
use lockstep_util::Result;
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::{Mutex, MutexGuard};

pub use vmstate::Rtl8139State;

use super::Cable;
use crate::{
    core::{
        Board, Category, CreateContext, Device, DeviceType, Guarded, IrqLine, NicUser, Property, PropertyKind,
        ResetKind, io_handler,
    },
    pci::{
        BarKind, DmaSpace, PCI_DEVICE_PROPERTIES, PCI_PARENTS, PciBus, PciDevice, PciFunction, PciIdentity, PciPlace,
        add_option_rom,
    },
};
use regs::{Action, Regs};

const IDENTITY: PciIdentity = PciIdentity {
    vendor: 0x10ec,
    device: 0x8139,
    revision: regs::PCI_REVISION,
    class: 0x0200,
    prog_if: 0,
    subsystem: PciIdentity::SUBSYSTEM,
    pin: 1,
};

const PROPERTIES: &[Property] = &[
    Property::unset("mac", PropertyKind::Mac),
    Property::unset("netdev", PropertyKind::Netdev),
    Property::unset("bootindex", PropertyKind::I32).hidden(),
    Property::new("romfile", PropertyKind::Str, "efi-rtl8139.rom"),
];

/// The type.
pub static RTL8139: DeviceType = DeviceType {
    name: "rtl8139",
    alias: None,
    parents: PCI_PARENTS,
    bus: "PCI",
    category: Category::Network,
    description: "",
    properties: &[PROPERTIES, PCI_DEVICE_PROPERTIES],
    create: Some(create),
};

fn create(context: &mut CreateContext<'_>) -> Result<Arc<dyn Device>> {
    let place = PciPlace::of(context)?;
    let (netdev, mac) = (context.properties.str("netdev").map(str::to_owned), context.properties.mac("mac"));
    let user = NicUser { id: context.id.map(str::to_owned), model: "rtl8139", mac, netdev };
    let nic = context.board.backends.nic(&user)?;
    let release = |e| {
        context.board.backends.release_nic(&nic.peer);
        e
    };
    let card = Rtl8139::new(context.board, &place.bus, place.devfn, place.multifunction, nic.mac).map_err(release)?;
    let _ = card.peer.set(nic.peer.clone());
    match add_option_rom(context.board, card.function(), context.properties, "rtl8139") {
        Ok(rom) => _ = card.rom.set(rom),
        Err(e) => {
            card.unplug()?;
            return Err(e);
        }
    }
    context.properties.set("mac", lockstep_net::format_mac(&nic.mac));
    card.connect(Arc::new(nic.peer.clone()));
    if !nic.peer.is_link_up() {
        card.regs.lock().start_without_link();
    }
    let receiver: Arc<dyn NicReceiver> = card.clone();
    nic.peer.connect(Arc::downgrade(&receiver));
    place.plug(context, card.clone());
    Ok(card)
}

/// The card.
pub struct Rtl8139 {
    function: PciFunction,
    dma: DmaSpace,
    irq: IrqLine,
    clocks: Clocks,
    timer: Timer,
    regs: Mutex<Regs>,
    /// Held while a frame is received; what it is put together in.
    rx_buffer: Mutex<Vec<u8>>,
    /// Held while the C+ ring is sent.
    assembly: Mutex<tx::Assembly>,
    transmitting: Turn,
    /// A frame waits for room.
    stalled: AtomicBool,
    cable: OnceLock<Arc<dyn Cable>>,
    /// What is given back when the card is unplugged.
    peer: OnceLock<NetPeer>,
    rom: OnceLock<Option<RamBlock>>,
    section: OnceLock<u32>,
    board: Board,
}

impl Rtl8139 {
    /// The card at `devfn` of a bus (`None`: the next free slot). Registers its section.
    ///
    /// # Errors
    /// When the place is taken.
    pub fn new(
        board: &Board,
        bus: &Arc<PciBus>,
        devfn: Option<u8>,
        multifunction: bool,
        mac: [u8; 6],
    ) -> Result<Arc<Self>> {
        let function = PciFunction::new(board, bus, devfn, "rtl8139", &IDENTITY, multifunction)?;
        // The data sheet has a capability pointer without any capability behind it.
        function.with_config(|c| c.set(crate::pci::offset::CAPABILITIES, &[0xdc]));
        let card = Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let expired = move || {
                if let Some(card) = me.upgrade() {
                    card.timer_expired();
                }
            };
            Self {
                dma: function.dma(),
                irq: function.irq(),
                clocks: board.clocks.clone(),
                timer: board.clocks.timer(Clock::Virtual, expired),
                regs: Mutex::new(Regs::new(mac)),
                rx_buffer: Mutex::default(),
                assembly: Mutex::default(),
                transmitting: Turn::default(),
                stalled: AtomicBool::new(false),
                cable: OnceLock::new(),
                peer: OnceLock::new(),
                rom: OnceLock::new(),
                section: OnceLock::new(),
                board: board.clone(),
                function,
            }
        });
        let (reader, writer) = (card.clone(), card.clone());
        let handler = io_handler(
            AccessRules::default(),
            move |at, size| reader.read(at, size),
            move |at, size, value| writer.write(at, size, value),
        );
        let registers = Region::io("rtl8139", 256, Guarded::new(card.function.guard(), handler));
        card.function.add_bar(0, BarKind::Io, &registers);
        let alias = Region::alias("rtl8139-mem", &registers, 0, 256);
        card.function.add_bar(1, BarKind::Memory { prefetchable: false }, &alias);
        let section = board.states.register(&format!("{}/rtl8139", card.function.bus_path()), card.clone());
        let _ = card.section.set(section);
        Ok(card)
    }

    /// Plugs the cable in.
    pub fn connect(&self, cable: Arc<dyn Cable>) {
        let _ = self.cable.set(cable);
    }

    /// Whether a frame would be taken now.
    pub fn can_receive(&self) -> bool {
        let can = self.regs.lock().can_receive();
        if !can {
            self.stalled.store(true, Ordering::SeqCst);
            // Room that was made just before the note would never be told of.
            return self.regs.lock().can_receive();
        }
        can
    }

    /// Takes a frame; false when it has to wait for room.
    pub fn receive(&self, frame: &[u8]) -> bool {
        self.receive_frame(frame, true)
    }

    /// The cable is plugged in or pulled out.
    pub fn set_link(&self, up: bool) {
        let mut regs = self.regs.lock();
        regs.set_link(up);
        self.update_irq(&regs);
    }

    /// The hardware address that it listens to, which the guest may have changed.
    pub fn station_address(&self) -> [u8; 6] {
        self.regs.lock().phys
    }

    fn now(&self) -> i64 {
        self.clocks.now_ns(Clock::Virtual)
    }

    fn update_irq(&self, regs: &MutexGuard<'_, Regs>) {
        self.irq.set(regs.irq());
    }

    fn read(&self, at: u64, size: u32) -> u64 {
        let now = self.now();
        self.regs.lock().read(at as u8, size, now).into()
    }

    fn write(&self, at: u64, size: u32, value: u64) {
        let now = self.now();
        let mut regs = self.regs.lock();
        let action = regs.write(at as u8, size, value as u32, now);
        if action == Some(Action::Timer) {
            self.set_timer(&regs, now);
        }
        self.update_irq(&regs);
        let room = matches!(action, Some(Action::Room | Action::Timer)) && regs.can_receive();
        drop(regs);
        match action {
            Some(Action::Transmit) => self.transmit(),
            Some(Action::TransmitRing) => self.transmit_ring(),
            Some(Action::DumpTally(address)) => {
                let dump = self.regs.lock().tally.dump();
                let _ = self.dma.write(address, &dump);
                self.regs.lock().tally_dumped();
            }
            Some(Action::Timer | Action::Room) | None => {}
        }
        if room && self.stalled.swap(false, Ordering::SeqCst) {
            self.cable().inspect(|c| c.flush_queued());
        }
    }

    fn cable(&self) -> Option<&Arc<dyn Cable>> {
        self.cable.get()
    }

    fn set_timer(&self, regs: &MutexGuard<'_, Regs>, now: i64) {
        match regs.timer_deadline(now) {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.cancel(),
        }
    }

    fn timer_expired(&self) {
        let now = self.now();
        let mut regs = self.regs.lock();
        regs.timer_expired();
        self.update_irq(&regs);
        // The next time is a turn of the counter later.
        self.set_timer(&regs, now.saturating_add(1));
    }
}

impl Device for Rtl8139 {
    fn reset(&self, _: ResetKind) {
        let now = self.now();
        let mut regs = self.regs.lock();
        regs.reset();
        self.set_timer(&regs, now);
        self.update_irq(&regs);
        drop(regs);
        self.function.reset();
        self.stalled.store(false, Ordering::SeqCst);
        self.cable().inspect(|c| c.purge_queued());
    }

    fn unplug(&self) -> Result<()> {
        self.timer.cancel();
        self.function.unplug();
        self.section.get().inspect(|id| self.board.states.unregister(**id));
        self.rom.get().and_then(Option::as_ref).inspect(|rom| self.board.ram.remove(rom));
        self.peer.get().inspect(|peer| self.board.backends.release_nic(peer));
        Ok(())
    }
}

impl NicReceiver for Rtl8139 {
    fn can_receive(&self) -> bool {
        Self::can_receive(self)
    }

    fn receive(&self, frame: &[u8]) -> bool {
        Self::receive(self, frame)
    }

    fn set_link(&self, up: bool) {
        Self::set_link(self, up);
    }
}

impl PciDevice for Rtl8139 {
    fn function(&self) -> &PciFunction {
        &self.function
    }
}

impl Snapshot for Rtl8139 {
    type Wire = Rtl8139State;

    fn snapshot(&self) -> Rtl8139State {
        let parent = self.function.save();
        Rtl8139State::save(parent, &self.regs.lock(), self.now())
    }

    fn validate(&self, wire: &Rtl8139State) -> std::result::Result<(), LoadError> {
        self.function.validate(&wire.parent_obj)?;
        wire.check()
    }

    fn restore(&self, wire: Rtl8139State) {
        self.function.load(&wire.parent_obj);
        let now = self.now();
        let mut regs = self.regs.lock();
        wire.load(&mut regs);
        self.set_timer(&regs, now);
        self.stalled.store(true, Ordering::SeqCst);
    }
}

/// Whose turn it is to do a work that several threads may ask for.
#[derive(Default)]
struct Turn(AtomicU8);

const IDLE: u8 = 0;
const BUSY: u8 = 1;
const AGAIN: u8 = 2;

impl Turn {
    /// Whether the caller is to do the work; otherwise whoever does it looks again.
    fn begin(&self) -> bool {
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |s| Some(if s == IDLE { BUSY } else { AGAIN }))
            == Ok(IDLE)
    }

    /// Whether the work is over; otherwise somebody asked meanwhile.
    fn end(&self) -> bool {
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |s| Some(if s == AGAIN { BUSY } else { IDLE }))
            == Ok(BUSY)
    }
}
