//! Events of the block layer on their way to the monitors. Those that a failing disk makes by the thousand go out once a
//! second at most, the last one of each second.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::{Rc, Weak},
    time::Duration,
};

use lockstep_qapi::EventMessage;
use serde_json::Value;

use super::Vm;

const PERIOD: Duration = Duration::from_secs(1);

/// Events held back, with the key within which their copies replace each other.
const LIMITED: &[(&str, &str)] = &[("QUORUM_REPORT_BAD", "node-name"), ("QUORUM_FAILURE", "reference")];

/// What was sent within the last second, and what waits for its end.
#[derive(Default)]
struct Held {
    waiting: RefCell<HashMap<(&'static str, String), Option<EventMessage>>>,
}

/// Leads the events of the machine's block graph to its monitors.
pub(super) fn connect(vm: &Rc<Vm>) {
    let weak = Rc::downgrade(vm);
    let held = Rc::new(Held::default());
    vm.graph.set_event_sink(Rc::new(move |name, data| {
        let Value::Object(members) = data else { return };
        let Some(event) = EventMessage::named(name, members) else { return };
        held.send(&weak, event);
    }));
}

impl Held {
    fn send(self: &Rc<Self>, vm: &Weak<Vm>, event: EventMessage) {
        let Some((name, key)) = LIMITED.iter().find(|(name, _)| *name == event.name()) else {
            return broadcast(vm, &event);
        };
        let key = (*name, event.data().get(*key).and_then(Value::as_str).unwrap_or_default().to_owned());
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(&key) {
            *waiting = Some(event);
            return;
        }
        broadcast(vm, &event);
        self.waiting.borrow_mut().insert(key.clone(), None);
        let (held, vm) = (self.clone(), vm.clone());
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(PERIOD).await;
                let last = match held.waiting.borrow_mut().get_mut(&key) {
                    Some(waiting) => waiting.take(),
                    None => None,
                };
                match last {
                    Some(event) => broadcast(&vm, &event),
                    None => break,
                }
            }
            held.waiting.borrow_mut().remove(&key);
        });
    }
}

fn broadcast(vm: &Weak<Vm>, event: &EventMessage) {
    if let Some(vm) = vm.upgrade() {
        vm.monitors.broadcast(event);
    }
}
