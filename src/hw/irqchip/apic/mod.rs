//! Local APICs in this process, for engines that are not the kernel's: registers, interprocessor interrupts, the timer.
//!
//! An engine gives each CPU's APIC the accesses to its register page ([`LocalApic::read`]) or its MSRs ([`LocalApic::read_msr`]), takes
//! vectors from it ([`LocalApic::take_vector`]), and implements [`ApicCpu`]. Messages (from the I/O APIC, from devices, between
//! CPUs) go through the [`ApicBus`].

mod regs;
mod text;
mod timer;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock, Weak};

use lockstep_event::{Clock, Clocks, Timer};
use lockstep_memory::{AccessRules, Region};
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub use regs::{ApicRegs, Delivery, Destination, Ipi};
pub use text::text;
pub use vmstate::{ApicState, SipiState};

use super::{MsiSink, ioapic::IoApic, pic::PicPair};
use crate::core::{Board, IrqLine, IrqSink, io_handler};

/// Where messages are written, and where the register page is at first.
pub const APIC_ADDRESS: u64 = 0xfee0_0000;
/// All messages are below this distance from it.
const MESSAGES: u64 = 0x10_0000;
const PAGE: u64 = 0x1000;

/// What a local APIC tells its CPU. Called on any thread; it may be called with locks of interrupt controllers held, so it only notes
/// what is asked and wakes the CPU.
pub trait ApicCpu: Send + Sync {
    /// [`LocalApic::has_interrupt`] may have changed.
    fn interrupts_changed(&self);
    /// A non-maskable interrupt.
    fn nmi(&self);
    /// A system management interrupt.
    fn smi(&self);
    /// INIT: the CPU waits for a start-up message.
    fn init(&self);
    /// A start-up message: the CPU begins at page `vector` if it waits.
    fn start_up(&self, vector: u8);
    /// Whether it waits for one, as its saved state has it.
    fn waits_for_start_up(&self) -> bool {
        false
    }
}

/// A CPU's local APIC.
pub struct LocalApic {
    regs: Mutex<ApicRegs>,
    timer: Timer,
    clocks: Clocks,
    bus: Weak<ApicBus>,
    cpu: OnceLock<Arc<dyn ApicCpu>>,
}

/// All local APICs of a machine.
pub struct ApicBus {
    apics: Vec<Arc<LocalApic>>,
    ioapic: OnceLock<Arc<IoApic>>,
    pic: OnceLock<Arc<PicPair>>,
}

impl ApicBus {
    /// APICs with these ids; the first is the boot CPU's. Messages written to memory at their address are delivered.
    pub fn new(board: &Board, ids: &[u32]) -> Arc<Self> {
        let clocks = &board.clocks;
        let bus = Arc::new_cyclic(|bus: &Weak<Self>| {
            let apic = |(n, &id): (usize, &u32)| {
                Arc::new_cyclic(|this: &Weak<LocalApic>| {
                    let this = this.clone();
                    let timer = clocks.timer(Clock::Virtual, move || {
                        this.upgrade().iter().for_each(|a| a.with(ApicRegs::timer_expired));
                    });
                    LocalApic {
                        regs: Mutex::new(ApicRegs::new(id, n == 0)),
                        timer,
                        clocks: clocks.clone(),
                        bus: bus.clone(),
                        cpu: OnceLock::new(),
                    }
                })
            };
            Self { apics: ids.iter().enumerate().map(apic).collect(), ioapic: OnceLock::new(), pic: OnceLock::new() }
        });
        let writer = Arc::downgrade(&bus);
        let messages = io_handler(
            AccessRules::sizes(4, 4),
            |_, _| 0,
            // The first page is each CPU's own: engines do not let accesses to it come here.
            move |offset, _, value| {
                if let Some(bus) = writer.upgrade().filter(|_| offset >= PAGE) {
                    bus.send_msi(APIC_ADDRESS + offset, value as u32);
                }
            },
        );
        board.memory.add_overlap(APIC_ADDRESS, &Region::io("apic-msi", MESSAGES, messages), 0x1000);
        bus
    }

