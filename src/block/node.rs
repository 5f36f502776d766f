//! A node of the block graph: its name, driver, edges, flags, and what is kept track of on its behalf.

use crate::child::{Child, ChildRole, Parent, Perm};
use crate::drain;
use crate::driver::{BlockDriver, DriverDef, DriverKind, LocalBoxFuture};
use crate::open::OpenFlags;
use crate::options::Options;
use crate::perm;
use crate::requests::Requests;
use lockstep_util::{Result, bail};
use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::rc::{Rc, Weak};

/// Looks at what is written to a node: copy-before-write, dirty bitmaps.
pub trait WriteHook {
    /// Before the driver changes the range (write, zeroes or discard); an error fails the request.
    fn before_write<'a>(&'a self, _offset: u64, _len: u64) -> Option<LocalBoxFuture<'a, io::Result<()>>> {
        None
    }

    /// After the range was changed, or may have been (`ok` false).
    fn after_write(&self, _offset: u64, _len: u64, _ok: bool) {}

    /// Last of all, when the range is free for others again: what the writer has to wait for.
    fn settle_write<'a>(&'a self, _offset: u64, _len: u64) -> Option<LocalBoxFuture<'a, ()>> {
        None
    }

    /// After the length was changed.
    fn resized(&self, _len: u64) {}
}

/// What another user may be forbidden to do with a node, with the reason why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockOp {
    /// `backup` reading from it.
    BackupSource,
    /// `backup` writing to it.
    BackupTarget,
    /// Changing the medium.
    Change,
    /// `commit` from it.
    CommitSource,
    /// `commit` into it.
    CommitTarget,
    /// A data plane.
    Dataplane,
    /// `drive_del`.
    DriveDel,
    /// Ejecting the medium.
    Eject,
    /// An overlay on top.
    ExternalSnapshot,
    /// An internal snapshot.
    InternalSnapshot,
    /// Deleting an internal snapshot.
    InternalSnapshotDelete,
    /// `mirror` reading from it.
    MirrorSource,
    /// `mirror` writing to it.
    MirrorTarget,
    /// Changing its length.
    Resize,
    /// `stream`.
    Stream,
    /// Replacing it in the graph.
    Replace,
}

impl BlockOp {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::BackupSource,
        Self::BackupTarget,
        Self::Change,
        Self::CommitSource,
        Self::CommitTarget,
        Self::Dataplane,
        Self::DriveDel,
        Self::Eject,
        Self::ExternalSnapshot,
        Self::InternalSnapshot,
        Self::InternalSnapshotDelete,
        Self::MirrorSource,
        Self::MirrorTarget,
        Self::Resize,
        Self::Stream,
        Self::Replace,
    ];
}

/// Operations on a node blocked until this is dropped.
pub struct OpBlockGuard {
    node: Weak<Node>,
    id: u64,
}

impl Drop for OpBlockGuard {
    fn drop(&mut self) {
        if let Some(node) = self.node.upgrade() {
            node.op_blockers.borrow_mut().retain(|b| b.id != self.id);
        }
    }
}

/// What a node stands on may be written by others until this is dropped: see [`Node::share_below`].
pub struct SharedBelow {
    node: Weak<Node>,
}

impl Drop for SharedBelow {
    fn drop(&mut self) {
        if let Some(node) = self.node.upgrade() {
            node.shares_below.set(node.shares_below.get() - 1);
            // Whoever wrote is gone by now; if not, the next change of the graph finds it.
            let _ = crate::perm::refresh(std::slice::from_ref(&node));
        }
    }
}

struct OpBlocker {
    id: u64,
    op: BlockOp,
    reason: String,
}

/// One piece of work under way on a node; drain waits for it.
pub struct InFlight {
    node: Rc<Node>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.node.in_flight.set(self.node.in_flight.get() - 1);
        drain::kick();
    }
}

