//! Backends: what a device, job or export holds of the graph. [`Backend`] lives on the graph's thread; [`BlockBackend`]
//! is the handle that device models use from any thread.

mod handle;

pub use handle::{BlockBackend, BlockOp, MediumChange};

use crate::child::{Child, Parent, Perm};
use crate::drain;
use crate::driver::{WriteFlags, errno};
use crate::graph::{Graph, WeakGraph};
use crate::node::Node;
use crate::stats::{Accounting, Kind, Outcome};
use handle::Shared;
use lockstep_util::Result;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;

thread_local! {
    static BACKENDS: RefCell<HashMap<u64, Weak<Backend>>> = RefCell::default();
}

/// A backend with or without a medium (root node).
pub struct Backend {
    graph: WeakGraph,
    name: RefCell<String>,
    root: RefCell<Option<Rc<Child>>>,
    perms: Cell<(Perm, Perm)>,
    /// The image is inactive: permissions are only noted.
    perms_held_back: Cell<bool>,
    /// What holds it, for error texts and `query-block` (`/machine/unattached/device[3]`, or a device id).
    device: RefCell<Option<String>>,
    guest: RefCell<Option<GuestDevice>>,
    quiesce: Cell<u32>,
    resume: Notify,
    in_flight: Cell<usize>,
    accounting: Accounting,
    shared: Arc<Shared>,
    me: Weak<Backend>,
}

/// How requests of a guest went lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoStatus {
    /// No error stopped the machine.
    #[default]
    Ok,
    /// An error did.
    Failed,
    /// The host ran out of space.
    NoSpace,
}

impl IoStatus {
    /// The name in the schema.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::NoSpace => "nospace",
        }
    }
}

/// The guest's device on a backend, as far as users are shown it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestDevice {
    /// Its id, or its place in the tree of objects when it has none.
    pub path: String,
    /// Whether media come and go by nature.
    pub removable: bool,
    /// Whether a user may change the medium.
    pub changeable: bool,
    /// Whether it has a tray: open or not, if so.
    pub tray_open: Option<bool>,
    /// Whether the guest has locked the tray.
    pub locked: bool,
    /// How requests went; `None` if errors never stop the machine.
    pub io_status: Option<IoStatus>,
}

struct Started {
    backend: Rc<Backend>,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.backend.in_flight.set(self.backend.in_flight.get() - 1);
        drain::kick();
    }
}

impl Backend {
    /// A backend without a medium. With a `name` it is registered in the graph and found by it.
    pub fn new(graph: &Graph, name: Option<&str>) -> Result<Rc<Self>> {
        let shared = Shared::new();
        let backend = Rc::new_cyclic(|me| Self {
            graph: graph.downgrade(),
            name: RefCell::new(name.unwrap_or_default().to_owned()),
            root: RefCell::default(),
            perms: Cell::new((Perm::empty(), Perm::all())),
            perms_held_back: Cell::new(false),
            device: RefCell::default(),
            guest: RefCell::default(),
            quiesce: Cell::new(0),
            resume: Notify::new(),
            in_flight: Cell::new(0),
            accounting: Accounting::default(),
            shared,
            me: me.clone(),
        });
        if name.is_some() {
            graph.add_backend(&backend)?;
        }
        BACKENDS.with(|b| b.borrow_mut().insert(backend.shared.id, Rc::downgrade(&backend)));
        Ok(backend)
    }

    /// The backends of a graph that have a name or a guest's device, oldest first.
    pub(crate) fn visible(graph: &Graph) -> Vec<Rc<Self>> {
        let all = BACKENDS.try_with(|b| b.borrow().values().filter_map(Weak::upgrade).collect::<Vec<_>>());
        let mut all = all.unwrap_or_default();
        let registered = |b: &Rc<Self>| graph.find_backend(&b.name()).is_some_and(|other| Rc::ptr_eq(&other, b));
        all.retain(|b| b.is_of(graph) && (b.guest().is_some() || registered(b)));
        all.sort_by_key(|b| b.shared.id);
        all
    }

    pub(crate) fn by_id(id: u64) -> Option<Rc<Self>> {
        BACKENDS.try_with(|b| b.borrow().get(&id).and_then(Weak::upgrade)).ok().flatten()
    }

    /// The handle for device models. It must be taken on the graph's thread while its context runs.
    pub fn handle(&self) -> BlockBackend {
        BlockBackend::new(self.shared.clone())
    }

    /// The id, empty if it has none.
    pub fn name(&self) -> String {
        self.name.borrow().clone()
    }

    pub(crate) fn forget_name(&self) {
        self.name.borrow_mut().clear();
    }

    /// The root node.
    pub fn node(&self) -> Option<Rc<Node>> {
        self.root.borrow().as_ref().map(|c| c.node())
    }

    /// The edge to the root node.
    pub fn root(&self) -> Option<Rc<Child>> {
        self.root.borrow().clone()
    }

