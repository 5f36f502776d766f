//! A saved machine is parsed to the byte by the description at its own end, and has the sections and fields that QEMU's has.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::vm::{Program, Vm, accelerators, has_qemu};

/// The sections and fields of the documented primary in a stream of QEMU 10.0.2, before its first instruction.
const FACTS: &str = include_str!("stream.txt");

/// Bytes with a place in them.
struct Bytes<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let taken = &self.all[self.at..self.at + n];
        self.at += n;
        taken
    }

    fn number(&mut self, size: usize) -> u64 {
        self.take(size).iter().fold(0, |n, b| n << 8 | u64::from(*b))
    }

    fn name(&mut self) -> String {
        let len = self.number(1) as usize;
        String::from_utf8(self.take(len).to_vec()).expect("a name is text")
    }
}

/// A stream's parts: where the description begins, and it.
fn description(stream: &[u8]) -> (usize, Value) {
    let begins = |at: &usize| {
        stream[*at] == 6
            && u32::from_be_bytes(stream[at + 1..at + 5].try_into().expect("4 bytes")) as usize == stream.len() - at - 5
    };
    let at = (0..stream.len() - 5).rev().find(begins).expect("a description");
    (at, serde_json::from_slice(&stream[at + 5..]).expect("JSON"))
}

/// The devices' sections of a stream, by name and instance.
pub fn sections(stream: &[u8]) -> Vec<(String, Vec<u8>)> {
    walk(stream).1
}

/// Goes through a whole stream, and returns its description and the devices' sections.
fn walk(stream: &[u8]) -> (Value, Vec<(String, Vec<u8>)>) {
    let (end, described) = description(stream);
    let mut input = Bytes { all: stream, at: 0 };
    assert_eq!(input.take(8), b"QEVM\0\0\0\x03");
    assert_eq!(input.number(1), 7, "the configuration");
    struct_body(&mut input, &described["configuration"], "configuration");
    let page = described["page_size"].as_u64().expect("a page size") as usize;
    let mut bodies = vec![];
    let mut devices = described["devices"].as_array().expect("devices").iter();
    loop {
        match input.number(1) {
            0 => break,
            8 => {
                input.take(2);
                let len = input.number(2) as usize;
                input.take(len);
            }
            kind @ 1..=4 => {
                let id = input.number(4);
                if matches!(kind, 1 | 4) {
                    let (name, instance, version) = (input.name(), input.number(4), input.number(4));
                    if kind == 1 {
                        assert_eq!((&*name, version), ("ram", 4));
                    } else {
                        let device = devices.next().unwrap_or_else(|| panic!("{name} is not described"));
                        assert_eq!(
                            (device["name"].as_str(), device["instance_id"].as_u64()),
                            (Some(&*name), Some(instance))
                        );
                        assert_eq!(device["version"].as_u64().unwrap_or(version), version, "{name}");
                        let start = input.at;
                        struct_body(&mut input, device, &name);
                        bodies.push((format!("{name} {instance}"), stream[start..input.at].to_vec()));
                    }
                }
                if kind != 4 {
                    ram(&mut input, page);
                }
                assert_eq!((input.number(1), input.number(4)), (0x7e, id), "a section ends with its footer");
            }
            other => panic!("an element {other} at {}", input.at - 1),
        }
    }
    assert_eq!(devices.next(), None, "all that is described is there");
    assert_eq!(input.at, end, "the description follows the last section");
    (described, bodies)
}

/// A part of the RAM section: records that begin with an address whose low bits say what follows.
fn ram(input: &mut Bytes<'_>, page: usize) {
    loop {
        let record = input.number(8);
        let (address, flags) = (record & !0xfff, record & 0xfff);
        match flags & !0x20 {
            0x10 => return,
            0x04 => {
                let mut left = address;
                while left > 0 {
                    input.name();
                    left -= input.number(8);
                }
            }
            kind @ (0x02 | 0x08) => {
                // A block's name, unless it is that of the last page.
                if flags & 0x20 == 0 {
                    input.name();
                }
                input.take(if kind == 0x02 { 1 } else { page });
            }
            other => panic!("a record {other:#x}"),
        }
    }
}

