//! What the processors of one machine share: memory, ports, and where translated code lies.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use lockstep_memory::{
    AddressSpace, DirtyClient, DirtyLog, FlatTarget, FlatView, MemoryListener, PAGE_SIZE, RamBlock, RamList,
};
use lockstep_util::Result;
use parking_lot::{Mutex, RwLock};

use crate::{
    block::Fast,
    platform::{CodeNews, CpuLink, request},
};

/// What a processor may take for code if nobody says more, in bytes.
const CODE_ROOM: usize = 512 << 20;

/// The processors' common ground. One a machine.
pub struct Machine {
    pub(crate) memory: AddressSpace,
    pub(crate) ports: AddressSpace,
    /// Host pages (host address / 4096) that processors have decoded code of, and how many have.
    code: RwLock<HashMap<u64, usize, Fast>>,
    /// The same by block and 64-page word, for looking at what devices wrote.
    words: RwLock<HashMap<(usize, usize), CodeWord>>,
    links: Mutex<Vec<Arc<CpuLink>>>,
    /// Blocks whose writes somebody collects; held while they are collected.
    logged: Mutex<Vec<RamBlock>>,
    /// Held by a processor that is the only one in guest code.
    pub(crate) exclusive: Mutex<()>,
    /// Bytes of the host that each processor may take for what it makes of code.
    code_room: AtomicUsize,
    /// The A20 gate is closed: address bit 20 is always 0.
    a20_closed: AtomicBool,
}

#[derive(Clone)]
struct CodeWord {
    block: RamBlock,
    word: usize,
    pages: u64,
}

impl Machine {
    /// A machine over a memory and a port space. Follows the memory's map.
    pub fn new(memory: &AddressSpace, ports: &AddressSpace) -> Arc<Self> {
        let this = Arc::new(Self {
            memory: memory.clone(),
            ports: ports.clone(),
            code: RwLock::default(),
            words: RwLock::default(),
            links: Mutex::default(),
            logged: Mutex::default(),
            exclusive: Mutex::default(),
            code_room: AtomicUsize::new(CODE_ROOM),
            a20_closed: AtomicBool::new(false),
        });
        memory.add_listener(Arc::new(MapListener(Arc::downgrade(&this))));
        this
    }

    /// Follows dirty logging of RAM, and has devices' writes to code noticed.
    ///
    /// # Errors
    /// None at present; the signature is that of the list.
    pub fn attach_ram(self: &Arc<Self>, ram: &RamList) -> Result<()> {
        self.follow_logging(ram);
        ram.set_logging(DirtyClient::Code, true)
    }

    /// Follows dirty logging of RAM alone: enough where no code is kept.
    pub fn follow_logging(self: &Arc<Self>, ram: &RamList) {
        ram.add_dirty_log(Arc::new(TranslationLog(Arc::downgrade(self))));
    }

    /// Opens or closes the A20 gate.
    pub fn set_a20(&self, open: bool) {
        if self.a20_closed.swap(!open, Ordering::SeqCst) == open {
            self.links.lock().iter().for_each(|l| l.raise(request::FLUSH));
        }
    }

    pub(crate) fn a20_mask(&self) -> u64 {
        if self.a20_closed.load(Ordering::SeqCst) { !(1 << 20) } else { u64::MAX }
    }

    pub(crate) fn add_link(&self, link: Arc<CpuLink>) {
        self.links.lock().push(link);
    }

    /// Each processor that is made from now on takes at most about so many bytes of the host for what it makes of code; when that is
    /// full it begins anew. A mebibyte at least.
    pub fn set_code_room(&self, bytes: usize) {
        self.code_room.store(bytes.max(1 << 20), Ordering::Relaxed);
    }

    pub(crate) fn code_room(&self) -> usize {
        self.code_room.load(Ordering::Relaxed)
    }

    /// The ways to the other processors.
    pub(crate) fn others(&self, own: &Arc<CpuLink>) -> Vec<Arc<CpuLink>> {
        self.links.lock().iter().filter(|l| !Arc::ptr_eq(l, own)).cloned().collect()
    }

    /// Whether a processor has code of this host page.
    pub(crate) fn has_code(&self, host_page: u64) -> bool {
        self.code.read().contains_key(&host_page)
    }

    /// Notes that a processor will have code of a page, which it has not read yet. The others must not write there unseen any more,
    /// and have to tell if they could until they hear of it.
    pub(crate) fn add_code(&self, own: &Arc<CpuLink>, host_page: u64, block: &RamBlock, offset: u64) {
        {
            let mut code = self.code.write();
            let count = code.entry(host_page).or_insert(0);
            *count += 1;
            if *count > 1 {
                return;
            }
        }
        let page = offset / PAGE_SIZE;
        let (word, bit) = ((page / 64) as usize, page % 64);
        block.dirty(DirtyClient::Code).take(page);
        let key = (block.host_address() as usize, word);
        self.words.write().entry(key).or_insert_with(|| CodeWord { block: block.clone(), word, pages: 0 }).pages |=
            1 << bit;
        self.tell_others(own, |news| _ = news.found.insert(host_page));
    }

