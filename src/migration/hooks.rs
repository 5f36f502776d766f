//! What a migration asks of the rest of the machine. The system crate implements these; tests have fakes. All of them are called on
//! the main context.

use crate::colo::{CheckpointFigures, Style};
use lockstep_util::{Error, Result};
use serde_json::Value;
use std::pin::Pin;
use std::time::Instant;

/// A future that stays on its thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Why the guest is stopped; decides the run state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The last part of a migration: `finish-migrate`.
    Migration,
    /// A checkpoint or a failover: `colo`.
    Colo,
}

/// Which side of a pair this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColoMode {
    /// Its guest's output is what the world sees.
    Primary,
    /// Its guest follows.
    Secondary,
}

impl ColoMode {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }
}

/// Why a pair came apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColoExitReason {
    /// `x-colo-lost-heartbeat` said so.
    Request,
    /// The channel or the peer failed.
    Error,
}

impl ColoExitReason {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Error => "error",
        }
    }
}

/// An event for the monitors.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// `MIGRATION`: a new status. Only with the capability `events`.
    Migration(&'static str),
    /// `MIGRATION_PASS`. Only with the capability `events`.
    MigrationPass(u64),
    /// `COLO_EXIT`.
    ColoExit {
        /// Which side this was.
        mode: ColoMode,
        /// Why.
        reason: ColoExitReason,
    },
    /// `X_COLO_CHECKPOINT`. Only with the parameter `x-checkpoint-events`.
    Checkpoint {
        /// Which side this is.
        mode: ColoMode,
        /// The checkpoint.
        checkpoint: CheckpointFigures,
    },
}

impl Event {
    /// Name and data on the wire.
    pub fn to_qmp(&self) -> (&'static str, Value) {
        match self {
            Self::Migration(status) => ("MIGRATION", serde_json::json!({"status": status})),
            Self::MigrationPass(pass) => ("MIGRATION_PASS", serde_json::json!({"pass": pass})),
            Self::ColoExit { mode, reason } => {
                ("COLO_EXIT", serde_json::json!({"mode": mode.as_str(), "reason": reason.as_str()}))
            }
            Self::Checkpoint { mode, checkpoint } => {
                let mut data = checkpoint.to_json();
                data["mode"] = mode.as_str().into();
                ("X_COLO_CHECKPOINT", data)
            }
        }
    }
}

/// The machine: starting, stopping, run states.
pub trait VmControl {
    /// Whether the guest runs.
    fn is_running(&self) -> bool;

    /// Name of the run state (`running`, `paused`, `prelaunch`, ...).
    fn run_state(&self) -> String;

    /// Whether the guest starts by itself when a migration has arrived (no `-S`).
    fn autostart(&self) -> bool;

    /// Stops the guest, if it runs: vCPUs parked, virtual clock off, disks drained and what the guest asked to be flushed flushed.
    /// Sets the run state in any case. Emits `STOP` if it ran.
    ///
    /// # Errors
    /// When a disk could not be brought to rest.
    fn stop(&self, reason: StopReason) -> LocalFuture<'_, Result<()>>;

    /// Starts the guest: run state `running`, `RESUME`.
    fn start(&self) -> LocalFuture<'_, ()>;

    /// Moves the clock of a guest that stands still forward by so many nanoseconds.
    fn advance_clock(&self, ns: i64) {
        let _ = ns;
    }

    /// Device state that is loaded from now on was saved at `at`, where counters that follow the host's have gone on since: they are
    /// loaded as far ahead. `None`: as they were saved.
    fn loads_state_of(&self, at: Option<Instant>) {
        let _ = at;
    }

    /// Sets the run state of a guest that stands still (`postmigrate`, `paused`, `prelaunch`).
    fn set_run_state(&self, name: &str);

    /// Takes the images back for writing (start of a receiver, or of a sender whose migration failed).
    ///
    /// # Errors
    /// When an image cannot be had.
    fn activate_disks(&self) -> LocalFuture<'_, Result<()>>;

    /// Gives the images up for the receiver.
    ///
    /// # Errors
    /// When an image cannot be given up.
    fn inactivate_disks(&self) -> LocalFuture<'_, Result<()>>;

    /// Sends an event to the monitors.
    fn emit(&self, event: Event);

    /// Tells the network where the guest is now, in rounds, after delays in milliseconds (`announce-*`).
    fn announce(&self, schedule: AnnounceSchedule);

    /// The receiving migration failed; the process is to end with status 1 after the error was printed (`exit-on-error`).
    fn incoming_failed(&self, error: &Error);

    /// A failure that nobody is told of otherwise.
    fn warn(&self, message: &str) {
        tracing::warn!("{message}");
    }
}

/// When the guest's addresses are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnounceSchedule {
    /// Delay before the second round, in milliseconds.
    pub initial: u64,
    /// The longest delay, in milliseconds.
    pub max: u64,
    /// How many rounds.
    pub rounds: u64,
    /// By how much delays grow, in milliseconds.
    pub step: u64,
}

