//! The commands of the machine protocol, one file a topic, as in the schema.

mod block;
mod chardev;
pub mod cpus;
mod descriptors;
mod facts;
pub mod input;
pub(crate) mod keys;
mod machine;
mod migration;
mod net;
pub mod pci;
mod qom;
mod run_state;
pub mod screen;
pub mod vnc;

use std::{rc::Rc, sync::Arc};

pub use chardev::CHARDEVS;
pub use descriptors::client;
pub use net::NETDEVS;

use lockstep_event::Local;
use lockstep_qapi::{
    Dispatcher, Registry, SessionConfig,
    schema::{VersionInfo, VersionTriple},
};

use lockstep_util::{Result, fds};

use crate::{
    QEMU_VERSION,
    monitor::qmp::{Output, QmpMonitor},
    vm::Vm,
};

/// What handlers work on.
pub type Ctx = Rc<Vm>;

/// What `query-version` and the greeting say.
pub fn version_info() -> VersionInfo {
    let [major, minor, micro] = QEMU_VERSION.map(i64::from);
    VersionInfo {
        qemu: VersionTriple { major, minor, micro },
        package: format!("Lockstep {}", env!("CARGO_PKG_VERSION")),
    }
}

/// All commands.
///
/// # Errors
/// When the machine has no migration yet.
pub fn dispatcher(vm: &Ctx) -> Result<Rc<Dispatcher<Ctx>>> {
    let mut registry = Registry::new(version_info());
    block::register(&mut registry);
    chardev::register(&mut registry);
    cpus::register(&mut registry);
    descriptors::register(&mut registry);
    facts::register(&mut registry);
    input::register(&mut registry);
    machine::register(&mut registry);
    net::register(&mut registry);
    pci::register(&mut registry);
    run_state::register(&mut registry);
    screen::register(&mut registry);
    vnc::register(&mut registry);
    qom::register(&mut registry);
    migration::register(&mut registry);
    migration::register_yank(&mut registry, vm)?;
    Ok(Rc::new(registry.build()))
}

/// Makes a QMP monitor for a machine.
pub fn monitor(
    vm: &Rc<Vm>,
    dispatcher: &Rc<Dispatcher<Ctx>>,
    pretty: bool,
    oob: bool,
    output: Output,
    client: fds::Client,
) -> Arc<QmpMonitor> {
    let config = SessionConfig { version: version_info(), oob, pretty };
    // The pump runs on the main context only: what it uses may stay there.
    let parts = Local::new((vm.clone(), dispatcher.clone(), client));
    let monitor = QmpMonitor::new(config, dispatcher.catalogue().clone(), vm.main.clone(), output, move |monitor| {
        let (vm, dispatcher, client) = parts.get().clone();
        tokio::task::spawn_local(async move {
            while let Some(call) = monitor.next_call() {
                // Commands of all monitors run one after the other.
                let _turn = vm.command_turn.lock().await;
                let command = dispatcher.call(vm.clone(), &call.name, call.arguments.clone());
                let result = client.during(command).await;
                monitor.finish(call, result);
            }
        });
    });
    vm.monitors.add(&monitor);
    monitor
}
