//! Locked operations on an operand that crosses a page: all other processors are out of guest code meanwhile, as real ones are kept
//! off by the bus lock (Intel SDM volume 3, 9.1.2). On one page the host's own instruction is as atomic.
//!
//! A processor that wants to be alone takes the machine's lock, asks the others to stand aside and waits until none is in guest code.
//! Who waits for the lock, sleeps, is stopped or is in a device does not count as in guest code, and looks whether it is asked before it
//! is again; so nobody waits for one that waits for it.

use std::{sync::atomic::Ordering, time::Duration};

use crate::{
    Cpu,
    platform::{CpuLink, request},
};

impl Cpu {
    /// Counts as in guest code from here on, once no other processor is to be alone.
    pub(crate) fn enter_guest(&self) {
        loop {
            self.link.in_guest.store(1, Ordering::SeqCst);
            // After the store: either this sees the request, or who asks sees that it has to wait.
            if self.link.pending() & request::EXCLUSIVE == 0 {
                return;
            }
            self.link.in_guest.store(0, Ordering::SeqCst);
            drop(self.machine.exclusive.lock());
        }
    }

    /// Does a part of an instruction while no other processor is in guest code. The map may be another one than before. No device is to
    /// be met in `f`: it might wait for another processor to stop.
    pub(crate) fn exclusively<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        // Those that share a thread and take turns are never in an instruction together.
        if self.counting.on {
            return f(self);
        }
        let machine = self.machine.clone();
        let others = machine.others(&self.link);
        if others.is_empty() {
            return f(self);
        }
        let alone = self.outside(|_| machine.exclusive.lock());
        others.iter().for_each(|l| l.raise(request::EXCLUSIVE));
        others.iter().for_each(|l| l.wait_while_in_guest(|| true));
        let result = f(self);
        others.iter().for_each(|l| _ = l.clear(request::EXCLUSIVE));
        drop(alone);
        result
    }
}

impl CpuLink {
    /// Waits until the processor is not in guest code, or `still` says no.
    pub(crate) fn wait_while_in_guest(&self, still: impl Fn() -> bool) {
        while self.in_guest.load(Ordering::SeqCst) != 0 && still() {
            // A block is short: the processor looks at its requests within microseconds.
            std::thread::sleep(Duration::from_micros(5));
        }
    }
}
