//! What devices ask of the machine's run state, and what the machine tells devices.

use std::sync::Arc;

use parking_lot::Mutex;

/// Why the machine is reset: the names of QAPI's `ShutdownCause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// The guest asked (keyboard controller, port 92h, reset control register).
    GuestReset,
    /// A subsystem was reset.
    SubsystemReset,
}

/// Why the machine is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownCause {
    /// The guest asked (ACPI S5).
    GuestShutdown,
    /// A CPU gave up (triple fault with `-action reboot=shutdown`).
    GuestPanic,
}

/// A request to the owner of the run state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineRequest {
    /// Reset all devices and CPUs.
    Reset(ResetCause),
    /// Power off.
    Shutdown(ShutdownCause),
    /// Suspend to RAM until something wakes the machine.
    Suspend,
    /// Suspend to disk: power off, but tell the user that it was this (`SUSPEND_DISK`).
    SuspendToDisk,
    /// Leave suspend to RAM.
    Wakeup,
}

type Receiver = Arc<dyn Fn(MachineRequest) + Send + Sync>;

/// Where requests go. They may be made on any thread and with device locks held, so the receiver only notes them. Clones share
/// the receiver.
#[derive(Clone, Default)]
pub struct RequestSink {
    receiver: Arc<Mutex<Option<Receiver>>>,
}

impl RequestSink {
    /// Sets who receives requests; until then they are dropped.
    pub fn set_receiver(&self, receiver: impl Fn(MachineRequest) + Send + Sync + 'static) {
        *self.receiver.lock() = Some(Arc::new(receiver));
    }

    /// Makes a request.
    pub fn request(&self, request: MachineRequest) {
        let receiver = self.receiver.lock().clone();
        match receiver {
            Some(receiver) => receiver(request),
            None => tracing::warn!("nobody takes {request:?}"),
        }
    }
}

/// Functions to call when something happens. Clones share the list.
#[derive(Clone, Default)]
pub struct Notifier {
    list: Arc<Mutex<Vec<Arc<dyn Fn() + Send + Sync>>>>,
}

impl Notifier {
    /// Adds a function.
    pub fn add(&self, f: impl Fn() + Send + Sync + 'static) {
        self.list.lock().push(Arc::new(f));
    }

    /// Calls all functions in the order in which they were added.
    pub fn notify(&self) {
        let list = self.list.lock().clone();
        list.iter().for_each(|f| f());
    }
}
