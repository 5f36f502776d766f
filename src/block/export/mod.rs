//! Block exports: nodes that others use through the NBD server.

pub mod server;
mod session;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use lockstep_util::{Error, Result, bail};
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::child::Perm;
use crate::graph::Graph;
use crate::nbd::server_handshake::{Directory, ExportInfo};
use crate::nbd::wire::TransmissionFlags;
use crate::node::Node;
use server::NbdServer;
use session::Session;

/// What an NBD export is made with.
#[derive(Clone, Debug, Default)]
pub struct NbdExportOptions {
    /// Id of the export.
    pub id: String,
    /// Node or device.
    pub node: String,
    /// Name for clients; the node's if empty.
    pub name: Option<String>,
    /// Text for clients.
    pub description: Option<String>,
    /// Clients may write.
    pub writable: bool,
}

/// How an export with clients is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RemoveMode {
    /// Not at all.
    #[default]
    Safe,
    /// Clients are disconnected.
    Hard,
}

impl RemoveMode {
    /// Names as arguments have them.
    pub const NAMES: &'static [(&'static str, Self)] = &[("safe", Self::Safe), ("hard", Self::Hard)];
}

/// One export.
pub struct NbdExport {
    id: String,
    name: String,
    description: Option<String>,
    writable: bool,
    backend: Rc<Backend>,
    sessions: RefCell<Vec<Rc<Session>>>,
    shutting_down: Cell<bool>,
    cut_off: Cell<bool>,
}

impl NbdExport {
    /// The backend that clients' requests go through.
    pub(crate) fn backend(&self) -> &Rc<Backend> {
        &self.backend
    }

    /// Whether clients may write.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    fn node(&self) -> Option<Rc<Node>> {
        self.backend.node()
    }

    fn info(&self) -> ExportInfo {
        let mut flags = TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::CAN_MULTI_CONN
            | TransmissionFlags::SEND_CACHE;
        if self.writable {
            flags |=
                TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_WRITE_ZEROES | TransmissionFlags::SEND_FAST_ZERO;
        } else {
            flags |= TransmissionFlags::READ_ONLY;
        }
        let min_block = self.node().and_then(|n| n.try_driver().map(|d| d.limits().request_alignment)).unwrap_or(1);
        ExportInfo {
            size: self.backend.len().unwrap_or(0),
            flags,
            description: self.description.clone(),
            min_block: min_block.min(65536),
            preferred_block: 4096.max(min_block),
        }
    }

    /// Disconnects the clients; requests that have not reached the node find no medium any more.
    fn cut(&self) {
        self.cut_off.set(true);
        for session in self.sessions.borrow().iter() {
            session.kill();
        }
        self.backend.remove_medium();
    }

    /// Disconnects the clients, lets what they have begun end, gives the node back.
    async fn close(&self) {
        self.shutting_down.set(true);
        self.cut();
        loop {
            let next = self.sessions.borrow().first().cloned();
            match next {
                Some(session) => session.ended().await,
                None => break,
            }
        }
    }
}

/// The exports of a graph and its NBD server.
#[derive(Default)]
pub struct Exports {
    list: RefCell<Vec<Rc<NbdExport>>>,
    server: RefCell<Option<Rc<NbdServer>>>,
}

impl Exports {
    /// The exports of `graph`.
    pub fn of(graph: &Graph) -> Rc<Self> {
        graph.extension()
    }

    fn server(&self) -> Result<Rc<NbdServer>> {
        self.server.borrow().clone().ok_or_else(|| Error::new("NBD server not running"))
    }

    /// `nbd-server-start`
    pub async fn server_start(&self, graph: &Graph, options: server::ServerOptions) -> Result<()> {
        if self.server.borrow().is_some() {
            bail!("NBD server already running");
        }
        let server = NbdServer::start(graph, options).await?;
        *self.server.borrow_mut() = Some(server);
        Ok(())
    }

    /// `nbd-server-stop`: all exports go, clients are disconnected.
    pub async fn server_stop(&self, graph: &Graph) -> Result<()> {
        let server = self.server()?;
        server.stop_listening();
        let exports = self.list.borrow().clone();
        for export in exports {
            self.delete(graph, &export).await;
        }
        server.close_clients();
        *self.server.borrow_mut() = None;
        Ok(())
    }

    /// Where the server listens, for tools that let the kernel choose the port.
    pub fn server_address(&self) -> Option<String> {
        self.server.borrow().as_ref().and_then(|s| s.local_address())
    }

    /// `nbd-server-add`
    pub async fn server_add(&self, graph: &Graph, mut options: NbdExportOptions) -> Result<()> {
        let node = graph.lookup(&options.node)?;
        if node.is_read_only() {
            options.writable = false;
        }
        let name = options.name.get_or_insert_with(|| options.node.clone());
        options.id = name.clone();
        self.add(graph, options).await
    }

