//! Pairs of machines of fakes, broken at every step and at every stretch of bytes. What must hold: the survivor is whole (RAM, device
//! and disk of one epoch), and is not behind what the primary has released.

use super::{CheckpointCause, Part, StepHook, Steps, steps_of};
use crate::fake::{FakeMachine, FakeWorld};
use crate::hooks::{ColoMode, LocalFuture, VmControl};
use crate::{MigrateArguments, MigrationYank};
use lockstep_event::Context;
use lockstep_util::Result;
use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(super) async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    panic!("waited too long: {what}");
}

pub(super) fn in_context<F: Future<Output = ()>>(test: F) {
    Context::new("main").unwrap().run(test);
}

/// Does something at the Nth time that a step is reached.
struct AtStep {
    step: &'static str,
    left: Cell<u32>,
    action: RefCell<Option<Box<dyn FnOnce()>>>,
}

impl AtStep {
    fn new(step: &'static str, nth: u32) -> Rc<Self> {
        Rc::new(Self { step, left: Cell::new(nth), action: RefCell::new(None) })
    }

    fn is_done(&self) -> bool {
        self.left.get() == 0
    }
}

impl StepHook for AtStep {
    fn at(&self, step: &'static str) -> LocalFuture<'_, Result<()>> {
        if step == self.step && self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            if self.left.get() == 0
                && let Some(action) = self.action.take()
            {
                action();
            }
        }
        Box::pin(async { Ok(()) })
    }
}

pub(super) struct TestPair {
    pub world: Rc<FakeWorld>,
    pub primary: FakeMachine,
    pub secondary: FakeMachine,
    _dir: tempfile::TempDir,
}

impl TestPair {
    /// Two machines that are not connected yet.
    pub fn new(primary: Steps, secondary: Steps) -> Self {
        let world = Rc::new(FakeWorld::default());
        let (primary, secondary) = (FakeMachine::running(&world, primary), FakeMachine::new(&world, secondary));
        for machine in [&primary, &secondary] {
            machine.migration.set_capabilities([("x-colo", true)]).unwrap();
        }
        Self { world, primary, secondary, _dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self._dir.path().join(name).display().to_string()
    }

    pub async fn connect(&self) {
        let uri = format!("unix:{}", self.path("s"));
        self.connect_by(&uri).await;
    }

    async fn connect_by(&self, uri: &str) {
        self.secondary.migration.start_incoming(&format!("unix:{}", self.path("s"))).unwrap();
        self.primary.work(1);
        let arguments = MigrateArguments { uri: Some(uri.to_owned()), ..MigrateArguments::default() };
        self.primary.migration.migrate(&arguments).unwrap();
        until("both are in COLO", || self.in_colo()).await;
        assert_eq!(self.secondary.whole_epoch(), Ok(1));
    }

    fn in_colo(&self) -> bool {
        let runs = |m: &FakeMachine| m.status() == "colo" && m.vm.is_running();
        runs(&self.primary) && runs(&self.secondary)
    }

    /// The primary's guest works, and a checkpoint is asked for.
    fn epoch(&self, epoch: u64) {
        self.primary.work(epoch);
        self.primary.migration.checkpoint_trigger().request(CheckpointCause::Mismatch);
    }

    /// A whole checkpoint.
    pub async fn checkpoint(&self, epoch: u64) {
        let count = |m: &FakeMachine| m.migration.checkpoint_statistics().count;
        let (p, s) = (count(&self.primary), count(&self.secondary));
        self.epoch(epoch);
        until("a checkpoint is made", || count(&self.primary) > p && count(&self.secondary) > s).await;
        assert_eq!(self.secondary.whole_epoch(), Ok(epoch));
        assert_eq!(self.primary.contents(), self.secondary.contents());
        assert_eq!(self.world.released.get(), epoch);
    }

    /// The secondary goes on alone, and is what it must be.
    pub async fn secondary_survives(&self, case: &str) {
        let s = &self.secondary;
        // It may have been told already, at the step itself.
        let _ = s.migration.colo_lost_heartbeat();
        until(&format!("{case}: the secondary goes on alone"), || s.status() == "completed" && s.vm.is_running()).await;
        let epoch = s.whole_epoch().unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(s.disks.epoch.get(), epoch, "{case}: the disk is of the same epoch");
        assert!(
            epoch >= self.world.released.get(),
            "{case}: epoch {} was released, {epoch} survived",
            self.world.released.get()
        );
        let status = s.migration.colo_status();
        assert_eq!(
            status,
            serde_json::json!({"mode": "none", "last-mode": "secondary", "reason": "request"}),
            "{case}"
        );
        let log = s.vm.take_log();
        let count = |what: &str| log.iter().filter(|l| l.starts_with(what)).count();
        assert_eq!(
            (count("COLO_EXIT"), count("filters failover"), count("replication stop failover=true")),
            (1, 1, 1),
            "{case}"
        );
        assert!(s.vm.announced.get().is_some(), "{case}");
    }

    pub async fn primary_survives(&self, case: &str) {
        let p = &self.primary;
        let epoch = *p.device.epoch.lock();
        let _ = p.migration.colo_lost_heartbeat();
        until(&format!("{case}: the primary goes on alone"), || p.status() == "completed" && p.vm.is_running()).await;
        assert_eq!(p.whole_epoch(), Ok(epoch), "{case}");
        let log = p.vm.take_log();
        let count = |what: &str| log.iter().filter(|l| l.starts_with(what)).count();
        assert_eq!((count("COLO_EXIT"), count("replication stop failover=true")), (1, 1), "{case}");
    }
}

fn primary_steps() -> impl Iterator<Item = &'static str> {
    steps_of(ColoMode::Primary, Part::Checkpoint)
}

