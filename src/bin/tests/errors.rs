//! Wrong uses get QEMU's words: of the command line (`cli_errors.txt`) and of the monitor (`qmp_errors.txt`). What QEMU
//! 10.0.2 answered is in the files; what only it has is not there, and where it aborts (a faulty colo-compare) ours is.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const CLI: &str = include_str!("cli_errors.txt");
const QMP: &str = include_str!("qmp_errors.txt");
const PROGRAM: &str = env!("CARGO_BIN_EXE_qemu-system-x86_64");

/// A line `$ arguments` begins a case, what is printed follows.
#[test]
fn wrong_command_lines_get_qemus_words() {
    let dir = tempfile::tempdir().expect("a folder");
    make_image(dir.path(), "e1.qcow2");
    std::fs::write(dir.path().join("kernel"), kernel_header()).expect("a kernel");
    std::fs::write(dir.path().join("short"), [1; 100]).expect("a file");
    let mut wrong = vec![];
    for case in CLI.split("$ ").skip(1) {
        let (arguments, expected) = case.split_once('\n').expect("an expectation");
        let out = Command::new(PROGRAM)
            .args(["-accel", "qtest", "-display", "none", "-monitor", "none"])
            .args(arguments.split(' '))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("the program runs");
        let printed = String::from_utf8_lossy(&out.stderr);
        if printed.trim_end() != expected.trim_end() || out.status.code() != Some(1) {
            wrong.push(format!("{arguments}\n  expected: {expected}  printed:  {printed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What passes for a kernel (Linux/x86 boot protocol).
fn kernel_header() -> Vec<u8> {
    let mut image = vec![0; 0x2000];
    image[0x1f1] = 4;
    image[0x202..0x208].copy_from_slice(b"HdrS\x0c\x02");
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x37ff_ffffu32.to_le_bytes());
    image
}

/// QEMU lists the items on standard output, and ends as after an error.
#[test]
fn unknown_items_to_log_are_answered_with_those_there_are() {
    for items in ["help", "nonsense", "int,nonsense", "none", "", "trace:help"] {
        let out = Command::new(PROGRAM).args(["-d", items]).stdin(Stdio::null()).output().expect("the program runs");
        let printed = String::from_utf8_lossy(&out.stdout);
        assert!(printed.starts_with("Log items (comma separated):\nin_asm          "), "{printed}");
        assert_eq!((out.status.code(), out.stderr.len()), (Some(1), 0));
    }
}

fn make_image(dir: &Path, name: &str) {
    let status = Command::new(env!("CARGO_BIN_EXE_qemu-img"))
        .args(["create", "-q", "-f", "qcow2", name, "64M"])
        .current_dir(dir)
        .status()
        .expect("qemu-img runs");
    assert!(status.success());
}

/// One session on a machine with a network, two disks and some character devices.
fn session(script: &str) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("images")).expect("a folder");
    ["images/e1.qcow2", "images/e2.qcow2"].iter().for_each(|name| make_image(dir.path(), name));
    let machine = "-machine pc -accel qtest -m 32 -name foo -display none -nodefaults -S \
        -netdev dgram,id=hn0,local.type=unix,local.path=local.sock,remote.type=unix,remote.path=remote.sock \
        -device rtl8139,netdev=hn0,id=e0 -chardev socket,id=cs,path=cs.sock,server=on,wait=off \
        -chardev null,id=cn -chardev null,id=cn2 -chardev null,id=n1 \
        -drive if=ide,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,children.0.file.filename=images/e1.qcow2,children.0.driver=qcow2 \
        -drive if=none,id=d2,file=images/e2.qcow2,driver=qcow2 -qmp stdio";
    let mut child = Command::new(PROGRAM)
        .args(machine.split_whitespace())
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program runs");
    let mut input = child.stdin.take().expect("an input");
    let mut output = BufReader::new(child.stdout.take().expect("an output")).lines();
    output.next().expect("a greeting").expect("text");
    let mut wrong = vec![];
    let mut asked = "";
    for line in script.lines().filter(|l| !l.is_empty()) {
        if let Some(request) = line.strip_prefix("-> ") {
            asked = request;
            writeln!(input, "{request}").expect("the monitor reads");
            continue;
        }
        let expected: serde_json::Value = serde_json::from_str(&line[3..]).expect("JSON");
        let answer = loop {
            let text = output.next().expect("an answer").expect("text");
            let answer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            if answer.get("event").is_none() {
                break answer;
            }
        };
        if answer != expected {
            wrong.push(format!("{asked}\n  expected: {expected}\n  answered: {answer}"));
        }
    }
    child.kill().expect("the program ends");
    child.wait().expect("the program ends");
    wrong
}

/// The keyboard controller's interrupt goes to whoever intercepts the I/O APIC's inputs.
#[test]
fn a_test_is_told_of_interrupts() {
    let mut child = Command::new(PROGRAM)
        .args("-machine pc -accel qtest -display none -nodefaults -qtest stdio -qtest-log none".split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let mut input = child.stdin.take().expect("an input");
    let mut output = BufReader::new(child.stdout.take().expect("an output")).lines();
    let mut told = vec![];
    let lines = [
        "irq_intercept_in ioapic",
        // Interrupts on, then a byte as if from the keyboard, then it is read.
        "outb 0x64 0x60",
        "outb 0x60 0x01",
        "outb 0x64 0xd2",
        "outb 0x60 0x1e",
        "inb 0x60",
        "set_irq_in ioapic unnamed-gpio-in 4 1",
        "irq_intercept_in nosuch",
    ];
    for line in lines {
        writeln!(input, "{line}").expect("it reads");
        loop {
            let text = output.next().expect("an answer").expect("text");
            if text.starts_with("OK") || text.starts_with("FAIL") {
                told.push(text);
                break;
            }
            told.push(text);
        }
    }
    child.kill().expect("the program ends");
    child.wait().expect("the program ends");
    let expected = [
        "OK",
        "OK",
        "OK",
        "OK",
        "IRQ raise 1",
        "OK",
        "IRQ lower 1",
        "OK 0x001e",
        "OK",
        "FAIL IRQ intercept already enabled",
    ];
    assert_eq!(told, expected);
}

#[test]
fn wrong_requests_get_qemus_answers() {
    let wrong: Vec<_> = QMP.split("== session\n").skip(1).flat_map(session).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
