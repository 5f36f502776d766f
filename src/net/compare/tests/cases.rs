//! What QEMU's colo-compare was seen to do, where it is right, and where we differ on purpose.

use super::*;

fn icmp(payload: &[u8]) -> Frame {
    ip_frame(false, &[], 2, 1, PROTO_ICMP, payload)
}

#[test]
fn udp_leaves_when_the_secondary_has_sent_the_same_whatever_its_header_says() {
    let mut b = Bench::new();
    assert_eq!(left(&b.p(udp(b"one"))), (0, false));
    assert_eq!(left(&b.s(udp(b"one"))), (1, false));
    let mut other = udp(b"two");
    other.data[14 + 4] = 9; // identification
    other.data[14 + 8] = 3; // time to live
    b.p(udp(b"two"));
    assert_eq!(left(&b.s(other)), (1, false));
}

#[test]
fn udp_that_differs_in_content_or_size_asks_for_a_checkpoint_after_a_short_wait() {
    for other in [&b"abX"[..], b"abcd"] {
        let mut b = Bench::new();
        b.p(udp(b"abc"));
        assert_eq!(left(&b.s(udp(other))), (0, false));
        let out = b.pass(10);
        assert_eq!(out.checkpoint, Some(Divergence { protocol: Protocol::Udp, reason: Reason::ContentDiffers }));
        assert_eq!(left(&b.flush()), (1, false));
        assert_eq!(b.engine.stats().divergences["udp"], 1);
    }
}

#[test]
fn udp_in_another_order_is_no_difference() {
    let mut b = Bench::new();
    b.s(udp(b"a"));
    b.s(udp(b"b"));
    assert_eq!(left(&b.p(udp(b"b"))), (1, false));
    assert_eq!(left(&b.p(udp(b"a"))), (1, false));
    assert_eq!(left(&b.pass(100)), (0, false));
    b.p(udp(b"a"));
    b.p(udp(b"b"));
    assert_eq!(left(&b.s(udp(b"b"))), (1, false));
    b.now += MS;
    assert_eq!(left(&b.s(udp(b"a"))), (1, false));
    assert_eq!(left(&b.pass(100)), (0, false));
}

#[test]
fn a_udp_packet_that_the_secondary_skipped_counts_as_a_difference() {
    let mut b = Bench::new();
    b.p(udp(b"a"));
    b.p(udp(b"b"));
    assert_eq!(left(&b.s(udp(b"b"))), (1, false));
    assert_eq!(left(&b.pass(100)), (0, true));
}

#[test]
fn icmp_is_compared() {
    let mut b = Bench::new();
    b.p(icmp(b"\0\0\0\0ping"));
    assert_eq!(left(&b.s(icmp(b"\0\0\0\0ping"))), (1, false));
    b.p(icmp(b"\0\0\0\0ping"));
    b.s(icmp(b"\0\0\0\0pong"));
    assert_eq!(left(&b.pass(10)), (0, true));
    assert_eq!(left(&b.flush()), (1, false));
}

#[test]
fn other_protocols_are_compared_with_their_headers() {
    let mut b = Bench::new();
    let igmp = || ip_frame(false, &[], 2, 1, 2, b"report");
    b.p(igmp());
    assert_eq!(left(&b.s(igmp())), (1, false));
    let mut other = igmp();
    other.data[14 + 4] = 9;
    b.p(igmp());
    b.s(other);
    assert_eq!(left(&b.pass(10)), (0, true));
    assert_eq!(left(&b.flush()), (1, false));
}

