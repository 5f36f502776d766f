//! The virtual machine as the main context has it: its parts, and what its run state allows.

mod block_events;
mod control;

use std::{
    cell::{Cell, OnceCell, RefCell},
    io::{self, Write},
    rc::Rc,
    sync::Arc,
};

use lockstep_accel::{VcpuSet, kvm::KvmMachine, tcg::TcgMachine};
use lockstep_block::Graph;
use lockstep_chardev::{ChardevRegistry, options::Described};
use lockstep_event::{Clocks, ContextHandle, IoThread};
use lockstep_hw::core::Board;
use lockstep_migration::{Migration, hooks::AnnounceSchedule};
use lockstep_net::{AnnounceParameters, NetRegistry};
use lockstep_qapi::{
    EventMessage, EventType,
    schema::{ChardevBackend, ChardevMux, ChardevMuxWrapper, RebootAction, RunState, ShutdownAction, ShutdownCause},
};
use lockstep_util::{Result, YankRegistry, err};
use tokio::sync::{Mutex, watch};

use crate::{
    drive::Drives,
    gdb::Debugger,
    machine::Pc,
    machine_options::{MachineKind, MachineOptions},
    monitor::qmp::Monitors,
    objects::Objects,
    qmp::input::KeyQueue,
    vnc::Displays,
};

/// What runs the guest.
#[derive(Clone)]
pub enum Accelerator {
    /// Linux KVM.
    Kvm(Arc<KvmMachine>),
    /// The software CPU.
    Tcg(Arc<TcgMachine>),
    /// Nobody: a test drives the bus.
    Qtest,
    /// A machine without CPUs (`-machine none`).
    None,
}

/// Told of each change between running and not running, with the new state, before the guest runs and after it stopped.
pub type StateListener = Rc<dyn Fn(bool, RunState)>;

/// The machine. Lives on the main context.
pub struct Vm {
    /// The main context.
    pub main: ContextHandle,
    /// The guest's clocks.
    pub clocks: Clocks,
    /// What devices are built on.
    pub board: Board,
    /// The block graph.
    pub graph: Graph,
    /// QMP monitors, for events.
    pub monitors: Monitors,
    /// Character devices.
    pub chardevs: ChardevRegistry,
    /// Networks.
    pub net: NetRegistry,
    /// Connections that can be cut.
    pub yank: YankRegistry,
    /// Keys that a user has pressed.
    pub key_queue: Rc<KeyQueue>,
    /// Objects that a user made.
    pub objects: Objects,
    /// Displays for VNC viewers.
    pub displays: Displays,
    /// Drives.
    pub drives: Drives,
    /// gdb, if it is there.
    pub debugger: Debugger,
    /// The options of the machine.
    pub options: MachineOptions,
    /// What runs the guest.
    pub accelerator: Accelerator,
    migration: OnceCell<Migration>,
    pc: OnceCell<Pc>,
    /// Reads the monitors' input.
    monitor_thread: OnceCell<IoThread>,
    /// What lives as long as the machine and nobody asks for.
    kept: RefCell<Vec<Rc<dyn std::any::Any>>>,
    vcpus: OnceCell<VcpuSet>,
    state: Cell<RunState>,
    /// Held while a monitor's command runs.
    pub command_turn: Mutex<()>,
    /// Held while the machine is being stopped or started, so that such changes come one at a time.
    transition: Mutex<()>,
    listeners: RefCell<Vec<StateListener>>,
    /// What a guest's reset leads to.
    pub on_reboot: Cell<RebootAction>,
    /// What a guest's power off leads to.
    pub on_shutdown: Cell<ShutdownAction>,
    /// Whether the guest is to run once it is all there.
    pub autostart: Cell<bool>,
    exit: watch::Sender<Option<Exit>>,
}

/// Why the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The reason.
    pub cause: ShutdownCause,
    /// The process's exit status.
    pub status: u8,
}

impl Vm {
    /// A machine without devices, before it was started.
    pub fn new(main: ContextHandle, board: Board, accelerator: Accelerator, options: MachineOptions) -> Rc<Self> {
        let graph = Graph::new();
        // Block nodes and character devices are in one list.
        let yank = (*graph.extension::<YankRegistry>()).clone();
        let chardevs = ChardevRegistry::new(yank.clone());
        let clocks = board.clocks.clone();
        let net = NetRegistry::new(chardevs.clone(), clocks.clone());
        let vm = Rc::new(Self {
            main,
            clocks,
            net: net.clone(),
            board,
            graph,
            monitors: Monitors::default(),
            chardevs,
            yank,
            key_queue: Rc::default(),
            objects: Objects::default(),
            migration: OnceCell::new(),
            pc: OnceCell::new(),
            monitor_thread: OnceCell::new(),
            kept: RefCell::default(),
            displays: Displays::default(),
            drives: Drives::default(),
            debugger: Debugger::default(),
            options,
            accelerator,
            vcpus: OnceCell::new(),
            state: Cell::new(RunState::Prelaunch),
            command_turn: Mutex::new(()),
            transition: Mutex::new(()),
            listeners: RefCell::default(),
            on_reboot: Cell::new(RebootAction::Reset),
            on_shutdown: Cell::new(ShutdownAction::Poweroff),
            autostart: Cell::new(true),
            exit: watch::Sender::new(None),
        });
        vm.add_state_listener(move |running, _| net.set_running(running));
        block_events::connect(&vm);
        vm
    }

