//! Local APICs of software CPUs (Intel SDM volume 3, chapter 11), and the bus that messages to them take.

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicBool, Ordering},
};

use lockstep_cpu::{CpuLink, Platform, request};
use lockstep_event::{Clock, Clocks, Timer};
use lockstep_hw::irqchip::{MsiSink, ioapic::IoApic, pic::PicPair};
use parking_lot::{Mutex, RwLock};

use crate::cpu_state::{ApicState, msr};

/// Offsets of registers in the page (table 11-1).
mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const TMR: u32 = 0x180;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR_LOW: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_ERROR: u32 = 0x370;
    pub const INITIAL_COUNT: u32 = 0x380;
    pub const CURRENT_COUNT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}
const MASKED: u32 = 1 << 16;
const ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;

/// Ways of delivery, of LVT entries, messages and commands.
mod mode {
    pub const FIXED: u32 = 0;
    pub const LOWEST: u32 = 1;
    pub const SMI: u32 = 2;
    pub const NMI: u32 = 4;
    pub const INIT: u32 = 5;
    pub const STARTUP: u32 = 6;
    pub const EXTINT: u32 = 7;
}

/// All local APICs of a machine.
pub struct ApicBus {
    apics: RwLock<Vec<Arc<LocalApic>>>,
    pic_high: AtomicBool,
    controllers: OnceLock<(Arc<PicPair>, Arc<IoApic>)>,
}

/// One local APIC.
pub struct LocalApic {
    id: u32,
    bus: Weak<ApicBus>,
    link: Arc<CpuLink>,
    clocks: Clocks,
    regs: Mutex<Regs>,
    timer: OnceLock<Timer>,
}

struct Regs {
    base: u64,
    page: ApicState,
    /// Virtual time at which the timer was loaded.
    loaded: i64,
    /// TSC deadline in nanoseconds of the virtual clock, 0 if none.
    deadline: u64,
}

impl Regs {
    fn get(&self, at: u32) -> u32 {
        self.page.get(at as usize)
    }
    fn set(&mut self, at: u32, value: u32) {
        self.page.set(at as usize, value);
    }
    fn bit(&mut self, bank: u32, vector: u8, on: bool) {
        let at = bank + u32::from(vector / 32) * 16;
        let mask = 1 << (vector % 32);
        let old = self.get(at);
        self.set(at, if on { old | mask } else { old & !mask });
    }
    fn has(&self, bank: u32, vector: u8) -> bool {
        self.get(bank + u32::from(vector / 32) * 16) & 1 << (vector % 32) != 0
    }
    fn highest(&self, bank: u32) -> Option<u8> {
        (0..8).rev().find_map(|i| {
            let word = self.get(bank + i * 16);
            (word != 0).then(|| (i * 32 + 31 - word.leading_zeros()) as u8)
        })
    }
    /// Processor priority: the higher of task and service.
    fn ppr(&self) -> u32 {
        let (task, service) = (self.get(reg::TPR) & 0xff, self.highest(reg::ISR).map_or(0, u32::from));
        if task >> 4 >= service >> 4 { task } else { service & 0xf0 }
    }
    fn software_enabled(&self) -> bool {
        self.get(reg::SVR) & 1 << 8 != 0
    }
    fn pending(&self) -> Option<u8> {
        if self.base & ENABLED == 0 || !self.software_enabled() {
            return None;
        }
        self.highest(reg::IRR).filter(|&v| u32::from(v) >> 4 > self.ppr() >> 4)
    }
    fn x2apic(&self) -> bool {
        self.base & X2APIC != 0
    }
    /// Whether the 8259's output gets through LINT0, or past an APIC that is off.
    fn takes_pic(&self) -> bool {
        let lvt = self.get(reg::LVT_LINT0);
        self.base & ENABLED == 0 || lvt & MASKED == 0 && lvt >> 8 & 7 == mode::EXTINT
    }
    fn shift(&self) -> u32 {
        let divide = self.get(reg::DIVIDE);
        ((divide & 3 | divide >> 1 & 4) + 1) & 7
    }
}

