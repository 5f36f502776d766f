//! What only one of the guests has lost: the peer hears of it as if there were one guest, and soon.

use super::connections::open;
use super::*;

/// What the only frame names by selective acknowledgement.
fn named(out: &Output) -> Vec<(u32, u32)> {
    only(out);
    let frame = &out.frames[0];
    tcp_of(frame).options(frame).sack.map(|sack| sack.edges(frame).collect()).unwrap_or_default()
}

/// The timestamp that the only frame echoes.
fn echoed(out: &Output) -> u32 {
    only(out);
    let frame = &out.frames[0];
    tcp_of(frame).options(frame).timestamp_values(frame).unwrap().1
}

#[test]
fn the_secondarys_loss_is_told_to_the_peer() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 600, b"").frame());
    b.p(seg(ACK, 1000, 5000, b"").frame());
    for _ in 0..3 {
        assert_eq!(only(&b.s(seg(ACK, 1000, 600, b"").frame())).2, 600);
    }
}

#[test]
fn a_peer_whose_acknowledgement_the_secondary_has_not_heard_is_asked_to_repeat_it() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK, 1000, 500, b"answer").frame());
    assert_eq!(left(&b.s(seg(ACK, 1000, 500, b"answer").frame())), (1, false));
    // The primary has heard that it arrived, and goes on.
    assert_eq!(left(&b.p(seg(ACK, 1006, 500, b"more").frame())), (0, false));
    b.pass(200);
    assert_eq!(only(&b.s(seg(ACK, 1000, 500, b"answer").frame())), (1005, vec![], 500, ACK));
    assert_eq!(left(&b.s(seg(ACK, 1006, 500, b"more").frame())), (1, false));
}

#[test]
fn a_selective_acknowledgement_names_only_what_both_guests_have() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 600, b"").frame());
    b.p(seg(ACK, 1000, 600, b"").frame());
    let misses = seg(ACK, 1000, 600, b"").sack(&[(900, 950), (700, 800)]);
    assert_eq!(named(&b.p(misses.clone().frame())), []);
    // The peer hears at once what it need not send again.
    assert_eq!(named(&b.s(seg(ACK, 1000, 600, b"").sack(&[(650, 800)]).frame())), [(700, 800)]);
    assert_eq!(named(&b.p(misses.clone().frame())), [(700, 800)]);
    assert_eq!(named(&b.s(misses.clone().frame())), [(900, 950), (700, 800)]);
    assert_eq!(named(&b.p(misses.frame())), [(900, 950), (700, 800)]);
    // The primary has had 600 to 800 twice (RFC 2883), the secondary not all of it once.
    let twice = seg(ACK, 1000, 2000, b"").sack(&[(600, 800)]);
    b.p(twice.clone().frame());
    assert_eq!(named(&b.p(twice.frame())), [(650, 800)]);
}

#[test]
fn nobody_is_asked_for_an_acknowledgement_once_the_guest_has_ended_the_connection() {
    let mut b = Bench::new();
    open(&mut b);
    for segment in [seg(ACK, 1000, 500, b"answer"), seg(ACK | FIN, 1006, 500, b"")] {
        b.p(segment.clone().frame());
        assert_eq!(left(&b.s(segment.frame())), (1, false));
    }
    assert_eq!(left(&b.s(seg(ACK, 1000, 500, b"answer").frame())), (0, false));
}

#[test]
fn a_secondary_that_never_acknowledges_asks_for_a_checkpoint() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK, 1000, 5000, b"").frame());
    b.now += 2000 * MS;
    // A little is not enough: one retransmission after another would take far too long.
    b.s(seg(ACK, 1000, 600, b"").frame());
    assert_eq!(b.scan(), None);
    b.now += 2000 * MS;
    assert_eq!(b.scan().unwrap().reason, Reason::AcknowledgementLags);
    assert_eq!(only(&b.flush()).2, 5000);
    assert_eq!(b.scan(), None);
}

