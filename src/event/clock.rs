//! The machine's clocks and their timers.
//!
//! * `Realtime` never stops (`CLOCK_MONOTONIC`).
//! * `Virtual` runs while the guest runs; it is what the guest's devices count with.
//! * `Host` is the wall clock (`CLOCK_REALTIME`).
//!
//! Timers are run by one thread, or, for a manual virtual clock (`-accel qtest`, tests), by whoever advances it. A callback
//! runs with none of this module's locks held, so that it may arm and cancel timers and take device locks.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, OnceLock, Weak},
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, RwLock};
use rustix::time::{ClockId, clock_gettime};

/// Which clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Clock {
    /// Monotonic, runs always.
    Realtime,
    /// Guest time: stands while the virtual machine is stopped.
    Virtual,
    /// Wall-clock time.
    Host,
}

const CLOCKS: [Clock; 3] = [Clock::Realtime, Clock::Virtual, Clock::Host];

/// The clocks of one machine. Cheap to clone.
#[derive(Clone)]
pub struct Clocks {
    shared: Arc<Shared>,
}

struct Shared {
    guest_time: RwLock<GuestTime>,
    manual: bool,
    queues: Mutex<Queues>,
    wake: Condvar,
    /// Held while callbacks of the virtual clock run, so that stopping the clock can wait for them.
    dispatch: Mutex<()>,
    /// Who moves a manual virtual clock, and wants to know of deadlines before the one that was the next.
    mover: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Clone, Copy)]
enum GuestTime {
    /// Runs: the monotonic clock plus this.
    Running { offset: i64 },
    /// Stands at this.
    Standing { now: i64 },
}

#[derive(Default)]
struct Queues {
    by_deadline: [BTreeMap<(i64, u64), Weak<TimerInner>>; 3],
    next_id: u64,
    thread: ThreadState,
}

#[derive(Default, PartialEq, Clone, Copy)]
enum ThreadState {
    #[default]
    None,
    Running(Option<thread::ThreadId>),
    Ended,
}

struct TimerInner {
    clocks: Weak<Shared>,
    clock: Clock,
    id: u64,
    deadline: Mutex<Option<i64>>,
    callback: Box<dyn Fn() + Send + Sync>,
}

/// A timer that calls a function once each time it was armed. Dropping it cancels it.
pub struct Timer {
    inner: Arc<TimerInner>,
}

impl Default for Clocks {
    fn default() -> Self {
        Self::new()
    }
}

impl Clocks {
    /// Clocks whose virtual clock stands at 0 until [`enable_virtual`](Self::enable_virtual).
    pub fn new() -> Self {
        Self::with_mode(false)
    }

    /// Clocks whose virtual clock moves only by [`advance_virtual_to`](Self::advance_virtual_to).
    pub fn manual() -> Self {
        Self::with_mode(true)
    }

