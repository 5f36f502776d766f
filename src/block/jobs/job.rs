//! One job: its life from creation to dismissal, what it reports, and how it is told to pause, stop or finish.
//!
//! The work itself is a [`JobDriver`]. A job without an id is internal: it is not listed and has no events.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use lockstep_util::{Error, Result};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::rate::RateLimit;
use super::state::{JobStatus, JobType, JobVerb};
use crate::driver::LocalBoxFuture;
use crate::graph::{Graph, WeakGraph};

/// What a job does. All futures run on the graph's thread; `run` is never dropped half-way.
pub trait JobDriver {
    /// The work. It calls [`Job::pause_point`] often and ends early when [`Job::is_cancelled`].
    fn run<'a>(&'a self, job: &'a Rc<Job>) -> LocalBoxFuture<'a, Result<()>>;

    /// Whether `complete` means anything (mirror, active commit).
    fn can_complete(&self) -> bool {
        false
    }

    /// Whether a cancel that was not forced still aborts the job in its present state.
    fn cancel_aborts(&self, _job: &Job) -> bool {
        true
    }

    /// Makes requests fail that wait for a peer; a forced cancel does that.
    fn cancel_in_flight(&self) {}

    /// The last step that may fail, after `run`.
    fn prepare<'a>(&'a self, _job: &'a Rc<Job>) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// After success.
    fn commit(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// After an error or a forced cancel.
    fn abort(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// After either: lets go of all nodes.
    fn clean(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// What a job does about an I/O error (`on-source-error`, `on-target-error`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Ends with the error.
    #[default]
    Report,
    /// Goes on.
    Ignore,
    /// Stops when space ran out, else ends.
    Enospc,
    /// Stops until resumed.
    Stop,
}

impl OnError {
    /// Names as arguments have them (`auto` is `report` for jobs).
    pub const NAMES: &'static [(&'static str, Self)] = &[
        ("report", Self::Report),
        ("ignore", Self::Ignore),
        ("enospc", Self::Enospc),
        ("stop", Self::Stop),
        ("auto", Self::Report),
    ];
}

/// What has to be done about one error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// End with it.
    Report,
    /// Forget it and try again later.
    Ignore,
    /// The job was paused; try again when it is resumed.
    Stop,
}

/// What every job is made with.
#[derive(Clone, Debug)]
pub struct JobOptions {
    /// `None`: internal.
    pub id: Option<String>,
    /// Bytes a second, 0 for no limit.
    pub speed: u64,
    /// Finish without `job-finalize`.
    pub auto_finalize: bool,
    /// Disappear without `job-dismiss`.
    pub auto_dismiss: bool,
}

impl JobOptions {
    /// A job that no monitor sees.
    pub fn internal() -> Self {
        Self { id: None, speed: 0, auto_finalize: true, auto_dismiss: true }
    }
}

/// A job. Lives on the graph's thread.
pub struct Job {
    options: JobOptions,
    kind: JobType,
    graph: WeakGraph,
    driver: Box<dyn JobDriver>,
    status: Cell<JobStatus>,
    pause_count: Cell<u32>,
    user_paused: Cell<bool>,
    at_pause_point: Cell<bool>,
    busy: Cell<bool>,
    cancelled: Cell<bool>,
    force_cancelled: Cell<bool>,
    completing: Cell<bool>,
    finalizing: Cell<bool>,
    dismissing: Cell<bool>,
    progress: Cell<(u64, u64)>,
    limit: RefCell<RateLimit>,
    io_status: Cell<&'static str>,
    error: RefCell<Option<Error>>,
    actively_synced: Cell<bool>,
    wake: Notify,
    changed: Notify,
}

impl Job {
    pub(super) fn new(graph: &Graph, kind: JobType, options: JobOptions, driver: Box<dyn JobDriver>) -> Rc<Self> {
        let speed = options.speed;
        Rc::new(Self {
            options,
            kind,
            graph: graph.downgrade(),
            driver,
            status: Cell::new(JobStatus::Undefined),
            pause_count: Cell::new(0),
            user_paused: Cell::new(false),
            at_pause_point: Cell::new(false),
            busy: Cell::new(false),
            cancelled: Cell::new(false),
            force_cancelled: Cell::new(false),
            completing: Cell::new(false),
            finalizing: Cell::new(false),
            dismissing: Cell::new(false),
            progress: Cell::new((0, 0)),
            limit: RefCell::new(RateLimit::new(speed)),
            io_status: Cell::new("ok"),
            error: RefCell::default(),
            actively_synced: Cell::new(false),
            wake: Notify::new(),
            changed: Notify::new(),
        })
    }