/// A node of the graph. Lives on the graph's thread.
pub struct Node {
    name: String,
    def: &'static DriverDef,
    driver: OnceCell<Box<dyn BlockDriver>>,
    closed: Cell<bool>,
    flags: Cell<OpenFlags>,
    children: RefCell<Vec<Rc<Child>>>,
    parents: RefCell<Vec<Weak<Child>>>,
    pub(crate) in_flight: Cell<usize>,
    pub(crate) requests: Rc<Requests>,
    quiesce: Cell<u32>,
    hooks: RefCell<Vec<Weak<dyn WriteHook>>>,
    op_blockers: RefCell<Vec<OpBlocker>>,
    /// How many let others write to what is below.
    shares_below: Cell<u32>,
    next_blocker: Cell<u64>,
    /// Options as the user gave them for this node alone (children's parts included), for `json:` names.
    pub(crate) given_options: RefCell<Options>,
    /// Writes seen and writes known to be stable, so that a flush without writes before it costs nothing.
    pub(crate) write_gen: Cell<u64>,
    pub(crate) flushed_gen: Cell<u64>,
    pub(crate) flushing: Rc<tokio::sync::Mutex<()>>,
    /// Statistics of the highest offset written, in bytes.
    pub(crate) highest_write: Cell<u64>,
    me: Weak<Node>,
}

