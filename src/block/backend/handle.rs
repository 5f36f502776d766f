//! The handle that device models hold: usable from any thread, it carries requests to the graph's thread.

use super::Backend;
use lockstep_event::{Context, ContextHandle};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// A request of a device.
#[derive(Debug)]
pub enum BlockOp {
    /// Read `len` bytes at `offset`; the completion gets them.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: usize,
    },
    /// Write `data` at `offset`; the completion gets the buffer back.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: Vec<u8>,
    },
    /// Write zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Whether the blocks may be given back.
        may_unmap: bool,
    },
    /// Make all completed writes stable.
    Flush,
    /// The contents are not needed any more.
    Discard {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
}

/// What happened to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediumChange {
    /// There is one now.
    Inserted,
    /// There is none any more.
    Removed,
    /// It has another length.
    Resized,
    /// The user opened the tray.
    TrayOpened,
    /// The user closed the tray.
    TrayClosed,
    /// The user asks the guest to let go of the medium.
    EjectRequested {
        /// A lock of the guest's is lifted.
        force: bool,
    },
}

type Completion = Box<dyn FnOnce(io::Result<Vec<u8>>) + Send>;
type Listener = Arc<dyn Fn(MediumChange) + Send + Sync>;

pub(super) struct Request {
    pub op: BlockOp,
    pub done: Completion,
}

/// The part of a backend that other threads see.
pub(super) struct Shared {
    pub id: u64,
    context: OnceLock<ContextHandle>,
    queue: Mutex<VecDeque<Request>>,
    scheduled: AtomicBool,
    /// Submitted and not completed.
    in_flight: AtomicUsize,
    length: AtomicU64,
    inserted: AtomicBool,
    read_only: AtomicBool,
    write_cache: AtomicBool,
    closed: AtomicBool,
    listeners: Mutex<Vec<Listener>>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Shared {
    pub fn new() -> Arc<Self> {
        let shared = Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            context: OnceLock::new(),
            queue: Mutex::default(),
            scheduled: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            length: AtomicU64::new(0),
            inserted: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
            write_cache: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            listeners: Mutex::default(),
        };
        if let Some(context) = Context::current() {
            let _ = shared.context.set(context);
        }
        Arc::new(shared)
    }

    pub fn set_medium(&self, length: Option<u64>, read_only: bool) {
        self.length.store(length.unwrap_or(0), Ordering::Release);
        self.read_only.store(read_only, Ordering::Release);
        self.inserted.store(length.is_some(), Ordering::Release);
    }

    pub fn set_write_cache(&self, enabled: bool) {
        self.write_cache.store(enabled, Ordering::Release);
    }

    pub fn write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Acquire)
    }

    pub fn notify(&self, change: MediumChange) {
        let listeners = self.listeners.lock().clone();
        for listener in listeners {
            listener(change);
        }
    }

    pub fn next(&self) -> Option<Request> {
        let mut queue = self.queue.lock();
        let next = queue.pop_front();
        if next.is_none() {
            // Whoever submits from now on has to schedule again.
            self.scheduled.store(false, Ordering::Release);
        }
        next
    }

    pub fn ended(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }

    /// Has the graph's thread look at the queue.
    pub fn schedule(&self) {
        self.scheduled.store(true, Ordering::Release);
        let id = self.id;
        if let Some(context) = self.context.get() {
            context.post(move || {
                if let Some(backend) = Backend::by_id(id) {
                    backend.pump();
                }
            });
        }
    }

    /// The backend is gone: what waits fails.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.set_medium(None, false);
        let waiting = std::mem::take(&mut *self.queue.lock());
        for request in waiting {
            (request.done)(Err(crate::driver::errno(libc::ENOMEDIUM)));
            self.ended();
        }
    }
}

/// A device's handle to its backend. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct BlockBackend {
    shared: Arc<Shared>,
}

impl BlockBackend {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        if let Some(context) = Context::current() {
            let _ = shared.context.set(context);
        }
        Self { shared }
    }

    /// Hands a request in. `done` is called later on the graph's thread (never from within this call), also when the
    /// request fails; while the node is quiesced the request waits.
    pub fn submit(&self, op: BlockOp, done: Box<dyn FnOnce(io::Result<Vec<u8>>) + Send>) {
        let shared = &self.shared;
        shared.in_flight.fetch_add(1, Ordering::AcqRel);
        shared.queue.lock().push_back(Request { op, done });
        if shared.closed.load(Ordering::Acquire) {
            let id = shared.clone();
            match shared.context.get() {
                Some(context) => context.post(move || id.close()),
                None => shared.close(),
            }
            return;
        }
        if !shared.scheduled.swap(true, Ordering::AcqRel) {
            shared.schedule();
        }
    }

    /// Length of the medium in bytes, 0 without one.
    pub fn len(&self) -> u64 {
        self.shared.length.load(Ordering::Acquire)
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the medium cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.shared.read_only.load(Ordering::Acquire)
    }

    /// Whether there is a medium.
    pub fn is_inserted(&self) -> bool {
        self.shared.inserted.load(Ordering::Acquire)
    }

    /// Requests submitted and not completed.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// Whether completed writes may still be in a volatile cache.
    pub fn write_cache(&self) -> bool {
        self.shared.write_cache()
    }

    /// Turns the volatile cache on or off (a guest may, through its device).
    pub fn set_write_cache(&self, enabled: bool) {
        self.shared.set_write_cache(enabled);
    }

    /// Calls `listener` on the graph's thread whenever the medium changes.
    pub fn on_medium_change(&self, listener: impl Fn(MediumChange) + Send + Sync + 'static) {
        self.shared.listeners.lock().push(Arc::new(listener));
    }
}
