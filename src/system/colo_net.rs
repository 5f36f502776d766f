//! What checkpoints and failovers do to the networks.

use std::{cell::RefCell, rc::Weak, time::Duration};

use lockstep_migration::hooks::{LocalFuture, NetCheckpoint};
use lockstep_net::{NetRegistry, NetTables};
use serde_json::Value;

use crate::vm::Vm;

/// How long a peer's host may take for what was sent to it. A checkpoint is not held up for longer: what is lost is a
/// retransmission, or a difference that asks for the next checkpoint.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// The networks of a machine, for its migration.
pub struct ColoNet {
    vm: Weak<Vm>,
    /// The primary's connections, as they came with the checkpoint that is being applied.
    tables: RefCell<NetTables>,
}

impl ColoNet {
    /// For a machine.
    pub fn new(vm: Weak<Vm>) -> Self {
        Self { vm, tables: RefCell::default() }
    }

    fn net(&self) -> Option<NetRegistry> {
        self.vm.upgrade().map(|vm| vm.net.clone())
    }
}

impl NetCheckpoint for ColoNet {
    fn drain_outgoing(&self) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            if let Some(net) = self.net() {
                net.drain_outgoing(DRAIN_LIMIT).await;
            }
        })
    }

    fn drain_mirrors(&self) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            if let Some(net) = self.net() {
                net.compare_end_epoch().await;
                net.drain_mirrors(DRAIN_LIMIT).await;
            }
        })
    }

    fn discard_incoming(&self) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            if let Some(net) = self.net() {
                net.discard_incoming().await;
            }
        })
    }

    fn release_held(&self) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            if let Some(net) = self.net() {
                net.compare_checkpoint_flush().await;
                net.mirror_again();
            }
        })
    }

    // They are mirrored again when the secondary has said that it has forgotten them: see `release_held`.
    fn remirror_undelivered(&self) {}

    fn hold_identity(&self, open: bool, peer_is_there: Option<Box<dyn Fn() -> bool + Send + Sync>>) {
        if let Some(net) = self.net() {
            let gate = net.identity_gate();
            gate.set_probe(peer_is_there);
            gate.set_open(open);
        }
    }

    fn notify_checkpoint(&self) {
        if let Some(net) = self.net() {
            net.set_colo_secondary(true);
            net.filters_checkpoint(&self.tables.take());
        }
    }

    fn notify_failover(&self) {
        if let Some(net) = self.net() {
            net.filters_failover();
        }
    }

    fn export_connections(&self) -> Option<Value> {
        let tables = self.net()?.export_tables();
        if tables.0.is_empty() { None } else { serde_json::to_value(&tables).ok() }
    }

    fn import_connections(&self, connections: &Value) {
        match serde_json::from_value(connections.clone()) {
            Ok(tables) => *self.tables.borrow_mut() = tables,
            Err(e) => tracing::warn!("the primary's connections cannot be read: {e}"),
        }
    }
}
