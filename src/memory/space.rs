//! Address spaces: what a CPU or a bus master sees.

use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use lockstep_util::log::{Log, item};

use crate::{FlatRange, FlatTarget, FlatView, MemTxError, RamBlock, Region, access};

/// Who follows the map: KVM's memory slots, a software CPU's TLB.
pub trait MemoryListener: Send + Sync {
    /// A new view is about to be published. Calls come one at a time.
    fn view_changed(&self, old: &FlatView, new: &FlatView);
}

/// A map that accesses go through. Cheap to clone.
#[derive(Clone)]
pub struct AddressSpace {
    inner: Arc<SpaceInner>,
}

pub(crate) struct SpaceInner {
    name: String,
    root: Region,
    view: OnceLock<ArcSwap<FlatView>>,
    unassigned: u8,
    listeners: Mutex<Vec<Arc<dyn MemoryListener>>>,
}

impl AddressSpace {
    /// A memory space over a tree. Reads where nothing answers give 0.
    pub fn memory(name: impl Into<String>, root: &Region) -> Self {
        Self::new(name, root, 0)
    }

    /// An I/O port space over a tree. Reads where nothing answers give ones.
    pub fn ports(name: impl Into<String>, root: &Region) -> Self {
        Self::new(name, root, 0xff)
    }

    fn new(name: impl Into<String>, root: &Region, unassigned: u8) -> Self {
        let inner = Arc::new(SpaceInner {
            name: name.into(),
            root: root.clone(),
            view: OnceLock::new(),
            unassigned,
            listeners: Mutex::default(),
        });
        root.inner.spaces.lock().push(Arc::downgrade(&inner));
        inner.rebuild();
        Self { inner }
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The root of the tree.
    pub fn root(&self) -> &Region {
        &self.inner.root
    }

    /// The present view. Hold it for an access or two, not for long.
    #[inline]
    pub fn view(&self) -> Guard<Arc<FlatView>> {
        self.inner.view().load()
    }

    /// Has a listener told of the present view (as a change from an empty one) and of each one from now on.
    pub fn add_listener(&self, listener: Arc<dyn MemoryListener>) {
        let mut listeners = self.inner.listeners.lock();
        listener.view_changed(&FlatView::default(), &self.inner.view().load());
        listeners.push(listener);
    }

    /// Memory at an address: the block, the offset in it, how many bytes follow in one piece, whether it is read-only.
    pub fn ram_at(&self, address: u64) -> Option<(RamBlock, u64, u64, bool)> {
        let view = self.view();
        let range = view.find(address)?;
        match &range.target {
            FlatTarget::Ram { block, offset, readonly } => {
                let skip = address - range.start;
                Some((block.clone(), offset + skip, (range.last - address).saturating_add(1), *readonly))
            }
            FlatTarget::Io { .. } => None,
        }
    }

    /// Reads bytes. Where nothing answers they are filled in and the first error is returned after the rest was read.
    ///
    /// # Errors
    /// [`MemTxError::Decode`] when some of the range did not answer.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemTxError> {
        let view = self.view();
        let mut result = Ok(());
        let mut done = 0;
        while done < buf.len() {
            let at = address.wrapping_add(done as u64);
            let rest = &mut buf[done..];
            let (n, outcome) = match view.find(at) {
                None => {
                    let n = gap(&view, at, rest.len());
                    rest[..n].fill(self.inner.unassigned);
                    self.note_refused(at, n as u32, false);
                    (n, Err(MemTxError::Decode))
                }
                Some(range) => self.read_range(range, at, rest),
            };
            result = result.and(outcome);
            done += n;
        }
        result
    }

    fn read_range(&self, range: &FlatRange, at: u64, buf: &mut [u8]) -> (usize, Result<(), MemTxError>) {
        let (skip, n) = (at - range.start, within(range, at, buf.len()));
        match &range.target {
            FlatTarget::Ram { block, offset, .. } => (n, block.read(offset + skip, &mut buf[..n])),
            FlatTarget::Io { handler, offset } => {
                let offset = offset + skip;
                let size = access::next_size(&**handler, offset, buf.len());
                let buf = &mut buf[..size as usize];
                let outcome = access::read(&**handler, offset, size);
                match outcome {
                    Ok(value) => buf.copy_from_slice(&value.to_le_bytes()[..size as usize]),
                    Err(_) => buf.fill(self.inner.unassigned),
                }
                (size as usize, outcome.map(drop))
            }
        }
    }

