//! What a secondary hears: a machine, then checkpoints with pages ahead of them. The first byte says what is done with the rest: it
//! comes as it stands, or is a list of changes to a good conversation, which gets deep before it goes wrong.
#![no_main]
use libfuzzer_sys::fuzz_target;
use lockstep_memory::RamList;
use lockstep_migration::channel::{Channel, Yank};
use lockstep_migration::colo::{Message, take_in};
use lockstep_migration::stream::{BlockTable, Command, Frames, PAGE, RAM_VERSION, RecordWriter, StreamWriter, mark};
use lockstep_vmstate::{Decoder, Encoder, LoadError, Prepared, SaveState, StateInfo, StateRegistry};
use std::fs::File;
use std::io::{Seek, Write};
use std::sync::LazyLock;

const MACHINE: &str = "pc-i440fx-10.0";

/// A device whose state is as long as its first byte says.
struct Device;

impl SaveState for Device {
    fn info(&self) -> StateInfo {
        StateInfo { name: "device", version: 1, minimum: 1 }
    }
    fn save(&self, out: &mut Encoder) -> lockstep_util::Result<()> {
        out.put_bytes(&[3, 1, 2, 3]);
        Ok(())
    }
    fn prepare(&self, input: &mut Decoder<'_>, _: u32) -> Result<Prepared, LoadError> {
        let length = input.get_u8()?;
        input.take(usize::from(length))?;
        Ok(Prepared::new(|| ()))
    }
}

/// The machine, and what is said of it.
struct World {
    ram: RamList,
    states: StateRegistry,
    join: Vec<u8>,
    talk: Vec<u8>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let ram = RamList::new();
    ram.allocate("pc.ram", 16 * PAGE as u64).unwrap();
    ram.allocate("vga.vram", 4 * PAGE as u64).unwrap();
    let states = StateRegistry::new();
    states.register("timer", Device);
    states.reserve("ram");
    states.register("0000:00:03.0/device", Device);
    let world = World { ram, states, join: Vec::new(), talk: Vec::new() };
    World { join: world.join(), talk: world.talk(), ..world }
});

impl World {
    fn writer<'a>(&self, out: &'a mut Encoder) -> StreamWriter<'a> {
        StreamWriter::new(out, Frames::of_machine(MACHINE))
    }

    /// A part of RAM's section: the sizes, or some pages.
    fn ram(&self, mark: u8, pages: &[(usize, u64, u8)], out: &mut Encoder) {
        let (entry, table) = (self.states.find("ram", 0).unwrap(), BlockTable::of(&self.ram.blocks()));
        let mut records = RecordWriter::default();
        if mark == mark::START {
            self.writer(out).begin(mark, &entry, RAM_VERSION);
            records.sizes(&table, out.buffer_mut());
        } else {
            self.writer(out).part(mark, entry.id);
            records.begin();
            for &(block, page, byte) in pages {
                let fill = |to: &mut [u8]| {
                    to.fill(byte);
                    if byte != 0 {
                        to[7] = !byte;
                    }
                    Ok::<(), ()>(())
                };
                records.page(&table, block, page * PAGE as u64, out.buffer_mut(), fill).unwrap();
            }
        }
        records.end(out.buffer_mut());
        self.writer(out).footer(entry.id);
    }

    fn join(&self) -> Vec<u8> {
        let mut out = Encoder::describing();
        self.writer(&mut out).header(MACHINE);
        self.writer(&mut out).command(Command::EnableColo);
        self.ram(mark::START, &[], &mut out);
        self.ram(mark::END, &[(0, 1, 1), (1, 0, 0)], &mut out);
        let devices = self.writer(&mut out).devices(&self.states).unwrap();
        self.writer(&mut out).eof();
        self.writer(&mut out).description(MACHINE, devices, None);
        out.into_bytes()
    }

    /// Pages ahead, and a checkpoint with an extension.
    fn talk(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.put_u32(0x4c53_0002);
        self.ram(mark::PART, &[(0, 3, 5), (0, 4, 0)], &mut out);
        self.writer(&mut out).eof();
        out.put_u32(Message::CheckpointRequest.number());
        let extension = br#"{"connections":{"hn0":{}},"buffered":true}"#;
        out.put_u32(0x4c53_0001);
        out.put_u32(extension.len() as u32);
        out.put_bytes(extension);
        out.put_u32(Message::VmstateSend.number());
        self.ram(mark::END, &[(0, 3, 6), (1, 2, 7)], &mut out);
        self.writer(&mut out).eof();
        let mut devices = Encoder::new();
        self.writer(&mut devices).devices(&self.states).unwrap();
        self.writer(&mut devices).eof();
        out.put_u32(Message::VmstateSize.number());
        out.put_u64(devices.len() as u64);
        out.put_bytes(devices.bytes());
        out.into_bytes()
    }
}

/// Changes of four bytes each: a place, and what becomes of the byte there.
fn changed(mut talk: Vec<u8>, changes: &[u8]) -> Vec<u8> {
    for change in changes.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % (talk.len() + 1);
        match change[2] % 4 {
            0 => talk.truncate(at),
            1 => talk.insert(at, change[3]),
            2 if at < talk.len() => drop(talk.remove(at)),
            _ => {
                if let Some(byte) = talk.get_mut(at) {
                    *byte = change[3];
                }
            }
        }
    }
    talk
}

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let world = &*WORLD;
    let twice = || [&world.talk[..], &world.talk].concat();
    let said = match first % 4 {
        0 => rest.to_vec(),
        1 => changed(world.join.clone(), rest),
        2 => [&world.join[..], rest].concat(),
        _ => [world.join.clone(), changed(twice(), rest)].concat(),
    };
    let file = rustix::fs::memfd_create("said", rustix::fs::MemfdFlags::empty()).unwrap();
    let mut file = File::from(file);
    file.write_all(&said).and_then(|()| file.rewind()).unwrap();
    let channel = Channel::from_fd(file.into(), Yank::new().unwrap()).unwrap();
    // It ends by the end of what is said, at the latest.
    let Err(_) = take_in(channel, MACHINE, &world.ram, &world.states);
});
