//! A machine of fakes: memory, one device, a guest that writes epochs, a disk and a network that remember them.

use crate::channel::FdSource;
use crate::colo::{Steps, Style};
use crate::hooks::{
    AnnounceSchedule, ColoMode, DiskReplication, Event, LocalFuture, NetCheckpoint, StopReason, VmControl,
};
use crate::stream::{Frames, PAGE};
use crate::{Environment, GlobalState, Migration};
use lockstep_memory::RamList;
use lockstep_util::{Error, Result, err};
use lockstep_vmstate::{LoadError, Snapshot, StateRegistry, VmState};
use parking_lot::Mutex;
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

pub(crate) const PAGES: u64 = 200;

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "epoch", version = 1)]
pub(crate) struct EpochWire {
    epoch: u64,
    bulk: [u32; 64],
}

/// A device whose state is the epoch.
#[derive(Default)]
pub(crate) struct EpochDevice {
    pub(crate) epoch: Mutex<u64>,
}

impl Snapshot for EpochDevice {
    type Wire = EpochWire;
    fn snapshot(&self) -> EpochWire {
        let epoch = *self.epoch.lock();
        EpochWire { epoch, bulk: [epoch as u32; 64] }
    }
    fn validate(&self, wire: &EpochWire) -> Result<(), LoadError> {
        match wire.bulk.iter().all(|b| u64::from(*b) == wire.epoch) {
            true => Ok(()),
            false => Err(LoadError::invalid("torn")),
        }
    }
    fn restore(&self, wire: EpochWire) {
        *self.epoch.lock() = wire.epoch;
    }
}

#[derive(Default)]
pub(crate) struct FakeVm {
    running: Cell<bool>,
    state: RefCell<String>,
    pub(crate) autostart: Cell<bool>,
    pub(crate) log: RefCell<Vec<String>>,
    /// Everything that was asked of this machine, in order: of the guest, its disks, its networks.
    pub(crate) asked: RefCell<Vec<String>>,
    /// Called with what is noted.
    pub(crate) at_note: RefCell<Option<Box<dyn Fn(&str)>>>,
    /// The data of the events about checkpoints.
    pub(crate) checkpoints: RefCell<Vec<Value>>,
    pub(crate) disks_active: Cell<bool>,
    /// By how much the clock was moved, in nanoseconds.
    pub(crate) advanced: Cell<i64>,
    pub(crate) announced: Cell<Option<AnnounceSchedule>>,
}

impl FakeVm {
    pub(crate) fn note(&self, what: impl Into<String>) {
        let what = what.into();
        self.log.borrow_mut().push(what.clone());
        if let Some(at_note) = &*self.at_note.borrow() {
            at_note(&what);
        }
    }
    pub(crate) fn ask(&self, what: impl Into<String>) {
        self.asked.borrow_mut().push(what.into());
    }
    pub(crate) fn take_log(&self) -> Vec<String> {
        self.log.take()
    }
}

impl VmControl for FakeVm {
    fn is_running(&self) -> bool {
        self.running.get()
    }
    fn run_state(&self) -> String {
        self.state.borrow().clone()
    }
    fn autostart(&self) -> bool {
        self.autostart.get()
    }
    fn stop(&self, reason: StopReason) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.ask("stop");
            if self.running.replace(false) {
                self.note("STOP");
            }
            *self.state.borrow_mut() = match reason {
                StopReason::Migration => "finish-migrate".into(),
                StopReason::Colo => "colo".into(),
            };
            Ok(())
        })
    }
    fn start(&self) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.ask("start");
            if !self.running.replace(true) {
                self.note("RESUME");
            }
            *self.state.borrow_mut() = "running".into();
        })
    }
    fn advance_clock(&self, ns: i64) {
        self.advanced.set(self.advanced.get() + ns);
    }
    fn set_run_state(&self, name: &str) {
        *self.state.borrow_mut() = name.to_owned();
    }
    fn activate_disks(&self) -> LocalFuture<'_, Result<()>> {
        self.disks_active.set(true);
        Box::pin(async { Ok(()) })
    }
    fn inactivate_disks(&self) -> LocalFuture<'_, Result<()>> {
        self.disks_active.set(false);
        Box::pin(async { Ok(()) })
    }
    fn emit(&self, event: Event) {
        let (name, data) = event.to_qmp();
        if name == "X_COLO_CHECKPOINT" {
            return self.checkpoints.borrow_mut().push(data);
        }
        let detail = data["status"].as_str().or(data["reason"].as_str()).map(|d| format!(" {d}")).unwrap_or_default();
        self.note(format!("{name}{detail}"));
    }
    fn announce(&self, schedule: AnnounceSchedule) {
        self.ask("announce");
        self.announced.set(Some(schedule));
    }
    fn incoming_failed(&self, error: &Error) {
        self.note(format!("EXIT {error}"));
    }
    fn warn(&self, message: &str) {
        self.note(format!("warn {message}"));
    }
}

