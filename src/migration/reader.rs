//! What has arrived on a channel and was not taken yet.

use crate::channel::Channel;
use lockstep_util::{Error, Result, err};
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// How much is asked of the channel at once, in bytes.
const CHUNK: usize = 1 << 20;

/// A buffered reader whose buffer grows only as far as one element needs.
#[derive(Debug)]
pub(crate) struct Reader {
    channel: Arc<Channel>,
    buf: Vec<u8>,
    start: usize,
    end: usize,
    received: u64,
}

impl Reader {
    pub(crate) fn new(channel: Arc<Channel>) -> Self {
        Self { channel, buf: vec![0; CHUNK], start: 0, end: 0, received: 0 }
    }

    /// How many bytes have come so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// What is there.
    pub(crate) fn available(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Takes bytes off the front.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Waits for more.
    ///
    /// # Errors
    /// When there is no more.
    pub(crate) fn fill(&mut self) -> Result<()> {
        self.fill_until(None)
    }

    pub(crate) fn fill_until(&mut self, deadline: Option<Instant>) -> Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buf.len() {
            // The stream's reader bounds what one element may take.
            self.buf.resize(self.buf.len() * 2, 0);
        }
        match self.channel.read_until(&mut self.buf[self.end..], deadline) {
            Ok(0) => Err(io_error()),
            Ok(n) => {
                self.end += n;
                self.received += n as u64;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Err(io_error()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for and takes `N` bytes.
    ///
    /// # Errors
    /// When they do not come.
    pub(crate) fn take_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        loop {
            if let Some(bytes) = self.available().first_chunk::<N>() {
                let bytes = *bytes;
                self.consume(N);
                return Ok(bytes);
            }
            self.fill()?;
        }
    }

    /// Waits for and takes `count` bytes into `into`, which is cleared first. The memory grows as they come.
    ///
    /// # Errors
    /// When they do not come.
    pub(crate) fn take_into(&mut self, count: usize, into: &mut Vec<u8>) -> Result<()> {
        into.clear();
        while into.len() < count {
            if self.start == self.end {
                self.fill()?;
            }
            let n = self.available().len().min(count - into.len());
            into.extend_from_slice(&self.buf[self.start..self.start + n]);
            self.consume(n);
        }
        Ok(())
    }
}

/// What QEMU says of a channel that ended.
pub(crate) fn io_error() -> Error {
    err!("{}", strerror(libc::EIO))
}

fn strerror(errno: i32) -> String {
    Error::from(io::Error::from_raw_os_error(errno)).message().to_owned()
}
