//! Descriptors that come over a monitor's socket (`SCM_RIGHTS`), by number, and in sets.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// A machine whose monitor is a Unix socket.
struct Machine {
    child: Child,
    monitor: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Machine {
    /// `passed` are open in it under the numbers 50 and up.
    fn start(folder: &Path, arguments: &str, passed: &[BorrowedFd<'_>]) -> Self {
        let path = folder.join("monitor.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket");
        let mut command = Command::new(env!("CARGO_BIN_EXE_qemu-system-x86_64"));
        command.args("-machine pc -accel qtest -m 32 -display none -nodefaults".split(' ')).args(arguments.split(' '));
        command.args(["-qmp", "unix:monitor.sock"]).current_dir(folder).stdin(Stdio::null());
        let numbers: Vec<i32> = passed.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: system calls on descriptors that are open until after the start.
        unsafe {
            command.pre_exec(move || {
                for (i, number) in numbers.iter().enumerate() {
                    if libc::dup2(*number, 50 + i as i32) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the program runs");
        let (monitor, _) = listener.accept().expect("it connects");
        let lines = BufReader::new(monitor.try_clone().expect("a descriptor"));
        let mut machine = Self { child, monitor, lines };
        machine.answer();
        machine.ask("qmp_capabilities", json!({}), &[]);
        machine
    }

    /// The next line that is no event.
    fn answer(&mut self) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).expect("text") > 0, "the machine is gone");
            let value: Value = serde_json::from_str(&line).expect("JSON");
            if value.get("event").is_none() {
                return value;
            }
        }
    }

    fn ask(&mut self, command: &str, arguments: Value, fds: &[BorrowedFd<'_>]) -> Value {
        let text = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let slices = [IoSlice::new(text.as_bytes())];
        let sent = sendmsg(&self.monitor, &slices, &mut control, SendFlags::empty()).expect("it reads");
        assert_eq!(sent, text.len());
        let mut answer = self.answer();
        match answer.get("error") {
            Some(error) => error["desc"].clone(),
            None => answer["return"].take(),
        }
    }

    /// Waits until a migration has this state.
    fn wait_for_migration(&mut self, wanted: &str) {
        loop {
            let info = self.ask("query-migrate", json!({}), &[]);
            let status = info["status"].as_str().unwrap_or_default();
            if status == wanted {
                return;
            }
            assert!(!matches!(status, "failed" | "cancelled"), "{info}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn named_descriptors_get_qemus_answers() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut machine = Machine::start(dir.path(), "-S", &[]);
    let null = File::open("/dev/null").expect("a file");
    let one = [null.as_fd()];
    let missing = "No file descriptor supplied via SCM_RIGHTS";
    assert_eq!(machine.ask("getfd", json!({"fdname": "a"}), &[]), missing);
    assert_eq!(machine.ask("getfd", json!({"fdname": "a"}), &one), json!({}));
    assert_eq!(machine.ask("getfd", json!({"fdname": "a"}), &one), json!({}), "the old one is closed");
    let digit = "Parameter 'fdname' expects a name not starting with a digit";
    assert_eq!(machine.ask("getfd", json!({"fdname": "1a"}), &one), digit);
    assert_eq!(machine.ask("closefd", json!({"fdname": "a"}), &[]), json!({}));
    assert_eq!(machine.ask("closefd", json!({"fdname": "a"}), &[]), "File descriptor named 'a' not found");
    let unknown = "File descriptor named 'nope' has not been found";
    assert_eq!(machine.ask("migrate", json!({"uri": "fd:nope"}), &[]), unknown);
    assert_eq!(machine.ask("netdev_add", json!({"type": "tap", "id": "t", "fd": "nope"}), &[]), unknown);
    let socket = |name: &str| {
        let address = json!({"type": "fd", "data": {"str": name}});
        json!({"id": "c", "backend": {"type": "socket", "data": {"addr": address, "server": false}}})
    };
    let prefix = "Failed to add chardev 'c'";
    assert_eq!(machine.ask("chardev-add", socket("nope"), &[]), format!("{prefix}: {unknown}"));
    machine.ask("getfd", json!({"fdname": "file"}), &one);
    let error = format!("{prefix}: File descriptor 'file' is not a socket");
    assert_eq!(machine.ask("chardev-add", socket("file"), &[]), error);
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    machine.ask("getfd", json!({"fdname": "pair"}), &[theirs.as_fd()]);
    assert_eq!(machine.ask("chardev-add", socket("pair"), &[]), json!({}));
    let info = machine.ask("query-chardev", json!({}), &[]);
    assert_eq!(info[1], json!({"label": "c", "filename": "unix:", "frontend-open": false}));
    drop(ours);
}

#[test]
fn files_are_opened_out_of_descriptor_sets() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("image");
    File::create(&path).and_then(|f| f.set_len(1 << 20)).expect("a file");
    let both = File::options().read(true).write(true).open(&path).expect("a file");
    let read = File::open(&path).expect("a file");
    let mut machine = Machine::start(dir.path(), "-S -add-fd set=2,fd=50,opaque=note", &[read.as_fd()]);
    assert_eq!(machine.ask("query-fdsets", json!({}), &[])[0]["fds"][0]["opaque"], "note");
    let first = machine.ask("add-fd", json!({"opaque": "x"}), &[both.as_fd(), read.as_fd()]);
    assert_eq!(first["fdset-id"], 0);
    assert_eq!(machine.ask("add-fd", json!({}), &[]), "No file descriptor supplied via SCM_RIGHTS");
    let negative = "Parameter 'fdset-id' expects a non-negative value";
    assert_eq!(machine.ask("add-fd", json!({"fdset-id": -1}), &[both.as_fd()]), negative);
    let open = |file: &str| json!({"driver": "file", "node-name": "n", "filename": file, "read-only": false});
    assert_eq!(machine.ask("blockdev-add", open("/dev/fdset/7"), &[]), "Failed to find fdset /dev/fdset/7");
    assert_eq!(machine.ask("blockdev-add", open("/dev/fdset/0"), &[]), json!({}));
    let out = |file: &str| json!({"id": "c", "backend": {"type": "file", "data": {"out": file}}});
    let refused = "Failed to add chardev 'c': Could not open '/dev/fdset/2': Permission denied";
    assert_eq!(machine.ask("chardev-add", out("/dev/fdset/2"), &[]), refused, "it is for reading only");
    assert_eq!(
        machine.ask("remove-fd", json!({"fdset-id": 0, "fd": 9999}), &[]),
        "File descriptor named 'fdset-id:0, fd:9999' not found"
    );
    assert_eq!(machine.ask("remove-fd", json!({"fdset-id": 0}), &[]), json!({}));
    let gone = "File descriptor named 'fdset-id:0' not found";
    assert_eq!(machine.ask("remove-fd", json!({"fdset-id": 0}), &[]), gone);
}

#[test]
fn a_machine_migrates_over_descriptors_that_were_handed_over() {
    let (a, b) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (near, far) = UnixStream::pair().map(|(x, y)| (OwnedFd::from(x), OwnedFd::from(y))).expect("sockets");
    let mut target = Machine::start(b.path(), "-S -incoming fd:50", &[far.as_fd()]);
    let mut source = Machine::start(a.path(), "-S", &[]);
    assert_eq!(source.ask("getfd", json!({"fdname": "away"}), &[near.as_fd()]), json!({}));
    assert_eq!(source.ask("migrate", json!({"uri": "fd:away"}), &[]), json!({}));
    source.wait_for_migration("completed");
    target.wait_for_migration("completed");
    assert_eq!(
        source.ask("closefd", json!({"fdname": "away"}), &[]),
        "File descriptor named 'away' not found",
        "the migration has taken it"
    );
}

#[test]
fn a_machine_is_saved_into_a_file_by_descriptor_and_comes_back() {
    let (a, b) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mut file = tempfile::tempfile().expect("a file");
    let mut source = Machine::start(a.path(), "-S", &[]);
    source.ask("getfd", json!({"fdname": "state"}), &[file.as_fd()]);
    assert_eq!(source.ask("migrate", json!({"uri": "fd:state"}), &[]), json!({}));
    source.wait_for_migration("completed");
    file.flush().and_then(|()| file.rewind()).expect("a file");
    let mut target = Machine::start(b.path(), "-S -incoming defer", &[]);
    target.ask("getfd", json!({"fdname": "state"}), &[file.as_fd()]);
    assert_eq!(target.ask("migrate-incoming", json!({"uri": "fd:state"}), &[]), json!({}));
    target.wait_for_migration("completed");
}
