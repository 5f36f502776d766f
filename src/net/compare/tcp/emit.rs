//! The last change to a segment before it leaves: acknowledgement and window lowered to what both guests stand for,
//! timestamps in order, and pure acknowledgements made from scratch.

use super::ends::{Blocks, Ends, duplicate_of};
use crate::packet::{
    Fixup, Frame, FrameView, IpView, Kind, SackBlocks, TcpView, after, earlier, flags, internet_sum, later,
    tcp_checksum,
};

/// A window that grew by so many bytes is worth telling (two full segments).
const WINDOW_STEP: u32 = 2896;

/// The most options that a TCP header has, in bytes.
const MAX_OPTIONS: usize = 40;

/// What the network has been told on one connection.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The highest acknowledgement.
    pub ack: Option<u32>,
    /// The right edge of the window, if the scale is known.
    pub right: Option<u32>,
    /// The latest TSval: a later segment must not carry an earlier one, or the peer drops it (RFC 7323 section 5).
    pub tsval: Option<u32>,
    /// What it was told of by selective acknowledgement, behind the highest acknowledgement.
    pub named: Blocks,
    /// The window was lowered because the secondary's is smaller.
    pub window_lowered: bool,
    /// The window field said zero.
    pub window_closed: bool,
}

impl Told {
    /// Whether a window was lowered and opens so far again, if its right edge is this now, that it is worth telling.
    pub fn opens(&self, edge: Option<u32>) -> bool {
        let (Some(edge), Some(told)) = (edge, self.right) else { return false };
        self.window_lowered && after(edge, told) && (self.window_closed || edge.wrapping_sub(told) >= WINDOW_STEP)
    }
}

/// What was changed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changed {
    pub clamped: bool,
}

/// The window edge that both guests allow.
pub(super) fn right_edge(primary: &Ends, secondary: &Ends) -> Option<u32> {
    let right = primary.right?;
    Some(secondary.right.map_or(right, |s| earlier(right, s)))
}

/// Finishes a segment of the primary. `seq` replaces the sequence number of a pure acknowledgement.
pub(super) fn finish(
    frame: &mut Frame,
    tcp: &TcpView,
    primary: &Ends,
    secondary: &Ends,
    told: &mut Told,
    seq: Option<u32>,
) -> Changed {
    let mut changed = Changed::default();
    // An abort promises nothing, and in SYN-SENT it counts only with the exact acknowledgement.
    if tcp.has(flags::RST) {
        return changed;
    }
    let mut fix = Fixup::new(tcp.at);
    if let Some(seq) = seq.filter(|&seq| seq != tcp.seq) {
        fix.set_u32(frame, tcp.at + 4, seq);
    }
    if tcp.has(flags::ACK) {
        let both = primary.ack.zip(secondary.ack).map(|(p, s)| earlier(p, s));
        let ack = both.or(told.ack).unwrap_or(tcp.ack);
        changed.clamped = after(tcp.ack, ack);
        let window = window_field(tcp, ack, primary, secondary, told);
        if ack != tcp.ack {
            fix.set_u32(frame, tcp.at + 8, ack);
        }
        if window != tcp.window {
            fix.set_u16(frame, tcp.at + 14, window);
        }
        let told_ack = told.ack.map_or(ack, |old| later(old, ack));
        told.ack = Some(told_ack);
        told.named.forget_before(told_ack);
    }
    let options = tcp.options(frame);
    if let Some(sack) = options.sack {
        name_what_both_have(frame, &mut fix, sack, secondary, told);
    }
    if let (Some(at), Some((value, echo))) = (options.timestamps, options.timestamp_values(frame)) {
        match told.tsval {
            Some(last) if after(last, value) => fix.set_u32(frame, at, last),
            _ => told.tsval = Some(value),
        }
        if let Some(later) = echo_of_the_later(primary, secondary).filter(|&it| tcp.has(flags::ACK) && it != echo) {
            fix.set_u32(frame, at + 4, later);
        }
    }
    fix.finish(frame);
    changed
}

/// The timestamp to echo to the peer: that of the guest for which the acknowledgement had to wait. The peer tells by it whether an
/// acknowledgement answers what it sent first or what it sent again (RFC 3522): echoing what the primary got first, it would take each
/// repetition that the secondary needed for a needless one, and the rest of what is missing for arrived.
fn echo_of_the_later(primary: &Ends, secondary: &Ends) -> Option<u32> {
    let (p, s) = primary.ack.zip(secondary.ack)?;
    match p == s {
        true => Some(later(primary.echo?, secondary.echo?)),
        false if after(p, s) => secondary.echo,
        false => primary.echo,
    }
}

