//! Time that follows the instructions (`-icount`): the virtual clock shows how many were executed, shifted left, plus what passed while
//! all vCPUs waited.
//!
//! One vCPU runs at a time, each for a fixed number of instructions, so that a machine of several is as deterministic as one of a single
//! one. Whoever has the turn moves the clock: at each grant's end and whenever an instruction sees the time. Timers run on its thread, at
//! the very instruction.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lockstep_cpu::{Bell, CpuLink, request};
use lockstep_event::{Clock, Clocks};
use lockstep_util::report;
use parking_lot::Mutex;

/// Largest shift: 1024 nanoseconds for an instruction.
pub const MAX_SHIFT: u8 = 10;
/// What `shift=auto` begins with: 8 nanoseconds, 125 million instructions a second.
const FIRST_SHIFT: u8 = 3;
/// Instructions of a vCPU's turn, if there are several.
const TURN: u64 = 100_000;
/// With `align`: how far ahead of real time the guest may be.
const AHEAD: i64 = 3_000_000;
/// With `align`: time between two looks at real time, and between two warnings that the guest is late; how many there are at most.
const LOOK: i64 = 1_000_000;
const WARN_EVERY: Duration = Duration::from_secs(2);
const WARNINGS: u32 = 100;
/// With `shift=auto`: real and virtual time between two adjustments, and how much the lead may vary.
const ADJUST_REAL: i64 = 1_000_000_000;
const ADJUST_VIRTUAL: i64 = 100_000_000;
const WOBBLE: i64 = 100_000_000;

/// What `-icount` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcountOptions {
    /// An instruction takes 2 to this power nanoseconds; nothing: as many as keep pace with real time.
    pub shift: Option<u8>,
    /// The guest waits for real time when it is ahead of it, and is said to be late when it is behind.
    pub align: bool,
    /// While all vCPUs wait, real time passes; else the clock jumps to the next timer.
    pub sleep: bool,
}

/// The count, and whose turn it is. One a machine.
pub struct Icount {
    options: IcountOptions,
    clocks: Clocks,
    bell: Arc<Bell>,
    links: Mutex<Vec<Arc<CpuLink>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    count: u64,
    /// The virtual clock less the count's part.
    bias: i64,
    shift: u8,
    turn: usize,
    /// Instructions left of the turn.
    left: u64,
    cpus: Vec<Waiting>,
    real: RealTime,
    adjust: Adjust,
    last_warning: Option<Instant>,
    /// The last warning's seconds.
    late: i64,
    warnings: u32,
    nothing_to_wait_for: bool,
}

#[derive(Clone, Copy, Default)]
struct Waiting {
    /// It waits for one of these requests.
    idle: Option<u32>,
    /// It is held by a debugger.
    stands: bool,
}

/// Real time while the guest runs.
#[derive(Default)]
struct RealTime {
    runners: usize,
    since: Option<Instant>,
    before: i64,
    /// What the virtual clock showed when this began.
    origin: Option<i64>,
}

impl RealTime {
    fn now(&self) -> i64 {
        let passed = self.since.map_or(0, |s| i64::try_from(s.elapsed().as_nanos()).unwrap_or(i64::MAX));
        self.origin.unwrap_or(0).saturating_add(self.before).saturating_add(passed)
    }
}

/// What `shift=auto` remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adjust {
    /// Next adjustment by real and by virtual time.
    pub real: i64,
    /// See `real`.
    pub virt: i64,
    /// How far ahead the guest was.
    pub lead: i64,
}

/// The count as it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcountState {
    /// Nanoseconds that the virtual clock is ahead of the count's part.
    pub bias: i64,
    /// Instructions executed.
    pub count: i64,
    /// The shift and what it is adjusted by, if it is found by itself.
    pub adjust: Option<(u8, Adjust)>,
}

impl State {
    fn now(&self) -> i64 {
        self.bias.wrapping_add((self.count << self.shift) as i64)
    }

    /// Keeps the shift such that the guest's time goes about as fast as real time.
    fn adjust(&mut self) {
        let (real, virt) = (self.real.now(), self.now());
        if real < self.adjust.real && virt < self.adjust.virt {
            return;
        }
        // A stream may have set all of this to anything.
        (self.adjust.real, self.adjust.virt) = (real.saturating_add(ADJUST_REAL), virt.saturating_add(ADJUST_VIRTUAL));
        let (lead, before) = (virt.saturating_sub(real), self.adjust.lead);
        if lead > 0 && before.saturating_add(WOBBLE) < lead.saturating_mul(2) && self.shift > 0 {
            self.shift -= 1;
        }
        if lead < 0 && before.saturating_sub(WOBBLE) > lead.saturating_mul(2) && self.shift < MAX_SHIFT {
            self.shift += 1;
        }
        self.adjust.lead = lead;
        // The clock shows what it showed.
        self.bias = virt.wrapping_sub((self.count << self.shift) as i64);
    }
}

