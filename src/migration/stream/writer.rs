//! Writing everything but RAM pages.

use super::{Command, MAGIC, VERSION, mark};
use lockstep_util::Result;
use lockstep_vmstate::{Encoder, Entry, StateRegistry};
use serde_json::{Value, json};

/// What frames a machine's streams have; machines of different ages differ.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// The configuration section comes first.
    pub configuration: bool,
    /// Sections end with a footer.
    pub footers: bool,
    /// The description ends the stream.
    pub description: bool,
    /// The receiver is told when the sender's guest has stopped (machines since 10.0).
    pub switchover_start: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self { configuration: true, footers: true, description: true, switchover_start: true }
    }
}

impl Frames {
    /// The frames of a machine of QEMU's by its name, such as `pc-i440fx-7.2`.
    pub fn of_machine(name: &str) -> Self {
        let version = name.rsplit_once('-').map_or("", |(_, version)| version);
        let number =
            version.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let at_least = |wanted: (u32, u32)| number.is_none_or(|n: (u32, u32)| n >= wanted);
        Self {
            configuration: at_least((2, 4)),
            footers: at_least((2, 4)),
            description: at_least((2, 3)),
            switchover_start: at_least((10, 0)),
        }
    }
}

/// Appends stream elements to a buffer.
#[derive(Debug)]
pub struct StreamWriter<'a> {
    out: &'a mut Encoder,
    frames: Frames,
}

impl<'a> StreamWriter<'a> {
    /// Writes to `out`.
    pub fn new(out: &'a mut Encoder, frames: Frames) -> Self {
        Self { out, frames }
    }

    /// Magic, version, and the machine's name.
    pub fn header(&mut self, machine: &str) {
        self.out.put_u32(MAGIC);
        self.out.put_u32(VERSION);
        if self.frames.configuration {
            self.out.put_u8(mark::CONFIGURATION);
            self.out.put_u32(machine.len() as u32);
            self.out.put_bytes(machine.as_bytes());
        }
    }

    /// A command.
    pub fn command(&mut self, command: Command) {
        self.out.put_u8(mark::COMMAND);
        self.out.put_u16(command.number());
        match command {
            Command::Ping(value) => {
                self.out.put_u16(4);
                self.out.put_u32(value);
            }
            _ => self.out.put_u16(0),
        }
    }

    /// The head of a section that tells its name: `START` or `FULL`.
    pub fn begin(&mut self, mark: u8, entry: &Entry, version: u32) {
        self.out.put_u8(mark);
        self.out.put_u32(entry.id);
        self.out.put_name(&entry.name);
        self.out.put_u32(entry.instance);
        self.out.put_u32(version);
    }

    /// The head of a further part: `PART` or `END`.
    pub fn part(&mut self, mark: u8, id: u32) {
        self.out.put_u8(mark);
        self.out.put_u32(id);
    }

    /// The end of a section.
    pub fn footer(&mut self, id: u32) {
        if self.frames.footers {
            self.out.put_u8(mark::FOOTER);
            self.out.put_u32(id);
        }
    }

    /// The end of the sections.
    pub fn eof(&mut self) {
        self.out.put_u8(mark::EOF);
    }

    /// Every device section that is needed, in the order of registration. Returns the descriptions if the buffer collects them.
    ///
    /// # Errors
    /// That of a device that cannot tell its state.
    pub fn devices(&mut self, states: &StateRegistry) -> Result<Vec<Value>> {
        let mut descriptions = Vec::new();
        for entry in states.entries() {
            let Some(state) = entry.state.as_ref().filter(|s| s.needed()) else { continue };
            let info = state.info();
            self.begin(mark::FULL, &entry, info.version);
            let body = self.out.len();
            states.save(&entry, self.out)?;
            if self.out.is_describing() {
                let size = self.out.len() - body;
                descriptions.push(describe(&entry, size, self.out.take_description()));
            }
            self.footer(entry.id);
        }
        Ok(descriptions)
    }

    /// The description that ends a stream. `extra` is an object whose members are added; a receiver passes over what it does not know.
    pub fn description(&mut self, machine: &str, devices: Vec<Value>, extra: Option<Value>) {
        if !self.frames.description {
            return;
        }
        let mut all = json!({"page_size": super::PAGE, "devices": devices});
        if self.frames.configuration {
            all["configuration"] = json!({"vmsd_name": "configuration", "version": 1, "fields": [
                {"name": "len", "type": "uint32", "size": 4},
                {"name": "name", "type": "buffer", "size": machine.len()},
            ]});
        }
        if let Some(Value::Object(extra)) = extra {
            extra.into_iter().for_each(|(key, value)| all[key] = value);
        }
        let text = all.to_string();
        self.out.put_u8(mark::DESCRIPTION);
        self.out.put_u32(text.len() as u32);
        self.out.put_bytes(text.as_bytes());
    }
}

fn describe(entry: &Entry, size: usize, inner: Option<Value>) -> Value {
    let mut device = json!({"name": &*entry.name, "instance_id": entry.instance});
    match inner {
        Some(Value::Object(inner)) => inner.into_iter().for_each(|(key, value)| device[key] = value),
        // State that nobody described is still so many bytes.
        _ => {
            device["size"] = size.into();
            device["fields"] = json!([{"name": "data", "size": size, "type": "buffer"}]);
        }
    }
    device
}