impl Node {
    pub(crate) fn new(name: String, def: &'static DriverDef, flags: OpenFlags, given: Options) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            name,
            def,
            driver: OnceCell::new(),
            closed: Cell::new(false),
            flags: Cell::new(flags),
            children: RefCell::default(),
            parents: RefCell::default(),
            in_flight: Cell::new(0),
            requests: Rc::default(),
            quiesce: Cell::new(0),
            hooks: RefCell::default(),
            op_blockers: RefCell::default(),
            shares_below: Cell::new(0),
            next_blocker: Cell::new(0),
            given_options: RefCell::new(given),
            write_gen: Cell::new(0),
            flushed_gen: Cell::new(0),
            flushing: Rc::default(),
            highest_write: Cell::new(0),
            me: me.clone(),
        })
    }

    pub(crate) fn set_driver(&self, driver: Box<dyn BlockDriver>) {
        let fresh = self.driver.set(driver).is_ok();
        debug_assert!(fresh, "a node gets its driver once");
    }

    /// The node's name, given or generated.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the name was generated (`#block123`).
    pub fn has_generated_name(&self) -> bool {
        self.name.starts_with('#')
    }

    /// Id of the device above it, or else its own name (as many error texts want it).
    pub fn device_or_node_name(&self) -> String {
        self.device_name().unwrap_or_else(|| self.name.clone())
    }

    /// Id of the first named device whose root it is.
    pub fn device_name(&self) -> Option<String> {
        self.parent_edges().iter().find_map(|e| e.parent().and_then(|p| p.device_name()))
    }

    /// Row of the driver table.
    pub fn def(&self) -> &'static DriverDef {
        self.def
    }

    /// The driver, unless the node is still being opened or closed already.
    pub fn try_driver(&self) -> Option<&dyn BlockDriver> {
        if self.closed.get() { None } else { self.driver.get().map(Box::as_ref) }
    }

    /// The driver, or `ENOMEDIUM`.
    pub fn driver(&self) -> io::Result<&dyn BlockDriver> {
        self.try_driver().ok_or_else(|| crate::driver::errno(libc::ENOMEDIUM))
    }

    /// The concrete driver, if it is a `T`.
    pub fn driver_as<T: 'static>(&self) -> Option<&T> {
        self.try_driver().and_then(|d| d.as_any().downcast_ref())
    }

    /// A strong reference to itself.
    pub fn rc(&self) -> Rc<Node> {
        match self.me.upgrade() {
            Some(me) => me,
            None => unreachable!("a node that is borrowed is alive"),
        }
    }

    /// A weak reference to itself.
    pub fn weak(&self) -> Weak<Node> {
        self.me.clone()
    }

    /// Flags it was opened with or reopened to.
    pub fn flags(&self) -> OpenFlags {
        self.flags.get()
    }

    /// Sets flags without telling the driver: the opening and reopening code does that.
    pub(crate) fn set_flags(&self, flags: OpenFlags) {
        self.flags.set(flags);
    }

    /// Whether it was opened read-only (or turned out to be).
    pub fn is_read_only(&self) -> bool {
        self.flags.get().read_only
    }

    /// Whether it can be written now: not read-only and not given away to a migration's other side.
    pub fn is_writable(&self) -> bool {
        let flags = self.flags.get();
        !flags.read_only && !flags.inactive
    }

    /// Length in bytes.
    pub fn len(&self) -> io::Result<u64> {
        self.driver()?.length()
    }

    /// Whether its length is 0.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Edges to the nodes below.
    pub fn child_edges(&self) -> Vec<Rc<Child>> {
        self.children.borrow().clone()
    }

    /// Edge to the child of that name.
    pub fn child(&self, name: &str) -> Option<Rc<Child>> {
        self.children.borrow().iter().find(|c| c.name() == name).cloned()
    }

    /// Edges from the users above.
    pub fn parent_edges(&self) -> Vec<Rc<Child>> {
        self.parents.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// The node that this one shows, if it is a filter.
    pub fn filtered_child(&self) -> Option<Rc<Child>> {
        if self.def.kind != DriverKind::Filter {
            return None;
        }
        self.children.borrow().iter().find(|c| c.role().contains(ChildRole::FILTERED)).cloned()
    }

    /// The node that holds what this one does not.
    pub fn cow_child(&self) -> Option<Rc<Child>> {
        self.children.borrow().iter().find(|c| c.role().contains(ChildRole::COW)).cloned()
    }

    /// The next node of the backing chain: what a filter shows, or the backing file.
    pub fn backing(&self) -> Option<Rc<Node>> {
        self.filtered_child().or_else(|| self.cow_child()).map(|c| c.node())
    }

    /// The node itself, or the first below it that is no filter.
    pub fn skip_filters(&self) -> Rc<Node> {
        let mut node = self.rc();
        while let Some(child) = node.filtered_child() {
            node = child.node();
        }
        node
    }

    /// The child a plain look at the node means.
    pub fn primary_child(&self) -> Option<Rc<Child>> {
        self.children.borrow().iter().find(|c| c.role().contains(ChildRole::PRIMARY)).cloned()
    }

    /// Whether `other` is this node or below it.
    pub fn reaches(&self, other: &Node) -> bool {
        std::ptr::eq(self, other) || self.children.borrow().iter().any(|c| c.node().reaches(other))
    }

    /// Adds a child edge; permissions of the whole subgraph are settled before.
    pub fn attach_child(&self, name: &str, role: ChildRole, node: &Rc<Node>) -> Result<Rc<Child>> {
        if node.reaches(self) {
            bail!("Making '{}' a {name} child of '{}' would create a cycle", node.name(), self.name);
        }
        let parent: Weak<Node> = self.me.clone();
        let child = Child::new(name.to_owned(), role, node.clone(), parent, None);
        if let Some(driver) = self.try_driver() {
            let (perm, shared) = perm::cumulative(self);
            let (p, s) = driver.child_perms(self, role, perm, shared);
            child.perm.set(p);
            child.shared.set(s);
        }
        node.attach_parent(&child)?;
        self.children.borrow_mut().push(child.clone());
        Ok(child)
    }

    /// Removes a child edge. The node below stays open as long as somebody uses it.
    pub fn detach_child(&self, child: &Rc<Child>) {
        self.children.borrow_mut().retain(|c| !Rc::ptr_eq(c, child));
        child.detach();
    }

    /// Registers an edge from above, with its permissions checked and its user quiesced if the node is.
    pub(crate) fn attach_parent(self: &Rc<Self>, edge: &Rc<Child>) -> Result<()> {
        self.parents.borrow_mut().push(Rc::downgrade(edge));
        if let Err(e) = perm::refresh(std::slice::from_ref(self)) {
            self.forget_parent(edge);
            return Err(e);
        }
        self.sync_quiesce(edge);
        Ok(())
    }

    pub(crate) fn remove_parent(self: &Rc<Self>, edge: &Rc<Child>) {
        self.forget_parent(edge);
        release_quiesce(edge, 0);
        // Fewer users can only need less.
        if let Err(e) = perm::refresh(std::slice::from_ref(self)) {
            tracing::warn!("giving up permissions on node '{}': {e}", self.name);
        }
        crate::graph::request_collection();
    }

    fn forget_parent(&self, edge: &Rc<Child>) {
        self.parents.borrow_mut().retain(|p| p.upgrade().is_some_and(|p| !Rc::ptr_eq(&p, edge)));
    }

    fn sync_quiesce(&self, edge: &Rc<Child>) {
        let want = self.quiesce.get();
        while edge.drained.get() < want {
            edge.drained.set(edge.drained.get() + 1);
            if let Some(parent) = edge.parent() {
                parent.drained_begin();
            }
        }
        release_quiesce(edge, want);
    }

    pub(crate) fn quiesce_begin(&self) {
        self.quiesce.set(self.quiesce.get() + 1);
        for edge in self.parent_edges() {
            self.sync_quiesce(&edge);
        }
    }

    pub(crate) fn quiesce_end(&self) {
        self.quiesce.set(self.quiesce.get() - 1);
        for edge in self.parent_edges() {
            self.sync_quiesce(&edge);
        }
    }

    /// Whether a drain has to wait for this node or its users.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight.get() > 0
            || self.try_driver().is_some_and(|d| d.has_detached_requests())
            || self.parent_edges().iter().any(|e| e.parent().is_some_and(|p| p.drained_poll()))
    }

    /// Whether the node is quiesced.
    pub fn is_quiesced(&self) -> bool {
        self.quiesce.get() > 0
    }

    /// Marks work under way, for drain to wait for.
    pub fn start_work(&self) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        InFlight { node: self.rc() }
    }

    /// Registers a hook for writes; it goes when its owner drops it.
    pub fn add_write_hook(&self, hook: Weak<dyn WriteHook>) {
        let mut hooks = self.hooks.borrow_mut();
        hooks.retain(|h| h.strong_count() > 0);
        hooks.push(hook);
    }

    /// Whether any hook is there (the write path asks first).
    pub(crate) fn write_hooks(&self) -> Vec<std::rc::Rc<dyn WriteHook>> {
        if self.hooks.borrow().is_empty() {
            return Vec::new();
        }
        self.hooks.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// Forbids operations until the guard is dropped; `reason` ends the sentence `Node 'x' is busy: …`.
    pub fn block_ops(&self, ops: &[BlockOp], reason: &str) -> OpBlockGuard {
        let id = self.next_blocker.get();
        self.next_blocker.set(id + 1);
        let mut blockers = self.op_blockers.borrow_mut();
        blockers.extend(ops.iter().map(|op| OpBlocker { id, op: *op, reason: reason.to_owned() }));
        OpBlockGuard { node: self.me.clone(), id }
    }

    /// Lets others write to the layer that this one stands on, until the guard is dropped. For a merge: what it writes there is hidden
    /// by this layer, which has the same.
    ///
    /// # Errors
    /// When the permissions of the layers below do not allow it.
    pub fn share_below(self: &Rc<Self>) -> Result<SharedBelow> {
        self.shares_below.set(self.shares_below.get() + 1);
        let guard = SharedBelow { node: self.me.clone() };
        crate::perm::refresh(std::slice::from_ref(self))?;
        Ok(guard)
    }

    /// Whether others may write to the layer that this one stands on.
    pub(crate) fn is_shared_below(&self) -> bool {
        self.shares_below.get() > 0
    }

    /// Whether an operation is allowed now.
    pub fn check_op(&self, op: BlockOp) -> Result<()> {
        match self.op_blockers.borrow().iter().find(|b| b.op == op) {
            Some(b) => bail!("Node '{}' is busy: {}", self.device_or_node_name(), b.reason),
            None => Ok(()),
        }
    }

    /// Makes requests fail that wait for a peer, here and in everything below.
    pub fn cancel_in_flight(&self) {
        if let Some(driver) = self.try_driver() {
            driver.cancel_in_flight();
        }
        for child in self.child_edges() {
            child.node().cancel_in_flight();
        }
    }

    /// Tells users that the length has changed.
    pub(crate) fn notify_resized(&self, len: u64) {
        for hook in self.write_hooks() {
            hook.resized(len);
        }
        for edge in self.parent_edges() {
            if let Some(parent) = edge.parent() {
                parent.resized();
            }
        }
    }

    /// Closes: the driver says good-bye, the edges below are let go. Only the graph calls it, when nobody uses the node.
    pub(crate) async fn close(self: &Rc<Self>) {
        if self.closed.get() {
            return;
        }
        if let Some(driver) = self.driver.get() {
            driver.close().await;
        }
        self.closed.set(true);
        let children = std::mem::take(&mut *self.children.borrow_mut());
        for child in children {
            child.detach();
        }
    }

    /// Lets go of everything without the driver's good-bye: after a failed opening.
    pub(crate) fn abandon(&self) {
        self.closed.set(true);
        let children = std::mem::take(&mut *self.children.borrow_mut());
        for child in children {
            child.detach();
        }
    }
}

