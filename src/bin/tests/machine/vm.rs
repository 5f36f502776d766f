//! A VM with its monitor on standard input and output: Lockstep's, or QEMU's as the oracle.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Lockstep's program.
pub const LOCKSTEP: &str = env!("CARGO_BIN_EXE_qemu-system-x86_64");

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The installed QEMU, if there is one. Says so if there is none.
pub fn qemu() -> Option<&'static str> {
    const NAME: &str = "qemu-system-x86_64";
    let version = Command::new(NAME).arg("-version").output().ok();
    let there = version.is_some_and(|v| !String::from_utf8_lossy(&v.stdout).contains("Lockstep"));
    if !there {
        eprintln!("skipped in part: no QEMU is installed");
    }
    there.then_some(NAME)
}

/// The engines that work on this host.
pub fn accelerators() -> &'static [&'static str] {
    if std::fs::File::open("/dev/kvm").is_ok() {
        return &["tcg", "kvm"];
    }
    eprintln!("skipped in part: no KVM on this host");
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
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
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

    /// What a command returns.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.input, "{request}").expect("the monitor reads");
        loop {
            let message = self.messages.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{command}: {e}"));
            if message.get("event").is_none() {
                assert!(message.get("error").is_none(), "{command}: {message}");
                return message["return"].clone();
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