    /// `block-export-add` for the type `nbd`
    pub async fn add(&self, graph: &Graph, options: NbdExportOptions) -> Result<()> {
        let id = &options.id;
        let well_formed = id.starts_with(|c: char| c.is_ascii_alphabetic())
            && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
        if !well_formed {
            bail!("Invalid block export id");
        }
        if self.find(id).is_some() {
            bail!("Block export id '{id}' is already in use");
        }
        let node = graph.lookup(&options.node)?;
        if options.writable && node.is_read_only() {
            bail!("Cannot export read-only node as writable");
        }
        self.server()?;
        let name = options.name.clone().unwrap_or_else(|| options.node.clone());
        if name.len() > crate::nbd::wire::MAX_STRING {
            bail!("export name '{name}' too long");
        }
        if options.description.as_ref().is_some_and(|d| d.len() > crate::nbd::wire::MAX_STRING) {
            bail!("description '{}' too long", options.description.as_deref().unwrap_or(""));
        }
        if self.by_name(&name).is_some() {
            bail!("NBD server already has export named '{name}'");
        }
        // A copy that arrives before a migration goes to the image that the migration will run on.
        node.activate().await?;
        let backend = Backend::new(graph, None)?;
        let write = if options.writable { Perm::WRITE } else { Perm::empty() };
        backend.set_perms(Perm::CONSISTENT_READ | write, Perm::all())?;
        backend.insert(&node)?;
        let export = NbdExport {
            id: options.id,
            name,
            description: options.description,
            writable: options.writable,
            backend,
            sessions: RefCell::default(),
            shutting_down: Cell::new(false),
            cut_off: Cell::new(false),
        };
        self.list.borrow_mut().push(Rc::new(export));
        Ok(())
    }

    fn find(&self, id: &str) -> Option<Rc<NbdExport>> {
        self.list.borrow().iter().find(|e| e.id == id).cloned()
    }

    fn by_name(&self, name: &str) -> Option<Rc<NbdExport>> {
        self.list.borrow().iter().find(|e| e.name == name && !e.shutting_down.get() && !e.cut_off.get()).cloned()
    }

    /// `block-export-del`
    pub async fn remove(&self, graph: &Graph, id: &str, mode: RemoveMode) -> Result<()> {
        let export = self.find(id).ok_or_else(|| Error::new(format!("Export '{id}' is not found")))?;
        if export.shutting_down.get() {
            bail!("Export '{id}' is already shutting down");
        }
        if mode == RemoveMode::Safe && !export.sessions.borrow().is_empty() {
            return Err(
                Error::new(format!("export '{id}' still in use")).hint("Use mode='hard' to force client disconnect\n")
            );
        }
        self.delete(graph, &export).await;
        Ok(())
    }

    /// `nbd-server-remove`
    pub async fn server_remove(&self, graph: &Graph, name: &str, mode: RemoveMode) -> Result<()> {
        let export = self.by_name(name).ok_or_else(|| Error::new(format!("Export '{name}' is not found")))?;
        let id = export.id.clone();
        self.remove(graph, &id, mode).await
    }

    async fn delete(&self, graph: &Graph, export: &Rc<NbdExport>) {
        if export.shutting_down.get() {
            return;
        }
        export.close().await;
        self.list.borrow_mut().retain(|e| !Rc::ptr_eq(e, export));
        graph.emit("BLOCK_EXPORT_DELETED", json!({"id": export.id}));
    }

    /// `query-block-exports`
    pub fn query(&self) -> Value {
        self.list
            .borrow()
            .iter()
            .map(|e| {
                json!({
                    "id": e.id, "type": "nbd", "shutting-down": e.shutting_down.get(),
                    "node-name": e.node().map(|n| n.name().to_owned()).unwrap_or_default(),
                })
            })
            .collect()
    }

    fn writers(&self, node: &Rc<Node>) -> Vec<Rc<NbdExport>> {
        let list = self.list.borrow();
        list.iter().filter(|e| e.writable && e.node().is_some_and(|n| n.reaches(node))).cloned().collect()
    }

    /// Cuts everybody off who could write through an export of this node, without waiting: what has not reached the node
    /// by now does not reach it. The exports stay until they are removed.
    pub fn cut_writers(&self, node: &Rc<Node>) {
        for export in self.writers(node) {
            export.cut();
        }
    }

    /// Takes writing away from everybody who has it through an export of this node: clients are disconnected, what they
    /// had begun has ended, the exports are gone.
    pub async fn revoke_writers(&self, graph: &Graph, node: &Rc<Node>) {
        // Those that were cut off already have no node any more, but may have requests under way.
        let cut: Vec<_> = self.list.borrow().iter().filter(|e| e.cut_off.get()).cloned().collect();
        for export in self.writers(node).into_iter().chain(cut) {
            self.delete(graph, &export).await;
        }
    }
}

impl Directory for Exports {
    fn names(&self) -> Vec<String> {
        self.list
            .borrow()
            .iter()
            .filter(|e| !e.shutting_down.get() && !e.cut_off.get())
            .map(|e| e.name.clone())
            .collect()
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        self.by_name(name).map(|e| e.info())
    }
}
