//! Frames for tests.

use super::*;

/// A TCP segment to build.
#[derive(Clone, Debug)]
pub(crate) struct Seg {
    pub v6: bool,
    pub vlan: Vec<u16>,
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub payload: Vec<u8>,
    pub options: Vec<u8>,
    pub to_guest: bool,
}

/// A segment from the guest (10.0.0.2:80) to the client (10.0.0.1:4000).
pub(crate) fn seg(flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Seg {
    Seg {
        v6: false,
        vlan: vec![],
        sport: 80,
        dport: 4000,
        seq,
        ack,
        flags,
        window: 1000,
        payload: payload.to_vec(),
        options: vec![],
        to_guest: false,
    }
}

impl Seg {
    /// The same connection, towards the guest.
    pub fn inbound(mut self) -> Self {
        std::mem::swap(&mut self.sport, &mut self.dport);
        self.to_guest = true;
        self
    }
    pub fn window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }
    pub fn ts(mut self, val: u32, ecr: u32) -> Self {
        self.options.extend([1, 1, 8, 10]);
        self.options.extend(val.to_be_bytes());
        self.options.extend(ecr.to_be_bytes());
        self
    }
    pub fn sack(mut self, blocks: &[(u32, u32)]) -> Self {
        self.options.extend([1, 1, 5, 2 + 8 * blocks.len() as u8]);
        for (a, b) in blocks {
            self.options.extend(a.to_be_bytes());
            self.options.extend(b.to_be_bytes());
        }
        self
    }
    pub fn scale(mut self, shift: u8) -> Self {
        self.options.extend([1, 3, 3, shift]);
        self
    }
    pub fn port(mut self, port: u16) -> Self {
        if self.to_guest {
            self.sport = port
        } else {
            self.dport = port
        }
        self
    }
    pub fn v6(mut self) -> Self {
        self.v6 = true;
        self
    }
    pub fn vlan(mut self, ids: &[u16]) -> Self {
        self.vlan = ids.to_vec();
        self
    }
    pub fn frame(&self) -> Frame {
        let mut tcp = vec![];
        tcp.extend(self.sport.to_be_bytes());
        tcp.extend(self.dport.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        assert!(self.options.len().is_multiple_of(4));
        tcp.push((((20 + self.options.len()) / 4) << 4) as u8);
        tcp.push(self.flags);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let (guest, client) = (2, 1);
        let (s, d) = if self.to_guest { (client, guest) } else { (guest, client) };
        let mut frame = ip_frame(self.v6, &self.vlan, s, d, PROTO_TCP, &tcp);
        let Kind::Ip(ip) = FrameView::parse(&frame).kind else { panic!() };
        let view = TcpView::parse(&frame, &ip).unwrap();
        let sum = tcp_checksum(&frame, &ip, &view);
        frame.data[view.at + 16..view.at + 18].copy_from_slice(&sum.to_be_bytes());
        frame
    }
}

/// An IP frame between 10.0.0.`src` and 10.0.0.`dst` (or fd00::).
pub(crate) fn ip_frame(v6: bool, vlan: &[u16], src: u8, dst: u8, proto: u8, payload: &[u8]) -> Frame {
    let mut data = vec![0x52, 0x54, 0, 0, 0, dst, 0x52, 0x54, 0, 0, 0, src];
    for id in vlan {
        data.extend(0x8100u16.to_be_bytes());
        data.extend(id.to_be_bytes());
    }
    if v6 {
        data.extend(ETH_IPV6.to_be_bytes());
        data.extend([0x60, 0, 0, 0]);
        data.extend((payload.len() as u16).to_be_bytes());
        data.extend([proto, 64]);
        for host in [src, dst] {
            data.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
    } else {
        data.extend(ETH_IPV4.to_be_bytes());
        data.extend([0x45, 0]);
        data.extend((20 + payload.len() as u16).to_be_bytes());
        data.extend([0, 1, 0x40, 0, 64, proto, 0, 0, 10, 0, 0, src, 10, 0, 0, dst]);
    }
    data.extend(payload);
    Frame::new(data)
}

/// A UDP datagram from the guest, port 53 to 4000.
pub(crate) fn udp(payload: &[u8]) -> Frame {
    let mut l4 = vec![0, 53, 0x0f, 0xa0];
    l4.extend((8 + payload.len() as u16).to_be_bytes());
    l4.extend([0, 0]);
    l4.extend(payload);
    ip_frame(false, &[], 2, 1, PROTO_UDP, &l4)
}

/// Cuts an IPv4 frame into fragments with `piece` payload bytes (a multiple of 8) and identification `id`.
pub(crate) fn fragment(frame: &Frame, piece: usize, id: u16) -> Vec<Frame> {
    let Kind::Ip(ip) = FrameView::parse(frame).kind else { panic!() };
    let payload = &frame.data[ip.l4..ip.end];
    let count = payload.len().div_ceil(piece);
    payload
        .chunks(piece)
        .enumerate()
        .map(|(i, chunk)| {
            let mut data = frame.data[..ip.l4].to_vec();
            data.extend(chunk);
            let total = (ip.l4 - ip.l3 + chunk.len()) as u16;
            data[ip.l3 + 2..ip.l3 + 4].copy_from_slice(&total.to_be_bytes());
            data[ip.l3 + 4..ip.l3 + 6].copy_from_slice(&id.to_be_bytes());
            let field = (i * piece / 8) as u16 | if i + 1 < count { 0x2000 } else { 0 };
            data[ip.l3 + 6..ip.l3 + 8].copy_from_slice(&field.to_be_bytes());
            Frame::new(data)
        })
        .collect()
}

/// The segment of a frame and whether its checksum is right.
pub(crate) fn tcp_of(frame: &Frame) -> TcpView {
    let Kind::Ip(ip) = FrameView::parse(frame).kind else { panic!("not IP") };
    let view = TcpView::parse(frame, &ip).expect("not TCP");
    let stored = be16(&frame.data, view.at + 16).unwrap();
    assert_eq!(stored, tcp_checksum(frame, &ip, &view), "checksum of {view:?}");
    view
}
