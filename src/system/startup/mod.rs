//! From the command line to a machine: the order in which things are made is QEMU's, because users see it.

mod backends;
mod daemon;
mod log;
mod monitors;
mod signals;

use std::{process::ExitCode, rc::Rc};

use lockstep_accel::{kvm::KvmMachine, tcg::TcgMachine};
use lockstep_event::{Clocks, Context, ContextHandle};
use lockstep_hw::core::{Board, ResetKind};
use lockstep_qapi::schema::RunState;
use lockstep_util::{Error, Log, Result, bail, err, report};

use crate::{
    cmdline::{CommandLine, help},
    machine,
    machine_options::{AccelKind, MachineKind, MachineOptions},
    migration, qmp,
    vm::{Accelerator, Vm},
};

/// Runs the program with the words after its name.
pub fn run(words: &[String]) -> ExitCode {
    let outcome = CommandLine::parse(words).and_then(|line| match help::wanted(&line)? {
        Some(text) => {
            print!("{text}");
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let daemon = line.has("daemonize").then(daemon::daemonize).transpose()?;
            signals::block_signals();
            let context = Context::new("main").map_err(|e| err!("cannot make the main loop: {e}"))?;
            let main = context.handle();
            context.run(run_machine(line, main, daemon))
        }
    });
    lockstep_chardev::restore_terminal();
    Log::global().flush();
    outcome.unwrap_or_else(|e| {
        report_error(&e);
        ExitCode::FAILURE
    })
}

/// Prints an error as QEMU does: the place is in its text.
fn report_error(error: &Error) {
    match error.speaker() {
        Some(name) => eprintln!("{name}: {}", error.message()),
        None => report::error(error.message()),
    }
    eprint!("{}", error.hint_text());
}

async fn run_machine(line: CommandLine, main: ContextHandle, daemon: Option<daemon::Daemon>) -> Result<ExitCode> {
    backends::messages(&line)?;
    backends::descriptor_sets(&line)?;
    if !log::set_up(&line)? {
        return Ok(ExitCode::FAILURE);
    }
    let vm = empty_machine(&line, main)?;
    signals::watch_signals(&vm)?;
    let status = bring_up(&vm, &line).await;
    if let Err(e) = status.and_then(|()| daemon.map_or(Ok(()), daemon::Daemon::ready)) {
        vm.graph.close_all().await;
        return Err(e);
    }
    let exit = vm.wait_for_exit().await;
    lockstep_block::commands::end_users(&vm.graph).await;
    vm.stop(RunState::Shutdown).await;
    vm.graph.close_all().await;
    // What monitors were told last reaches them.
    vm.chardevs.drain(std::time::Duration::from_secs(1)).await;
    if let Some(o) = line.last("pidfile") {
        let _ = std::fs::remove_file(&o.value);
    }
    Ok(ExitCode::from(exit.status))
}

/// The machine of a command line, as the program makes it, for those who want it in a process of their own. Signals are theirs.
///
/// # Errors
/// Those that end the program.
pub async fn machine_of(line: &CommandLine, main: ContextHandle) -> Result<Rc<Vm>> {
    let vm = empty_machine(line, main)?;
    bring_up(&vm, line).await?;
    Ok(vm)
}

fn empty_machine(line: &CommandLine, main: ContextHandle) -> Result<Rc<Vm>> {
    let options = MachineOptions::parse(line)?;
    backends::display(line)?;
    let (accelerator, clocks) = choose_accelerator(&options)?;
    let board = Board::new(clocks);
    for o in line.all("L") {
        board.firmware.prepend(&o.value);
    }
    let vm = Vm::new(main, board, accelerator, options);
    tokio::task::spawn_local(vm.graph.clone().run_collector());
    Ok(vm)
}

