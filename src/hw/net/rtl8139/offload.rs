//! What C+ mode does to a frame on its way out: checksums (RFC 1071), segmentation of large TCP sends, VLAN tags (IEEE 802.1Q).

/// What a descriptor asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    pub ip_checksum: bool,
    pub tcp_checksum: bool,
    pub udp_checksum: bool,
    /// Payload bytes a segment of a large send has at most.
    pub segment: Option<u16>,
    /// A VLAN tag to insert, in network order.
    pub tag: Option<[u8; 2]>,
}

const ETHERNET_HEADER: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_FIN_PSH: u8 = 0x09;

/// Where the parts of an IPv4 frame are.
struct Layout {
    ip_header: usize,
    protocol: u8,
    /// Bytes after the IP header, by its length field.
    payload: usize,
}

impl Layout {
    fn of(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(ETHERNET_HEADER..)?;
        if ip.len() < 20 || frame[12..14] != ETHERTYPE_IPV4 || ip[0] >> 4 != 4 {
            return None;
        }
        let ip_header = usize::from(ip[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        if ip_header < 20 || total < ip_header || total > ip.len() {
            return None;
        }
        Some(Self { ip_header, protocol: ip[9], payload: total - ip_header })
    }
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    let words = bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])));
    start + words.sum::<u32>()
}