    /// Puts a medium in.
    pub fn insert(&self, node: &Rc<Node>) -> Result<()> {
        debug_assert!(self.root.borrow().is_none(), "the old medium is removed first");
        let (perm, shared) = self.perms.get();
        // An inactive image is not ours yet: what a device wants of it waits for the activation.
        let held_back = node.flags().inactive && !perm.is_empty();
        self.perms_held_back.set(held_back);
        let (perm, shared) = if held_back { (Perm::empty(), Perm::all()) } else { (perm, shared) };
        let parent: Weak<Self> = self.me.clone();
        let child = Child::attach_root("root", node, parent, perm, shared)?;
        *self.root.borrow_mut() = Some(child);
        self.update_shared();
        self.shared.notify(MediumChange::Inserted);
        Ok(())
    }

    /// Takes the medium out. The node is closed when the graph next collects, if nobody else uses it.
    pub fn remove_medium(&self) {
        let root = self.root.borrow_mut().take();
        if let Some(child) = root {
            child.detach();
            self.update_shared();
            self.shared.notify(MediumChange::Removed);
        }
    }

    /// Takes permissions for what the user is going to do, and says what others may.
    pub fn set_perms(&self, perm: Perm, shared: Perm) -> Result<()> {
        let root = self.root();
        if let Some(root) = root {
            if root.node().flags().inactive {
                self.perms_held_back.set(true);
            } else if !self.perms_held_back.get() {
                root.set_perms(perm, shared)?;
            }
        }
        self.perms.set((perm, shared));
        Ok(())
    }

    /// Permissions taken and shared.
    pub fn perms(&self) -> (Perm, Perm) {
        self.perms.get()
    }

    /// Says what holds the backend; `None` gives it up.
    pub fn set_device(&self, device: Option<&str>) {
        *self.device.borrow_mut() = device.map(str::to_owned);
    }

    /// What holds the backend.
    pub fn device(&self) -> Option<String> {
        self.device.borrow().clone()
    }

    /// Says which device of the guest is on it; `None` that it is gone.
    pub fn set_guest(&self, guest: Option<GuestDevice>) {
        *self.guest.borrow_mut() = guest;
    }

    /// The guest's device.
    pub fn guest(&self) -> Option<GuestDevice> {
        self.guest.borrow().clone()
    }

    /// Changes what is shown of the guest's device, if there is one.
    pub fn update_guest(&self, change: impl FnOnce(&mut GuestDevice)) {
        if let Some(guest) = &mut *self.guest.borrow_mut() {
            change(guest);
        }
    }

    /// Whether a guest's writes may stay in a volatile cache until it flushes (`cache=writeback`).
    pub fn set_write_cache(&self, enabled: bool) {
        self.shared.set_write_cache(enabled);
    }

    /// See [`Backend::set_write_cache`].
    pub fn write_cache(&self) -> bool {
        self.shared.write_cache()
    }

    /// Length of the medium in bytes.
    pub fn len(&self) -> io::Result<u64> {
        self.node().ok_or_else(|| errno(libc::ENOMEDIUM))?.len()
    }

    /// Whether there is no medium, or an empty one.
    pub fn is_empty(&self) -> bool {
        self.len().unwrap_or(0) == 0
    }

    /// Tells the device what a user does to its medium.
    pub(crate) fn tell_device(&self, change: MediumChange) {
        self.shared.notify(change);
    }

    pub(crate) fn is_of(&self, graph: &Graph) -> bool {
        self.graph.upgrade().is_some_and(|own| own.same(graph))
    }

    fn update_shared(&self) {
        match self.node() {
            Some(node) => self.shared.set_medium(Some(node.len().unwrap_or(0)), node.is_read_only()),
            None => self.shared.set_medium(None, false),
        }
    }

    fn checked(&self, offset: u64, len: u64) -> io::Result<Rc<Node>> {
        let node = self.node().ok_or_else(|| errno(libc::ENOMEDIUM))?;
        let length = node.len()?;
        if offset > length || len > length - offset {
            return Err(errno(libc::EIO));
        }
        Ok(node)
    }

    fn write_flags(&self, flags: WriteFlags) -> WriteFlags {
        if self.write_cache() { flags } else { flags | WriteFlags::FUA }
    }

    /// Waits while the node is quiesced, then counts a request as started.
    async fn start(&self) -> Started {
        loop {
            let resumed = self.resume.notified();
            if self.quiesce.get() == 0 {
                break;
            }
            resumed.await;
        }
        self.start_now()
    }

    fn start_now(&self) -> Started {
        self.in_flight.set(self.in_flight.get() + 1);
        match self.me.upgrade() {
            Some(backend) => Started { backend },
            None => unreachable!("a backend that is borrowed is alive"),
        }
    }