    fn with_mode(manual: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                guest_time: RwLock::new(GuestTime::Standing { now: 0 }),
                manual,
                queues: Mutex::default(),
                wake: Condvar::new(),
                dispatch: Mutex::new(()),
                mover: OnceLock::new(),
            }),
        }
    }

    /// Has `earlier` called whenever a timer of a manual virtual clock is armed before all others: its mover may have to move it by
    /// less than was planned. Called with locks of the clocks held: it only notes. Once.
    pub fn set_mover(&self, earlier: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.mover.set(Box::new(earlier));
    }

    /// Whether the virtual clock moves only when it is told to.
    pub fn is_manual(&self) -> bool {
        self.shared.manual
    }

    /// The time of a clock, in nanoseconds.
    pub fn now_ns(&self, clock: Clock) -> i64 {
        self.shared.now_ns(clock)
    }

    /// Lets the virtual clock run, or stops it. On return from stopping it none of its timers' callbacks is running (unless
    /// the caller is such a callback). The caller holds no lock that a callback takes.
    pub fn enable_virtual(&self, enable: bool) {
        if self.shared.manual {
            return;
        }
        {
            let mut time = self.shared.guest_time.write();
            *time = match (*time, enable) {
                (GuestTime::Standing { now }, true) => GuestTime::Running { offset: now - monotonic_ns() },
                (GuestTime::Running { offset }, false) => GuestTime::Standing { now: monotonic_ns() + offset },
                (same, _) => same,
            };
        }
        let queues = self.shared.queues.lock();
        let on_timer_thread = queues.thread == ThreadState::Running(Some(thread::current().id()));
        drop(queues);
        if !enable && !on_timer_thread {
            drop(self.shared.dispatch.lock());
        }
        self.shared.wake.notify_one();
    }

    /// Whether the virtual clock runs by itself.
    pub fn virtual_enabled(&self) -> bool {
        matches!(*self.shared.guest_time.read(), GuestTime::Running { .. })
    }

    /// Sets the virtual clock (loading a migration stream). Timers keep their deadlines.
    pub fn set_virtual_ns(&self, ns: i64) {
        let mut time = self.shared.guest_time.write();
        *time = match *time {
            GuestTime::Standing { .. } => GuestTime::Standing { now: ns },
            GuestTime::Running { .. } => GuestTime::Running { offset: ns - monotonic_ns() },
        };
        drop(time);
        self.shared.wake.notify_one();
    }

    /// Moves a manual virtual clock forward to `ns`, running every timer that comes due, in order, at its own time.
    /// Never moves it backwards.
    pub fn advance_virtual_to(&self, ns: i64) {
        while let Some(timer) = self.shared.take_due(Clock::Virtual, ns) {
            let deadline = timer.1;
            let now = self.now_ns(Clock::Virtual);
            if deadline > now {
                self.set_virtual_ns(deadline);
            }
            (timer.0.callback)();
        }
        if ns > self.now_ns(Clock::Virtual) {
            self.set_virtual_ns(ns);
        }
    }

    /// When the next timer of the virtual clock comes due, in nanoseconds of that clock.
    pub fn next_virtual_deadline(&self) -> Option<i64> {
        let queues = self.shared.queues.lock();
        queues.by_deadline[Clock::Virtual as usize].first_key_value().map(|(&(deadline, _), _)| deadline)
    }

    /// Makes a timer, not armed. `callback` runs on the timer thread, or on the thread that advances a manual clock.
    pub fn timer(&self, clock: Clock, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        let mut queues = self.shared.queues.lock();
        queues.next_id += 1;
        let id = queues.next_id;
        if queues.thread == ThreadState::None {
            queues.thread = ThreadState::Running(None);
            let shared = Arc::downgrade(&self.shared);
            let spawned = thread::Builder::new().name("timers".into()).spawn(move || run_timers(&shared));
            if let Err(e) = spawned {
                tracing::error!("no thread for timers: {e}");
                queues.thread = ThreadState::Ended;
            }
        }
        drop(queues);
        let clocks = Arc::downgrade(&self.shared);
        Timer {
            inner: Arc::new(TimerInner { clocks, clock, id, deadline: Mutex::new(None), callback: Box::new(callback) }),
        }
    }

    /// Waits until a clock shows `deadline_ns`.
    pub fn sleep_until(&self, clock: Clock, deadline_ns: i64) -> impl Future<Output = ()> + Send + use<> {
        let notify = Arc::new(tokio::sync::Notify::new());
        let timer = {
            let notify = notify.clone();
            self.timer(clock, move || notify.notify_one())
        };
        timer.arm(deadline_ns);
        async move {
            notify.notified().await;
            drop(timer);
        }
    }

    /// Waits for a duration by a clock.
    pub fn sleep(&self, clock: Clock, duration: Duration) -> impl Future<Output = ()> + Send + use<> {
        let ns = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        self.sleep_until(clock, self.now_ns(clock).saturating_add(ns))
    }
}