/// Takes out of a selective acknowledgement what the secondary is not known to have: the peer would not send it again for long. That
/// something has come twice (RFC 2883) is told only if it has on both sides: a repetition that one of them needed was needed.
fn name_what_both_have(frame: &mut Frame, fix: &mut Fixup, sack: SackBlocks, secondary: &Ends, told: &mut Told) {
    let Some(ack) = told.ack else { return };
    const NO_OPERATION: u8 = 1;
    let mut kept: Vec<u8> = Vec::with_capacity(8 * sack.count);
    let twice = duplicate_of(sack, frame, ack);
    for block in sack.edges(frame) {
        let Some((left, right)) = secondary.part_of(block) else { continue };
        if (twice == Some(block) || !after(right, ack)) && secondary.twice != Some(block) {
            continue;
        }
        kept.extend(left.to_be_bytes());
        kept.extend(right.to_be_bytes());
        if after(left, ack) {
            told.named.add((left, right));
        }
    }
    if kept.iter().eq(&frame.data[sack.at..sack.at + 8 * sack.count]) {
        return;
    }
    let head = if kept.is_empty() { [NO_OPERATION; 2] } else { [5, kept.len() as u8 + 2] };
    kept.resize(8 * sack.count, NO_OPERATION);
    fix.set(frame, sack.at - 2, &head);
    fix.set(frame, sack.at, &kept);
}

/// The window to tell, in the primary's units.
fn window_field(tcp: &TcpView, ack: u32, primary: &Ends, secondary: &Ends, told: &mut Told) -> u16 {
    let (Some(scale), Some(own), Some(both)) = (primary.scale, primary.right, right_edge(primary, secondary)) else {
        // Without the scale an edge means nothing in bytes; the newest field goes with a changed acknowledgement.
        return if ack == tcp.ack { tcp.window } else { primary.window };
    };
    let scale = if tcp.has(flags::SYN) { 0 } else { scale };
    told.window_lowered = after(own, both);
    let own_edge = tcp.ack.wrapping_add(u32::from(tcp.window) << scale);
    let window = if ack == tcp.ack && !after(own_edge, both) {
        tcp.window
    } else {
        // Never take back what was offered (RFC 9293 section 3.8.6).
        let edge = told.right.map_or(both, |old| later(old, both));
        let bytes = if after(edge, ack) { edge.wrapping_sub(ack) } else { 0 };
        u16::try_from(bytes >> scale).unwrap_or(u16::MAX)
    };
    told.window_closed = window == 0;
    let edge = ack.wrapping_add(u32::from(window) << scale);
    told.right = Some(told.right.map_or(edge, |old| later(old, edge)));
    window
}

/// The headers of the connection's last segment, from which a pure acknowledgement can be made.
#[derive(Debug)]
pub(super) struct Template {
    headers: Vec<u8>,
    vnet_len: usize,
    ip: IpView,
    tcp: TcpView,
    timestamps: Option<(u32, u32)>,
}

impl Template {
    pub fn new(frame: &Frame, ip: &IpView, tcp: &TcpView) -> Self {
        Self {
            headers: frame.data[..tcp.at + 20].to_vec(),
            vnet_len: frame.vnet_len,
            ip: *ip,
            tcp: *tcp,
            timestamps: tcp.options(frame).timestamp_values(frame),
        }
    }

    /// Takes the place of the old template without allocating.
    pub fn update(&mut self, frame: &Frame, ip: &IpView, tcp: &TcpView) {
        self.headers.clear();
        self.headers.extend_from_slice(&frame.data[..tcp.at + 20]);
        self.vnet_len = frame.vnet_len;
        self.ip = *ip;
        self.tcp = *tcp;
        self.timestamps = tcp.options(frame).timestamp_values(frame).or(self.timestamps);
    }

    /// The sequence number of the segment.
    pub fn seq(&self) -> u32 {
        self.tcp.seq
    }

