//! The corners of TCP.

use super::*;

/// A connection opened by the client, handshake done, both at 1000.
pub(super) fn open(b: &mut Bench) {
    b.p(seg(SYN | ACK, 999, 500, b"").scale(2).window(4000).frame());
    let out = b.s(seg(SYN | ACK, 77, 500, b"").scale(3).window(4000).frame());
    assert_eq!(left(&out), (1, false));
}

#[test]
fn sequence_numbers_may_wrap() {
    let mut b = Bench::new();
    let base = 0xffff_fffd;
    b.p(seg(ACK, base, 0xffff_ffff, b"abcdef").frame());
    b.s(seg(ACK, base, 0xffff_ff00, b"ab").frame());
    let out = b.s(seg(ACK, base.wrapping_add(2), 0xffff_ff00, b"cdef").frame());
    assert_eq!(only(&out).2, 0xffff_ff00);
    b.p(seg(ACK, 3, 5, b"").frame());
    assert_eq!(only(&b.s(seg(ACK, 3, 5, b"").frame())).2, 5);
}

#[test]
fn acknowledgements_that_say_nothing_new_do_not_look_like_loss() {
    let mut b = Bench::new();
    open(&mut b);
    assert_eq!(left(&b.s(seg(ACK, 1000, 1000, b"").frame())), (0, false));
    assert_eq!(only(&b.p(seg(ACK, 1000, 2000, b"").frame())).2, 1000);
    for ack in [3000, 4000, 5000] {
        assert_eq!(left(&b.p(seg(ACK, 1000, ack, b"").frame())), (0, false));
    }
    assert_eq!(only(&b.s(seg(ACK, 1000, 3000, b"").frame())).2, 3000);
    assert_eq!(only(&b.s(seg(ACK, 1000, 6000, b"").frame())).2, 5000);
    assert_eq!(b.engine.stats().merged, 3);
}

#[test]
fn the_primarys_own_duplicate_acknowledgements_leave() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 600, b"").frame());
    b.p(seg(ACK, 1000, 600, b"").frame());
    for _ in 0..3 {
        let out = b.p(seg(ACK, 1000, 600, b"").sack(&[(700, 800)]).frame());
        assert_eq!(only(&out).2, 600);
    }
}

#[test]
fn the_window_is_the_smaller_one_and_its_growth_is_told() {
    let mut b = Bench::new();
    open(&mut b);
    // Primary scale 2: 1000 << 2; secondary scale 3: 100 << 3.
    b.s(seg(ACK, 1000, 500, b"").window(100).frame());
    let out = b.p(seg(ACK, 1000, 500, b"").window(1000).frame());
    // What the SYN|ACK offered (4000) is never taken back.
    assert_eq!(u32::from(tcp_of(&out.frames[0]).window) << 2, 4000);
    b.s(seg(ACK, 1000, 4500, b"").window(0).frame());
    let out = b.p(seg(ACK, 1000, 4500, b"").window(8000).frame());
    assert_eq!((only(&out).2, tcp_of(&out.frames[0]).window), (4500, 0));
    let out = b.s(seg(ACK, 1000, 4500, b"").window(1000).frame());
    assert_eq!((only(&out).2, u32::from(tcp_of(&out.frames[0]).window) << 2), (4500, 8000));
}

#[test]
fn a_lowered_acknowledgement_keeps_the_window_edge() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 600, b"").window(4000).frame());
    let out = b.p(seg(ACK, 1000, 5000, b"").window(2000).frame());
    // The primary's edge: 5000 + 8000.
    assert_eq!(only(&out).2, 600);
    assert_eq!(600 + (u32::from(tcp_of(&out.frames[0]).window) << 2), 13000);
}

#[test]
fn a_pure_acknowledgement_claims_no_data_that_is_still_held() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 600, b"").frame());
    b.p(seg(ACK | PSH, 1000, 500, b"held").frame());
    assert_eq!(only(&b.p(seg(ACK, 1004, 600, b"").frame())), (1000, vec![], 600, ACK));
}

