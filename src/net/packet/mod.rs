//! Views of Ethernet frames: offsets that were checked once, so that the code behind may slice without fear.
//!
//! Sources: IEEE 802.3 and 802.1Q, RFC 791 (IPv4), RFC 8200 (IPv6), RFC 4861 (neighbour discovery), RFC 9293 (TCP).

mod checksum;
mod tcp;

pub use checksum::{Fixup, internet_sum, tcp_checksum};
pub use tcp::{SackBlocks, TcpOptions, TcpView, flags};

/// EtherType of IPv4.
pub const ETH_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETH_ARP: u16 = 0x0806;
/// EtherType of reverse ARP, which a VM announces itself with.
pub const ETH_RARP: u16 = 0x8035;
/// EtherType of IPv6.
pub const ETH_IPV6: u16 = 0x86dd;

/// Protocol number of ICMP.
pub const PROTO_ICMP: u8 = 1;
/// Protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// Protocol number of UDP.
pub const PROTO_UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const PROTO_ICMPV6: u8 = 58;

/// The longest chain of IPv6 extension headers that is followed; a longer one makes the frame [`Kind::Other`].
const MAX_EXTENSION_HEADERS: usize = 16;

/// An Ethernet frame, with the virtio-net header that stands before it when the sender supports one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Header (if any) and frame.
    pub data: Vec<u8>,
    /// Bytes of the virtio-net header at the front of `data`.
    pub vnet_len: usize,
}

impl Frame {
    /// A frame without a virtio-net header.
    pub fn new(data: Vec<u8>) -> Self {
        Self { data, vnet_len: 0 }
    }

    /// A frame of which the first `vnet_len` bytes are a virtio-net header (all of it, if it is shorter).
    pub fn with_vnet(data: Vec<u8>, vnet_len: usize) -> Self {
        let vnet_len = vnet_len.min(data.len());
        Self { data, vnet_len }
    }

    /// Whether the transport checksum is left to the receiver's hardware (`VIRTIO_NET_HDR_F_NEEDS_CSUM`): it then covers
    /// the pseudo header only and must stay as it is when fields change.
    pub fn partial_checksum(&self) -> bool {
        self.vnet_len >= 10 && self.data[0] & 1 != 0
    }
}

/// VLAN tags of a frame, outermost first (802.1Q, and two of them with QinQ). Priority bits are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VlanTags {
    /// How many of `ids` count (0 to 2).
    pub count: u8,
    /// VLAN identifiers (12 bits).
    pub ids: [u16; 2],
}

/// A piece of a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The identification that all pieces of a datagram share.
    pub id: u32,
    /// Where this piece starts in the datagram's payload, in bytes.
    pub offset: usize,
    /// Whether more pieces follow.
    pub more: bool,
}

/// The Internet layer of a frame. All positions are offsets into [`Frame::data`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpView {
    /// IPv6, otherwise IPv4.
    pub v6: bool,
    /// Source address; IPv4 uses the first four bytes.
    pub src: [u8; 16],
    /// Destination address; IPv4 uses the first four bytes.
    pub dst: [u8; 16],
    /// Protocol of the payload, behind any extension headers.
    pub proto: u8,
    /// Where the IP header starts.
    pub l3: usize,
    /// Where the payload starts.
    pub l4: usize,
    /// Where the datagram ends (Ethernet padding left out).
    pub end: usize,
    /// Set if this is a piece of a datagram.
    pub fragment: Option<Fragment>,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 or IPv6.
    Ip(IpView),
    /// ARP or reverse ARP.
    Arp,
    /// Anything else, and whatever is too short or contradicts itself.
    Other,
}

/// The parsed front of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameView {
    /// VLAN tags.
    pub tags: VlanTags,
    /// What follows them.
    pub kind: Kind,
}

impl FrameView {
    /// Parses `frame`; never fails, since an unintelligible frame is [`Kind::Other`].
    pub fn parse(frame: &Frame) -> Self {
        let data = &frame.data[..];
        let mut tags = VlanTags::default();
        let other = |tags| Self { tags, kind: Kind::Other };
        let mut at = frame.vnet_len + 12;
        let Some(mut ethertype) = be16(data, at) else { return other(tags) };
        at += 2;
        while matches!(ethertype, 0x8100 | 0x88a8 | 0x9100) && tags.count < 2 {
            let (Some(tci), Some(next)) = (be16(data, at), be16(data, at + 2)) else { return other(tags) };
            tags.ids[tags.count as usize] = tci & 0xfff;
            tags.count += 1;
            ethertype = next;
            at += 4;
        }
        let kind = match ethertype {
            ETH_IPV4 => parse_ipv4(data, at).map_or(Kind::Other, Kind::Ip),
            ETH_IPV6 => parse_ipv6(data, at).map_or(Kind::Other, Kind::Ip),
            ETH_ARP | ETH_RARP => Kind::Arp,
            _ => Kind::Other,
        };
        Self { tags, kind }
    }

