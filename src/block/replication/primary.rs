//! The primary's side: writes on their way to the secondary.
//!
//! The guest does not wait for the other host: what it writes is copied, queued and counted, and a checkpoint waits for
//! all of it. Nothing of the guest is shown to the world before that checkpoint, so it cannot rely on a copy that does
//! not exist yet. The queue is bounded in bytes; behind a full queue the guest waits. Requests that overlap reach the
//! secondary in the guest's order, a flush goes behind all writes before it.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::drain;
use crate::driver::{WriteFlags, errno};
use crate::node::Node;

/// Most KiB on their way.
const MAX_KIB: u32 = 8 << 10;
/// How long closing waits for what is on its way. Whoever closes has ended the lock-step, so that nobody needs it.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(50);

/// What is sent.
pub(super) enum Request {
    Write(u64, Vec<u8>, WriteFlags),
    Zeroes(u64, u64, WriteFlags),
    Flush,
}

impl Request {
    /// The half-open range it changes; empty for a flush.
    fn range(&self) -> (u64, u64) {
        match self {
            Self::Write(offset, data, _) => (*offset, offset + data.len() as u64),
            Self::Zeroes(offset, len, _) => (*offset, offset + len),
            Self::Flush => (0, 0),
        }
    }

    fn kib(&self) -> u32 {
        match self {
            Self::Write(_, data, _) => (data.len() as u32 / 1024).clamp(1, MAX_KIB),
            _ => 1,
        }
    }

    async fn send(&self, to: &Rc<Node>) -> io::Result<()> {
        match self {
            Self::Write(offset, data, flags) => to.write(*offset, data, *flags).await,
            Self::Zeroes(offset, len, flags) => to.write_zeroes(*offset, *len, *flags).await,
            Self::Flush => to.flush().await,
        }
    }
}

struct Entry {
    number: u64,
    start: u64,
    end: u64,
    is_flush: bool,
    /// Earlier requests that have to end first.
    ahead: usize,
    go: Rc<Notify>,
}

impl Entry {
    /// Whether this one, being earlier, has to end before `later` is sent.
    fn holds(&self, later: &Self) -> bool {
        !self.is_flush && (later.is_flush || (self.start < later.end && later.start < self.end))
    }
}

/// The queue.
pub(super) struct Outgoing {
    entries: RefCell<Vec<Entry>>,
    next: Cell<u64>,
    room: Arc<Semaphore>,
    ended: Notify,
    /// The first error; nothing is sent behind it, for the copy is stale for good.
    error: RefCell<Option<io::Error>>,
    lost: Cell<bool>,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            entries: RefCell::default(),
            next: Cell::new(0),
            room: Arc::new(Semaphore::new(MAX_KIB as usize)),
            ended: Notify::new(),
            error: RefCell::default(),
            lost: Cell::new(false),
        }
    }
}

impl Outgoing {
    /// Forgets errors: the lock-step begins.
    pub(super) fn reset(&self) {
        self.error.borrow_mut().take();
        self.lost.set(false);
    }

    /// Whether a request has not reached the secondary, or is not going to.
    pub(super) fn has_failed(&self) -> bool {
        self.error.borrow().is_some()
    }

    /// Whether something is on its way.
    pub(super) fn is_busy(&self) -> bool {
        !self.entries.borrow().is_empty()
    }

    /// Nothing is sent any more.
    pub(super) fn give_up(&self) {
        self.lost.set(true);
    }

    /// Queues a request; waits only for room.
    pub(super) async fn put(self: &Rc<Self>, request: Request, to: Rc<Node>) {
        if self.refuses() {
            return;
        }
        let Ok(room) = self.room.clone().acquire_many_owned(request.kib()).await else { return };
        let number = self.next.replace(self.next.get() + 1);
        let (start, end) = request.range();
        let is_flush = matches!(request, Request::Flush);
        let go = Rc::new(Notify::new());
        let mut entry = Entry { number, start, end, is_flush, ahead: 0, go: go.clone() };
        {
            let mut entries = self.entries.borrow_mut();
            entry.ahead = entries.iter().filter(|e| e.holds(&entry)).count();
            if entry.ahead == 0 {
                go.notify_one();
            }
            entries.push(entry);
        }
        let queue = self.clone();
        tokio::task::spawn_local(async move {
            go.notified().await;
            queue.deliver(request, number, to, room).await;
        });
    }

    /// Whether a request would be in vain. That is an error of its own: the secondary misses it.
    fn refuses(&self) -> bool {
        if self.lost.get() {
            self.error.borrow_mut().get_or_insert_with(|| errno(libc::EIO));
        }
        self.has_failed()
    }

