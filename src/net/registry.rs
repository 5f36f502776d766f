//! All networks of a machine: backends, cards, filters and compare objects. Lives on the main context.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indexmap::IndexMap;
use lockstep_chardev::ChardevRegistry;
use lockstep_event::Clocks;
use lockstep_qapi::schema::{Netdev as NetdevOptions, NetdevBranch, ObjectOptions, ObjectOptionsBranch, RxFilterInfo};
use lockstep_util::{Error, Result, bail, err};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::backend::{HostSide, dgram, stream, tap};
use crate::colo::{CheckpointNotifier, ColoCompare, Environment, IoThreadRef};
use crate::compare::IdentityGate;
use crate::filter::Action;
use crate::netdev::{Netdev, World};
use crate::nic::{MacAddress, NetPeer, NicInfo, NicShared, format_mac};
use crate::objects::{Filter, FilterEnvironment};

/// The first hardware address that is given to a card without one.
const FIRST_MAC: MacAddress = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// The networks. Cheap to clone; every clone is the same registry.
#[derive(Clone)]
pub struct NetRegistry {
    pub(crate) inner: Rc<Inner>,
}

pub(crate) struct Inner {
    pub chardevs: ChardevRegistry,
    pub clocks: Clocks,
    pub world: Arc<World>,
    pub netdevs: RefCell<IndexMap<String, Backend>>,
    pub nics: RefCell<Vec<Arc<NicShared>>>,
    pub filters: RefCell<IndexMap<String, Rc<Filter>>>,
    pub compares: RefCell<IndexMap<String, Rc<ColoCompare>>>,
    pub gate: Arc<IdentityGate>,
    pub notifier: Arc<RwLock<Option<CheckpointNotifier>>>,
}

/// A backend and what keeps it going.
pub(crate) struct Backend {
    pub shared: Arc<Netdev>,
    pub kind: &'static str,
    pub taken: bool,
    _host: Option<HostSide>,
}

/// Why a card cannot have a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerError {
    /// There is none of that name.
    NotFound,
    /// Another card has it.
    InUse,
}

impl NetRegistry {
    /// A machine without networks, which does not run yet.
    pub fn new(chardevs: ChardevRegistry, clocks: Clocks) -> Self {
        let gate = Arc::<IdentityGate>::default();
        let world = World { running: watch::Sender::new(false), secondary: AtomicBool::new(false), gate: gate.clone() };
        Self {
            inner: Rc::new(Inner {
                chardevs,
                clocks,
                world: Arc::new(world),
                netdevs: RefCell::default(),
                nics: RefCell::default(),
                filters: RefCell::default(),
                compares: RefCell::default(),
                gate,
                notifier: Arc::default(),
            }),
        }
    }

    /// The machine runs, or stops: cards get frames only while it runs, and what came meanwhile when it goes on.
    pub fn set_running(&self, running: bool) {
        self.inner.world.running.send_replace(running);
        if running {
            let all: Vec<_> = self.inner.netdevs.borrow().values().map(|b| b.shared.clone()).collect();
            all.iter().for_each(|netdev| netdev.flush_queued());
        }
    }

