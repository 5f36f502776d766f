//! Checkpoints of a pair that nothing befalls: what they carry, in which order, and what is told of them.

use super::super::{CheckpointCause, Part, StepHook, Steps, steps_of};
use super::{AtStep, TestPair, in_context, until};
use crate::MigrateArguments;
use crate::fake::FakeMachine;
use crate::hooks::{ColoMode, LocalFuture, VmControl};
use lockstep_util::Result;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

#[test]
fn checkpoints_make_the_secondary_what_the_primary_was() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        assert_eq!(pair.primary.migration.colo_status()["mode"], "primary");
        assert_eq!(pair.secondary.migration.colo_status()["mode"], "secondary");
        for epoch in 2..8 {
            pair.secondary.stray(epoch as u8);
            pair.checkpoint(epoch).await;
        }
        let statistics = pair.primary.migration.checkpoint_statistics();
        assert_eq!((statistics.count, statistics.causes[CheckpointCause::Mismatch as usize]), (6, 6));
        assert!(statistics.bytes > 0 && statistics.pages > 0);
        let log = pair.secondary.vm.take_log();
        assert_eq!(log[..4], ["replication secondary", "RESUME", "STOP", "RESUME"]);
    });
}

#[test]
fn each_checkpoint_is_told_with_its_figures_if_that_is_wanted() {
    in_context(async {
        let pair = TestPair::after_a_checkpoint().await;
        let both = [&pair.primary, &pair.secondary];
        both.iter().for_each(|m| m.migration.set_parameters([("x-checkpoint-events", true.into())]).unwrap());
        pair.primary.work(3);
        pair.primary.migration.checkpoint_trigger().differs(CheckpointCause::Mismatch, "udp");
        let told = |m: &FakeMachine| m.vm.checkpoints.borrow().last().cloned();
        until("both tell", || both.iter().all(|m| told(m).is_some())).await;
        let [p, s] = both.map(|m| told(m).unwrap());
        assert_eq!(
            (&p["mode"], &p["number"], &p["cause"], &p["protocol"]),
            (&"primary".into(), &2.into(), &"mismatch".into(), &"udp".into())
        );
        assert_eq!((&s["mode"], &s["number"], s.get("cause")), (&"secondary".into(), &2.into(), None));
        for figures in [p, s] {
            assert!(figures["pause"].as_u64() > Some(0) && figures["pages"].as_u64() > Some(0), "{figures}");
            assert!(figures["bytes"].as_u64() > Some(4096), "{figures}");
        }
        both.iter().for_each(|m| m.migration.set_parameters([("x-checkpoint-events", false.into())]).unwrap());
        pair.checkpoint(4).await;
        assert_eq!(both.map(|m| m.vm.checkpoints.borrow().len()), [1, 1], "the first and the last were not told");
    });
}

#[test]
fn pages_that_were_sent_ahead_and_written_again_are_sent_again() {
    in_context(async {
        // The guest works on, after pages were sent ahead and before it is stopped.
        let hook = AtStep::new("primary-request", 2);
        let pair = TestPair::new(Steps::new(hook.clone()), Steps::default());
        pair.connect().await;
        pair.checkpoint(2).await;
        let (ram, device) = (pair.primary.ram.clone(), pair.primary.device.clone());
        *hook.action.borrow_mut() = Some(Box::new(move || {
            FakeMachine::work_on(&ram, &device, 4);
        }));
        pair.primary.stray(9);
        pair.epoch(3);
        let count = |m: &FakeMachine| m.migration.checkpoint_statistics().count;
        until("it is made", || count(&pair.primary) == 2 && count(&pair.secondary) == 2).await;
        assert_eq!(pair.secondary.whole_epoch(), Ok(4));
        assert_eq!(pair.primary.contents(), pair.secondary.contents());
    });
}

