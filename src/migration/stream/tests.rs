//! The stream against itself in pieces, against noise, and against the installed QEMU.

use super::*;
use lockstep_vmstate::{Decoder, Encoder, LoadError, Prepared, SaveState, StateInfo, StateRegistry};
use serde_json::Value;
use std::process::{Command as Process, Stdio};

const MACHINE: &str = "pc-i440fx-10.0";

/// State that is a number of bytes, and nothing else.
struct Blob(Vec<u8>);

impl SaveState for Blob {
    fn info(&self) -> StateInfo {
        StateInfo { name: "blob", version: 1, minimum: 1 }
    }
    fn save(&self, out: &mut Encoder) -> lockstep_util::Result<()> {
        out.put_bytes(&self.0);
        Ok(())
    }
    fn prepare(&self, input: &mut Decoder<'_>, _: u32) -> Result<Prepared, LoadError> {
        let same = input.take(self.0.len())? == self.0;
        if same { Ok(Prepared::new(|| ())) } else { Err(LoadError::invalid("other bytes")) }
    }
}

fn table() -> BlockTable {
    BlockTable::new([("pc.ram".to_owned(), 16 * PAGE as u64), ("vga.vram".to_owned(), 4 * PAGE as u64)])
}

fn states() -> StateRegistry {
    let states = StateRegistry::new();
    states.register("timer", Blob(vec![1; 24]));
    states.reserve("ram");
    states.register("0000:00:03.0/uhci", Blob((0..100).collect()));
    states
}

fn sample() -> Vec<u8> {
    let (states, table) = (states(), table());
    let ram = states.find("ram", 0).unwrap();
    let (mut out, mut records) = (Encoder::describing(), RecordWriter::default());
    let mut writer = StreamWriter::new(&mut out, Frames::default());
    writer.header(MACHINE);
    writer.command(Command::EnableColo);
    writer.begin(mark::START, &ram, RAM_VERSION);
    let mut raw = Vec::new();
    records.sizes(&table, &mut raw);
    records.end(&mut raw);
    out.put_bytes(&raw);
    StreamWriter::new(&mut out, Frames::default()).footer(ram.id);
    StreamWriter::new(&mut out, Frames::default()).part(mark::END, ram.id);
    raw.clear();
    records.begin();
    for (block, page) in [(0, 0), (0, 5), (1, 3), (0, 15)] {
        let fill = |to: &mut [u8]| {
            to.fill(page as u8);
            Ok::<(), ()>(())
        };
        records.page(&table, block, page * PAGE as u64, &mut raw, fill).unwrap();
    }
    records.end(&mut raw);
    out.put_bytes(&raw);
    let mut writer = StreamWriter::new(&mut out, Frames::default());
    writer.footer(ram.id);
    let devices = writer.devices(&states).unwrap();
    writer.eof();
    writer.description(MACHINE, devices, None);
    out.into_bytes()
}

struct Registered(StateRegistry, Vec<Prepared>);

impl DeviceLoader for Registered {
    fn load(&mut self, section: &SectionHeader, input: &mut Decoder<'_>) -> Result<(), LoadError> {
        self.1.push(self.0.prepare(&section.name, section.instance, section.version, input)?);
        Ok(())
    }
}

/// Reads a stream that arrives in the given pieces; returns what was in it.
fn read_in_pieces(pieces: impl Iterator<Item = Vec<u8>>) -> lockstep_util::Result<Vec<String>> {
    let mut parser = StreamParser::new(MACHINE, table(), Frames::default());
    let mut loader = Registered(states(), Vec::new());
    let (mut buffer, mut seen) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend(piece);
        let mut at = 0;
        while let Some((used, item)) = parser.next(&buffer[at..], &mut loader)? {
            at += used;
            match item {
                Item::Frame => {}
                Item::Done => break,
                Item::Ram(RamRecord::Page { block, offset, data }) => {
                    seen.push(format!("page {block} {} {}", offset / PAGE as u64, data[0]));
                }
                Item::Ram(RamRecord::Zero { block, offset, fill }) => {
                    seen.push(format!("zero {block} {} {fill}", offset / PAGE as u64));
                }
                item => seen.push(format!("{item:?}")),
            }
        }
        buffer.drain(..at);
    }
    if !parser.is_done() {
        return Err(lockstep_util::err!("not done"));
    }
    Ok(seen)
}

const SEEN: [&str; 11] = [
    "Header",
    "Command(EnableColo)",
    "Ram(Sizes)",
    "Ram(End)",
    "zero 0 0 0",
    "page 0 5 5",
    "page 1 3 3",
    "page 0 15 15",
    "Ram(End)",
    "Device",
    "Device",
];

