//! The migration of a machine: what the monitors' commands act on.

use crate::channel::{self, Address, FdSource, Incoming, Yank};
use crate::colo::{CheckpointStatistics, CheckpointTrigger, Colo, Steps};
use crate::globalstate::GlobalState;
use crate::hooks::{DiskReplication, Event, NetCheckpoint, VmControl};
use crate::status::{Counters, MigrationInfo, Status};
use crate::stream::Frames;
use crate::{Capabilities, Parameters, incoming, outgoing};
use lockstep_memory::RamList;
use lockstep_util::{Error, Result, bail, err};
use lockstep_vmstate::StateRegistry;
use parking_lot::Mutex;
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use tokio::sync::Notify;

/// The machine around a migration.
pub struct Environment {
    /// The machine's name in the stream (`pc-i440fx-10.0`).
    pub machine: String,
    /// What frames its streams have.
    pub frames: Frames,
    /// Guest memory.
    pub ram: RamList,
    /// Device state. A section `ram` is reserved in it where QEMU has it: not as the first one, for QEMU mistakes
    /// parts of a section with the number 0.
    pub states: StateRegistry,
    /// The section `globalstate`, which is registered in `states`.
    pub global_state: Arc<GlobalState>,
    /// Starting and stopping.
    pub vm: Rc<dyn VmControl>,
    /// Replicated disks.
    pub disks: Rc<dyn DiskReplication>,
    /// Filters and comparison.
    pub net: Rc<dyn NetCheckpoint>,
    /// Descriptors given to the monitor.
    pub fds: Rc<dyn FdSource>,
    /// Where tests break in; [`Steps::default`] does nothing.
    pub steps: Steps,
}

/// A machine's migration; lives on the main context. Clones are the same one.
#[derive(Clone)]
pub struct Migration {
    core: Rc<Core>,
}

/// The migration's entry in `query-yank`, usable from any thread.
#[derive(Clone, Debug, Default)]
pub struct MigrationYank {
    channel: Arc<Mutex<Option<Yank>>>,
}

impl MigrationYank {
    /// Whether there is a channel to break off (the instance is listed).
    pub fn is_registered(&self) -> bool {
        self.channel.lock().is_some()
    }

    /// Breaks the channel off, if there is one.
    pub fn pull(&self) {
        if let Some(yank) = &*self.channel.lock() {
            yank.pull();
        }
    }

    pub(crate) fn register(&self, yank: &Yank) {
        *self.channel.lock() = Some(yank.clone());
    }

    pub(crate) fn unregister(&self) {
        *self.channel.lock() = None;
    }
}

/// Values that the sending thread looks at while they may change.
#[derive(Debug, Default)]
pub(crate) struct LiveParameters {
    /// Bytes a second; 0 is no limit.
    pub(crate) max_bandwidth: AtomicU64,
    /// Milliseconds.
    pub(crate) downtime_limit: AtomicU64,
    /// Bytes a second that the last part is taken to travel at; 0: as measured.
    pub(crate) switchover_bandwidth: AtomicU64,
}

pub(crate) struct Core {
    pub(crate) env: Environment,
    pub(crate) capabilities: Cell<Capabilities>,
    pub(crate) parameters: RefCell<Parameters>,
    pub(crate) live: Arc<LiveParameters>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) outgoing: RefCell<Side>,
    pub(crate) incoming: RefCell<IncomingSide>,
    pub(crate) yank: MigrationYank,
    /// Whoever waits for `migrate-continue`.
    pub(crate) go_on: Notify,
    /// A migration came to its end.
    pub(crate) ended: Notify,
    pub(crate) colo: Colo,
}

/// What is known of the sending side.
#[derive(Debug, Default)]
pub(crate) struct Side {
    pub(crate) status: Status,
    pub(crate) error: Option<String>,
    pub(crate) started: Option<Instant>,
    pub(crate) setup_ms: u64,
    pub(crate) total_ms: Option<u64>,
    pub(crate) downtime_ms: Option<u64>,
}

/// What is known of the receiving side.
#[derive(Debug, Default)]
pub(crate) struct IncomingSide {
    pub(crate) status: Status,
    pub(crate) error: Option<String>,
    pub(crate) address: Option<Value>,
    /// `-incoming defer` was given and no address yet.
    pub(crate) deferred: bool,
    /// Migration was asked for on the command line.
    pub(crate) expected: bool,
    /// The guest of this process is still to arrive.
    pub(crate) waiting: bool,
    /// A failure ends the process.
    pub(crate) exit_on_error: bool,
}

