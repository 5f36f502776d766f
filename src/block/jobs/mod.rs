//! Long-running block operations: the list of jobs and the commands to them.

pub mod backup;
pub mod chain;
#[cfg(test)]
mod chain_tests;
pub mod commands;
pub mod copy_before_write;
pub mod dirty;
mod edge;
pub mod job;
pub mod mirror;
pub mod rate;
pub mod state;
mod target;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use lockstep_util::{Error, ErrorClass, Result, bail};
use serde_json::Value;

use crate::graph::Graph;
pub use edge::JobEdge;
pub use job::{ErrorAction, Job, JobDriver, JobOptions, OnError};
pub use state::{JobStatus, JobType, JobVerb};

/// How long a command waits for a job that is about to end to let go of its nodes.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The jobs of a graph.
#[derive(Default)]
pub struct Jobs {
    list: RefCell<Vec<Rc<Job>>>,
}

impl Jobs {
    /// The jobs of `graph`.
    pub fn of(graph: &Graph) -> Rc<Self> {
        graph.extension()
    }

    /// Checks an id, makes the job and starts it.
    pub fn start(
        &self,
        graph: &Graph,
        kind: JobType,
        options: JobOptions,
        driver: Box<dyn JobDriver>,
    ) -> Result<Rc<Job>> {
        if let Some(id) = &options.id {
            self.check_id(id)?;
        }
        let job = Job::new(graph, kind, options, driver);
        self.list.borrow_mut().push(job.clone());
        job.create();
        job.start();
        Ok(job)
    }

    /// Fails unless `id` can be a new job's id.
    pub fn check_id(&self, id: &str) -> Result<()> {
        let well_formed = id.starts_with(|c: char| c.is_ascii_alphabetic())
            && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
        if !well_formed {
            bail!("Invalid job ID '{id}'");
        }
        if self.find(id).is_some() {
            bail!("Job ID '{id}' already in use");
        }
        Ok(())
    }

    pub(crate) fn forget(&self, job: &Rc<Job>) {
        self.list.borrow_mut().retain(|j| !Rc::ptr_eq(j, job));
    }

    fn find(&self, id: &str) -> Option<Rc<Job>> {
        self.list.borrow().iter().find(|j| !j.is_internal() && j.id() == id).cloned()
    }

    /// The job of that id, as the `job-*` commands look it up.
    pub fn job(&self, id: &str) -> Result<Rc<Job>> {
        self.find(id).ok_or_else(|| Error::new("Job not found"))
    }

    /// The job of that id, as the `block-job-*` commands look it up.
    pub fn block_job(&self, id: &str) -> Result<Rc<Job>> {
        let missing = || Error::with_class(ErrorClass::DeviceNotActive, format!("Block job '{id}' not found"));
        self.find(id).ok_or_else(missing)
    }

    /// All jobs, internal ones included.
    pub fn all(&self) -> Vec<Rc<Job>> {
        self.list.borrow().clone()
    }

    fn visible(&self) -> Vec<Rc<Job>> {
        self.list.borrow().iter().filter(|j| !j.is_internal()).cloned().collect()
    }

    /// `query-jobs`
    pub fn query_jobs(&self) -> Value {
        self.visible().iter().map(|j| j.info()).collect()
    }

    /// `query-block-jobs`
    pub fn query_block_jobs(&self) -> Value {
        self.visible().iter().map(|j| j.block_info()).collect()
    }

    /// `block-job-cancel`
    pub fn block_job_cancel(&self, id: &str, force: bool) -> Result<()> {
        let job = self.block_job(id)?;
        if job.is_user_paused() && !force {
            bail!("The block job for device '{id}' is currently paused");
        }
        job.user_cancel(force)
    }

    /// `block-job-pause`
    pub fn block_job_pause(&self, id: &str) -> Result<()> {
        self.block_job(id)?.user_pause()
    }

    /// `block-job-resume`
    pub fn block_job_resume(&self, id: &str) -> Result<()> {
        self.block_job(id)?.user_resume()
    }

    /// `block-job-complete`
    pub fn block_job_complete(&self, id: &str) -> Result<()> {
        self.block_job(id)?.complete()
    }

    /// `block-job-finalize`
    pub fn block_job_finalize(&self, id: &str) -> Result<()> {
        self.block_job(id)?.finalize()
    }

    /// `block-job-dismiss`
    pub fn block_job_dismiss(&self, id: &str) -> Result<()> {
        self.block_job(id)?.dismiss()
    }

    /// `block-job-set-speed`, in bytes a second
    pub fn block_job_set_speed(&self, id: &str, speed: i64) -> Result<()> {
        self.block_job(id)?.set_speed(speed)
    }

    /// `job-cancel`
    pub fn job_cancel(&self, id: &str) -> Result<()> {
        self.job(id)?.user_cancel(true)
    }

    /// `job-pause`
    pub fn job_pause(&self, id: &str) -> Result<()> {
        self.job(id)?.user_pause()
    }

    /// `job-resume`
    pub fn job_resume(&self, id: &str) -> Result<()> {
        self.job(id)?.user_resume()
    }

    /// `job-complete`
    pub fn job_complete(&self, id: &str) -> Result<()> {
        self.job(id)?.complete()
    }

    /// `job-finalize`
    pub fn job_finalize(&self, id: &str) -> Result<()> {
        self.job(id)?.finalize()
    }

    /// `job-dismiss`
    pub fn job_dismiss(&self, id: &str) -> Result<()> {
        self.job(id)?.dismiss()
    }

    /// Waits (bounded) until jobs that were told to end have let go of their nodes and connections. Commands that are
    /// pasted right behind `block-job-cancel` can then use them.
    pub async fn settle(&self) {
        let ending: Vec<_> = self.all().into_iter().filter(|j| j.cancel_requested() || j.is_completing()).collect();
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, async {
            for job in ending {
                job.finished().await;
            }
        })
        .await;
    }

    /// Ends all jobs, forced, and waits for them: the program ends.
    pub async fn cancel_all(&self) {
        for job in self.all() {
            job.cancel(true);
        }
        for job in self.all() {
            job.finished().await;
        }
    }
}