fn fold(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn set_ip_checksum(ip_header: &mut [u8]) {
    ip_header[10..12].fill(0);
    let checksum = fold(sum(ip_header, 0));
    ip_header[10..12].copy_from_slice(&checksum);
}

/// Sets the checksum at `field` of a TCP or UDP part, with the pseudo header of the IP header before it.
fn set_transport_checksum(ip: &mut [u8], header: usize, payload: usize, protocol: u8, field: usize) {
    let at = header + field;
    ip[at..at + 2].fill(0);
    let pseudo = sum(&ip[12..20], u32::from(protocol) + payload as u32);
    let checksum = fold(sum(&ip[header..header + payload], pseudo));
    ip[at..at + 2].copy_from_slice(&checksum);
}

/// Does what is asked, and hands every frame that comes of it to `out`. What is no IPv4 goes out as it is.
pub fn send(mut frame: Vec<u8>, offload: &Offload, mut out: impl FnMut(Vec<u8>)) {
    let mut emit = |frame: Vec<u8>| out(tagged(frame, offload.tag));
    let wanted = offload.ip_checksum || offload.tcp_checksum || offload.udp_checksum || offload.segment.is_some();
    let Some(layout) = wanted.then(|| Layout::of(&frame)).flatten() else { return emit(frame) };
    if let Some(size) = offload.segment {
        if size > 0 && layout.protocol == TCP && segment(&frame, &layout, size.into(), &mut emit) {
            return;
        }
        return emit(frame);
    }
    let ip = &mut frame[ETHERNET_HEADER..];
    if offload.ip_checksum {
        set_ip_checksum(&mut ip[..layout.ip_header]);
    }
    if offload.tcp_checksum && layout.protocol == TCP && layout.payload >= 20 {
        set_transport_checksum(ip, layout.ip_header, layout.payload, TCP, 16);
    }
    if offload.udp_checksum && layout.protocol == UDP && layout.payload >= 8 {
        set_transport_checksum(ip, layout.ip_header, layout.payload, UDP, 6);
    }
    emit(frame);
}

/// Cuts a TCP frame into segments of `size` payload bytes. False when it is not well-formed.
fn segment(frame: &[u8], layout: &Layout, size: usize, emit: &mut impl FnMut(Vec<u8>)) -> bool {
    let tcp_at = ETHERNET_HEADER + layout.ip_header;
    if layout.payload < 20 {
        return false;
    }
    let tcp_header = usize::from(frame[tcp_at + 12] >> 4) * 4;
    if tcp_header < 20 || tcp_header > layout.payload {
        return false;
    }
    let headers = tcp_at + tcp_header;
    let data = &frame[headers..tcp_at + layout.payload];
    let id = u16::from_be_bytes([frame[18], frame[19]]);
    let sequence = u32::from_be_bytes([frame[tcp_at + 4], frame[tcp_at + 5], frame[tcp_at + 6], frame[tcp_at + 7]]);
    let count = data.len().div_ceil(size);
    for (i, part) in data.chunks(size).enumerate() {
        let mut piece = Vec::with_capacity(headers + part.len() + 4);
        piece.extend(&frame[..headers]);
        piece.extend(part);
        let ip = &mut piece[ETHERNET_HEADER..];
        let payload = tcp_header + part.len();
        ip[2..4].copy_from_slice(&((layout.ip_header + payload) as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&id.wrapping_add(i as u16).to_be_bytes());
        let tcp = &mut ip[layout.ip_header..];
        tcp[4..8].copy_from_slice(&sequence.wrapping_add((i * size) as u32).to_be_bytes());
        if i + 1 < count {
            tcp[13] &= !TCP_FIN_PSH;
        }
        set_ip_checksum(&mut ip[..layout.ip_header]);
        set_transport_checksum(ip, layout.ip_header, payload, TCP, 16);
        emit(piece);
    }
    true
}

fn tagged(mut frame: Vec<u8>, tag: Option<[u8; 2]>) -> Vec<u8> {
    if let Some([a, b]) = tag
        && frame.len() >= 12
    {
        frame.splice(12..12, [0x81, 0x00, a, b]);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_frame(payload: usize, flags: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend(ETHERTYPE_IPV4);
        frame.extend([0x45, 0]);
        frame.extend(((40 + payload) as u16).to_be_bytes());
        frame.extend([0x12, 0x34, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 80, 0, 81, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        frame.extend((0..payload).map(|i| i as u8));
        frame
    }

    /// Sums to all ones when both checksums are right.
    fn check(frame: &[u8]) {
        let ip = &frame[14..];
        assert_eq!(fold(sum(&ip[..20], 0)), [0, 0]);
        let pseudo = sum(&ip[12..20], u32::from(ip[9]) + ip.len() as u32 - 20);
        assert_eq!(fold(sum(&ip[20..], pseudo)), [0, 0]);
    }

    #[test]
    fn a_large_send_is_cut_and_only_its_last_segment_pushes_and_finishes() {
        let offload = Offload { segment: Some(1000), ..Offload::default() };
        let mut sent = vec![];
        send(tcp_frame(2500, 0x19), &offload, |f| sent.push(f));
        assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [1054, 1054, 554]);
        sent.iter().for_each(|f| check(f));
        assert_eq!(sent.iter().map(|f| f[47]).collect::<Vec<_>>(), [0x10, 0x10, 0x19]);
        assert_eq!(sent.iter().map(|f| f[19]).collect::<Vec<_>>(), [0x34, 0x35, 0x36]);
        assert_eq!(sent[1][38..42], 0x3d8_u32.to_be_bytes(), "sequence numbers wrap");
        assert_eq!(sent[2][54..], tcp_frame(2500, 0)[2054..]);
    }

    #[test]
    fn checksums_are_filled_in_and_tags_inserted() {
        let offload = Offload { ip_checksum: true, tcp_checksum: true, tag: Some([0x30, 5]), ..Offload::default() };
        let mut sent = vec![];
        send(tcp_frame(31, 0x10), &offload, |f| sent.push(f));
        assert_eq!(sent[0][12..16], [0x81, 0, 0x30, 5]);
        sent[0].drain(12..16);
        check(&sent[0]);
    }

    #[test]
    fn malformed_frames_go_out_as_they_are() {
        let all = Offload { ip_checksum: true, tcp_checksum: true, segment: Some(8), ..Offload::default() };
        for change in [(14, 0x65), (14, 0x4f), (14, 0x41), (16, 0xff), (46, 0xf0), (46, 0x10), (12, 0x86)] {
            for cut in [0, 13, 20, 34, 50, 60] {
                let mut frame = tcp_frame(10, 0);
                frame[change.0] = change.1;
                frame.truncate(frame.len() - cut);
                let mut sent = vec![];
                send(frame.clone(), &all, |f| sent.push(f));
                assert_eq!(sent, [frame]);
            }
        }
    }
}
