//! A ring buffer that keeps the newest bytes, read with `ringbuf-read`.

use std::collections::VecDeque;

/// Bytes of bounded number; the oldest go first.
#[derive(Debug)]
pub(crate) struct RingBuffer {
    bytes: VecDeque<u8>,
    size: usize,
}

impl RingBuffer {
    pub fn new(size: usize) -> Self {
        Self { bytes: VecDeque::new(), size }
    }

    pub fn push(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(self.size)..];
        let excess = (self.bytes.len() + data.len()).saturating_sub(self.size);
        self.bytes.drain(..excess);
        self.bytes.extend(data);
    }

    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let count = count.min(self.bytes.len());
        self.bytes.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_bytes_stay() {
        let mut ring = RingBuffer::new(4);
        ring.push(b"abc");
        ring.push(b"de");
        assert_eq!(ring.take(2), b"bc");
        ring.push(b"0123456789");
        assert_eq!(ring.take(99), b"6789");
    }
}
