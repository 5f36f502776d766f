//! Registers of a local APIC (Intel SDM volume 3, chapter 11).

use super::{timer::ApicTimer, vmstate::ApicState};

const ID: u8 = 0x02;
const VERSION: u8 = 0x03;
const TPR: u8 = 0x08;
const APR: u8 = 0x09;
const PPR: u8 = 0x0a;
const EOI: u8 = 0x0b;
const LDR: u8 = 0x0d;
const DFR: u8 = 0x0e;
const SVR: u8 = 0x0f;
const ISR: u8 = 0x10;
const TMR: u8 = 0x18;
const IRR: u8 = 0x20;
const ESR: u8 = 0x28;
const ICR_LOW: u8 = 0x30;
const ICR_HIGH: u8 = 0x31;
const LVT: u8 = 0x32;
const LVT_LAST: u8 = 0x37;
const INITIAL_COUNT: u8 = 0x38;
const CURRENT_COUNT: u8 = 0x39;
const DIVIDE: u8 = 0x3e;
const SELF_IPI: u8 = 0x3f;

/// An integrated APIC with six local vectors.
const VERSION_VALUE: u32 = 0x0005_0014;

/// Places in the local vector table.
const LVT_TIMER: usize = 0;
const LVT_LINT0: usize = 3;
const LVT_LINT1: usize = 4;
const LVT_ERROR: usize = 5;
pub(super) const LVT_MASKED: u32 = 1 << 16;
const LVT_LEVEL: u32 = 1 << 15;
const LVT_DELIVERY: u32 = 0x700;
/// Bits that can be written, by place.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

const SVR_ENABLED: u32 = 1 << 8;
const SVR_WRITABLE: u32 = 0x3ff;
const ERROR_SEND_VECTOR: u32 = 1 << 5;
const ERROR_RECEIVE_VECTOR: u32 = 1 << 6;
const ICR_PENDING: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_LEVEL: u32 = 1 << 15;

const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
const FLAT: u8 = 0x0f;
/// Vectors below this are the CPU's exceptions.
const FIRST_VECTOR: u8 = 16;

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// An interrupt with a vector.
    Fixed,
    /// The same, for one of the CPUs addressed.
    LowestPriority,
    /// A system management interrupt.
    Smi,
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up.
    StartUp,
    /// An interrupt whose vector the 8259 gives.
    External,
}

impl Delivery {
    fn from_bits(bits: u32) -> Option<Self> {
        match bits >> 8 & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            7 => Some(Self::External),
            _ => None,
        }
    }
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// An APIC id or a logical address.
    Id {
        /// The number.
        id: u32,
        /// Whether it is a logical address.
        logical: bool,
        /// Whether it has 8 bits, of which all ones mean everybody.
        short: bool,
    },
    /// The sender.
    Myself,
    /// Everybody.
    All,
    /// Everybody but the sender.
    Others,
}

/// A message between local APICs, or to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// The vector, if it has one.
    pub vector: u8,
    /// What it does.
    pub delivery: Delivery,
    /// Whom it is for.
    pub destination: Destination,
    /// Whether the sender awaits an end-of-interrupt message.
    pub level_triggered: bool,
}

impl Ipi {
    /// Decodes a message signalled interrupt (section 11.11); `None` for a reserved form.
    pub fn from_message(address: u64, data: u32) -> Option<Self> {
        let destination = Destination::Id { id: (address >> 12 & 0xff) as u32, logical: address & 4 != 0, short: true };
        let delivery = Delivery::from_bits(data)?;
        Some(Self { vector: data as u8, delivery, destination, level_triggered: data & ICR_LEVEL != 0 })
    }
}

/// What is to be done once the registers' lock is let go.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Effects {
    pub(super) ipis: Vec<Ipi>,
    /// A level triggered vector whose service has ended.
    pub(super) ended: Option<u8>,
    pub(super) nmi: bool,
    pub(super) changed: bool,
}

/// One bit a vector.
type Vectors = [u32; 8];

fn set(bits: &mut Vectors, vector: u8) {
    bits[usize::from(vector >> 5)] |= 1 << (vector & 31);
}

fn clear(bits: &mut Vectors, vector: u8) {
    bits[usize::from(vector >> 5)] &= !(1 << (vector & 31));
}

