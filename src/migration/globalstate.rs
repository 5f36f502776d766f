//! Two sections that belong to no device: the run state at the sender, and the clocks.

use lockstep_event::{Clock, Clocks};
use lockstep_util::Result;
use lockstep_vmstate::{Buffer, LoadError, Snapshot, Timer, Unused, VmState};
use parking_lot::Mutex;

/// `globalstate`: how the guest was doing when it was stopped for the migration. Registered last, as in QEMU.
#[derive(Debug, Default)]
pub struct GlobalState {
    current: Mutex<String>,
    received: Mutex<Option<String>>,
}

/// Its wire struct.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "globalstate", version = 1)]
pub struct GlobalStateWire {
    size: u32,
    runstate: Buffer<32>,
    has_vm_was_suspended: u8,
    vm_was_suspended: u8,
    #[vmstate(name = "unused")]
    unused: Buffer<66>,
}

/// The run states that a sender can have been in.
const RUN_STATES: [&str; 16] = [
    "debug",
    "inmigrate",
    "internal-error",
    "io-error",
    "paused",
    "postmigrate",
    "prelaunch",
    "finish-migrate",
    "restore-vm",
    "running",
    "save-vm",
    "shutdown",
    "suspended",
    "watchdog",
    "guest-panicked",
    "colo",
];

impl GlobalState {
    /// Notes the run state, before the guest is stopped.
    pub fn store(&self, run_state: &str) {
        *self.current.lock() = run_state.to_owned();
    }

    /// The run state that came with a migration.
    pub fn received(&self) -> Option<String> {
        self.received.lock().clone()
    }

    /// Forgets what came.
    pub fn forget(&self) {
        *self.received.lock() = None;
    }
}

impl GlobalStateWire {
    fn name(&self) -> Option<&str> {
        let end = self.runstate.iter().position(|b| *b == 0)?;
        std::str::from_utf8(&self.runstate[..end]).ok()
    }
}

impl Snapshot for GlobalState {
    type Wire = GlobalStateWire;

    fn snapshot(&self) -> GlobalStateWire {
        let current = self.current.lock();
        let mut runstate = Buffer::default();
        let len = current.len().min(31);
        runstate[..len].copy_from_slice(&current.as_bytes()[..len]);
        let unused = Buffer::default();
        GlobalStateWire { size: len as u32 + 1, runstate, has_vm_was_suspended: 1, vm_was_suspended: 0, unused }
    }

    fn validate(&self, wire: &GlobalStateWire) -> Result<(), LoadError> {
        match wire.name() {
            Some(name) if RUN_STATES.contains(&name) => Ok(()),
            _ => Err(LoadError::invalid("Runstate is corrupted")),
        }
    }

    fn restore(&self, wire: GlobalStateWire) {
        *self.received.lock() = wire.name().map(str::to_owned);
    }
}

/// `timer`: the guest's virtual clock. Registered first, as in QEMU.
pub struct ClockState {
    clocks: Clocks,
    counter: Option<Box<dyn InstructionCounter>>,
}

/// What `-icount` counts, as it travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstructionCount {
    /// Nanoseconds of the virtual clock that are not those of instructions.
    pub bias: i64,
    /// Instructions executed.
    pub count: i64,
    /// Real time passes while all vCPUs wait.
    pub sleep: bool,
    /// The shift and what it is adjusted by, if it is found by itself.
    pub found: Option<FoundShift>,
}

/// A shift that keeps pace with real time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FoundShift {
    /// An instruction takes 2 to this power nanoseconds; at most 10.
    pub shift: u8,
    /// Nanoseconds that the guest was ahead.
    pub lead: i64,
    /// Nanoseconds of the real and the virtual clock at which it is adjusted next.
    pub next: (i64, i64),
}