#[test]
fn a_stream_reads_the_same_in_pieces_of_any_size() {
    let bytes = sample();
    for size in [1, 2, 3, 7, 64, 4097, 1 << 20] {
        let seen = read_in_pieces(bytes.chunks(size).map(<[u8]>::to_vec)).unwrap();
        assert_eq!(seen[..11], SEEN, "{size}");
        assert_eq!(seen[11], "Eof");
    }
}

#[test]
fn a_stream_that_ends_early_is_not_done() {
    let bytes = sample();
    for cut in (0..bytes.len()).step_by(37) {
        assert!(read_in_pieces([bytes[..cut].to_vec()].into_iter()).is_err(), "{cut}");
    }
}

#[test]
fn every_spoiled_byte_is_an_error_or_harmless_but_never_a_panic() {
    let bytes = sample();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = bytes.clone();
            bad[at] ^= flip;
            let _ = read_in_pieces([bad].into_iter());
        }
    }
}

#[test]
fn the_texts_of_a_bad_stream_are_qemus() {
    let spoiled = |at: usize, with: &[u8]| {
        let mut bytes = sample();
        bytes[at..at + with.len()].copy_from_slice(with);
        read_in_pieces([bytes].into_iter()).unwrap_err().to_string()
    };
    assert_eq!(spoiled(0, b"X"), "Not a migration stream");
    assert_eq!(spoiled(7, &[2]), "SaveVM v2 format is obsolete and don't work anymore");
    assert_eq!(spoiled(7, &[9]), "Unsupported migration stream version");
    assert_eq!(spoiled(13, b"q"), "Machine type received is 'qc-i440fx-10.0' and local is 'pc-i440fx-10.0'");
    assert_eq!(spoiled(27, &[0x44]), "Unknown savevm section type 68");
}

#[test]
fn older_machines_have_fewer_frames() {
    let frames = |name| {
        let f = Frames::of_machine(name);
        (f.configuration, f.description, f.switchover_start)
    };
    assert_eq!(frames("pc-i440fx-10.0"), (true, true, true));
    assert_eq!(frames("pc-q35-9.2"), (true, true, false));
    assert_eq!(frames("pc-i440fx-2.3"), (false, true, false));
    assert_eq!(frames("none"), (true, true, true));
}

#[test]
fn blocks_that_differ_are_refused() {
    let mut raw = Vec::new();
    let theirs = BlockTable::new([("pc.ram".to_owned(), 8 * PAGE as u64)]);
    RecordWriter::default().sizes(&theirs, &mut raw);
    let e = RamDecoder::new(table()).next(&mut Decoder::partial(&raw)).unwrap_err();
    assert_eq!(e.to_string(), "Size mismatch: pc.ram: 0x8000 != 0x10000: Invalid argument");
}

#[test]
fn a_page_outside_its_block_is_refused() {
    let mut raw = Vec::new();
    let big = BlockTable::new([("pc.ram".to_owned(), 1 << 40)]);
    RecordWriter::default().page(&big, 0, 1 << 30, &mut raw, |_| Ok::<(), ()>(())).unwrap();
    let e = RamDecoder::new(table()).next(&mut Decoder::partial(&raw)).unwrap_err();
    assert_eq!(e.to_string(), "Illegal RAM offset 0x0000000040000000");
}

/// Lengths of all device sections as the stream's own description has them.
struct Described(Vec<(String, u64, usize)>);

impl Described {
    fn new(description: &Value) -> Self {
        let device = |d: &Value| {
            let size = body_size(d);
            (d["name"].as_str().unwrap().to_owned(), d["instance_id"].as_u64().unwrap(), size)
        };
        Self(description["devices"].as_array().unwrap().iter().map(device).collect())
    }
}

fn body_size(description: &Value) -> usize {
    let number = |v: &Value| v.as_u64().unwrap_or(1) as usize;
    let fields = description["fields"].as_array().into_iter().flatten();
    let subsections = description["subsections"].as_array().into_iter().flatten();
    fields.map(|f| number(&f["size"]) * number(&f["array_len"])).sum::<usize>()
        + subsections.map(|s| 6 + s["vmsd_name"].as_str().unwrap().len() + body_size(s)).sum::<usize>()
}

impl DeviceLoader for Described {
    fn load(&mut self, section: &SectionHeader, input: &mut Decoder<'_>) -> Result<(), LoadError> {
        let known = |d: &&(String, u64, usize)| d.0 == section.name && d.1 == u64::from(section.instance);
        let unknown = || LoadError::invalid(format!("{section:?}"));
        input.take(self.0.iter().find(known).ok_or_else(unknown)?.2)?;
        Ok(())
    }
}