impl ApicBus {
    /// A bus without APICs.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { apics: RwLock::default(), pic_high: AtomicBool::new(false), controllers: OnceLock::new() })
    }

    pub(super) fn connect(&self, pic: Arc<PicPair>, ioapic: Arc<IoApic>) {
        let _ = self.controllers.set((pic, ioapic));
    }

    pub(super) fn add(self: &Arc<Self>, id: u32, link: Arc<CpuLink>, clocks: &Clocks) -> Arc<LocalApic> {
        let apic = Arc::new(LocalApic {
            id,
            bus: Arc::downgrade(self),
            link,
            clocks: clocks.clone(),
            regs: Mutex::new(Regs { base: 0, page: ApicState::default(), loaded: 0, deadline: 0 }),
            timer: OnceLock::new(),
        });
        let weak = Arc::downgrade(&apic);
        let timer = clocks.timer(Clock::Virtual, move || {
            if let Some(apic) = weak.upgrade() {
                apic.timer_fired();
            }
        });
        let _ = apic.timer.set(timer);
        apic.reset(id == 0);
        self.apics.write().push(apic.clone());
        apic
    }

    /// The 8259's output. A leaf: called with the controller's lock held.
    pub(super) fn set_pic_output(&self, level: bool) {
        let was = self.pic_high.swap(level, Ordering::SeqCst);
        let apics = self.apics.read();
        let Some(first) = apics.first() else { return };
        if level {
            first.link.raise(request::INTERRUPT);
        }
        if level != was {
            first.set_lint0(level);
        }
    }

    /// Delivers a message to those that it is for.
    fn deliver(&self, destination: u32, logical: bool, way: u32, vector: u8, level: bool, broadcast: bool) {
        let apics = self.apics.read();
        let mut targets: Vec<_> = apics.iter().filter(|a| broadcast || a.is_addressed(destination, logical)).collect();
        if way == mode::LOWEST {
            // The one whose processor has the least to do.
            targets.sort_by_key(|a| a.regs.lock().ppr());
            targets.truncate(1);
        }
        for apic in targets {
            apic.accept(way, vector, level);
        }
    }
}

impl MsiSink for ApicBus {
    fn send_msi(&self, address: u64, data: u32) {
        let destination = (address >> 12 & 0xff) as u32;
        let logical = address >> 2 & 1 != 0;
        let level = data >> 15 & 1 != 0;
        self.deliver(destination, logical, data >> 8 & 7, data as u8, level, destination == 0xff);
    }
}

impl LocalApic {
    /// Puts it in its state after power-on.
    pub fn reset(&self, is_bsp: bool) {
        let state = crate::CpuState::reset(self.id, is_bsp, 0);
        self.load(&state.apic, state.msr(msr::APIC_BASE), 0);
    }

    /// The register page, base, and TSC deadline in nanoseconds of the virtual clock.
    pub fn save(&self) -> (ApicState, u64, u64) {
        let regs = self.regs.lock();
        let mut page = regs.page.clone();
        page.set(reg::CURRENT_COUNT as usize, self.current_count(&regs));
        page.set(reg::PPR as usize, regs.ppr());
        (page, regs.base, regs.deadline)
    }

    /// Sets what [`save`](Self::save) gave.
    pub fn load(&self, page: &ApicState, base: u64, deadline: u64) {
        {
            let mut regs = self.regs.lock();
            regs.page = page.clone();
            regs.set(reg::VERSION, 0x0005_0014);
            regs.base = base;
            regs.deadline = deadline;
            let (initial, current) = (regs.get(reg::INITIAL_COUNT), regs.get(reg::CURRENT_COUNT));
            let gone = i64::from(initial.saturating_sub(current)) << regs.shift();
            regs.loaded = self.now() - gone;
            self.arm(&regs);
        }
        self.link.raise(request::INTERRUPT | request::FLUSH);
    }

    fn now(&self) -> i64 {
        self.clocks.now_ns(Clock::Virtual)
    }

    fn is_addressed(&self, destination: u32, logical: bool) -> bool {
        let regs = self.regs.lock();
        if regs.base & ENABLED == 0 {
            return false;
        }
        if !logical {
            return destination == self.id || !regs.x2apic() && destination == 0xff || destination == u32::MAX;
        }
        if regs.x2apic() {
            let ldr = self.id >> 4 << 16 | 1 << (self.id & 15);
            return destination >> 16 == ldr >> 16 && destination & ldr & 0xffff != 0 || destination == u32::MAX;
        }
        let mine = regs.get(reg::LDR) >> 24;
        match regs.get(reg::DFR) >> 28 {
            // Flat, and clusters of four.
            0xf => destination & mine != 0,
            _ => destination >> 4 == mine >> 4 && destination & mine & 15 != 0,
        }
    }