    /// `netdev_add` and `-netdev`.
    ///
    /// # Errors
    /// `Duplicate ID '...'`, and those of the kind.
    pub async fn add_netdev(&self, options: &NetdevOptions) -> Result<()> {
        let id = &options.id;
        lockstep_qapi::opts::check_id(id)?;
        if self.inner.netdevs.borrow().contains_key(id) {
            bail!("Duplicate ID '{id}'");
        }
        let netdev = Netdev::new(id, self.inner.world.clone());
        let host = match &options.branch {
            NetdevBranch::Tap(o) => tap::make(&netdev, o).await?,
            NetdevBranch::Bridge(o) => tap::make_bridge(&netdev, o.br.as_deref(), o.helper.as_deref()).await?,
            NetdevBranch::Stream(o) => stream::make(&netdev, o).await?,
            NetdevBranch::Dgram(o) => dgram::make(&netdev, o).await?,
            NetdevBranch::Socket(o) => {
                let given = [&o.fd, &o.listen, &o.connect, &o.mcast, &o.udp].iter().filter(|x| x.is_some()).count();
                if given != 1 {
                    bail!("exactly one of listen=, connect=, mcast= or udp= is required");
                }
                match (&o.listen, &o.connect, &o.udp, &o.localaddr) {
                    (Some(address), ..) => stream::make_legacy(&netdev, address, true).await?,
                    (_, Some(address), ..) => stream::make_legacy(&netdev, address, false).await?,
                    (_, _, Some(remote), Some(local)) => dgram::make_legacy(&netdev, remote, local).await?,
                    (_, _, Some(_), None) => bail!("localaddr= is mandatory with udp="),
                    _ => bail!("netdev 'socket' with 'fd' or 'mcast' is not supported"),
                }
            }
            NetdevBranch::User(_) => bail!("network backend 'user' is not compiled into this binary"),
            NetdevBranch::Hubport(_) => bail!("network backend 'hubport' is not compiled into this binary"),
            NetdevBranch::Nic(_) => bail!("network backend 'nic' is not compiled into this binary"),
            NetdevBranch::None => bail!("network backend 'none' is not compiled into this binary"),
        };
        let mut netdevs = self.inner.netdevs.borrow_mut();
        if netdevs.contains_key(id) {
            bail!("Duplicate ID '{id}'");
        }
        *netdev.info.lock() = host.info.clone();
        let backend = Backend { shared: netdev, kind: host.kind, taken: false, _host: Some(host) };
        netdevs.insert(id.clone(), backend);
        Ok(())
    }

    /// `netdev_del`: its filters go with it, and a card loses its cable.
    ///
    /// # Errors
    /// `Device '...' not found` (class `DeviceNotFound`).
    pub async fn remove_netdev(&self, id: &str) -> Result<()> {
        let Some(backend) = self.inner.netdevs.borrow_mut().shift_remove(id) else {
            return Err(Error::device_not_found(id));
        };
        let attached: Vec<String> = {
            let filters = self.inner.filters.borrow();
            filters.values().filter(|f| f.netdev.id == id).map(|f| f.id().to_owned()).collect()
        };
        for filter in attached {
            let filter = self.inner.filters.borrow_mut().shift_remove(&filter);
            if let Some(filter) = filter {
                filter.remove().await;
            }
        }
        backend.shared.set_sink(None);
        backend.shared.link_down.store(true, Ordering::Relaxed);
        for nic in self.inner.nics.borrow().iter() {
            if nic.netdev.as_ref().is_some_and(|n| n.id == id) {
                nic.set_link(false);
            }
        }
        Ok(())
    }

    /// Whether there is a backend of this name.
    pub fn has_netdev(&self, id: &str) -> bool {
        self.inner.netdevs.borrow().contains_key(id)
    }