    /// The id, empty for an internal job.
    pub fn id(&self) -> &str {
        self.options.id.as_deref().unwrap_or("")
    }

    /// Whether no monitor sees it.
    pub fn is_internal(&self) -> bool {
        self.options.id.is_none()
    }

    /// What it does.
    pub fn kind(&self) -> JobType {
        self.kind
    }

    /// Where it is in its life.
    pub fn status(&self) -> JobStatus {
        self.status.get()
    }

    /// Whether it is in its steady state, or was when it was paused.
    pub fn is_ready(&self) -> bool {
        matches!(self.status(), JobStatus::Ready | JobStatus::Standby)
    }

    /// Whether it was told to end without success.
    pub fn is_cancelled(&self) -> bool {
        self.force_cancelled.get()
    }

    /// Whether it was told to end in any way.
    pub fn cancel_requested(&self) -> bool {
        self.cancelled.get()
    }

    /// Whether it was told to complete.
    pub fn is_completing(&self) -> bool {
        self.completing.get()
    }

    /// The error it ended with.
    pub fn error(&self) -> Option<Error> {
        self.error.borrow().clone()
    }

    /// Bytes done and bytes there are.
    pub fn progress(&self) -> (u64, u64) {
        self.progress.get()
    }

    /// Sets the bytes there are; never less than those done.
    pub fn set_total(&self, total: u64) {
        let (done, _) = self.progress.get();
        self.progress.set((done, total.max(done)));
    }

    /// Sets what remains; what there is follows.
    pub fn set_remaining(&self, remaining: u64) {
        let (done, _) = self.progress.get();
        self.progress.set((done, done + remaining));
    }

    /// Counts bytes as done.
    pub fn advance(&self, bytes: u64) {
        let (done, total) = self.progress.get();
        self.progress.set((done + bytes, total.max(done + bytes)));
    }

    /// Whether the copy is kept equal by the writes themselves (mirror's `write-blocking`).
    pub fn set_actively_synced(&self, synced: bool) {
        self.actively_synced.set(synced);
    }

    fn emit(&self, name: &str, data: Value) {
        if !self.is_internal()
            && let Some(graph) = self.graph.upgrade()
        {
            graph.emit(name, data);
        }
    }

    fn set_status(&self, to: JobStatus) {
        let from = self.status.replace(to);
        debug_assert!(from.successors().contains(&to), "job cannot go from {from:?} to {to:?}");
        self.emit("JOB_STATUS_CHANGE", json!({"id": self.id(), "status": to.as_str()}));
        self.changed.notify_waiters();
    }

    fn event_data(&self) -> Value {
        let (done, total) = self.progress.get();
        json!({
            "type": self.kind.as_str(), "device": self.id(), "len": total, "offset": done, "speed": self.speed(),
        })
    }

    /// Bytes a second, 0 for no limit.
    pub fn speed(&self) -> u64 {
        self.limit.borrow().speed()
    }

    pub(super) fn create(&self) {
        self.set_status(JobStatus::Created);
    }

    /// Starts the work on the current context.
    pub(super) fn start(self: &Rc<Self>) {
        self.set_status(JobStatus::Running);
        self.busy.set(true);
        let job = self.clone();
        tokio::task::spawn_local(async move { job.live().await });
    }