/// The arguments of `migrate`.
#[derive(Clone, Debug, Default)]
pub struct MigrateArguments {
    /// Where to.
    pub uri: Option<String>,
    /// Where to, as a list of channels.
    pub channels: Option<Vec<Value>>,
    /// Whether a paused postcopy is to be resumed.
    pub resume: bool,
}

/// Whether setting a parameter makes a checkpoint at once: what it says of checkpoints holds from that one on.
fn makes_checkpoint(parameter: &str) -> bool {
    matches!(parameter, "x-checkpoint-delay" | "x-checkpoint-style")
}

fn address_of(uri: Option<&str>, channels: Option<&[Value]>) -> Result<Address> {
    match (uri, channels) {
        (Some(uri), None) => Address::parse(uri),
        (None, Some(channels)) if !channels.is_empty() => Address::from_channels(channels),
        _ => bail!("need either 'uri' or 'channels' argument"),
    }
}

impl Migration {
    /// The migration of a machine.
    pub fn new(env: Environment) -> Self {
        let core = Core {
            colo: Colo::new(),
            env,
            capabilities: Cell::default(),
            parameters: RefCell::default(),
            live: Arc::default(),
            counters: Arc::default(),
            outgoing: RefCell::default(),
            incoming: RefCell::new(IncomingSide { exit_on_error: true, ..IncomingSide::default() }),
            yank: MigrationYank::default(),
            go_on: Notify::new(),
            ended: Notify::new(),
        };
        core.publish_parameters();
        Self { core: Rc::new(core) }
    }

    /// `migrate`: starts sending the machine away. What goes wrong later is seen in [`info`](Self::info).
    ///
    /// # Errors
    /// QEMU's texts, for what cannot be begun.
    pub fn migrate(&self, arguments: &MigrateArguments) -> Result<()> {
        let core = &self.core;
        let address = address_of(arguments.uri.as_deref(), arguments.channels.as_deref())?;
        if arguments.resume {
            bail!("Cannot resume if there is no paused migration");
        }
        if core.outgoing.borrow().status.is_running() || core.colo.mode().is_some() {
            bail!("There's a migration process in progress");
        }
        if core.incoming.borrow().waiting {
            bail!("Guest is waiting for an incoming migration");
        }
        if core.env.vm.run_state() == "postmigrate" {
            bail!("Can't migrate the vm that was paused due to previous migration");
        }
        let yank = Yank::new()?;
        *core.outgoing.borrow_mut() = Side { started: Some(Instant::now()), ..Side::default() };
        core.counters.clear();
        core.set_status(Status::Setup);
        core.yank.register(&yank);
        match channel::open(&address, &*core.env.fds, yank.clone()) {
            Ok(opening) => {
                tokio::task::spawn_local(outgoing::run(core.clone(), opening, yank));
                Ok(())
            }
            Err(e) => {
                core.yank.unregister();
                core.outgoing.borrow_mut().error = Some(e.to_string());
                core.set_status(Status::Failed);
                Err(e)
            }
        }
    }

    /// `-incoming defer`: an address will come by `migrate-incoming`.
    pub fn expect_incoming(&self) {
        let mut incoming = self.core.incoming.borrow_mut();
        (incoming.expected, incoming.deferred, incoming.waiting) = (true, true, true);
    }

    /// `-incoming URI`: starts listening.
    ///
    /// # Errors
    /// When the address is none or cannot be had.
    pub fn start_incoming(&self, uri: &str) -> Result<()> {
        let address = Address::parse(uri)?;
        self.expect_incoming();
        self.listen(&address)
    }

    /// `migrate-incoming`.
    ///
    /// # Errors
    /// When no migration is expected, one has been started, or the address cannot be had.
    pub fn migrate_incoming(
        &self,
        uri: Option<&str>,
        channels: Option<&[Value]>,
        exit_on_error: Option<bool>,
    ) -> Result<()> {
        {
            let incoming = self.core.incoming.borrow();
            if !incoming.expected {
                bail!("'-incoming' was not specified on the command line");
            }
            if !incoming.deferred {
                bail!("The incoming migration has already been started");
            }
        }
        let address = address_of(uri, channels)?;
        self.core.incoming.borrow_mut().exit_on_error = exit_on_error.unwrap_or(true);
        self.listen(&address)
    }