    /// Whether a backend could get a card.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub fn check_peer(&self, netdev: &str) -> Result<(), PeerError> {
        match self.inner.netdevs.borrow().get(netdev) {
            None => Err(PeerError::NotFound),
            Some(backend) if backend.taken => Err(PeerError::InUse),
            Some(_) => Ok(()),
        }
    }

    /// A card, with its backend if it has one. Frames come when [`NetPeer::connect`] has named the card itself.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub fn add_nic(&self, info: NicInfo, netdev: Option<&str>) -> Result<NetPeer, PeerError> {
        let mut netdevs = self.inner.netdevs.borrow_mut();
        let shared = match netdev {
            None => None,
            Some(id) => {
                let backend = netdevs.get_mut(id).ok_or(PeerError::NotFound)?;
                if std::mem::replace(&mut backend.taken, true) {
                    return Err(PeerError::InUse);
                }
                Some(backend.shared.clone())
            }
        };
        let nic = Arc::new(NicShared {
            info,
            netdev: shared,
            receiver: RwLock::default(),
            link_down: AtomicBool::new(false),
        });
        self.inner.nics.borrow_mut().push(nic.clone());
        Ok(NetPeer { nic })
    }

    /// Forgets a card that was unplugged; its backend is free again.
    pub fn remove_nic(&self, peer: &NetPeer) {
        self.inner.nics.borrow_mut().retain(|nic| !Arc::ptr_eq(nic, &peer.nic));
        if let Some(netdev) = &peer.nic.netdev {
            netdev.set_nic(None);
            if let Some(backend) = self.inner.netdevs.borrow_mut().get_mut(&netdev.id) {
                backend.taken = false;
            }
        }
    }

    /// How many cards there are.
    pub fn nic_count(&self) -> usize {
        self.inner.nics.borrow().len()
    }

    /// A hardware address that no card has: 52:54:00:12:34:56 and up.
    pub fn free_mac(&self) -> MacAddress {
        let nics = self.inner.nics.borrow();
        let mut mac = FIRST_MAC;
        while nics.iter().any(|nic| nic.info.mac == mac) && mac[5] < 0xff {
            mac[5] += 1;
        }
        mac
    }

    /// `set_link`: of a card, or of a backend and its card.
    ///
    /// # Errors
    /// `Device '...' not found` (class `DeviceNotFound`).
    pub fn set_link(&self, name: &str, up: bool) -> Result<()> {
        let nics = self.inner.nics.borrow();
        if let Some(nic) = nics.iter().find(|nic| nic.info.name == name) {
            nic.set_link(up);
            return Ok(());
        }
        let netdevs = self.inner.netdevs.borrow();
        let backend = netdevs.get(name).ok_or_else(|| Error::device_not_found(name))?;
        backend.shared.link_down.store(!up, Ordering::Relaxed);
        for nic in nics.iter().filter(|nic| nic.netdev.as_ref().is_some_and(|n| n.id == name)) {
            nic.set_link(up);
        }
        Ok(())
    }

    /// Makes a filter or a colo-compare object. `iothread` looks up the iothread that an object names.
    ///
    /// # Errors
    /// With QEMU's texts and classes.
    pub fn add_object(&self, options: &ObjectOptions, iothread: &dyn Fn(&str) -> Option<IoThreadRef>) -> Result<()> {
        let id = &options.id;
        if self.has_object(id) {
            bail!("attempt to add duplicate property '{id}' to object (type 'container')");
        }
        if let ObjectOptionsBranch::ColoCompare(properties) = &options.branch {
            let thread = iothread(&properties.iothread).ok_or_else(|| Error::device_not_found(&properties.iothread))?;
            let env = Environment {
                chardevs: self.inner.chardevs.clone(),
                clocks: self.inner.clocks.clone(),
                gate: self.inner.gate.clone(),
                notifier: self.inner.notifier.clone(),
            };
            let compare = ColoCompare::new(id, properties, thread, env)?;
            // One that was orphaned may lead to the new one.
            self.let_pass(false, |_| true);
            self.inner.compares.borrow_mut().insert(id.clone(), compare);
            return Ok(());
        }
        let find = |name: &str| self.inner.netdevs.borrow().get(name).map(|b| b.shared.clone());
        let env = FilterEnvironment { chardevs: &self.inner.chardevs, clocks: &self.inner.clocks, find: &find };
        let filter = Filter::new(id, &options.branch, &env)?;
        self.inner.filters.borrow_mut().insert(id.clone(), filter);
        Ok(())
    }

    /// Whether an object of this id is ours.
    pub fn has_object(&self, id: &str) -> bool {
        self.inner.filters.borrow().contains_key(id) || self.inner.compares.borrow().contains_key(id)
    }

    /// Removes an object, after what it holds or has been sent has gone on.
    ///
    /// # Errors
    /// `object '...' not found`.
    pub async fn remove_object(&self, id: &str) -> Result<()> {
        let compare = self.inner.compares.borrow_mut().shift_remove(id);
        if let Some(compare) = compare {
            // Whoever takes the comparison away has decided that this side speaks.
            if self.inner.compares.borrow().is_empty() {
                self.inner.gate.set_probe(None);
                self.inner.gate.set_open(true);
            }
            let source = self.inner.chardevs.loopback_peer(compare.primary_in());
            self.let_pass(true, |filter| source.is_some() && filter.outdev() == source.as_deref());
            compare.stop().await;
            return Ok(());
        }
        let filter = self.inner.filters.borrow_mut().shift_remove(id);
        let filter = filter.ok_or_else(|| err!("object '{id}' not found"))?;
        filter.remove().await;
        Ok(())
    }

    /// Whether frames pass some of the redirectors: those that lead to no comparison any more.
    fn let_pass(&self, passing: bool, which: impl Fn(&Filter) -> bool) {
        for filter in self.inner.filters.borrow().values().filter(|filter| which(filter)) {
            if let Action::Redirector(redirector) = &filter.node.action {
                redirector.set_passing(passing);
            }
        }
    }

    /// A filter.
    pub fn filter(&self, id: &str) -> Option<Rc<Filter>> {
        self.inner.filters.borrow().get(id).cloned()
    }

    /// A colo-compare object.
    pub fn compare(&self, id: &str) -> Option<Rc<ColoCompare>> {
        self.inner.compares.borrow().get(id).cloned()
    }

    /// `query-rx-filter`.
    ///
    /// # Errors
    /// `invalid net client name: ...`, `net client(...) isn't a NIC`,
    /// `net client(...) doesn't support rx-filter querying`.
    pub fn query_rx_filter(&self, name: Option<&str>) -> Result<Vec<RxFilterInfo>> {
        let nics = self.inner.nics.borrow();
        let ask = |nic: &NicShared| {
            nic.receiver.read().as_ref().and_then(std::sync::Weak::upgrade).and_then(|r| r.rx_filter())
        };
        let Some(name) = name else { return Ok(nics.iter().filter_map(|nic| ask(nic)).collect()) };
        match nics.iter().find(|nic| nic.info.name == name) {
            Some(nic) => match ask(nic) {
                Some(info) => Ok(vec![info]),
                None => bail!("net client({name}) doesn't support rx-filter querying"),
            },
            None if self.has_netdev(name) => bail!("net client({name}) isn't a NIC"),
            None => bail!("invalid net client name: {name}"),
        }
    }

    /// The text of `info network` (lines end with CR LF).
    pub fn info_network(&self) -> String {
        let mut text = String::new();
        let (nics, netdevs) = (self.inner.nics.borrow(), self.inner.netdevs.borrow());
        let mut line = |prefix: &str, name: &str, rest: &str| {
            text.push_str(&format!("{prefix}{name}: index=0,type={rest}\r\n"));
        };
        for backend in netdevs.values().filter(|b| !b.taken) {
            self.describe_backend(backend, "", &mut line);
        }
        for nic in nics.iter() {
            let NicInfo { name, model, mac } = &nic.info;
            line("", name, &format!("nic,model={model},macaddr={}", format_mac(mac)));
            if let Some(backend) = nic.netdev.as_ref().and_then(|n| netdevs.get(&n.id)) {
                self.describe_backend(backend, " \\ ", &mut line);
            }
        }
        text
    }

    fn describe_backend(&self, backend: &Backend, prefix: &str, line: &mut dyn FnMut(&str, &str, &str)) {
        let shared = &backend.shared;
        let mut rest = format!("{},{}", backend.kind, shared.info.lock());
        let filters = self.inner.filters.borrow();
        let chain = shared.chain();
        if !chain.is_empty() {
            rest.push_str("\r\nfilters:");
        }
        for node in chain.iter() {
            let Some(filter) = filters.get(&node.id) else { continue };
            rest.push_str(&format!("\r\n  - {}: type={}", node.id, filter.type_name()));
            for (name, _) in filter.properties() {
                let value = match filter.get(name) {
                    Some(serde_json::Value::String(text)) => text,
                    Some(other) => other.to_string(),
                    None => String::new(),
                };
                rest.push_str(&format!(",{name}={value}"));
            }
        }
        line(prefix, &shared.id, &rest);
    }

    /// Frames lost so far, by backend and place: on the way to a card, to a mirror, to a redirector.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for backend in self.inner.netdevs.borrow().values() {
            all.insert(format!("{}/card", backend.shared.id), backend.shared.dropped());
        }
        for filter in self.inner.filters.borrow().values() {
            let lost = match &filter.node.action {
                crate::filter::Action::Mirror(m) => m.lost(),
                crate::filter::Action::Redirector(r) => r.lost(),
                _ => continue,
            };
            all.insert(format!("{}/{}", filter.netdev.id, filter.id()), lost);
        }
        all
    }
}

impl std::fmt::Debug for NetRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetRegistry")
            .field("netdevs", &self.inner.netdevs.borrow().keys().collect::<Vec<_>>())
            .field("filters", &self.inner.filters.borrow().keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