fn release_quiesce(edge: &Rc<Child>, keep: u32) {
    while edge.drained.get() > keep {
        edge.drained.set(edge.drained.get() - 1);
        if let Some(parent) = edge.parent() {
            parent.drained_end();
        }
    }
}

/// Leads an edge to another node. See [`Child::replace_node`].
pub(crate) fn move_edge(edge: &Rc<Child>, to: &Rc<Node>) -> Result<()> {
    let from = edge.node();
    if Rc::ptr_eq(&from, to) {
        return Ok(());
    }
    if let Some(parent) = edge.parent()
        && let Some(parent) = parent.as_node()
        && to.reaches(parent)
    {
        bail!("Making '{}' a {} child of '{}' would create a cycle", to.name(), edge.name(), parent.name());
    }
    from.forget_parent(edge);
    edge.swap_node(to.clone());
    to.parents.borrow_mut().push(Rc::downgrade(edge));
    let settled = perm::refresh(&[from.clone(), to.clone()]);
    if let Err(e) = settled {
        to.forget_parent(edge);
        edge.swap_node(from.clone());
        from.parents.borrow_mut().push(Rc::downgrade(edge));
        if let Err(again) = perm::refresh(std::slice::from_ref(&from)) {
            tracing::warn!("restoring permissions on node '{}': {again}", from.name());
        }
        return Err(e);
    }
    to.sync_quiesce(edge);
    crate::graph::request_collection();
    Ok(())
}

impl Parent for Node {
    fn description(&self) -> String {
        perm::describe_node(self)
    }

    fn drained_begin(&self) {
        self.quiesce_begin();
    }

    fn drained_poll(&self) -> bool {
        self.is_busy()
    }

    fn drained_end(&self) {
        self.quiesce_end();
    }

    fn resized(&self) {
        if let Ok(len) = self.len() {
            self.notify_resized(len);
        }
    }

    fn as_node(&self) -> Option<&Node> {
        Some(self)
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.name).field("driver", &self.def.name).finish_non_exhaustive()
    }
}

/// Permissions a root user has when it only looks.
pub const NO_PERM: Perm = Perm::empty();
