//! A reader of the stream that does no I/O: it is given what has arrived and takes whole elements off its front.

use super::ram::{BlockTable, RamDecoder, RamRecord};
use super::writer::Frames;
use super::{Command, MAGIC, VERSION, mark};
use lockstep_util::{Result, bail, err};
use lockstep_vmstate::{Decoder, LoadError};

/// The most that one element other than the description may take, in bytes: far more than any device's state.
const MAX_ELEMENT: usize = 64 << 20;
/// The most the description may take, in bytes.
const MAX_DESCRIPTION: u32 = 256 << 20;
/// The longest description that is kept for its reader; longer ones are passed over. One network card's connections, with how their
/// numbers are translated, take up to 8 MiB.
const MAX_KEPT: u32 = 32 << 20;
/// More sections than any machine has.
const MAX_SECTIONS: usize = 4096;

/// Which section a device's state is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionHeader {
    /// The number that parts and footers use.
    pub id: u32,
    /// The name.
    pub name: String,
    /// Which one of that name.
    pub instance: u32,
    /// The version of the state.
    pub version: u32,
}

/// Who knows where a device's state ends: sections carry no length.
pub trait DeviceLoader {
    /// Reads one section's state.
    ///
    /// # Errors
    /// [`LoadError::Short`] to be called again when more has arrived.
    fn load(&mut self, section: &SectionHeader, input: &mut Decoder<'_>) -> Result<(), LoadError>;
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// The stream's head was right, and the machine's name, if there was one, ours.
    Header,
    /// A command.
    Command(Command),
    /// A record of RAM.
    Ram(RamRecord<'a>),
    /// The state of a device; the loader has it.
    Device,
    /// A section's head or foot, or a piece of the description: nothing to act on.
    Frame,
    /// The end of the sections.
    Eof,
    /// The stream is over, with the description if it has one.
    Done,
}

#[derive(Debug)]
enum State {
    Header,
    Sections,
    Ram { section: SectionHeader, sized: bool },
    Device(SectionHeader),
    Footer(SectionHeader),
    Description,
    Skip(u32),
    Done,
}

/// The reader. Elements are taken off a buffer's front by [`next`](Self::next).
#[derive(Debug)]
pub struct StreamParser {
    machine: String,
    frames: Frames,
    state: State,
    ram: RamDecoder,
    sections: Vec<SectionHeader>,
    description_follows: bool,
    /// Its bytes, or nothing if there are too many.
    description: Option<Option<Vec<u8>>>,
}

impl StreamParser {
    /// Reads a whole stream for this machine.
    pub fn new(machine: impl Into<String>, table: BlockTable, frames: Frames) -> Self {
        Self {
            machine: machine.into(),
            frames,
            state: State::Header,
            ram: RamDecoder::new(table),
            sections: Vec::new(),
            description_follows: frames.description,
            description: None,
        }
    }

    /// Goes on with sections that have no head and no description, as a checkpoint's do; parts belong to sections begun before.
    pub fn resume(&mut self) {
        self.state = State::Sections;
        self.description_follows = false;
    }

    /// The description, if there was one.
    ///
    /// # Errors
    /// If it was too long to be kept, or is no JSON.
    pub fn take_description(&mut self) -> Result<Option<serde_json::Value>> {
        let Some(kept) = self.description.take() else { return Ok(None) };
        let bytes = kept.ok_or_else(|| err!("The description of the migration stream is too long to be kept"))?;
        let value = serde_json::from_slice(&bytes);
        Ok(Some(value.map_err(|e| err!("The description of the migration stream is no JSON: {e}"))?))
    }

    /// Whether everything was taken.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Takes the next element off the front of `input`, and says how many bytes it took. `None`: more has to arrive first.
    ///
    /// # Errors
    /// When the stream is not one, or not for this machine. The reader must not be used any more then.
    pub fn next<'a>(&mut self, input: &'a [u8], loader: &mut dyn DeviceLoader) -> Result<Option<(usize, Item<'a>)>> {
        let mut bytes = Decoder::partial(input);
        let item = match self.step(&mut bytes, loader) {
            Ok(item) => item?,
            Err(LoadError::Short) if input.len() >= MAX_ELEMENT => {
                bail!("A section of the migration stream is too long")
            }
            Err(LoadError::Short) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        Ok(Some((bytes.position(), item)))
    }

    /// The outer error says that bytes are missing (nothing has changed then) or that device state is bad, the inner one that the
    /// stream is.
    fn step<'a>(
        &mut self,
        input: &mut Decoder<'a>,
        loader: &mut dyn DeviceLoader,
    ) -> Result<Result<Item<'a>>, LoadError> {
        match &mut self.state {
            State::Header => self.header(input),
            State::Sections => self.top(input),
            State::Ram { section, sized } => match self.ram.next(input) {
                Ok(None) => Err(LoadError::Short),
                Err(e) => Ok(Err(e)),
                Ok(Some(record)) => {
                    match record {
                        RamRecord::End => self.state = State::Footer(section.clone()),
                        RamRecord::Sizes => *sized = true,
                        _ if !*sized => return Ok(Err(err!("Ack, bad migration stream!"))),
                        _ => {}
                    }
                    Ok(Ok(Item::Ram(record)))
                }
            },
            State::Device(section) => {
                loader.load(section, input)?;
                self.state = State::Footer(section.clone());
                Ok(Ok(Item::Device))
            }
            State::Footer(section) => {
                if self.frames.footers {
                    if input.get_u8()? != mark::FOOTER {
                        return Ok(Err(err!("Missing section footer for {}", section.name)));
                    }
                    let id = input.get_u32()?;
                    if id != section.id {
                        return Ok(Err(err!(
                            "Mismatched section id in footer for {} -read 0x{id:x} expected 0x{:x}",
                            section.name,
                            section.id
                        )));
                    }
                }
                self.state = State::Sections;
                Ok(Ok(Item::Frame))
            }
            State::Description => {
                let found = input.get_u8()?;
                if found != mark::DESCRIPTION {
                    return Ok(Err(err!("Expected vmdescription section, but got {found}")));
                }
                let len = input.get_u32()?;
                if len > MAX_DESCRIPTION {
                    return Ok(Err(err!("The description of the migration stream is too long")));
                }
                self.description = Some((len <= MAX_KEPT).then(Vec::new));
                self.skip(input, len)
            }
            State::Skip(left) => {
                let left = *left;
                self.skip(input, left)
            }
            State::Done => Ok(Ok(Item::Done)),
        }
    }