    /// Whether the frame only finds neighbours or tells groups: ARP, ICMPv6 neighbour discovery (RFC 4861) and multicast
    /// listener discovery (RFC 3810). Such frames hold no data of the guest's services.
    pub fn is_neighbour_discovery(&self, frame: &Frame) -> bool {
        match self.kind {
            Kind::Arp => true,
            Kind::Ip(ip) if ip.v6 && ip.proto == PROTO_ICMPV6 && ip.fragment.is_none() => {
                matches!(frame.data.get(ip.l4), Some(130..=137 | 143))
            }
            _ => false,
        }
    }
}

fn parse_ipv4(data: &[u8], l3: usize) -> Option<IpView> {
    let header = data.get(l3..l3 + 20)?;
    if header[0] >> 4 != 4 {
        return None;
    }
    let header_len = usize::from(header[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_len < 20 || total < header_len || l3 + total > data.len() {
        return None;
    }
    let field = u16::from_be_bytes([header[6], header[7]]);
    let (more, offset) = (field & 0x2000 != 0, usize::from(field & 0x1fff) * 8);
    let fragment = (more || offset != 0).then(|| Fragment {
        id: u32::from(u16::from_be_bytes([header[4], header[5]])),
        offset,
        more,
    });
    let (mut src, mut dst) = ([0; 16], [0; 16]);
    src[..4].copy_from_slice(&header[12..16]);
    dst[..4].copy_from_slice(&header[16..20]);
    Some(IpView { v6: false, src, dst, proto: header[9], l3, l4: l3 + header_len, end: l3 + total, fragment })
}

fn parse_ipv6(data: &[u8], l3: usize) -> Option<IpView> {
    let header = data.get(l3..l3 + 40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let end = l3 + 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if end > data.len() {
        return None;
    }
    let (mut src, mut dst) = ([0; 16], [0; 16]);
    src.copy_from_slice(&header[8..24]);
    dst.copy_from_slice(&header[24..40]);
    let (mut proto, mut l4, mut fragment) = (header[6], l3 + 40, None);
    for _ in 0..MAX_EXTENSION_HEADERS {
        match proto {
            // Hop-by-hop, routing, destination options, mobility: length in units of 8 bytes, the first not counted.
            0 | 43 | 60 | 135 => {
                let option = data[..end].get(l4..l4 + 8)?;
                proto = option[0];
                l4 += 8 + usize::from(option[1]) * 8;
                if l4 > end {
                    return None;
                }
            }
            44 => {
                let option = data[..end].get(l4..l4 + 8)?;
                proto = option[0];
                let field = u16::from_be_bytes([option[2], option[3]]);
                let (more, offset) = (field & 1 != 0, usize::from(field & 0xfff8));
                l4 += 8;
                if more || offset != 0 {
                    let id = u32::from_be_bytes([option[4], option[5], option[6], option[7]]);
                    fragment = Some(Fragment { id, offset, more });
                    // What follows belongs to the datagram, not to this piece.
                    return Some(IpView { v6: true, src, dst, proto, l3, l4, end, fragment });
                }
            }
            _ => return Some(IpView { v6: true, src, dst, proto, l3, l4, end, fragment }),
        }
    }
    None
}

/// The big-endian 16-bit number at `at`, or `None` behind the end.
pub(crate) fn be16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

/// The big-endian 32-bit number at `at`, or `None` behind the end.
pub(crate) fn be32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// Whether `a` comes after `b` in 32-bit sequence space (RFC 1982).
pub(crate) fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// The later of two points in 32-bit sequence space.
pub(crate) fn later(a: u32, b: u32) -> u32 {
    if after(a, b) { a } else { b }
}

/// The earlier of two points in 32-bit sequence space.
pub(crate) fn earlier(a: u32, b: u32) -> u32 {
    if after(a, b) { b } else { a }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
