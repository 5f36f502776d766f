//! The order of a reset.

use std::sync::Arc;

use parking_lot::Mutex;

/// What kind of reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// Power on.
    Cold,
    /// The reset button, or the guest's reset.
    Warm,
}

/// When in a reset. A reset goes through the phases in this order, and within one in the order of registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResetPhase {
    /// Devices and buses.
    Devices,
    /// Images in RAM, once the chipset shows RAM where they go.
    Memory,
    /// CPUs, which then find all else reset.
    Cpus,
}

/// Names a registration, to take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetId(u64);

type Handler = Arc<dyn Fn(ResetKind) + Send + Sync>;

#[derive(Default)]
struct List {
    next: u64,
    handlers: Vec<(ResetPhase, u64, Handler)>,
}

/// Everything that a reset of the machine resets. Clones share the list.
#[derive(Clone, Default)]
pub struct ResetRegistry {
    list: Arc<Mutex<List>>,
}

impl ResetRegistry {
    /// Adds a handler.
    pub fn register(&self, phase: ResetPhase, handler: impl Fn(ResetKind) + Send + Sync + 'static) -> ResetId {
        let mut list = self.list.lock();
        let id = list.next;
        list.next += 1;
        let at = list.handlers.partition_point(|(p, ..)| *p <= phase);
        list.handlers.insert(at, (phase, id, Arc::new(handler)));
        ResetId(id)
    }

    /// Takes a handler out (its device is unplugged).
    pub fn unregister(&self, id: ResetId) {
        self.list.lock().handlers.retain(|(_, i, _)| *i != id.0);
    }

    /// Resets everything. The guest is stopped.
    pub fn reset(&self, kind: ResetKind) {
        let handlers = self.list.lock().handlers.clone();
        handlers.iter().for_each(|(_, _, handler)| handler(kind));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_come_in_order_and_registrations_within_them() {
        let (resets, log) = (ResetRegistry::default(), Arc::new(Mutex::new(vec![])));
        let add = |phase, what: &'static str| {
            let log = log.clone();
            resets.register(phase, move |_| log.lock().push(what))
        };
        add(ResetPhase::Cpus, "cpu");
        add(ResetPhase::Devices, "a");
        let gone = add(ResetPhase::Devices, "gone");
        add(ResetPhase::Memory, "rom");
        add(ResetPhase::Devices, "b");
        resets.unregister(gone);
        resets.reset(ResetKind::Warm);
        assert_eq!(*log.lock(), ["a", "b", "rom", "cpu"]);
    }
}
