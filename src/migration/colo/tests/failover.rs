//! A pair that is parted at every step: the survivor is whole, and not behind what was released.

use super::super::{CheckpointCause, Part, StepHook, Steps, steps_of};
use super::{AtStep, TestPair, in_context, primary_steps, secondary_steps, told, until};
use crate::fake::FakeMachine;
use crate::hooks::{ColoMode, LocalFuture, VmControl};
use crate::{MigrateArguments, MigrationYank};
use lockstep_util::Result;
use std::rc::Rc;

#[test]
fn a_channel_cut_at_any_step_leaves_a_whole_secondary() {
    for (side, style) in [
        (ColoMode::Primary, "lockstep"),
        (ColoMode::Secondary, "lockstep"),
        (ColoMode::Primary, "buffered"),
        (ColoMode::Secondary, "buffered"),
    ] {
        for step in steps_of(side, Part::Checkpoint) {
            in_context(async {
                let hook = AtStep::new(step, 2);
                let hooks = [Steps::new(hook.clone()), Steps::default()];
                let [a, b] = if side == ColoMode::Primary {
                    hooks
                } else {
                    let [a, b] = hooks;
                    [b, a]
                };
                let pair = TestPair::new(a, b);
                pair.primary.set_style(style);
                pair.connect().await;
                let yanks: Vec<MigrationYank> = [&pair.primary, &pair.secondary].map(|m| m.migration.yank()).into();
                *hook.action.borrow_mut() = Some(Box::new(move || yanks.iter().for_each(MigrationYank::pull)));
                if step != "secondary-wait-request" {
                    pair.checkpoint(2).await;
                }
                pair.epoch(3);
                until(&format!("{step} is reached"), || hook.is_done()).await;
                let case = format!("{step}, {style}");
                pair.secondary_survives(&case).await;
                pair.primary_survives(&case).await;
            });
        }
    }
}

#[test]
fn an_error_at_any_step_leaves_a_whole_secondary() {
    for step in primary_steps().chain(secondary_steps()) {
        in_context(async {
            // "Wait for a request" is the first step, and comes before the first checkpoint.
            let nth = if step == "secondary-wait-request" { 3 } else { 2 };
            let steps = Steps::from_text(&format!("{step}@{nth}=error")).unwrap();
            let [a, b] = match step.starts_with("primary") {
                true => [steps, Steps::default()],
                false => [Steps::default(), steps],
            };
            let pair = TestPair::new(a, b);
            pair.connect().await;
            pair.checkpoint(2).await;
            pair.epoch(3);
            until(&format!("{step}: both tell"), || told(&pair.secondary) && told(&pair.primary)).await;
            pair.secondary_survives(step).await;
            pair.primary_survives(step).await;
        });
    }
}

#[test]
fn a_checkpoint_that_was_received_and_could_not_be_applied_is_applied_at_the_failover() {
    in_context(async {
        let pair = TestPair::after_a_checkpoint().await;
        pair.secondary.disks.failures.set(1);
        pair.epoch(3);
        until("the secondary tells", || told(&pair.secondary)).await;
        until("the primary has counted on it", || pair.world.released.get() == 3).await;
        pair.secondary_survives("applied later").await;
        assert_eq!(pair.secondary.whole_epoch(), Ok(3));
    });
}

#[test]
fn a_machine_of_two_epochs_never_runs() {
    in_context(async {
        let pair = TestPair::after_a_checkpoint().await;
        pair.secondary.disks.failures.set(u32::MAX);
        pair.epoch(3);
        until("the secondary tells", || told(&pair.secondary)).await;
        pair.secondary.migration.colo_lost_heartbeat().unwrap();
        until("the failover is over", || pair.secondary.migration.colo_status()["reason"] == "request").await;
        until("the state says so", || pair.secondary.vm.run_state() == "internal-error").await;
        assert!(!pair.secondary.vm.is_running() && pair.secondary.vm.announced.get().is_none());
        pair.primary_survives("the other side").await;
    });
}

#[test]
fn a_failover_asked_for_at_any_step_of_the_secondary_is_done() {
    for step in secondary_steps() {
        in_context(async {
            let hook = AtStep::new(step, 2);
            let pair = TestPair::new(Steps::default(), Steps::new(hook.clone()));
            pair.connect().await;
            let migration = pair.secondary.migration.clone();
            *hook.action.borrow_mut() = Some(Box::new(move || migration.colo_lost_heartbeat().unwrap()));
            if step != "secondary-wait-request" {
                pair.checkpoint(2).await;
            }
            pair.epoch(3);
            until(&format!("{step} is reached"), || hook.is_done()).await;
            pair.secondary_survives(step).await;
            let applied =
                ["secondary-received", "secondary-ram-applied", "secondary-devices-applied", "secondary-applied"];
            if applied.contains(&step) {
                assert_eq!(pair.secondary.whole_epoch(), Ok(3), "{step}: a checkpoint that was received is applied");
            }
        });
    }
}