/// Takes the first accelerator that works.
fn choose_accelerator(options: &MachineOptions) -> Result<(Accelerator, Clocks)> {
    if options.machine.kind == MachineKind::None {
        return Ok((Accelerator::None, Clocks::new()));
    }
    let mut failures: Vec<Error> = vec![];
    for kind in &options.accelerators {
        match kind {
            Err(unknown) => failures.push(Error::new(unknown.clone())),
            Ok(AccelKind::Qtest) => {
                no_icount(options)?;
                failures.iter().for_each(|e| report::error(e.message()));
                return Ok((Accelerator::Qtest, Clocks::manual()));
            }
            Ok(AccelKind::Tcg) => {
                failures.iter().for_each(|e| report::error(e.message()));
                if !failures.is_empty() {
                    report::error("falling back to tcg");
                }
                let code_memory = match options.tb_size {
                    0 => TcgMachine::usual_code_memory(),
                    mebibytes => u64::from(mebibytes) << 20,
                };
                let (tcg, clocks) = match options.icount {
                    Some(icount) => {
                        let clocks = Clocks::manual();
                        (TcgMachine::counted(clocks.clone(), code_memory, icount), clocks)
                    }
                    None => {
                        let clocks = Clocks::new();
                        (TcgMachine::new(clocks.clone(), code_memory), clocks)
                    }
                };
                return Ok((Accelerator::Tcg(tcg), clocks));
            }
            Ok(AccelKind::Kvm) => {
                let clocks = Clocks::new();
                match KvmMachine::new(clocks.clone()) {
                    Ok(kvm) => {
                        no_icount(options)?;
                        failures.iter().for_each(|e| report::error(e.message()));
                        if !failures.is_empty() {
                            report::error("falling back to KVM");
                        }
                        return Ok((Accelerator::Kvm(std::sync::Arc::new(kvm)), clocks));
                    }
                    Err(e) => {
                        eprintln!("{}", e.message());
                        let reason = e.message().rsplit(": ").next().unwrap_or_default().to_owned();
                        failures.push(err!("failed to initialize kvm: {reason}"));
                    }
                }
            }
        }
    }
    // The last failure is why the program ends.
    let last = failures.pop().unwrap_or_else(|| err!("no accelerator found"));
    failures.iter().for_each(|e| report::error(e.message()));
    Err(last)
}

/// Nobody but the software CPU counts instructions.
fn no_icount(options: &MachineOptions) -> Result<()> {
    if options.icount.is_some() { Err(err!("-icount is not allowed with hardware virtualization")) } else { Ok(()) }
}

async fn bring_up(vm: &Rc<Vm>, line: &CommandLine) -> Result<()> {
    vm.autostart.set(!line.has("S"));
    backends::set_actions(vm, line)?;
    backends::early_objects(vm, line).await?;
    backends::chardevs(vm, line).await?;
    if line.has("incoming") {
        vm.graph.set_opens_inactive(true);
    }
    backends::disks(vm, line).await?;
    migration::register_first_sections(vm);
    machine::create(vm, line).await?;
    backends::netdevs(vm, line).await?;
    backends::late_objects(vm, line).await?;
    for o in line.all("device") {
        report::within(&o.location, || machine::add_device_text(vm, &o.value)).map_err(|e| o.locate(e))?;
    }
    machine::finish(vm)?;
    vm.board.resets.reset(ResetKind::Cold);
    vm.set_migration(migration::create(vm)?);
    // Before anybody can ask for them.
    backends::displays(vm, line).await?;
    let dispatcher = qmp::dispatcher(vm)?;
    monitors::start(vm, &dispatcher, line).await?;
    backends::qtest(vm, line).await?;
    backends::debuggers(vm, line).await?;
    if let Some(o) = line.last("pidfile") {
        write_pidfile(&o.value)?;
    }
    if let Some(o) = line.last("incoming") {
        vm.set_state(RunState::Inmigrate);
        if o.value == "defer" {
            vm.migration()?.expect_incoming();
        } else {
            vm.migration()?.start_incoming(&o.value).map_err(|e| o.locate(e))?;
        }
    } else if vm.autostart.get() {
        vm.start().await;
    }
    Ok(())
}

fn write_pidfile(path: &str) -> Result<()> {
    let result = std::fs::write(path, format!("{}\n", std::process::id()));
    if let Err(e) = result {
        let cause = Error::with_errno(format_args!("Could not create '{path}'"), &e);
        bail!("cannot create PID file: {cause}");
    }
    Ok(())
}