    /// Notes again that a processor counts as having code of a page.
    pub(crate) fn keep_code(&self, host_page: u64) {
        *self.code.write().entry(host_page).or_insert(0) += 1;
    }

    /// Notes that a processor has no code of a page any more. Whether another one has.
    pub(crate) fn remove_code(&self, host_page: u64) -> bool {
        let mut code = self.code.write();
        let Some(count) = code.get_mut(&host_page) else { return false };
        *count -= 1;
        let others = *count > 0;
        if !others {
            code.remove(&host_page);
        }
        others
    }

    /// Tells the other processors something about code.
    pub(crate) fn tell_others(&self, own: &Arc<CpuLink>, news: impl Fn(&mut CodeNews)) {
        for link in self.links.lock().iter().filter(|l| !Arc::ptr_eq(l, own)) {
            news(&mut link.code_news.lock());
            link.raise(request::CODE);
        }
    }

    /// Looks for writes of devices to pages with code and tells all processors of them.
    pub(crate) fn scan_device_writes(&self) {
        let mut found = vec![];
        for word in self.words.read().values() {
            let bitmap = word.block.dirty(DirtyClient::Code);
            let set = bitmap.word(word.word) & word.pages;
            if set == 0 {
                continue;
            }
            for bit in (0..64).filter(|b| set & 1 << b != 0) {
                let page = word.word as u64 * 64 + bit;
                if bitmap.take(page) {
                    found.push(word.block.host_address() as u64 / PAGE_SIZE + page);
                }
            }
        }
        if found.is_empty() {
            return;
        }
        for link in self.links.lock().iter() {
            link.code_news.lock().written.extend(found.iter().map(|&p| (p, u64::MAX)));
            link.raise(request::CODE);
        }
    }

    /// Asks all processors to forget translations and waits until none uses an old one.
    fn flush_and_wait(&self) {
        let links = self.links.lock().clone();
        for link in &links {
            link.raise(request::FLUSH);
        }
        for link in &links {
            link.wait_while_in_guest(|| link.is_asked(request::FLUSH));
        }
    }
}

struct MapListener(std::sync::Weak<Machine>);

impl MemoryListener for MapListener {
    fn view_changed(&self, _old: &FlatView, _new: &FlatView) {
        if let Some(machine) = self.0.upgrade() {
            machine.links.lock().iter().for_each(|l| l.raise(request::FLUSH));
        }
    }
}

struct TranslationLog(std::sync::Weak<Machine>);

impl DirtyLog for TranslationLog {
    fn logging_changed(&self, block: &RamBlock) -> Result<()> {
        if let Some(machine) = self.0.upgrade() {
            let mut logged = machine.logged.lock();
            let known = logged.iter().position(|b| b.same(block));
            match (known, block.is_logged_for_others()) {
                (None, true) => {
                    block.unseen_writes().clear();
                    logged.push(block.clone());
                }
                (Some(at), false) => drop(logged.swap_remove(at)),
                _ => {}
            }
            machine.flush_and_wait();
        }
        Ok(())
    }

    /// A page whose bit is set may be written until the flush, so the bits are merged after it: who then reads the page sees
    /// all that was written. What is written later sets the bit anew, for the next time.
    fn sync(&self) {
        let Some(machine) = self.0.upgrade() else { return };
        let logged = machine.logged.lock();
        let mut taken = vec![];
        for block in &*logged {
            let bitmap = block.unseen_writes();
            let words = (0..bitmap.words()).map(|word| (block, word, bitmap.take_word(word)));
            taken.extend(words.filter(|(.., bits)| *bits != 0));
        }
        if taken.is_empty() {
            return;
        }
        machine.flush_and_wait();
        for (block, word, bits) in taken {
            block.merge_unseen_word(word, bits);
        }
    }
}

/// RAM or ROM in the memory map, as a processor's translations use it.
#[derive(Clone)]
pub(crate) struct RamRange {
    pub start: u64,
    pub last: u64,
    pub host: u64,
    pub block: RamBlock,
    pub offset: u64,
    pub readonly: bool,
}

/// The memory ranges of a view. They keep their blocks alive.
pub(crate) fn ram_ranges(view: &FlatView) -> Vec<RamRange> {
    view.ranges()
        .iter()
        .filter_map(|r| match &r.target {
            FlatTarget::Ram { block, offset, readonly } => Some(RamRange {
                start: r.start,
                last: r.last,
                host: block.host_address() as u64 + offset,
                block: block.clone(),
                offset: *offset,
                readonly: *readonly,
            }),
            FlatTarget::Io { .. } => None,
        })
        .collect()
}