    fn listen(&self, address: &Address) -> Result<()> {
        let core = &self.core;
        let yank = Yank::new()?;
        let end = channel::listen(address, &*core.env.fds, yank.clone())?;
        {
            let mut incoming = core.incoming.borrow_mut();
            (incoming.deferred, incoming.status) = (false, Status::Setup);
            if let Incoming::Listening(listener) = &end {
                incoming.address = Some(listener.address().clone());
            }
        }
        core.yank.register(&yank);
        tokio::task::spawn_local(incoming::run(core.clone(), end, yank));
        Ok(())
    }

    /// Whether the guest of this process is still to arrive (`inmigrate`).
    pub fn is_waiting_for_guest(&self) -> bool {
        self.core.incoming.borrow().waiting
    }

    /// `migrate_cancel`: gives an outgoing migration up; the guest goes on here. Nothing happens if there is none, or if it is a pair by
    /// now.
    pub fn cancel(&self) {
        let status = self.core.outgoing.borrow().status;
        if status.is_running() && status != Status::Colo {
            self.core.set_status(Status::Cancelling);
            self.core.yank.pull();
            self.core.go_on.notify_waiters();
        }
    }

    /// `migrate-continue`.
    ///
    /// # Errors
    /// When the migration does not wait in that state.
    pub fn go_on(&self, state: &str) -> Result<()> {
        let status = self.core.outgoing.borrow().status;
        if status.as_str() != state {
            bail!("Migration not in expected state: {}", status.as_str());
        }
        self.core.go_on.notify_waiters();
        Ok(())
    }

    /// `migrate-pause`.
    ///
    /// # Errors
    /// Always: there is no postcopy.
    pub fn pause(&self) -> Result<()> {
        bail!("migrate-pause is currently only supported during postcopy-active or postcopy-recover state")
    }

    /// `migrate-recover`.
    ///
    /// # Errors
    /// Always: there is no postcopy.
    pub fn recover(&self) -> Result<()> {
        bail!("Migrate recover can only be run when postcopy is paused.")
    }

    /// `migrate-start-postcopy`.
    ///
    /// # Errors
    /// Always: there is no postcopy.
    pub fn start_postcopy(&self) -> Result<()> {
        bail!("Enable postcopy with migrate_set_capability before the start of migration")
    }

    /// `migrate-set-capabilities`.
    ///
    /// # Errors
    /// While a migration goes on, and for what is not supported.
    pub fn set_capabilities<'a>(&self, changes: impl IntoIterator<Item = (&'a str, bool)>) -> Result<()> {
        let busy = self.core.outgoing.borrow().status.is_running()
            || self.core.incoming.borrow().status == Status::Active
            || self.core.colo.mode().is_some();
        if busy {
            bail!("There's a migration process in progress");
        }
        let mut capabilities = self.core.capabilities.get();
        capabilities.set(changes)?;
        self.core.capabilities.set(capabilities);
        Ok(())
    }

    /// The capabilities, for their queries.
    pub fn capabilities(&self) -> Capabilities {
        self.core.capabilities.get()
    }

    /// `migrate-set-parameters`. A new `x-checkpoint-delay` makes a checkpoint at once.
    ///
    /// # Errors
    /// For what is out of bounds or not supported.
    pub fn set_parameters<'a>(&self, changes: impl IntoIterator<Item = (&'a str, Value)>) -> Result<()> {
        let mut due = false;
        let changes: Vec<_> = changes.into_iter().inspect(|c| due |= makes_checkpoint(c.0)).collect();
        self.core.parameters.borrow_mut().set(changes)?;
        self.parameters_changed(due);
        Ok(())
    }

    /// `migrate_set_parameter`.
    ///
    /// # Errors
    /// As [`set_parameters`](Self::set_parameters).
    pub fn set_parameter_text(&self, name: &str, text: &str) -> Result<()> {
        self.core.parameters.borrow_mut().set_text(name, text)?;
        self.parameters_changed(makes_checkpoint(name));
        Ok(())
    }

    fn parameters_changed(&self, due: bool) {
        self.core.publish_parameters();
        if due {
            self.core.colo.trigger().parameter_changed();
        }
    }

    /// The parameters, for their queries.
    pub fn parameters(&self) -> Parameters {
        self.core.parameters.borrow().clone()
    }

    /// `query-migrate` and `info migrate`.
    pub fn info(&self) -> MigrationInfo {
        self.core.info()
    }

    /// Waits until no outgoing migration goes on (HMP `migrate` without `-d`), or it is a pair.
    pub async fn wait(&self) {
        loop {
            let ended = self.core.ended.notified();
            let status = self.core.outgoing.borrow().status;
            if !status.is_running() || status == Status::Colo {
                return;
            }
            ended.await;
        }
    }

    /// `query-colo-status`.
    pub fn colo_status(&self) -> Value {
        self.core.colo.status()
    }

    /// Whether there is or was a pair, of which there are figures.
    pub fn was_colo(&self) -> bool {
        self.core.colo.has_figures()
    }

    /// `x-colo-lost-heartbeat`: the peer is gone; this side goes on alone. Returns at once.
    ///
    /// # Errors
    /// When there is no pair, or this was asked already.
    pub fn colo_lost_heartbeat(&self) -> Result<()> {
        self.core.colo.request_failover(&self.core)
    }

    /// The guest or the user ends the machine: a pair's loop must not hold it up.
    pub fn shutting_down(&self) {
        self.core.yank.pull();
    }

    /// How the comparison (or anybody, from any thread) asks for a checkpoint.
    pub fn checkpoint_trigger(&self) -> CheckpointTrigger {
        self.core.colo.trigger()
    }

    /// Figures of the checkpoints of the present or last pair.
    pub fn checkpoint_statistics(&self) -> CheckpointStatistics {
        self.core.colo.statistics()
    }

    /// The entry of `query-yank`.
    pub fn yank(&self) -> MigrationYank {
        self.core.yank.clone()
    }
}