/// The bytes of a described struct.
fn struct_body(input: &mut Bytes<'_>, described: &Value, path: &str) {
    for field in described["fields"].as_array().into_iter().flatten() {
        let name = format!("{path}.{}", field["name"].as_str().expect("a name"));
        let (size, count) =
            (field["size"].as_u64().expect("a size") as usize, field["array_len"].as_u64().unwrap_or(1));
        for _ in 0..count {
            let start = input.at;
            match field.get("struct").or(field.get("fields").map(|_| field)) {
                Some(inner) => struct_body(input, inner, &name),
                None => drop(input.take(size)),
            }
            assert_eq!(input.at - start, size, "{name}");
        }
    }
    for part in described["subsections"].as_array().into_iter().flatten() {
        let name = part["vmsd_name"].as_str().expect("a name");
        assert_eq!(
            (input.number(1), input.name(), input.number(4)),
            (5, name.to_owned(), part["version"].as_u64().expect("a version"))
        );
        struct_body(input, part, name);
    }
}

/// A description in lines: sections, their fields, and, marked `?`, the subsections, which are there when their fields have something
/// to say. Elements of an array that are described alike are one line.
fn lines(described: &Value) -> Vec<String> {
    let mut out = vec![];
    for device in described["devices"].as_array().expect("devices") {
        let (name, instance) = (device["name"].as_str().unwrap_or_default(), &device["instance_id"]);
        out.push(format!("{name} {instance} {} {}", device["vmsd_name"].as_str().unwrap_or("-"), device["version"]));
        fields(device, "  ", &mut out);
    }
    out
}

fn fields(described: &Value, indent: &str, out: &mut Vec<String>) {
    let without_index = |field: &Value| {
        let mut field = field.clone();
        field.as_object_mut().expect("an object").remove("index");
        field
    };
    let all: Vec<_> = described["fields"].as_array().into_iter().flatten().map(without_index).collect();
    for alike in all.chunk_by(|a, b| a == b) {
        let field = &alike[0];
        let text = |key: &str| field[key].as_str().unwrap_or_default();
        // Its size is that of what is in it, which varies with the subsections.
        let inner = field.get("struct").or(field.get("fields").map(|_| field));
        let size = inner.map_or_else(|| field["size"].to_string(), |_| "-".to_owned());
        let mut line = format!("{indent}{} {} {size}", text("name"), text("type"));
        if let Some(count) = field["array_len"].as_u64() {
            line += &format!(" x{count}");
        }
        if alike.len() > 1 {
            line += &format!(" each of {}", alike.len());
        }
        out.push(line);
        if let Some(inner) = inner {
            fields(inner, &format!("{indent}  "), out);
        }
    }
    for part in described["subsections"].as_array().into_iter().flatten() {
        out.push(format!("{indent}? {} {}", part["vmsd_name"].as_str().unwrap_or_default(), part["version"]));
        fields(part, &format!("{indent}? "), out);
    }
}

/// Streams of the documented primary, as it is before its first instruction. A network that needs no privilege is in the tap's place.
fn documented(program: Program, accelerator: &str) -> Vec<u8> {
    let dir = TempDir::new().expect("a folder");
    let disk = dir.path().join("disk.raw");
    std::fs::File::create(&disk).and_then(|f| f.set_len(16 << 20)).expect("a disk");
    let drive = format!(
        "if=ide,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,children.0.file.filename={},children.0.driver=raw",
        disk.display()
    );
    let cpu = if accelerator == "kvm" { "qemu64,kvmclock=on" } else { "qemu64" };
    let mut vm = Vm::start(
        program,
        &[
            &["-accel", accelerator, "-cpu", cpu, "-m", "512", "-smp", "1", "-S", "-name", "primary"][..],
            &["-M", "pc-i440fx-10.0", "-device", "piix3-usb-uhci", "-device", "usb-tablet"],
            &["-netdev", "socket,id=hn0,udp=127.0.0.1:9,localaddr=127.0.0.1:0"],
            &["-device", "rtl8139,id=e0,netdev=hn0", "-drive", &drive],
        ]
        .concat(),
    );
    vm.save(&dir.path().join("stream"))
}

