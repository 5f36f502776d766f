//! The gate before which vCPU threads park.

use super::sync::{AtomicBool, Condvar, Mutex, Ordering};

/// Open: vCPUs run. Closed: none does, and whoever closed it knows.
pub struct Gate {
    state: Mutex<State>,
    opened: Condvar,
    parked: Condvar,
    open: AtomicBool,
    count: usize,
}

#[derive(Default)]
struct State {
    open: bool,
    quit: bool,
    parked: usize,
    generation: u64,
}

/// What a vCPU's thread remembers between two runs.
#[derive(Default)]
pub struct Pass {
    /// The opening after which this vCPU may not run any more until the next one.
    held: Option<u64>,
    current: u64,
}

impl Pass {
    /// The vCPU stands until the gate is opened the next time.
    pub fn hold(&mut self) {
        self.held = Some(self.current);
    }
}

impl Gate {
    /// A closed gate for `count` vCPUs, of which none has come yet.
    pub fn new(count: usize) -> Self {
        Self {
            state: Mutex::new(State::default()),
            opened: Condvar::new(),
            parked: Condvar::new(),
            open: AtomicBool::new(false),
            count,
        }
    }

    /// Closes the gate and waits until all vCPUs are parked. `kick` makes those that run look at it.
    pub fn close(&self, kick: impl FnOnce()) {
        let mut state = self.state.lock();
        state.open = false;
        self.open.store(false, Ordering::SeqCst);
        if state.parked < self.count {
            kick();
        }
        while state.parked < self.count {
            self.parked.wait(&mut state);
        }
    }

    /// Lets all vCPUs run.
    pub fn open(&self) {
        let mut state = self.state.lock();
        state.open = true;
        state.generation += 1;
        self.open.store(true, Ordering::SeqCst);
        self.opened.notify_all();
    }

    /// Whether it is open: what a vCPU's thread asks after each kick.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Tells all vCPUs' threads to end.
    pub fn quit(&self) {
        self.state.lock().quit = true;
        self.opened.notify_all();
    }

    /// Parks the calling vCPU's thread until it may run; false: it shall end.
    pub fn enter(&self, pass: &mut Pass) -> bool {
        let mut state = self.state.lock();
        state.parked += 1;
        self.parked.notify_all();
        while !state.quit && (!state.open || pass.held == Some(state.generation)) {
            self.opened.wait(&mut state);
        }
        if state.quit {
            return false;
        }
        state.parked -= 1;
        *pass = Pass { held: None, current: state.generation };
        true
    }
}