impl Icount {
    /// A count for clocks that are moved by hand. None of its vCPUs exists yet.
    pub fn new(options: IcountOptions, clocks: Clocks) -> Arc<Self> {
        let shift = options.shift.unwrap_or(FIRST_SHIFT).min(MAX_SHIFT);
        let this = Arc::new(Self {
            options,
            clocks,
            bell: Arc::default(),
            links: Mutex::default(),
            state: Mutex::new(State { shift, left: TURN, ..State::default() }),
        });
        let weak = Arc::downgrade(&this);
        this.clocks.set_mover(move || {
            if let Some(this) = weak.upgrade() {
                this.links.lock().iter().for_each(|l| l.raise(request::CLOCK));
                this.bell.ring();
            }
        });
        this
    }

    /// What was asked for.
    pub fn options(&self) -> IcountOptions {
        self.options
    }

    /// Instructions executed.
    pub fn count(&self) -> u64 {
        self.state.lock().count
    }

    /// A link for the next vCPU.
    pub(super) fn add_cpu(&self) -> Arc<CpuLink> {
        let link = CpuLink::at(&self.bell);
        self.links.lock().push(link.clone());
        self.state.lock().cpus.push(Waiting::default());
        link
    }

    /// A vCPU's thread begins or ends to take part.
    pub(super) fn take_part(&self, begin: bool) {
        let state = &mut *self.state.lock();
        let now = state.now();
        let real = &mut state.real;
        if begin {
            real.runners += 1;
            real.origin.get_or_insert(now);
            real.since.get_or_insert_with(Instant::now);
        } else {
            real.runners = real.runners.saturating_sub(1);
            if real.runners == 0
                && let Some(since) = real.since.take()
            {
                real.before = real.before.saturating_add(i64::try_from(since.elapsed().as_nanos()).unwrap_or(0));
            }
        }
    }

    /// Waits until it is the vCPU's turn. False: it is asked to return.
    pub(super) fn wait_for_turn(&self, cpu: usize) -> bool {
        let link = self.links.lock()[cpu].clone();
        let mut has_turn = false;
        self.bell.wait_until(|| {
            has_turn = self.state.lock().turn == cpu;
            has_turn || link.is_asked(request::EXIT)
        });
        if !has_turn {
            link.take(request::EXIT);
        }
        has_turn
    }

    /// See [`Platform::account`](lockstep_cpu::Platform::account).
    pub(super) fn account(&self, cpu: usize, done: u64) -> u64 {
        let (now, several) = {
            let mut state = self.state.lock();
            state.count = state.count.wrapping_add(done);
            state.left = state.left.saturating_sub(done);
            if self.options.shift.is_none() {
                state.adjust();
            }
            (state.now(), state.cpus.len() > 1)
        };
        self.clocks.advance_virtual_to(now);
        if self.options.align {
            self.align(cpu, now);
        }
        if let Some(link) = self.links.lock().get(cpu) {
            link.take(request::CLOCK);
        }
        let mut until = self.clocks.next_virtual_deadline().unwrap_or(i64::MAX).saturating_sub(now).max(1);
        if self.options.align {
            until = until.min(LOOK);
        }
        if self.options.shift.is_none() {
            until = until.min(ADJUST_VIRTUAL);
        }
        let state = self.state.lock();
        let until = (until as u64).div_ceil(1 << state.shift);
        if several { until.min(state.left) } else { until }
    }

    /// Waits while the guest is ahead of real time, and says so if it is behind.
    fn align(&self, cpu: usize, now: i64) {
        let ahead = now.saturating_sub(self.state.lock().real.now());
        if ahead > AHEAD {
            let Some(link) = self.links.lock().get(cpu).cloned() else { return };
            self.bell.wait_for(Duration::from_nanos(ahead as u64), || link.is_asked(request::EXIT));
            return;
        }
        let mut state = self.state.lock();
        let late = -(ahead / 1_000_000_000);
        let due = state.last_warning.is_none_or(|last| last.elapsed() > WARN_EVERY);
        if due && state.warnings < WARNINGS && late > 0 && late != state.late {
            println!("Warning: The guest is now late by {late:.1} to {:.1} seconds", late + 1);
            state.late = late;
            state.warnings += 1;
            state.last_warning = Some(Instant::now());
        }
    }

