//! Waiting until a node, or the whole graph, has no request under way.
//!
//! Beginning a drain tells every user above the node to stop (recursively up to the devices, jobs and exports), then
//! waits. Ending it is synchronous: the guard's drop. Requests that are already on their way down go through, unless they wait for a
//! peer that does nothing any more.

use crate::graph::Graph;
use crate::node::Node;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

thread_local! {
    static PROGRESS: Arc<Notify> = Arc::new(Notify::new());
    static WAITING: Cell<usize> = const { Cell::new(0) };
}

/// Tells those who wait in a drain that something has ended. Every user whose `drained_poll` may turn false calls it.
pub fn kick() {
    if WAITING.try_with(Cell::get).unwrap_or(0) > 0 {
        let _ = PROGRESS.try_with(|p| p.notify_waiters());
    }
}

/// The signal of this thread's drains, for code on other threads.
pub(crate) fn progress() -> Arc<Notify> {
    PROGRESS.with(Arc::clone)
}

struct Waiting;

impl Waiting {
    fn new() -> Self {
        WAITING.with(|w| w.set(w.get() + 1));
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = WAITING.try_with(|w| w.set(w.get() - 1));
    }
}

/// How long nothing may end before whoever is waited for is taken for frozen: so many looks, with so much time between them. They are
/// counted, since a process that was itself stopped for a while has not waited.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 1000 });
const STALLED: u32 = 15;

/// Waits until `busy` says false; it is asked again whenever something has ended. Calls `stalled` when nothing does.
async fn wait_until_idle(busy: impl Fn() -> bool, stalled: impl Fn()) {
    let _waiting = Waiting::new();
    let progress = progress();
    let mut looks = 0;
    loop {
        let ended = progress.notified();
        if !busy() {
            return;
        }
        looks = match tokio::time::timeout(LOOK, ended).await {
            Ok(()) => 0,
            Err(_) => looks + 1,
        };
        if looks >= STALLED {
            stalled();
        }
    }
}

/// Nodes kept quiet. Dropping it lets their users go on.
pub struct DrainGuard {
    nodes: Vec<Rc<Node>>,
}

impl DrainGuard {
    pub(crate) fn begin(nodes: Vec<Rc<Node>>) -> Self {
        for node in &nodes {
            node.quiesce_begin();
        }
        Self { nodes }
    }

    /// A peer that is frozen does not hold this up for ever: its requests fail after a while.
    pub(crate) async fn wait(&self) {
        let busy = || self.nodes.iter().any(|n| n.is_busy());
        wait_until_idle(busy, || self.nodes.iter().for_each(|n| n.cancel_in_flight())).await;
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        for node in &self.nodes {
            node.quiesce_end();
        }
    }
}

impl Node {
    /// Quiesces the node: its users stop, what is under way ends. Do not call it from within a request on the node.
    pub async fn drain(self: &Rc<Self>) -> DrainGuard {
        let guard = DrainGuard::begin(vec![self.clone()]);
        guard.wait().await;
        guard
    }
}

impl Graph {
    /// Quiesces every node.
    pub async fn drain_all(&self) -> DrainGuard {
        let guard = DrainGuard::begin(self.nodes());
        guard.wait().await;
        guard
    }
}
