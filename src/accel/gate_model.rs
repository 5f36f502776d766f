//! The gate under a scheduler that tries what threads may do (shuttle): the same source, on locks of the model.

#[path = "gate.rs"]
#[allow(clippy::duplicate_mod)]
mod gate;

mod sync {
    //! The locks of shuttle, spelt as those of parking_lot.
    pub use shuttle::sync::atomic::{AtomicBool, Ordering};
    use std::ops::{Deref, DerefMut};

    pub struct Mutex<T>(shuttle::sync::Mutex<T>);
    pub struct Guard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);
    pub struct Condvar(shuttle::sync::Condvar);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }
        pub fn lock(&self) -> Guard<'_, T> {
            Guard(Some(self.0.lock().unwrap()))
        }
    }

    impl Condvar {
        pub fn new() -> Self {
            Self(shuttle::sync::Condvar::new())
        }
        pub fn wait<T>(&self, guard: &mut Guard<'_, T>) {
            let inner = guard.0.take().unwrap();
            guard.0 = Some(self.0.wait(inner).unwrap());
        }
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().unwrap()
        }
    }
}

use gate::{Gate, Pass};
use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::thread;

const SCHEDULES: usize = 3000;
const VCPUS: usize = 2;

/// vCPUs that run until the gate is closed; `running` counts those that are in guest code, `runs` how often one was.
struct Machine {
    gate: Arc<Gate>,
    running: Arc<AtomicUsize>,
    runs: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Machine {
    /// `faults`: each vCPU ends its run by itself, and stands until the next opening.
    fn start(faults: bool) -> Self {
        let (gate, running, runs) =
            (Arc::new(Gate::new(VCPUS)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let vcpu = || {
            let (gate, running, runs) = (gate.clone(), running.clone(), runs.clone());
            thread::spawn(move || {
                let mut pass = Pass::default();
                while gate.enter(&mut pass) {
                    running.fetch_add(1, Ordering::SeqCst);
                    runs.fetch_add(1, Ordering::SeqCst);
                    while !faults && gate.is_open() {
                        thread::yield_now();
                    }
                    running.fetch_sub(1, Ordering::SeqCst);
                    if faults {
                        pass.hold();
                    }
                }
            })
        };
        let threads = (0..VCPUS).map(|_| vcpu()).collect();
        Self { gate, running, runs, threads }
    }

    fn end(self) -> usize {
        self.gate.close(|| ());
        self.gate.quit();
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.runs.load(Ordering::SeqCst)
    }
}

#[test]
fn when_the_gate_is_closed_no_vcpu_runs_in_any_schedule() {
    shuttle::check_random(
        || {
            let machine = Machine::start(false);
            for _ in 0..2 {
                machine.gate.open();
                machine.gate.close(|| ());
                assert_eq!(machine.running.load(Ordering::SeqCst), 0);
            }
            machine.end();
        },
        SCHEDULES,
    );
}

#[test]
fn an_opening_reaches_every_vcpu_in_any_schedule() {
    shuttle::check_random(
        || {
            let machine = Machine::start(false);
            machine.gate.open();
            // Shuttle reports it if they never come.
            while machine.running.load(Ordering::SeqCst) < VCPUS {
                thread::yield_now();
            }
            assert!(machine.end() >= VCPUS);
        },
        SCHEDULES,
    );
}

#[test]
fn a_vcpu_that_ended_its_run_stands_until_the_next_opening_in_any_schedule() {
    shuttle::check_random(
        || {
            let machine = Machine::start(true);
            machine.gate.open();
            while machine.runs.load(Ordering::SeqCst) < VCPUS {
                thread::yield_now();
            }
            machine.gate.close(|| ());
            assert_eq!(machine.runs.load(Ordering::SeqCst), VCPUS, "one run for one opening");
            machine.gate.open();
            while machine.runs.load(Ordering::SeqCst) < 2 * VCPUS {
                thread::yield_now();
            }
            assert_eq!(machine.end(), 2 * VCPUS);
        },
        SCHEDULES,
    );
}