    /// Reads.
    pub async fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let _started = self.start().await;
        self.checked(offset, buf.len() as u64)?.read(offset, buf).await
    }

    /// Writes.
    pub async fn write(&self, offset: u64, data: &[u8], flags: WriteFlags) -> io::Result<()> {
        let _started = self.start().await;
        self.checked(offset, data.len() as u64)?.write(offset, data, self.write_flags(flags)).await
    }

    /// Writes zeroes.
    pub async fn write_zeroes(&self, offset: u64, len: u64, flags: WriteFlags) -> io::Result<()> {
        let _started = self.start().await;
        self.checked(offset, len)?.write_zeroes(offset, len, self.write_flags(flags)).await
    }

    /// Discards.
    pub async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let _started = self.start().await;
        self.checked(offset, len)?.discard(offset, len).await
    }

    /// Flushes.
    pub async fn flush(&self) -> io::Result<()> {
        let _started = self.start().await;
        self.node().ok_or_else(|| errno(libc::ENOMEDIUM))?.flush().await
    }

    /// Starts what device models have submitted, unless the node is quiesced.
    pub(crate) fn pump(&self) {
        if self.quiesce.get() > 0 {
            return;
        }
        while let Some(request) = self.shared.next() {
            let started = self.start_now();
            tokio::task::spawn_local(async move {
                let result = started.backend.execute(request.op).await;
                // The completion runs before the request counts as ended: a drained device has seen all its results.
                (request.done)(result);
                started.backend.shared.ended();
                drop(started);
            });
        }
    }

    /// The counters of the guest's requests.
    pub fn accounting(&self) -> &Accounting {
        &self.accounting
    }

    async fn execute(&self, op: BlockOp) -> io::Result<Vec<u8>> {
        let (kind, offset, len) = match &op {
            BlockOp::Read { offset, len } => (Kind::Read, *offset, *len as u64),
            BlockOp::Write { offset, data } => (Kind::Write, *offset, data.len() as u64),
            BlockOp::WriteZeroes { offset, len, .. } => (Kind::Write, *offset, *len),
            BlockOp::Flush => (Kind::Flush, 0, 0),
            BlockOp::Discard { offset, len } => (Kind::Unmap, *offset, *len),
        };
        let (began, valid) = (Instant::now(), self.checked(offset, len).is_ok());
        let result = self.execute_uncounted(op).await;
        let outcome = match &result {
            Ok(_) => Outcome::Done,
            Err(_) if valid => Outcome::Failed,
            Err(_) => Outcome::Invalid,
        };
        self.accounting.count(kind, len, began, outcome);
        result
    }

    async fn execute_uncounted(&self, op: BlockOp) -> io::Result<Vec<u8>> {
        match op {
            BlockOp::Read { offset, len } => {
                let node = self.checked(offset, len as u64)?;
                let mut buf = vec![0; len];
                node.read(offset, &mut buf).await?;
                Ok(buf)
            }
            BlockOp::Write { offset, data } => {
                let node = self.checked(offset, data.len() as u64)?;
                node.write(offset, &data, self.write_flags(WriteFlags::empty())).await?;
                Ok(data)
            }
            BlockOp::WriteZeroes { offset, len, may_unmap } => {
                let node = self.checked(offset, len)?;
                let flags = if may_unmap { WriteFlags::MAY_UNMAP } else { WriteFlags::empty() };
                node.write_zeroes(offset, len, self.write_flags(flags)).await?;
                Ok(Vec::new())
            }
            BlockOp::Discard { offset, len } => {
                self.checked(offset, len)?.discard(offset, len).await?;
                Ok(Vec::new())
            }
            BlockOp::Flush => {
                self.node().ok_or_else(|| errno(libc::ENOMEDIUM))?.flush().await?;
                Ok(Vec::new())
            }
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = BACKENDS.try_with(|b| b.borrow_mut().remove(&self.shared.id));
        if let Some(root) = self.root.get_mut().take() {
            root.detach();
        }
        self.shared.close();
    }
}

impl Parent for Backend {
    fn description(&self) -> String {
        match (self.device(), self.name()) {
            (Some(device), name) if name.is_empty() => format!("block device '{device}'"),
            (_, name) if !name.is_empty() => format!("block device '{name}'"),
            _ => "an unnamed block device".to_owned(),
        }
    }

    fn drained_begin(&self) {
        self.quiesce.set(self.quiesce.get() + 1);
    }

    fn drained_poll(&self) -> bool {
        self.in_flight.get() > 0
    }

    fn drained_end(&self) {
        self.quiesce.set(self.quiesce.get() - 1);
        if self.quiesce.get() == 0 {
            self.resume.notify_waiters();
            self.shared.schedule();
        }
    }

    fn resized(&self) {
        self.update_shared();
        self.shared.notify(MediumChange::Resized);
    }

    fn activated(&self) -> Result<()> {
        if self.perms_held_back.replace(false)
            && let Some(root) = self.root()
        {
            let (perm, shared) = self.perms.get();
            root.set_perms(perm, shared).inspect_err(|_| self.perms_held_back.set(true))?;
        }
        self.update_shared();
        Ok(())
    }

    fn inactivate(&self) -> Result<()> {
        if !self.perms_held_back.get()
            && let Some(root) = self.root()
        {
            self.perms_held_back.set(true);
            root.set_perms(Perm::empty(), Perm::all())?;
        }
        Ok(())
    }

    fn device_name(&self) -> Option<String> {
        let name = self.name();
        if name.is_empty() { None } else { Some(name) }
    }

    fn changed(&self) {
        if self.graph.upgrade().is_some() {
            self.update_shared();
        }
    }
}
