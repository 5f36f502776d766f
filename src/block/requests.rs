//! Requests under way on a node: which ranges they touch and who has to wait for whom.
//!
//! A request waits only for conflicting ones that are *active* (not waiting themselves), so waiting cannot go round in
//! a circle; a guard leaves the list when it is dropped, wherever its future was.

use crate::drain;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// What a request does to its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Reads.
    Read,
    /// Writes, zeroes or discards.
    Write,
    /// Keeps the contents as they are until dropped: writes wait, reads go on.
    Fence,
    /// Alone on its range: everybody waits (read-modify-write, a copy that must be atomic).
    Exclusive,
}

fn conflict(a: RequestKind, b: RequestKind) -> bool {
    use RequestKind::*;
    match (a, b) {
        (Exclusive, _) | (_, Exclusive) => true,
        (Fence, Write) | (Write, Fence) => true,
        (Read | Write | Fence, Read | Write | Fence) => false,
    }
}

struct Entry {
    id: u64,
    kind: RequestKind,
    start: u64,
    end: u64,
    active: bool,
}

/// The list of one node.
#[derive(Default)]
pub struct Requests {
    entries: RefCell<Vec<Entry>>,
    waiters: RefCell<Vec<(u64, Waker)>>,
    next_id: Cell<u64>,
    /// Entries that can make others wait at all: the common case has none and needs no scan.
    serialising: Cell<usize>,
}

/// A request under way; ends when dropped.
pub struct RequestGuard {
    list: Rc<Requests>,
    id: u64,
    kind: RequestKind,
}

impl Requests {
    /// Number of requests under way or waiting.
    pub fn count(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether another request, waiting or not, would have to wait for somebody on this range.
    pub fn is_contended(&self, kind: RequestKind, start: u64, len: u64) -> bool {
        self.blocked(u64::MAX, kind, start, start.saturating_add(len))
    }

    fn blocked(&self, own: u64, kind: RequestKind, start: u64, end: u64) -> bool {
        let serialising = matches!(kind, RequestKind::Fence | RequestKind::Exclusive);
        if self.serialising.get() == 0 && !serialising {
            return false;
        }
        self.entries
            .borrow()
            .iter()
            .any(|e| e.active && e.id != own && e.start < end && start < e.end && conflict(e.kind, kind))
    }

    /// Registers a request and waits until nothing in its way is active. The range is half open and must not be empty
    /// for a conflict to be seen.
    pub async fn begin(self: &Rc<Self>, kind: RequestKind, start: u64, len: u64) -> RequestGuard {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let end = start.saturating_add(len);
        let blocked = self.blocked(id, kind, start, end);
        self.entries.borrow_mut().push(Entry { id, kind, start, end, active: !blocked });
        if matches!(kind, RequestKind::Fence | RequestKind::Exclusive) {
            self.serialising.set(self.serialising.get() + 1);
        }
        let guard = RequestGuard { list: self.clone(), id, kind };
        if blocked {
            poll_fn(|cx| {
                if self.blocked(id, kind, start, end) {
                    let mut waiters = self.waiters.borrow_mut();
                    match waiters.iter_mut().find(|(w, _)| *w == id) {
                        Some((_, waker)) => waker.clone_from(cx.waker()),
                        None => waiters.push((id, cx.waker().clone())),
                    }
                    return Poll::Pending;
                }
                if let Some(e) = self.entries.borrow_mut().iter_mut().find(|e| e.id == id) {
                    e.active = true;
                }
                Poll::Ready(())
            })
            .await;
        }
        guard
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let list = &self.list;
        {
            let mut entries = list.entries.borrow_mut();
            if let Some(at) = entries.iter().position(|e| e.id == self.id) {
                entries.swap_remove(at);
            }
        }
        if matches!(self.kind, RequestKind::Fence | RequestKind::Exclusive) {
            list.serialising.set(list.serialising.get() - 1);
        }
        let woken = {
            let mut waiters = list.waiters.borrow_mut();
            waiters.retain(|(id, _)| *id != self.id);
            std::mem::take(&mut *waiters)
        };
        for (_, waker) in woken {
            waker.wake();
        }
        drain::kick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    fn poll<F: Future>(f: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        f.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn now<F: Future>(f: F) -> F::Output {
        match poll(pin!(f)) {
            Poll::Ready(v) => v,
            Poll::Pending => panic!("should not wait"),
        }
    }

    #[test]
    fn writes_wait_for_a_fence_and_reads_do_not() {
        let list = Rc::new(Requests::default());
        let fence = now(list.begin(RequestKind::Fence, 0, 4096));
        let _read = now(list.begin(RequestKind::Read, 0, 512));
        let _elsewhere = now(list.begin(RequestKind::Write, 4096, 512));
        let mut write = pin!(list.begin(RequestKind::Write, 4095, 2));
        assert!(poll(write.as_mut()).is_pending());
        drop(fence);
        assert!(poll(write.as_mut()).is_ready());
    }

    #[test]
    fn a_waiting_request_that_is_dropped_leaves_no_trace() {
        let list = Rc::new(Requests::default());
        let exclusive = now(list.begin(RequestKind::Exclusive, 0, 512));
        {
            let mut waiting = pin!(list.begin(RequestKind::Exclusive, 0, 512));
            assert!(poll(waiting.as_mut()).is_pending());
            assert_eq!(list.count(), 2);
        }
        assert_eq!(list.count(), 1);
        drop(exclusive);
        assert_eq!(list.count(), 0);
        assert_eq!(list.serialising.get(), 0);
    }

    #[test]
    fn a_read_under_a_fence_does_not_wait_for_an_exclusive_request_that_waits_for_the_fence() {
        let list = Rc::new(Requests::default());
        let _fence = now(list.begin(RequestKind::Fence, 0, 4096));
        let mut exclusive = pin!(list.begin(RequestKind::Exclusive, 0, 4096));
        assert!(poll(exclusive.as_mut()).is_pending());
        let _read = now(list.begin(RequestKind::Read, 0, 512));
    }
}
