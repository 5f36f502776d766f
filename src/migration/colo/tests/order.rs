//! What a checkpoint, the loss of the pair and a failover ask of guest, disks and networks, and in which order: each line of these lists is
//! a rule, and most of them show only when a host dies at the wrong moment.

use super::super::{CheckpointCause, StepHook, Steps};
use super::{TestPair, in_context, until};
use crate::fake::{FakeMachine, FakeVm};
use crate::hooks::LocalFuture;
use lockstep_util::Result;
use std::cell::RefCell;
use std::rc::{Rc, Weak};

/// Writes a machine's steps down among what is asked of it.
#[derive(Default)]
struct Among(RefCell<Weak<FakeVm>>);

impl StepHook for Among {
    fn at(&self, step: &'static str) -> LocalFuture<'_, Result<()>> {
        if let Some(vm) = self.0.borrow().upgrade() {
            vm.ask(format!("-- {step}"));
        }
        Box::pin(async { Ok(()) })
    }
}

async fn watched_pair() -> TestPair {
    let steps = [Rc::new(Among::default()), Rc::new(Among::default())];
    let [p, s] = steps.clone().map(|steps| Steps::new(steps));
    let pair = TestPair::new(p, s);
    for (steps, machine) in steps.iter().zip([&pair.primary, &pair.secondary]) {
        *steps.0.borrow_mut() = Rc::downgrade(&machine.vm);
    }
    *pair.primary.net.connections.borrow_mut() = Some(serde_json::json!([]));
    pair.connect().await;
    pair.checkpoint(2).await;
    // The secondary waits for the next one.
    until("it waits", || pair.secondary.vm.asked.borrow().last().is_some_and(|l| l == "-- secondary-wait-request"))
        .await;
    [&pair.primary, &pair.secondary].iter().for_each(|machine| drop(machine.vm.asked.take()));
    pair
}

fn asked(machine: &FakeMachine) -> Vec<String> {
    machine.vm.asked.take()
}

#[test]
fn the_primarys_checkpoint_keeps_its_order() {
    in_context(async {
        let pair = watched_pair().await;
        pair.checkpoint(3).await;
        let expected = [
            "-- primary-request",
            "net: checkpoint begins",
            // A write that the secondary did not get ends the pair, whenever it failed.
            "disks: error?",
            "-- primary-reply",
            "stop",
            "-- primary-stopped",
            "disks: error?",
            "disks: checkpoint",
            // No mirrored frame of this epoch comes after the secondary has forgotten those that it has.
            "net: drain mirrors",
            "-- primary-send",
            // The secondary has all of it: not before may anything be released.
            "-- primary-received",
            "net: release held",
            "-- primary-released",
            "start",
            "-- primary-loaded",
        ];
        assert_eq!(asked(&pair.primary), expected);
    });
}

#[test]
fn the_secondarys_checkpoint_keeps_its_order() {
    in_context(async {
        let pair = watched_pair().await;
        pair.checkpoint(3).await;
        until("it waits", || pair.secondary.vm.asked.borrow().last().is_some_and(|l| l == "-- secondary-wait-request"))
            .await;
        let expected = [
            "-- secondary-request",
            "net: checkpoint begins",
            "stop",
            // The primary reads what was said in this epoch before it forgets it.
            "net: drain outgoing",
            "-- secondary-stopped",
            // Whatever can be refused.
            "net: connections",
            "disks: error?",
            "net: discard incoming",
            "-- secondary-validated",
            // The primary may write as soon as it has heard "received".
            "disks: peer's writes wait",
            "-- secondary-received",
            "disks: checkpoint",
            "-- secondary-ram-applied",
            "disks: peer's writes go on",
            "net: it is a copy",
            "-- secondary-devices-applied",
            "-- secondary-applied",
            "start",
            "-- secondary-wait-request",
        ];
        assert_eq!(asked(&pair.secondary), expected);
    });
}

#[test]
fn nobody_speaks_for_the_machine_from_the_loss_of_the_pair_to_the_word_of_the_user() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        let identity = || -> Vec<String> {
            let asked = asked(&pair.primary);
            asked.into_iter().filter(|what| what.starts_with("net: identity")).collect()
        };
        assert_eq!(identity(), ["net: identity open while the peer is there"]);
        pair.secondary.migration.yank().pull();
        until("it tells", || pair.primary.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error")).await;
        assert_eq!(identity(), ["net: identity closed"]);
        pair.primary_survives("peer died").await;
        assert_eq!(identity(), ["net: identity open"]);
    });
}

#[test]
fn failovers_keep_their_order() {
    in_context(async {
        let pair = watched_pair().await;
        pair.secondary_survives("secondary").await;
        let expected = [
            // At once, so that nothing waits for the peer and it can change nothing any more.
            "disks: peer lost",
            "-- secondary-failover",
            "stop",
            "-- secondary-failover-stopped",
            "-- secondary-failover-applied",
            "-- secondary-failover-disks",
            "disks: stop",
            "disks: peer's writes go on",
            "-- secondary-failover-net",
            "net: alone",
            "-- secondary-failover-announce",
            "announce",
            "-- secondary-failover-start",
            "start",
            "-- secondary-failover-end",
        ];
        assert_eq!(asked(&pair.secondary), expected);
        asked(&pair.primary);
        pair.primary_survives("primary").await;
        let expected = [
            "disks: peer lost",
            "-- primary-failover",
            "stop",
            "-- primary-failover-stopped",
            "-- primary-failover-disks",
            "disks: stop",
            "-- primary-failover-net",
            "net: identity open",
            "-- primary-failover-start",
            "start",
            "-- primary-failover-end",
        ];
        assert_eq!(asked(&pair.primary), expected);
    });
}

#[test]
fn what_asks_for_a_checkpoint_before_received_is_settled_by_it_and_what_asks_after_is_not() {
    in_context(async {
        let pair = watched_pair().await;
        let causes = || pair.primary.migration.checkpoint_statistics().causes;
        let count = || pair.primary.migration.checkpoint_statistics().count;
        let trigger = pair.primary.migration.checkpoint_trigger();
        let before = causes();
        trigger.differs(CheckpointCause::Mismatch, "tcp");
        until("it is made", || count() == 2).await;
        // A difference comes before a command, so that one that was not settled would be the next one's cause.
        trigger.request(CheckpointCause::Command);
        until("the next one is made", || count() == 3).await;
        let since = |cause: CheckpointCause| causes()[cause as usize] - before[cause as usize];
        assert_eq!((since(CheckpointCause::Mismatch), since(CheckpointCause::Command)), (1, 1));
        // The comparison goes on while the held packets leave: what differs then is of the new epoch.
        let trigger = pair.primary.migration.checkpoint_trigger();
        *pair.primary.net.at_release.borrow_mut() =
            Some(Box::new(move || trigger.differs(CheckpointCause::Timeout, "udp")));
        pair.primary.migration.checkpoint_trigger().request(CheckpointCause::Command);
        until("that makes another one", || count() == 5).await;
        assert_eq!((since(CheckpointCause::Command), since(CheckpointCause::Timeout)), (2, 1));
    });
}