#[test]
fn the_primary_runs_while_the_secondary_loads_and_is_not_asked_before_it_has() {
    in_context(async {
        // The secondary stands in the middle of loading.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loading");
        let steps = Steps::from_text(&format!("secondary-ram-applied@2=pause:{}", path.display())).unwrap();
        let pair = TestPair::new(Steps::default(), steps);
        pair.connect().await;
        pair.checkpoint(2).await;
        pair.epoch(3);
        until("the secondary is loading", || path.exists()).await;
        until("the primary runs", || pair.primary.vm.is_running()).await;
        assert!(!pair.secondary.vm.is_running());
        assert_eq!(pair.world.released.get(), 3);
        // It works on; the next checkpoint is asked for, and has to wait.
        pair.epoch(4);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(pair.primary.migration.checkpoint_statistics().count, 1);
        assert!(pair.primary.vm.is_running() && !pair.secondary.vm.is_running());
        let before = pair.secondary.vm.advanced.get();
        std::fs::remove_file(&path).unwrap();
        until("both are made", || pair.secondary.migration.checkpoint_statistics().count == 3).await;
        assert_eq!((pair.secondary.whole_epoch(), pair.world.released.get()), (Ok(4), 4));
        let lag = Duration::from_nanos((pair.secondary.vm.advanced.get() - before).unsigned_abs());
        assert!(lag >= Duration::from_millis(20), "the clock is moved by the lag, here {lag:?}");
    });
}

#[test]
fn a_primary_that_runs_early_and_dies_leaves_the_checkpoint_that_it_counted_on() {
    in_context(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loading");
        let steps = Steps::from_text(&format!("secondary-received@2=pause:{}", path.display())).unwrap();
        let pair = TestPair::new(Steps::default(), steps);
        pair.connect().await;
        pair.checkpoint(2).await;
        pair.epoch(3);
        until("the secondary has received", || path.exists()).await;
        until("the primary runs", || pair.primary.vm.is_running()).await;
        pair.primary.work(4);
        pair.primary.migration.yank().pull();
        std::fs::remove_file(&path).unwrap();
        pair.secondary_survives("early").await;
        assert_eq!(pair.secondary.whole_epoch(), Ok(3));
        pair.primary_survives("early").await;
    });
}

#[test]
fn with_buffered_output_the_secondary_stands_still_until_it_is_alone_or_lock_stepping_begins_again() {
    in_context(async {
        let stopped = AtStep::new("primary-stopped", 0);
        let pair = TestPair::new(Steps::new(stopped.clone()), Steps::default());
        pair.connect().await;
        pair.checkpoint(2).await;
        let stands = |epoch| pair.secondary.whole_epoch() == Ok(epoch) && !pair.secondary.vm.is_running();
        let both = [&pair.primary, &pair.secondary];
        let figure = |m: &FakeMachine, name: &str| m.migration.checkpoint_statistics().to_json()[name].clone();
        pair.primary.work(3);
        pair.primary.set_style("buffered");
        let both_are = |style: &str| both.iter().all(|m| figure(m, "style") == style);
        until("the style changes", || stands(3) && both_are("buffered")).await;
        for epoch in 4..8 {
            pair.checkpoint(epoch).await;
            assert!(stands(epoch) && pair.primary.vm.is_running());
        }
        assert!(both.iter().all(|m| figure(m, "style") == "buffered" && figure(m, "switches") == 1));
        // A wish that comes in the middle of a checkpoint is not forgotten.
        let migration = pair.primary.migration.clone();
        *stopped.action.borrow_mut() = Some(Box::new(move || {
            migration.set_parameters([("x-checkpoint-style", "lockstep".into())]).unwrap();
        }));
        stopped.left.set(1);
        pair.epoch(8);
        until("it runs again", || pair.secondary.vm.is_running() && both_are("lockstep")).await;
        pair.checkpoint(9).await;
        assert!(both.iter().all(|m| figure(m, "style") == "lockstep" && figure(m, "switches") == 2));
        pair.primary.work(10);
        pair.primary.set_style("buffered");
        until("the style changes again", || stands(10) && both_are("buffered")).await;
        // What the primary's guest does now is nobody's business yet.
        pair.primary.work(11);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let before = pair.secondary.vm.advanced.get();
        pair.primary.migration.yank().pull();
        pair.secondary_survives("buffered").await;
        assert_eq!((pair.secondary.whole_epoch(), pair.world.released.get()), (Ok(10), 10));
        let lag = Duration::from_nanos((pair.secondary.vm.advanced.get() - before).unsigned_abs());
        assert!(
            lag >= Duration::from_millis(20),
            "its clock goes on from where the primary's would be, here by {lag:?}"
        );
    });
}

#[test]
fn pages_ahead_of_a_checkpoint_do_not_show() {
    in_context(async {
        let pair = TestPair::after_a_checkpoint().await;
        pair.primary.work(3);
        pair.primary.stray(3);
        tokio::time::sleep(2 * crate::colo::primary::AHEAD_EVERY).await;
        assert_eq!(pair.secondary.whole_epoch(), Ok(2));
        pair.secondary_survives("pages ahead").await;
        assert_eq!(pair.secondary.whole_epoch(), Ok(2));
    });
}

