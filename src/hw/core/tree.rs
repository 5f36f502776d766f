//! Devices and buses as users see them: `info qtree`, `qom-list`, ids.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use super::{Device, DeviceType, PropertySet, PropertyValue, ResetId};

/// A bus that devices are plugged into.
pub struct BusNode {
    /// Its name (`pci.0`).
    pub name: String,
    /// Its kind, as [`DeviceType::bus`] names it.
    pub kind: &'static str,
    /// The type in `info qtree` and QOM where it differs from the kind.
    pub type_name: &'static str,
    object: Arc<dyn Any + Send + Sync>,
    children: Mutex<Vec<Arc<DeviceNode>>>,
    parent: Mutex<Weak<DeviceNode>>,
}

impl BusNode {
    /// A bus without devices. `object` is what devices of this kind of bus look for.
    pub fn new(name: impl Into<String>, kind: &'static str, object: Arc<dyn Any + Send + Sync>) -> Arc<Self> {
        let (children, parent) = (Mutex::default(), Mutex::default());
        Arc::new(Self { name: name.into(), kind, type_name: kind, object, children, parent })
    }

    /// The bus itself, if it is a `T`.
    pub fn object<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.object.clone().downcast().ok()
    }

    /// The devices on it, in the order in which they were plugged.
    pub fn children(&self) -> Vec<Arc<DeviceNode>> {
        self.children.lock().clone()
    }

    /// The device that the bus is part of; the main system bus has none.
    pub fn parent(&self) -> Option<Arc<DeviceNode>> {
        self.parent.lock().upgrade()
    }
}

/// A device.
pub struct DeviceNode {
    /// Its type.
    pub kind: &'static DeviceType,
    /// The id a user gave it.
    pub id: Option<String>,
    /// Where it is in the tree of objects (`/machine/peripheral/e0`).
    pub path: String,
    /// The device.
    pub device: Arc<dyn Device>,
    /// The bus it is on.
    pub bus: Weak<BusNode>,
    /// Whether a user made it, so that a user may unplug it.
    pub user_made: bool,
    properties: Mutex<PropertySet>,
    buses: Mutex<Vec<Arc<BusNode>>>,
    pub(super) reset: Mutex<Option<ResetId>>,
}

impl DeviceNode {
    pub(super) fn new(
        kind: &'static DeviceType,
        id: Option<String>,
        path: String,
        device: Arc<dyn Device>,
        bus: Weak<BusNode>,
        user_made: bool,
        properties: PropertySet,
    ) -> Arc<Self> {
        let buses = device.buses();
        let node = Arc::new(Self {
            kind,
            id,
            path,
            device,
            bus,
            user_made,
            properties: Mutex::new(properties),
            buses: Mutex::new(buses),
            reset: Mutex::default(),
        });
        node.buses.lock().iter().for_each(|b| *b.parent.lock() = Arc::downgrade(&node));
        node
    }

    /// The buses it provides.
    pub fn buses(&self) -> Vec<Arc<BusNode>> {
        self.buses.lock().clone()
    }

    /// The value of a property: the device's own word first, else what it was made with.
    pub fn property(&self, name: &str) -> Option<PropertyValue> {
        self.device.property(name).or_else(|| self.properties.lock().get(name).cloned())
    }

    /// Its properties with their values, in the order of the tables.
    pub fn properties(&self) -> Vec<(&'static super::Property, Option<PropertyValue>)> {
        self.kind.properties().map(|p| (p, self.property(p.name))).collect()
    }
}

struct Inner {
    root: Arc<BusNode>,
    by_path: HashMap<String, Arc<DeviceNode>>,
    unattached: u32,
    anonymous: u32,
}

/// All devices and buses. Clones share the tree.
#[derive(Clone)]
pub struct DeviceTree {
    inner: Arc<Mutex<Inner>>,
}

impl Default for DeviceTree {
    fn default() -> Self {
        let root = BusNode::new("main-system-bus", "System", Arc::new(()));
        Self { inner: Arc::new(Mutex::new(Inner { root, by_path: HashMap::new(), unattached: 0, anonymous: 0 })) }
    }
}

impl DeviceTree {
    /// The main system bus.
    pub fn root(&self) -> Arc<BusNode> {
        self.inner.lock().root.clone()
    }

    /// The path of the next device without a place of its own: `/machine/unattached/device[N]`.
    pub fn next_unattached(&self) -> String {
        let mut inner = self.inner.lock();
        let n = inner.unattached;
        inner.unattached += 1;
        format!("/machine/unattached/device[{n}]")
    }

    /// The path of the next device that a user made without an id.
    pub fn next_anonymous(&self) -> String {
        let mut inner = self.inner.lock();
        let n = inner.anonymous;
        inner.anonymous += 1;
        format!("/machine/peripheral-anon/device[{n}]")
    }

    pub(super) fn insert(&self, node: &Arc<DeviceNode>) {
        self.inner.lock().by_path.insert(node.path.clone(), node.clone());
        if let Some(bus) = node.bus.upgrade() {
            bus.children.lock().push(node.clone());
        }
    }

    /// Takes a device out. Its buses go with it.
    pub fn remove(&self, node: &Arc<DeviceNode>) {
        self.inner.lock().by_path.remove(&node.path);
        if let Some(bus) = node.bus.upgrade() {
            bus.children.lock().retain(|n| !Arc::ptr_eq(n, node));
        }
    }

    /// The device of a path.
    pub fn find_path(&self, path: &str) -> Option<Arc<DeviceNode>> {
        self.inner.lock().by_path.get(path).cloned()
    }

    /// The device that a user calls by an id or a path.
    pub fn find(&self, id: &str) -> Option<Arc<DeviceNode>> {
        let path = if id.starts_with('/') { id.to_owned() } else { format!("/machine/peripheral/{id}") };
        self.find_path(&path)
    }

    /// All devices, in the order of their paths.
    pub fn devices(&self) -> Vec<Arc<DeviceNode>> {
        let mut nodes: Vec<_> = self.inner.lock().by_path.values().cloned().collect();
        nodes.sort_by(|a, b| a.path.cmp(&b.path));
        nodes
    }

    /// All buses, each before the buses of its devices.
    pub fn buses(&self) -> Vec<Arc<BusNode>> {
        let mut found = vec![self.root()];
        let mut at = 0;
        while at < found.len() {
            let below: Vec<_> = found[at].children().iter().flat_map(|d| d.buses()).collect();
            found.extend(below);
            at += 1;
        }
        found
    }

    /// The first bus of a kind, or the bus of a name or path.
    pub fn find_bus(&self, matches: impl Fn(&BusNode) -> bool) -> Option<Arc<BusNode>> {
        self.buses().into_iter().find(|b| matches(b))
    }
}
