//! What migration tells all replication nodes of a graph at once.

use std::rc::Rc;

use lockstep_util::Result;

use super::{Replication, ReplicationMode};
use crate::drain::DrainGuard;
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
pub async fn replication_get_error_all(graph: &Graph) -> Result<()> {
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

/// The primary's writes wait while this exists. Dropping it lets them go on.
pub struct NbdWriteGate {
    _quiet: Vec<DrainGuard>,
}

/// Closes the gate for writes of the primary to secondary disks and waits for those that have begun: from the moment a
/// checkpoint was received (the primary may run again) until the overlays are emptied. The secondary's guest must stand
/// still, its disk is quiesced too.
pub async fn nbd_write_gate(graph: &Graph) -> NbdWriteGate {
    let mut quiet = Vec::new();
    for node in nodes(graph) {
        if let Some(disk) = node.driver_as::<Replication>().and_then(|r| r.secondary_disk()) {
            quiet.push(disk.drain().await);
        }
    }
    NbdWriteGate { _quiet: quiet }
}
