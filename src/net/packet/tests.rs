use super::testing::*;
use super::*;

#[test]
fn tags_and_both_ip_versions_are_seen_through() {
    for v6 in [false, true] {
        for vlan in [&[][..], &[5], &[7, 9]] {
            let mut segment = seg(flags::ACK, 1, 2, b"data").vlan(vlan);
            segment.v6 = v6;
            let frame = segment.frame();
            let view = FrameView::parse(&frame);
            assert_eq!(view.tags.count as usize, vlan.len());
            assert_eq!(&view.tags.ids[..vlan.len()], vlan);
            let tcp = tcp_of(&frame);
            assert_eq!((tcp.seq, tcp.ack, tcp.len()), (1, 2, 4));
        }
    }
}

#[test]
fn every_cut_of_a_frame_is_parsed_without_panic() {
    let full = seg(flags::ACK, 1, 2, b"data").ts(1, 2).sack(&[(1, 2)]).vlan(&[1, 2]).v6().frame();
    for len in 0..full.data.len() {
        let cut = Frame::new(full.data[..len].to_vec());
        assert_eq!(FrameView::parse(&cut).kind, Kind::Other, "{len}");
    }
}

#[test]
fn extension_headers_and_fragments_of_ipv6() {
    let mut payload = vec![44, 0, 1, 4, 0, 0, 0, 0]; // hop-by-hop, then a fragment header
    payload.extend([PROTO_UDP, 0, 0x00, 0x09, 0, 0, 0, 77]); // offset 8, more
    payload.extend(b"01234567");
    let frame = ip_frame(true, &[], 2, 1, 0, &payload);
    let Kind::Ip(ip) = FrameView::parse(&frame).kind else { panic!() };
    assert_eq!(ip.proto, PROTO_UDP);
    assert_eq!(ip.fragment, Some(Fragment { id: 77, offset: 8, more: true }));
    assert_eq!(&frame.data[ip.l4..ip.end], b"01234567");
}

#[test]
fn options_are_found_and_malformed_ones_end_the_search() {
    let frame = seg(flags::ACK, 1, 2, b"").ts(11, 12).sack(&[(5, 6), (7, 8)]).frame();
    let options = tcp_of(&frame).options(&frame);
    assert_eq!(options.timestamp_values(&frame), Some((11, 12)));
    assert_eq!(options.sack.unwrap().count, 2);
    let mut bad = seg(flags::ACK, 1, 2, b"");
    bad.options = vec![8, 0, 0, 0];
    let frame = bad.frame();
    assert_eq!(tcp_of(&frame).options(&frame), TcpOptions::default());
}

#[test]
fn updated_checksum_equals_a_fresh_one_at_any_alignment() {
    for at in 0..9 {
        let mut frame = seg(flags::ACK, 0xffff_fff0, 3, b"0123456789").frame();
        let tcp = tcp_of(&frame);
        let mut fix = Fixup::new(tcp.at);
        fix.set_u32(&mut frame, tcp.payload + at % 6, 0xdead_beef);
        fix.set_u32(&mut frame, tcp.at + 4, 0);
        fix.finish(&mut frame);
        tcp_of(&frame);
    }
}

#[test]
fn sequence_numbers_wrap() {
    assert!(after(1, 0xffff_ffff));
    assert_eq!(later(1, 0xffff_ffff), 1);
    assert_eq!(earlier(1, 0xffff_ffff), 0xffff_ffff);
}
