//! The words between the two sides: a number each.

use crate::channel::Channel;
use crate::incoming::Receiver;
use crate::outgoing::Sender;
use crate::reader::Reader;
use lockstep_util::{Result, bail, err};
use serde_json::Value;

/// The words, in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// S→P: the secondary runs and may be asked for checkpoints.
    CheckpointReady,
    /// P→S: a checkpoint begins.
    CheckpointRequest,
    /// S→P: the secondary has stopped.
    CheckpointReply,
    /// P→S: sections of RAM follow.
    VmstateSend,
    /// P→S: a length in eight bytes and that much device state follow.
    VmstateSize,
    /// S→P: all of it arrived and is good.
    VmstateReceived,
    /// S→P: the secondary has become what the checkpoint says, and runs.
    VmstateLoaded,
}

use Message::*;

const MESSAGES: [(Message, &str); 7] = [
    (CheckpointReady, "checkpoint-ready"),
    (CheckpointRequest, "checkpoint-request"),
    (CheckpointReply, "checkpoint-reply"),
    (VmstateSend, "vmstate-send"),
    (VmstateSize, "vmstate-size"),
    (VmstateReceived, "vmstate-received"),
    (VmstateLoaded, "vmstate-loaded"),
];

/// Precedes a length in four bytes and an object of JSON, which only sides that agreed on it send.
const EXTENSION: u32 = 0x4c53_0001;
/// Precedes a part of RAM's section and an end mark, sent while the primary's guest runs; between sides that agreed on it.
const RAM_AHEAD: u32 = 0x4c53_0002;
/// The longest such object, in bytes: one network card's connections take up to 8 MiB.
const MAX_EXTENSION: u32 = 32 << 20;

impl Message {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The word's name.
    pub fn name(self) -> &'static str {
        MESSAGES[self as usize].1
    }

    fn from_number(number: u32) -> Option<Self> {
        MESSAGES.get(number as usize).map(|m| m.0)
    }
}

/// A word, or what sides that agreed on it say besides.
enum Heard {
    Message(Message),
    Extension(Value),
    RamAhead,
}

/// What the primary wants next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A checkpoint.
    Checkpoint,
    /// That pages are put by for the next one.
    RamAhead,
}

/// Sends a word, without waiting: a word finds room on a channel whose other end listens.
pub(super) fn say(channel: &Channel, message: Message) -> Result<()> {
    let sent = channel.write_at_once(&message.number().to_be_bytes());
    sent.map_err(|e| lockstep_util::Error::with_errno("Can't send COLO message", &e))
}

fn hear(reader: &mut Reader, extensions: bool) -> Result<Heard> {
    let context = |e: lockstep_util::Error| e.prepend("Can't receive COLO message: ");
    let number = u32::from_be_bytes(reader.take_array().map_err(context)?);
    if number == EXTENSION && extensions {
        let len = u32::from_be_bytes(reader.take_array().map_err(context)?);
        if len > MAX_EXTENSION {
            bail!("Invalid message");
        }
        let mut text = Vec::new();
        reader.take_into(len as usize, &mut text).map_err(context)?;
        return Ok(Heard::Extension(serde_json::from_slice(&text).map_err(|_| err!("Invalid message"))?));
    }
    if number == RAM_AHEAD && extensions {
        return Ok(Heard::RamAhead);
    }
    Ok(Heard::Message(Message::from_number(number).ok_or_else(|| err!("Invalid message"))?))
}

/// Waits for one word; what comes before it besides goes to `extension`.
fn expect(reader: &mut Reader, expected: Message, mut extension: Option<&mut Option<Value>>) -> Result<()> {
    loop {
        match hear(reader, extension.is_some())? {
            Heard::Message(message) if message == expected => return Ok(()),
            Heard::Message(m) => {
                bail!("Unexpected COLO message {}, expected {}", m.number(), expected.number())
            }
            Heard::Extension(value) => {
                if let Some(slot) = &mut extension {
                    **slot = Some(value);
                }
            }
            Heard::RamAhead => bail!("Unexpected COLO message {RAM_AHEAD:#x}, expected {}", expected.number()),
        }
    }
}

fn put_extension(value: &Value, out: &mut Vec<u8>) {
    let text = value.to_string();
    out.extend(EXTENSION.to_be_bytes());
    out.extend((text.len() as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

impl Sender {
    /// Gathers a word; it goes out with the next flush.
    pub(super) fn say(&mut self, message: Message) {
        self.out.put_u32(message.number());
    }

    /// Gathers the word that pages come ahead of a checkpoint.
    pub(super) fn say_ram_ahead(&mut self) {
        self.out.put_u32(RAM_AHEAD);
    }

    /// Gathers an object for a peer that understands it.
    pub(super) fn say_extension(&mut self, value: &Value) {
        put_extension(value, self.out.buffer_mut());
    }

    /// Waits for a word.
    pub(super) fn expect(&mut self, message: Message) -> Result<()> {
        expect(&mut self.reader, message, None)
    }

    /// Waits for a word; returns the object that came before it.
    pub(super) fn expect_with_extension(&mut self, message: Message) -> Result<Option<Value>> {
        let mut extension = None;
        expect(&mut self.reader, message, Some(&mut extension))?;
        Ok(extension)
    }
}

impl Receiver {
    /// Sends a word.
    pub(super) fn say(&mut self, message: Message) -> Result<()> {
        say(&self.channel, message)
    }

    /// Sends an object, and a word after it.
    pub(super) fn say_with_extension(&mut self, value: &Value, message: Message) -> Result<()> {
        let mut out = Vec::new();
        put_extension(value, &mut out);
        out.extend(message.number().to_be_bytes());
        let sent = self.channel.write_all(&[&out]);
        sent.map_err(|e| lockstep_util::Error::with_errno("Can't send COLO message", &e))
    }

    /// Waits for a word; returns the object that came before it.
    pub(super) fn expect(&mut self, message: Message) -> Result<Option<Value>> {
        let mut extension = None;
        expect(&mut self.reader, message, Some(&mut extension))?;
        Ok(extension)
    }

    /// Waits for what the primary wants.
    pub(super) fn expect_request(&mut self) -> Result<Request> {
        match hear(&mut self.reader, true)? {
            Heard::Message(CheckpointRequest) => Ok(Request::Checkpoint),
            Heard::RamAhead => Ok(Request::RamAhead),
            Heard::Message(other) => bail!("Got unknown COLO message: {}", other.number()),
            Heard::Extension(_) => bail!("Invalid message"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Yank;
    use std::io::ErrorKind;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_word_to_a_peer_that_takes_none_is_an_error_and_no_wait() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let channel = Channel::from_fd(ours.into(), Yank::new().unwrap()).unwrap();
        let full = (0..).find_map(|_| channel.write_at_once(&[0; 4]).err()).unwrap();
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(say(&channel, VmstateReceived).unwrap_err().to_string()));
        let error = told.recv_timeout(Duration::from_secs(20)).expect("it does not wait");
        assert!(error.starts_with("Can't send COLO message: "), "{error}");
    }
}