    fn accept(&self, way: u32, vector: u8, level: bool) {
        match way {
            mode::FIXED | mode::LOWEST => {
                {
                    let mut regs = self.regs.lock();
                    if vector < 16 {
                        let esr = regs.get(reg::ESR) | 1 << 6;
                        regs.set(reg::ESR, esr);
                        return;
                    }
                    regs.bit(reg::IRR, vector, true);
                    regs.bit(reg::TMR, vector, level);
                }
                self.link.raise(request::INTERRUPT);
            }
            mode::NMI => self.link.raise(request::NMI),
            mode::INIT => {
                self.init();
                self.link.raise(request::INIT);
            }
            mode::STARTUP => self.link.raise_sipi(vector),
            mode::EXTINT => self.link.raise(request::INTERRUPT),
            mode::SMI => {}
            _ => {}
        }
    }

    /// INIT resets all but the id and the base.
    fn init(&self) {
        let base = self.regs.lock().base;
        let state = crate::CpuState::reset(self.id, base & 0x100 != 0, 0);
        self.load(&state.apic, base, 0);
    }

    fn set_lint0(&self, level: bool) {
        let lvt = self.regs.lock().get(reg::LVT_LINT0);
        if !level || lvt & MASKED != 0 {
            return;
        }
        match lvt >> 8 & 7 {
            mode::FIXED => self.accept(mode::FIXED, lvt as u8, lvt >> 15 & 1 != 0),
            mode::NMI => self.accept(mode::NMI, 0, false),
            _ => {}
        }
    }

    fn current_count(&self, regs: &Regs) -> u32 {
        let initial = u64::from(regs.get(reg::INITIAL_COUNT));
        if initial == 0 || regs.get(reg::LVT_TIMER) >> 17 & 3 == 2 {
            return 0;
        }
        let gone = (self.now() - regs.loaded).max(0) as u64 >> regs.shift();
        if regs.get(reg::LVT_TIMER) >> 17 & 3 == 1 {
            (initial - gone % initial) as u32
        } else {
            initial.saturating_sub(gone) as u32
        }
    }

    /// Sets the timer for what the registers say.
    fn arm(&self, regs: &Regs) {
        let Some(timer) = self.timer.get() else { return };
        let lvt = regs.get(reg::LVT_TIMER);
        let at = match lvt >> 17 & 3 {
            2 => (regs.deadline != 0).then_some(regs.deadline as i64),
            periodic => {
                let period = i64::from(regs.get(reg::INITIAL_COUNT)) << regs.shift();
                let gone = self.now() - regs.loaded;
                match (period, periodic) {
                    (0, _) => None,
                    (_, 1) => Some(regs.loaded + (gone.max(0) / period + 1) * period),
                    _ => (gone < period).then_some(regs.loaded + period),
                }
            }
        };
        match at {
            Some(at) => timer.arm(at),
            None => timer.cancel(),
        }
    }

    fn timer_fired(&self) {
        let lvt = {
            let mut regs = self.regs.lock();
            let lvt = regs.get(reg::LVT_TIMER);
            if lvt >> 17 & 3 == 2 {
                if regs.deadline == 0 {
                    return;
                }
                regs.deadline = 0;
            }
            self.arm(&regs);
            lvt
        };
        if lvt & MASKED == 0 {
            self.accept(mode::FIXED, lvt as u8, false);
        }
    }

    fn read(&self, at: u32) -> u32 {
        let regs = self.regs.lock();
        match at {
            reg::PPR => regs.ppr(),
            reg::CURRENT_COUNT => self.current_count(&regs),
            reg::ID if regs.x2apic() => self.id,
            reg::LDR if regs.x2apic() => self.id >> 4 << 16 | 1 << (self.id & 15),
            reg::EOI | reg::SELF_IPI => 0,
            _ => regs.get(at),
        }
    }

