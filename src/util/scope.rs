//! Values that hold while one task is polled and not while others are, on a thread that runs many.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread::LocalKey;

/// Where such a value is for the moment.
pub(crate) type Cell<T> = LocalKey<RefCell<Option<T>>>;

/// Puts a value into a cell until it is dropped.
struct Entered<T: 'static> {
    cell: &'static Cell<T>,
    previous: Option<T>,
}

impl<T> Entered<T> {
    fn new(cell: &'static Cell<T>, value: T) -> Self {
        Self { cell, previous: cell.with(|c| c.borrow_mut().replace(value)) }
    }
}

impl<T> Drop for Entered<T> {
    fn drop(&mut self) {
        let previous = self.previous.take();
        self.cell.with(|c| *c.borrow_mut() = previous);
    }
}

/// Runs a function with the value.
pub(crate) fn within<T, R>(cell: &'static Cell<T>, value: T, f: impl FnOnce() -> R) -> R {
    let _entered = Entered::new(cell, value);
    f()
}

/// A future that is polled with the value. Tasks that it spawns do not have it.
pub(crate) struct Scoped<T: 'static, F> {
    cell: &'static Cell<T>,
    value: T,
    future: Pin<Box<F>>,
}

impl<T: Clone, F: Future> Scoped<T, F> {
    pub(crate) fn new(cell: &'static Cell<T>, value: T, future: F) -> Self {
        Self { cell, value, future: Box::pin(future) }
    }
}

impl<T: Clone + Unpin, F: Future> Future for Scoped<T, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        within(this.cell, this.value.clone(), || this.future.as_mut().poll(cx))
    }
}