    async fn live(self: Rc<Self>) {
        let mut result = self.driver.run(&self).await;
        self.busy.set(false);
        self.at_pause_point.set(true);
        if !self.force_cancelled.get() && result.is_ok() {
            // A job that ends while it is paused passes through the state it was paused in.
            match self.status() {
                JobStatus::Paused => self.set_status(JobStatus::Running),
                JobStatus::Standby => self.set_status(JobStatus::Ready),
                _ => {}
            }
            self.set_status(JobStatus::Waiting);
            self.set_status(JobStatus::Pending);
            if !self.options.auto_finalize {
                let data = json!({"type": self.kind.as_str(), "id": self.id()});
                self.emit("BLOCK_JOB_PENDING", data);
                self.wait_for(|j| j.finalizing.get() || j.cancelled.get()).await;
                if self.cancelled.get() {
                    self.force_cancelled.set(true);
                }
            }
            if !self.force_cancelled.get() {
                result = self.driver.prepare(&self).await;
            }
        }
        let succeeded = result.is_ok() && !self.force_cancelled.get();
        if succeeded {
            self.driver.commit().await;
        } else {
            match self.status() {
                JobStatus::Paused => self.set_status(JobStatus::Running),
                JobStatus::Standby => self.set_status(JobStatus::Ready),
                _ => {}
            }
            self.set_status(JobStatus::Aborting);
            self.driver.abort().await;
        }
        self.driver.clean().await;
        let error = match result {
            _ if self.force_cancelled.get() => Some(Error::new("Operation canceled")),
            Err(e) => Some(e),
            Ok(()) => None,
        };
        let mut data = self.event_data();
        if self.force_cancelled.get() {
            self.emit("BLOCK_JOB_CANCELLED", data);
        } else {
            if let Some(e) = &error {
                data["error"] = json!(e.message());
            }
            self.emit("BLOCK_JOB_COMPLETED", data);
        }
        *self.error.borrow_mut() = error;
        self.set_status(JobStatus::Concluded);
        if !self.options.auto_dismiss {
            self.wait_for(|j| j.dismissing.get()).await;
        }
        self.set_status(JobStatus::Null);
        if let Some(graph) = self.graph.upgrade() {
            super::Jobs::of(&graph).forget(&self);
        }
    }