fn test(bits: &Vectors, vector: u8) -> bool {
    bits[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
}

fn highest(bits: &Vectors) -> Option<u8> {
    let word = bits.iter().rposition(|&w| w != 0)?;
    Some((word as u32 * 32 + 31 - bits[word].leading_zeros()) as u8)
}

/// The registers.
#[derive(Debug)]
pub struct ApicRegs {
    id: u32,
    base: u64,
    tpr: u8,
    logical_id: u8,
    format: u8,
    svr: u32,
    in_service: Vectors,
    level: Vectors,
    requests: Vectors,
    lvt: [u32; 6],
    errors: u32,
    latched_errors: u32,
    icr: [u32; 2],
    timer: ApicTimer,
    lint0: bool,
    effects: Effects,
}

impl ApicRegs {
    pub(super) fn new(id: u32, boots: bool) -> Self {
        let mut regs = Self {
            id,
            base: super::APIC_ADDRESS | BASE_ENABLED | if boots { BASE_BSP } else { 0 },
            tpr: 0,
            logical_id: 0,
            format: FLAT,
            svr: 0xff,
            in_service: [0; 8],
            level: [0; 8],
            requests: [0; 8],
            lvt: [LVT_MASKED; 6],
            errors: 0,
            latched_errors: 0,
            icr: [0; 2],
            timer: ApicTimer::default(),
            lint0: false,
            effects: Effects::default(),
        };
        if boots {
            // The wiring of a PC: the 8259 reaches the boot CPU before its APIC is set up.
            regs.lvt[LVT_LINT0] = 0x700;
        }
        regs
    }

    pub(super) fn reset(&mut self) {
        let lint0 = self.lint0;
        *self = Self { lint0, ..Self::new(self.id, self.base & BASE_BSP != 0) };
        self.effects.changed = true;
    }

    /// INIT resets all but the base and the id.
    pub(super) fn init(&mut self) {
        let base = self.base;
        self.reset();
        self.base = base;
    }

    pub(super) fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    pub(super) fn deadline(&self) -> Option<i64> {
        self.timer.deadline()
    }

    fn x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    fn enabled(&self) -> bool {
        self.base & BASE_ENABLED != 0 && self.svr & SVR_ENABLED != 0
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn set_base(&mut self, value: u64) -> bool {
        let mode = |base: u64| (base & BASE_ENABLED != 0, base & BASE_X2APIC != 0);
        match (mode(self.base), mode(value)) {
            // x2APIC mode needs the APIC on, and is left only by turning it off (figure 11-27).
            (_, (false, true)) | ((_, true), (true, false)) | ((false, _), (true, true)) => return false,
            _ => {}
        }
        self.base = value & 0xf_ffff_fc00 | self.base & BASE_BSP;
        if value & BASE_ENABLED == 0 {
            self.svr &= !SVR_ENABLED;
        }
        self.effects.changed = true;
        true
    }

    pub(super) fn task_priority(&self) -> u8 {
        self.tpr
    }

    pub(super) fn set_task_priority(&mut self, value: u8) {
        self.tpr = value;
        self.effects.changed = true;
    }

    pub(super) fn processor_priority(&self) -> u8 {
        let service = highest(&self.in_service).unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= service { self.tpr } else { service }
    }

    /// The vector that the CPU is to take now.
    pub(super) fn pending(&self) -> Option<u8> {
        let vector = highest(&self.requests)?;
        (self.enabled() && vector & 0xf0 > self.processor_priority() & 0xf0).then_some(vector)
    }

    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        clear(&mut self.requests, vector);
        set(&mut self.in_service, vector);
        Some(vector)
    }

    /// Whether interrupts of the 8259 reach the CPU: the APIC is off, or LINT0 is set up for them.
    pub(super) fn accepts_external(&self) -> bool {
        self.base & BASE_ENABLED == 0 || self.lvt[LVT_LINT0] & (LVT_MASKED | LVT_DELIVERY) == 0x700
    }

    pub(super) fn request(&mut self, vector: u8, level_triggered: bool) {
        if !self.enabled() {
            return;
        }
        if vector < FIRST_VECTOR {
            return self.error(ERROR_RECEIVE_VECTOR);
        }
        set(&mut self.requests, vector);
        if level_triggered {
            set(&mut self.level, vector);
        } else {
            clear(&mut self.level, vector);
        }
        self.effects.changed = true;
    }

    fn error(&mut self, bit: u32) {
        let first = self.errors & bit == 0;
        self.errors |= bit;
        let entry = self.lvt[LVT_ERROR];
        // An error entry with a bad vector must not report itself for ever.
        if first && entry & LVT_MASKED == 0 && entry as u8 >= FIRST_VECTOR {
            self.request(entry as u8, false);
        }
    }

    fn end(&mut self) {
        let Some(vector) = highest(&self.in_service) else { return };
        clear(&mut self.in_service, vector);
        if test(&self.level, vector) {
            self.effects.ended = Some(vector);
        }
        self.effects.changed = true;
    }

    pub(super) fn set_lint0(&mut self, level: bool) {
        let rises = level && !self.lint0;
        self.lint0 = level;
        self.effects.changed = true;
        if level && (rises || self.lvt[LVT_LINT0] & LVT_LEVEL != 0) {
            self.local(LVT_LINT0);
        }
    }

    pub(super) fn pulse_lint1(&mut self) {
        self.local(LVT_LINT1);
    }

    /// A local source interrupts as its entry says.
    fn local(&mut self, place: usize) {
        let entry = self.lvt[place];
        if entry & LVT_MASKED != 0 {
            return;
        }
        match Delivery::from_bits(entry) {
            Some(Delivery::Fixed) => {
                let level = place == LVT_LINT0 && entry & LVT_LEVEL != 0;
                self.request(entry as u8, level);
            }
            Some(Delivery::Nmi) => self.effects.nmi = true,
            _ => {}
        }
    }

    pub(super) fn timer_expired(&mut self, now: i64) {
        if self.timer.expired(now) && self.lvt[LVT_TIMER] & LVT_MASKED == 0 {
            self.request(self.lvt[LVT_TIMER] as u8, false);
        }
        self.timer.set_armed(self.lvt[LVT_TIMER], now);
    }

    pub(super) fn set_deadline(&mut self, at: Option<i64>) -> bool {
        self.timer.set_tsc_deadline(at)
    }

    pub(super) fn is_addressed(&self, to: &Destination) -> bool {
        let Destination::Id { id, logical, short } = *to else { return false };
        if short && id == 0xff || !short && id == u32::MAX {
            return true;
        }
        match (logical, self.x2apic()) {
            (false, _) => id == self.id,
            (true, true) => {
                let (cluster, bits) = (self.id >> 4, 1 << (self.id & 15));
                id & bits != 0 && cluster == if short { 0 } else { id >> 16 }
            }
            (true, false) if self.format == FLAT => id & u32::from(self.logical_id) != 0,
            (true, false) => {
                let own = u32::from(self.logical_id);
                id >> 4 == own >> 4 && id & own & 0x0f != 0
            }
        }
    }

    pub(super) fn read(&mut self, register: u8, now: i64) -> u32 {
        match register {
            ID if self.x2apic() => self.id,
            ID => self.id << 24,
            VERSION => VERSION_VALUE,
            TPR => self.tpr.into(),
            APR | PPR => self.processor_priority().into(),
            LDR if self.x2apic() => self.id >> 4 << 16 | 1 << (self.id & 15),
            LDR => u32::from(self.logical_id) << 24,
            DFR => u32::from(self.format) << 28 | 0x0fff_ffff,
            SVR => self.svr,
            ISR..TMR => self.in_service[usize::from(register - ISR)],
            TMR..IRR => self.level[usize::from(register - TMR)],
            IRR..ESR => self.requests[usize::from(register - IRR)],
            ESR => self.latched_errors,
            ICR_LOW => self.icr[0],
            ICR_HIGH => self.icr[1],
            LVT..=LVT_LAST => self.lvt[usize::from(register - LVT)],
            INITIAL_COUNT => self.timer.initial_count(),
            CURRENT_COUNT => self.timer.current_count(now),
            DIVIDE => self.timer.divide(),
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, register: u8, value: u32, now: i64) {
        match register {
            TPR => self.set_task_priority(value as u8),
            EOI => self.end(),
            LDR => self.logical_id = (value >> 24) as u8,
            DFR => self.format = (value >> 28) as u8,
            SVR => self.write_svr(value, now),
            ESR => self.latched_errors = std::mem::take(&mut self.errors),
            ICR_LOW => {
                self.icr[0] = value & !ICR_PENDING;
                let id = self.icr[1] >> 24;
                self.send(Destination::Id { id, logical: value & 0x800 != 0, short: true });
            }
            ICR_HIGH => self.icr[1] = value & 0xff00_0000,
            LVT..=LVT_LAST => self.write_lvt(usize::from(register - LVT), value, now),
            INITIAL_COUNT => {
                self.timer.set_initial_count(value, now);
                self.timer.set_armed(self.lvt[LVT_TIMER], now);
            }
            DIVIDE => {
                self.timer.set_divide(value, now);
                self.timer.set_armed(self.lvt[LVT_TIMER], now);
            }
            _ => {}
        }
    }

    fn write_svr(&mut self, value: u32, now: i64) {
        self.svr = value & SVR_WRITABLE;
        if self.svr & SVR_ENABLED == 0 {
            self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
            self.timer.set_armed(self.lvt[LVT_TIMER], now);
        }
        self.effects.changed = true;
    }

    fn write_lvt(&mut self, place: usize, value: u32, now: i64) {
        let mut value = value & LVT_WRITABLE[place];
        if self.svr & SVR_ENABLED == 0 {
            value |= LVT_MASKED;
        }
        self.lvt[place] = value;
        match place {
            LVT_TIMER => self.timer.set_mode(value, now),
            LVT_LINT0 if self.lint0 && value & LVT_LEVEL != 0 => self.local(LVT_LINT0),
            _ => {}
        }
        self.effects.changed = true;
    }

    fn send(&mut self, destination: Destination) {
        let word = self.icr[0];
        let destination = match word >> 18 & 3 {
            0 => destination,
            1 => Destination::Myself,
            2 => Destination::All,
            _ => Destination::Others,
        };
        let Some(delivery) = Delivery::from_bits(word) else { return };
        let has_vector = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        if has_vector && (word as u8) < FIRST_VECTOR {
            return self.error(ERROR_SEND_VECTOR);
        }
        if delivery == Delivery::Init && word & (ICR_ASSERT | ICR_LEVEL) == ICR_LEVEL {
            // Taking INIT back only set arbitration ids, on a bus that is no more.
            return;
        }
        self.effects.ipis.push(Ipi { vector: word as u8, delivery, destination, level_triggered: false });
    }

    pub(super) fn read_msr(&mut self, msr: u32, now: i64) -> Option<u64> {
        let register = self.msr_register(msr)?;
        match register {
            DFR | ICR_HIGH | EOI | SELF_IPI => None,
            ICR_LOW => Some(u64::from(self.icr[1]) << 32 | u64::from(self.icr[0])),
            ID | VERSION | TPR | PPR | LDR..=DIVIDE => Some(self.read(register, now).into()),
            _ => None,
        }
    }

    pub(super) fn write_msr(&mut self, msr: u32, value: u64, now: i64) -> bool {
        let Some(register) = self.msr_register(msr) else { return false };
        match register {
            ICR_LOW => {
                self.icr = [value as u32 & !ICR_PENDING, (value >> 32) as u32];
                self.send(Destination::Id { id: self.icr[1], logical: value & 0x800 != 0, short: false });
            }
            SELF_IPI if value <= 0xff => {
                self.icr[0] = value as u32 | 1 << 18;
                self.send(Destination::Myself);
            }
            EOI | ESR if value != 0 => return false,
            TPR | EOI | SVR | ESR | LVT..=INITIAL_COUNT | DIVIDE if value <= u32::MAX.into() => {
                self.write(register, value as u32, now);
            }
            _ => return false,
        }
        true
    }

    /// The register of an MSR, in x2APIC mode.
    fn msr_register(&self, msr: u32) -> Option<u8> {
        (self.x2apic() && (0x800..=0x83f).contains(&msr)).then_some((msr - 0x800) as u8)
    }

    pub(super) fn save(&self) -> ApicState {
        ApicState {
            apicbase: self.base as u32,
            id: self.id as u8,
            arb_id: 0,
            tpr: self.tpr,
            spurious_vec: self.svr,
            log_dest: self.logical_id,
            dest_mode: self.format,
            isr: self.in_service,
            tmr: self.level,
            irr: self.requests,
            lvt: self.lvt,
            esr: self.latched_errors,
            icr: self.icr,
            ..self.timer.save()
        }
    }

    pub(super) fn load(&mut self, wire: &ApicState) {
        *self = Self {
            id: self.id,
            base: wire.apicbase.into(),
            tpr: wire.tpr,
            logical_id: wire.log_dest,
            format: wire.dest_mode & 0x0f,
            svr: wire.spurious_vec & SVR_WRITABLE,
            in_service: wire.isr,
            level: wire.tmr,
            requests: wire.irr,
            lvt: std::array::from_fn(|n| wire.lvt[n] & LVT_WRITABLE[n]),
            errors: 0,
            latched_errors: wire.esr,
            icr: wire.icr,
            timer: ApicTimer::load(wire),
            lint0: self.lint0,
            effects: Effects { changed: true, ..Effects::default() },
        };
    }
}
