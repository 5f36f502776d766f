//! Work that any thread brings and one thread at a time does, in the order in which it came. Who brings something does all that
//! is there, unless somebody is at it already: then that one does it too. Nobody who brings work waits for a lock that is held
//! during work.

use super::sync::{Guard, Mutex};

/// Things that wait at most; more are refused.
const MOST: usize = 1024;

/// Who does the work.
pub(crate) trait Worker {
    /// What it works on.
    type Item;
    /// Deals with items, in their order, and leaves none. May bring others meanwhile.
    fn work(&mut self, items: &mut Vec<Self::Item>);
    /// Whether more may be brought.
    fn has_room(&self) -> bool;
}

/// The place where work is handed over.
#[derive(Debug)]
pub(crate) struct Handover<W: Worker> {
    inbox: Mutex<Inbox<W::Item>>,
    /// Taken before `inbox`, where both are needed.
    worker: Mutex<Bench<W>>,
}

#[derive(Debug)]
struct Inbox<T> {
    items: Vec<T>,
    /// Nothing is taken any more.
    closed: bool,
    /// What the worker said last.
    room: bool,
}

#[derive(Debug)]
struct Bench<W: Worker> {
    worker: W,
    /// Empty between two works: it saves allocations.
    spare: Vec<W::Item>,
}

impl<W: Worker> Handover<W> {
    pub fn new(worker: W) -> Self {
        let room = worker.has_room();
        Self {
            inbox: Mutex::new(Inbox { items: Vec::new(), closed: false, room }),
            worker: Mutex::new(Bench { worker, spare: Vec::new() }),
        }
    }

    /// Brings things, and has them dealt with before or after this returns. False, and they stay where they are, while there is
    /// no room, or for ever once it is closed.
    pub fn bring(&self, items: &mut Vec<W::Item>) -> bool {
        {
            let mut inbox = self.inbox.lock();
            if inbox.closed || !inbox.room || inbox.items.len() >= MOST {
                return false;
            }
            inbox.items.append(items);
        }
        self.pump();
        true
    }

    /// Has the worker do something else, after all that was brought before. Waits for its turn.
    pub fn with<R>(&self, f: impl FnOnce(&mut W) -> R) -> R {
        let mut bench = self.worker.lock();
        self.clear(&mut bench);
        let result = f(&mut bench.worker);
        self.leave(bench);
        self.pump();
        result
    }

    /// Takes nothing any more. What was brought before is dealt with.
    pub fn close(&self) {
        self.inbox.lock().closed = true;
        self.pump();
    }

    /// Works until nothing is there, or somebody else does.
    fn pump(&self) {
        loop {
            if self.inbox.lock().items.is_empty() {
                return;
            }
            let Some(mut bench) = self.worker.try_lock() else { return };
            self.clear(&mut bench);
            self.leave(bench);
        }
    }

    fn clear(&self, bench: &mut Bench<W>) {
        std::mem::swap(&mut self.inbox.lock().items, &mut bench.spare);
        if !bench.spare.is_empty() {
            let Bench { worker, spare } = bench;
            worker.work(spare);
        }
    }

    /// Gives the worker free, in such a way that whoever brings something either finds it free or is noticed by a
    /// [`pump`](Self::pump) that follows.
    fn leave(&self, bench: Guard<'_, Bench<W>>) {
        self.inbox.lock().room = bench.worker.has_room();
        drop(bench);
    }
}
