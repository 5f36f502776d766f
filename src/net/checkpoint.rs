//! What a COLO checkpoint and a failover do to the networks, on either side.
//!
//! On both, first: [`NetRegistry::checkpoint_begins`].
//! On the primary: stop; [`NetRegistry::compare_end_epoch`]; [`NetRegistry::drain_mirrors`]; … everything has arrived …;
//! [`NetRegistry::compare_checkpoint_flush`]; [`NetRegistry::mirror_again`]; go on.
//! On the secondary: stop; [`NetRegistry::drain_outgoing`] before the answer; [`NetRegistry::discard_incoming`] before it
//! says that everything has arrived; load; [`NetRegistry::filters_checkpoint`]; go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lockstep_chardev::CharWriter;
use lockstep_util::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::colo::CheckpointNotifier;
use crate::compare::{CompareStats, IdentityGate};
use crate::filter::{Action, FilterNode};
use crate::netdev::Direction;
use crate::objects::Filter;
use crate::registry::NetRegistry;
use crate::rewriter::{self, RewriterTable};

/// Looks at a draining socket without a pause in between.
const EAGER_LOOKS: usize = 64;

/// How the connections of a guest are translated, by backend; it travels with a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetTables(pub BTreeMap<String, RewriterTable>);

impl NetRegistry {
    /// Who is told when a checkpoint is needed (from the iothreads of the compare objects).
    pub fn set_checkpoint_notifier(&self, notifier: Option<CheckpointNotifier>) {
        *self.inner.notifier.write() = notifier;
    }

    /// Whether this side may speak for the VM: see [`IdentityGate`].
    pub fn identity_gate(&self) -> Arc<IdentityGate> {
        self.inner.gate.clone()
    }

    /// While this machine is a COLO secondary, backends with a mirror as input neither hear nor say anything by
    /// themselves.
    pub fn set_colo_secondary(&self, secondary: bool) {
        self.inner.world.secondary.store(secondary, Ordering::Release);
        // Whoever reads from the host may have to start or stop.
        self.inner.world.running.send_modify(|_| ());
    }

    /// Either side, before anything else of a checkpoint: the peer will wait until its host hears that ours has its frames, so
    /// that this is said at once until the flush ([`filters_checkpoint`](Self::filters_checkpoint) on the secondary). At other
    /// times it would be a packet more for each that comes.
    pub fn checkpoint_begins(&self) {
        self.inner.compares.borrow().values().for_each(|compare| compare.acknowledge());
        self.inputs_to_guest(Filter::acknowledge_input);
    }

    /// Primary: waits until the secondary's host has every mirrored frame; false if it has not within `limit`.
    pub async fn drain_mirrors(&self, limit: Duration) -> bool {
        let writers = self.writers(|action| match action {
            Action::Mirror(mirror) => Some(mirror.writer().clone()),
            _ => None,
        });
        drain(writers, limit).await
    }

    /// Secondary, stopped: waits until the primary's host has everything that the guest said; false if it has not within
    /// `limit`.
    pub async fn drain_outgoing(&self, limit: Duration) -> bool {
        let writers = self.writers(|action| match action {
            Action::Redirector(redirector) => redirector.writer().cloned(),
            _ => None,
        });
        drain(writers, limit).await
    }

    /// Secondary, stopped: forgets mirrored frames that the guest has not taken. The primary, drained before, has them in
    /// its state or mirrors them again. What is mirrored from here on is of the new epoch, and waits until
    /// [`filters_checkpoint`](Self::filters_checkpoint) has told the filters of it.
    pub async fn discard_incoming(&self) -> usize {
        let filters: Vec<_> = self.inner.filters.borrow().values().cloned().collect();
        let mut count = 0;
        for filter in filters {
            if filter.node.injects_to_guest() {
                count += filter.discard_input().await;
            }
        }
        count
    }

    /// Primary: mirrors the frames again that the card has not taken yet, since the secondary starts from a state
    /// without them.
    pub fn mirror_again(&self) {
        for backend in self.inner.netdevs.borrow().values() {
            let frames = backend.shared.queued_frames();
            if frames.is_empty() {
                continue;
            }
            let chain = backend.shared.chain();
            let mirrors = chain.iter().filter(|node| node.handles(Direction::Tx));
            for node in mirrors {
                if let Action::Mirror(mirror) = &node.action {
                    frames.iter().for_each(|frame| mirror.copy(frame));
                }
            }
        }
    }

    /// Primary, the secondary having stopped and drained its output: everything of this epoch is taken in, and what comes
    /// from here to the flush belongs to the next.
    pub async fn compare_end_epoch(&self) {
        let compares: Vec<_> = self.inner.compares.borrow().values().cloned().collect();
        for compare in compares {
            compare.end_epoch().await;
        }
    }