#[test]
fn timestamps_never_run_backwards() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 600, b"").frame());
    b.p(seg(ACK, 1000, 500, b"held").ts(10, 1).frame());
    b.p(seg(ACK, 1004, 600, b"").ts(20, 1).frame());
    let out = b.s(seg(ACK, 1000, 600, b"held").frame());
    let frame = &out.frames[0];
    assert_eq!(tcp_of(frame).options(frame).timestamp_values(frame), Some((20, 1)));
    // One of our own making carries them too.
    b.p(seg(ACK, 1004, 900, b"").ts(30, 2).frame());
    b.s(seg(ACK, 1004, 700, b"").frame());
    let out = b.s(seg(ACK, 1004, 800, b"").frame());
    let frame = &out.frames[0];
    assert_eq!(only(&out).2, 800);
    assert!(tcp_of(frame).options(frame).timestamp_values(frame).unwrap().0 >= 20);
}

#[test]
fn keepalives_and_window_probes_leave_at_once() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK, 1000, 500, b"x").frame());
    b.s(seg(ACK, 1000, 500, b"x").frame());
    assert_eq!(only(&b.p(seg(ACK, 1000, 500, b"").frame())), (1000, vec![], 500, ACK));
    assert_eq!(only(&b.p(seg(ACK, 1000, 500, b"\0").frame())), (1000, vec![0], 500, ACK));
}

#[test]
fn a_segment_that_the_secondary_keeps_back_leaves_as_far_as_it_goes() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK | PSH, 1000, 500, b"abcdef").frame());
    b.s(seg(ACK | PSH, 1000, 500, b"abcd").frame());
    let out = b.pass(20);
    assert_eq!(only(&out), (1000, b"abcd".to_vec(), 500, ACK));
    assert_eq!(only(&b.s(seg(ACK, 1004, 500, b"ef").frame())), (1004, b"ef".to_vec(), 500, ACK | PSH));
    b.p(seg(FIN | ACK, 1006, 500, b"gh").frame());
    b.s(seg(ACK, 1006, 500, b"gh").frame());
    assert_eq!(only(&b.pass(20)), (1006, b"gh".to_vec(), 500, ACK));
    assert_eq!(only(&b.s(seg(FIN | ACK, 1008, 500, b"").frame())), (1008, vec![], 500, FIN | ACK));
    assert_eq!(left(&b.p(seg(FIN | ACK, 1006, 500, b"gh").frame())), (1, false));
}

#[test]
fn a_retransmission_that_overlaps_is_compared_where_it_is_new() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK, 1000, 500, b"abc").frame());
    b.s(seg(ACK, 1000, 500, b"abcdef").frame());
    assert_eq!(only(&b.p(seg(ACK, 1001, 500, b"bcde").frame())).1, b"bcde");
    let out = b.p(seg(ACK, 1003, 500, b"deX").frame());
    assert!(out.checkpoint.is_some());
}

#[test]
fn a_guest_that_contradicts_itself_diverges() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 500, b"abc").frame());
    assert!(b.s(seg(ACK, 1001, 500, b"XX").frame()).checkpoint.is_some());
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK, 1000, 500, b"abc").frame());
    b.p(seg(ACK, 1000, 500, b"abX").frame());
    let out = b.s(seg(ACK, 1000, 500, b"abc").frame());
    // The second version is a repetition of something released now.
    assert_eq!(left(&out), (2, false));
}

#[test]
fn repetitions_of_held_segments_are_merged() {
    let mut b = Bench::new();
    open(&mut b);
    for _ in 0..5 {
        b.p(seg(ACK, 1000, 500, b"abc").frame());
    }
    assert_eq!(b.engine.stats().held_packets, 1);
    assert_eq!(left(&b.s(seg(ACK, 1000, 500, b"abc").frame())), (1, false));
    assert_eq!(b.engine.stats().coalesced, 4);
}

#[test]
fn data_behind_a_gap_waits_for_the_gap() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 500, b"abcdef").frame());
    assert_eq!(left(&b.p(seg(ACK, 1003, 500, b"def").frame())), (0, false));
    let out = b.p(seg(ACK, 1000, 500, b"abc").frame());
    assert_eq!(out.frames.iter().map(|f| tcp_of(f).seq).collect::<Vec<_>>(), [1000, 1003]);
}

