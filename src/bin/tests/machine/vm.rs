//! A VM with its monitor on standard input and output: Lockstep's, or QEMU's as the oracle.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Root of an unpacked QEMU that can be a COLO primary (7.2).
const OLD_QEMU: &str = "LOCKSTEP_COMPAT_QEMU";

/// What runs a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// This project's.
    Lockstep,
    /// The installed QEMU.
    Qemu,
    /// The QEMU that can be a COLO primary.
    OldQemu,
}

impl Program {
    fn command(self) -> Command {
        match self {
            Self::Lockstep => Command::new(env!("CARGO_BIN_EXE_qemu-system-x86_64")),
            Self::Qemu => Command::new(QEMU),
            Self::OldQemu => {
                let root = PathBuf::from(std::env::var_os(OLD_QEMU).expect("it was looked for"));
                let mut command = Command::new(root.join("usr/bin").join(QEMU));
                command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"));
                command.args(["-L", "/usr/share/qemu", "-L", "/usr/share/seabios", "-L", "/usr/lib/ipxe/qemu"]);
                command
            }
        }
    }
}

const QEMU: &str = "qemu-system-x86_64";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether a QEMU is installed that has the machine types there are here (10.0 or newer); says so if not. Debian bookworm alone has 7.2.
pub fn has_qemu() -> bool {
    let version = Command::new(QEMU).arg("-version").output().ok();
    let version = version.map(|v| String::from_utf8_lossy(&v.stdout).into_owned()).unwrap_or_default();
    let major = version.strip_prefix("QEMU emulator version ").and_then(|v| v.split('.').next()?.parse::<u32>().ok());
    let there = !version.contains("Lockstep") && major.is_some_and(|m| m >= 10);
    if !there {
        eprintln!("SKIPPED IN PART: no QEMU 10.0 or newer is installed");
    }
    there
}

/// Whether there is a QEMU that can be a COLO primary; says so if not.
pub fn has_old_qemu() -> bool {
    let there = std::env::var_os(OLD_QEMU).is_some();
    if !there {
        eprintln!("SKIPPED IN PART: {OLD_QEMU} names no unpacked QEMU 7.2");
    }
    there
}

/// The engines that work on this host.
pub fn accelerators() -> &'static [&'static str] {
    if std::fs::File::open("/dev/kvm").is_ok() {
        return &["tcg", "kvm"];
    }
    eprintln!("SKIPPED IN PART: no KVM on this host");
    &["tcg"]
}

/// A running VM; it is killed when dropped.
pub struct Vm {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
}

impl Vm {
    /// Starts `program` with a monitor.
    pub fn start(program: Program, arguments: &[&str]) -> Self {
        let mut child = program
            .command()
            .args(["-display", "none", "-monitor", "none", "-qmp", "stdio"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the program runs");
        let (input, output) = (child.stdin.take().expect("an input"), child.stdout.take().expect("an output"));
        let (send, messages) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(Ok(message)) = line.map(|l| serde_json::from_str(&l)) else { break };
                if send.send(message).is_err() {
                    break;
                }
            }
        });
        let mut vm = Self { child, input, messages };
        let greeting = vm.messages.recv_timeout(PATIENCE).expect("a greeting");
        assert!(greeting["QMP"].is_object(), "{greeting}");
        vm.ask("qmp_capabilities", json!({}));
        vm
    }

    /// What a command returns, which must not be an error.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.try_ask(command, arguments).unwrap_or_else(|e| panic!("{command}: {e}"))
    }

    /// What a command returns, or its error.
    pub fn try_ask(&mut self, command: &str, arguments: Value) -> Result<Value, Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.input, "{request}").expect("the monitor reads");
        loop {
            let message = self.messages.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{command}: {e}"));
            if message.get("event").is_none() {
                return message.get("error").map_or(Ok(message["return"].clone()), |e| Err(e.clone()));
            }
        }
    }

    /// Waits for an event; those before it are forgotten.
    pub fn event(&mut self, name: &str) -> Value {
        loop {
            let message = self.messages.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{name}: {e}"));
            if message["event"] == name {
                return message;
            }
        }
    }

    /// Sends the machine to a URI, and waits until it is there.
    pub fn migrate(&mut self, uri: &str) {
        self.ask("migrate", json!({"uri": uri}));
        self.wait("the migration ends", |vm| {
            let info = vm.ask("query-migrate", json!({}));
            assert_ne!(info["status"], "failed", "{info}");
            info["status"] == "completed"
        });
    }

    /// The machine as a stream.
    pub fn save(&mut self, path: &Path) -> Vec<u8> {
        self.migrate(&format!("exec:cat > {}", path.display()));
        std::fs::read(path).expect("a stream")
    }

    /// Kills it as a crash of its host would.
    pub fn crash(self) {}

    /// Waits until the VM has ended by itself.
    pub fn wait_for_exit(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("a status")
    }

    /// Asks until it is so.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < end, "waited too long: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