    /// The vCPU's turn is over.
    pub(super) fn pass(&self, cpu: usize) {
        let links = self.links.lock().clone();
        self.state.lock().hand_on(cpu, &links);
        self.bell.ring();
    }

    /// The vCPU waits for one of `mask`. Comes back when some vCPU may have the turn, or this one is asked to return.
    pub(super) fn idle(&self, cpu: usize, mask: u32) {
        let links = self.links.lock().clone();
        self.state.lock().cpus[cpu].idle = Some(mask);
        loop {
            if self.state.lock().hand_on(cpu, &links) {
                return self.bell.ring();
            }
            if links[cpu].is_asked(request::EXIT) {
                return;
            }
            links[cpu].take(request::CLOCK);
            self.pass_time(cpu, &links);
        }
    }

    /// All vCPUs wait: time passes until the next timer, or until somebody wakes one.
    fn pass_time(&self, cpu: usize, links: &[Arc<CpuLink>]) {
        let masks: Vec<_> = self.state.lock().cpus.iter().map(|c| c.idle.unwrap_or(u32::MAX)).collect();
        let woken = || {
            links[cpu].is_asked(request::CLOCK | request::EXIT) || links.iter().zip(&masks).any(|(l, &m)| l.is_asked(m))
        };
        let now = self.clocks.now_ns(Clock::Virtual);
        let Some(deadline) = self.clocks.next_virtual_deadline() else {
            if !self.options.sleep && !std::mem::replace(&mut self.state.lock().nothing_to_wait_for, true) {
                report::warn("icount sleep disabled and no active timers");
            }
            return self.bell.wait_until(woken);
        };
        let mut passed = deadline.saturating_sub(now).max(0);
        if self.options.sleep {
            let begin = Instant::now();
            if self.bell.wait_for(Duration::from_nanos(passed as u64), woken) {
                passed = passed.min(i64::try_from(begin.elapsed().as_nanos()).unwrap_or(i64::MAX));
            }
        }
        let now = {
            let mut state = self.state.lock();
            state.bias = state.bias.wrapping_add(passed);
            state.now()
        };
        self.clocks.advance_virtual_to(now);
    }

    /// A debugger holds the vCPU, or lets it go. To be called while none runs.
    pub(super) fn hold(&self, cpu: usize, stands: bool) {
        let links = self.links.lock().clone();
        let mut state = self.state.lock();
        state.cpus[cpu].stands = stands;
        let turn = state.turn;
        if state.cpus[turn].stands && !state.hand_on(turn, &links) {
            // Those that may run wait: one of them has the turn all the same, and lets time pass.
            state.turn = state.cpus.iter().position(|c| !c.stands).unwrap_or(turn);
        }
    }

    /// The count, to be saved. While no vCPU runs.
    pub fn save(&self) -> IcountState {
        let state = self.state.lock();
        IcountState {
            bias: state.bias,
            count: state.count as i64,
            adjust: self.options.shift.is_none().then_some((state.shift, state.adjust)),
        }
    }

    /// Sets the count to what was saved; nothing: by a machine that did not count, whose virtual clock was at `now`.
    pub fn load(&self, saved: Option<IcountState>, now: i64) {
        let mut state = self.state.lock();
        match saved {
            Some(saved) => {
                (state.bias, state.count) = (saved.bias, saved.count as u64);
                if let (None, Some((shift, adjust))) = (self.options.shift, saved.adjust) {
                    (state.shift, state.adjust) = (shift.min(MAX_SHIFT), adjust);
                }
            }
            None => state.bias = now.wrapping_sub((state.count << state.shift) as i64),
        }
        state.real = RealTime { runners: state.real.runners, ..RealTime::default() };
        let now = state.now();
        drop(state);
        self.clocks.set_virtual_ns(now);
    }
}

impl State {
    /// Gives the turn to the next vCPU after `cpu` that may run, which may be itself. False: none may.
    fn hand_on(&mut self, cpu: usize, links: &[Arc<CpuLink>]) -> bool {
        let n = self.cpus.len();
        let next = (1..=n).map(|i| (cpu + i) % n).find(|&i| {
            let c = self.cpus[i];
            !c.stands && c.idle.is_none_or(|mask| links[i].is_asked(mask))
        });
        let Some(next) = next else { return false };
        self.cpus[next].idle = None;
        (self.turn, self.left) = (next, TURN);
        true
    }
}
