//! Signals that end the program.

use std::{rc::Rc, sync::Arc};

use lockstep_event::Local;
use lockstep_qapi::schema::ShutdownCause;
use lockstep_util::{Result, err, report};

use crate::vm::Vm;

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
pub fn block_signals() {
    // SAFETY: the set is a valid one; the old mask is not asked for.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &end_signals(), std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Waits for a signal that ends the program on a thread of its own.
pub fn watch_signals(vm: &Rc<Vm>) -> Result<()> {
    let (main, vm) = (vm.main.clone(), Arc::new(Local::new(Rc::downgrade(vm))));
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
                        report::error(format_args!("terminating on signal {signal} from pid {sender} ({name})"));
                    } else {
                        report::error(format_args!("terminating on signal {signal}"));
                    }
                    vm.quit(ShutdownCause::HostSignal);
                }
            });
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(|e| err!("cannot start a thread: {e}"))?;
    Ok(())
}
