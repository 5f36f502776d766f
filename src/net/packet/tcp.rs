//! The TCP header and its options (RFC 9293, RFC 7323 for timestamps and window scale, RFC 2018 for SACK).

use super::{Frame, IpView, PROTO_TCP, be16, be32};

/// The control bits of a TCP header.
pub mod flags {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Abort.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
}

/// A TCP segment inside a frame; positions are offsets into [`Frame::data`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpView {
    /// Where the TCP header starts.
    pub at: usize,
    /// Where the payload starts.
    pub payload: usize,
    /// Where the payload ends.
    pub end: usize,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number (meaningful with [`flags::ACK`]).
    pub ack: u32,
    /// Control bits, see [`flags`].
    pub flags: u8,
    /// Window field, unscaled.
    pub window: u16,
}

impl TcpView {
    /// The TCP segment of `ip`, or `None` if it is another protocol, a fragment, or malformed.
    pub fn parse(frame: &Frame, ip: &IpView) -> Option<Self> {
        if ip.proto != PROTO_TCP || ip.fragment.is_some() {
            return None;
        }
        let (data, at) = (&frame.data[..ip.end], ip.l4);
        let header = data.get(at..at + 20)?;
        let payload = at + usize::from(header[12] >> 4) * 4;
        if payload < at + 20 || payload > ip.end {
            return None;
        }
        Some(Self {
            at,
            payload,
            end: ip.end,
            src_port: be16(header, 0)?,
            dst_port: be16(header, 2)?,
            seq: be32(header, 4)?,
            ack: be32(header, 8)?,
            flags: header[13],
            window: be16(header, 14)?,
        })
    }

    /// Bytes of payload.
    pub fn len(&self) -> usize {
        self.end - self.payload
    }

    /// Whether the segment has no payload.
    pub fn is_empty(&self) -> bool {
        self.end == self.payload
    }

    /// Whether all of `bits` are set.
    pub fn has(&self, bits: u8) -> bool {
        self.flags & bits == bits
    }

    /// The sequence number of the first payload byte (a SYN occupies one number before it).
    pub fn data_seq(&self) -> u32 {
        self.seq.wrapping_add(u32::from(self.has(flags::SYN)))
    }

    /// The sequence number behind the last payload byte (where a FIN would stand).
    pub fn data_end(&self) -> u32 {
        self.data_seq().wrapping_add(self.len() as u32)
    }

    /// The options that matter here.
    pub fn options(&self, frame: &Frame) -> TcpOptions {
        let mut options = TcpOptions::default();
        let mut at = self.at + 20;
        while at < self.payload {
            let kind = frame.data[at];
            match kind {
                0 => break,
                1 => {
                    at += 1;
                    continue;
                }
                _ => {}
            }
            let Some(&len) = frame.data[..self.payload].get(at + 1) else { break };
            let len = usize::from(len);
            if len < 2 || at + len > self.payload {
                break;
            }
            match (kind, len) {
                (3, 3) => options.window_scale = Some(frame.data[at + 2].min(14)),
                (5, 10 | 18 | 26 | 34) => options.sack = Some(SackBlocks { at: at + 2, count: (len - 2) / 8 }),
                (8, 10) => options.timestamps = Some(at + 2),
                _ => {}
            }
            at += len;
        }
        options
    }
}

/// Where the SACK blocks of a segment are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SackBlocks {
    /// Offset of the first block in [`Frame::data`].
    pub at: usize,
    /// Number of blocks, eight bytes each (left edge, right edge).
    pub count: usize,
}

impl SackBlocks {
    /// The left and the right edge of each.
    pub fn edges(self, frame: &Frame) -> impl Iterator<Item = (u32, u32)> + use<'_> {
        (0..self.count)
            .filter_map(move |n| Some((be32(&frame.data, self.at + 8 * n)?, be32(&frame.data, self.at + 8 * n + 4)?)))
    }
}

/// The options of a segment that the compare engine and the rewriter read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// Window scale (only in a SYN), at most 14.
    pub window_scale: Option<u8>,
    /// Selective acknowledgements.
    pub sack: Option<SackBlocks>,
    /// Offset of TSval in [`Frame::data`]; TSecr stands four bytes behind.
    pub timestamps: Option<usize>,
}

impl TcpOptions {
    /// (TSval, TSecr).
    pub fn timestamp_values(&self, frame: &Frame) -> Option<(u32, u32)> {
        let at = self.timestamps?;
        Some((be32(&frame.data, at)?, be32(&frame.data, at + 4)?))
    }
}
