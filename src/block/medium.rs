//! Trays and media: what a user does with a CD-ROM drive, with QEMU's checks and error texts.

use std::rc::Rc;

use lockstep_util::{Error, Result, bail};

use crate::backend::{Backend, MediumChange};
use crate::graph::Graph;
use crate::node::{BlockOp, Node};
use crate::open::OpenFlags;
use crate::options::Options;

/// Which drive is meant: by the name of its backend, or by its device's id or path.
#[derive(Clone, Debug)]
pub enum DriveName {
    /// A backend.
    Backend(String),
    /// A device.
    Device(String),
}

impl DriveName {
    /// The name that was given, of the two ways to give one.
    ///
    /// # Errors
    /// `Need exactly one of 'device' and 'id'`.
    pub fn of(device: Option<String>, id: Option<String>) -> Result<Self> {
        match (device, id) {
            (Some(device), None) => Ok(Self::Backend(device)),
            (None, Some(id)) => Ok(Self::Device(id)),
            _ => bail!("Need exactly one of 'device' and 'id'"),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Backend(name) | Self::Device(name) => name,
        }
    }

    fn find(&self, graph: &Graph) -> Result<Rc<Backend>> {
        let found = match self {
            Self::Backend(name) => graph.find_backend(name),
            Self::Device(id) => graph.backend_of_device(id),
        };
        found.ok_or_else(|| Error::device_not_found(self.as_str()))
    }
}

/// Whether the tray is open now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tray {
    Open,
    /// The guest holds it locked, and was asked to let go.
    Locked,
    /// There is none.
    Missing,
}

fn tray(backend: &Backend) -> Option<bool> {
    backend.guest().and_then(|g| g.tray_open)
}

/// Moves a tray, tells the device and whoever listens to events.
fn move_tray(graph: &Graph, backend: &Backend, open: bool) {
    backend.tell_device(if open { MediumChange::TrayOpened } else { MediumChange::TrayClosed });
    backend.update_guest(|g| g.tray_open = g.tray_open.map(|_| open));
    tray_moved(graph, backend, open);
}

/// Emits `DEVICE_TRAY_MOVED`.
pub fn tray_moved(graph: &Graph, backend: &Backend, open: bool) {
    let id = backend.guest().map_or_else(String::new, |g| g.path);
    graph.emit("DEVICE_TRAY_MOVED", serde_json::json!({"device": backend.name(), "id": id, "tray-open": open}));
}

fn check_removable(backend: &Backend, name: &DriveName) -> Result<()> {
    if backend.guest().is_none_or(|g| !g.changeable) {
        bail!("Device '{}' is not removable", name.as_str());
    }
    Ok(())
}

fn open(graph: &Graph, name: &DriveName, force: bool) -> Result<Tray> {
    let backend = name.find(graph)?;
    check_removable(&backend, name)?;
    match tray(&backend) {
        None => return Ok(Tray::Missing),
        Some(true) => return Ok(Tray::Open),
        Some(false) => {}
    }
    let locked = backend.guest().is_some_and(|g| g.locked);
    if locked {
        backend.tell_device(MediumChange::EjectRequested { force });
    }
    if locked && !force {
        return Ok(Tray::Locked);
    }
    move_tray(graph, &backend, true);
    Ok(Tray::Open)
}

fn must_open(graph: &Graph, name: &DriveName, force: bool) -> Result<()> {
    match open(graph, name, force)? {
        Tray::Open | Tray::Missing => Ok(()),
        Tray::Locked => bail!(
            "Device '{}' is locked and force was not specified, wait for tray to open and try again",
            name.as_str()
        ),
    }
}

/// `blockdev-open-tray`: a locked tray is asked for, which is no error.
///
/// # Errors
/// When there is no such device, or its medium cannot be changed.
pub fn open_tray(graph: &Graph, name: &DriveName, force: bool) -> Result<()> {
    open(graph, name, force).map(|_| ())
}

/// `blockdev-close-tray`.
///
/// # Errors
/// When there is no such device, or its medium cannot be changed.
pub fn close_tray(graph: &Graph, name: &DriveName) -> Result<()> {
    let backend = name.find(graph)?;
    check_removable(&backend, name)?;
    if tray(&backend) == Some(true) {
        move_tray(graph, &backend, false);
    }
    Ok(())
}

/// `blockdev-remove-medium`.
///
/// # Errors
/// When the tray is not open, or the medium is in use.
pub async fn remove(graph: &Graph, name: &DriveName) -> Result<()> {
    let backend = name.find(graph)?;
    if backend.guest().is_some() {
        check_removable(&backend, name)?;
        if tray(&backend) == Some(false) {
            bail!("Tray of device '{}' is not open", name.as_str());
        }
    }
    let Some(node) = backend.node() else { return Ok(()) };
    node.check_op(BlockOp::DriveDel)?;
    let quiet = node.drain().await;
    backend.remove_medium();
    drop((quiet, node));
    graph.collect().await;
    Ok(())
}

/// `blockdev-insert-medium`.
///
/// # Errors
/// When the node is in use, the tray is not open, or there is a medium in it.
pub fn insert(graph: &Graph, name: &DriveName, node_name: &str) -> Result<()> {
    let backend = name.find(graph)?;
    let node = graph.find_node(node_name).ok_or_else(|| Error::new(format!("Node '{node_name}' not found")))?;
    if node.device_name().is_some() {
        bail!("Node '{node_name}' is already in use");
    }
    insert_node(&backend, name, &node)
}

fn insert_node(backend: &Backend, name: &DriveName, node: &Rc<Node>) -> Result<()> {
    if backend.guest().is_some() {
        check_removable(backend, name)?;
        if tray(backend) == Some(false) {
            bail!("Tray of device '{}' is not open", name.as_str());
        }
    }
    if backend.node().is_some() {
        bail!("There already is a medium in device '{}'", name.as_str());
    }
    backend.insert(node)
}

/// `eject`.
///
/// # Errors
/// When the tray does not open, or the medium is in use.
pub async fn eject(graph: &Graph, name: &DriveName, force: bool) -> Result<()> {
    must_open(graph, name, force)?;
    remove(graph, name).await
}

/// `blockdev-change-medium`: opens the new image first, so that a wrong one changes nothing.
///
/// # Errors
/// When the image cannot be opened or the medium not be changed.
pub async fn change(
    graph: &Graph,
    name: &DriveName,
    filename: &str,
    format: Option<&str>,
    force: bool,
    read_only: Option<bool>,
) -> Result<()> {
    let backend = name.find(graph)?;
    let retained = backend.node().is_none_or(|node| node.is_read_only());
    let mut options = Options::default();
    if let Some(format) = format {
        options.set("driver", format);
    }
    let flags = OpenFlags { read_only: read_only.unwrap_or(retained), ..OpenFlags::default() };
    let node = graph.open(Some(filename), options, flags).await?;
    let exchange = async {
        must_open(graph, name, force)?;
        remove(graph, name).await?;
        insert_node(&backend, name, &node)
    };
    let exchanged = exchange.await;
    drop(node);
    graph.collect().await;
    exchanged?;
    close_tray(graph, name)
}