    /// Connects the other controllers: one hears of ended interrupts, the other gives vectors of its own.
    pub fn connect(&self, ioapic: &Arc<IoApic>, pic: &Arc<PicPair>) {
        let _ = self.ioapic.set(ioapic.clone());
        let _ = self.pic.set(pic.clone());
    }

    /// The APIC of CPU `n`.
    pub fn apic(&self, n: usize) -> Option<&Arc<LocalApic>> {
        self.apics.get(n)
    }

    /// Where the 8259's output goes: LINT0 of all CPUs.
    pub fn lint0(self: &Arc<Self>) -> IrqLine {
        IrqLine::new(self.clone(), 0)
    }

    fn deliver(&self, ipi: &Ipi, from: Option<&LocalApic>) {
        let is_sender = |apic: &LocalApic| from.is_some_and(|f| std::ptr::eq(f, apic));
        let mut targets: Vec<&Arc<LocalApic>> = self
            .apics
            .iter()
            .filter(|a| match ipi.destination {
                Destination::Myself => is_sender(a),
                Destination::All => true,
                Destination::Others => !is_sender(a),
                Destination::Id { .. } => a.regs.lock().is_addressed(&ipi.destination),
            })
            .collect();
        if ipi.delivery == Delivery::LowestPriority {
            targets.sort_by_key(|a| a.regs.lock().processor_priority());
            targets.truncate(1);
        }
        targets.iter().for_each(|a| a.receive(ipi));
    }
}

impl MsiSink for ApicBus {
    fn send_msi(&self, address: u64, data: u32) {
        if let Some(ipi) = Ipi::from_message(address, data) {
            self.deliver(&ipi, None);
        }
    }
}

impl IrqSink for ApicBus {
    fn set_irq(&self, _n: u32, level: bool) {
        self.apics.iter().for_each(|a| a.with(|r, _| r.set_lint0(level)));
    }
}

impl LocalApic {
    /// Gives it its CPU, once.
    pub fn connect(&self, cpu: Arc<dyn ApicCpu>) {
        let _ = self.cpu.set(cpu);
    }

    /// Does something to the registers, then what they ask for, with their lock let go.
    fn with<T>(&self, f: impl FnOnce(&mut ApicRegs, i64) -> T) -> T {
        let (result, effects) = {
            let mut regs = self.regs.lock();
            let now = self.clocks.now_ns(Clock::Virtual);
            let result = f(&mut regs, now);
            if self.timer.deadline() != regs.deadline() {
                match regs.deadline() {
                    Some(at) => self.timer.arm(at),
                    None => self.timer.cancel(),
                }
            }
            (result, regs.take_effects())
        };
        let bus = self.bus.upgrade();
        if let Some(bus) = &bus {
            effects.ipis.iter().for_each(|ipi| bus.deliver(ipi, Some(self)));
            if let (Some(vector), Some(ioapic)) = (effects.ended, bus.ioapic.get()) {
                ioapic.end_of_interrupt(vector);
            }
        }
        if let Some(cpu) = self.cpu.get() {
            if effects.nmi {
                cpu.nmi();
            }
            if effects.changed {
                cpu.interrupts_changed();
            }
        }
        result
    }

    fn receive(&self, ipi: &Ipi) {
        let cpu = self.cpu.get();
        match ipi.delivery {
            Delivery::Fixed | Delivery::LowestPriority => self.with(|r, _| r.request(ipi.vector, ipi.level_triggered)),
            Delivery::Smi => cpu.iter().for_each(|c| c.smi()),
            Delivery::Nmi => cpu.iter().for_each(|c| c.nmi()),
            Delivery::Init => {
                self.with(|r, _| r.init());
                cpu.iter().for_each(|c| c.init());
            }
            Delivery::StartUp => cpu.iter().for_each(|c| c.start_up(ipi.vector)),
            Delivery::External => cpu.iter().for_each(|c| c.interrupts_changed()),
        }
    }