    /// A pure acknowledgement with sequence number `seq` that names as many of `names` as fit; the acknowledgement number is the
    /// primary's, to be lowered by [`finish`].
    pub fn acknowledgement(&self, seq: u32, primary: &Ends, told: &Told, names: &Blocks) -> Option<(Frame, TcpView)> {
        let at = self.tcp.at;
        let mut data = self.headers.clone();
        data[..self.vnet_len].fill(0);
        let stamps = if self.timestamps.is_some() { 12 } else { 0 };
        let named: Vec<_> = names.iter().take((MAX_OPTIONS - stamps - 4) / 8).collect();
        let options = stamps + if named.is_empty() { 0 } else { 4 + 8 * named.len() };
        let end = at + 20 + options;
        data[at + 4..at + 8].copy_from_slice(&seq.to_be_bytes());
        data[at + 8..at + 12].copy_from_slice(&primary.ack?.to_be_bytes());
        data[at + 12] = (((20 + options) / 4) << 4) as u8;
        data[at + 13] = flags::ACK;
        data[at + 14..at + 16].copy_from_slice(&primary.window.to_be_bytes());
        data[at + 18..at + 20].fill(0);
        if let Some((value, echo)) = self.timestamps {
            data.extend([1, 1, 8, 10]);
            data.extend(told.tsval.unwrap_or(value).to_be_bytes());
            data.extend(echo.to_be_bytes());
        }
        if !named.is_empty() {
            data.extend([1, 1, 5, 2 + 8 * named.len() as u8]);
            for (left, right) in named {
                data.extend(left.to_be_bytes());
                data.extend(right.to_be_bytes());
            }
        }
        set_ip_length(&mut data, &self.ip, end);
        if !self.ip.v6 {
            // A datagram that is never fragmented needs no identification (RFC 6864).
            let l3 = self.ip.l3;
            data[l3 + 4..l3 + 8].copy_from_slice(&[0, 0, 0x40, 0]);
            fix_ipv4_checksum(&mut data, l3, self.ip.l4);
        }
        let mut frame = Frame::with_vnet(data, self.vnet_len);
        let tcp = resum(&mut frame)?;
        Some((frame, tcp))
    }
}

/// Cuts `frame` after `keep` bytes of payload, without FIN and PSH: the front of a segment of which the rest stays.
pub(super) fn front_piece(frame: &Frame, ip: &IpView, tcp: &TcpView, keep: usize) -> Option<(Frame, TcpView)> {
    let end = tcp.payload + keep;
    let mut data = frame.data.get(..end)?.to_vec();
    data[tcp.at + 13] &= !(flags::FIN | flags::PSH);
    finish_piece(data, frame.vnet_len, ip, end, keep)
}

/// The segment without its first `skip` bytes of payload.
pub(super) fn back_piece(frame: &Frame, ip: &IpView, tcp: &TcpView, skip: usize) -> Option<(Frame, TcpView)> {
    let mut data = frame.data[..tcp.payload].to_vec();
    data.extend_from_slice(frame.data.get(tcp.payload + skip..tcp.end)?);
    let seq = tcp.data_seq().wrapping_add(skip as u32);
    data[tcp.at + 4..tcp.at + 8].copy_from_slice(&seq.to_be_bytes());
    data[tcp.at + 13] &= !flags::SYN;
    let end = data.len();
    finish_piece(data, frame.vnet_len, ip, end, end - tcp.payload)
}

fn finish_piece(mut data: Vec<u8>, vnet: usize, ip: &IpView, end: usize, payload: usize) -> Option<(Frame, TcpView)> {
    set_ip_length(&mut data, ip, end);
    if !ip.v6 {
        fix_ipv4_checksum(&mut data, ip.l3, ip.l4);
    }
    if vnet >= 10 {
        // The segment may have become too short to be cut by hardware: it is not to be cut then.
        let size = u16::from_le_bytes([data[4], data[5]]);
        if payload <= usize::from(size) {
            data[..vnet].fill(0);
        }
    }
    let mut frame = Frame::with_vnet(data, vnet);
    let tcp = resum(&mut frame)?;
    Some((frame, tcp))
}

fn set_ip_length(data: &mut [u8], ip: &IpView, end: usize) {
    let (at, length) = if ip.v6 { (ip.l3 + 4, end - ip.l3 - 40) } else { (ip.l3 + 2, end - ip.l3) };
    data[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
}

/// Computes the header checksum of IPv4.
pub(in crate::compare) fn fix_ipv4_checksum(data: &mut [u8], l3: usize, l4: usize) {
    data[l3 + 10..l3 + 12].fill(0);
    let sum = !(internet_sum(0, &data[l3..l4]) as u16);
    data[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
}

fn resum(frame: &mut Frame) -> Option<TcpView> {
    let Kind::Ip(ip) = FrameView::parse(frame).kind else { return None };
    let tcp = TcpView::parse(frame, &ip)?;
    let sum = tcp_checksum(frame, &ip, &tcp);
    frame.data[tcp.at + 16..tcp.at + 18].copy_from_slice(&sum.to_be_bytes());
    Some(tcp)
}