    /// Writes bytes. Where nothing answers they are dropped and the first error is returned after the rest was written.
    ///
    /// # Errors
    /// [`MemTxError::Decode`] when some of the range did not answer.
    pub fn write(&self, address: u64, buf: &[u8]) -> Result<(), MemTxError> {
        let view = self.view();
        let mut result = Ok(());
        let mut done = 0;
        while done < buf.len() {
            let at = address.wrapping_add(done as u64);
            let rest = &buf[done..];
            let (n, outcome) = match view.find(at) {
                None => {
                    let n = gap(&view, at, rest.len());
                    self.note_refused(at, n as u32, true);
                    (n, Err(MemTxError::Decode))
                }
                Some(range) => write_range(range, at, rest),
            };
            result = result.and(outcome);
            done += n;
        }
        result
    }

    /// One access of 1, 2, 4 or 8 bytes, as a CPU makes it. Registers that it begins in get it whole, even where another
    /// region shows through their middle (CF9h in the PCI address port).
    #[inline]
    pub fn load(&self, address: u64, size: u32) -> Result<u64, MemTxError> {
        {
            let view = self.view();
            if let Some(range) = view.find(address)
                && let FlatTarget::Io { handler, offset } = &range.target
            {
                let (handler, offset) = (handler.clone(), offset + (address - range.start));
                // A handler may change the map: the snapshot is let go first.
                drop(view);
                return access::read(&*handler, offset, size).inspect_err(|_| self.note_refused(address, size, false));
            }
        }
        let mut bytes = [0; 8];
        self.read(address, &mut bytes[..size as usize])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// One access of 1, 2, 4 or 8 bytes, as a CPU makes it. Registers that it begins in get it whole, even where another
    /// region shows through their middle (CF9h in the PCI address port).
    #[inline]
    pub fn store(&self, address: u64, size: u32, value: u64) -> Result<(), MemTxError> {
        {
            let view = self.view();
            if let Some(range) = view.find(address)
                && let FlatTarget::Io { handler, offset } = &range.target
            {
                let (handler, offset) = (handler.clone(), offset + (address - range.start));
                drop(view);
                let done = access::write(&*handler, offset, size, value);
                return done.inspect_err(|_| self.note_refused(address, size, true));
            }
        }
        self.write(address, &value.to_le_bytes()[..size as usize])
    }

    /// `-d invalid_mem`: tells of an access that was refused.
    #[cold]
    fn note_refused(&self, address: u64, size: u32, write: bool) {
        if !Log::global().has(item::INVALID_MEM) {
            return;
        }
        let view = self.view();
        let (at, name, reason) = match view.find(address).map(|r| (r, &r.target)) {
            Some((range, FlatTarget::Io { handler, offset })) => {
                let at = offset + (address - range.start);
                (at, &*range.name, handler.rules().refusal(at, size))
            }
            Some(_) => return,
            // All ports answer.
            None if self.inner.unassigned != 0 => return,
            None => (address, "(null)", "rejected".into()),
        };
        let what = if write { "write" } else { "read" };
        Log::global()
            .write(&format!("Invalid {what} at addr {at:#X}, size {size}, region '{name}', reason: {reason}\n"));
    }

    /// What reads give where nothing answers, for an access of `size` bytes.
    pub fn unassigned_value(&self, size: u32) -> u64 {
        let all = u64::from_le_bytes([self.inner.unassigned; 8]);
        if size >= 8 { all } else { all & ((1 << (size * 8)) - 1) }
    }

    /// Reads one byte; what did not answer reads as unassigned.
    pub fn read_u8(&self, address: u64) -> u8 {
        self.load(address, 1).unwrap_or_else(|_| self.unassigned_value(1)) as u8
    }

    /// Reads two little-endian bytes; what did not answer reads as unassigned.
    pub fn read_u16(&self, address: u64) -> u16 {
        self.load(address, 2).unwrap_or_else(|_| self.unassigned_value(2)) as u16
    }

    /// Reads four little-endian bytes; what did not answer reads as unassigned.
    pub fn read_u32(&self, address: u64) -> u32 {
        self.load(address, 4).unwrap_or_else(|_| self.unassigned_value(4)) as u32
    }

    /// Reads eight little-endian bytes; what did not answer reads as unassigned.
    pub fn read_u64(&self, address: u64) -> u64 {
        self.load(address, 8).unwrap_or_else(|_| self.unassigned_value(8))
    }

    /// Writes one byte; dropped where nothing answers.
    pub fn write_u8(&self, address: u64, value: u8) {
        let _ = self.store(address, 1, value.into());
    }

    /// Writes two little-endian bytes; dropped where nothing answers.
    pub fn write_u16(&self, address: u64, value: u16) {
        let _ = self.store(address, 2, value.into());
    }

    /// Writes four little-endian bytes; dropped where nothing answers.
    pub fn write_u32(&self, address: u64, value: u32) {
        let _ = self.store(address, 4, value.into());
    }

    /// Writes eight little-endian bytes; dropped where nothing answers.
    pub fn write_u64(&self, address: u64, value: u64) {
        let _ = self.store(address, 8, value);
    }
}

impl SpaceInner {
    fn view(&self) -> &ArcSwap<FlatView> {
        self.view.get_or_init(|| ArcSwap::from_pointee(FlatView::render(&self.root)))
    }