    /// Reads a register of the page: 32 bits at a multiple of 16.
    pub fn read(&self, offset: u64) -> u32 {
        self.with(|r, now| r.read((offset >> 4) as u8, now))
    }

    /// Writes a register of the page.
    pub fn write(&self, offset: u64, value: u32) {
        self.with(|r, now| r.write((offset >> 4) as u8, value, now));
    }

    /// Reads an x2APIC register: `None` for a general protection fault.
    pub fn read_msr(&self, msr: u32) -> Option<u64> {
        self.with(|r, now| r.read_msr(msr, now))
    }

    /// Writes an x2APIC register: false for a general protection fault.
    pub fn write_msr(&self, msr: u32, value: u64) -> bool {
        self.with(|r, now| r.write_msr(msr, value, now))
    }

    /// `IA32_APIC_BASE`.
    pub fn base(&self) -> u64 {
        self.regs.lock().base()
    }

    /// Sets `IA32_APIC_BASE`: false for a general protection fault.
    pub fn set_base(&self, value: u64) -> bool {
        self.with(|r, _| r.set_base(value))
    }

    /// The task priority, as CR8 has it (0 to 15).
    pub fn cr8(&self) -> u8 {
        self.regs.lock().task_priority() >> 4
    }

    /// Sets the task priority from CR8.
    pub fn set_cr8(&self, value: u8) {
        self.with(|r, _| r.set_task_priority(value << 4));
    }

    /// Has the timer interrupt at a time of the virtual clock, in deadline mode: what a write of `IA32_TSC_DEADLINE` comes to. False if the
    /// timer is in another mode.
    pub fn set_deadline(&self, at: Option<i64>) -> bool {
        self.with(|r, _| r.set_deadline(at))
    }

    /// Whether there is an interrupt for the CPU to take when its interrupt flag allows.
    pub fn has_interrupt(&self) -> bool {
        let (own, external) = {
            let regs = self.regs.lock();
            (regs.pending().is_some(), regs.accepts_external())
        };
        own || external && self.external(PicPair::output).unwrap_or(false)
    }

    /// The CPU takes the most urgent interrupt: its vector.
    pub fn take_vector(&self) -> Option<u8> {
        let own = self.with(|r, _| r.acknowledge());
        if own.is_some() {
            return own;
        }
        let external = self.regs.lock().accepts_external();
        self.external(|pic| (external && pic.output()).then(|| pic.acknowledge())).flatten()
    }

    fn external<T>(&self, f: impl FnOnce(&PicPair) -> T) -> Option<T> {
        let bus = self.bus.upgrade()?;
        bus.pic.get().map(|pic| f(pic))
    }

    /// The NMI button (`inject-nmi`): LINT1.
    pub fn inject_nmi(&self) {
        self.with(|r, _| r.pulse_lint1());
    }

    /// Resets it.
    pub fn reset(&self) {
        self.with(|r, _| r.reset());
    }
}

impl Snapshot for LocalApic {
    type Wire = ApicState;

    fn snapshot(&self) -> ApicState {
        let waits = self.cpu.get().is_some_and(|cpu| cpu.waits_for_start_up());
        let sipi = waits.then_some(SipiState { sipi_vector: 0, wait_for_sipi: 1 });
        ApicState { sipi, ..self.regs.lock().save() }
    }

    fn validate(&self, wire: &ApicState) -> Result<(), LoadError> {
        wire.validate()
    }

    fn restore(&self, wire: ApicState) {
        self.with(|r, _| r.load(&wire));
        if let Some(cpu) = self.cpu.get().filter(|_| wire.sipi.is_some_and(|s| s.wait_for_sipi != 0)) {
            cpu.init();
        }
    }
}