/// Who counts instructions.
pub trait InstructionCounter: Send + Sync {
    /// The count. No vCPU runs.
    fn save(&self) -> InstructionCount;
    /// Sets it, and the virtual clock with it; nothing came from a sender that does not count, whose clock was at `now` nanoseconds.
    fn load(&self, count: Option<InstructionCount>, now: i64);
}

impl std::fmt::Debug for ClockState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClockState")
    }
}

/// Its wire struct.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "timer", version = 2, minimum = 1)]
pub struct ClockWire {
    cpu_ticks_offset: i64,
    unused: Unused<8>,
    #[vmstate(since = 2)]
    cpu_clock_offset: i64,
    #[vmstate(subsection)]
    icount: Option<IcountWire>,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "timer/icount", version = 1)]
struct IcountWire {
    qemu_icount_bias: i64,
    qemu_icount: i64,
    #[vmstate(subsection)]
    warp: Option<WarpWire>,
    #[vmstate(subsection)]
    adjust: Option<AdjustWire>,
    #[vmstate(subsection)]
    shift: Option<ShiftWire>,
}

/// The wait for a timer while all vCPUs wait; it begins anew.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "timer/icount/warp_timer", version = 1)]
struct WarpWire {
    vm_clock_warp_start: i64,
    icount_warp_timer: Timer,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "timer/icount/timers", version = 1)]
struct AdjustWire {
    icount_rt_timer: Timer,
    icount_vm_timer: Timer,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "timer/icount/shift", version = 2)]
struct ShiftWire {
    icount_time_shift: i16,
    last_delta: i64,
}

/// Most nanoseconds of an instruction, as a power of 2.
const MAX_SHIFT: i16 = 10;

impl From<InstructionCount> for IcountWire {
    fn from(c: InstructionCount) -> Self {
        Self {
            qemu_icount_bias: c.bias,
            qemu_icount: c.count,
            warp: c.sleep.then_some(WarpWire { vm_clock_warp_start: 0, icount_warp_timer: Timer(None) }),
            adjust: c
                .found
                .map(|f| AdjustWire { icount_rt_timer: Timer(Some(f.next.0)), icount_vm_timer: Timer(Some(f.next.1)) }),
            shift: c.found.map(|f| ShiftWire { icount_time_shift: f.shift.into(), last_delta: f.lead }),
        }
    }
}

impl From<IcountWire> for InstructionCount {
    fn from(w: IcountWire) -> Self {
        let next = w.adjust.map_or((0, 0), |a| (a.icount_rt_timer.0.unwrap_or(0), a.icount_vm_timer.0.unwrap_or(0)));
        let found = |s: ShiftWire| FoundShift {
            shift: s.icount_time_shift.clamp(0, MAX_SHIFT) as u8,
            lead: s.last_delta,
            next,
        };
        Self { bias: w.qemu_icount_bias, count: w.qemu_icount, sleep: w.warp.is_some(), found: w.shift.map(found) }
    }
}

impl ClockState {
    /// For the machine's clocks.
    pub fn new(clocks: Clocks) -> Self {
        Self { clocks, counter: None }
    }

    /// For clocks that follow the instructions.
    pub fn counted(clocks: Clocks, counter: Box<dyn InstructionCounter>) -> Self {
        Self { clocks, counter: Some(counter) }
    }
}

impl Snapshot for ClockState {
    type Wire = ClockWire;

    fn snapshot(&self) -> ClockWire {
        let now = self.clocks.now_ns(Clock::Virtual);
        // Time stamp counters travel with the vCPUs; a receiver that has none of its own sees nanoseconds here.
        let icount = self.counter.as_ref().map(|c| c.save().into());
        ClockWire { cpu_ticks_offset: now, unused: Unused, cpu_clock_offset: now, icount }
    }

    fn validate(&self, wire: &ClockWire) -> Result<(), LoadError> {
        if wire.cpu_clock_offset < 0 {
            return Err(LoadError::invalid("The virtual clock is before its beginning"));
        }
        if let Some(icount) = &wire.icount {
            let shift = icount.shift.as_ref().map_or(0, |s| s.icount_time_shift);
            if !(0..=MAX_SHIFT).contains(&shift) || icount.qemu_icount < 0 {
                return Err(LoadError::invalid("The count of instructions is invalid"));
            }
        }
        Ok(())
    }