#[test]
fn the_delay_makes_checkpoints_and_setting_it_makes_one_at_once() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.primary.migration.set_parameters([("x-checkpoint-delay", 5.into())]).unwrap();
        let causes = || pair.primary.migration.checkpoint_statistics().causes;
        until("three by the clock", || causes()[CheckpointCause::Timer as usize] >= 3).await;
        assert_eq!(causes()[CheckpointCause::Parameter as usize], 1);
    });
}

/// Writes the steps down that it is told.
#[derive(Default)]
struct Diary(RefCell<Vec<&'static str>>);

impl StepHook for Diary {
    fn at(&self, step: &'static str) -> LocalFuture<'_, Result<()>> {
        self.0.borrow_mut().push(step);
        Box::pin(async { Ok(()) })
    }
}

#[test]
fn each_step_of_a_checkpoint_and_of_a_failover_is_told_in_its_place() {
    in_context(async {
        let diaries = [Rc::new(Diary::default()), Rc::new(Diary::default())];
        let [a, b] = diaries.clone().map(|diary| Steps::new(diary));
        let pair = TestPair::new(a, b);
        pair.connect().await;
        // What else can be seen of a machine may change just before its last step is told.
        until("the secondary waits", || diaries[1].0.borrow().last() == Some(&"secondary-wait-request")).await;
        diaries.iter().for_each(|diary| diary.0.borrow_mut().clear());
        let are_told = async |at: usize, expected: Vec<&str>| {
            until("all steps are told", || diaries[at].0.borrow().len() >= expected.len()).await;
            assert_eq!(diaries[at].0.take(), expected);
        };
        pair.checkpoint(2).await;
        are_told(0, steps_of(ColoMode::Primary, Part::Checkpoint).collect()).await;
        // A secondary waits again when one checkpoint is over; the first wait was before the diary was opened.
        let mut expected: Vec<_> = steps_of(ColoMode::Secondary, Part::Checkpoint).collect();
        expected.rotate_left(1);
        are_told(1, expected).await;
        pair.primary_survives("primary").await;
        pair.secondary_survives("secondary").await;
        // Those of the disk's takeover are told by the block layer, between two of the machine's.
        let disks = ["-revoked", "-drained", "-flushed"];
        let machine = |step: &&str| !disks.iter().any(|end| step.ends_with(end));
        for (at, side) in [ColoMode::Primary, ColoMode::Secondary].into_iter().enumerate() {
            are_told(at, steps_of(side, Part::Failover).filter(machine).collect()).await;
        }
    });
}

#[test]
fn a_user_who_stopped_the_guest_finds_it_stopped_after_a_checkpoint() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.primary.vm.stop(crate::hooks::StopReason::Migration).await.unwrap();
        pair.primary.vm.set_run_state("paused");
        pair.checkpoint(2).await;
        assert_eq!(pair.primary.vm.run_state(), "paused");
        pair.primary.migration.colo_lost_heartbeat().unwrap();
        until("it goes on alone", || pair.primary.status() == "completed").await;
        assert_eq!(pair.primary.vm.run_state(), "paused");
    });
}

/// Figures, not a claim: how long an idle primary stands still when nothing but the protocol takes time.
#[test]
#[ignore = "prints figures"]
fn pauses_of_an_idle_pair() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.secondary.migration.start_incoming("tcp:127.0.0.1:0").unwrap();
        let address = pair.secondary.migration.info().to_json()["socket-address"][0]["port"].clone();
        let uri = Some(format!("tcp:127.0.0.1:{}", address.as_str().unwrap()));
        pair.primary.migration.migrate(&MigrateArguments { uri, ..MigrateArguments::default() }).unwrap();
        until("both are in COLO", || pair.in_colo()).await;
        for _ in 0..500 {
            let count = pair.primary.migration.checkpoint_statistics().count;
            pair.primary.work(count);
            pair.primary.migration.checkpoint_trigger().request(CheckpointCause::Command);
            while pair.primary.migration.checkpoint_statistics().count == count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        println!("{}", pair.primary.migration.checkpoint_statistics().to_json());
        println!("{}", pair.secondary.migration.checkpoint_statistics().to_json());
    });
}