    async fn deliver(self: Rc<Self>, request: Request, number: u64, to: Rc<Node>, room: OwnedSemaphorePermit) {
        if !self.refuses()
            && let Err(e) = request.send(&to).await
        {
            // All that are under way fail together; one is news.
            if !self.has_failed() {
                tracing::warn!("replication to the secondary failed: {e}");
            }
            self.error.borrow_mut().get_or_insert(e);
        }
        drop(to);
        drop(room);
        self.leave(number);
        self.ended.notify_waiters();
        drain::kick();
    }

    /// A request has ended: those behind it may go.
    fn leave(&self, number: u64) {
        let mut entries = self.entries.borrow_mut();
        let Some(at) = entries.iter().position(|e| e.number == number) else { return };
        let ended = entries.remove(at);
        // Requests stand in the order in which they came.
        for later in &mut entries[at..] {
            if ended.holds(later) {
                later.ahead -= 1;
                if later.ahead == 0 {
                    later.go.notify_one();
                }
            }
        }
    }

    /// Waits (bounded) for what is on its way, then cuts it off.
    pub(super) async fn close(&self, to: &Rc<Node>) {
        let empty = async {
            loop {
                let ended = self.ended.notified();
                if !self.is_busy() {
                    return;
                }
                ended.await;
            }
        };
        tokio::pin!(empty);
        if tokio::time::timeout(CLOSE_TIMEOUT, &mut empty).await.is_err() {
            self.give_up();
            to.cancel_in_flight();
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, empty).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::cell::RefCell;

    use lockstep_event::Context;

    use super::*;
    use crate::driver::{BlockDriver, DriverDef, DriverKind, LocalBoxFuture};
    use crate::graph::Graph;
    use crate::open::OpenFlags;
    use crate::options::Options;

    thread_local! {
        /// What has begun, and how many may end.
        static BEGUN: RefCell<Vec<String>> = RefCell::default();
        static MAY_END: Rc<Semaphore> = Rc::new(Semaphore::new(0));
    }

    /// A disk whose requests end in the order in which they began, when they are let.
    struct Patient;

    static PATIENT: DriverDef = DriverDef {
        name: "patient",
        kind: DriverKind::Protocol,
        protocols: &[],
        needs_filename: false,
        supports_backing: false,
        probe: None,
        parse_filename: None,
        strong_options: &[],
        open: |_| Box::pin(async { Ok(Box::new(Patient) as Box<dyn BlockDriver>) }),
    };

    impl Patient {
        async fn request(&self, what: String) -> io::Result<()> {
            BEGUN.with_borrow_mut(|begun| begun.push(what));
            MAY_END.with(Rc::clone).acquire().await.map_err(io::Error::other)?.forget();
            Ok(())
        }
    }

    impl BlockDriver for Patient {
        fn format_name(&self) -> &'static str {
            "patient"
        }
        fn length(&self) -> io::Result<u64> {
            Ok(1 << 20)
        }
        fn read<'a>(&'a self, _: u64, _: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
            Box::pin(async { Ok(()) })
        }
        fn write<'a>(&'a self, offset: u64, data: &'a [u8], _: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
            Box::pin(self.request(format!("write {offset}+{}", data.len())))
        }
        fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
            Box::pin(self.request("flush".to_owned()))
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    /// Lets so many requests end. Returns what has begun since the last call.
    async fn end(count: usize) -> Vec<String> {
        MAY_END.with(Rc::clone).add_permits(count);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        BEGUN.take()
    }

    #[test]
    fn overlapping_writes_go_one_after_the_other_and_a_flush_behind_all() {
        Context::new("test").unwrap().run(async {
            let graph = Graph::new();
            let node = graph.build_node(&PATIENT, Some("far"), Options::new(), OpenFlags::default()).await.unwrap();
            let queue = Rc::new(Outgoing::default());
            let write = async |offset: u64, len: usize| {
                let request = Request::Write(offset, vec![1; len], WriteFlags::empty());
                queue.put(request, node.clone()).await;
            };
            write(0, 1024).await;
            write(4096, 1024).await;
            write(512, 1024).await;
            queue.put(Request::Flush, node.clone()).await;
            write(1024, 512).await;
            assert_eq!(end(0).await, ["write 0+1024", "write 4096+1024"]);
            assert_eq!(end(1).await, ["write 512+1024"]);
            assert_eq!(end(1).await, [""; 0], "the flush waits for the last of them, and the last write for the third");
            let mut last = end(1).await;
            last.sort_unstable();
            assert_eq!(last, ["flush", "write 1024+512"]);
            end(2).await;
            assert!(!queue.is_busy() && !queue.has_failed());
        });
    }
}