fn secondary_steps() -> impl Iterator<Item = &'static str> {
    steps_of(ColoMode::Secondary, Part::Checkpoint)
}

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
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.checkpoint(2).await;
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
        let pair = TestPair::new(Steps::default(), Steps::default());
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
        pair.primary.work(8);
        pair.primary.migration.checkpoint_trigger().request(CheckpointCause::Command);
        until("a checkpoint is under way", || !pair.primary.vm.is_running()).await;
        pair.primary.set_style("lockstep");
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
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.checkpoint(2).await;
        pair.primary.work(3);
        pair.primary.stray(3);
        tokio::time::sleep(2 * super::primary::AHEAD_EVERY).await;
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
            let told = |m: &FakeMachine| m.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error");
            until(&format!("{step}: both tell"), || told(&pair.secondary) && told(&pair.primary)).await;
            pair.secondary_survives(step).await;
            pair.primary_survives(step).await;
        });
    }
}

#[test]
fn a_checkpoint_that_was_received_and_could_not_be_applied_is_applied_at_the_failover() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.checkpoint(2).await;
        pair.secondary.disks.failures.set(1);
        pair.epoch(3);
        let told = |m: &FakeMachine| m.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error");
        until("the secondary tells", || told(&pair.secondary)).await;
        until("the primary has counted on it", || pair.world.released.get() == 3).await;
        pair.secondary_survives("applied later").await;
        assert_eq!(pair.secondary.whole_epoch(), Ok(3));
    });
}

#[test]
fn a_machine_of_two_epochs_never_runs() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.checkpoint(2).await;
        pair.secondary.disks.failures.set(u32::MAX);
        pair.epoch(3);
        let told = |m: &FakeMachine| m.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error");
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

/// Carries bytes between the two sides until so many have gone from the primary.
fn proxy(listen: &Path, target: String, cut_after: u64) -> Arc<AtomicU64> {
    spoiling_proxy(listen, target, cut_after, None)
}

/// The same, with one byte changed.
fn spoiling_proxy(listen: &Path, target: String, cut_after: u64, spoil: Option<(u64, u8)>) -> Arc<AtomicU64> {
    let (listener, count) = (UnixListener::bind(listen).unwrap(), Arc::new(AtomicU64::new(0)));
    let counted = count.clone();
    std::thread::spawn(move || {
        let (mut primary, _) = listener.accept().unwrap();
        let mut secondary = UnixStream::connect(target).unwrap();
        let (mut back_from, mut back_to) = (secondary.try_clone().unwrap(), primary.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut back_from, &mut back_to);
            let _ = back_to.shutdown(Shutdown::Both);
        });
        let mut buf = [0; 65536];
        loop {
            let left = cut_after - counted.load(Ordering::SeqCst);
            let want = buf.len().min(left as usize);
            match primary.read(&mut buf[..want]) {
                Ok(n) if n > 0 => {
                    let start = counted.load(Ordering::SeqCst);
                    if let Some((at, flip)) = spoil.filter(|s| (start..start + n as u64).contains(&s.0)) {
                        buf[(at - start) as usize] ^= flip;
                    }
                    counted.fetch_add(n as u64, Ordering::SeqCst);
                    if secondary.write_all(&buf[..n]).is_err() {
                        break;
                    }
                }
                _ => break,
            }
        }
        let _ = primary.shutdown(Shutdown::Both);
        let _ = secondary.shutdown(Shutdown::Both);
    });
    count
}

