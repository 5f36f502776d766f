//! What checkpoints and failovers do to the networks.

use std::{cell::RefCell, collections::BTreeMap, rc::Weak, time::Duration};

use lockstep_migration::{
    colo::Style,
    hooks::{LocalFuture, NetCheckpoint},
};
use lockstep_net::{
    NetRegistry, NetTables,
    compare::{CompareStats, Protocol, Reason},
};
use lockstep_util::{Result, err};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::vm::Vm;

/// How long a peer's host may take for what was sent to it. A checkpoint is not held up for longer: what is lost is a
/// retransmission, or a difference that asks for the next checkpoint.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// How long a query waits for the figures of the comparing threads.
const FIGURES_LIMIT: Duration = Duration::from_millis(200);

/// The figures of the present or last pair (`COLOStatistics`), if there was one.
///
/// # Errors
/// When the machine has no migration yet.
pub async fn statistics(vm: &Vm) -> Result<Option<Value>> {
    let migration = vm.migration()?;
    if !migration.was_colo() {
        return Ok(None);
    }
    let mut all = migration.checkpoint_statistics().to_json();
    // A comparing thread that is busy is left out rather than waited for.
    let compare = tokio::time::timeout(FIGURES_LIMIT, vm.net.compare_stats()).await.unwrap_or_default();
    let seen = |protocol: Protocol| -> u64 {
        compare.values().filter_map(|stats| stats.divergences.get(protocol.as_str())).sum()
    };
    all["divergences"] =
        Protocol::ALL.map(|p| (p.as_str().to_owned(), seen(p).into())).into_iter().collect::<Map<_, _>>().into();
    all["held-packets"] = compare.values().map(|stats| stats.held_packets).sum::<usize>().into();
    all["held-bytes"] = compare.values().map(|stats| stats.held_bytes).sum::<usize>().into();
    all["compare"] = compare.iter().map(|(id, stats)| compare_figures(id, stats)).collect();
    let losses = vm.net.losses();
    all["lost-frames"] = losses.values().sum::<u64>().into();
    all["losses"] = losses.iter().map(|(place, frames)| json!({"place": place, "frames": frames})).collect();
    Ok(Some(all))
}

fn compare_figures(id: &str, stats: &CompareStats) -> Value {
    let mut figures = serde_json::to_value(stats).unwrap_or_default();
    figures["id"] = id.into();
    let count = |counts: &BTreeMap<&'static str, u64>, name: &'static str| counts.get(name).copied().unwrap_or(0);
    for protocol in Protocol::ALL.map(Protocol::as_str) {
        figures["divergences"][protocol] = count(&stats.divergences, protocol).into();
    }
    for reason in Reason::ALL.map(Reason::as_str) {
        figures["reasons"][reason] = count(&stats.reasons, reason).into();
    }
    figures
}

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
    fn checkpoint_begins(&self) {
        if let Some(net) = self.net() {
            net.checkpoint_begins();
        }
    }

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
                tokio::join!(net.compare_end_epoch(), net.drain_mirrors(DRAIN_LIMIT));
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

    fn release_held(&self, style: Style) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            if let Some(net) = self.net() {
                net.compare_checkpoint_flush(style == Style::Buffered).await;
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

    fn import_connections(&self, connections: &Value) -> Result<()> {
        let tables = NetTables::deserialize(connections);
        let tables = tables.map_err(|e| err!("The primary's connections cannot be read: {e}"))?;
        if let Some(net) = self.net() {
            net.check_tables(&tables)?;
        }
        *self.tables.borrow_mut() = tables;
        Ok(())
    }
}
