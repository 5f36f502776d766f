//! What the network said to a silent secondary: frames that reached its own backend, not the mirror.
//!
//! A bridge shows a secondary the client's frames only when it does not know where the VM's address is: so, after the
//! primary's death. The client repeats itself at growing intervals (RFC 6298). A secondary that takes over would have to
//! wait for the next repetition, had it not kept the last ones.

use std::collections::VecDeque;

use crate::packet::{Frame, FrameView, Kind, TcpView, flags};

/// The most frames that are kept.
const MAX_FRAMES: usize = 256;

/// What tells a repetition of a segment from another segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    source: [u8; 16],
    ports: (u16, u16),
    sequence: u32,
    length: usize,
    flags: u8,
}

/// The latest TCP segments, each once, since the last checkpoint. Other protocols do not expect to be repeated by the
/// network, and what is older than a checkpoint has been heard by the primary.
#[derive(Debug, Default)]
pub(crate) struct Unheard {
    frames: VecDeque<(Segment, Frame)>,
}

impl Unheard {
    /// Keeps a frame if it may be of use.
    pub fn push(&mut self, frame: Frame) {
        let Some(segment) = segment_of(&frame) else { return };
        self.frames.retain(|(known, _)| *known != segment);
        if self.frames.len() == MAX_FRAMES {
            self.frames.pop_front();
        }
        self.frames.push_back((segment, frame));
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.frames.clear();
    }

    /// All frames, oldest first.
    pub fn take(&mut self) -> impl Iterator<Item = Frame> + use<> {
        std::mem::take(&mut self.frames).into_iter().map(|(_, frame)| frame)
    }
}

fn segment_of(frame: &Frame) -> Option<Segment> {
    let Kind::Ip(ip) = FrameView::parse(frame).kind else { return None };
    let tcp = TcpView::parse(frame, &ip)?;
    // An abort ends a connection whenever it comes: one that has waited may be aimed at an older connection.
    (!tcp.has(flags::RST)).then_some(Segment {
        source: ip.src,
        ports: (tcp.src_port, tcp.dst_port),
        sequence: tcp.seq,
        length: tcp.end - tcp.payload,
        flags: tcp.flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::flags::{ACK, RST};
    use crate::packet::testing::{seg, udp};

    #[test]
    fn each_segment_is_kept_once_the_latest_ones_and_no_other_protocol() {
        let mut unheard = Unheard::default();
        unheard.push(udp(b"a datagram"));
        unheard.push(seg(RST, 1, 0, b"").inbound().frame());
        for n in 0..300 {
            unheard.push(seg(ACK, n, 1, b"x").inbound().frame());
            unheard.push(seg(ACK, 299, 1, b"x").inbound().frame());
        }
        let kept: Vec<_> = unheard.take().collect();
        assert_eq!(kept.len(), MAX_FRAMES);
        assert_eq!(kept.last(), Some(&seg(ACK, 299, 1, b"x").inbound().frame()));
        assert_eq!(unheard.take().count(), 0);
    }
}
