//! From the command line to a machine: the order in which things are made is QEMU's, because users see it.

use std::{process::ExitCode, rc::Rc};

use lockstep_event::{Clocks, Context, ContextHandle};
use lockstep_hw::core::Board;
use lockstep_qapi::schema::ShutdownCause;
use lockstep_util::{Error, Result, err};

use crate::{
    cmdline::{self, CommandLine},
    machine_options::MachineOptions,
    version_text,
    vm::{Accelerator, Vm},
};

/// Runs the program with the words after its name.
pub fn run(words: &[String]) -> ExitCode {
    let outcome = CommandLine::parse(words).and_then(|line| {
        if line.has("help") {
            print!("{}", cmdline::help_text());
            return Ok(ExitCode::SUCCESS);
        }
        if line.has("version") {
            println!("{}", version_text());
            return Ok(ExitCode::SUCCESS);
        }
        block_signals();
        let context = Context::new("main").map_err(|e| err!("cannot make the main loop: {e}"))?;
        let main = context.handle();
        context.run(run_machine(line, main))
    });
    outcome.unwrap_or_else(|e| {
        report(&e);
        ExitCode::FAILURE
    })
}

/// Prints an error as QEMU does.
pub fn report(error: &Error) {
    eprintln!("qemu-system-x86_64: {}", error.message());
    if !error.hint_text().is_empty() {
        eprint!("{}", error.hint_text());
    }
}

/// Signals that end the program, in the order of their numbers.
const END_SIGNALS: [libc::c_int; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];

fn end_signals() -> libc::sigset_t {
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        END_SIGNALS.iter().for_each(|&s| {
            libc::sigaddset(&mut set, s);
        });
        set
    }
}

/// Blocks the signals that end the program in this thread and all that come after: one thread waits for them.
fn block_signals() {
    // SAFETY: the set is a valid one; the old mask is not asked for.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &end_signals(), std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Waits for a signal that ends the program on a thread of its own.
fn watch_signals(vm: &Rc<Vm>) -> Result<()> {
    let (main, vm) = (vm.main.clone(), std::sync::Arc::new(lockstep_event::Local::new(Rc::downgrade(vm))));
    let wait = move || {
        loop {
            // SAFETY: an all-zero siginfo_t is valid, and the call fills it in.
            let (signal, info) = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                (libc::sigwaitinfo(&end_signals(), &mut info), info)
            };
            if signal < 0 {
                continue;
            }
            // SAFETY: signals of this kind are sent by processes (or the terminal: then it is 0).
            let sender = unsafe { info.si_pid() };
            let vm = vm.clone();
            main.post(move || {
                if let Some(vm) = vm.get().upgrade() {
                    if sender != 0 {
                        let name = std::fs::read_to_string(format!("/proc/{sender}/cmdline")).unwrap_or_default();
                        let name = name.split('\0').next().filter(|n| !n.is_empty()).unwrap_or("<unknown process>");
                        eprintln!("qemu-system-x86_64: terminating on signal {signal} from pid {sender} ({name})");
                    } else {
                        eprintln!("qemu-system-x86_64: terminating on signal {signal}");
                    }
                    vm.quit(ShutdownCause::HostSignal);
                }
            });
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(|e| err!("cannot start a thread: {e}"))?;
    Ok(())
}

async fn run_machine(line: CommandLine, main: ContextHandle) -> Result<ExitCode> {
    let clocks = Clocks::new();
    let options = MachineOptions::parse(&line)?;
    let vm = Vm::new(main, Board::new(clocks), Accelerator::None, options);
    watch_signals(&vm)?;
    vm.autostart.set(!line.has("S"));
    if vm.autostart.get() {
        vm.start().await;
    }
    let exit = vm.wait_for_exit().await;
    vm.stop(lockstep_qapi::schema::RunState::Shutdown).await;
    Ok(ExitCode::from(exit.status))
}
