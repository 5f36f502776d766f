//! Types of devices and how a device of one is made.

use std::sync::Arc;

use lockstep_util::{Result, bail, err};

use super::{Board, BusNode, DeviceNode, Property, PropertyInput, PropertySet, PropertyValue, ResetKind, ResetPhase};

/// What every device can do.
pub trait Device: Send + Sync {
    /// Puts it in the state after power on or a reset. The guest is stopped.
    fn reset(&self, kind: ResetKind);

    /// The present value of a property that changes by itself or is made up at creation.
    fn property(&self, name: &str) -> Option<PropertyValue> {
        let _ = name;
        None
    }

    /// Changes a property while the device exists (`qom-set`); `None` when that is not possible.
    fn set_property(&self, name: &str, value: &PropertyValue) -> Option<Result<()>> {
        let _ = (name, value);
        None
    }

    /// The buses that it provides.
    fn buses(&self) -> Vec<Arc<BusNode>> {
        vec![]
    }

    /// Lines that `info qtree` shows after the properties (`mmio ...`, `class ...`), without indentation.
    fn qtree_lines(&self) -> Vec<String> {
        vec![]
    }

    /// What a display shows.
    fn screen(&self) -> Option<crate::display::Image> {
        None
    }

    /// Prepares for being taken away: ports and memory unmapped, backends let go, sections unregistered.
    ///
    /// # Errors
    /// When it cannot be unplugged while the machine runs.
    fn unplug(&self) -> Result<()> {
        Err(err!("Device does not support hotplugging"))
    }
}

/// The headings of `-device help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Category {
    Bridge,
    Usb,
    Storage,
    Network,
    Input,
    Display,
    Sound,
    Misc,
    Cpu,
    Watchdog,
}

impl Category {
    /// The words in `-device help`.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Bridge => "Controller/Bridge/Hub",
            Self::Usb => "USB",
            Self::Storage => "Storage",
            Self::Network => "Network",
            Self::Input => "Input",
            Self::Display => "Display",
            Self::Sound => "Sound",
            Self::Misc => "Misc",
            Self::Cpu => "CPU",
            Self::Watchdog => "Watchdog",
        }
    }
}

/// A type of device.
pub struct DeviceType {
    /// Its name.
    pub name: &'static str,
    /// Another name that `-device` takes (`e1000-82540em`).
    pub alias: Option<&'static str>,
    /// The type's ancestors up to `device`, nearest first (`pci-device`).
    pub parents: &'static [&'static str],
    /// The kind of bus that it plugs into.
    pub bus: &'static str,
    /// The heading it is listed under.
    pub category: Category,
    /// A description; empty for none.
    pub description: &'static str,
    /// Its properties, its own first, then those of its ancestors.
    pub properties: &'static [&'static [Property]],
    /// Makes one for a user; `None` when only the machine makes them.
    pub create: Option<fn(&mut CreateContext<'_>) -> Result<Arc<dyn Device>>>,
}

impl DeviceType {
    /// All properties, in `info qtree`'s order.
    pub fn properties(&self) -> impl Iterator<Item = &'static Property> + use<> {
        self.properties.iter().flat_map(|p| p.iter())
    }
}

/// What a device is made of.
pub struct CreateContext<'a> {
    /// The board.
    pub board: &'a Board,
    /// The bus it goes on.
    pub bus: &'a Arc<BusNode>,
    /// The id that the user gave it.
    pub id: Option<&'a str>,
    /// Its place in the tree of objects.
    pub path: &'a str,
    /// Whether a user asked for it, or the machine comes with it.
    pub user_made: bool,
    /// Its properties. What the device settles (an address, a MAC) it writes back here.
    pub properties: &'a mut PropertySet,
}

impl CreateContext<'_> {
    /// The bus, as the kind of object that the device needs.
    ///
    /// # Errors
    /// When it is another kind.
    pub fn bus_object<T: std::any::Any + Send + Sync>(&self) -> Result<Arc<T>> {
        self.bus.object().ok_or_else(|| err!("Bus '{}' is of another kind", self.bus.name))
    }

    /// The id for error texts, as QEMU prints one that is missing.
    pub fn id_text(&self) -> &str {
        self.id.unwrap_or("(null)")
    }
}

