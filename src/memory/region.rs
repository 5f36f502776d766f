//! The tree of regions that machines and devices build.

use std::{
    cell::RefCell,
    fmt,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use crate::{IoHandler, RamBlock, space::SpaceInner};

/// A node of the memory (or I/O port) map. Cheap to clone: all clones are the same node.
///
/// A region may be below one container and be shown elsewhere by aliases. Among siblings that overlap the higher
/// priority wins; with equal priority the one added last. Every change is published at once, or at the end of the
/// outermost [`Transaction`].
#[derive(Clone)]
pub struct Region {
    pub(crate) inner: Arc<RegionInner>,
}

pub(crate) struct RegionInner {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) state: Mutex<State>,
    /// Containers and aliases that show this region.
    observers: Mutex<Vec<Weak<RegionInner>>>,
    /// Address spaces of which it is the root.
    pub(crate) spaces: Mutex<Vec<Weak<SpaceInner>>>,
}

pub(crate) enum Kind {
    Container,
    Ram(RamBlock),
    Io(Arc<dyn IoHandler>),
    Alias { target: Region, offset: u64 },
}

pub(crate) struct State {
    pub(crate) size: u128,
    pub(crate) address: u64,
    pub(crate) enabled: bool,
    pub(crate) readonly: bool,
    /// Sorted: the one that wins first.
    pub(crate) children: Vec<(i32, Region)>,
}

impl Region {
    fn new(name: impl Into<String>, size: u128, kind: Kind, readonly: bool) -> Self {
        let state = State { size, address: 0, enabled: true, readonly, children: vec![] };
        let inner = RegionInner {
            name: name.into(),
            kind,
            state: Mutex::new(state),
            observers: Mutex::default(),
            spaces: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A container of `size` bytes; what no child covers stays unassigned.
    pub fn container(name: impl Into<String>, size: u64) -> Self {
        Self::new(name, size.into(), Kind::Container, false)
    }

    /// A container of the whole 64-bit space.
    pub fn whole_space(name: impl Into<String>) -> Self {
        Self::new(name, 1 << 64, Kind::Container, false)
    }

    /// Registers.
    pub fn io(name: impl Into<String>, size: u64, handler: Arc<dyn IoHandler>) -> Self {
        Self::new(name, size.into(), Kind::Io(handler), false)
    }

    /// All of a block, writable.
    pub fn ram(name: impl Into<String>, block: RamBlock) -> Self {
        Self::new(name, block.size().into(), Kind::Ram(block), false)
    }

    /// All of a block; the guest's writes are ignored.
    pub fn rom(name: impl Into<String>, block: RamBlock) -> Self {
        Self::new(name, block.size().into(), Kind::Ram(block), true)
    }

    /// Shows `size` bytes of `target` from `offset` on in another place.
    pub fn alias(name: impl Into<String>, target: &Region, offset: u64, size: u64) -> Self {
        let region = Self::new(name, size.into(), Kind::Alias { target: target.clone(), offset }, false);
        target.inner.observers.lock().push(Arc::downgrade(&region.inner));
        region
    }

    /// The name given at creation (`info mtree` shows it).
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Size in bytes; the whole 64-bit space is `u64::MAX`.
    pub fn size(&self) -> u64 {
        u64::try_from(self.inner.state.lock().size).unwrap_or(u64::MAX)
    }

    /// Where it is in its container.
    pub fn address(&self) -> u64 {
        self.inner.state.lock().address
    }

    /// Whether it is shown.
    pub fn is_enabled(&self) -> bool {
        self.inner.state.lock().enabled
    }

    /// Puts a child at `offset`.
    pub fn add(&self, offset: u64, child: &Region) {
        self.add_overlap(offset, child, 0);
    }

    /// Puts a child at `offset` that may overlap others; the higher priority wins.
    pub fn add_overlap(&self, offset: u64, child: &Region, priority: i32) {
        child.inner.state.lock().address = offset;
        child.inner.observers.lock().push(Arc::downgrade(&self.inner));
        {
            let mut state = self.inner.state.lock();
            let at = state.children.iter().position(|(p, _)| *p <= priority).unwrap_or(state.children.len());
            state.children.insert(at, (priority, child.clone()));
        }
        self.changed();
    }

    /// Takes a child away; nothing happens if it is not one.
    pub fn remove(&self, child: &Region) {
        self.inner.state.lock().children.retain(|(_, c)| !Arc::ptr_eq(&c.inner, &child.inner));
        let mut observers = child.inner.observers.lock();
        if let Some(at) = observers.iter().position(|o| std::ptr::eq(o.as_ptr(), Arc::as_ptr(&self.inner))) {
            observers.remove(at);
        }
        drop(observers);
        self.changed();
    }

    /// Shows or hides it.
    pub fn set_enabled(&self, enabled: bool) {
        self.set(|s| std::mem::replace(&mut s.enabled, enabled) != enabled);
    }

    /// Moves it inside its container.
    pub fn set_address(&self, address: u64) {
        self.set(|s| std::mem::replace(&mut s.address, address) != address);
    }

    /// Has RAM below it ignore writes.
    pub fn set_readonly(&self, readonly: bool) {
        self.set(|s| std::mem::replace(&mut s.readonly, readonly) != readonly);
    }

    fn set(&self, change: impl FnOnce(&mut State) -> bool) {
        let changed = change(&mut self.inner.state.lock());
        if changed {
            self.changed();
        }
    }

    fn changed(&self) {
        let _transaction = Transaction::begin();
        let mut roots = vec![];
        collect_spaces(&self.inner, &mut roots, 0);
        PENDING.with(|p| {
            let mut pending = p.borrow_mut();
            for space in roots {
                if !pending.spaces.iter().any(|s| Arc::ptr_eq(s, &space)) {
                    pending.spaces.push(space);
                }
            }
        });
    }
}

/// Deeper trees than this are loops.
const MAX_DEPTH: usize = 32;

fn collect_spaces(region: &Arc<RegionInner>, into: &mut Vec<Arc<SpaceInner>>, depth: usize) {
    into.extend(region.spaces.lock().iter().filter_map(Weak::upgrade));
    let observers: Vec<_> = {
        let mut observers = region.observers.lock();
        observers.retain(|o| o.strong_count() > 0);
        observers.iter().filter_map(Weak::upgrade).collect()
    };
    if depth < MAX_DEPTH {
        observers.iter().for_each(|o| collect_spaces(o, into, depth + 1));
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({})", self.name())
    }
}

#[derive(Default)]
struct Pending {
    depth: usize,
    spaces: Vec<Arc<SpaceInner>>,
}

thread_local! {
    static PENDING: RefCell<Pending> = RefCell::default();
}

/// While one lives on this thread, changes of regions are collected; the end of the outermost publishes them as one.
pub struct Transaction {
    // Counts in a thread-local: it must end on the thread that began it.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Transaction {
    /// Begins collecting.
    pub fn begin() -> Self {
        PENDING.with(|p| p.borrow_mut().depth += 1);
        Self { _not_send: std::marker::PhantomData }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let spaces = PENDING.with(|p| {
            let mut pending = p.borrow_mut();
            pending.depth -= 1;
            if pending.depth == 0 { std::mem::take(&mut pending.spaces) } else { vec![] }
        });
        spaces.iter().for_each(|s| s.rebuild());
    }
}
