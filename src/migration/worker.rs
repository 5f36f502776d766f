//! A plain thread that owns some state and does one piece of blocking work after the other for the main context.

use lockstep_util::{Result, ResultExt, err};
use std::thread;
use tokio::sync::oneshot;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// The handle of such a thread; the thread ends when it is dropped and the work at hand is done.
#[derive(Debug)]
pub struct Worker<S> {
    jobs: crossbeam_channel::Sender<Job<S>>,
    ended: oneshot::Receiver<()>,
}

impl<S: Send + 'static> Worker<S> {
    /// Starts a thread that owns `state`.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub fn spawn(name: &str, mut state: S) -> Result<Self> {
        let (jobs, queue) = crossbeam_channel::unbounded::<Job<S>>();
        // The kernel takes 15 bytes of a thread's name.
        let name: String = name.chars().take(15).collect();
        let (tell_end, ended) = oneshot::channel();
        let run = move || {
            queue.iter().for_each(|job| job(&mut state));
            drop(state);
            let _ = tell_end.send(());
        };
        thread::Builder::new().name(name).spawn(run).context("Failed to create a thread")?;
        Ok(Self { jobs, ended })
    }

    /// Lets the thread end and waits until its state is gone.
    pub async fn end(self) {
        drop(self.jobs);
        // An error says that it is gone too.
        let _ = self.ended.await;
    }

    /// Does `work` on the thread, after what was asked before, and brings back what it returns. The work is done even if the
    /// returned future is dropped.
    pub fn run<T, F>(&self, work: F) -> impl Future<Output = Result<T>> + use<S, T, F>
    where
        T: Send + 'static,
        F: FnOnce(&mut S) -> Result<T> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            let _ = done.send(work(state));
        });
        let _ = self.jobs.send(job);
        async move { result.await.unwrap_or_else(|_| Err(err!("The migration thread ended unexpectedly"))) }
    }
}