impl Timer {
    /// Has the callback called when the clock shows `deadline_ns` (soon, if that is past). Replaces an earlier deadline.
    pub fn arm(&self, deadline_ns: i64) {
        self.inner.set(Some(deadline_ns));
    }

    /// Takes the deadline back. A callback that is being run on another thread goes on.
    pub fn cancel(&self) {
        self.inner.set(None);
    }

    /// The deadline, if it is armed and not yet run.
    pub fn deadline(&self) -> Option<i64> {
        *self.inner.deadline.lock()
    }

    /// The clock it counts with.
    pub fn clock(&self) -> Clock {
        self.inner.clock
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl std::fmt::Debug for Timer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timer").field("clock", &self.inner.clock).field("deadline", &self.deadline()).finish()
    }
}

impl TimerInner {
    fn set(self: &Arc<Self>, new: Option<i64>) {
        let Some(shared) = self.clocks.upgrade() else { return };
        let mut queues = shared.queues.lock();
        let queue = &mut queues.by_deadline[self.clock as usize];
        let mut deadline = self.deadline.lock();
        if let Some(old) = deadline.take() {
            queue.remove(&(old, self.id));
        }
        *deadline = new;
        if let Some(at) = new {
            queue.insert((at, self.id), Arc::downgrade(self));
            let is_first = queue.first_key_value().is_some_and(|(&(_, id), _)| id == self.id);
            if is_first {
                shared.wake.notify_one();
                if self.clock == Clock::Virtual
                    && let Some(earlier) = shared.mover.get()
                {
                    earlier();
                }
            }
        }
    }
}

impl Shared {
    fn now_ns(&self, clock: Clock) -> i64 {
        match clock {
            Clock::Realtime => monotonic_ns(),
            Clock::Host => nanoseconds(clock_gettime(ClockId::Realtime)),
            Clock::Virtual => match *self.guest_time.read() {
                GuestTime::Running { offset } => monotonic_ns() + offset,
                GuestTime::Standing { now } => now,
            },
        }
    }

    /// Takes the first timer of a clock that is due at `now`; disarmed, ready to be called.
    fn take_due(&self, clock: Clock, now: i64) -> Option<(Arc<TimerInner>, i64)> {
        let mut queues = self.queues.lock();
        let queue = &mut queues.by_deadline[clock as usize];
        while let Some(entry) = queue.first_entry() {
            let deadline = entry.key().0;
            if deadline > now {
                return None;
            }
            if let Some(timer) = entry.remove().upgrade() {
                *timer.deadline.lock() = None;
                return Some((timer, deadline));
            }
        }
        None
    }

    fn runs_by_itself(&self, clock: Clock) -> bool {
        clock != Clock::Virtual || matches!(*self.guest_time.read(), GuestTime::Running { .. })
    }
}

/// The timer thread: runs what is due, then sleeps until the next deadline or a change.
fn run_timers(shared: &Weak<Shared>) {
    // The default slack of 50 us is a large part of a network round trip.
    // SAFETY: PR_SET_TIMERSLACK takes one integer and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    if let Some(shared) = shared.upgrade() {
        shared.queues.lock().thread = ThreadState::Running(Some(thread::current().id()));
    }
    // The machine may be dropped while this thread sleeps: it holds the clocks only for a while at a time.
    while let Some(shared) = shared.upgrade() {
        for clock in CLOCKS {
            loop {
                let _dispatch = (clock == Clock::Virtual).then(|| shared.dispatch.lock());
                if !shared.runs_by_itself(clock) {
                    break;
                }
                let Some((timer, _)) = shared.take_due(clock, shared.now_ns(clock)) else { break };
                (timer.callback)();
            }
        }
        let mut queues = shared.queues.lock();
        let mut wait = i64::from(u32::MAX);
        for clock in CLOCKS {
            if let Some((&(deadline, _), _)) = queues.by_deadline[clock as usize].first_key_value()
                && shared.runs_by_itself(clock)
            {
                wait = wait.min(deadline.saturating_sub(shared.now_ns(clock)));
            }
        }
        if wait > 0 {
            // The bound lets the thread notice that the machine is gone, and steps of the wall clock.
            let wait = Duration::from_nanos(wait as u64).min(Duration::from_millis(500));
            shared.wake.wait_for(&mut queues, wait);
        }
    }
}

