//! Asking for checkpoints.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::Notify;

/// Why a checkpoint is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointCause {
    /// The time since the last one is over.
    Timer,
    /// The two sides said different things.
    Mismatch,
    /// One side said something and the other nothing for too long.
    Timeout,
    /// There was no room to compare more.
    Full,
    /// `x-checkpoint-delay` or `x-checkpoint-style` was set.
    Parameter,
    /// A command asked for it (`xen-colo-do-checkpoint`).
    Command,
    /// Buffered output waits for it.
    Output,
}

impl CheckpointCause {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Timer, Self::Mismatch, Self::Timeout, Self::Full, Self::Parameter, Self::Command, Self::Output];

    /// A name for figures.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timer => "timer",
            Self::Mismatch => "mismatch",
            Self::Timeout => "timeout",
            Self::Full => "full",
            Self::Parameter => "parameter",
            Self::Command => "command",
            Self::Output => "output",
        }
    }

    /// Whether the two sides made it necessary.
    pub(crate) fn is_difference(self) -> bool {
        matches!(self, Self::Mismatch | Self::Timeout | Self::Full)
    }
}

/// The handle by which anybody asks for a checkpoint, from any thread. Requests that come before a checkpoint has taken them along
/// count as one.
#[derive(Clone, Debug, Default)]
pub struct CheckpointTrigger {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    causes: AtomicU8,
    /// Where the first difference of an epoch was seen.
    protocol: Mutex<Option<&'static str>>,
    notify: Notify,
}

impl CheckpointTrigger {
    /// Asks for a checkpoint. Nothing happens outside of a pair.
    pub fn request(&self, cause: CheckpointCause) {
        self.shared.causes.fetch_or(1 << cause as u8, Ordering::SeqCst);
        // Leaves a permit if nobody waits right now.
        self.shared.notify.notify_one();
    }

    /// Asks for a checkpoint because of a difference that was seen in a protocol (`tcp`, `udp`, `icmp`, `other`).
    pub fn differs(&self, cause: CheckpointCause, protocol: &'static str) {
        self.shared.protocol.lock().get_or_insert(protocol);
        self.request(cause);
    }

    pub(crate) fn parameter_changed(&self) {
        self.request(CheckpointCause::Parameter);
    }

    /// Forgets all requests: what they were about is settled by the checkpoint at hand. Later ones stay.
    pub(crate) fn rearm(&self) {
        self.shared.causes.store(0, Ordering::SeqCst);
        self.shared.protocol.lock().take();
    }

    /// The protocol of the difference that `cause` is about.
    pub(crate) fn protocol(&self, cause: CheckpointCause) -> Option<&'static str> {
        if cause.is_difference() { *self.shared.protocol.lock() } else { None }
    }

    /// Waits for a request; it stays until [`rearm`](Self::rearm).
    pub(crate) async fn requested(&self) -> CheckpointCause {
        loop {
            let causes = self.shared.causes.load(Ordering::SeqCst);
            if let Some(cause) = CheckpointCause::ALL.into_iter().find(|c| causes & (1 << *c as u8) != 0) {
                return cause;
            }
            self.shared.notify.notified().await;
        }
    }
}