/// What both sides' disks and nets would show from outside.
#[derive(Default)]
pub(crate) struct FakeWorld {
    /// The epoch whose output the primary has released.
    pub(crate) released: Cell<u64>,
    pub(crate) write_error: Cell<bool>,
    /// The epoch of the primary's guest when it was last stopped for a checkpoint.
    pub(crate) primary_epoch: Cell<u64>,
}

pub(crate) struct FakeDisks {
    vm: Rc<FakeVm>,
    world: Rc<FakeWorld>,
    device: Arc<EpochDevice>,
    mode: Cell<Option<ColoMode>>,
    /// The epoch that the disk would show after a failover.
    pub(crate) epoch: Cell<u64>,
    /// How many checkpoints fail from now on.
    pub(crate) failures: Cell<u32>,
}

impl DiskReplication for FakeDisks {
    fn start_all(&self, mode: ColoMode) -> LocalFuture<'_, Result<()>> {
        self.mode.set(Some(mode));
        self.epoch.set(*self.device.epoch.lock());
        self.vm.note(format!("replication {}", mode.as_str()));
        Box::pin(async { Ok(()) })
    }
    fn checkpoint_all(&self) -> LocalFuture<'_, Result<()>> {
        // The primary's disk is that of the epoch that is being taken over; a secondary learns its number from the device.
        self.vm.ask("disks: checkpoint");
        Box::pin(async {
            tokio::task::yield_now().await;
            if self.failures.get() > 0 {
                self.failures.set(self.failures.get() - 1);
                return Err(err!("Cannot make active disk empty: No space left on device"));
            }
            self.epoch.set(self.world.primary_epoch.get());
            Ok(())
        })
    }
    fn error(&self) -> Result<()> {
        self.vm.ask("disks: error?");
        match self.world.write_error.get() && self.mode.get() == Some(ColoMode::Primary) {
            true => Err(err!("Input/output error")),
            false => Ok(()),
        }
    }
    fn peer_lost(&self) {
        self.vm.ask("disks: peer lost");
    }
    fn stop_all(&self, failover: bool) -> LocalFuture<'_, Result<()>> {
        self.mode.set(None);
        self.vm.note(format!("replication stop failover={failover}"));
        self.vm.ask("disks: stop");
        Box::pin(async { Ok(()) })
    }
    fn gate_peer_writes(&self, held: bool) {
        self.vm.ask(format!("disks: peer's writes {}", if held { "wait" } else { "go on" }));
    }
}

pub(crate) struct FakeNet {
    vm: Rc<FakeVm>,
    world: Rc<FakeWorld>,
    device: Arc<EpochDevice>,
    pub(crate) connections: RefCell<Option<Value>>,
    /// What happens while held packets are released for the next time.
    pub(crate) at_release: RefCell<Option<Box<dyn FnOnce()>>>,
}

impl FakeNet {
    fn done(&self, what: &str) -> LocalFuture<'_, ()> {
        self.vm.ask(format!("net: {what}"));
        Box::pin(async {})
    }
}

impl NetCheckpoint for FakeNet {
    fn checkpoint_begins(&self) {
        self.vm.ask("net: checkpoint begins");
    }
    fn drain_outgoing(&self) -> LocalFuture<'_, ()> {
        assert!(!self.vm.is_running(), "the outgoing stream is drained of a guest that stands still");
        self.done("drain outgoing")
    }
    fn drain_mirrors(&self) -> LocalFuture<'_, ()> {
        self.done("drain mirrors")
    }
    fn discard_incoming(&self) -> LocalFuture<'_, ()> {
        self.done("discard incoming")
    }
    fn release_held(&self, _: Style) -> LocalFuture<'_, ()> {
        self.world.released.set(*self.device.epoch.lock());
        if let Some(happens) = self.at_release.take() {
            happens();
        }
        self.done("release held")
    }
    fn hold_identity(&self, open: bool, probe: Option<Box<dyn Fn() -> bool + Send + Sync>>) {
        let open = if open { "open" } else { "closed" };
        self.vm.ask(format!("net: identity {open}{}", if probe.is_some() { " while the peer is there" } else { "" }));
    }
    fn remirror_undelivered(&self) {
        self.world.primary_epoch.set(*self.device.epoch.lock());
    }
    fn notify_checkpoint(&self) {
        self.vm.ask("net: it is a copy");
    }
    fn notify_failover(&self) {
        self.vm.ask("net: alone");
        self.vm.note("filters failover");
    }
    fn export_connections(&self) -> Option<Value> {
        self.connections.borrow().clone()
    }
    fn import_connections(&self, connections: &Value) -> Result<()> {
        self.vm.ask("net: connections");
        if !connections.is_array() {
            return Err(err!("These are no connections"));
        }
        *self.connections.borrow_mut() = Some(connections.clone());
        Ok(())
    }
}

