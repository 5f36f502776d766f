//! A job as a user of nodes: while somebody drains them, the job pauses.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use lockstep_util::Result;

use super::job::Job;
use crate::child::{Child, Parent, Perm};
use crate::node::Node;

/// The upper end of a job's edges.
#[derive(Default)]
pub struct JobEdge {
    id: String,
    job: RefCell<Weak<Job>>,
    /// Drains that began before the job was made.
    early: Cell<u32>,
    /// Requests of the job under way: a peer may hold them, so a drain does not wait for the job itself then.
    pub(super) in_flight: Cell<usize>,
    /// The job drains its own nodes.
    pub(super) draining_itself: Cell<bool>,
    /// Drains that paused the job, and those of its own that did not.
    paused: Cell<u32>,
    own: Cell<u32>,
}

impl JobEdge {
    /// For a job of that id (empty: internal).
    pub fn new(id: &str) -> Rc<Self> {
        Rc::new(Self { id: id.to_owned(), ..Self::default() })
    }

    /// The job exists now.
    pub fn set_job(&self, job: &Rc<Job>) {
        *self.job.borrow_mut() = Rc::downgrade(job);
        for _ in 0..self.early.replace(0) {
            self.paused.set(self.paused.get() + 1);
            job.pause();
        }
    }

    /// Attaches the job to a node.
    pub fn attach(self: &Rc<Self>, name: &str, node: &Rc<Node>, perm: Perm, shared: Perm) -> Result<Rc<Child>> {
        let me: Rc<dyn Parent> = self.clone();
        Child::attach_root(name, node, Rc::downgrade(&me), perm, shared)
    }
}

impl Parent for JobEdge {
    fn description(&self) -> String {
        format!("block job '{}'", self.id)
    }

    fn drained_begin(&self) {
        if self.draining_itself.get() {
            self.own.set(self.own.get() + 1);
            return;
        }
        match self.job.borrow().upgrade() {
            Some(job) => {
                self.paused.set(self.paused.get() + 1);
                job.pause();
            }
            None => self.early.set(self.early.get() + 1),
        }
    }

    fn drained_poll(&self) -> bool {
        // What is under way on the drained node counts there. Here it only matters that a job that idles says so.
        !self.draining_itself.get()
            && self.in_flight.get() == 0
            && self.job.borrow().upgrade().is_some_and(|job| job.is_pausing())
    }

    fn drained_end(&self) {
        if self.paused.get() == 0 && self.own.get() > 0 {
            self.own.set(self.own.get() - 1);
            return;
        }
        match self.job.borrow().upgrade() {
            Some(job) => {
                self.paused.set(self.paused.get().saturating_sub(1));
                job.resume();
            }
            None => self.early.set(self.early.get().saturating_sub(1)),
        }
    }
}