    fn skip<'a>(&mut self, input: &mut Decoder<'a>, left: u32) -> Result<Result<Item<'a>>, LoadError> {
        let here = input.remaining().min(left as usize);
        if here == 0 && left > 0 {
            // Nothing was taken, so that the head is read again.
            return Err(LoadError::Short);
        }
        let piece = input.take(here)?;
        if let Some(Some(kept)) = &mut self.description {
            kept.extend_from_slice(piece);
        }
        let left = left - here as u32;
        self.state = if left == 0 { State::Done } else { State::Skip(left) };
        Ok(Ok(if left == 0 { Item::Done } else { Item::Frame }))
    }

    fn header<'a>(&mut self, input: &mut Decoder<'a>) -> Result<Result<Item<'a>>, LoadError> {
        if input.get_u32()? != MAGIC {
            return Ok(Err(err!("Not a migration stream")));
        }
        match input.get_u32()? {
            VERSION => {}
            2 => return Ok(Err(err!("SaveVM v2 format is obsolete and don't work anymore"))),
            _ => return Ok(Err(err!("Unsupported migration stream version"))),
        }
        if self.frames.configuration {
            if input.get_u8()? != mark::CONFIGURATION {
                return Ok(Err(err!("Configuration section missing")));
            }
            let len = input.get_u32()? as usize;
            if len > 255 {
                return Ok(Err(err!("The machine's name in the migration stream is too long")));
            }
            let name = String::from_utf8_lossy(input.take(len)?).into_owned();
            if name != self.machine {
                return Ok(Err(err!("Machine type received is '{name}' and local is '{}'", self.machine)));
            }
            while let Some((name, version)) = input.subsection("configuration")? {
                if let Err(e) = configuration_part(name, version, input)? {
                    return Ok(Err(e));
                }
            }
        }
        self.state = State::Sections;
        Ok(Ok(Item::Header))
    }

    fn top<'a>(&mut self, input: &mut Decoder<'a>) -> Result<Result<Item<'a>>, LoadError> {
        match input.get_u8()? {
            mark::EOF => {
                self.state = if self.description_follows { State::Description } else { State::Done };
                Ok(Ok(Item::Eof))
            }
            mark::COMMAND => command(input).map(|c| c.map(Item::Command)),
            kind @ (mark::START | mark::FULL) => {
                let id = input.get_u32()?;
                let name = input.get_name()?.to_owned();
                let section = SectionHeader { id, name, instance: input.get_u32()?, version: input.get_u32()? };
                let ram = section.name == "ram";
                if ram != (kind == mark::START) {
                    return Ok(
                        Err(LoadError::UnknownSection { name: section.name, instance: section.instance }.into()),
                    );
                }
                if ram && section.version != super::RAM_VERSION {
                    return Ok(Err(err!("savevm: unsupported version {} for 'ram' v4", section.version)));
                }
                self.sections.retain(|s| s.id != id);
                if self.sections.len() >= MAX_SECTIONS {
                    return Ok(Err(err!("The migration stream has too many sections")));
                }
                self.sections.push(section.clone());
                self.state = if ram { State::Ram { section, sized: false } } else { State::Device(section) };
                // The head is an element of its own: the body may take long to arrive.
                Ok(Ok(Item::Frame))
            }
            mark::PART | mark::END => {
                let id = input.get_u32()?;
                match self.sections.iter().find(|s| s.id == id && s.name == "ram") {
                    Some(section) => self.state = State::Ram { section: section.clone(), sized: true },
                    None => return Ok(Err(err!("Unknown savevm section {id}"))),
                }
                Ok(Ok(Item::Frame))
            }
            other => Ok(Err(err!("Unknown savevm section type {other}"))),
        }
    }
}

