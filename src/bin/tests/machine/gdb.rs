//! gdb on a machine: Debian's gdb, and packets that no gdb sends.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    guest,
    vm::{Program, Vm, accelerators, has_qemu},
};

/// A guest that counts in 64-bit mode.
const LONG: &str = include_str!("long.txt");

/// What is asked of gdb. Breakpoints of both kinds, steps, registers of all kinds, memory.
const SCRIPT: &str = "\
info threads
p/x $rip
hbreak *0xf008f
c
delete
si
p $rax
break *0xf00a7
c
c
p $rcx
si
p $rcx
p/x $rip
p $xmm0.v2_double[0]
p $mxcsr
p $st0
p $cr0
p $efer
p $eflags
set $rax=0x1234
set $xmm1.uint128 = 5
delete
hbreak *0xf00a8
c
p/x $rcx
p $xmm1.v4_int32
x/4xb 0xf0000
x/1i $rip
info registers rip eflags fs_base
set *(int*)0x5008=77
p *(int*)0x5008
monitor info name
monitor nonsense
p *(int*)0x400000
";

/// Watchpoints of all kinds.
const WATCHES: &str = "\
hbreak *0xf008f
c
delete
watch *(long*)0x5000
c
c
p $rax
p/x $rip
delete
rwatch *(long*)0x6ff0
c
p/x $rip
delete
awatch *(long*)0x6ff8
c
p/x $rip
";

struct Target {
    folder: TempDir,
    vm: Vm,
}

impl Target {
    fn start(program: Program, accelerator: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let firmware = folder.path().join("guest.bin");
        guest::write(&firmware, LONG);
        let socket = format!("unix:{},server=on,wait=off", socket(folder.path()).display());
        let machine = ["-accel", accelerator, "-m", "64", "-smp", "2", "-nic", "none", "-vga", "none", "-name", "abc"];
        let mut arguments = vec!["-S", "-gdb", &socket, "-bios", firmware.to_str().expect("a path")];
        arguments.extend(machine);
        let vm = Vm::start(program, &arguments);
        Self { folder, vm }
    }

    fn connect(&self) -> Gdb {
        let stream = UnixStream::connect(socket(self.folder.path())).expect("a server");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
        Gdb { stream, input: vec![] }
    }

    /// What gdb prints.
    fn gdb(&self, script: &str) -> String {
        let file = self.folder.path().join("script");
        let socket = socket(self.folder.path());
        std::fs::write(&file, format!("set pagination off\ntarget remote {}\n{script}", socket.display()))
            .expect("a script");
        let output =
            Command::new("gdb").args(["-nx", "-batch", "-x"]).arg(&file).stdin(Stdio::null()).output().expect("gdb");
        // What the monitor says is among the errors.
        [output.stdout, output.stderr]
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .concat()
            .replace(&*self.folder.path().to_string_lossy(), "")
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("gdb")
}

fn has_gdb() -> bool {
    let there = Command::new("gdb").arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED IN PART: no gdb is installed");
    }
    there
}

/// A connection that says what it likes.
struct Gdb {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Gdb {
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    fn say(&mut self, data: &str) {
        let sum = data.bytes().fold(0u8, |s, b| s.wrapping_add(b));
        self.send(format!("${data}#{sum:02x}").as_bytes());
    }

    /// The next packet.
    fn packet(&mut self) -> String {
        loop {
            if let Some(start) = self.input.iter().position(|&b| b == b'$')
                && let Some(end) = self.input[start..].iter().position(|&b| b == b'#').map(|e| start + e)
                && self.input.len() > end + 2
            {
                let text = String::from_utf8_lossy(&self.input[start + 1..end]).into_owned();
                self.input.drain(..end + 3);
                self.send(b"+");
                return text;
            }
            let mut buffer = [0; 4096];
            let n = self.stream.read(&mut buffer).expect("an answer");
            assert_ne!(n, 0, "the server closed");
            self.input.extend(&buffer[..n]);
        }
    }