impl Core {
    /// Sets the sending side's status and tells it.
    pub(crate) fn set_status(&self, status: Status) {
        self.outgoing.borrow_mut().status = status;
        self.tell(status);
        if !status.is_running() || status == Status::Colo {
            self.ended.notify_waiters();
        }
    }

    /// Sets the status of a sending side that has come further, unless it was cancelled meanwhile.
    pub(crate) fn advance(&self, status: Status) -> Result<()> {
        if self.outgoing.borrow().status == Status::Cancelling {
            bail!("Migration was cancelled");
        }
        self.set_status(status);
        Ok(())
    }

    /// Sets the receiving side's status and tells it.
    pub(crate) fn set_incoming_status(&self, status: Status) {
        self.incoming.borrow_mut().status = status;
        self.tell(status);
    }

    fn tell(&self, status: Status) {
        if self.capabilities.get().is_on("events") {
            self.env.vm.emit(Event::Migration(status.as_str()));
        }
    }

    /// Tells that the dirty log was read again.
    pub(crate) fn tell_pass(&self) {
        if self.capabilities.get().is_on("events") {
            self.env.vm.emit(Event::MigrationPass(Counters::get(&self.counters.syncs)));
        }
    }

    pub(crate) fn publish_parameters(&self) {
        let parameters = self.parameters.borrow();
        Counters::set(&self.live.max_bandwidth, parameters.number("max-bandwidth"));
        Counters::set(&self.live.downtime_limit, parameters.number("downtime-limit"));
        Counters::set(&self.live.switchover_bandwidth, parameters.number("avail-switchover-bandwidth"));
    }

    pub(crate) fn ram_section(&self) -> Result<lockstep_vmstate::Entry> {
        self.env.states.find("ram", 0).ok_or_else(|| err!("No section 'ram' is registered"))
    }

    fn info(&self) -> MigrationInfo {
        let incoming = self.incoming.borrow();
        let mut info = MigrationInfo {
            status: incoming.status,
            error: incoming.error.clone(),
            socket_address: incoming.address.clone(),
            ..MigrationInfo::default()
        };
        let side = self.outgoing.borrow();
        if side.status == Status::None {
            return info;
        }
        let elapsed = side.started.map_or(0, |s| s.elapsed().as_millis() as u64);
        info.status = side.status;
        info.error = side.error.clone();
        info.total_time = side.total_ms.unwrap_or(elapsed);
        info.setup_time = side.setup_ms;
        info.downtime = side.downtime_ms;
        info.ram = matches!(
            side.status,
            Status::Active | Status::Cancelling | Status::PreSwitchover | Status::Device | Status::Completed
        );
        info.figures = (&*self.counters).into();
        info
    }

    /// Ends the sending side's clock.
    pub(crate) fn stop_clock(&self) {
        let mut side = self.outgoing.borrow_mut();
        side.total_ms = side.started.map(|s| s.elapsed().as_millis() as u64);
    }

    /// An error that nobody is waiting for.
    pub(crate) fn warn(&self, e: &Error) {
        self.env.vm.warn(e.message());
    }
}
