//! The registry of nodes and backends, and the life of a node: found by name, collected when nobody uses it.

use crate::backend::Backend;
use crate::child::{Child, Parent};
use crate::driver::DriverDef;
use crate::node::Node;
use crate::open::{OpenContext, OpenFlags};
use crate::options::Options;
use indexmap::IndexMap;
use lockstep_util::{Result, bail, err};
use serde_json::Value;
use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use tokio::sync::Notify;

thread_local! {
    static COLLECT: Rc<Notify> = Rc::new(Notify::new());
}

/// Says that some node may have lost its last user.
pub(crate) fn request_collection() {
    let _ = COLLECT.try_with(|c| c.notify_one());
}

/// An event for the monitor: its QMP name and data.
pub type EventSink = dyn Fn(&str, Value);

/// A handle to the graph; clones lead to the same one.
#[derive(Clone)]
pub struct Graph {
    inner: Rc<Inner>,
}

/// A handle that does not keep the graph alive.
#[derive(Clone)]
pub struct WeakGraph(Weak<Inner>);

impl WeakGraph {
    /// The graph, if it still is.
    pub fn upgrade(&self) -> Option<Graph> {
        self.0.upgrade().map(|inner| Graph { inner })
    }
}

struct Inner {
    nodes: RefCell<Vec<Rc<Node>>>,
    /// Nodes that `blockdev-add` made: they live until `blockdev-del`.
    owned: RefCell<Vec<Rc<Node>>>,
    backends: RefCell<IndexMap<String, Rc<Backend>>>,
    /// Backends of the guest's devices whose names were taken back.
    nameless: RefCell<Vec<Rc<Backend>>>,
    next_auto: Cell<u32>,
    events: RefCell<Option<Rc<EventSink>>>,
    /// Nodes opened now wait for an incoming migration.
    inactive: Cell<bool>,
    collecting: tokio::sync::Mutex<()>,
    /// What other parts of the block layer keep for a graph: jobs, exports.
    extensions: RefCell<HashMap<TypeId, Rc<dyn Any>>>,
}

impl Default for Graph {
    fn default() -> Self {
        Self::new()
    }
}

impl Graph {
    /// An empty graph for this thread.
    pub fn new() -> Self {
        Self {
            inner: Rc::new(Inner {
                nodes: RefCell::default(),
                nameless: RefCell::default(),
                owned: RefCell::default(),
                backends: RefCell::default(),
                next_auto: Cell::new(0),
                events: RefCell::default(),
                inactive: Cell::new(false),
                collecting: tokio::sync::Mutex::new(()),
                extensions: RefCell::default(),
            }),
        }
    }

    /// A handle that does not keep the graph alive.
    pub fn downgrade(&self) -> WeakGraph {
        WeakGraph(Rc::downgrade(&self.inner))
    }

