//! Asking for checkpoints.

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
    /// `x-checkpoint-delay` was set.
    Parameter,
    /// A command asked for it (`xen-colo-do-checkpoint`).
    Command,
}

impl CheckpointCause {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Timer, Self::Mismatch, Self::Timeout, Self::Parameter, Self::Command];

    /// A name for figures.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timer => "timer",
            Self::Mismatch => "mismatch",
            Self::Timeout => "timeout",
            Self::Parameter => "parameter",
            Self::Command => "command",
        }
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
    notify: Notify,
}

impl CheckpointTrigger {
    /// Asks for a checkpoint. Nothing happens outside of a pair.
    pub fn request(&self, cause: CheckpointCause) {
        self.shared.causes.fetch_or(1 << cause as u8, Ordering::SeqCst);
        // Leaves a permit if nobody waits right now.
        self.shared.notify.notify_one();
    }

    pub(crate) fn parameter_changed(&self) {
        self.request(CheckpointCause::Parameter);
    }

    /// Forgets all requests: what they were about is settled by the checkpoint at hand. Later ones stay.
    pub(crate) fn rearm(&self) {
        self.shared.causes.store(0, Ordering::SeqCst);
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
