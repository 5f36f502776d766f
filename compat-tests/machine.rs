//! A VM started by a block of shell lines, with its monitor on standard input and output.
use crate::monitor::Monitor;
use crate::stage::Host;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

/// What VMs said on standard error while nobody was to be bothered with it; `None` while it is printed at once.
static KEPT: Mutex<Option<VecDeque<String>>> = Mutex::new(None);
const MOST_KEPT: usize = 200;

/// From now on what VMs say on standard error is printed only if the program panics, or by [`print_kept`].
pub fn keep_errors() {
    *KEPT.lock().unwrap() = Some(VecDeque::new());
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print_kept();
        hook(panic);
    }));
}

/// Prints what [`keep_errors`] kept.
///
/// # Panics
/// If a thread panicked while it kept a line.
pub fn print_kept() {
    let mut kept = KEPT.lock().unwrap();
    kept.iter_mut().flat_map(std::mem::take).for_each(|line| eprintln!("{line}"));
}

fn print_or_keep(line: String) {
    match KEPT.lock().unwrap().as_mut() {
        None => eprintln!("{line}"),
        Some(kept) => {
            if kept.len() == MOST_KEPT {
                kept.pop_front();
            }
            kept.push_back(line);
        }
    }
}

/// Folder in which each VM gets one more monitor, a socket by its name: for whoever wants to look on.
pub const MONITORS: &str = "LOCKSTEP_MONITORS";

fn with_second_monitor(lines: &str, name: &str) -> String {
    let Some(folder) = std::env::var_os(MONITORS) else { return lines.into() };
    let socket = Path::new(&folder).join(format!("{name}.qmp"));
    lines.replace("-qmp stdio", &format!("-qmp stdio -qmp unix:{},server=on,wait=off", socket.display()))
}

/// The VM's processes: the shell and what it started, one process group.
pub struct Machine {
    /// The monitor.
    pub monitor: Monitor,
    name: String,
    shell: Child,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Machine {
    /// Hands `lines` to a shell on `host`.
    ///
    /// # Panics
    /// If there is no shell.
    pub fn start(host: &Host, name: &str, lines: &str) -> Self {
        let mut command = host.command("sh");
        command
            .arg("-c")
            .arg(with_second_monitor(lines, name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut shell = command.spawn().unwrap_or_else(|error| panic!("sh: {error}"));
        let (input, output) = (shell.stdin.take().expect("piped"), shell.stdout.take().expect("piped"));
        let errors = Arc::new(Mutex::new(Vec::new()));
        let (sink, stderr, tag) = (Arc::clone(&errors), shell.stderr.take().expect("piped"), name.to_string());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let Ok(line) = line else { break };
                print_or_keep(format!("{tag}: {line}"));
                sink.lock().unwrap().push(line);
            }
        });
        Self { monitor: Monitor::new(name, input, output), name: name.into(), shell, errors }
    }

    /// The VM's name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of the process group of the shell and what it started.
    pub fn group(&self) -> u32 {
        self.shell.id()
    }

    /// What it wrote to standard error.
    pub fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap().clone()
    }

    /// Kills the VM with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        if self.exited().is_none() {
            self.signal(rustix::process::Signal::KILL);
            let _ = self.shell.wait();
            // What the shell started is ours now (this is the first process of its namespace): it must be gone too, with its locks.
            let group = rustix::process::Pid::from_raw(self.shell.id() as i32);
            while group.is_some_and(|group| {
                rustix::process::waitpgid(group, rustix::process::WaitOptions::empty())
                    .is_ok_and(|ended| ended.is_some())
            }) {}
        }
    }

    /// Stops the VM's processes with SIGSTOP: a host that hangs.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets frozen processes go on.
    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Has the VM ended, and how?
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.shell.try_wait().ok().flatten()
    }

    /// Asks the VM to end (`quit`) and waits for it.
    ///
    /// # Panics
    /// If it ends with an error.
    pub fn quit(mut self) {
        self.monitor.command(r#"{"execute": "quit"}"#);
        let status = self.shell.wait().expect("the shell is our child");
        assert!(status.success(), "{} ended with {status}", self.name);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        if let Some(group) = rustix::process::Pid::from_raw(self.shell.id() as i32) {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}