#[test]
fn a_secondary_that_keeps_its_pace_needs_no_checkpoint_however_far_behind_it_is() {
    let mut b = Bench::new();
    open(&mut b);
    for step in 2..20u32 {
        b.p(seg(ACK, 1000, 5000 * step, b"").frame());
        b.pass(1500);
        assert_eq!(left(&b.s(seg(ACK, 1000, 5000 * (step - 1), b"").frame())), (1, false));
        assert_eq!(b.scan(), None);
    }
}

#[test]
fn what_the_secondary_misses_is_named_to_the_peer_whichever_guest_is_quicker() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 600, b"").frame());
    b.p(seg(ACK, 1000, 5000, b"").frame());
    assert_eq!(named(&b.s(seg(ACK, 1000, 600, b"").sack(&[(2000, 3000)]).frame())), [(2000, 3000)]);
    // Only as far as the primary has it; the rest when the primary has.
    let further = seg(ACK, 1000, 600, b"").sack(&[(2000, 6000)]).frame();
    assert_eq!(named(&b.s(further)), [(2000, 5000)]);
    let out = b.p(seg(ACK, 1000, 5500, b"").frame());
    assert_eq!((only(&out).2, named(&out)), (600, vec![(2000, 5500)]));
    let out = b.p(seg(ACK, 1000, 9000, b"").frame());
    assert_eq!((only(&out).2, named(&out)), (600, vec![(2000, 6000)]));
    // Nothing new is no news.
    assert_eq!(left(&b.p(seg(ACK, 1000, 9500, b"").frame())), (0, false));
    assert_eq!(left(&b.s(seg(ACK, 1000, 600, b"").sack(&[(2000, 6000)]).frame())), (0, false));
    assert_eq!(only(&b.s(seg(ACK, 1000, 6000, b"").frame())).2, 6000);
    assert_eq!(left(&b.pass(2000)), (0, false), "it was repaired");
}

#[test]
fn the_newest_blocks_are_named_first_and_as_many_as_fit() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK, 1000, 50_000, b"").ts(5, 1).frame());
    b.s(seg(ACK, 1000, 600, b"").ts(5, 1).sack(&[(3000, 3100), (2000, 2100), (1000, 1100)]).frame());
    let out = b.s(seg(ACK, 1000, 600, b"").ts(5, 1).sack(&[(4000, 4100), (3000, 3100), (2000, 2100)]).frame());
    assert_eq!(named(&out), [(4000, 4100), (3000, 3100), (2000, 2100)]);
    assert_eq!(left(&b.p(seg(ACK, 1000, 51_000, b"").ts(5, 1).frame())), (0, false), "all has been told");
}

#[test]
fn an_acknowledgement_echoes_the_timestamp_of_the_guest_that_it_waited_for() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 600, b"").ts(900, 10).frame());
    b.p(seg(ACK, 1000, 600, b"").ts(500, 10).frame());
    // The primary has got all at once. The secondary has lost some, and gets it again.
    b.p(seg(ACK, 1000, 5000, b"").ts(501, 11).frame());
    assert_eq!(echoed(&b.s(seg(ACK, 1000, 600, b"").ts(901, 10).sack(&[(2000, 5000)]).frame())), 10);
    let out = b.s(seg(ACK, 1000, 2000, b"").ts(950, 300).sack(&[(3000, 5000)]).frame());
    assert_eq!((only(&out).2, echoed(&out)), (2000, 300));
    // The primary's own words carry it too, while they wait and afterwards.
    assert_eq!(echoed(&b.p(seg(ACK, 1000, 5000, b"").ts(560, 301).frame())), 300);
    let out = b.s(seg(ACK, 1000, 5000, b"").ts(951, 302).frame());
    assert_eq!((only(&out).2, echoed(&out)), (5000, 302));
    // The other way round it is the primary's.
    b.s(seg(ACK, 1000, 9000, b"").ts(960, 303).frame());
    let out = b.p(seg(ACK, 1000, 7000, b"").ts(570, 310).frame());
    assert_eq!((only(&out).2, echoed(&out)), (7000, 310));
}

