//! What a software CPU sees of the machine: its local APIC and the virtual clock.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use lockstep_cpu::{CpuLink, Platform, request};
use lockstep_event::{Clock, Clocks};
use lockstep_hw::{
    core::IrqSink,
    irqchip::{
        apic::{ApicCpu, LocalApic},
        pic::PicPair,
    },
};

use super::icount::Icount;
use crate::cpu_state::msr;

/// The machine around one CPU. The controllers come after the CPU: until then there are no interrupts.
pub(super) struct TcgPlatform {
    index: u32,
    link: Arc<CpuLink>,
    clocks: Clocks,
    icount: Option<Arc<Icount>>,
    controllers: OnceLock<(Arc<LocalApic>, Arc<PicPair>)>,
    /// The last TSC deadline, in nanoseconds of the virtual clock.
    deadline: AtomicU64,
    /// The CPU waited for a start-up message when it was saved last.
    waits: Arc<AtomicBool>,
}

/// What the APIC tells the CPU.
struct Requests {
    link: Arc<CpuLink>,
    waits: Arc<AtomicBool>,
}

impl ApicCpu for Requests {
    fn interrupts_changed(&self) {
        self.link.raise(request::INTERRUPT);
    }
    fn nmi(&self) {
        self.link.raise(request::NMI);
    }
    /// There is no system management mode.
    fn smi(&self) {}
    fn init(&self) {
        self.link.raise(request::INIT);
    }
    fn start_up(&self, vector: u8) {
        self.link.raise_sipi(vector);
    }
    fn waits_for_start_up(&self) -> bool {
        self.waits.load(Ordering::SeqCst)
    }
}

impl TcgPlatform {
    pub fn new(index: u32, link: Arc<CpuLink>, clocks: Clocks, icount: Option<Arc<Icount>>) -> Arc<Self> {
        Arc::new(Self {
            index,
            link,
            clocks,
            icount,
            controllers: OnceLock::new(),
            deadline: AtomicU64::new(0),
            waits: Arc::default(),
        })
    }

    pub fn connect(&self, apic: &Arc<LocalApic>, pic: &Arc<PicPair>) {
        apic.connect(Arc::new(Requests { link: self.link.clone(), waits: self.waits.clone() }));
        let _ = self.controllers.set((apic.clone(), pic.clone()));
        self.link.raise(request::INTERRUPT | request::FLUSH);
    }

    fn apic(&self) -> Option<&Arc<LocalApic>> {
        self.controllers.get().map(|(apic, _)| apic)
    }

    /// Tells the APIC's section whether the CPU waits for a start-up message.
    pub fn set_waiting(&self, waits: bool) {
        self.waits.store(waits, Ordering::SeqCst);
    }

    /// Sets the deadline of a state that is loaded.
    pub fn set_deadline(&self, at: u64) {
        self.deadline.store(at, Ordering::SeqCst);
        if let Some(apic) = self.apic() {
            apic.set_deadline((at != 0).then_some(at as i64));
        }
    }
}

impl Platform for TcgPlatform {
    fn interrupt_pending(&self) -> bool {
        self.apic().is_some_and(|a| a.has_interrupt())
    }

    fn take_interrupt(&self) -> Option<u8> {
        self.apic()?.take_vector()
    }

    fn task_priority(&self) -> u8 {
        self.apic().map_or(0, |a| a.cr8())
    }

    fn set_task_priority(&self, value: u8) {
        if let Some(apic) = self.apic() {
            apic.set_cr8(value);
        }
    }

    fn read_msr(&self, index: u32) -> Option<u64> {
        match index {
            msr::APIC_BASE => Some(self.apic_base()),
            // It reads as 0 once it has passed.
            msr::TSC_DEADLINE => {
                Some(Some(self.deadline.load(Ordering::SeqCst)).filter(|&at| at > self.tsc()).unwrap_or(0))
            }
            0x800..=0x83f => self.apic()?.read_msr(index),
            _ => None,
        }
    }

    fn write_msr(&self, index: u32, value: u64) -> bool {
        match index {
            msr::APIC_BASE => self.apic().is_some_and(|a| a.set_base(value)),
            msr::TSC_DEADLINE => {
                let armed = self.apic().is_some_and(|a| a.set_deadline((value != 0).then_some(value as i64)));
                self.deadline.store(if armed { value } else { 0 }, Ordering::SeqCst);
                true
            }
            0x800..=0x83f => self.apic().is_some_and(|a| a.write_msr(index, value)),
            _ => false,
        }
    }

    fn read_apic(&self, offset: u32) -> u32 {
        self.apic().map_or(0, |a| a.read(offset.into()))
    }

    fn write_apic(&self, offset: u32, value: u32) {
        if let Some(apic) = self.apic() {
            apic.write(offset.into(), value);
        }
    }

    fn apic_base(&self) -> u64 {
        self.apic().map_or(0xfee0_0800 | if self.index == 0 { 0x100 } else { 0 }, |a| a.base())
    }

    fn tsc(&self) -> u64 {
        self.clocks.now_ns(Clock::Virtual) as u64
    }

    fn account(&self, done: u64) -> u64 {
        self.icount.as_ref().map_or(u64::MAX, |icount| icount.account(self.index as usize, done))
    }

    fn ferr(&self) {
        if let Some((_, pic)) = self.controllers.get() {
            pic.set_irq(13, true);
            pic.set_irq(13, false);
        }
    }
}