/// The disks of a pair (all replication nodes at once).
pub trait DiskReplication {
    /// Starts replication as this side.
    ///
    /// # Errors
    /// That of the first node that refused.
    fn start_all(&self, mode: ColoMode) -> LocalFuture<'_, Result<()>>;

    /// Makes the disks' present state the point to go back to. On the secondary the guest's own writes are discarded.
    ///
    /// # Errors
    /// That of the first node that failed.
    fn checkpoint_all(&self) -> LocalFuture<'_, Result<()>>;

    /// An I/O error that replication has seen since it began: on the primary a write that the secondary did not get.
    ///
    /// # Errors
    /// That error.
    fn error(&self) -> Result<()>;

    /// The peer is given up: from now on no request may wait for it, and no writer of its may change a disk. Must not block.
    fn peer_lost(&self);

    /// Ends replication; with `failover` the present state is made to last.
    ///
    /// # Errors
    /// That of the first node that failed.
    fn stop_all(&self, failover: bool) -> LocalFuture<'_, Result<()>>;

    /// Holds back (or lets through) the primary's disk writes until the secondary's overlays belong to the new epoch: between
    /// "received" and the end of the checkpoint.
    fn gate_peer_writes(&self, held: bool);
}

/// The net filters and the comparison of a pair.
pub trait NetCheckpoint {
    /// Either side, before anything else of a checkpoint: the peer is about to wait until its host knows that ours has its frames.
    fn checkpoint_begins(&self) {}

    /// Secondary, guest stopped: waits until everything that the guest has sent is with the primary. Gives up after a bounded time,
    /// or when the connection is gone.
    fn drain_outgoing(&self) -> LocalFuture<'_, ()>;

    /// Primary, at "received": reads what the secondary sent in the old epoch away and releases all held packets. In the new epoch,
    /// if output is to be buffered, each packet that is held asks for a checkpoint.
    fn release_held(&self, style: Style) -> LocalFuture<'_, ()>;

    /// Primary, guest stopped: waits until the secondary's host has every mirrored frame, so that none of the old epoch comes after
    /// [`discard_incoming`](Self::discard_incoming). Gives up after a bounded time.
    fn drain_mirrors(&self) -> LocalFuture<'_, ()> {
        Box::pin(async {})
    }

    /// Secondary, guest stopped, before "received": forgets mirrored frames that the guest has not taken. The primary has them in its
    /// state, or mirrors them again.
    fn discard_incoming(&self) -> LocalFuture<'_, ()> {
        Box::pin(async {})
    }

    /// Primary, guest stopped: frames that were mirrored and have not reached the guest are noted, to be mirrored again in the new
    /// epoch.
    fn remirror_undelivered(&self);

    /// Primary: whether this side may speak for the machine where nobody compares what it says (ARP, neighbour discovery). It may
    /// not from the loss of the pair until it is told to go on alone; and, should it wake up from being frozen, not before it has
    /// looked: `peer_is_there` is asked for every such frame, from any thread.
    fn hold_identity(&self, open: bool, peer_is_there: Option<Box<dyn Fn() -> bool + Send + Sync>>) {
        let _ = (open, peer_is_there);
    }

    /// Tells the filters that the guest has become a copy of the primary: at the start, and when a checkpoint was applied.
    fn notify_checkpoint(&self);

    /// Tells the filters that this side goes on alone.
    fn notify_failover(&self);

    /// Secondary: what the filters know of connections (offsets of sequence numbers), to travel with later migrations. `None` if
    /// there is nothing.
    fn export_connections(&self) -> Option<Value> {
        None
    }

    /// Takes over what [`export_connections`](Self::export_connections) gave on another host; it counts from the next
    /// [`notify_checkpoint`](Self::notify_checkpoint) on.
    ///
    /// # Errors
    /// When it makes no sense.
    fn import_connections(&self, connections: &Value) -> Result<()> {
        let _ = connections;
        Ok(())
    }
}

/// Hooks for a machine without replicated disks.
#[derive(Debug)]
pub struct NoDisks;

impl DiskReplication for NoDisks {
    fn start_all(&self, _: ColoMode) -> LocalFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn checkpoint_all(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn error(&self) -> Result<()> {
        Ok(())
    }
    fn peer_lost(&self) {}
    fn stop_all(&self, _: bool) -> LocalFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn gate_peer_writes(&self, _: bool) {}
}

/// Hooks for a machine without a compared network.
#[derive(Debug)]
pub struct NoNet;

impl NetCheckpoint for NoNet {
    fn drain_outgoing(&self) -> LocalFuture<'_, ()> {
        Box::pin(async {})
    }
    fn release_held(&self, _: Style) -> LocalFuture<'_, ()> {
        Box::pin(async {})
    }
    fn remirror_undelivered(&self) {}
    fn notify_checkpoint(&self) {}
    fn notify_failover(&self) {}
}