    fn write(&self, at: u32, value: u32) {
        let mut regs = self.regs.lock();
        match at {
            reg::ID => regs.set(at, value & 0xff00_0000),
            reg::TPR => {
                regs.set(at, value & 0xff);
                drop(regs);
                self.link.raise(request::INTERRUPT);
            }
            reg::EOI => {
                drop(regs);
                self.end_of_interrupt();
            }
            reg::LDR => regs.set(at, value & 0xff00_0000),
            reg::DFR => regs.set(at, value | 0x0fff_ffff),
            reg::SVR => {
                regs.set(at, value & 0x1ff);
                if value & 1 << 8 == 0 {
                    for lvt in (reg::LVT_TIMER..=reg::LVT_ERROR).step_by(16) {
                        let masked = regs.get(lvt) | MASKED;
                        regs.set(lvt, masked);
                    }
                }
                drop(regs);
                self.link.raise(request::INTERRUPT);
            }
            reg::ESR => regs.set(at, 0),
            reg::ICR_LOW => {
                regs.set(at, value & !(1 << 12));
                let destination = regs.get(reg::ICR_HIGH);
                let destination = if regs.x2apic() { destination } else { destination >> 24 };
                let all = regs.x2apic() && destination == u32::MAX || !regs.x2apic() && destination == 0xff;
                drop(regs);
                self.send(value, destination, all);
            }
            reg::ICR_HIGH => regs.set(at, value),
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                let mut value = value & if at == reg::LVT_TIMER { 0x7_00ff } else { 0x1_a7ff };
                if !regs.software_enabled() {
                    value |= MASKED;
                }
                let was = regs.get(at);
                regs.set(at, value);
                if at == reg::LVT_TIMER {
                    if (was ^ value) >> 17 & 3 != 0 && (value >> 17 & 3 == 2 || was >> 17 & 3 == 2) {
                        regs.deadline = 0;
                        regs.set(reg::INITIAL_COUNT, 0);
                    }
                    self.arm(&regs);
                } else if at == reg::LVT_LINT0 {
                    drop(regs);
                    self.link.raise(request::INTERRUPT);
                }
            }
            reg::INITIAL_COUNT => {
                if regs.get(reg::LVT_TIMER) >> 17 & 3 != 2 {
                    regs.set(at, value);
                    regs.loaded = self.now();
                    self.arm(&regs);
                }
            }
            reg::DIVIDE => {
                let count = self.current_count(&regs);
                let initial = regs.get(reg::INITIAL_COUNT);
                regs.set(at, value & 0xb);
                regs.loaded = self.now() - (i64::from(initial.saturating_sub(count)) << regs.shift());
                self.arm(&regs);
            }
            reg::SELF_IPI => {
                drop(regs);
                self.accept(mode::FIXED, value as u8, false);
            }
            _ => {}
        }
    }

    fn send(&self, command: u32, destination: u32, all: bool) {
        let Some(bus) = self.bus.upgrade() else { return };
        let (way, vector, level) = (command >> 8 & 7, command as u8, command >> 15 & 1 != 0);
        // INIT level de-assert concerns arbitration only, which there is none of.
        if way == mode::INIT && level && command & 1 << 14 == 0 {
            return;
        }
        match command >> 18 & 3 {
            0 => bus.deliver(destination, command >> 11 & 1 != 0, way, vector, false, all),
            1 => self.accept(way, vector, false),
            shorthand => {
                for apic in bus.apics.read().iter().filter(|a| shorthand == 2 || a.id != self.id) {
                    apic.accept(way, vector, false);
                }
            }
        }
    }

    fn end_of_interrupt(&self) {
        let ended = {
            let mut regs = self.regs.lock();
            let Some(vector) = regs.highest(reg::ISR) else { return };
            regs.bit(reg::ISR, vector, false);
            regs.has(reg::TMR, vector).then_some(vector)
        };
        if let (Some(vector), Some(bus)) = (ended, self.bus.upgrade())
            && let Some((_, ioapic)) = bus.controllers.get()
        {
            ioapic.end_of_interrupt(vector);
        }
        self.link.raise(request::INTERRUPT);
    }

    fn pic_waits(&self) -> bool {
        self.id == 0
            && self.bus.upgrade().is_some_and(|b| b.pic_high.load(Ordering::SeqCst))
            && self.regs.lock().takes_pic()
    }

    /// The registers that x2APIC mode has as MSRs (table 11-6).
    fn register_of_msr(index: u32) -> Option<u32> {
        (0x800..0x840).contains(&index).then(|| (index - 0x800) * 16)
    }
}