struct NoFds;

impl FdSource for NoFds {
    fn take_fd(&self, name: &str) -> Result<OwnedFd> {
        Err(err!("File descriptor named '{name}' has not been found"))
    }
}

/// A machine and its migration.
pub(crate) struct FakeMachine {
    pub(crate) migration: Migration,
    pub(crate) ram: RamList,
    pub(crate) device: Arc<EpochDevice>,
    pub(crate) vm: Rc<FakeVm>,
    pub(crate) disks: Rc<FakeDisks>,
    pub(crate) net: Rc<FakeNet>,
}

impl FakeMachine {
    pub(crate) fn new(world: &Rc<FakeWorld>, steps: Steps) -> Self {
        let ram = RamList::new();
        ram.allocate("pc.ram", PAGES * PAGE as u64).unwrap();
        ram.allocate("vga.vram", 4 * PAGE as u64).unwrap();
        let (states, device) = (StateRegistry::new(), Arc::new(EpochDevice::default()));
        let global_state = Arc::new(GlobalState::default());
        states.reserve("ram");
        states.register("epoch", device.clone());
        states.register("globalstate", global_state.clone());
        let vm = Rc::new(FakeVm::default());
        vm.autostart.set(true);
        let disks = Rc::new(FakeDisks {
            vm: vm.clone(),
            world: world.clone(),
            device: device.clone(),
            mode: Cell::new(None),
            epoch: Cell::new(0),
            failures: Cell::new(0),
        });
        let net = Rc::new(FakeNet {
            vm: vm.clone(),
            world: world.clone(),
            device: device.clone(),
            connections: RefCell::new(None),
            at_release: RefCell::new(None),
        });
        let migration = Migration::new(Environment {
            machine: "pc-i440fx-10.0".into(),
            frames: Frames::default(),
            ram: ram.clone(),
            states,
            global_state,
            vm: vm.clone(),
            disks: disks.clone(),
            net: net.clone(),
            fds: Rc::new(NoFds),
            steps,
        });
        Self { migration, ram, device, vm, disks, net }
    }

    /// A machine whose guest runs.
    pub(crate) fn running(world: &Rc<FakeWorld>, steps: Steps) -> Self {
        let machine = Self::new(world, steps);
        machine.vm.running.set(true);
        machine.vm.set_run_state("running");
        machine.vm.disks_active.set(true);
        machine
    }

    /// The guest does its work of an epoch: pages spread over RAM, and the device.
    pub(crate) fn work(&self, epoch: u64) {
        Self::work_on(&self.ram, &self.device, epoch);
    }

    pub(crate) fn work_on(ram: &RamList, device: &EpochDevice, epoch: u64) {
        let block = ram.find("pc.ram").unwrap();
        for page in (0..PAGES).step_by(7) {
            block.write(page * PAGE as u64 + 16, &epoch.to_le_bytes()).unwrap();
        }
        *device.epoch.lock() = epoch;
    }

    /// The guest, astray, writes elsewhere.
    pub(crate) fn stray(&self, byte: u8) {
        let block = self.ram.find("pc.ram").unwrap();
        for page in (0..PAGES).step_by(5) {
            block.write(page * PAGE as u64 + 2048, &[byte]).unwrap();
        }
    }

    pub(crate) fn set_style(&self, style: &str) {
        self.migration.set_parameters([("x-checkpoint-style", style.into())]).unwrap();
    }

    /// The epoch that all of RAM and the device agree on.
    pub(crate) fn whole_epoch(&self) -> std::result::Result<u64, String> {
        let block = self.ram.find("pc.ram").unwrap();
        let device = *self.device.epoch.lock();
        for page in (0..PAGES).step_by(7) {
            let mut bytes = [0; 8];
            block.read(page * PAGE as u64 + 16, &mut bytes).unwrap();
            let epoch = u64::from_le_bytes(bytes);
            if epoch != device {
                return Err(format!("page {page} is of epoch {epoch}, the device of {device}"));
            }
        }
        Ok(device)
    }

    pub(crate) fn contents(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for block in self.ram.blocks() {
            let at = all.len();
            all.resize(at + block.size() as usize, 0);
            block.read(0, &mut all[at..]).unwrap();
        }
        all
    }

    pub(crate) fn status(&self) -> String {
        self.migration.info().status.as_str().to_owned()
    }
}