    async fn wait_for(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let woken = self.wake.notified();
            if condition(self) {
                return;
            }
            woken.await;
        }
    }

    /// Waits until the job is over (concluded or gone).
    pub async fn finished(&self) {
        loop {
            let changed = self.changed.notified();
            if matches!(self.status(), JobStatus::Concluded | JobStatus::Null) {
                return;
            }
            changed.await;
        }
    }

    /// To be called by the driver where it can wait: stays here while the job is paused.
    pub async fn pause_point(&self) {
        while self.pause_count.get() > 0 && !self.force_cancelled.get() {
            let before = self.status();
            match before {
                JobStatus::Running => self.set_status(JobStatus::Paused),
                JobStatus::Ready => self.set_status(JobStatus::Standby),
                _ => {}
            }
            self.busy.set(false);
            self.at_pause_point.set(true);
            self.changed.notify_waiters();
            crate::drain::kick();
            self.wait_for(|j| j.pause_count.get() == 0 || j.force_cancelled.get()).await;
            self.at_pause_point.set(false);
            self.busy.set(true);
            if self.status() != before {
                self.set_status(before);
            }
        }
    }

    /// Waits for `time`, less if the job is cancelled, completed, paused or woken; ends at a pause point.
    pub async fn sleep(&self, time: Duration) {
        self.busy.set(false);
        let woken = self.wake.notified();
        if !self.force_cancelled.get() && self.pause_count.get() == 0 {
            let _ = tokio::time::timeout(time, woken).await;
        }
        self.busy.set(true);
        self.pause_point().await;
    }

    /// Lets a driver that sleeps look around.
    pub fn kick(&self) {
        self.wake.notify_waiters();
    }

    /// Accounts `bytes` to the speed limit and waits as long as it asks.
    pub async fn throttle(&self, bytes: u64) {
        let delay = self.limit.borrow_mut().account(bytes);
        if let Some(delay) = delay {
            self.sleep(delay).await;
        }
    }

    /// The driver's steady state begins.
    pub fn become_ready(&self) {
        self.set_status(JobStatus::Ready);
        self.emit("BLOCK_JOB_READY", self.event_data());
    }

    /// Decides about an I/O error, reports it, and pauses the job if that is asked.
    pub fn handle_error(&self, policy: OnError, is_read: bool, error: &io::Error) -> ErrorAction {
        let nospace = error.raw_os_error() == Some(libc::ENOSPC);
        let action = match policy {
            OnError::Report => ErrorAction::Report,
            OnError::Ignore => ErrorAction::Ignore,
            OnError::Enospc if nospace => ErrorAction::Stop,
            OnError::Enospc => ErrorAction::Report,
            OnError::Stop => ErrorAction::Stop,
        };
        let name = match action {
            ErrorAction::Report => "report",
            ErrorAction::Ignore => "ignore",
            ErrorAction::Stop => "stop",
        };
        let operation = if is_read { "read" } else { "write" };
        self.emit("BLOCK_JOB_ERROR", json!({"device": self.id(), "operation": operation, "action": name}));
        if action == ErrorAction::Stop {
            if !self.user_paused.replace(true) {
                self.pause();
            }
            self.io_status.set(if nospace { "nospace" } else { "failed" });
        }
        action
    }

    /// Asks the job to stop at its next pause point; calls add up.
    pub fn pause(&self) {
        self.pause_count.set(self.pause_count.get() + 1);
        self.kick();
    }

    /// One [`Job::pause`] less.
    pub fn resume(&self) {
        self.pause_count.set(self.pause_count.get() - 1);
        self.kick();
    }

    /// Whether the job still works although it was asked to pause.
    pub fn is_pausing(&self) -> bool {
        self.pause_count.get() > 0
            && !self.at_pause_point.get()
            && matches!(self.status(), JobStatus::Running | JobStatus::Ready)
    }

    /// Waits until a pause has taken effect.
    pub async fn paused(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.is_pausing() {
                return;
            }
            changed.await;
        }
    }

    /// `block-job-cancel`, `job-cancel`
    pub fn cancel(&self, force: bool) {
        let force = force || self.driver.cancel_aborts(self) || self.status() == JobStatus::Pending;
        self.cancelled.set(true);
        if force {
            self.force_cancelled.set(true);
            self.driver.cancel_in_flight();
        }
        if self.user_paused.replace(false) {
            self.pause_count.set(self.pause_count.get() - 1);
        }
        self.kick();
    }

    pub(super) fn check(&self, verb: JobVerb) -> Result<()> {
        verb.check(self.id(), self.status())
    }

    pub(super) fn user_pause(&self) -> Result<()> {
        self.check(JobVerb::Pause)?;
        if self.user_paused.replace(true) {
            return Err(Error::new("Job is already paused"));
        }
        self.pause();
        Ok(())
    }

    pub(super) fn user_resume(&self) -> Result<()> {
        if !self.user_paused.get() || self.pause_count.get() == 0 {
            return Err(Error::new("Can't resume a job that was not paused"));
        }
        self.check(JobVerb::Resume)?;
        self.io_status.set("ok");
        self.user_paused.set(false);
        self.resume();
        Ok(())
    }

    pub(super) fn user_cancel(&self, force: bool) -> Result<()> {
        self.check(JobVerb::Cancel)?;
        self.cancel(force);
        Ok(())
    }

    /// Whether a user (not a drain) paused it.
    pub fn is_user_paused(&self) -> bool {
        self.user_paused.get()
    }

    pub(super) fn complete(&self) -> Result<()> {
        self.check(JobVerb::Complete)?;
        if self.cancelled.get() || !self.driver.can_complete() {
            return Err(Error::new(format!("The active block job '{}' cannot be completed", self.id())));
        }
        self.completing.set(true);
        self.kick();
        Ok(())
    }

    pub(super) fn finalize(&self) -> Result<()> {
        self.check(JobVerb::Finalize)?;
        self.finalizing.set(true);
        self.kick();
        Ok(())
    }

    pub(super) fn dismiss(&self) -> Result<()> {
        self.check(JobVerb::Dismiss)?;
        self.dismissing.set(true);
        self.kick();
        Ok(())
    }

    pub(super) fn set_speed(&self, speed: i64) -> Result<()> {
        self.check(JobVerb::SetSpeed)?;
        let Ok(speed) = u64::try_from(speed) else {
            return Err(Error::new("Parameter 'speed' expects a non-negative value"));
        };
        self.limit.borrow_mut().set_speed(speed);
        self.kick();
        Ok(())
    }

    /// An element of `query-jobs`.
    pub fn info(&self) -> Value {
        let (done, total) = self.progress.get();
        let mut info = json!({
            "id": self.id(), "type": self.kind.as_str(), "status": self.status().as_str(),
            "current-progress": done, "total-progress": total,
        });
        if let Some(e) = &*self.error.borrow() {
            info["error"] = json!(e.message());
        }
        info
    }

    /// An element of `query-block-jobs`.
    pub fn block_info(&self) -> Value {
        let (done, total) = self.progress.get();
        let mut info = json!({
            "type": self.kind.as_str(), "device": self.id(), "len": total, "offset": done,
            "busy": self.busy.get(), "paused": self.pause_count.get() > 0, "speed": self.speed(),
            "io-status": self.io_status.get(), "ready": self.is_ready(), "status": self.status().as_str(),
            "auto-finalize": self.options.auto_finalize, "auto-dismiss": self.options.auto_dismiss,
        });
        if self.kind == JobType::Mirror {
            info["actively-synced"] = json!(self.actively_synced.get());
        }
        if let Some(e) = &*self.error.borrow() {
            info["error"] = json!(e.message());
        }
        info
    }
}
