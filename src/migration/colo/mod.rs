//! COLO: a pair of machines in lockstep.
//!
//! The primary's output is held until the secondary has said the same, or has taken a checkpoint over. Control runs on the main
//! context ([`primary`], [`secondary`]); what blocks on the peer runs on the migration's thread. The rules that keep a survivor true:
//!
//! * a secondary touches its machine only after the whole checkpoint has arrived and was validated;
//! * the primary releases held packets when the secondary has said "received", never before;
//! * every wait for the peer can be broken off, which is what [`Colo::request_failover`] does first.

mod intake;
mod message;
pub(crate) mod primary;
pub(crate) mod secondary;
mod statistics;
mod steps;
mod style;
mod trigger;

pub use intake::take_in;
pub use message::Message;
pub use statistics::{CheckpointFigures, CheckpointStatistics};
pub use steps::{Part, STEPS, Step, StepHook, Steps, steps_of};
pub use style::Style;
pub use trigger::{CheckpointCause, CheckpointTrigger};

use crate::core::Core;
use crate::hooks::{ColoExitReason, ColoMode, Event};
use lockstep_util::{Result, bail};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::time::Instant;
use tokio::sync::Notify;

/// How far a failover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failover {
    /// None was asked for.
    None,
    /// It was asked for.
    Required,
    /// It is going on.
    Active,
    /// It is done.
    Completed,
}

/// What is known of the pair; part of the migration's state.
#[derive(Debug)]
pub(crate) struct Colo {
    mode: Cell<Option<ColoMode>>,
    last_mode: Cell<Option<ColoMode>>,
    failover: Cell<Failover>,
    /// `COLO_EXIT` was sent for this pair.
    exit_told: Cell<bool>,
    asked: Notify,
    /// The run state of a primary that did not run when the checkpoint at hand began.
    stopped_by_user: RefCell<Option<String>>,
    trigger: CheckpointTrigger,
    statistics: RefCell<CheckpointStatistics>,
    /// A secondary's checkpoint that the primary counts on and that the machine has not become yet.
    unapplied: RefCell<Option<secondary::Checkpoint>>,
    /// Since when the primary's guest runs ahead of a secondary's that stands still.
    behind: Cell<Option<Instant>>,
}

impl Colo {
    pub(crate) fn new() -> Self {
        Self {
            mode: Cell::new(None),
            last_mode: Cell::new(None),
            failover: Cell::new(Failover::None),
            exit_told: Cell::new(false),
            asked: Notify::new(),
            stopped_by_user: RefCell::new(None),
            trigger: CheckpointTrigger::default(),
            statistics: RefCell::default(),
            unapplied: RefCell::default(),
            behind: Cell::new(None),
        }
    }

    /// Which side of a pair this is, if it is one.
    pub(crate) fn mode(&self) -> Option<ColoMode> {
        self.mode.get()
    }

    pub(crate) fn has_figures(&self) -> bool {
        self.mode.get().or(self.last_mode.get()).is_some()
    }

    pub(crate) fn trigger(&self) -> CheckpointTrigger {
        self.trigger.clone()
    }

    pub(crate) fn statistics(&self) -> CheckpointStatistics {
        self.statistics.borrow().clone()
    }

    /// What `query-colo-status` returns.
    pub(crate) fn status(&self) -> Value {
        let name = |mode: Option<ColoMode>| mode.map_or("none", ColoMode::as_str);
        let reason = match self.failover.get() {
            Failover::None => "none",
            Failover::Required | Failover::Active => "processing",
            Failover::Completed => "request",
        };
        json!({"mode": name(self.mode.get()), "last-mode": name(self.last_mode.get()), "reason": reason})
    }

    /// The peer is given up. What waits for it ends at once; the failover itself is done by the pair's own task.
    pub(crate) fn request_failover(&self, core: &Core) -> Result<()> {
        if self.mode.get().is_none() {
            bail!("VM is not in COLO mode");
        }
        if self.failover.get() != Failover::None {
            bail!("COLO failover is already activated");
        }
        self.failover.set(Failover::Required);
        core.env.disks.peer_lost();
        core.yank.pull();
        self.asked.notify_waiters();
        Ok(())
    }

    fn is_failover_asked(&self) -> bool {
        self.failover.get() != Failover::None
    }

    /// Waits until a failover is asked for.
    async fn failover_asked(&self) {
        loop {
            let asked = self.asked.notified();
            if self.is_failover_asked() {
                return;
            }
            asked.await;
        }
    }

    fn enter(&self, mode: ColoMode) {
        self.mode.set(Some(mode));
        self.failover.set(Failover::None);
        self.exit_told.set(false);
        self.stopped_by_user.take();
        self.unapplied.take();
        self.behind.take();
        *self.statistics.borrow_mut() = CheckpointStatistics::default();
    }

    fn leave(&self) {
        self.last_mode.set(self.mode.take());
        self.failover.set(Failover::Completed);
    }
}

/// Counts a checkpoint, and tells of it if that is wanted.
fn note_checkpoint(core: &Core, mode: ColoMode, figures: CheckpointFigures) {
    let checkpoint = {
        let mut statistics = core.colo.statistics.borrow_mut();
        statistics.note(figures);
        statistics.last.clone()
    };
    if core.parameters.borrow().is_on("x-checkpoint-events") {
        core.env.vm.emit(Event::Checkpoint { mode, checkpoint });
    }
}

/// A step of a failover, which nothing may hold up.
async fn at(core: &Core, step: &'static str) {
    if let Err(e) = core.env.steps.at(step).await {
        core.warn(&e);
    }
}

/// The guest of a secondary runs: its clocks are where those of the primary are, which ran ahead.
async fn start_behind(core: &Core) {
    if let Some(since) = core.colo.behind.take() {
        core.env.vm.advance_clock(i64::try_from(since.elapsed().as_nanos()).unwrap_or(0));
    }
    core.env.vm.start().await;
}

/// Tells that the pair came apart, once.
fn tell_exit(core: &Core, mode: ColoMode, reason: ColoExitReason) {
    if !core.colo.exit_told.replace(true) {
        core.env.vm.emit(Event::ColoExit { mode, reason });
    }
}

/// What this side can do beyond QEMU's protocol: tell of connections with a checkpoint, send pages ahead of it, and, as a secondary,
/// keep the new epoch's frames and disk writes back until it has become what the checkpoint says, and let its guest stand still
/// between checkpoints.
const FEATURES: [&str; 4] = ["connections", "ram-ahead", "early-run", "buffered"];

/// What a sender says of itself at the end of the stream, so that a receiver of the same make answers; others pass over it.
pub(crate) fn advertisement(core: &Core) -> Option<Value> {
    let mut colo = json!({"features": FEATURES});
    if let Some(connections) = core.env.net.export_connections() {
        colo["connections"] = connections;
    }
    Some(json!({"lockstep-colo": colo}))
}

#[cfg(test)]
mod tests;
