//! Values that belong to one context but are carried by closures that other threads hold.

use std::{
    mem::ManuallyDrop,
    thread::{self, ThreadId},
};

/// A value that only the thread that made it may touch. Other threads may hold it.
///
/// Dropped on another thread, the value is leaked: it may not be touched there.
pub struct Local<T> {
    value: ManuallyDrop<T>,
    thread: ThreadId,
}

// SAFETY: the value is reached, and dropped, on the thread that made it only.
unsafe impl<T> Send for Local<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Local<T> {}

impl<T> Local<T> {
    /// Ties a value to the calling thread.
    pub fn new(value: T) -> Self {
        Self { value: ManuallyDrop::new(value), thread: thread::current().id() }
    }

    /// The value.
    ///
    /// # Panics
    /// On another thread than that which made it: a mistake of this program.
    pub fn get(&self) -> &T {
        assert_eq!(self.thread, thread::current().id(), "a value of one context is used on another");
        &self.value
    }
}

impl<T> Drop for Local<T> {
    fn drop(&mut self) {
        if self.thread == thread::current().id() {
            // SAFETY: the value is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{rc::Rc, sync::Arc};

    use super::*;

    #[test]
    fn only_its_own_thread_reaches_the_value() {
        let local = Arc::new(Local::new(Rc::new(1)));
        assert_eq!(**local.get(), 1);
        let there = local.clone();
        assert!(thread::spawn(move || there.get().to_string()).join().is_err());
        let value = local.get().clone();
        drop(local);
        assert_eq!(Rc::strong_count(&value), 1, "dropped where it was made");
    }
}