fn command(input: &mut Decoder<'_>) -> Result<Result<Command>, LoadError> {
    let (number, len) = (input.get_u16()?, input.get_u16()?);
    let expect = |name: &str, want: u16| {
        if len == want { Ok(()) } else { Err(err!("{name} received with bad length - expecting {want}, got {len}")) }
    };
    let result = match number {
        1 => expect("OPEN_RETURN_PATH", 0).map(|()| Command::OpenReturnPath),
        2 => match expect("PING", 4) {
            Ok(()) => Ok(Command::Ping(input.get_u32()?)),
            Err(e) => Err(e),
        },
        8 => expect("ENABLE_COLO", 0).map(|()| Command::EnableColo),
        11 => expect("SWITCHOVER_START", 0).map(|()| Command::SwitchoverStart),
        3..=7 | 9 | 10 => Ok(Command::Other(number)),
        _ => Err(err!("MIG_CMD 0x{number:x} unknown (len 0x{len:x})")),
    };
    Ok(result)
}

/// A subsection of the configuration: what a sender says of itself.
fn configuration_part(name: &str, version: u32, input: &mut Decoder<'_>) -> Result<Result<()>, LoadError> {
    if version != 1 {
        return Ok(Err(err!("{name}: incoming version_id {version} is too new for local version_id 1")));
    }
    match name {
        "configuration/target-page-bits" => {
            let bits = input.get_u32()?;
            if bits != super::PAGE.trailing_zeros() {
                return Ok(Err(err!("Received TARGET_PAGE_BITS is {bits} but local is 12")));
            }
        }
        "configuration/capabilities" => {
            let count = input.get_u32()?;
            if count > 64 {
                return Ok(Err(err!("Too many capabilities in the migration stream")));
            }
            for _ in 0..count {
                let len = input.get_u8()?;
                input.take(len.into())?;
            }
        }
        "configuration/uuid" => {
            input.take(16)?;
        }
        _ => return Ok(Err(err!("VM subsection '{name}' in 'configuration' does not exist"))),
    }
    Ok(Ok(()))
}
