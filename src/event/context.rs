//! A thread's event loop and the handle by which other threads put work on it.

use std::{
    cell::RefCell,
    future::Future,
    io,
    sync::{Arc, OnceLock},
    thread::{self, JoinHandle, ThreadId},
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
    task::LocalSet,
};

type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    static CURRENT: RefCell<Option<ContextHandle>> = const { RefCell::new(None) };
}

/// How other threads reach a [`Context`]. Cheap to clone.
#[derive(Clone)]
pub struct ContextHandle {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    jobs: mpsc::UnboundedSender<Job>,
    thread: OnceLock<ThreadId>,
}

impl ContextHandle {
    /// Runs `f` on the context's thread, after everything posted before it.
    ///
    /// When the context has ended, `f` is dropped without being run.
    pub fn post(&self, f: impl FnOnce() + Send + 'static) {
        let _ = self.shared.jobs.send(Box::new(f));
    }

    /// Builds a future on the context's thread and runs it there as a local task.
    pub fn spawn<F, Fut>(&self, make: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        self.post(move || {
            tokio::task::spawn_local(make());
        });
    }

    /// Builds a future on the context's thread, runs it there, and gives its result to whoever awaits the returned
    /// future, which may be on another context. `None` when the context ended before the result was there.
    pub fn call<F, Fut, T>(&self, make: F) -> impl Future<Output = Option<T>> + Send + use<F, Fut, T>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.spawn(move || {
            let future = make();
            async move {
                let _ = tx.send(future.await);
            }
        });
        async move { rx.await.ok() }
    }

    /// Whether the calling thread runs this context.
    pub fn is_current(&self) -> bool {
        self.shared.thread.get() == Some(&thread::current().id())
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.shared.name
    }
}

impl PartialEq for ContextHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl std::fmt::Debug for ContextHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ContextHandle({})", self.shared.name)
    }
}

/// A thread's event loop. It stays on the thread that made it.
pub struct Context {
    // Dropped first: tasks may own sockets registered with the runtime's driver.
    local: LocalSet,
    runtime: Runtime,
    handle: ContextHandle,
}

impl Context {
    /// Makes a context for the calling thread.
    ///
    /// # Errors
    /// Those of making an epoll instance.
    pub fn new(name: impl Into<String>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let local = LocalSet::new();
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let shared = Arc::new(Shared { name: name.into(), jobs, thread: OnceLock::new() });
        let _ = shared.thread.set(thread::current().id());
        let handle = ContextHandle { shared };
        local.spawn_local(async move {
            while let Some(job) = queue.recv().await {
                job();
            }
        });
        Ok(Self { local, runtime, handle })
    }

    /// The handle that other threads use.
    pub fn handle(&self) -> ContextHandle {
        self.handle.clone()
    }

    /// The handle of the context that is running on the calling thread.
    pub fn current() -> Option<ContextHandle> {
        CURRENT.with(|c| c.borrow().clone())
    }

    /// Runs the loop until `future` is done. Tasks that were spawned stay and go on in the next call.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        let _current = SetCurrent::new(self.handle());
        self.local.block_on(&self.runtime, future)
    }
}

struct SetCurrent {
    previous: Option<ContextHandle>,
}

impl SetCurrent {
    fn new(handle: ContextHandle) -> Self {
        Self { previous: CURRENT.with(|c| c.borrow_mut().replace(handle)) }
    }
}

impl Drop for SetCurrent {
    fn drop(&mut self) {
        let previous = self.previous.take();
        CURRENT.with(|c| *c.borrow_mut() = previous);
    }
}

/// A context on a thread of its own (`-object iothread`). Dropping it ends the loop and joins the thread.
pub struct IoThread {
    handle: ContextHandle,
    thread_id: i32,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts the thread; `name` is the thread's name too (cut to what the kernel takes).
    ///
    /// # Errors
    /// Those of making a thread or an epoll instance.
    pub fn spawn(name: impl Into<String>) -> io::Result<Self> {
        let name = name.into();
        let (ready_tx, ready_rx) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread_name = format!("IO {name}");
        let thread = thread::Builder::new().name(thread_name).spawn(move || match Context::new(name) {
            Ok(context) => {
                let tid = rustix::thread::gettid().as_raw_nonzero().get();
                let _ = ready_tx.send(Ok((context.handle(), tid)));
                context.run(async {
                    let _ = stopped.await;
                });
            }
            Err(e) => {
                let _ = ready_tx.send(Err(e));
            }
        })?;
        let (handle, thread_id) =
            ready_rx.recv().unwrap_or_else(|_| Err(io::Error::other("the iothread ended at its start")))?;
        Ok(Self { handle, thread_id, stop: Some(stop), thread: Some(thread) })
    }

    /// The handle of its context.
    pub fn handle(&self) -> ContextHandle {
        self.handle.clone()
    }

    /// The kernel's thread id (`query-iothreads` shows it).
    pub fn thread_id(&self) -> i32 {
        self.thread_id
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A handle may be dropped on the iothread itself (by a job posted to it): it cannot join itself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn posted_jobs_run_in_order_on_the_contexts_thread() {
        let io = IoThread::spawn("t").unwrap();
        let (tx, rx) = std::sync::mpsc::channel();
        for i in 0..100 {
            let (tx, handle) = (tx.clone(), io.handle());
            io.handle().post(move || tx.send((i, handle.is_current())).unwrap());
        }
        let got: Vec<_> = rx.iter().take(100).collect();
        assert_eq!(got, (0..100).map(|i| (i, true)).collect::<Vec<_>>());
        assert!(!io.handle().is_current());
    }

    #[test]
    fn a_call_brings_back_the_result_of_a_local_future() {
        let main = Context::new("main").unwrap();
        let io = IoThread::spawn("t").unwrap();
        let sum = main.run(io.handle().call(|| async {
            let local = Rc::new(20);
            tokio::task::yield_now().await;
            *local + 22
        }));
        assert_eq!(sum, Some(42));
    }

    #[test]
    fn a_call_to_an_ended_context_gives_none() {
        let main = Context::new("main").unwrap();
        let io = IoThread::spawn("t").unwrap();
        let handle = io.handle();
        drop(io);
        assert_eq!(main.run(handle.call(|| async { 1 })), None);
    }

    #[test]
    fn the_current_context_is_known_only_while_it_runs() {
        let main = Context::new("main").unwrap();
        assert!(Context::current().is_none());
        assert_eq!(main.run(async { Context::current().map(|c| c.name().to_owned()) }), Some("main".to_owned()));
        assert!(Context::current().is_none());
    }
}