#[test]
fn a_failover_asked_for_at_any_step_of_the_primary_is_done() {
    for step in primary_steps() {
        in_context(async {
            let hook = AtStep::new(step, 2);
            let pair = TestPair::new(Steps::new(hook.clone()), Steps::default());
            pair.connect().await;
            let migration = pair.primary.migration.clone();
            *hook.action.borrow_mut() = Some(Box::new(move || migration.colo_lost_heartbeat().unwrap()));
            pair.checkpoint(2).await;
            pair.epoch(3);
            until(&format!("{step} is reached"), || hook.is_done()).await;
            pair.primary_survives(step).await;
            pair.secondary_survives(step).await;
        });
    }
}

#[test]
fn a_frozen_peer_does_not_hold_up_a_failover() {
    in_context(async {
        // The secondary's loop stops at the step for ever: it reads nothing and says nothing.
        struct Freeze(Rc<AtStep>);
        impl StepHook for Freeze {
            fn at(&self, step: &'static str) -> LocalFuture<'_, Result<()>> {
                drop(self.0.at(step));
                match self.0.is_done() {
                    true => Box::pin(std::future::pending()),
                    false => Box::pin(async { Ok(()) }),
                }
            }
        }
        for step in ["secondary-wait-request", "secondary-stopped", "secondary-received"] {
            let at = AtStep::new(step, 2);
            let pair = TestPair::new(Steps::default(), Steps::new(Rc::new(Freeze(at.clone()))));
            pair.connect().await;
            // With a checkpoint too large for the socket's buffer.
            pair.primary.work(2);
            (0..200).for_each(|page| pair.primary.ram.blocks()[0].write(page * 4096 + 64, &[page as u8 | 1]).unwrap());
            pair.primary.migration.checkpoint_trigger().request(CheckpointCause::Mismatch);
            if step != "secondary-wait-request" {
                until("the first one", || pair.primary.migration.checkpoint_statistics().count == 1).await;
                pair.epoch(3);
            }
            until(&format!("{step} is reached"), || at.is_done()).await;
            pair.primary_survives(step).await;
        }
    });
}

#[test]
fn misuse_gets_clean_errors() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        let e = pair.primary.migration.colo_lost_heartbeat().unwrap_err();
        assert_eq!(e.message(), "VM is not in COLO mode");
        assert_eq!(
            pair.primary.migration.colo_status(),
            serde_json::json!({"mode": "none", "last-mode": "none", "reason": "none"})
        );
        pair.connect().await;
        let arguments = MigrateArguments { uri: Some("tcp:127.0.0.1:1".into()), ..MigrateArguments::default() };
        for machine in [&pair.primary, &pair.secondary] {
            let e = machine.migration.migrate(&arguments).unwrap_err();
            assert_eq!(e.message(), "There's a migration process in progress");
            let e = machine.migration.set_capabilities([("x-colo", false)]).unwrap_err();
            assert_eq!(e.message(), "There's a migration process in progress");
            assert_eq!(machine.status(), "colo");
        }
        pair.primary.migration.cancel();
        pair.checkpoint(2).await;
        pair.primary.migration.colo_lost_heartbeat().unwrap();
        let e = pair.primary.migration.colo_lost_heartbeat().unwrap_err();
        assert_eq!(e.message(), "COLO failover is already activated");
        assert_eq!(pair.primary.migration.colo_status()["reason"], "processing");
        pair.primary_survives("misuse").await;
    });
}

#[test]
fn roles_change_as_often_as_wanted() {
    in_context(async {
        let pair = TestPair::after_a_checkpoint().await;
        pair.primary.migration.yank().pull();
        pair.secondary_survives("first").await;
        let mut survivor = pair.secondary;
        for round in 0..3 {
            let next = FakeMachine::new(&pair.world, Steps::default());
            next.migration.set_capabilities([("x-colo", true)]).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let uri = format!("unix:{}", dir.path().join("s").display());
            next.migration.start_incoming(&uri).unwrap();
            *survivor.net.connections.borrow_mut() = Some(serde_json::json!([round]));
            survivor.migration.set_capabilities([("x-colo", true)]).unwrap();
            survivor.migration.migrate(&MigrateArguments { uri: Some(uri), ..MigrateArguments::default() }).unwrap();
            let next_pair = TestPair { world: pair.world.clone(), primary: survivor, secondary: next, _dir: dir };
            until("both are in COLO", || next_pair.in_colo()).await;
            assert_eq!(next_pair.primary.migration.colo_status()["last-mode"], "secondary");
            *next_pair.primary.net.connections.borrow_mut() = Some(serde_json::json!([round, "later"]));
            next_pair.checkpoint(10 + round).await;
            let travelled = next_pair.secondary.net.connections.borrow().clone();
            assert_eq!(travelled, Some(serde_json::json!([round, "later"])), "offsets travel");
            next_pair.primary.migration.yank().pull();
            next_pair.secondary_survives("later").await;
            survivor = next_pair.secondary;
        }
    });
}
