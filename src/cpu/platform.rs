//! What a processor needs of the machine around it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::block::Fast;

/// The machine as a processor sees it, beside memory and ports. Called on the processor's thread.
pub trait Platform: Send + Sync {
    /// Whether the interrupt controller has an interrupt that the task priority lets through.
    fn interrupt_pending(&self) -> bool;
    /// Acknowledges that interrupt and gives its vector; nothing if it went away.
    fn take_interrupt(&self) -> Option<u8>;
    /// The local APIC's task priority, bits 4 to 7 (CR8).
    fn task_priority(&self) -> u8;
    /// Sets the task priority.
    fn set_task_priority(&self, value: u8);
    /// Reads an MSR that the processor does not keep itself (the local APIC's among them). Nothing: there is none, `#GP`.
    fn read_msr(&self, index: u32) -> Option<u64>;
    /// Writes an MSR that the processor does not keep itself. False: there is none or the value is not allowed, `#GP`.
    fn write_msr(&self, index: u32, value: u64) -> bool;
    /// Reads a local APIC register through memory, where its base is.
    fn read_apic(&self, offset: u32) -> u32;
    /// Writes a local APIC register through memory.
    fn write_apic(&self, offset: u32, value: u32);
    /// The base and enable bits of the local APIC (MSR 0x1b).
    fn apic_base(&self) -> u64;
    /// What RDTSC counts, without the guest's own offset.
    fn tsc(&self) -> u64;
    /// With counted instructions: `done` more were run. Virtual time moves on by them and timers come due. Gives how many may be run
    /// until the next look at the time; 0 says that another processor's turn has come. Takes [`request::CLOCK`] back. Called with no
    /// lock held.
    fn account(&self, _done: u64) -> u64 {
        u64::MAX
    }
    /// `FERR#`: an x87 exception while CR0.NE is clear (ISA interrupt 13).
    fn ferr(&self);
}

/// One CPUID leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input, where it matters.
    pub subleaf: Option<u32>,
    /// Results.
    pub eax: u32,
    /// Results.
    pub ebx: u32,
    /// Results.
    pub ecx: u32,
    /// Results.
    pub edx: u32,
}

/// Things that others ask of a processor, for [`CpuLink::raise`].
pub mod request {
    #![allow(missing_docs)]
    /// Return from `run`.
    pub const EXIT: u32 = 1;
    /// Look at the interrupt controller.
    pub const INTERRUPT: u32 = 1 << 1;
    pub const NMI: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const SIPI: u32 = 1 << 4;
    /// The memory map or dirty tracking changed: forget translations.
    pub const FLUSH: u32 = 1 << 5;
    /// Another processor or a device wrote to code, or another processor found some.
    pub const CODE: u32 = 1 << 6;
    /// A debugger's stop was reached.
    pub const DEBUG: u32 = 1 << 7;
    /// What is logged changed.
    pub const LOG: u32 = 1 << 8;
    /// With counted instructions: a timer may come due earlier than it was known.
    pub const CLOCK: u32 = 1 << 9;
    /// Another processor is to be the only one in guest code for a moment.
    pub const EXCLUSIVE: u32 = 1 << 10;
    /// What ends a HLT.
    pub const WAKES: u32 = EXIT | INTERRUPT | NMI | INIT | SIPI;
}

/// What sleeping processors' threads wait for. One for each processor, or one for those that take turns.
#[derive(Default)]
pub struct Bell {
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    /// Wakes who waits.
    pub fn ring(&self) {
        // Taken so that a processor between its look and its sleep is not missed.
        drop(self.lock.lock());
        self.rung.notify_all();
    }

    /// Waits until `done`, which is looked at after each ring and must take no lock that is held by who rings.
    pub fn wait_until(&self, mut done: impl FnMut() -> bool) {
        let mut guard = self.lock.lock();
        while !done() {
            self.rung.wait(&mut guard);
        }
    }

    /// The same, no longer than `most`. Whether it is done.
    pub fn wait_for(&self, most: Duration, mut done: impl FnMut() -> bool) -> bool {
        let end = Instant::now() + most;
        let mut guard = self.lock.lock();
        while !done() {
            if self.rung.wait_until(&mut guard, end).timed_out() {
                return done();
            }
        }
        true
    }
}

/// What a processor has to know of the others and code. Pages are the host's (host address / 4096).
#[derive(Default)]
pub(crate) struct CodeNews {
    /// Which pieces of pages with code were written.
    pub written: HashMap<u64, u64, Fast>,
    /// Pages that were written when nobody knew of code in them: what was read of them may be older.
    pub stale: HashSet<u64, Fast>,
    /// Pages in which another processor has found code.
    pub found: HashSet<u64, Fast>,
}

/// The way to a processor from other threads.
#[derive(Default)]
pub struct CpuLink {
    requests: AtomicU32,
    sipi_vector: AtomicU32,
    /// 1 while guest code runs, 0 while the processor stands or is in a device.
    pub(crate) in_guest: AtomicU32,
    pub(crate) code_news: Mutex<CodeNews>,
    bell: Arc<Bell>,
}

impl CpuLink {
    /// A link with nothing asked.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A link whose processor's thread waits at this bell.
    pub fn at(bell: &Arc<Bell>) -> Arc<Self> {
        Arc::new(Self { bell: bell.clone(), ..Self::default() })
    }

    /// Whether something of `bits` is asked.
    pub fn is_asked(&self, bits: u32) -> bool {
        self.pending() & bits != 0
    }

    /// Takes back what is asked of `bits`. Whether any was.
    pub fn take(&self, bits: u32) -> bool {
        self.clear(bits) != 0
    }

    /// Asks for `bits` of [`request`]. From any thread.
    pub fn raise(&self, bits: u32) {
        self.requests.fetch_or(bits, Ordering::SeqCst);
        if bits & request::WAKES != 0 {
            self.bell.ring();
        }
    }

    /// Asks for a start-up IPI.
    pub fn raise_sipi(&self, vector: u8) {
        self.sipi_vector.store(vector.into(), Ordering::SeqCst);
        self.raise(request::SIPI);
    }

    /// Asks from a signal handler: nothing that sleeps is woken.
    pub fn raise_from_signal(&self, bits: u32) {
        self.requests.fetch_or(bits, Ordering::SeqCst);
    }

    /// Where generated code looks for requests.
    pub(crate) fn requests_word(&self) -> *const u32 {
        self.requests.as_ptr()
    }

    #[inline(always)]
    pub(crate) fn any(&self) -> bool {
        self.requests.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn pending(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn clear(&self, bits: u32) -> u32 {
        self.requests.fetch_and(!bits, Ordering::SeqCst) & bits
    }

    pub(crate) fn sipi_vector(&self) -> u8 {
        self.sipi_vector.load(Ordering::SeqCst) as u8
    }

    /// Sleeps until something of `mask` is asked.
    pub(crate) fn sleep(&self, mask: u32) {
        self.bell.wait_until(|| self.pending() & mask != 0);
    }
}