#[test]
fn what_came_twice_to_one_guest_only_is_not_told() {
    let mut b = Bench::new();
    open(&mut b);
    b.s(seg(ACK, 1000, 2000, b"").frame());
    b.p(seg(ACK, 1000, 2000, b"").frame());
    let twice = seg(ACK, 1000, 2000, b"").sack(&[(600, 800)]);
    assert_eq!(named(&b.p(twice.clone().frame())), []);
    b.s(twice.clone().frame());
    assert_eq!(named(&b.p(twice.frame())), [(600, 800)]);
    // Behind a hole it is a part of the second block.
    let twice = seg(ACK, 1000, 2000, b"").sack(&[(3000, 3100), (3000, 4000)]);
    b.s(seg(ACK, 1000, 2000, b"").sack(&[(3000, 4000)]).frame());
    assert_eq!(named(&b.p(twice.frame())), [(3000, 4000)]);
}

#[test]
fn a_loss_that_nobody_repairs_asks_for_a_checkpoint_soon() {
    for misses in [seg(ACK, 1000, 600, b"").sack(&[(2000, 5000)]), seg(ACK, 1000, 600, b"")] {
        let mut b = Bench::new();
        open(&mut b);
        b.s(seg(ACK, 1000, 600, b"").frame());
        b.p(seg(ACK, 1000, 5000, b"").frame());
        // It may still be slow only.
        assert_eq!(left(&b.pass(1000)), (0, false));
        b.s(misses.frame());
        assert_eq!(left(&b.pass(400)), (0, false));
        assert_eq!(b.pass(300).checkpoint.unwrap().reason, Reason::AcknowledgementLags);
        // It is asked for again, and the peer may still be quicker.
        assert!(b.pass(700).checkpoint.is_some());
        assert_eq!(only(&b.s(seg(ACK, 1000, 5000, b"").frame())).2, 5000);
        assert_eq!(left(&b.pass(5000)), (0, false));
    }
}

#[test]
fn a_loss_that_is_being_repaired_asks_for_no_checkpoint() {
    let mut b = Bench::new();
    open(&mut b);
    let mut behind = 600;
    for ack in (10_000..200_000).step_by(10_000) {
        b.p(seg(ACK, 1000, ack, b"").frame());
        b.s(seg(ACK, 1000, behind, b"").sack(&[(ack - 3000, ack)]).frame());
        assert_eq!(b.pass(300).checkpoint, None);
        behind = ack;
        b.s(seg(ACK, 1000, behind, b"").frame());
    }
}

#[test]
fn a_secondary_that_does_not_hear_its_handshake_acknowledged_has_the_peer_asked() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK | PSH, 1000, 500, b"220 ready").frame());
    assert_eq!(left(&b.pass(150)), (0, false));
    assert_eq!(only(&b.pass(100)), (999, vec![], 500, ACK));
    // When it repeats its SYN, that is a question too.
    assert_eq!(only(&b.s(seg(SYN | ACK, 77, 500, b"").frame())), (999, vec![], 500, ACK));
    assert_eq!(left(&b.s(seg(ACK | PSH, 1000, 500, b"220 ready").frame())), (1, false));
    assert_eq!(left(&b.pass(5000)), (0, false));
}

#[test]
fn a_secondary_that_only_takes_its_time_has_the_peer_asked_a_few_times() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK | PSH, 1000, 500, b"answer").frame());
    assert_eq!(left(&b.pass(2900)), (4, false));
    assert_eq!(left(&b.s(seg(ACK | PSH, 1000, 500, b"answer").frame())), (1, false));
}

#[test]
fn a_secondary_that_asks_again_and_again_gets_a_checkpoint_soon() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK, 1000, 500, b"answer").frame());
    b.s(seg(ACK, 1000, 500, b"answer").frame());
    b.p(seg(ACK, 1006, 500, b"more").frame());
    b.s(seg(ACK, 1000, 500, b"answer").frame());
    assert_eq!(b.pass(400).checkpoint, None);
    assert_eq!(b.pass(300).checkpoint.unwrap().reason, Reason::Unanswered);
    assert_eq!(only(&b.flush()).1, b"more");
    assert_eq!(left(&b.pass(5000)), (0, false));
}
