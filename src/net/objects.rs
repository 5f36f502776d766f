//! Filter objects: their properties, and what they hold besides their place in a chain.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use lockstep_chardev::{CharFrontend, ChardevRegistry};
use lockstep_event::Clocks;
use lockstep_qapi::schema::{NetFilterDirection, NetfilterInsert, NetfilterProperties, ObjectOptionsBranch as Branch};
use lockstep_util::{Error, ErrorClass, Result, bail, err};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::filter::{Action, Buffer, Dump, FilterNode, Mirror, Position, Redirector, RewriterFilter};
use crate::filter::{InputCommand, inject, parse_status};
use crate::netdev::Netdev;

/// A filter object.
pub struct Filter {
    pub(crate) node: Arc<FilterNode>,
    pub(crate) netdev: Arc<Netdev>,
    position: String,
    insert: &'static str,
    indev: Option<String>,
    outdev: Option<String>,
    vnet_hdr_support: bool,
    input: RefCell<Option<mpsc::UnboundedSender<InputCommand>>>,
    /// The place at the output device.
    out: RefCell<Option<CharFrontend>>,
}

/// What filters are made with.
pub(crate) struct FilterEnvironment<'a> {
    pub chardevs: &'a ChardevRegistry,
    pub clocks: &'a Clocks,
    pub find: &'a dyn Fn(&str) -> Option<Arc<Netdev>>,
}

impl Filter {
    /// Makes a filter and puts it into its backend's chain.
    pub(crate) fn new(id: &str, branch: &Branch, env: &FilterEnvironment<'_>) -> Result<Rc<Self>> {
        let common = common(branch).ok_or_else(|| err!("invalid object type"))?;
        let on = common.status.as_deref().map_or(Ok(true), parse_status)?;
        let netdev =
            (env.find)(&common.netdev).ok_or_else(|| err!("Parameter 'netdev' expects a network backend id"))?;
        let before = common.insert == Some(NetfilterInsert::Before);
        let position = common.position.clone().unwrap_or_else(|| "tail".to_owned());
        let place = Position::parse(&position, before)?;
        let mut chain = netdev.chain().to_vec();
        let Some(index) = place.index(&chain) else {
            let Position::Beside { id, .. } = &place else { bail!("filter not found") };
            bail!("filter '{id}' not found");
        };
        let mut this = Self {
            node: FilterNode::new(id, NetFilterDirection::All, on, Action::Buffer(Buffer::new(1))),
            netdev: netdev.clone(),
            position,
            insert: if before { "before" } else { "behind" },
            indev: None,
            outdev: None,
            vnet_hdr_support: false,
            input: RefCell::new(None),
            out: RefCell::new(None),
        };
        let mut input = None;
        let action = match branch {
            Branch::FilterMirror(p) => {
                let out = env.chardevs.attach(&p.outdev)?;
                this.outdev = Some(p.outdev.clone());
                this.vnet_hdr_support = p.vnet_hdr_support.unwrap_or(false);
                Action::Mirror(Mirror::new(this.open_output(out), this.vnet_hdr_support))
            }
            Branch::FilterRedirector(p) => {
                this.vnet_hdr_support = p.vnet_hdr_support.unwrap_or(false);
                (this.indev, this.outdev) = (p.indev.clone(), p.outdev.clone());
                if p.indev.is_none() && p.outdev.is_none() {
                    bail!("filter redirector needs 'indev' or 'outdev' at least one property set");
                }
                if p.indev == p.outdev {
                    bail!("'indev' and 'outdev' could not be same for filter redirector");
                }
                input = p.indev.as_ref().map(|name| named(env.chardevs.attach(name), "IN", name)).transpose()?;
                let out = p.outdev.as_ref().map(|name| named(env.chardevs.attach(name), "OUT", name)).transpose()?;
                let writer = out.map(|out| this.open_output(out));
                Action::Redirector(Redirector::new(writer, input.is_some(), this.vnet_hdr_support))
            }
            Branch::FilterRewriter(p) => {
                this.vnet_hdr_support = p.vnet_hdr_support.unwrap_or(false);
                Action::Rewriter(RewriterFilter::new(env.clocks.clone()))
            }
            Branch::FilterBuffer(p) => match p.interval {
                0 => bail!("Property 'filter-buffer.interval' requires a positive value"),
                us => Action::Buffer(Buffer::new(us)),
            },
            Branch::FilterDump(p) => {
                let max_len = p.maxlen.unwrap_or(65536);
                if max_len == 0 {
                    bail!("Property 'filter-dump.maxlen' requires a positive value");
                }
                Action::Dump(Dump::new(&p.file, max_len, env.clocks.clone())?)
            }
            _ => bail!("invalid object type"),
        };
        let direction = common.queue.unwrap_or(NetFilterDirection::All);
        this.node = FilterNode::new(id, direction, on, action);
        let this = Rc::new(this);
        if let Some(input) = input {
            let (tx, rx) = mpsc::unbounded_channel();
            *this.input.borrow_mut() = Some(tx);
            let (stream, node) = (input.into_stream(), this.node.clone());
            tokio::task::spawn_local(async move { inject(stream, &node, netdev, rx).await });
        }
        Buffer::start(&this.node, &this.netdev, env.clocks);
        chain.insert(index, this.node.clone());
        this.netdev.set_chain(chain);
        Ok(this)
    }