impl Platform for LocalApic {
    fn interrupt_pending(&self) -> bool {
        self.regs.lock().pending().is_some() || self.pic_waits()
    }

    fn take_interrupt(&self) -> Option<u8> {
        {
            let mut regs = self.regs.lock();
            if let Some(vector) = regs.pending() {
                regs.bit(reg::IRR, vector, false);
                regs.bit(reg::ISR, vector, true);
                return Some(vector);
            }
        }
        if !self.pic_waits() {
            return None;
        }
        let bus = self.bus.upgrade()?;
        let (pic, _) = bus.controllers.get()?;
        Some(pic.acknowledge())
    }

    fn task_priority(&self) -> u8 {
        (self.regs.lock().get(reg::TPR) >> 4 & 15) as u8
    }

    fn set_task_priority(&self, value: u8) {
        self.write(reg::TPR, u32::from(value) << 4);
    }

    fn read_msr(&self, index: u32) -> Option<u64> {
        match index {
            msr::APIC_BASE => Some(self.regs.lock().base),
            msr::TSC_DEADLINE => Some(self.regs.lock().deadline),
            _ => {
                let at = Self::register_of_msr(index)?;
                if !self.regs.lock().x2apic() {
                    return None;
                }
                match at {
                    reg::ICR_LOW => Some(u64::from(self.read(reg::ICR_HIGH)) << 32 | u64::from(self.read(at))),
                    reg::ICR_HIGH | reg::DFR | reg::EOI | reg::SELF_IPI => None,
                    _ => Some(self.read(at).into()),
                }
            }
        }
    }

    fn write_msr(&self, index: u32, value: u64) -> bool {
        match index {
            msr::APIC_BASE => {
                let mut regs = self.regs.lock();
                // From xAPIC to x2APIC and off; never from x2APIC back, nor x2APIC without being enabled.
                let (old, new) = (regs.base & (ENABLED | X2APIC), value & (ENABLED | X2APIC));
                if new == X2APIC || old == ENABLED | X2APIC && new == ENABLED || value & 0x2ff != 0 {
                    return false;
                }
                regs.base = value & 0xf_ffff_f000 | new | regs.base & 0x100;
                if new & X2APIC != 0 {
                    regs.set(reg::ID, self.id);
                } else if old & X2APIC != 0 {
                    regs.set(reg::ID, self.id << 24);
                }
                true
            }
            msr::TSC_DEADLINE => {
                let mut regs = self.regs.lock();
                if regs.get(reg::LVT_TIMER) >> 17 & 3 == 2 {
                    regs.deadline = value;
                    self.arm(&regs);
                }
                true
            }
            _ => {
                let Some(at) = Self::register_of_msr(index) else { return false };
                if !self.regs.lock().x2apic() {
                    return false;
                }
                match at {
                    reg::ICR_LOW => {
                        self.regs.lock().set(reg::ICR_HIGH, (value >> 32) as u32);
                        self.write(at, value as u32);
                    }
                    reg::ID | reg::VERSION | reg::LDR | reg::DFR | reg::ICR_HIGH | reg::CURRENT_COUNT | reg::PPR => {
                        return false;
                    }
                    _ => self.write(at, value as u32),
                }
                true
            }
        }
    }

    fn read_apic(&self, offset: u32) -> u32 {
        self.read(offset)
    }

    fn write_apic(&self, offset: u32, value: u32) {
        self.write(offset, value);
    }

    fn apic_base(&self) -> u64 {
        self.regs.lock().base
    }

    fn tsc(&self) -> u64 {
        self.now() as u64
    }

    fn ferr(&self) {
        // Interrupt 13 of the 8259 pair.
        if let Some(bus) = self.bus.upgrade()
            && let Some((pic, _)) = bus.controllers.get()
        {
            use lockstep_hw::core::IrqSink;
            pic.set_irq(13, true);
            pic.set_irq(13, false);
        }
    }
}