    fn restore(&self, wire: ClockWire) {
        match &self.counter {
            Some(counter) => counter.load(wire.icount.map(Into::into), wire.cpu_clock_offset),
            None => self.clocks.set_virtual_ns(wire.cpu_clock_offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_vmstate::{SaveState, vmstate_roundtrip};
    use std::sync::Arc;

    fn state(name: &str) -> Arc<GlobalState> {
        let state = Arc::new(GlobalState::default());
        state.store(name);
        state
    }

    #[test]
    fn the_run_state_travels_in_a_hundred_bytes() {
        let mut out = lockstep_vmstate::Encoder::new();
        state("running").save(&mut out).unwrap();
        assert_eq!(out.len(), 104);
        assert_eq!(out.bytes()[..12], *b"\0\0\0\x08running\0");
        let to = state("prelaunch");
        to.prepare(&mut lockstep_vmstate::Decoder::new(out.bytes()), 1).unwrap().commit();
        assert_eq!(to.received().as_deref(), Some("running"));
        let mut bad = out.into_bytes();
        bad[4] = b'x';
        assert!(to.prepare(&mut lockstep_vmstate::Decoder::new(&bad), 1).is_err());
    }

    /// A counter without a machine.
    struct Kept(Mutex<InstructionCount>);

    impl InstructionCounter for Kept {
        fn save(&self) -> InstructionCount {
            *self.0.lock()
        }
        fn load(&self, count: Option<InstructionCount>, _now: i64) {
            *self.0.lock() = count.unwrap_or_default();
        }
    }

    fn counted(count: InstructionCount) -> Arc<ClockState> {
        Arc::new(ClockState::counted(Clocks::manual(), Box::new(Kept(Mutex::new(count)))))
    }

    #[test]
    fn a_count_has_the_layout_of_qemu() {
        // What QEMU 10.0.2 sends before a guest's first instruction with shift=3.
        let text =
            b"\x05\x0ctimer/icount\0\0\0\x01................\x05\x17timer/icount/warp_timer\0\0\0\x01................";
        let mut wanted = vec![0; 24];
        wanted.extend(text.iter().map(|&b| if b == b'.' { 0 } else { b }));
        let end = wanted.len();
        wanted[end - 8..].fill(0xff);
        let mut out = lockstep_vmstate::Encoder::new();
        counted(InstructionCount { sleep: true, ..InstructionCount::default() }).save(&mut out).unwrap();
        assert_eq!(out.bytes(), wanted);
        // The shift is at most 10.
        let found = Some(FoundShift { shift: 10, lead: 7, next: (3, 4) });
        let mut out = lockstep_vmstate::Encoder::new();
        counted(InstructionCount { found, ..InstructionCount::default() }).save(&mut out).unwrap();
        let mut bytes = out.into_bytes();
        let at = bytes.len() - 9;
        let load = |bytes: &[u8]| {
            let to = counted(InstructionCount::default());
            to.prepare(&mut lockstep_vmstate::Decoder::new(bytes), 2).map(|p| p.commit())
        };
        assert!(bytes[at] == 10 && load(&bytes).is_ok());
        bytes[at] = 11;
        assert!(load(&bytes).is_err());
    }

    vmstate_roundtrip!(a_count_travels, || {
        counted(InstructionCount {
            bias: -5,
            count: 1 << 40,
            sleep: false,
            found: Some(FoundShift { shift: 3, lead: -9, next: (1_000, 2_000) }),
        })
    });

    vmstate_roundtrip!(the_clock_travels, || {
        let clocks = Clocks::manual();
        clocks.set_virtual_ns(123);
        Arc::new(ClockState::new(clocks))
    });
}
