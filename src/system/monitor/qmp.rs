//! A QMP monitor: a session between whoever reads its bytes and the main context.
//!
//! Input is fed on a thread of its own, so that out-of-band commands are answered while the main context is busy. Other
//! commands run on the main context, one at a time and in order.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock, Weak},
};

use lockstep_event::ContextHandle;
use lockstep_qapi::{Catalogue, EventMessage, Session, SessionConfig};
use parking_lot::Mutex;

/// Where replies and events go. Must not block.
pub type Output = Box<dyn Fn(Vec<u8>) + Send + Sync>;

/// A monitor's two halves; the reading half may be used on any thread.
pub struct QmpMonitor {
    state: Mutex<State>,
    /// Called when the session takes input again.
    input_wanted: OnceLock<Box<dyn Fn() + Send + Sync>>,
    output: Output,
    catalogue: Arc<Catalogue>,
    main: ContextHandle,
    /// Starts running what waits, on the main context.
    pump: Box<dyn Fn(Arc<QmpMonitor>) + Send + Sync>,
}

struct State {
    session: Session,
    /// Input that the session did not take yet.
    backlog: VecDeque<u8>,
    /// Whether the main context runs this monitor's commands now.
    pumping: bool,
    closed: bool,
}

impl QmpMonitor {
    /// A monitor that writes to `output`; `pump` is called on the main context when commands wait, and runs
    /// [`next_call`](Self::next_call) until there are none.
    pub fn new(
        config: SessionConfig,
        catalogue: Arc<Catalogue>,
        main: ContextHandle,
        output: Output,
        pump: impl Fn(Arc<QmpMonitor>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let session = Session::new(config, catalogue.clone());
        let state = State { session, backlog: VecDeque::new(), pumping: false, closed: false };
        let pump = Box::new(pump);
        Arc::new(Self { state: Mutex::new(state), input_wanted: OnceLock::new(), output, catalogue, main, pump })
    }

    /// A client is there: it is greeted.
    pub fn opened(&self) {
        let mut state = self.state.lock();
        state.closed = false;
        state.session.open();
        self.flush(&mut state);
    }

    /// The client is gone; what it asked and was not begun is dropped.
    pub fn closed(&self) {
        let mut state = self.state.lock();
        state.session.close();
        state.backlog.clear();
        state.closed = true;
    }

    /// Whether more input is wanted now.
    pub fn can_read(&self) -> bool {
        let state = self.state.lock();
        state.backlog.is_empty() && state.session.wants_input()
    }

    /// Has `f` called (on the main context) whenever input is wanted again after it was not.
    pub fn on_input_wanted(&self, f: impl Fn() + Send + Sync + 'static) {
        let _ = self.input_wanted.set(Box::new(f));
    }

    fn want_input(&self) {
        if let Some(f) = self.input_wanted.get() {
            f();
        }
    }

    /// Takes input from the client. Commands out of band are run before this returns.
    pub fn feed(self: &Arc<Self>, bytes: &[u8]) {
        self.state.lock().backlog.extend(bytes);
        self.take_backlog();
        let mut state = self.state.lock();
        if !state.pumping {
            state.pumping = true;
            let this = self.clone();
            self.main.post(move || (this.pump)(this.clone()));
        }
    }

    /// Gives the session what it takes. Commands out of band run without the lock held: they may send events.
    fn take_backlog(&self) {
        loop {
            let (taken, calls) = {
                let mut state = self.state.lock();
                let state = &mut *state;
                let taken = state.session.feed(state.backlog.make_contiguous());
                state.backlog.drain(..taken);
                let calls: Vec<_> = std::iter::from_fn(|| state.session.next_oob()).collect();
                self.flush(state);
                (taken, calls)
            };
            for call in calls {
                let result = self.catalogue.call_oob(&call);
                let mut state = self.state.lock();
                state.session.finish(call, result);
                self.flush(&mut state);
            }
            if taken == 0 {
                return;
            }
        }
    }

    /// The next command to run on the main context. After `None` the pump ends; it is called again when there is more.
    pub fn next_call(&self) -> Option<lockstep_qapi::Call> {
        loop {
            {
                let mut state = self.state.lock();
                let call = state.session.next_call();
                self.flush(&mut state);
                if call.is_some() {
                    return call;
                }
                // Requests that failed before a command ran may have made room for more.
                if state.backlog.is_empty() || !state.session.wants_input() {
                    state.pumping = false;
                    break;
                }
            }
            self.take_backlog();
        }
        self.want_input();
        None
    }

    /// Sends a command's result.
    pub fn finish(&self, call: lockstep_qapi::Call, result: lockstep_util::Result<serde_json::Value>) {
        {
            let mut state = self.state.lock();
            state.session.finish(call, result);
            self.flush(&mut state);
        }
        self.take_backlog();
    }

    /// Sends an event, if the client has negotiated.
    pub fn event(&self, event: &EventMessage) {
        let mut state = self.state.lock();
        state.session.event(event);
        self.flush(&mut state);
    }

    fn flush(&self, state: &mut State) {
        if state.session.has_output() {
            let bytes = state.session.take_output();
            if !state.closed {
                (self.output)(bytes);
            }
        }
    }
}

/// All QMP monitors, for events. Main context only.
#[derive(Default)]
pub struct Monitors {
    list: std::cell::RefCell<Vec<Weak<QmpMonitor>>>,
}

impl Monitors {
    /// Adds one.
    pub fn add(&self, monitor: &Arc<QmpMonitor>) {
        self.list.borrow_mut().push(Arc::downgrade(monitor));
    }

    /// Sends an event to all.
    pub fn broadcast(&self, event: &EventMessage) {
        let mut list = self.list.borrow_mut();
        list.retain(|m| m.strong_count() > 0);
        let monitors: Vec<_> = list.iter().filter_map(Weak::upgrade).collect();
        drop(list);
        monitors.iter().for_each(|m| m.event(event));
    }
}
