//! Pairs of machines of fakes, broken at every step and at every stretch of bytes. What must hold: the survivor is whole (RAM, device
//! and disk of one epoch), and is not behind what the primary has released.

mod channel;
mod checkpoints;
mod failover;
mod order;

use super::{CheckpointCause, Part, StepHook, Steps, steps_of};
use crate::MigrateArguments;
use crate::fake::{FakeMachine, FakeWorld};
use crate::hooks::{ColoMode, LocalFuture, VmControl};
use lockstep_event::Context;
use lockstep_util::Result;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    panic!("waited too long: {what}");
}

fn in_context<F: Future<Output = ()>>(test: F) {
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

struct TestPair {
    world: Rc<FakeWorld>,
    primary: FakeMachine,
    secondary: FakeMachine,
    _dir: tempfile::TempDir,
}

impl TestPair {
    /// Two machines that are not connected yet.
    fn new(primary: Steps, secondary: Steps) -> Self {
        let world = Rc::new(FakeWorld::default());
        let (primary, secondary) = (FakeMachine::running(&world, primary), FakeMachine::new(&world, secondary));
        for machine in [&primary, &secondary] {
            machine.migration.set_capabilities([("x-colo", true)]).unwrap();
        }
        Self { world, primary, secondary, _dir: tempfile::tempdir().unwrap() }
    }

    /// A pair that nothing disturbs, after its checkpoint of epoch 2.
    async fn after_a_checkpoint() -> Self {
        let pair = Self::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.checkpoint(2).await;
        pair
    }

    fn path(&self, name: &str) -> String {
        self._dir.path().join(name).display().to_string()
    }

    async fn connect(&self) {
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
    async fn checkpoint(&self, epoch: u64) {
        let count = |m: &FakeMachine| m.migration.checkpoint_statistics().count;
        let (p, s) = (count(&self.primary), count(&self.secondary));
        self.epoch(epoch);
        until("a checkpoint is made", || count(&self.primary) > p && count(&self.secondary) > s).await;
        assert_eq!(self.secondary.whole_epoch(), Ok(epoch));
        assert_eq!(self.primary.contents(), self.secondary.contents());
        assert_eq!(self.world.released.get(), epoch);
    }

    /// The secondary goes on alone, and is what it must be.
    async fn secondary_survives(&self, case: &str) {
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

    async fn primary_survives(&self, case: &str) {
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

/// Whether this side has told that the pair fell apart.
fn told(machine: &FakeMachine) -> bool {
    machine.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error")
}

fn primary_steps() -> impl Iterator<Item = &'static str> {
    steps_of(ColoMode::Primary, Part::Checkpoint)
}

fn secondary_steps() -> impl Iterator<Item = &'static str> {
    steps_of(ColoMode::Secondary, Part::Checkpoint)
}
