//! Keeps a point-in-time copy: before a range of the source changes for the first time, its old contents go to the target.
//!
//! Serves backup jobs and the secondary side of replication. Works as a hook in the source's write path; a write waits
//! for the copy of what it is going to touch, and fails if that copy fails (the copy would be lost otherwise).

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use tokio::sync::Notify;

use super::dirty::DirtyMap;
use crate::driver::{LocalBoxFuture, Status, WriteFlags};
use crate::node::{Node, WriteHook};

/// Most bytes copied at once.
const MAX_COPY: u64 = 1 << 20;
/// Smallest unit of copying, in bytes.
const MIN_CLUSTER: u64 = 64 << 10;

/// A running copy. Dropping it ends it.
pub struct CopyBeforeWrite {
    source: Rc<Node>,
    target: Rc<Node>,
    /// What still has its old contents in the source only.
    todo: RefCell<DirtyMap>,
    /// Ranges being copied.
    copying: RefCell<Vec<(u64, u64)>>,
    changed: Notify,
    failed: Cell<bool>,
}

impl CopyBeforeWrite {
    /// Starts to look at the writes to `source`; everything is still to be copied. The caller has drained the source.
    pub fn start(source: &Rc<Node>, target: &Rc<Node>) -> io::Result<Rc<Self>> {
        let cluster = target.driver()?.format_info().cluster_size.max(MIN_CLUSTER);
        let size = source.len()?;
        let mut todo = DirtyMap::new(size, cluster);
        todo.set(0, size);
        let copy = Rc::new(Self {
            source: source.clone(),
            target: target.clone(),
            todo: RefCell::new(todo),
            copying: RefCell::default(),
            changed: Notify::new(),
            failed: Cell::new(false),
        });
        let hook: Rc<dyn WriteHook> = copy.clone();
        source.add_write_hook(Rc::downgrade(&hook));
        Ok(copy)
    }

    /// A new moment: everything is to be copied again. The caller has drained the source.
    pub fn reset(&self) {
        let mut todo = self.todo.borrow_mut();
        let size = todo.size();
        todo.set(0, size);
    }

    /// A range needs no copy.
    pub fn skip(&self, offset: u64, len: u64) {
        self.todo.borrow_mut().clear(offset, len);
    }

    /// Bytes whose old contents are in the source only.
    pub fn remaining(&self) -> u64 {
        self.todo.borrow().dirty_bytes()
    }

    /// Whether anything was copied since the start or the last [`Self::reset`].
    pub fn has_copied(&self) -> bool {
        self.remaining() != self.todo.borrow().size() || !self.copying.borrow().is_empty()
    }

    /// Whether a copy has failed (and with it the write that wanted it).
    pub fn has_failed(&self) -> bool {
        self.failed.get()
    }

    /// The first range at or after `from` that is still to be copied.
    pub fn next_todo(&self, from: u64) -> Option<(u64, u64)> {
        self.todo.borrow().next_dirty(from, MAX_COPY)
    }

    fn is_copying(&self, offset: u64, len: u64) -> bool {
        self.copying.borrow().iter().any(|(o, l)| *o < offset + len && offset < o + l)
    }

    /// Sees to it that the old contents of a range are in the target. Returns the bytes copied by this call.
    pub async fn copy(&self, offset: u64, len: u64) -> io::Result<u64> {
        let (granularity, size) = {
            let todo = self.todo.borrow();
            (todo.granularity(), todo.size())
        };
        let start = offset - offset % granularity;
        let end = offset.saturating_add(len).min(size).checked_next_multiple_of(granularity).unwrap_or(size).min(size);
        let mut copied = 0;
        let mut at = start;
        while at < end {
            let changed = self.changed.notified();
            let next = self.next_todo(at).filter(|(o, _)| *o < end);
            let (o, l) = match next {
                Some((o, l)) => (o, l.min(end - o)),
                None => (end, 0),
            };
            // What another request is copying has left `todo` already; it comes back if that fails.
            if self.is_copying(at, o + l - at) {
                changed.await;
                continue;
            }
            if l == 0 {
                break;
            }
            self.copy_now(o, l).await?;
            copied += l;
            at = o + l;
        }
        Ok(copied)
    }

    async fn copy_now(&self, offset: u64, len: u64) -> io::Result<()> {
        struct Turn<'a> {
            copy: &'a CopyBeforeWrite,
            range: (u64, u64),
            done: bool,
        }
        impl Drop for Turn<'_> {
            fn drop(&mut self) {
                let copy = self.copy;
                copy.copying.borrow_mut().retain(|r| *r != self.range);
                if !self.done {
                    copy.todo.borrow_mut().set(self.range.0, self.range.1);
                }
                copy.changed.notify_waiters();
            }
        }
        self.todo.borrow_mut().clear(offset, len);
        self.copying.borrow_mut().push((offset, len));
        let mut turn = Turn { copy: self, range: (offset, len), done: false };
        let result = self.transfer(offset, len).await;
        match &result {
            Ok(()) => turn.done = true,
            Err(e) => {
                self.failed.set(true);
                tracing::error!("copy before write failed at offset {offset}: {e}");
            }
        }
        result
    }

    async fn transfer(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        let mut at = offset;
        let mut buf = Vec::new();
        while at < end {
            let (extent, _) = self.source.block_status_above(None, at, end - at).await?;
            let n = extent.len.min(end - at);
            if extent.status.contains(Status::ZERO) {
                self.target.write_zeroes(at, n, WriteFlags::MAY_UNMAP).await?;
            } else {
                buf.resize(n as usize, 0);
                self.source.read(at, &mut buf).await?;
                self.target.write(at, &buf, WriteFlags::empty()).await?;
            }
            at += n;
        }
        Ok(())
    }
}

impl WriteHook for CopyBeforeWrite {
    fn before_write<'a>(&'a self, offset: u64, len: u64) -> Option<LocalBoxFuture<'a, io::Result<()>>> {
        let untouched = {
            let todo = self.todo.borrow();
            todo.is_clean_range(offset, len)
        };
        if untouched && !self.is_copying(offset, len) {
            return None;
        }
        Some(Box::pin(async move { self.copy(offset, len).await.map(|_| ()) }))
    }
}
