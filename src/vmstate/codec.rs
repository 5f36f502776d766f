//! Bytes out and bytes in.

use crate::LoadError;
use serde_json::Value;

/// The mark before a subsection.
const SUBSECTION: u8 = 0x05;

/// Where device state is written: a buffer that can be used again, and, when somebody wants it, a description of what went in.
#[derive(Debug, Default)]
pub struct Encoder {
    buf: Vec<u8>,
    descriptions: Option<Vec<Value>>,
}

impl Encoder {
    /// An empty encoder that makes no descriptions.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty encoder over a buffer whose memory is used again.
    pub fn with_buffer(mut buf: Vec<u8>) -> Self {
        buf.clear();
        Self { buf, descriptions: None }
    }

    /// An encoder that also collects what devices say of their state (see [`Encoder::describe`]).
    pub fn describing() -> Self {
        Self { buf: Vec::new(), descriptions: Some(Vec::new()) }
    }

    /// Forgets what was written and keeps the memory.
    pub fn clear(&mut self) {
        self.buf.clear();
        if let Some(d) = &mut self.descriptions {
            d.clear();
        }
    }

    /// What has been written.
    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// How many bytes have been written.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// The buffer.
    pub fn into_bytes(self) -> Vec<u8> {
        self.buf
    }

    /// The buffer itself, for a writer that appends to plain bytes.
    pub fn buffer_mut(&mut self) -> &mut Vec<u8> {
        &mut self.buf
    }

    /// Appends bytes as they are.
    pub fn put_bytes(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// Appends `count` zero bytes.
    pub fn put_zeroes(&mut self, count: usize) {
        self.buf.resize(self.buf.len() + count, 0);
    }

    /// Appends one byte.
    pub fn put_u8(&mut self, value: u8) {
        self.buf.push(value);
    }

    /// Appends two bytes, big-endian.
    pub fn put_u16(&mut self, value: u16) {
        self.put_bytes(&value.to_be_bytes());
    }

    /// Appends four bytes, big-endian.
    pub fn put_u32(&mut self, value: u32) {
        self.put_bytes(&value.to_be_bytes());
    }

    /// Appends eight bytes, big-endian.
    pub fn put_u64(&mut self, value: u64) {
        self.put_bytes(&value.to_be_bytes());
    }

    /// Appends a length in one byte and the text. Names are constants or bus paths; one over 255 bytes is cut.
    pub fn put_name(&mut self, name: &str) {
        let name = &name.as_bytes()[..name.len().min(255)];
        self.put_u8(name.len() as u8);
        self.put_bytes(name);
    }

    /// Begins a subsection: the mark, the name, the version.
    pub fn put_subsection(&mut self, name: &str, version: u32) {
        self.put_u8(SUBSECTION);
        self.put_name(name);
        self.put_u32(version);
    }

    /// Hands over a description of what was just written, if one is wanted: an object with `vmsd_name`, `version`, `fields` and
    /// perhaps `subsections`.
    pub fn describe(&mut self, make: impl FnOnce() -> Value) {
        if let Some(d) = &mut self.descriptions {
            d.push(make());
        }
    }

    /// Whether descriptions are wanted.
    pub fn is_describing(&self) -> bool {
        self.descriptions.is_some()
    }

    /// Takes the last description handed over.
    pub fn take_description(&mut self) -> Option<Value> {
        self.descriptions.as_mut()?.pop()
    }
}

/// A checked reader over bytes that came from outside.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
    len: usize,
    partial: bool,
}

impl<'a> Decoder<'a> {
    /// Reads bytes that are all there will be.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, len: bytes.len(), partial: false }
    }

    /// Reads the part of a stream that has arrived: the end of it is never taken for the end of the state.
    pub fn partial(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, len: bytes.len(), partial: true }
    }

    /// How many bytes have been read.
    pub fn position(&self) -> usize {
        self.len - self.rest.len()
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Takes `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], LoadError> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or(LoadError::Short)?;
        self.rest = tail;
        Ok(head)
    }

    /// Takes exactly `N` bytes.
    pub fn take_array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let (head, tail) = self.rest.split_first_chunk().ok_or(LoadError::Short)?;
        self.rest = tail;
        Ok(*head)
    }

    /// Takes one byte.
    pub fn get_u8(&mut self) -> Result<u8, LoadError> {
        Ok(self.take_array::<1>()?[0])
    }

    /// Takes two bytes, big-endian.
    pub fn get_u16(&mut self) -> Result<u16, LoadError> {
        Ok(u16::from_be_bytes(self.take_array()?))
    }

    /// Takes four bytes, big-endian.
    pub fn get_u32(&mut self) -> Result<u32, LoadError> {
        Ok(u32::from_be_bytes(self.take_array()?))
    }

    /// Takes eight bytes, big-endian.
    pub fn get_u64(&mut self) -> Result<u64, LoadError> {
        Ok(u64::from_be_bytes(self.take_array()?))
    }

    /// Takes a length in one byte and that much text.
    pub fn get_name(&mut self) -> Result<&'a str, LoadError> {
        let len = self.get_u8()?;
        let bytes = self.take(len.into())?;
        std::str::from_utf8(bytes).map_err(|_| LoadError::invalid("A name in the stream is not text"))
    }

    /// The next byte, which stays.
    pub fn peek(&self) -> Result<Option<u8>, LoadError> {
        match self.rest.first() {
            None if self.partial => Err(LoadError::Short),
            first => Ok(first.copied()),
        }
    }

    /// Takes the head of a subsection of `parent` if one comes next: its name and version. The mark alone says nothing, because the
    /// byte may belong to what follows: only a name that begins with the parent's makes it a subsection.
    pub fn subsection(&mut self, parent: &str) -> Result<Option<(&'a str, u32)>, LoadError> {
        if self.peek()? != Some(SUBSECTION) {
            return Ok(None);
        }
        let Some(&len) = self.rest.get(1) else {
            return if self.partial { Err(LoadError::Short) } else { Ok(None) };
        };
        let len = usize::from(len);
        if len <= parent.len() {
            return Ok(None);
        }
        let name = &self.rest[2..self.rest.len().min(2 + len)];
        let known = name.len().min(parent.len());
        if name[..known] != parent.as_bytes()[..known] {
            return Ok(None);
        }
        if name.len() < len {
            return if self.partial { Err(LoadError::Short) } else { Ok(None) };
        }
        let Ok(name) = std::str::from_utf8(name) else { return Ok(None) };
        self.take(2 + len)?;
        Ok(Some((name, self.get_u32()?)))
    }
}