    /// The type of the machine as an object (`pc-i440fx-10.0-machine`).
    pub fn machine_type_name(&self) -> &'static str {
        self.options.machine.qom_type
    }

    /// The guest's memory in bytes.
    pub fn base_memory(&self) -> u64 {
        if self.options.machine.kind == MachineKind::None { 0 } else { self.options.ram_size }
    }

    /// The name of the CPU's model.
    pub fn cpu_model_name(&self) -> &str {
        let option = self.options.cpu.as_deref().unwrap_or("qemu64");
        let name = option.split(',').next().unwrap_or_default();
        name.strip_suffix("-x86_64-cpu").unwrap_or(name)
    }

    /// The machine's UUID as text; all zero when it has none.
    pub fn uuid_text(&self) -> String {
        let uuid = self.options.uuid.unwrap_or_default();
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        [&uuid[..4], &uuid[4..6], &uuid[6..8], &uuid[8..10], &uuid[10..]].map(hex).join("-")
    }

    /// The pc machine, if it is one.
    pub fn pc(&self) -> Option<&Pc> {
        self.pc.get()
    }

    /// Gives the pc machine its board, once.
    pub fn set_pc(&self, pc: Pc) {
        let already = self.pc.set(pc).is_err();
        debug_assert!(!already, "the board is made once");
    }

    /// The machine's migration.
    ///
    /// # Errors
    /// Before it was made, at start-up.
    pub fn migration(&self) -> Result<&Migration> {
        self.migration.get().ok_or_else(|| err!("the machine is not set up yet"))
    }

    /// Gives the machine its migration, once.
    pub fn set_migration(&self, migration: Migration) {
        let already = self.migration.set(migration).is_err();
        debug_assert!(!already, "the migration is made once");
    }

    /// Tells the network where the guest is now.
    pub fn announce(&self, schedule: AnnounceSchedule) {
        self.net.self_announce(AnnounceParameters {
            initial_ms: schedule.initial,
            max_ms: schedule.max,
            rounds: schedule.rounds,
            step_ms: schedule.step,
            interfaces: vec![],
        });
    }

    /// The context that reads the monitors' input.
    pub fn monitor_context(&self) -> ContextHandle {
        match self.monitor_thread.get() {
            Some(thread) => thread.handle(),
            // Without another thread there are no out-of-band commands, but all else works.
            None => IoThread::spawn("mon_iothread")
                .map_or_else(|_| self.main.clone(), |thread| self.monitor_thread.get_or_init(|| thread).handle()),
        }
    }

    /// Keeps a value for as long as the machine.
    pub fn keep(&self, value: Rc<dyn std::any::Any>) {
        self.kept.borrow_mut().push(value);
    }

    /// Makes a character device as the command line describes it; with `mux=on` its users share a multiplexer on it.
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn add_chardev(&self, described: Described) -> Result<()> {
        let Described { id, backend, mux } = described;
        let base = if mux { format!("{id}-base") } else { id.clone() };
        if let Some(terminal) = self.chardevs.create(&base, backend).await?.pty {
            // Scripts read this line. It goes where QEMU's goes; nobody can be told that it does not get there.
            let _ = writeln!(io::stdout(), "char device redirected to {terminal} (label {base})");
        }
        if !mux {
            return Ok(());
        }
        let data = ChardevMux { logfile: None, logappend: None, chardev: base };
        self.chardevs.create(&id, ChardevBackend::Mux(ChardevMuxWrapper { data })).await?;
        Ok(())
    }

    /// Gives the machine its vCPUs, once.
    pub fn set_vcpus(&self, vcpus: VcpuSet) {
        let already = self.vcpus.set(vcpus).is_err();
        debug_assert!(!already, "vCPUs are given once");
    }

    /// The vCPUs, if there are any.
    pub fn vcpus(&self) -> Option<&VcpuSet> {
        self.vcpus.get()
    }

    /// The run state.
    pub fn state(&self) -> RunState {
        self.state.get()
    }

    /// Whether the guest runs.
    pub fn is_running(&self) -> bool {
        self.state.get() == RunState::Running
    }

    /// Has a listener called at each change between running and not running.
    pub fn add_state_listener(&self, listener: impl Fn(bool, RunState) + 'static) {
        self.listeners.borrow_mut().push(Rc::new(listener));
    }

    /// Sends an event to all monitors.
    pub fn emit<E: EventType>(&self, data: &E::Data) {
        self.monitors.broadcast(&EventMessage::now::<E>(data));
    }

    /// Waits until the program is to end.
    pub async fn wait_for_exit(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(exit) = *exit.borrow_and_update() {
                return exit;
            }
            // The sender lives as long as `self`.
            let _ = exit.changed().await;
        }
    }

    /// Has the program end. The first reason counts.
    pub fn request_exit(&self, cause: ShutdownCause, status: u8) {
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert(Exit { cause, status });
            first
        });
    }
}