#[test]
fn a_connection_that_uses_the_ports_again_starts_anew() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK, 1000, 500, b"old").frame());
    // The secondary is quicker: it has closed and opened again before the primary's data are compared.
    b.s(seg(ACK, 1000, 500, b"old").frame());
    b.s(seg(FIN | ACK, 1003, 501, b"").frame());
    b.s(seg(SYN | ACK, 88, 7001, b"").frame());
    assert_eq!(left(&b.p(seg(FIN | ACK, 1003, 501, b"").frame())), (1, false));
    let out = b.p(seg(SYN | ACK, 400_000, 7001, b"").frame());
    assert_eq!(only(&out), (400_000, vec![], 7001, SYN | ACK));
    b.p(seg(ACK, 400_001, 7001, b"new").frame());
    assert_eq!(left(&b.s(seg(ACK, 400_001, 7001, b"new").frame())), (1, false));
    b.now += 4000 * MS;
    assert_eq!(b.scan(), None);
}

#[test]
fn the_primary_may_be_quicker_with_the_new_connection_too() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(FIN | ACK, 1000, 501, b"").frame());
    assert_eq!(left(&b.p(seg(SYN | ACK, 400_000, 7001, b"").frame())), (0, false));
    assert_eq!(left(&b.p(seg(ACK, 400_001, 7001, b"new").frame())), (0, false));
    assert_eq!(left(&b.s(seg(FIN | ACK, 1000, 501, b"").frame())), (1, false));
    assert_eq!(left(&b.s(seg(FIN | ACK, 1000, 501, b"").frame())), (0, false));
    assert_eq!(left(&b.s(seg(SYN | ACK, 88, 7001, b"").frame())), (1, false));
    assert_eq!(left(&b.s(seg(ACK, 400_001, 7001, b"new").frame())), (1, false));
}

#[test]
fn syn_and_syn_ack_repeated_leave_at_once() {
    let mut b = Bench::new();
    open(&mut b);
    assert_eq!(left(&b.p(seg(SYN | ACK, 999, 500, b"").frame())), (1, false));
    let mut b = Bench::new();
    b.p(seg(SYN, 300, 0, b"").frame());
    b.p(seg(SYN, 300, 0, b"").frame());
    assert_eq!(left(&b.s(seg(SYN, 900, 0, b"").frame())), (1, false));
    assert_eq!(left(&b.p(seg(SYN, 300, 0, b"").frame())), (1, false));
}

#[test]
fn data_in_a_syn_is_compared() {
    let mut b = Bench::new();
    b.p(seg(SYN | ACK, 300, 5, b"fast").frame());
    assert_eq!(left(&b.s(seg(SYN | ACK, 900, 5, b"fast").frame())), (1, false));
    b.p(seg(ACK, 305, 5, b"!").frame());
    assert_eq!(left(&b.s(seg(ACK, 305, 5, b"!").frame())), (1, false));
    let mut b = Bench::new();
    b.p(seg(SYN | ACK, 300, 5, b"fast").frame());
    assert!(b.s(seg(SYN | ACK, 900, 5, b"slow").frame()).checkpoint.is_some());
}

#[test]
fn an_abort_of_the_secondary_alone_is_a_difference() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK, 1000, 500, b"abc").frame());
    assert_eq!(left(&b.s(seg(RST | ACK, 1000, 500, b"").frame())), (0, false));
    assert_eq!(b.pass(20).checkpoint.unwrap().reason, Reason::EndDiffers);
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(RST | ACK, 1000, 500, b"").frame());
    b.now += 4000 * MS;
    assert!(b.scan().is_some());
}

