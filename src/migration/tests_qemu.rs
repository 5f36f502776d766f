//! Lockstep and QEMU on one wire. The machine is QEMU's: RAM as its stream has it, and the state of each device as bytes that nobody
//! here understands. Needs `qemu-system-x86_64` (any version as secondary; as primary one that can be, such as 7.2: its command is taken
//! from the environment variable `LOCKSTEP_TEST_COLO_QEMU`; with KVM, for under TCG it locks itself up after its first checkpoint).

use crate::channel::FdSource;
use crate::colo::{CheckpointCause, Steps};
use crate::fake::FakeVm;
use crate::hooks::{NoDisks, NoNet, VmControl};
use crate::stream::{Frames, PAGE};
use crate::{Environment, GlobalState, MigrateArguments, Migration};
use lockstep_event::Context;
use lockstep_memory::RamList;
use lockstep_util::{Result, err};
use lockstep_vmstate::{Decoder, Encoder, LoadError, Prepared, SaveState, StateInfo, StateRegistry};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A device as the bytes between its section's head and foot.
struct Opaque {
    version: u32,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl SaveState for Opaque {
    fn info(&self) -> StateInfo {
        StateInfo { name: "opaque", version: self.version, minimum: 0 }
    }
    fn save(&self, out: &mut Encoder) -> Result<()> {
        out.put_bytes(&self.bytes.lock());
        Ok(())
    }
    fn prepare(&self, input: &mut Decoder<'_>, _: u32) -> Result<Prepared, LoadError> {
        let all = input.clone().take(input.remaining())?;
        // A foot, and after it the next head, or the end of the sections and what may follow that.
        let foot = |at: &usize| {
            let after = all.get(at + 5..).unwrap_or_default();
            all[*at..].starts_with(&[0x7e, 0, 0, 0])
                && (after.starts_with(&[4, 0, 0, 0]) || after == [0] || after.starts_with(&[0, 6]))
        };
        let end = (0..all.len()).find(foot).ok_or(LoadError::Short)?;
        let (bytes, slot) = (input.take(end)?.to_vec(), self.bytes.clone());
        Ok(Prepared::new(move || *slot.lock() = bytes))
    }
}

struct NoFds;

impl FdSource for NoFds {
    fn take_fd(&self, _: &str) -> Result<OwnedFd> {
        Err(err!("none"))
    }
}

/// QEMU, and its monitor.
struct Qemu {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Qemu {
    fn start(command: &str, accelerator: &str, arguments: &[&str]) -> Option<Self> {
        let mut words = command.split_whitespace();
        let mut child = Command::new(words.next()?)
            .args(words)
            .args([
                "-M",
                "pc-i440fx-7.2",
                "-accel",
                accelerator,
                "-m",
                "32",
                "-nodefaults",
                "-display",
                "none",
                "-qmp",
                "stdio",
            ])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let (to, from) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
        let mut qemu = Self { child, to, from };
        let mut greeting = String::new();
        qemu.from.read_line(&mut greeting).ok().filter(|n| *n > 0)?;
        qemu.ask("qmp_capabilities", json!({}));
        Some(qemu)
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        writeln!(self.to, "{}", json!({"execute": command, "arguments": arguments})).unwrap();
        loop {
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "QEMU ended at {command}");
            let answer: Value = serde_json::from_str(&line).unwrap();
            match (answer.get("return"), answer.get("error")) {
                (Some(value), _) => return value.clone(),
                (_, Some(e)) => panic!("{command}: {e}"),
                _ => {}
            }
        }
    }

    fn hmp(&mut self, line: &str) -> String {
        self.ask("human-monitor-command", json!({"command-line": line})).as_str().unwrap_or_default().to_owned()
    }

