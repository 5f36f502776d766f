//! A small pool of threads for file system calls that can block.
//!
//! Buffers are owned by the job, so a future that waits for it may be dropped at any time. What its job still does then
//! is counted as orphaned: later requests of the same file wait for it, and so does drain.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

type Job = Box<dyn FnOnce() + Send>;

/// Threads at most; file I/O is bound by the device, not by cores.
const MAX_THREADS: usize = 16;
/// An idle thread ends after this.
const IDLE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

struct Pool {
    queue: Mutex<Queue>,
    ready: Condvar,
}

static POOL: OnceLock<Pool> = OnceLock::new();

fn pool() -> &'static Pool {
    POOL.get_or_init(|| Pool { queue: Mutex::default(), ready: Condvar::new() })
}

impl Pool {
    fn push(&'static self, job: Job) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.jobs.push_back(job);
        if queue.idle < queue.jobs.len() && queue.threads < MAX_THREADS {
            queue.threads += 1;
            let spawned = std::thread::Builder::new().name("block-io".to_owned()).spawn(move || self.work());
            if spawned.is_err() {
                queue.threads -= 1;
                if queue.threads == 0 {
                    // No thread at all can be had: the job's sender is dropped and its future gets an error.
                    queue.jobs.pop_back();
                }
            }
        }
        drop(queue);
        self.ready.notify_one();
    }

    fn work(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                // A panicking job drops its sender; the thread itself must go on.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.idle += 1;
            let (again, timeout) = self.ready.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = again;
            queue.idle -= 1;
            if timeout.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

/// Jobs of one file whose futures were dropped before they ended.
pub struct Orphans {
    count: AtomicUsize,
    idle: Notify,
    /// Drain's signal of the thread the file belongs to.
    progress: Arc<Notify>,
}

impl Orphans {
    /// For a file of the calling thread.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { count: AtomicUsize::new(0), idle: Notify::new(), progress: crate::drain::progress() })
    }

    /// Whether any job runs without its future.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Waits until no job runs without its future.
    pub async fn wait(&self) {
        while self.any() {
            let ended = self.idle.notified();
            if !self.any() {
                return;
            }
            ended.await;
        }
    }

    fn ended(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_waiters();
        }
        self.progress.notify_waiters();
    }
}

/// Set by the side that ends first: the job, or its dropped future.
struct First(AtomicBool);

struct Watch {
    orphans: Arc<Orphans>,
    first: Arc<First>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.orphans.count.fetch_add(1, Ordering::AcqRel);
        if self.first.0.swap(true, Ordering::AcqRel) {
            // The job has ended already.
            self.orphans.ended();
        }
    }
}

struct JobEnd {
    orphans: Arc<Orphans>,
    first: Arc<First>,
}

impl Drop for JobEnd {
    fn drop(&mut self) {
        if self.first.0.swap(true, Ordering::AcqRel) {
            self.orphans.ended();
        }
    }
}

/// Runs a system call on a pool thread.
pub fn run<T, F>(orphans: &Arc<Orphans>, f: F) -> impl Future<Output = io::Result<T>> + use<T, F>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    let first = Arc::new(First(AtomicBool::new(false)));
    let watch = Watch { orphans: orphans.clone(), first: first.clone() };
    let end = JobEnd { orphans: orphans.clone(), first };
    async move {
        let _watch = watch;
        let (tx, rx) = oneshot::channel();
        pool().push(Box::new(move || {
            let result = f();
            drop(end);
            let _ = tx.send(result);
        }));
        rx.await.unwrap_or_else(|_| Err(io::Error::other("A file I/O thread has died")))
    }
}