    /// The graph's one `T` (its jobs, its exports), made when first asked for.
    pub fn extension<T: Default + 'static>(&self) -> Rc<T> {
        let mut extensions = self.inner.extensions.borrow_mut();
        let found = extensions.entry(TypeId::of::<T>()).or_insert_with(|| Rc::new(T::default())).clone();
        match found.downcast() {
            Ok(found) => found,
            Err(_) => unreachable!("an extension is stored under its own type"),
        }
    }

    /// Where events of the block layer go.
    pub fn set_event_sink(&self, sink: Rc<EventSink>) {
        *self.inner.events.borrow_mut() = Some(sink);
    }

    /// Sends an event to the monitor.
    pub fn emit(&self, name: &str, data: Value) {
        let sink = self.inner.events.borrow().clone();
        if let Some(sink) = sink {
            sink(name, data);
        }
    }

    /// All nodes, oldest first.
    pub fn nodes(&self) -> Vec<Rc<Node>> {
        self.inner.nodes.borrow().clone()
    }

    /// The node of that name.
    pub fn find_node(&self, name: &str) -> Option<Rc<Node>> {
        self.inner.nodes.borrow().iter().find(|n| n.name() == name).cloned()
    }

    /// The backend (device) of that id.
    pub fn find_backend(&self, id: &str) -> Option<Rc<Backend>> {
        self.inner.backends.borrow().get(id).cloned()
    }

    /// All backends with an id, in the order they were made.
    pub fn backends(&self) -> Vec<Rc<Backend>> {
        self.inner.backends.borrow().values().cloned().collect()
    }

    /// Whether two handles are of one graph.
    pub fn same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.inner, &other.inner)
    }

    /// All backends with an id or a guest's device, in the order they were made.
    pub fn devices(&self) -> Vec<Rc<Backend>> {
        Backend::visible(self)
    }

    /// The backend of a device, by the device's id or path.
    pub fn backend_of_device(&self, id: &str) -> Option<Rc<Backend>> {
        let of_device = |b: &Rc<Backend>| b.guest().is_some_and(|g| g.path == id) || b.device().as_deref() == Some(id);
        self.devices().into_iter().find(of_device)
    }

    pub(crate) fn add_backend(&self, backend: &Rc<Backend>) -> Result<()> {
        let name = backend.name();
        if self.find_backend(&name).is_some() {
            bail!("Device with id '{name}' already exists");
        }
        if self.find_node(&name).is_some() {
            bail!("Device name '{name}' conflicts with an existing node name");
        }
        self.inner.backends.borrow_mut().insert(name, backend.clone());
        Ok(())
    }

    /// Takes a backend's id away (it lives on as long as a device holds it).
    pub fn remove_backend(&self, id: &str) -> Option<Rc<Backend>> {
        let removed = self.inner.backends.borrow_mut().shift_remove(id)?;
        if removed.guest().is_some() {
            // The guest's device stays, with a backend that has no name any more.
            removed.forget_name();
            self.inner.nameless.borrow_mut().push(removed.clone());
        }
        Some(removed)
    }

    /// The root node of the backend `reference`, or the node of that name (QEMU's `bdrv_lookup_bs`).
    pub fn lookup(&self, reference: &str) -> Result<Rc<Node>> {
        if let Some(backend) = self.find_backend(reference) {
            return backend.node().ok_or_else(|| err!("Device '{reference}' has no medium"));
        }
        self.find_node(reference).ok_or_else(|| err!("Cannot find device='{reference}' nor node-name='{reference}'"))
    }

    /// Keeps a node alive for the monitor (`blockdev-add`).
    pub fn own(&self, node: &Rc<Node>) {
        if !self.is_owned(node) {
            self.inner.owned.borrow_mut().push(node.clone());
        }
    }

    /// Whether the monitor keeps the node.
    pub fn is_owned(&self, node: &Rc<Node>) -> bool {
        self.inner.owned.borrow().iter().any(|n| Rc::ptr_eq(n, node))
    }

    /// Lets go of a node that the monitor kept.
    pub fn disown(&self, node: &Rc<Node>) {
        self.inner.owned.borrow_mut().retain(|n| !Rc::ptr_eq(n, node));
        request_collection();
    }

    /// Whether nodes opened now wait for an incoming migration (`-incoming`).
    pub fn set_opens_inactive(&self, inactive: bool) {
        self.inner.inactive.set(inactive);
    }

    /// See [`Graph::set_opens_inactive`].
    pub fn opens_inactive(&self) -> bool {
        self.inner.inactive.get()
    }

    /// Checks a node name that a user chose.
    fn check_name(&self, name: &str) -> Result<()> {
        let good = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
        if !good {
            bail!("Invalid node-name: '{name}'");
        }
        if self.find_backend(name).is_some() {
            bail!("node-name={name} is conflicting with a device id");
        }
        if self.find_node(name).is_some() {
            bail!("Duplicate nodes with node-name='{name}'");
        }
        if name.len() > 31 {
            bail!("Node name too long");
        }
        Ok(())
    }

    fn generate_name(&self) -> String {
        loop {
            let n = self.inner.next_auto.get();
            self.inner.next_auto.set(n.wrapping_add(1));
            let name = format!("#block{n:03}");
            if self.find_node(&name).is_none() {
                return name;
            }
        }
    }

    /// Makes a node with a driver that code has built (filters that jobs insert). `children` are attached by the caller
    /// through the node.
    pub async fn build_node(
        &self,
        def: &'static DriverDef,
        name: Option<&str>,
        mut options: Options,
        flags: OpenFlags,
    ) -> Result<Rc<Node>> {
        if let Some(name) = name {
            self.check_name(name)?;
        }
        let given = options.clone();
        let name = name.map_or_else(|| self.generate_name(), str::to_owned);
        let node = Node::new(name, def, flags, given);
        // The name is taken while the driver opens, which can last.
        self.inner.nodes.borrow_mut().push(node.clone());
        let mut opening = Opening { graph: self, node: Some(node.clone()) };
        let mut context =
            OpenContext { graph: self.clone(), node: node.clone(), options: std::mem::take(&mut options) };
        let driver = (def.open)(&mut context).await?;
        context.refuse_unknown_options()?;
        node.set_driver(driver);
        crate::perm::refresh(std::slice::from_ref(&node))?;
        opening.node = None;
        Ok(node)
    }

    /// Lets an edge of a root user go and closes what nobody uses any more.
    pub async fn release(&self, child: Rc<Child>) {
        child.detach();
        drop(child);
        self.collect().await;
    }

    /// Closes every node that nobody uses.
    pub async fn collect(&self) {
        let _one = self.inner.collecting.lock().await;
        loop {
            let dead = {
                let nodes = self.inner.nodes.borrow();
                nodes.iter().find(|n| Rc::strong_count(n) == 1).cloned()
            };
            let Some(node) = dead else { return };
            // Out of the registry first, so that nobody finds it while it says good-bye.
            self.forget(&node);
            node.close().await;
        }
    }

    fn forget(&self, node: &Rc<Node>) {
        self.inner.nodes.borrow_mut().retain(|n| !Rc::ptr_eq(n, node));
    }

    /// Collects whenever a node may have lost its last user; a program spawns this once on the graph's thread.
    pub async fn run_collector(self) {
        let signal = COLLECT.with(Rc::clone);
        let weak = self.downgrade();
        drop(self);
        loop {
            signal.notified().await;
            match weak.upgrade() {
                Some(graph) => graph.collect().await,
                None => return,
            }
        }
    }

    /// Flushes every node that is open for writing (`flush_all`); the first error is returned, all are tried.
    pub async fn flush_all(&self) -> std::io::Result<()> {
        let mut result = Ok(());
        for node in self.nodes() {
            if node.parent_edges().iter().any(|e| e.is_root()) || node.parent_edges().is_empty() {
                let flushed = node.flush().await;
                if result.is_ok() {
                    result = flushed;
                }
            }
        }
        result
    }

    /// The machine goes on: requests that failed are tried again, so what they came to is forgotten.
    pub fn reset_io_status(&self) {
        for backend in self.backends() {
            backend.update_guest(|g| g.io_status = g.io_status.map(|_| crate::backend::IoStatus::Ok));
        }
    }

    /// Ends everything: devices lose their media, all nodes are closed.
    pub async fn close_all(&self) {
        for backend in self.backends() {
            backend.remove_medium();
        }
        self.inner.backends.borrow_mut().clear();
        self.inner.owned.borrow_mut().clear();
        self.collect().await;
        // Whoever still holds a node gets ENOMEDIUM from now on.
        for node in crate::perm::topological(&self.nodes()) {
            node.close().await;
            self.forget(&node);
        }
    }

    /// Leads all users of `from` to `to` (users below `to` excepted), as inserting or removing a filter does.
    pub fn replace_node(&self, from: &Rc<Node>, to: &Rc<Node>) -> Result<()> {
        let mut moved: Vec<Rc<Child>> = Vec::new();
        for edge in from.parent_edges() {
            let below_new = edge.parent().is_some_and(|p: Rc<dyn Parent>| p.as_node().is_some_and(|n| to.reaches(n)));
            if below_new {
                continue;
            }
            if let Err(e) = edge.replace_node(to) {
                for edge in moved {
                    if let Err(again) = edge.replace_node(from) {
                        tracing::warn!("restoring an edge to node '{}': {again}", from.name());
                    }
                }
                return Err(e);
            }
            moved.push(edge);
        }
        Ok(())
    }
}

/// Removes a half-open node when opening fails or is dropped.
struct Opening<'a> {
    graph: &'a Graph,
    node: Option<Rc<Node>>,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            node.abandon();
            self.graph.forget(&node);
            request_collection();
        }
    }
}