/// The stream that the installed QEMU makes of a machine that has not run; `None` without QEMU.
fn stream_of_qemu() -> Option<Vec<u8>> {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stream");
    let mut qemu = Process::new("qemu-system-x86_64")
        .args(["-M", MACHINE, "-display", "none", "-S", "-m", "32", "-monitor", "stdio", "-device", "piix3-usb-uhci"])
        .args(["-device", "rtl8139", "-device", "usb-tablet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // The monitor's `migrate` returns when the migration is over.
    writeln!(qemu.stdin.take()?, "migrate file:{}\nquit", path.display()).unwrap();
    qemu.wait().unwrap();
    std::fs::read(path).ok().filter(|bytes| !bytes.is_empty())
}

#[test]
fn a_stream_of_qemu_is_read_to_its_last_byte() {
    let Some(bytes) = stream_of_qemu() else {
        eprintln!("skipped: no qemu-system-x86_64 with {MACHINE}");
        return;
    };
    let at = find_json(&bytes).expect("a description");
    let description: Value = serde_json::from_slice(&bytes[at..]).unwrap();

    // The blocks are in the stream's first record; read them as any receiver would have them.
    let blocks = blocks_of(&bytes);
    let mut parser = StreamParser::new(MACHINE, BlockTable::new(blocks.clone()), Frames::default());
    let mut loader = Described::new(&description);
    let (mut used_up, mut pages, mut devices, mut switchover) = (0, 0, 0, false);
    while !parser.is_done() {
        let (used, item) = parser.next(&bytes[used_up..], &mut loader).unwrap().expect("the stream is whole");
        match item {
            Item::Ram(RamRecord::Page { .. } | RamRecord::Zero { .. }) => pages += 1,
            Item::Device => devices += 1,
            Item::Command(Command::SwitchoverStart) => switchover = true,
            _ => {}
        }
        used_up += used;
    }
    assert_eq!(used_up, bytes.len());
    assert!(switchover);
    assert_eq!(devices, loader.0.len());
    assert!(pages >= blocks.iter().map(|b| b.1 / PAGE as u64).sum::<u64>(), "the first pass sends every page");
}

pub(crate) fn find_json(bytes: &[u8]) -> Option<usize> {
    (0..bytes.len()).rev().find(|&at| {
        at >= 5
            && bytes[at] == b'{'
            && bytes[at - 5] == mark::DESCRIPTION
            && u32::from_be_bytes([bytes[at - 4], bytes[at - 3], bytes[at - 2], bytes[at - 1]]) as usize
                == bytes.len() - at
    })
}

pub(crate) fn blocks_of(bytes: &[u8]) -> Vec<(String, u64)> {
    let start = bytes.windows(4).position(|w| w == b"\x03ram").unwrap() + 4 + 8;
    let mut input = Decoder::new(&bytes[start..]);
    let total = input.get_u64().unwrap() & !0xfff;
    let mut blocks = Vec::new();
    while blocks.iter().map(|b: &(String, u64)| b.1).sum::<u64>() < total {
        blocks.push((input.get_name().unwrap().to_owned(), input.get_u64().unwrap()));
    }
    blocks
}

#[test]
fn a_description_that_is_too_long_to_be_kept_is_passed_over_and_told() {
    let mut out = Encoder::describing();
    let mut writer = StreamWriter::new(&mut out, Frames::default());
    writer.header(MACHINE);
    writer.eof();
    writer.description(MACHINE, vec![], Some(serde_json::json!({"connections": "x".repeat(33 << 20)})));
    let bytes = out.into_bytes();
    let mut parser = StreamParser::new(MACHINE, table(), Frames::default());
    let mut at = 0;
    while !parser.is_done() {
        at += parser.next(&bytes[at..], &mut Registered(states(), vec![])).unwrap().expect("all of it is there").0;
    }
    assert_eq!(at, bytes.len());
    let told = parser.take_description().unwrap_err();
    assert_eq!(told.message(), "The description of the migration stream is too long to be kept");
}

#[test]
fn a_description_with_the_connections_of_several_cards_is_kept() {
    let mut out = Encoder::describing();
    let mut writer = StreamWriter::new(&mut out, Frames::default());
    writer.header(MACHINE);
    writer.eof();
    let connections = "x".repeat(24 << 20);
    writer.description(MACHINE, vec![], Some(serde_json::json!({"connections": connections})));
    let bytes = out.into_bytes();
    let mut parser = StreamParser::new(MACHINE, table(), Frames::default());
    let mut at = 0;
    while !parser.is_done() {
        at += parser.next(&bytes[at..], &mut Registered(states(), vec![])).unwrap().expect("all of it is there").0;
    }
    let kept = parser.take_description().unwrap().expect("a description");
    assert_eq!(kept["connections"].as_str().map(str::len), Some(24 << 20));
    assert_eq!(parser.take_description(), Ok(None));
}
