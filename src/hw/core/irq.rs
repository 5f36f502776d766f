//! Interrupt lines: how a device's pin reaches an interrupt controller.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// What has numbered interrupt inputs. Called with the device's lock held: it takes leaf locks only and never calls back.
pub trait IrqSink: Send + Sync {
    /// Sets the level of input `n`.
    fn set_irq(&self, n: u32, level: bool);
}

impl<F: Fn(u32, bool) + Send + Sync> IrqSink for F {
    fn set_irq(&self, n: u32, level: bool) {
        self(n, level);
    }
}

/// A wire from a device's pin to an input. Cheap to clone. An unconnected one goes nowhere.
#[derive(Clone, Default)]
pub struct IrqLine {
    to: Option<(Arc<dyn IrqSink>, u32)>,
}

impl IrqLine {
    /// A wire to input `n` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, n: u32) -> Self {
        Self { to: Some((sink, n)) }
    }

    /// A wire that goes nowhere.
    pub fn unconnected() -> Self {
        Self::default()
    }

    /// Sets the level.
    #[inline]
    pub fn set(&self, level: bool) {
        if let Some((sink, n)) = &self.to {
            sink.set_irq(*n, level);
        }
    }

    /// High, then low: an edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.to {
            Some((_, n)) => write!(f, "IrqLine(to {n})"),
            None => f.write_str("IrqLine(unconnected)"),
        }
    }
}

/// A wire that up to 64 sources drive together (wired-or): high while any of them is.
pub struct SharedLine {
    out: IrqLine,
    levels: AtomicU64,
}

impl SharedLine {
    /// All sources low.
    pub fn new(out: IrqLine) -> Arc<Self> {
        Arc::new(Self { out, levels: AtomicU64::new(0) })
    }
}

impl IrqSink for SharedLine {
    fn set_irq(&self, n: u32, level: bool) {
        let bit = 1 << (n & 63);
        let old = if level {
            self.levels.fetch_or(bit, Ordering::SeqCst)
        } else {
            self.levels.fetch_and(!bit, Ordering::SeqCst)
        };
        let new = if level { old | bit } else { old & !bit };
        if (old != 0) != (new != 0) {
            self.out.set(new != 0);
        }
    }
}

/// A place on lines where a test listens: once it is open, changes are told and go no further.
#[derive(Default)]
pub struct IrqTap {
    listener: OnceLock<Box<dyn Fn(u32, bool) + Send + Sync>>,
    /// Levels of the lines, of which there are at most 64.
    levels: AtomicU64,
}

impl IrqTap {
    /// Opens it. False if it is open already.
    pub fn open(&self, tell: Arc<dyn Fn(u32, bool) + Send + Sync>) -> bool {
        self.listener.set(Box::new(move |n, level| tell(n, level))).is_ok()
    }

    /// Whether the tap takes what line `n` carries; else it goes where the line leads.
    pub fn takes(&self, n: u32, level: bool) -> bool {
        let Some(tell) = self.listener.get() else { return false };
        let bit = 1 << (n & 63);
        let old = match level {
            true => self.levels.fetch_or(bit, Ordering::SeqCst),
            false => self.levels.fetch_and(!bit, Ordering::SeqCst),
        };
        if (old & bit != 0) != level {
            tell(n, level);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn a_shared_line_is_high_while_any_source_is() {
        let seen = Arc::new(Mutex::new(vec![]));
        let log = seen.clone();
        let out = IrqLine::new(Arc::new(move |n, level| log.lock().push((n, level))), 5);
        let shared = SharedLine::new(out);
        let (a, b) = (IrqLine::new(shared.clone(), 0), IrqLine::new(shared, 1));
        a.set(true);
        b.set(true);
        a.set(false);
        b.set(false);
        assert_eq!(*seen.lock(), [(5, true), (5, false)]);
    }
}