/// Where a device goes in the tree of objects.
#[derive(Clone, Debug)]
pub enum QomParent {
    /// `/machine/peripheral/ID`, or `/machine/peripheral-anon/device[N]` without an id.
    User,
    /// `/machine/unattached/device[N]`.
    Unattached,
    /// A path of its own (`/machine/unattached/device[3]/ide`).
    At(String),
}

/// The types of devices that this program has.
#[derive(Clone, Copy)]
pub struct TypeTable(pub &'static [&'static [&'static DeviceType]]);

impl TypeTable {
    /// All types.
    pub fn iter(&self) -> impl Iterator<Item = &'static DeviceType> + use<> {
        self.0.iter().flat_map(|t| t.iter().copied())
    }

    /// The type of a name or alias.
    pub fn find(&self, name: &str) -> Option<&'static DeviceType> {
        self.iter().find(|t| t.name == name || t.alias == Some(name))
    }
}

/// Adds a device that exists already to the tree and to what is reset.
pub(crate) fn plug_device(
    board: &Board,
    kind: &'static DeviceType,
    id: Option<&str>,
    path: String,
    bus: &Arc<BusNode>,
    device: Arc<dyn Device>,
    properties: PropertySet,
    user_made: bool,
) -> Arc<DeviceNode> {
    let node =
        DeviceNode::new(kind, id.map(Into::into), path, device.clone(), Arc::downgrade(bus), user_made, properties);
    board.tree.insert(&node);
    let reset = board.resets.register(ResetPhase::Devices, move |kind| device.reset(kind));
    *node.reset.lock() = Some(reset);
    node
}

/// Makes a device and plugs it in.
///
/// `bus` is the name or path of a bus; without one the first bus of the type's kind is used. An `id` must be free.
///
/// # Errors
/// An unknown property, a value that does not fit, no such bus, and whatever the device finds wrong.
pub fn create_device(
    board: &Board,
    kind: &'static DeviceType,
    id: Option<&str>,
    bus: Option<&str>,
    options: &[(String, PropertyInput)],
    place: QomParent,
) -> Result<Arc<DeviceNode>> {
    let Some(create) = kind.create else {
        bail!("Parameter 'driver' expects a pluggable device type");
    };
    let bus = find_bus(board, kind, bus)?;
    if let Some(id) = id
        && board.tree.find(id).is_some()
    {
        bail!("Duplicate device ID '{id}'");
    }
    let globals = board.globals.of(kind.name, kind.parents);
    let mut properties = PropertySet::resolve(kind.name, kind.properties(), &globals, options)?;
    let user_made = matches!(place, QomParent::User);
    let path = match (place, id) {
        (QomParent::User, Some(id)) => format!("/machine/peripheral/{id}"),
        (QomParent::User, None) => board.tree.next_anonymous(),
        (QomParent::Unattached, _) => board.tree.next_unattached(),
        (QomParent::At(path), _) => path,
    };
    let mut context = CreateContext { board, bus: &bus, id, path: &path, user_made, properties: &mut properties };
    let device = create(&mut context)?;
    Ok(plug_device(board, kind, id, path, &bus, device, properties, user_made))
}

fn find_bus(board: &Board, kind: &DeviceType, name: Option<&str>) -> Result<Arc<BusNode>> {
    match name {
        None => board
            .tree
            .find_bus(|b| b.kind == kind.bus)
            .ok_or_else(|| err!("No '{}' bus found for device '{}'", kind.bus, kind.name)),
        Some(name) => {
            let last = name.rsplit('/').next().unwrap_or(name);
            let bus = board.tree.find_bus(|b| b.name == last).ok_or_else(|| err!("Bus '{name}' not found"))?;
            if bus.kind != kind.bus {
                bail!("Device '{}' can't go on {} bus", kind.name, bus.type_name);
            }
            Ok(bus)
        }
    }
}

impl DeviceNode {
    /// Unplugs the device.
    ///
    /// # Errors
    /// When it cannot be unplugged.
    pub fn unplug(self: &Arc<Self>, board: &Board) -> Result<()> {
        self.device.unplug()?;
        if let Some(reset) = self.reset.lock().take() {
            board.resets.unregister(reset);
        }
        board.tree.remove(self);
        Ok(())
    }
}