    fn ask(&mut self, data: &str) -> String {
        self.say(data);
        self.packet()
    }
}

#[test]
fn gdb_sees_what_it_sees_with_qemu() {
    if !has_gdb() {
        return;
    }
    let qemu = has_qemu().then(|| Target::start(Program::Qemu, "tcg").gdb(SCRIPT));
    for accelerator in accelerators() {
        let ours = Target::start(Program::Lockstep, accelerator).gdb(SCRIPT);
        for wanted in ["$3 = 1", "$4 = 2", "$6 = 2\n", "[ LMA LME ]", "0x1235", "{5, 0, 0, 0}", "= 77", "abc"] {
            assert!(ours.contains(wanted), "{accelerator}: {wanted}\n{ours}");
        }
        if let Some(qemu) = &qemu {
            assert_eq!(&ours, qemu, "{accelerator}");
        }
    }
}

#[test]
fn watchpoints_stop_where_qemus_stop() {
    if !has_gdb() {
        return;
    }
    let ours = Target::start(Program::Lockstep, "tcg").gdb(WATCHES);
    for wanted in ["Old value = 1\nNew value = 2", "= 0xf009a", "= 0xf00a8", "access (read/write) watchpoint 4"] {
        assert!(ours.contains(wanted), "{wanted}\n{ours}");
    }
    if has_qemu() {
        assert_eq!(ours, Target::start(Program::Qemu, "tcg").gdb(WATCHES));
    }
}

/// Packets that leave the guest where it is, right and wrong ones.
const PACKETS: &[&str] = &[
    "qSupported:multiprocess+",
    "vMustReplyEmpty",
    "QStartNoAckMode",
    "?",
    "qC",
    "Hg0",
    "Hc-1",
    "qfThreadInfo",
    "qsThreadInfo",
    "qsThreadInfo",
    "qAttached",
    "qThreadExtraInfo,p01.01",
    "vCont?",
    "qTStatus",
    "qSymbol::",
    "qOffsets",
    "m0,4",
    "m0,800",
    "m0,801",
    "m0,10000",
    "p0",
    "p10",
    "p17",
    "p80",
    "P0=1122334400000000",
    "p0",
    "M7c00,1:90",
    "m7c00,1",
    "Z0,7c00,1",
    "Z0,7c00,1",
    "z0,7c00,1",
    "Z1,7c00,1",
    "z1,7c00,1",
    "Z2,7000,4",
    "z2,7000,4",
    "Z5,0,0",
    "Z2,7000,0",
    "z2,1234,4",
    "qqemu.sstepbits",
    "qqemu.sstep",
    "Qqemu.sstep=1",
    "qqemu.sstep",
    "Qqemu.sstep=7",
    "qqemu.PhyMemMode",
    "Qqemu.PhyMemMode:1",
    "qqemu.PhyMemMode",
    "Qqemu.PhyMemMode:0",
    "Tp01.01",
    "Tp01.05",
    "T1",
    "Hg",
    "Hgp1.9",
    "Hx0",
    "G00",
    "vFile:open:00,0,0",
    "M0,2:90",
    "X7c00,1:a",
    "qRcmd,7a7",
    "qXfer:auxv:read::0,ff",
    "qXfer:features:read:no:0,9",
];

#[test]
fn packets_are_answered_as_qemu_answers_them() {
    let ours = Target::start(Program::Lockstep, "tcg");
    let qemu = has_qemu().then(|| Target::start(Program::Qemu, "tcg"));
    let mut other = qemu.as_ref().map(Target::connect);
    let mut gdb = ours.connect();
    for packet in PACKETS {
        let answer = gdb.ask(packet);
        if let Some(other) = &mut other {
            assert_eq!(answer, other.ask(packet), "{packet}");
        }
    }
}

#[test]
fn the_guest_is_interrupted_detached_and_killed() {
    let mut target = Target::start(Program::Lockstep, "tcg");
    let mut gdb = target.connect();
    gdb.ask("qSupported:multiprocess+");
    gdb.say("vCont;c");
    while target.vm.ask("query-status", json!({}))["running"] != json!(true) {}
    gdb.send(b"\x03");
    assert_eq!(gdb.packet(), "T02thread:p01.01;");
    assert_eq!(gdb.ask("vCont;s:p1.1;c"), "T05thread:p01.01;");
    assert_eq!(gdb.ask("D;1"), "OK");
    while target.vm.ask("query-status", json!({}))["running"] != json!(true) {}
    assert_eq!(gdb.ask("?"), "T05thread:01;", "it may come back");
    drop(gdb);
    let mut gdb = target.connect();
    gdb.say("vKill;1");
    assert_eq!(gdb.packet(), "OK");
    assert!(target.vm.wait_for_exit().success());
}

#[test]
fn what_no_gdb_sends_harms_nobody() {
    let mut target = Target::start(Program::Lockstep, "tcg");
    let mut gdb = target.connect();
    gdb.send(b"$m0,4#00");
    let mut one = [0];
    gdb.stream.read_exact(&mut one).expect("an answer");
    assert_eq!(&one, b"-", "a wrong sum");
    gdb.send(&[b"$".as_slice(), &[b'm'; 9000], b"#00"].concat());
    assert_eq!(gdb.ask("m0,4"), "00000000", "a packet without end is dropped");
    let odd = [
        "mffffffffffffffff,800",
        "m0,ffffffffffffffff",
        "Mffffffffffffffff,2:0000",
        "Z2,ffffffffffffffff,ffffffffffffffff",
        "Z0,,",
        "vCont;",
        "vCont;c:",
        "vCont;c:p0.-9",
        "Hgp.",
        "Hg\u{ff}",
        "qRcmd,ff",
        "qXfer:features:read:target.xml:ffffffffffffffff,1",
        "pffffffffffffffff",
        "P=",
        "qThreadExtraInfo,-1",
        "D;",
        "vKill",
        "c\u{0}",
        "G",
        "Cffff",
        "qqemu.sstep=ffffffffff",
        "T-1",
    ];
    for packet in odd {
        gdb.ask(packet);
    }
    let mut seed = 1u32;
    let mut noise = vec![];
    for _ in 0..20_000 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Nothing that ends the guest.
        noise.push(b"$#}*+-09afmMpPgGHqTzZ,;:.=?\xff"[(seed >> 24) as usize % 28]);
    }
    gdb.send(&noise);
    drop(gdb);
    let mut gdb = target.connect();
    assert_eq!(gdb.ask("qC"), "QC01");
    target.vm.ask("query-status", json!({}));
}
