//! `iothread`: an event loop on a thread of its own.

use std::rc::Rc;

use lockstep_event::{ContextHandle, IoThread};
use lockstep_util::{Result, err};
use serde_json::Value;

use super::UserObject;

/// An iothread. It ends when the last user lets go of it.
pub struct IoThreadObject {
    thread: Rc<IoThread>,
}

impl IoThreadObject {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the host has no more threads.
    pub fn new(id: &str) -> Result<Self> {
        let thread = IoThread::spawn(id).map_err(|e| err!("cannot start iothread '{id}': {e}"))?;
        Ok(Self { thread: Rc::new(thread) })
    }

    /// The thread; whoever holds it keeps it running after the object is deleted.
    pub fn thread(&self) -> Rc<IoThread> {
        self.thread.clone()
    }

    /// Its context.
    pub fn handle(&self) -> ContextHandle {
        self.thread.handle()
    }
}

impl UserObject for IoThreadObject {
    fn type_name(&self) -> &'static str {
        "iothread"
    }

    fn properties(&self) -> Vec<(&'static str, &'static str)> {
        vec![]
    }

    fn get(&self, _name: &str) -> Option<Value> {
        None
    }

    fn as_any(self: Rc<Self>) -> Rc<dyn std::any::Any> {
        self
    }
}
