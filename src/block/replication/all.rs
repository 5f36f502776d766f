//! What migration tells all replication nodes of a graph at once.

use std::cell::RefCell;
use std::rc::Rc;

use lockstep_util::Result;

use super::{Replication, ReplicationMode};
use crate::drain::DrainGuard;
use crate::driver::LocalBoxFuture;
use crate::graph::Graph;
use crate::node::Node;

fn nodes(graph: &Graph) -> Vec<Rc<Node>> {
    graph.nodes().into_iter().filter(|n| n.driver_as::<Replication>().is_some()).collect()
}

/// Begins the lock-step on all nodes. The guest stands still, images are active. The first error is returned; nodes
/// started before it stay started until [`replication_stop_all`].
pub async fn replication_start_all(graph: &Graph, mode: ReplicationMode) -> Result<()> {
    for node in nodes(graph) {
        if let Some(replication) = node.driver_as::<Replication>() {
            replication.start(mode).await?;
        }
    }
    Ok(())
}

/// A checkpoint on all nodes. The guest stands still; no data is made durable, so that it is quick.
pub async fn replication_do_checkpoint_all(graph: &Graph) -> Result<()> {
    for node in nodes(graph) {
        if let Some(replication) = node.driver_as::<Replication>() {
            replication.checkpoint().await?;
        }
    }
    Ok(())
}

/// Fails with `I/O error occurred` if a write to the other side (primary) or a copy before a write (secondary) has
/// failed: the lock-step must end before the next checkpoint.
pub fn replication_get_error_all(graph: &Graph) -> Result<()> {
    for node in nodes(graph) {
        if let Some(replication) = node.driver_as::<Replication>() {
            replication.get_error()?;
        }
    }
    Ok(())
}

/// Ends the lock-step on all nodes; all are tried, the first error is returned. With `failover` a secondary takes its
/// disk over: exports that could write to it are gone when this returns, the commit goes on behind the running guest.
pub async fn replication_stop_all(graph: &Graph, failover: bool) -> Result<()> {
    let mut result = Ok(());
    for node in nodes(graph) {
        if let Some(replication) = node.driver_as::<Replication>() {
            let stopped = replication.stop(failover).await;
            if result.is_ok() {
                result = stopped;
            }
        }
    }
    result
}

/// Whether a failover's commit is still going on.
pub fn replication_is_committing(graph: &Graph) -> bool {
    nodes(graph).iter().any(|n| n.driver_as::<Replication>().is_some_and(|r| r.stage() == super::Stage::Failover))
}

/// The peer is given up, without waiting for anything: requests of the primary that wait for the secondary end now and
/// later ones do not reach it; what could write to a secondary disk through an export is cut off.
pub fn replication_peer_lost(graph: &Graph) {
    for node in nodes(graph) {
        if let Some(replication) = node.driver_as::<Replication>() {
            replication.peer_lost();
        }
    }
}

/// Told (and waited for) when a takeover of a disk comes to a named step.
pub type StepTeller = dyn Fn(&'static str) -> LocalBoxFuture<'static, ()>;

/// Where a graph's takeovers tell their steps, so that tests can break in; nobody listens by default.
#[derive(Default)]
pub struct TakeoverSteps {
    teller: RefCell<Option<Rc<StepTeller>>>,
}

impl TakeoverSteps {
    /// Those of a graph.
    pub fn of(graph: &Graph) -> Rc<Self> {
        graph.extension()
    }

    /// From now on `teller` is told.
    pub fn tell(&self, teller: Rc<StepTeller>) {
        *self.teller.borrow_mut() = Some(teller);
    }

    pub(super) fn is_told(&self) -> bool {
        self.teller.borrow().is_some()
    }

    pub(super) async fn at(&self, step: &'static str) {
        let teller = self.teller.borrow().clone();
        if let Some(teller) = teller {
            teller(step).await;
        }
    }
}

/// The primary's writes wait while this exists. Dropping it lets them go on.
pub struct NbdWriteGate {
    quiet: Vec<DrainGuard>,
}

impl NbdWriteGate {
    /// Closes the gate for writes of the primary to secondary disks that have not begun: from the moment a checkpoint
    /// was received (the primary may run again) until the overlays are emptied. The secondary's guest must stand still,
    /// its disk is quiesced too.
    pub fn close(graph: &Graph) -> Self {
        let disks = nodes(graph).into_iter().filter_map(|n| n.driver_as::<Replication>()?.secondary_disk());
        Self { quiet: disks.map(|disk| DrainGuard::begin(vec![disk])).collect() }
    }

    /// Waits for the writes that had begun.
    pub async fn quiet(&self) {
        for guard in &self.quiet {
            guard.wait().await;
        }
    }
}