fn is_part(line: &str) -> bool {
    line.trim_start().starts_with('?')
}

/// What of one description is not as in the other: everything but subsections must be equal, and there must be no subsection that
/// QEMU does not have.
fn differences(ours: &[String], theirs: &[String]) -> Vec<String> {
    let fixed = |lines: &[String]| lines.iter().filter(|l| !is_part(l)).cloned().collect::<Vec<_>>();
    let (a, b) = (fixed(ours), fixed(theirs));
    let mut wrong: Vec<_> =
        a.iter().zip(&b).filter(|(a, b)| a != b).map(|(a, b)| format!("{a}, but QEMU has {b}")).take(10).collect();
    if a.len() != b.len() {
        wrong.push(format!("{} lines, but QEMU has {}", a.len(), b.len()));
    }
    wrong.extend(ours.iter().filter(|l| is_part(l) && !theirs.contains(l)).map(|l| format!("{l} is not QEMU's")));
    wrong
}

/// QEMU's facts for an engine: the clock of KVM is a section of its own.
fn facts(accelerator: &str) -> Vec<String> {
    let mut clock = false;
    let of_engine = |line: &&str| {
        clock = if line.starts_with(' ') { clock } else { line.starts_with("kvmclock ") };
        !line.starts_with('#') && (!clock || accelerator == "kvm")
    };
    FACTS.lines().filter(of_engine).map(str::to_owned).collect()
}

#[test]
fn a_saved_machine_is_what_its_description_says_and_what_qemu_has() {
    for &accelerator in accelerators() {
        let ours = lines(&walk(&documented(Program::Lockstep, accelerator)).0);
        let wrong = differences(&ours, &facts(accelerator));
        assert!(wrong.is_empty(), "{accelerator}:\n{}", wrong.join("\n"));
    }
}

/// The facts are QEMU's, where it can be asked.
#[test]
fn the_facts_are_those_of_the_installed_qemu() {
    if !has_qemu() {
        return;
    }
    for &accelerator in accelerators() {
        let theirs = lines(&walk(&documented(Program::Qemu, accelerator)).0);
        let wrong = differences(&theirs, &facts(accelerator));
        assert!(wrong.is_empty(), "{accelerator}:\n{}", wrong.join("\n"));
    }
}

#[test]
fn ports_that_were_taken_away_are_in_nobodys_stream() {
    if !has_qemu() {
        return;
    }
    for ports in [&["-serial", "none"][..], &["-serial", "none", "-serial", "null", "-parallel", "none"]] {
        for time in [&[][..], &["-icount", "shift=3"]] {
            let machine =
                [&["-accel", "tcg", "-m", "32", "-M", "pc-i440fx-10.0", "-nic", "none", "-S"], ports, time].concat();
            let dir = TempDir::new().expect("a folder");
            let names = [Program::Lockstep, Program::Qemu].map(|program| {
                let file = dir.path().join("stream");
                let stream = Vm::start(program, &machine).save(&file);
                for loader in [Program::Lockstep, Program::Qemu] {
                    let uri = format!("exec:cat {}", file.display());
                    let mut vm = Vm::start(loader, &[&machine[..], &["-incoming", &uri]].concat());
                    vm.wait("the machine arrives", |vm| vm.ask("query-migrate", json!({}))["status"] == "completed");
                }
                sections(&stream).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
            });
            assert_eq!(names[0], names[1], "{machine:?}");
        }
    }
}
