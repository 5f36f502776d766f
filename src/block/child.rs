//! Edges of the block graph: who uses which node, in which role, with which permissions.

use crate::node::Node;
use bitflags::bitflags;
use lockstep_util::Result;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

bitflags! {
    /// What a user of a node does with it, or lets others do.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Perm: u32 {
        /// Reads, and relies on seeing a consistent image.
        const CONSISTENT_READ = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// Writes without a change of what is read.
        const WRITE_UNCHANGED = 1 << 2;
        /// Changes the length.
        const RESIZE = 1 << 3;
    }
}

bitflags! {
    /// What a child is to its parent.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ChildRole: u32 {
        /// Holds guest data.
        const DATA = 1 << 0;
        /// Holds the parent's own metadata.
        const METADATA = 1 << 1;
        /// The parent is a filter and shows this child's data.
        const FILTERED = 1 << 2;
        /// What the parent does not hold is read from here.
        const COW = 1 << 3;
        /// The child a plain look at the parent means (its `file`).
        const PRIMARY = 1 << 4;
    }
}

impl ChildRole {
    /// The `file` of an image format.
    pub const IMAGE: Self = Self::DATA.union(Self::METADATA).union(Self::PRIMARY);
    /// The child of a filter.
    pub const FILTER: Self = Self::FILTERED.union(Self::PRIMARY);
}

impl Perm {
    const NAMES: [(Self, &'static str); 4] = [
        (Self::CONSISTENT_READ, "consistent read"),
        (Self::WRITE, "write"),
        (Self::WRITE_UNCHANGED, "write unchanged"),
        (Self::RESIZE, "resize"),
    ];

    /// The names as error texts list them.
    pub fn names(self) -> String {
        let names: Vec<&str> = Self::NAMES.iter().filter(|(p, _)| self.contains(*p)).map(|(_, n)| *n).collect();
        names.join(", ")
    }
}

/// A user of nodes: another node, a backend (device), a job, an export.
pub trait Parent {
    /// For error texts: `node 'x'`, `block device 'd0'`, `block job 'j0'`.
    fn description(&self) -> String;

    /// Stop sending requests (nested calls add up). Must not wait.
    fn drained_begin(&self);

    /// Whether requests may still come in spite of [`Parent::drained_begin`]: work that is under way and has not
    /// reached the node yet.
    fn drained_poll(&self) -> bool {
        false
    }

    /// One `drained_begin` less.
    fn drained_end(&self);

    /// The node's length changed.
    fn resized(&self) {}

    /// The node was activated after a migration (permissions held back so far may be taken now).
    fn activated(&self) -> Result<()> {
        Ok(())
    }

    /// The node is going to be given away: no writes from now on. An error stops it.
    fn inactivate(&self) -> Result<()> {
        Ok(())
    }

    /// The parent as a node, if it is one.
    fn as_node(&self) -> Option<&Node> {
        None
    }

    /// Id of the backend (device) behind this parent, if it is one with a name.
    fn device_name(&self) -> Option<String> {
        None
    }

    /// The node is being pulled away from its parents (`blockdev-del` of a medium, `drive_del`).
    fn changed(&self) {}
}

/// One edge. Cheap to share; the node it leads to can be exchanged, and all who hold the edge go along.
pub struct Child {
    name: String,
    role: ChildRole,
    node: RefCell<Rc<Node>>,
    parent: Weak<dyn Parent>,
    pub(crate) perm: Cell<Perm>,
    pub(crate) shared: Cell<Perm>,
    pub(crate) detached: Cell<bool>,
    /// Drain sections of the node that this edge has passed on to its parent.
    pub(crate) drained: Cell<u32>,
    /// `None`: the parent node's driver says what it needs; otherwise fixed by a root user.
    fixed: Cell<bool>,
}

impl Child {
    pub(crate) fn new(
        name: String,
        role: ChildRole,
        node: Rc<Node>,
        parent: Weak<dyn Parent>,
        fixed: Option<(Perm, Perm)>,
    ) -> Rc<Self> {
        let (perm, shared) = fixed.unwrap_or((Perm::empty(), Perm::all()));
        Rc::new(Self {
            name,
            role,
            node: RefCell::new(node),
            parent,
            perm: Cell::new(perm),
            shared: Cell::new(shared),
            detached: Cell::new(false),
            drained: Cell::new(0),
            fixed: Cell::new(fixed.is_some()),
        })
    }

    /// Attaches a root user (backend, job, export) to a node: takes `perm`, lets others have `shared`.
    pub fn attach_root(
        name: &str,
        node: &Rc<Node>,
        parent: Weak<dyn Parent>,
        perm: Perm,
        shared: Perm,
    ) -> Result<Rc<Self>> {
        let child = Self::new(name.to_owned(), ChildRole::FILTER, node.clone(), parent, Some((perm, shared)));
        node.attach_parent(&child)?;
        Ok(child)
    }

    /// Changes what a root user needs and shares.
    pub fn set_perms(self: &Rc<Self>, perm: Perm, shared: Perm) -> Result<()> {
        let old = (self.perm.get(), self.shared.get());
        self.perm.set(perm);
        self.shared.set(shared);
        crate::perm::refresh(&[self.node()]).inspect_err(|_| {
            self.perm.set(old.0);
            self.shared.set(old.1);
        })
    }

    /// Takes a root user off its node. Its permissions are given back; the node stays open as long as somebody uses it.
    pub fn detach(self: &Rc<Self>) {
        if !self.detached.replace(true) {
            self.node().remove_parent(self);
        }
    }

    /// The name of the edge within its parent (`file`, `backing`, `children.0`, `root`).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the child is to its parent.
    pub fn role(&self) -> ChildRole {
        self.role
    }

    /// The node it leads to now.
    pub fn node(&self) -> Rc<Node> {
        self.node.borrow().clone()
    }

    /// The user at the upper end, if it still lives.
    pub fn parent(&self) -> Option<Rc<dyn Parent>> {
        self.parent.upgrade()
    }

    /// Permissions taken.
    pub fn perm(&self) -> Perm {
        self.perm.get()
    }

    /// Permissions left to others.
    pub fn shared(&self) -> Perm {
        self.shared.get()
    }

    /// Whether a root user fixed the permissions.
    pub(crate) fn is_root(&self) -> bool {
        self.fixed.get()
    }

    pub(crate) fn swap_node(&self, node: Rc<Node>) -> Rc<Node> {
        self.node.replace(node)
    }

    /// Leads the edge to another node: drained sections move along, permissions are checked on the new node first.
    pub fn replace_node(self: &Rc<Self>, to: &Rc<Node>) -> Result<()> {
        crate::node::move_edge(self, to)
    }
}
