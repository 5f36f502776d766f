//! What a guest has said on a connection and its peer has not acknowledged.
//!
//! The words of a secondary's guest go to the comparison and die with the primary. The peer may never have got them, and
//! the guest itself would repeat them only when its retransmission timer (RFC 6298: a second, at first) runs out. So they
//! are kept here, and said again at the moment the secondary takes over.

use std::collections::VecDeque;

use crate::packet::{Frame, TcpView, after, flags};

/// The most that is kept of one connection, in bytes. The earliest is kept: without it the rest is of no use to the peer,
/// and its acknowledgement makes the guest go on by itself.
const MAX_BYTES: usize = 64 << 10;

/// The unacknowledged output of one connection, in the guest's own numbers.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    /// Segments that take up sequence space, and the number behind each.
    segments: VecDeque<(u32, Frame)>,
    bytes: usize,
    /// The latest acknowledgement without data behind them.
    acknowledgement: Option<Frame>,
}

impl Unacknowledged {
    /// The guest sends a segment, of which `room` bytes may be kept.
    pub fn sent(&mut self, frame: &Frame, tcp: &TcpView, room: usize) {
        if tcp.has(flags::RST) {
            *self = Self::default();
            return;
        }
        let control = u32::from(tcp.has(flags::SYN)) + u32::from(tcp.has(flags::FIN));
        let length = (tcp.end - tcp.payload) as u32 + control;
        if length == 0 {
            self.bytes -= self.acknowledgement.take().map_or(0, |old| old.data.len());
            if frame.data.len() <= room {
                self.bytes += frame.data.len();
                self.acknowledgement = Some(frame.clone());
            }
            return;
        }
        let end = tcp.seq.wrapping_add(length);
        let repeated = self.segments.back().is_some_and(|(last, _)| !after(end, *last));
        if repeated || self.bytes + frame.data.len() > MAX_BYTES || frame.data.len() > room {
            return;
        }
        self.bytes -= self.acknowledgement.take().map_or(0, |old| old.data.len());
        self.bytes += frame.data.len();
        self.segments.push_back((end, frame.clone()));
    }

    /// The peer has everything before `number`.
    pub fn acknowledged(&mut self, number: u32) {
        while let Some((end, frame)) = self.segments.front()
            && !after(*end, number)
        {
            self.bytes -= frame.data.len();
            self.segments.pop_front();
        }
    }

    /// What to say again, in order.
    pub fn take(&mut self) -> Vec<Frame> {
        let kept = std::mem::take(self);
        kept.segments.into_iter().map(|(_, frame)| frame).chain(kept.acknowledgement).collect()
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
