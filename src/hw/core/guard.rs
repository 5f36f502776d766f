//! Keeps a device's DMA from re-entering the device.
//!
//! A guest may point a bus master at the registers of a bus master. A device that is being accessed, or that is doing DMA,
//! is not entered again by the same thread: the access is dropped. Another thread just waits for the device's lock.

use std::{cell::RefCell, sync::Arc};

use lockstep_memory::{AccessRules, IoHandler};

thread_local! {
    /// The devices that this thread is inside of.
    static ENTERED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// One device's guard. Clones are the same guard.
#[derive(Clone, Default)]
pub struct ReentrancyGuard {
    identity: Arc<u8>,
}

impl ReentrancyGuard {
    /// A guard for one device.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters the device until the scope is dropped; `None` when this thread is inside already.
    pub fn enter(&self) -> Option<GuardScope> {
        let key = Arc::as_ptr(&self.identity) as usize;
        ENTERED.with(|e| {
            let mut entered = e.borrow_mut();
            if entered.contains(&key) {
                return None;
            }
            entered.push(key);
            Some(GuardScope { _not_send: std::marker::PhantomData })
        })
    }
}

/// The thread is inside a device while this lives. Scopes end in the reverse order of their beginning.
pub struct GuardScope {
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for GuardScope {
    fn drop(&mut self) {
        ENTERED.with(|e| e.borrow_mut().pop());
    }
}

/// Registers that their device's own DMA cannot reach.
pub struct Guarded {
    guard: ReentrancyGuard,
    inner: Arc<dyn IoHandler>,
}

impl Guarded {
    /// Guards `inner`.
    pub fn new(guard: &ReentrancyGuard, inner: Arc<dyn IoHandler>) -> Arc<Self> {
        Arc::new(Self { guard: guard.clone(), inner })
    }
}

impl IoHandler for Guarded {
    fn read(&self, offset: u64, size: u32) -> u64 {
        match self.guard.enter() {
            Some(_scope) => self.inner.read(offset, size),
            None => 0,
        }
    }

    fn write(&self, offset: u64, size: u32, value: u64) {
        if let Some(_scope) = self.guard.enter() {
            self.inner.write(offset, size, value);
        }
    }

    fn rules(&self) -> AccessRules {
        self.inner.rules()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_enters_a_device_once() {
        let (a, b) = (ReentrancyGuard::new(), ReentrancyGuard::new());
        let first = a.enter();
        assert!(first.is_some() && a.clone().enter().is_none());
        {
            let _inner = b.enter().unwrap();
            assert!(b.enter().is_none());
        }
        assert!(b.enter().is_some());
        std::thread::scope(|s| s.spawn(|| assert!(a.enter().is_some())).join().unwrap());
        drop(first);
        assert!(a.enter().is_some());
    }
}