    /// Keeps the place at an output device and moves what it does not take at once.
    fn open_output(&self, out: CharFrontend) -> lockstep_chardev::CharWriter {
        let writer = out.writer();
        out.start_output();
        *self.out.borrow_mut() = Some(out);
        writer
    }

    /// The character device that its output goes to.
    pub(crate) fn outdev(&self) -> Option<&str> {
        self.outdev.as_deref()
    }

    /// The object's id.
    pub fn id(&self) -> &str {
        &self.node.id
    }

    /// The type's name (`filter-mirror`).
    pub fn type_name(&self) -> &'static str {
        self.node.type_name()
    }

    /// Takes the filter out of its chain, after what has come for it has gone on.
    pub(crate) async fn remove(&self) {
        let input = self.input.borrow_mut().take();
        if let Some(input) = input {
            let (done, wait) = oneshot::channel();
            if input.send(InputCommand::Finish(done)).is_ok() {
                let _ = wait.await;
            }
        }
        let mut chain = self.netdev.chain().to_vec();
        if let Action::Buffer(buffer) = &self.node.action {
            buffer.stop();
            buffer.release(&self.node, &self.netdev);
        }
        chain.retain(|node| node.id != self.node.id);
        self.netdev.set_chain(chain);
        self.out.borrow_mut().take();
    }

    /// Reads the input empty and forgets it, with what waits for the card; how many frames it was. What comes later waits
    /// for [`release_input`](Self::release_input).
    pub(crate) async fn discard_input(&self) -> usize {
        let (done, wait) = oneshot::channel();
        let sent = self.input.borrow().as_ref().is_some_and(|tx| tx.send(InputCommand::Discard(done)).is_ok());
        if sent { wait.await.unwrap_or(0) } else { 0 }
    }

    /// Whoever writes to the input will wait until its host knows that ours has everything.
    pub(crate) fn acknowledge_input(&self) {
        if let Some(input) = &*self.input.borrow() {
            let _ = input.send(InputCommand::Acknowledge);
        }
    }

    /// What has come to the input since it was read empty is brought in.
    pub(crate) fn release_input(&self) {
        if let Some(input) = &*self.input.borrow() {
            let _ = input.send(InputCommand::Release);
        }
    }

    /// A failover: the filter is off, but for what has come to the input so far, which is brought in.
    pub(crate) fn retire(&self) {
        let was_on = self.node.is_on();
        self.set_on(false);
        if let Some(input) = self.input.borrow().as_ref().filter(|_| was_on && self.node.injects_to_guest()) {
            let _ = input.send(InputCommand::BringLast);
        }
    }

    /// Switches the filter on or off.
    pub(crate) fn set_on(&self, on: bool) {
        self.node.set_on(on, &self.netdev);
    }

    /// The names and types of the properties, in the order in which `info network` shows them.
    pub fn properties(&self) -> Vec<(&'static str, &'static str)> {
        let mut list: Vec<(&'static str, &'static str)> = match &self.node.action {
            Action::Mirror(_) => vec![("vnet_hdr_support", "bool"), ("outdev", "string")],
            Action::Redirector(_) => vec![("vnet_hdr_support", "bool"), ("indev", "string"), ("outdev", "string")],
            Action::Rewriter(_) => vec![("vnet_hdr_support", "bool")],
            Action::Buffer(_) => vec![("interval", "uint32")],
            Action::Dump(_) => vec![("file", "string"), ("maxlen", "uint32")],
        };
        list.extend([
            ("position", "string"),
            ("status", "string"),
            ("insert", "string"),
            ("netdev", "string"),
            ("queue", "NetFilterDirection"),
        ]);
        list
    }

    /// The value of a property; strings that were not given are empty.
    pub fn get(&self, name: &str) -> Option<Value> {
        if !self.properties().iter().any(|(known, _)| *known == name) {
            return None;
        }
        let text = |s: &Option<String>| Value::from(s.clone().unwrap_or_default());
        Some(match (name, &self.node.action) {
            ("vnet_hdr_support", _) => self.vnet_hdr_support.into(),
            ("indev", _) => text(&self.indev),
            ("outdev", _) => text(&self.outdev),
            ("interval", Action::Buffer(buffer)) => buffer.interval().into(),
            ("file", Action::Dump(dump)) => dump.path.clone().into(),
            ("maxlen", Action::Dump(dump)) => dump.max_len.into(),
            ("position", _) => self.position.clone().into(),
            ("status", _) => if self.node.is_on() { "on" } else { "off" }.into(),
            ("insert", _) => self.insert.into(),
            ("netdev", _) => self.netdev.id.clone().into(),
            ("queue", _) => match self.node.direction {
                NetFilterDirection::All => "all",
                NetFilterDirection::Rx => "rx",
                NetFilterDirection::Tx => "tx",
            }
            .into(),
            _ => return None,
        })
    }

    /// Changes a property of the running filter: `status`, and a buffer's `interval`.
    ///
    /// # Errors
    /// A wrong value, or a property that stays as it is.
    pub fn set(&self, name: &str, value: &Value) -> Result<()> {
        match (name, &self.node.action) {
            ("status", _) => {
                let Some(text) = value.as_str() else { bail!("Invalid parameter type for 'status', expected: string") };
                self.set_on(parse_status(text)?);
            }
            ("interval", Action::Buffer(buffer)) => {
                match value.as_u64().map(u32::try_from) {
                    Some(Ok(0)) => bail!("Property 'filter-buffer.interval' requires a positive value"),
                    Some(Ok(us)) => buffer.set_interval(us),
                    _ => bail!("Parameter 'interval' expects uint32_t"),
                };
            }
            _ => bail!("Property '{}.{name}' can't be changed after the object was made", self.type_name()),
        }
        Ok(())
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.node.fmt(f)
    }
}

fn common(branch: &Branch) -> Option<NetfilterProperties> {
    macro_rules! base {
        ($p:expr) => {
            NetfilterProperties {
                netdev: $p.netdev.clone(),
                queue: $p.queue,
                status: $p.status.clone(),
                position: $p.position.clone(),
                insert: $p.insert,
            }
        };
    }
    Some(match branch {
        Branch::FilterMirror(p) => base!(p),
        Branch::FilterRedirector(p) => base!(p),
        Branch::FilterRewriter(p) => base!(p),
        Branch::FilterBuffer(p) => base!(p),
        Branch::FilterDump(p) => base!(p),
        _ => return None,
    })
}

fn named(result: Result<CharFrontend>, side: &str, name: &str) -> Result<CharFrontend> {
    result.map_err(|e| match e.class() {
        ErrorClass::DeviceNotFound => {
            Error::with_class(ErrorClass::DeviceNotFound, format!("{side} Device '{name}' not found"))
        }
        _ => e,
    })
}