#[test]
fn arp_and_frames_that_nobody_knows_pass_from_the_primary_only() {
    let mut b = Bench::new();
    let mut arp = vec![0xff; 12];
    arp.extend([8, 6]);
    arp.extend([0; 28]);
    assert_eq!(left(&b.p(Frame::new(arp.clone()))), (1, false));
    assert_eq!(left(&b.s(Frame::new(arp))), (0, false));
    assert_eq!(left(&b.p(Frame::new(vec![0; 20]))), (1, false));
    let solicitation = || ip_frame(true, &[], 2, 1, PROTO_ICMPV6, &[135, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(left(&b.p(solicitation())), (1, false));
    assert_eq!(left(&b.s(solicitation())), (0, false));
    assert_eq!(b.scan(), None);
}

#[test]
fn a_side_without_the_identity_keeps_arp_back_until_it_has_it() {
    let mut b = Bench::new();
    let mut arp = vec![0xff; 12];
    arp.extend([8, 6]);
    b.gate.set_open(false);
    for _ in 0..100 {
        assert_eq!(left(&b.p(Frame::new(arp.clone()))), (0, false));
    }
    b.gate.set_open(true);
    b.gate.set_probe(Some(Box::new(|| false)));
    assert_eq!(b.scan(), None);
    b.gate.set_probe(None);
    let mut out = Output::default();
    b.engine.scan(0, &mut out);
    assert_eq!(out.frames.len(), MAX_GATED);
    assert_eq!(b.engine.stats().gate_dropped, 100 - MAX_GATED as u64);
}

#[test]
fn ipv6_vlan_and_both_are_compared() {
    for (v6, vlan) in [(true, &[][..]), (false, &[5]), (true, &[5, 6])] {
        let mut b = Bench::new();
        let frame = |text: &[u8]| {
            let mut segment = seg(ACK, 1000, 500, text).vlan(vlan);
            segment.v6 = v6;
            segment.frame()
        };
        assert_eq!(left(&b.p(frame(b"hello"))), (0, false));
        assert_eq!(left(&b.s(seg(ACK, 1000, 500, b"hello").vlan(&[77]).frame())), (0, false));
        assert_eq!(left(&b.s(frame(b"hello"))), (1, false));
    }
}

#[test]
fn fragments_compare_equal_though_numbered_and_cut_differently() {
    let mut b = Bench::new();
    let whole = udp(&[7; 100]);
    for f in fragment(&whole, 48, 1) {
        assert_eq!(left(&b.p(f)), (0, false));
    }
    let mut pieces = fragment(&whole, 24, 2);
    pieces.reverse();
    let last = pieces.pop().unwrap();
    for f in pieces {
        assert_eq!(left(&b.s(f)), (0, false));
    }
    let out = b.s(last);
    assert_eq!(out.frames, fragment(&whole, 48, 1));
}

#[test]
fn a_fragmented_segment_leaves_in_pieces_of_the_size_it_came_in() {
    let mut b = Bench::new();
    let text: Vec<u8> = (0..200).collect();
    let whole = seg(ACK, 1000, 500, &text).frame();
    for f in fragment(&whole, 120, 3) {
        b.p(f);
    }
    let out = b.s(whole);
    assert!(out.frames.len() > 1);
    let mut got: Vec<u8> = vec![];
    for frame in &out.frames {
        let tcp = tcp_of(frame);
        assert_eq!(tcp.seq, 1000 + got.len() as u32);
        assert!(frame.data.len() <= 14 + 20 + 120);
        got.extend(&frame.data[tcp.payload..tcp.end]);
    }
    assert_eq!(got, text);
}

#[test]
fn an_incomplete_datagram_waits_for_the_checkpoint() {
    let mut b = Bench::new();
    let first = fragment(&udp(&[7; 100]), 48, 1).remove(0);
    b.p(first.clone());
    b.p(first.clone()); // overlaps: compared alone
    b.now += 4000 * MS;
    assert!(b.scan().is_some());
    assert_eq!(b.flush().frames.len(), 2);
}

#[test]
fn tcp_syn_ack_needs_the_secondarys_with_whatever_number() {
    let mut b = Bench::new();
    assert_eq!(left(&b.p(seg(SYN | ACK, 5000, 101, b"").frame())), (0, false));
    assert_eq!(only(&b.s(seg(SYN | ACK, 9000, 101, b"").frame())), (5000, vec![], 101, SYN | ACK));
}

#[test]
fn tcp_pure_ack_needs_the_secondarys() {
    let mut b = Bench::new();
    assert_eq!(left(&b.p(seg(ACK, 1000, 501, b"").frame())), (0, false));
    assert_eq!(only(&b.s(seg(ACK, 1000, 501, b"").frame())).2, 501);
}

#[test]
fn tcp_payload_leaves_however_it_was_cut() {
    let mut b = Bench::new();
    b.p(seg(ACK, 1000, 500, b"abcdef").frame());
    assert_eq!(left(&b.s(seg(ACK, 1000, 500, b"abc").frame())), (0, false));
    assert_eq!(left(&b.s(seg(ACK, 1003, 500, b"def").frame())), (1, false));
    b.p(seg(ACK, 1006, 500, b"abc").frame());
    b.p(seg(ACK, 1009, 500, b"def").frame());
    assert_eq!(left(&b.s(seg(ACK, 1006, 500, b"abcdef").frame())), (2, false));
    assert_eq!(left(&b.pass(100)), (0, false));
}

#[test]
fn tcp_payload_that_differs_asks_at_once_and_leaves_at_the_checkpoint() {
    let mut b = Bench::new();
    b.p(seg(ACK, 1000, 500, b"abcdef").frame());
    let out = b.s(seg(ACK, 1000, 500, b"abcdeX").frame());
    assert_eq!(out.checkpoint, Some(Divergence { protocol: Protocol::Tcp, reason: Reason::ContentDiffers }));
    assert_eq!(only(&b.flush()).1, b"abcdef");
}

#[test]
fn tcp_window_and_options_are_not_compared() {
    let mut b = Bench::new();
    b.p(seg(ACK, 1000, 500, b"x").window(7).ts(1, 2).frame());
    assert_eq!(left(&b.s(seg(ACK, 1000, 500, b"x").window(9).frame())), (1, false));
}

// From here on QEMU does otherwise: see docs/differences.md.

#[test]
fn retransmission_of_what_was_released_leaves_at_once() {
    let mut b = Bench::new();
    b.p(seg(ACK, 1000, 500, b"abc").frame());
    b.s(seg(ACK, 1000, 500, b"abc").frame());
    assert_eq!(left(&b.p(seg(ACK, 1000, 500, b"abc").frame())), (1, false));
    assert_eq!(left(&b.p(seg(ACK, 1001, 500, b"b").frame())), (1, false));
    assert_eq!(left(&b.s(seg(ACK, 1000, 500, b"abc").frame())), (0, false));
    b.now += 4000 * MS;
    assert_eq!(b.scan(), None);
}

#[test]
fn acknowledgement_ahead_of_the_secondary_is_lowered_and_told_when_it_catches_up() {
    let mut b = Bench::new();
    b.p(seg(ACK, 1000, 5000, b"abc").frame());
    let out = b.s(seg(ACK, 1000, 1000, b"abc").frame());
    assert_eq!(only(&out), (1000, b"abc".to_vec(), 1000, ACK));
    let out = b.s(seg(ACK, 1003, 5000, b"").frame());
    assert_eq!(only(&out), (1003, vec![], 5000, ACK));
    assert_eq!(left(&b.s(seg(ACK, 1003, 5000, b"").frame())), (0, false));
}

#[test]
fn acknowledgement_behind_the_secondary_leaves_at_once() {
    let mut b = Bench::new();
    b.p(seg(ACK, 1000, 1500, b"").frame());
    b.s(seg(ACK, 1000, 2000, b"").frame());
    assert_eq!(only(&b.p(seg(ACK, 1000, 2000, b"").frame())).2, 2000);
}

#[test]
fn reset_needs_a_reset() {
    let mut b = Bench::new();
    b.p(seg(RST | ACK, 1000, 500, b"").frame());
    assert_eq!(left(&b.s(seg(ACK, 1000, 500, b"").frame())), (0, false));
    assert_eq!(only(&b.s(seg(RST | ACK, 1000, 500, b"").frame())), (1000, vec![], 500, RST | ACK));
    assert_eq!(left(&b.p(seg(RST | ACK, 1000, 500, b"").frame())), (1, false));
    assert_eq!(left(&b.p(seg(RST | ACK, 1000, 700, b"").frame())), (0, false));
}

#[test]
fn fin_needs_a_fin_at_the_same_place() {
    let mut b = Bench::new();
    b.p(seg(FIN | ACK, 1000, 500, b"bye").frame());
    assert_eq!(left(&b.s(seg(ACK, 1000, 500, b"bye").frame())), (0, false));
    assert_eq!(left(&b.s(seg(FIN | ACK, 1003, 500, b"").frame())), (1, false));

    let mut b = Bench::new();
    b.p(seg(FIN | ACK, 1000, 500, b"bye").frame());
    let out = b.s(seg(FIN | ACK, 1000, 500, b"by").frame());
    assert_eq!(out.checkpoint.unwrap().reason, Reason::EndDiffers);

    let mut b = Bench::new();
    b.p(seg(FIN | ACK, 1000, 500, b"bye").frame());
    let out = b.s(seg(ACK, 1000, 500, b"bye bye").frame());
    assert_eq!(out.checkpoint.unwrap().reason, Reason::EndDiffers);
}

#[test]
fn a_lone_packet_of_either_side_asks_after_the_time_out_and_again_until_the_checkpoint() {
    for primary in [true, false] {
        let mut b = Bench::new();
        let frame = udp(b"lonely");
        if primary {
            b.p(frame)
        } else {
            b.s(frame)
        };
        b.now += 2900 * MS;
        assert_eq!(b.scan(), None);
        b.now += 1000 * MS;
        assert_eq!(b.scan().unwrap().reason, Reason::Unanswered);
        assert!(b.scan().is_some());
        assert_eq!(b.flush().frames.len(), usize::from(primary));
        assert_eq!(b.scan(), None);
    }
}

#[test]
fn a_full_queue_stops_its_reader_and_loses_nothing() {
    let mut b = Bench::new();
    b.engine.set_config(CompareConfig { max_queue: 3, ..CompareConfig::default() });
    for i in 0..10u8 {
        assert_eq!(b.engine.primary_has_room(), i < 4, "{i}");
        b.p(udp(&[i]));
    }
    let out = b.flush();
    assert_eq!(out.frames, (0..10u8).map(|i| udp(&[i])).collect::<Vec<_>>());
    assert!(b.engine.primary_has_room());
    let mut b = Bench::new();
    b.engine.set_config(CompareConfig { max_bytes: 200, ..CompareConfig::default() });
    b.s(udp(&[0; 300]));
    assert!(b.engine.primary_has_room() && !b.engine.secondary_has_room());
}

#[test]
fn what_the_network_waits_for_is_known_until_a_flush() {
    let mut bench = Bench::new();
    assert!(!bench.engine.waits());
    bench.p(seg(SYN | ACK, 5000, 101, b"").frame());
    assert!(bench.engine.waits(), "a connection");
    bench.flush();
    assert!(!bench.engine.waits());
    bench.p(seg(ACK, 5001, 101, b"answer").frame());
    assert!(bench.engine.waits(), "data");
    bench.flush();
    bench.p(seg(ACK, 5007, 200, b"").frame());
    assert!(bench.engine.waits(), "an acknowledgement");
    bench.flush();
    assert!(!bench.engine.waits());
    bench.p(seg(ACK, 5001, 101, b"answer").frame());
    assert!(!bench.engine.waits(), "a repetition has left");
    bench.p(udp(b"datagram"));
    assert!(bench.engine.waits(), "a datagram");
    bench.flush();
    assert!(!bench.engine.waits());
}