#[test]
fn a_channel_that_dies_at_any_byte_of_a_checkpoint_leaves_a_whole_secondary() {
    // Where the second checkpoint lies in the stream.
    let range = Rc::new(Cell::new((0, 0)));
    let found = range.clone();
    in_context(async move {
        let pair = TestPair::new(Steps::default(), Steps::default());
        let count = proxy(Path::new(&pair.path("p")), pair.path("s"), u64::MAX);
        pair.connect_by(&format!("unix:{}", pair.path("p"))).await;
        pair.checkpoint(2).await;
        let from = count.load(Ordering::SeqCst);
        pair.checkpoint(3).await;
        found.set((from, count.load(Ordering::SeqCst)));
    });
    let (from, to) = range.get();
    assert!(to - from > 10_000, "{from} to {to}");
    // Every byte of the heads and the tail (devices), and a sample of the pages.
    let cuts = (from..from + 40)
        .chain((from + 40..to - 700).step_by(4001))
        .chain((to - 700..to).step_by(13))
        .chain(to - 20..to);
    for cut in cuts {
        in_context(async {
            let pair = TestPair::new(Steps::default(), Steps::default());
            proxy(Path::new(&pair.path("p")), pair.path("s"), cut);
            pair.connect_by(&format!("unix:{}", pair.path("p"))).await;
            pair.checkpoint(2).await;
            pair.epoch(3);
            let case = format!("byte {}", cut - from);
            let told = |m: &FakeMachine| m.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error");
            until(&case, || told(&pair.secondary) && told(&pair.primary)).await;
            assert_eq!(pair.secondary.whole_epoch(), Ok(2), "{case}: nothing of an unfinished checkpoint shows");
            assert_eq!(pair.world.released.get(), 2, "{case}: nothing is released before it is received");
            pair.secondary_survives(&case).await;
        });
    }
}

#[test]
fn whatever_a_primary_says_a_failover_comes_out_of_it() {
    for n in 0..50_u64 {
        in_context(async {
            let pair = TestPair::new(Steps::default(), Steps::default());
            // The stream up to the pair's standing has about this length; what is hit differs from case to case.
            let at = 13_000 + n * n * 31 % 130_000;
            spoiling_proxy(Path::new(&pair.path("p")), pair.path("s"), u64::MAX, Some((at, 1 << (n % 8))));
            pair.secondary.migration.start_incoming(&format!("unix:{}", pair.path("s"))).unwrap();
            pair.primary.work(1);
            let uri = Some(format!("unix:{}", pair.path("p")));
            pair.primary.migration.migrate(&MigrateArguments { uri, ..MigrateArguments::default() }).unwrap();
            let (p, s) = (&pair.primary, &pair.secondary);
            let over = || pair.in_colo() || s.status() == "failed";
            until(&format!("case {n}: it stands or fell"), over).await;
            for epoch in 2..6 {
                pair.epoch(epoch);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            for machine in [s, p] {
                if machine.migration.colo_lost_heartbeat().is_ok() {
                    until(&format!("case {n}: it goes on alone"), || {
                        machine.status() == "completed" && machine.vm.is_running()
                    })
                    .await;
                }
            }
        });
    }
}

#[test]
fn a_secondary_notices_a_bad_device_before_it_says_received() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.checkpoint(2).await;
        // The device's own check refuses this one.
        pair.primary.work(3);
        *pair.primary.device.epoch.lock() = 1 << 40;
        pair.primary.migration.checkpoint_trigger().request(CheckpointCause::Command);
        let told = |m: &FakeMachine| m.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error");
        until("both know that it fell apart", || told(&pair.secondary) && told(&pair.primary)).await;
        assert_eq!(pair.secondary.whole_epoch(), Ok(2));
        assert_eq!(pair.world.released.get(), 2);
        pair.secondary_survives("bad device").await;
    });
}

#[test]
fn connections_that_make_no_sense_are_noticed_before_the_secondary_says_received() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.checkpoint(2).await;
        *pair.primary.net.connections.borrow_mut() = Some("nonsense".into());
        pair.epoch(3);
        let told = |m: &FakeMachine| m.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error");
        until("both know that it fell apart", || told(&pair.secondary) && told(&pair.primary)).await;
        assert_eq!((pair.secondary.whole_epoch(), pair.world.released.get()), (Ok(2), 2));
        pair.secondary_survives("nonsense").await;
    });
}

#[test]
fn a_lost_disk_write_ends_the_pair_before_the_next_checkpoint() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.checkpoint(2).await;
        pair.world.write_error.set(true);
        pair.epoch(3);
        let told = |m: &FakeMachine| m.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error");
        until("both know that it fell apart", || told(&pair.secondary) && told(&pair.primary)).await;
        assert_eq!((pair.secondary.whole_epoch(), pair.world.released.get()), (Ok(2), 2));
        assert!(pair.primary.vm.is_running(), "it was not stopped for it");
        pair.primary_survives("lost write").await;
    });
}

#[test]
fn a_primary_notices_between_checkpoints_that_its_peer_died() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.secondary.migration.yank().pull();
        until("the primary tells", || pair.primary.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error")).await;
        let status = pair.primary.migration.colo_status();
        assert_eq!(status, serde_json::json!({"mode": "primary", "last-mode": "none", "reason": "none"}));
        assert_eq!(pair.primary.status(), "colo", "QEMU too stays so until it is told");
        pair.primary_survives("peer died").await;
        assert_eq!(pair.primary.migration.colo_status()["last-mode"], "primary");
    });
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

#[test]
fn roles_change_as_often_as_wanted() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.checkpoint(2).await;
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
