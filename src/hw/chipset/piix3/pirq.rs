//! Four PCI interrupts, each steered to one of 16 ISA interrupts or to none.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::core::{IrqLine, IrqSink};

/// A route that goes nowhere.
const DISABLED: u8 = 0x80;

struct State {
    routes: [u8; 4],
    levels: [bool; 4],
    /// Levels of the ISA interrupts as this router drives them.
    driven: u16,
}

impl State {
    fn wanted(&self) -> u16 {
        let high = self.routes.iter().zip(self.levels).filter(|&(route, level)| level && route & DISABLED == 0);
        high.fold(0, |lines, (route, _)| lines | 1 << (route & 15))
    }
}

/// The router. A leaf but for the interrupt controllers behind it.
pub struct PirqRouter {
    state: Mutex<State>,
    isa: [IrqLine; 16],
}

impl PirqRouter {
    pub(super) fn new(isa: [IrqLine; 16]) -> Arc<Self> {
        let state = State { routes: [DISABLED; 4], levels: [false; 4], driven: 0 };
        Arc::new(Self { state: Mutex::new(state), isa })
    }

    /// Levels of PIRQA to PIRQD.
    pub fn levels(&self) -> [bool; 4] {
        self.state.lock().levels
    }

    pub(super) fn set_routes(&self, routes: [u8; 4]) {
        self.change(|s| s.routes = routes);
    }

    /// Takes a saved state over without touching the interrupt controllers.
    pub(super) fn load(&self, routes: [u8; 4], levels: [bool; 4]) {
        let mut state = self.state.lock();
        *state = State { routes, levels, driven: 0 };
        state.driven = state.wanted();
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        f(&mut state);
        let wanted = state.wanted();
        let changed = wanted ^ state.driven;
        state.driven = wanted;
        for (n, line) in self.isa.iter().enumerate().filter(|(n, _)| changed >> n & 1 != 0) {
            line.set(wanted >> n & 1 != 0);
        }
    }
}

impl IrqSink for PirqRouter {
    fn set_irq(&self, n: u32, level: bool) {
        self.change(|s| s.levels[n as usize & 3] = level);
    }
}