fn monotonic_ns() -> i64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

fn nanoseconds(t: rustix::time::Timespec) -> i64 {
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_manual_clock_runs_timers_in_order_each_at_its_own_time() {
        let clocks = Clocks::manual();
        let seen = Arc::new(Mutex::new(vec![]));
        let timers: Vec<_> = [30, 10, 20, 40]
            .into_iter()
            .map(|at| {
                let (seen, c) = (seen.clone(), clocks.clone());
                let timer = clocks.timer(Clock::Virtual, move || seen.lock().push((at, c.now_ns(Clock::Virtual))));
                timer.arm(at);
                timer
            })
            .collect();
        timers[2].cancel();
        assert_eq!(clocks.next_virtual_deadline(), Some(10));
        clocks.advance_virtual_to(35);
        assert_eq!(*seen.lock(), [(10, 10), (30, 30)]);
        assert_eq!(clocks.now_ns(Clock::Virtual), 35);
        assert_eq!((timers[0].deadline(), timers[3].deadline()), (None, Some(40)));
    }

    #[test]
    fn a_periodic_timer_rearms_itself_from_its_callback() {
        let clocks = Clocks::manual();
        let count = Arc::new(Mutex::new(0));
        let timer = Arc::new_cyclic(|this: &Weak<Timer>| {
            let (this, count, c) = (this.clone(), count.clone(), clocks.clone());
            clocks.timer(Clock::Virtual, move || {
                *count.lock() += 1;
                this.upgrade().unwrap().arm(c.now_ns(Clock::Virtual) + 10);
            })
        });
        timer.arm(10);
        clocks.advance_virtual_to(100);
        assert_eq!(*count.lock(), 10);
    }

    #[test]
    fn the_virtual_clock_stands_while_disabled() {
        let clocks = Clocks::new();
        assert_eq!(clocks.now_ns(Clock::Virtual), 0);
        clocks.set_virtual_ns(1_000);
        clocks.enable_virtual(true);
        while clocks.now_ns(Clock::Virtual) == 1_000 {}
        clocks.enable_virtual(false);
        let stood = clocks.now_ns(Clock::Virtual);
        assert!(stood > 1_000);
        assert_eq!(clocks.now_ns(Clock::Virtual), stood);
    }

    #[test]
    fn a_virtual_timer_waits_for_the_clock_to_run() {
        let clocks = Clocks::new();
        let (tx, rx) = mpsc::channel();
        let timer = {
            let tx = tx.clone();
            clocks.timer(Clock::Virtual, move || tx.send("virtual").unwrap())
        };
        timer.arm(-1);
        // A realtime timer that is due later proves that the thread passed the virtual one over.
        let fence = clocks.timer(Clock::Realtime, move || tx.send("realtime").unwrap());
        fence.arm(clocks.now_ns(Clock::Realtime));
        assert_eq!(rx.recv(), Ok("realtime"));
        assert_eq!(timer.deadline(), Some(-1));
        clocks.enable_virtual(true);
        assert_eq!(rx.recv(), Ok("virtual"));
        assert_eq!(timer.deadline(), None);
    }

    #[test]
    fn sleeping_ends_when_the_clock_gets_there() {
        let clocks = Clocks::manual();
        let context = crate::Context::new("t").unwrap();
        context.run(async {
            let mut sleep = Box::pin(clocks.sleep(Clock::Virtual, Duration::from_nanos(5)));
            clocks.advance_virtual_to(4);
            tokio::select! { biased; _ = &mut sleep => panic!("too early"), _ = std::future::ready(()) => {} }
            clocks.advance_virtual_to(5);
            sleep.await;
        });
    }
}
