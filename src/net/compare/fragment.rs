//! Putting fragmented datagrams together (RFC 791, RFC 8200 section 4.5), so that two guests which number or cut them
//! differently compare equal.

use crate::packet::{Fragment, Frame, IpView, Kind, PROTO_TCP, TcpView, VlanTags};

/// Datagrams in pieces at a time. More than a guest that behaves has, few enough to search in order.
const MAX_DATAGRAMS: usize = 64;
/// Pieces of one datagram.
const MAX_PIECES: usize = 256;

/// A datagram and the frames that brought it.
#[derive(Debug)]
pub(super) struct Datagram {
    /// The frames, in the order in which they came.
    pub frames: Vec<Frame>,
    pub tags: VlanTags,
    /// The header of the first piece.
    pub ip: IpView,
    /// The payload, if it was put together; otherwise it is in the only frame.
    joined: Option<Vec<u8>>,
}

impl Datagram {
    /// One that came in one frame.
    pub fn whole(frame: Frame, tags: VlanTags, ip: IpView) -> Self {
        Self { frames: vec![frame], tags, ip, joined: None }
    }

    /// The payload of the IP datagram.
    pub fn payload(&self) -> &[u8] {
        match &self.joined {
            Some(payload) => payload,
            None => &self.frames[0].data[self.ip.l4..self.ip.end],
        }
    }

    /// What has to be equal: the payload; for protocols that nobody knows, the headers before it too.
    pub fn compared(&self, whole_frame: bool) -> &[u8] {
        match &self.joined {
            None if whole_frame => &self.frames[0].data[self.frames[0].vnet_len..self.ip.end],
            _ => self.payload(),
        }
    }

    /// Bytes of all frames.
    pub fn bytes(&self) -> usize {
        self.frames.iter().map(|f| f.data.len()).sum()
    }

    /// An IPv4 TCP segment that came in pieces, as one frame.
    pub fn as_tcp(&self) -> Option<(Frame, IpView, TcpView)> {
        let payload = self.joined.as_ref().filter(|_| self.ip.proto == PROTO_TCP && !self.ip.v6)?;
        let first = self.frames.iter().find(|f| is_first(f))?;
        let Kind::Ip(ip) = crate::packet::FrameView::parse(first).kind else { return None };
        let total = u16::try_from(ip.l4 - ip.l3 + payload.len()).ok()?;
        let mut data = first.data[..ip.l4].to_vec();
        data.extend_from_slice(payload);
        data[ip.l3 + 2..ip.l3 + 4].copy_from_slice(&total.to_be_bytes());
        data[ip.l3 + 6..ip.l3 + 8].fill(0);
        crate::compare::tcp::fix_ipv4_checksum(&mut data, ip.l3, ip.l4);
        let frame = Frame::with_vnet(data, first.vnet_len);
        let Kind::Ip(ip) = crate::packet::FrameView::parse(&frame).kind else { return None };
        let tcp = TcpView::parse(&frame, &ip).filter(|tcp| tcp.src_port | tcp.dst_port != 0)?;
        Some((frame, ip, tcp))
    }
}

fn is_first(frame: &Frame) -> bool {
    matches!(
        crate::packet::FrameView::parse(frame).kind,
        Kind::Ip(IpView { fragment: Some(Fragment { offset: 0, .. }), .. })
    )
}

#[derive(Debug)]
struct Partial {
    tags: VlanTags,
    ip: IpView,
    id: u32,
    since: i64,
    frames: Vec<(Frame, IpView)>,
    /// Where the datagram ends, known from its last piece.
    total: Option<usize>,
    have: usize,
}

/// The datagrams of one side that have not arrived completely.
#[derive(Debug, Default)]
pub(super) struct Reassembler {
    partial: Vec<Partial>,
    bytes: usize,
}

impl Reassembler {
    /// Takes a piece; gives the datagram when it is complete. A piece that overlaps another, and a piece for which there
    /// is no room, comes back as a datagram of its own and is then compared alone.
    pub fn push(&mut self, frame: Frame, tags: VlanTags, ip: IpView, now: i64) -> Option<Datagram> {
        let fragment = ip.fragment?;
        let same = |p: &Partial| {
            p.id == fragment.id && p.tags == tags && p.ip.proto == ip.proto && p.ip.src == ip.src && p.ip.dst == ip.dst
        };
        let (start, len) = (fragment.offset, ip.end - ip.l4);
        let end = start + len;
        let index = match self.partial.iter().position(same) {
            Some(index) => index,
            None if self.partial.len() == MAX_DATAGRAMS => return Some(Datagram::whole(frame, tags, ip)),
            None => {
                let id = fragment.id;
                self.partial.push(Partial { tags, ip, id, since: now, frames: vec![], total: None, have: 0 });
                self.partial.len() - 1
            }
        };
        let partial = &mut self.partial[index];
        let overlaps = partial.frames.iter().any(|(_, other)| {
            let at = other.fragment.map_or(0, |f| f.offset);
            start < at + (other.end - other.l4) && at < end
        });
        let beyond = partial.total.is_some_and(|total| end > total || !fragment.more);
        if overlaps || beyond || len == 0 || end > 65535 || partial.frames.len() == MAX_PIECES {
            return Some(Datagram::whole(frame, tags, ip));
        }
        if !fragment.more {
            partial.total = Some(end);
        }
        if start == 0 {
            partial.ip = ip;
        }
        partial.have += len;
        self.bytes += frame.data.len();
        partial.frames.push((frame, ip));
        if partial.total != Some(partial.have) {
            return None;
        }
        let done = self.partial.swap_remove(index);
        let mut payload = vec![0; done.have];
        for (frame, ip) in &done.frames {
            let at = ip.fragment.map_or(0, |f| f.offset);
            // Pieces are disjoint and `total` is the end of the last one unless an earlier one reached behind it.
            let Some(slot) = payload.get_mut(at..at + (ip.end - ip.l4)) else { continue };
            slot.copy_from_slice(&frame.data[ip.l4..ip.end]);
        }
        let frames: Vec<Frame> = done.frames.into_iter().map(|(frame, _)| frame).collect();
        self.bytes -= frames.iter().map(|f| f.data.len()).sum::<usize>();
        Some(Datagram { frames, tags: done.tags, ip: done.ip, joined: Some(payload) })
    }

    /// When the oldest piece came.
    pub fn oldest(&self) -> Option<i64> {
        self.partial.iter().map(|p| p.since).min()
    }

    /// Bytes of the frames kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes all pieces out.
    pub fn take(&mut self) -> Vec<Frame> {
        self.bytes = 0;
        self.partial.drain(..).flat_map(|p| p.frames.into_iter().map(|(frame, _)| frame)).collect()
    }
}
