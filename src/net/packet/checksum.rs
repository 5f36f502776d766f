//! The Internet checksum (RFC 1071) and its update when a field changes (RFC 1624).

use super::{Frame, IpView, TcpView};

/// One's complement sum of `data` as big-endian 16-bit words, added to `start`; an odd last byte is padded with zero.
pub fn internet_sum(start: u32, data: &[u8]) -> u32 {
    let mut sum = u64::from(start);
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_be_bytes(*word));
    }
    let (halves, rest) = rest.as_chunks::<2>();
    for half in halves {
        sum += u64::from(u16::from_be_bytes(*half));
    }
    if let [last] = rest {
        sum += u64::from(*last) << 8;
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u32
}

/// The checksum of the TCP segment in `frame`, computed afresh (the value to store). If the rest is left to hardware, it
/// is the plain sum of the pseudo header.
pub fn tcp_checksum(frame: &Frame, ip: &IpView, tcp: &TcpView) -> u16 {
    let addresses = if ip.v6 { 16 } else { 4 };
    let length = (tcp.end - tcp.at) as u32;
    let mut sum = internet_sum(u32::from(ip.proto) + (length >> 16) + (length & 0xffff), &ip.src[..addresses]);
    sum = internet_sum(sum, &ip.dst[..addresses]);
    if frame.partial_checksum() {
        return sum as u16;
    }
    sum = internet_sum(sum, &frame.data[tcp.at..tcp.at + 16]);
    sum = internet_sum(sum, &frame.data[tcp.at + 18..tcp.end]);
    !(sum as u16)
}

/// Changes fields of a TCP segment and keeps its checksum true. The checksum is written by [`Fixup::finish`].
#[derive(Debug)]
pub struct Fixup {
    base: usize,
    delta: u32,
}

impl Fixup {
    /// For the segment whose header starts at `tcp_at`.
    pub fn new(tcp_at: usize) -> Self {
        Self { base: tcp_at, delta: 0 }
    }

    /// Overwrites the bytes at `at` (any alignment).
    pub fn set(&mut self, frame: &mut Frame, at: usize, bytes: &[u8]) {
        for (i, &new) in bytes.iter().enumerate() {
            let old = std::mem::replace(&mut frame.data[at + i], new);
            let shift = if (at + i - self.base).is_multiple_of(2) { 8 } else { 0 };
            // Subtracting is adding the complement, in one's complement arithmetic.
            self.delta += u32::from(new) << shift;
            self.delta += 0xffff - (u32::from(old) << shift);
        }
        self.delta = fold(self.delta);
    }

    /// Overwrites a 32-bit field.
    pub fn set_u32(&mut self, frame: &mut Frame, at: usize, value: u32) {
        self.set(frame, at, &value.to_be_bytes());
    }

    /// Overwrites a 16-bit field.
    pub fn set_u16(&mut self, frame: &mut Frame, at: usize, value: u16) {
        self.set(frame, at, &value.to_be_bytes());
    }

    /// Writes the updated checksum, unless it is left to hardware.
    pub fn finish(self, frame: &mut Frame) {
        if self.delta == 0 || frame.partial_checksum() {
            return;
        }
        let at = self.base + 16;
        let old = u16::from_be_bytes([frame.data[at], frame.data[at + 1]]);
        let sum = fold(u32::from(!old) + self.delta);
        frame.data[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
}

fn fold(mut sum: u32) -> u32 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}