    fn enable_colo(&mut self) {
        let on = json!({"capabilities": [{"capability": "x-colo", "state": true}]});
        self.ask("migrate-set-capabilities", on);
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Machine {
    migration: Migration,
    vm: Rc<FakeVm>,
    ram: RamList,
}

const PLACE: u64 = 24 << 20;

impl Machine {
    /// With the blocks and sections of a stream.
    fn of_stream(bytes: &[u8]) -> Self {
        let (ram, states) = (RamList::new(), StateRegistry::new());
        for (name, len) in crate::stream::blocks_of(bytes) {
            ram.allocate(name, len).unwrap();
        }
        let start = crate::stream::find_json(bytes).unwrap();
        let description: Value = serde_json::from_slice(&bytes[start..]).unwrap();
        // QEMU takes parts of a section 0 for those of its own first section, so RAM is not that.
        states.reserve("none");
        states.reserve("ram");
        for device in description["devices"].as_array().unwrap() {
            let version = device["version"].as_u64().unwrap_or(0) as u32;
            let instance = device["instance_id"].as_u64().unwrap() as u32;
            let opaque = Opaque { version, bytes: Arc::default() };
            states.register_instance(device["name"].as_str().unwrap(), instance, opaque);
        }
        let vm = Rc::new(FakeVm::default());
        let migration = Migration::new(Environment {
            machine: "pc-i440fx-7.2".into(),
            frames: Frames { switchover_start: false, ..Frames::default() },
            ram: ram.clone(),
            states,
            global_state: Arc::new(GlobalState::default()),
            vm: vm.clone(),
            disks: Rc::new(NoDisks),
            net: Rc::new(NoNet),
            fds: Rc::new(NoFds),
            steps: Steps::default(),
        });
        Self { migration, vm, ram }
    }

    fn status(&self) -> &'static str {
        self.migration.info().status.as_str()
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited too long: {what}");
}

/// A machine that QEMU has sent to a file.
fn stream_of(command: &str, accelerator: &str, path: &std::path::Path) -> Option<Vec<u8>> {
    let mut qemu = Qemu::start(command, accelerator, &["-S"])?;
    qemu.ask("migrate", json!({"uri": format!("exec:cat > {}", path.display())}));
    while qemu.ask("query-migrate", json!({}))["status"] != "completed" {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::read(path).ok()
}

#[test]
fn qemu_is_a_secondary_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stream");
    let qemu = "qemu-system-x86_64";
    let Some(bytes) = stream_of(qemu, "tcg", &path) else {
        eprintln!("skipped: no {qemu}");
        return;
    };
    Context::new("main").unwrap().run(async {
        let ours = Machine::of_stream(&bytes);
        ours.migration.expect_incoming();
        ours.migration.migrate_incoming(Some(&format!("file:{}", path.display())), None, None).unwrap();
        until("QEMU's machine has arrived here", || ours.status() == "completed").await;
        assert_eq!(ours.vm.take_log(), [""; 0]);
        ours.vm.set_run_state("paused");

        let mut secondary = Qemu::start(qemu, "tcg", &["-incoming", "defer"]).unwrap();
        secondary.enable_colo();
        secondary.ask("migrate-incoming", json!({"uri": "tcp:127.0.0.1:0"}));
        let port = secondary.ask("query-migrate", json!({}))["socket-address"][0]["port"].as_str().unwrap().to_owned();
        ours.migration.set_capabilities([("x-colo", true)]).unwrap();
        let uri = Some(format!("tcp:127.0.0.1:{port}"));
        ours.migration.migrate(&MigrateArguments { uri, ..MigrateArguments::default() }).unwrap();
        until("the pair stands", || ours.status() == "colo" && ours.vm.is_running()).await;
        assert_eq!(secondary.ask("query-colo-status", json!({}))["mode"], "secondary");
        for epoch in 1..6_u64 {
            ours.ram.blocks()[0].write(PLACE, &epoch.to_le_bytes()).unwrap();
            ours.migration.checkpoint_trigger().request(CheckpointCause::Mismatch);
            until("a checkpoint is made", || ours.migration.checkpoint_statistics().count == epoch).await;
            let shown = secondary.hmp(&format!("xp /1gx {PLACE:#x}"));
            assert!(shown.contains(&format!("{epoch:#018x}")), "{shown}");
        }
        assert_eq!(secondary.ask("query-status", json!({}))["status"], "running");
        println!("pauses with QEMU as secondary: {}", ours.migration.checkpoint_statistics().to_json());
        drop(secondary);
        until("its end is noticed", || ours.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error")).await;
        ours.migration.colo_lost_heartbeat().unwrap();
        until("we go on alone", || ours.status() == "completed" && ours.vm.is_running()).await;
    });
}

#[test]
fn qemu_is_a_primary_of_ours() {
    let Ok(qemu) = std::env::var("LOCKSTEP_TEST_COLO_QEMU") else {
        eprintln!("skipped: LOCKSTEP_TEST_COLO_QEMU names no QEMU that can be a primary");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let bytes = stream_of(&qemu, "kvm", &dir.path().join("stream")).expect("QEMU sends a machine");
    Context::new("main").unwrap().run(async {
        let ours = Machine::of_stream(&bytes);
        ours.migration.set_capabilities([("x-colo", true)]).unwrap();
        ours.migration.start_incoming("tcp:127.0.0.1:0").unwrap();
        let address = ours.migration.info().to_json()["socket-address"][0].clone();
        let mut primary = Qemu::start(&qemu, "kvm", &[]).unwrap();
        primary.enable_colo();
        primary.ask("migrate-set-parameters", json!({"x-checkpoint-delay": 100}));
        let uri = format!("tcp:127.0.0.1:{}", address["port"].as_str().unwrap());
        primary.ask("migrate", json!({"uri": uri}));
        until("the pair stands", || ours.status() == "colo" && ours.vm.is_running()).await;
        let broken = || ours.vm.log.borrow().iter().any(|l| l.starts_with("COLO_EXIT"));
        until("checkpoints are made", || ours.migration.checkpoint_statistics().count >= 8 || broken()).await;
        assert!(!broken(), "{:?}", ours.vm.take_log());
        assert_eq!(primary.ask("query-colo-status", json!({}))["mode"], "primary");
        println!("as secondary of QEMU: {}", ours.migration.checkpoint_statistics().to_json());
        drop(primary);
        until("its end is noticed", || ours.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error")).await;
        ours.migration.colo_lost_heartbeat().unwrap();
        until("we go on alone", || ours.status() == "completed" && ours.vm.is_running()).await;
        assert_eq!(ours.ram.blocks()[0].size() % PAGE as u64, 0);
    });
}