#[test]
fn a_checkpoint_releases_in_order_and_makes_both_sides_equal() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK, 1000, 900, b"abc").frame());
    b.p(udp(b"between"));
    b.p(seg(ACK, 1003, 900, b"def").frame());
    b.p(seg(FIN | ACK, 1006, 900, b"").frame());
    b.p(seg(SYN | ACK, 5000, 40, b"").frame());
    b.p(seg(ACK, 5001, 41, b"next").frame());
    b.s(seg(ACK, 1000, 500, b"XXX").frame());
    let out = b.flush();
    let kinds: Vec<_> = out
        .frames
        .iter()
        .map(|f| match FrameView::parse(f).kind {
            Kind::Ip(ip) if ip.proto == PROTO_TCP => (tcp_of(f).seq, tcp_of(f).ack),
            _ => (0, 0),
        })
        .collect();
    assert_eq!(kinds, [(1000, 900), (0, 0), (1003, 900), (1006, 900), (5000, 40), (5001, 41)]);
    let stats = b.engine.stats();
    assert_eq!((stats.held_packets, stats.held_bytes, stats.ahead_packets, stats.ahead_bytes), (0, 0, 0, 0));
    // The secondary stands where the primary stood: a retransmission leaves, news is compared.
    assert_eq!(left(&b.p(seg(ACK, 5001, 41, b"next").frame())), (1, false));
    assert_eq!(only(&b.p(seg(ACK, 5005, 41, b"").frame())).2, 41);
    b.p(seg(ACK, 5005, 60, b"more").frame());
    assert_eq!(only(&b.s(seg(ACK, 5005, 50, b"more").frame())).2, 50);
}

#[test]
fn a_checkpoint_tells_an_acknowledgement_that_was_kept_back() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 600, b"").frame());
    b.p(seg(ACK, 1000, 700, b"").frame());
    b.p(seg(ACK, 1000, 800, b"").frame());
    assert_eq!(only(&b.flush()).2, 800);
}

#[test]
fn one_connection_more_than_fit_forgets_an_idle_one() {
    let mut b = Bench::new();
    let frame = |i: u32| {
        let mut s = seg(ACK, 1, 1, b"").port(1 + (i % 60000) as u16);
        s.sport = 1 + (i / 60000) as u16;
        s.frame()
    };
    for i in 0..MAX_CONNECTIONS as u32 + 10 {
        b.now += 1;
        b.p(frame(i));
        b.s(frame(i));
    }
    let stats = b.engine.stats();
    assert!(stats.connections <= MAX_CONNECTIONS && stats.connections > MAX_CONNECTIONS / 3, "{}", stats.connections);
    assert_eq!(stats.released, MAX_CONNECTIONS as u64 + 10);
}

#[test]
fn when_every_connection_waits_a_checkpoint_is_asked_for() {
    let mut b = Bench::new();
    let frame = |i: u32| {
        let mut s = seg(ACK, 1, 1, b"x").port(1 + (i % 60000) as u16);
        s.sport = 1 + (i / 60000) as u16;
        s.frame()
    };
    for i in 0..MAX_CONNECTIONS as u32 {
        assert_eq!(left(&b.p(frame(i))), (0, false));
    }
    let out = b.p(frame(MAX_CONNECTIONS as u32));
    assert_eq!(out.checkpoint.unwrap().reason, Reason::TooManyConnections);
    assert!(!b.engine.primary_has_room());
    assert_eq!(b.flush().frames.len(), MAX_CONNECTIONS + 1);
}

#[test]
fn hostile_numbers_do_not_panic() {
    let mut b = Bench::new();
    open(&mut b);
    let mut x = 12345u32;
    let mut rnd = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x
    };
    for _ in 0..20000 {
        let len = (rnd() % 20) as usize;
        let mut s = seg(rnd() as u8 & 0x1f, rnd() & !0xff0 | 0x3e0, rnd() & 0x8000_0fff, &[b'z'; 20][..len]);
        if rnd() % 3 == 0 {
            s = s.ts(rnd(), rnd());
        }
        if rnd() % 2 == 0 {
            b.p(s.frame())
        } else {
            b.s(s.frame())
        };
        if rnd() % 500 == 0 {
            b.flush();
        }
        if rnd() % 10 == 0 {
            b.pass(6);
        }
    }
    b.flush();
    let stats = b.engine.stats();
    assert_eq!((stats.held_packets, stats.held_bytes, stats.ahead_packets, stats.ahead_bytes), (0, 0, 0, 0));
}