    /// Renders and publishes. Listeners hear of it before readers see it, so that KVM has the slots by then.
    pub(crate) fn rebuild(&self) {
        let listeners = self.listeners.lock();
        let new = Arc::new(FlatView::render(&self.root));
        let old = self.view().load_full();
        listeners.iter().for_each(|l| l.view_changed(&old, &new));
        self.view().store(new);
    }
}

fn within(range: &FlatRange, at: u64, len: usize) -> usize {
    (range.last - at).saturating_add(1).min(len as u64) as usize
}

fn gap(view: &FlatView, at: u64, len: usize) -> usize {
    let until = view.find_next(at).map_or(u64::MAX, |r| r.start - at);
    until.min(len as u64).max(1) as usize
}

fn write_range(range: &FlatRange, at: u64, buf: &[u8]) -> (usize, Result<(), MemTxError>) {
    let (skip, n) = (at - range.start, within(range, at, buf.len()));
    match &range.target {
        FlatTarget::Ram { readonly: true, .. } => (n, Ok(())),
        FlatTarget::Ram { block, offset, .. } => (n, block.write(offset + skip, &buf[..n])),
        FlatTarget::Io { handler, offset } => {
            let offset = offset + skip;
            let size = access::next_size(&**handler, offset, buf.len());
            let mut bytes = [0; 8];
            bytes[..size as usize].copy_from_slice(&buf[..size as usize]);
            (size as usize, access::write(&**handler, offset, size, u64::from_le_bytes(bytes)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{AccessRules, IoHandler, Transaction};

    struct Echo;

    impl IoHandler for Echo {
        fn read(&self, offset: u64, _size: u32) -> u64 {
            0x4000_0000 | offset
        }
        fn write(&self, _offset: u64, _size: u32, _value: u64) {}
        fn rules(&self) -> AccessRules {
            AccessRules::default()
        }
    }

    fn ram(name: &str, size: u64, byte: u8) -> Region {
        let block = RamBlock::new(name, size).unwrap();
        block.fill(0, size, byte).unwrap();
        Region::ram(name, block)
    }

    fn shape(space: &AddressSpace) -> Vec<(u64, u64, String)> {
        space.view().ranges().iter().map(|r| (r.start, r.last, r.name.to_string())).collect()
    }

    #[test]
    fn higher_priority_hides_and_the_last_added_wins_a_tie() {
        let root = Region::whole_space("root");
        let space = AddressSpace::memory("m", &root);
        root.add(0, &ram("low", 0x4000, 1));
        root.add_overlap(0x1000, &Region::io("hole", 0x1000, Arc::new(Echo)), 1);
        root.add(0x3000, &Region::io("later", 0x2000, Arc::new(Echo)));
        let want = [(0, 0xfff, "low"), (0x1000, 0x1fff, "hole"), (0x2000, 0x2fff, "low"), (0x3000, 0x4fff, "later")];
        assert_eq!(shape(&space), want.map(|(a, b, n)| (a, b, n.to_owned())));
    }

    #[test]
    fn an_alias_shows_its_target_and_follows_it() {
        let root = Region::whole_space("root");
        let space = AddressSpace::memory("m", &root);
        let block = RamBlock::new("ram", 0x10000).unwrap();
        block.write(0x2000, &[7]).unwrap();
        let target = Region::ram("ram", block.clone());
        let alias = Region::alias("window", &target, 0x2000, 0x1000);
        root.add(0x10_0000, &alias);
        assert_eq!(space.read_u8(0x10_0000), 7);
        alias.set_readonly(true);
        space.write_u8(0x10_0000, 9);
        assert_eq!(space.read_u8(0x10_0000), 7);
        target.set_enabled(false);
        assert_eq!(space.load(0x10_0000, 1), Err(MemTxError::Decode));
        target.set_enabled(true);
        alias.set_address(0x20_0000);
        assert_eq!((space.read_u8(0x20_0000), space.read_u8(0x10_0000)), (7, 0));
    }

    #[test]
    fn adjacent_pieces_of_one_block_are_one_range() {
        let root = Region::whole_space("root");
        let space = AddressSpace::memory("m", &root);
        let target = ram("ram", 0x4000, 0);
        root.add(0x1000, &Region::alias("a", &target, 0, 0x2000));
        root.add(0x3000, &Region::alias("b", &target, 0x2000, 0x2000));
        assert_eq!(shape(&space), [(0x1000, 0x4fff, "ram".to_owned())]);
    }

    #[test]
    fn a_transfer_goes_on_past_what_does_not_answer() {
        let root = Region::whole_space("root");
        let space = AddressSpace::ports("p", &root);
        root.add(0, &ram("a", 0x1000, 1));
        root.add(0x1002, &Region::io("io", 6, Arc::new(Echo)));
        let mut buf = [0; 8];
        assert_eq!(space.read(0xffe, &mut buf), Err(MemTxError::Decode));
        assert_eq!(buf, [1, 1, 0xff, 0xff, 0, 0, 0, 0x40]);
        assert_eq!(space.read_u32(0x1002), 0x4000_0000, "alignment counts from the region's start");
        assert_eq!(space.read_u32(0x1003), 0xffff_ffff);
    }

    #[test]
    fn registers_get_an_access_whole_although_another_region_is_in_its_middle() {
        struct Log(Mutex<Vec<(u64, u32)>>);
        impl IoHandler for Log {
            fn read(&self, _offset: u64, _size: u32) -> u64 {
                0
            }
            fn write(&self, offset: u64, size: u32, _value: u64) {
                self.0.lock().push((offset, size));
            }
        }
        let root = Region::container("io", 0x1_0000);
        let space = AddressSpace::ports("p", &root);
        let (address, reset) = (Arc::new(Log(Mutex::default())), Arc::new(Log(Mutex::default())));
        root.add(0xcf8, &Region::io("address", 4, address.clone()));
        root.add_overlap(0xcf9, &Region::io("reset", 1, reset.clone()), 1);
        space.write_u32(0xcf8, 0);
        space.write_u8(0xcf9, 0);
        assert_eq!((&*address.0.lock(), &*reset.0.lock()), (&vec![(0, 4)], &vec![(0, 1)]));
    }

    #[test]
    fn the_end_of_the_space_is_reached_without_overflow() {
        let root = Region::whole_space("root");
        let space = AddressSpace::memory("m", &root);
        root.add(u64::MAX - 0xfff, &ram("top", 0x1000, 5));
        let mut buf = [0; 4];
        space.read(u64::MAX - 3, &mut buf).unwrap();
        assert_eq!(buf, [5; 4]);
        assert!(space.read(u64::MAX - 1, &mut buf).is_err(), "wraps to address 0, where nothing is");
    }

    #[test]
    fn a_transaction_publishes_once() {
        struct Count(AtomicUsize);
        impl MemoryListener for Count {
            fn view_changed(&self, _old: &FlatView, _new: &FlatView) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let root = Region::whole_space("root");
        let space = AddressSpace::memory("m", &root);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        space.add_listener(count.clone());
        let (a, b) = (ram("a", 0x1000, 0), ram("b", 0x1000, 0));
        {
            let _t = Transaction::begin();
            root.add(0, &a);
            root.add(0x1000, &b);
            assert_eq!(count.0.load(Ordering::Relaxed), 1);
        }
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        a.set_enabled(true);
        assert_eq!(count.0.load(Ordering::Relaxed), 2, "nothing changed");
        root.remove(&a);
        assert_eq!(shape(&space), [(0x1000, 0x1fff, "b".to_owned())]);
    }
}