    /// Primary, stopped, all of the checkpoint having arrived at the secondary: releases held packets and makes both
    /// sides' connections equal, in every compare object. `buffered` says that the secondary's guest will stand still:
    /// what is held from then on asks for a checkpoint.
    pub async fn compare_checkpoint_flush(&self, buffered: bool) {
        let compares: Vec<_> = self.inner.compares.borrow().values().cloned().collect();
        for compare in compares {
            let source = self.inner.chardevs.loopback_peer(compare.primary_in());
            let bytes = source.and_then(|id| self.inner.chardevs.accepted_bytes(&id));
            compare.flush(bytes, buffered).await;
        }
    }

    /// Secondary: the guest has become a copy of the primary, whose tables these are (empty ones from a primary that
    /// does not send any: then its guest's numbers are the network's).
    pub fn filters_checkpoint(&self, tables: &NetTables) {
        for backend in self.inner.netdevs.borrow().values() {
            backend.shared.forget_unheard();
        }
        let none = RewriterTable::default();
        for filter in self.inner.filters.borrow().values() {
            if let Action::Rewriter(rewriter) = &filter.node.action {
                rewriter.checkpoint(tables.0.get(&filter.netdev.id).unwrap_or(&none));
            }
        }
        self.release_inputs();
    }

    /// Secondary: whether each of the primary's connections has a filter here that would translate it after a failover. To be
    /// asked while the checkpoint can still be refused.
    ///
    /// # Errors
    /// The first backend that lacks a `filter-rewriter`, or has more connections than it can keep.
    pub fn check_tables(&self, tables: &NetTables) -> Result<()> {
        for (id, table) in tables.0.iter().filter(|(_, table)| !table.connections.is_empty()) {
            let filters = self.inner.filters.borrow();
            let mut own = filters.values().filter(|filter| filter.netdev.id == *id);
            if !own.any(|filter| matches!(filter.node.action, Action::Rewriter(_))) {
                bail!("There is no filter-rewriter for the primary's connections of '{id}'");
            }
            if table.connections.len() > rewriter::MAX_CONNECTIONS {
                bail!("The primary has more connections of '{id}' than a filter-rewriter keeps");
            }
        }
        Ok(())
    }

    /// Primary: the tables for the checkpoint.
    pub fn export_tables(&self) -> NetTables {
        let mut tables = NetTables::default();
        for filter in self.inner.filters.borrow().values() {
            if let Action::Rewriter(rewriter) = &filter.node.action {
                let table = rewriter.table();
                if !table.connections.is_empty() {
                    tables.0.entry(filter.netdev.id.clone()).or_default().connections.extend(table.connections);
                }
            }
        }
        tables
    }

    /// Secondary: takes over. Rewriters keep the connections that they know alive; every other filter is switched off. What
    /// the peers may not have heard of the guest is said again, and the guest hears what was mirrored to it and what was said
    /// since the primary's death.
    pub fn filters_failover(&self) {
        let filters: Vec<_> = self.inner.filters.borrow().values().cloned().collect();
        let mut again = Vec::new();
        for filter in &filters {
            match &filter.node.action {
                Action::Rewriter(rewriter) => again.push((filter, rewriter.failover())),
                _ => filter.retire(),
            }
        }
        // Of one that was switched off before.
        self.release_inputs();
        self.set_colo_secondary(false);
        for (filter, frames) in again {
            for frame in frames {
                filter.netdev.pass_on(frame, Direction::Rx, &filter.node);
            }
        }
        for backend in self.inner.netdevs.borrow().values() {
            backend.shared.hear_late();
        }
    }

    fn release_inputs(&self) {
        self.inputs_to_guest(Filter::release_input);
    }

    fn inputs_to_guest(&self, tell: fn(&Filter)) {
        self.inner.filters.borrow().values().filter(|f| f.node.injects_to_guest()).for_each(|filter| tell(filter));
    }

    /// The counters of every compare object, by id.
    pub async fn compare_stats(&self) -> BTreeMap<String, CompareStats> {
        let compares: Vec<_> = self.inner.compares.borrow().values().cloned().collect();
        let mut all = BTreeMap::new();
        for compare in compares {
            all.insert(compare.id().to_owned(), compare.stats().await);
        }
        all
    }

    fn writers(&self, pick: impl Fn(&Action) -> Option<CharWriter>) -> Vec<CharWriter> {
        let filters = self.inner.filters.borrow();
        let on = |node: &&Arc<FilterNode>| node.is_on();
        filters.values().map(|f| &f.node).filter(on).filter_map(|node| pick(&node.action)).collect()
    }
}

async fn drain(writers: Vec<CharWriter>, limit: Duration) -> bool {
    let empty = || writers.iter().all(|writer| writer.unsent() == 0);
    for _ in 0..EAGER_LOOKS {
        if empty() {
            return true;
        }
        tokio::task::yield_now().await;
    }
    let wait = async {
        while !empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(limit, wait).await.is_ok()
}
