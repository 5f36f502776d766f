//! What becomes of connections that have ended, and what a checkpoint looks at.

use super::*;
use crate::compare::flows::{LINGER_NS, MAX_ENDED};

const LINGER_MS: i64 = LINGER_NS / MS;

/// A segment of one of many connections.
fn of(connection: u32, mut segment: Seg) -> Frame {
    segment.dport = 1 + (connection % 60000) as u16;
    segment.sport = 1 + (connection / 60000) as u16;
    segment.frame()
}

fn both(b: &mut Bench, connection: u32, segment: Seg) {
    assert!(!left(&b.p(of(connection, segment.clone()))).1);
    assert!(!left(&b.s(of(connection, segment))).1);
}

/// A connection that is opened, answers, and is closed from both ends.
fn serve(b: &mut Bench, connection: u32) {
    both(b, connection, seg(SYN | ACK, 999, 500, b"").scale(2));
    both(b, connection, seg(ACK | PSH, 1000, 600, b"answer"));
    both(b, connection, seg(FIN | ACK, 1006, 601, b""));
}

#[test]
fn a_connection_that_has_ended_is_forgotten_after_a_silence() {
    let mut b = Bench::new();
    serve(&mut b, 7);
    b.pass(LINGER_MS - 1);
    assert_eq!((b.scan(), b.engine.stats().connections), (None, 1));
    // A repetition counts anew, and needs no counterpart.
    assert_eq!(left(&b.p(of(7, seg(FIN | ACK, 1006, 601, b"")))), (1, false));
    b.pass(LINGER_MS - 1);
    assert_eq!((b.scan(), b.engine.stats().connections), (None, 1));
    b.pass(1);
    assert_eq!((b.scan(), b.engine.stats().connections), (None, 0));
    assert_eq!(b.engine.stats().forgotten, 0, "it was no live connection");
}

#[test]
fn the_last_acknowledgement_may_be_repeated_while_the_connection_lingers() {
    let mut b = Bench::new();
    serve(&mut b, 7);
    // The peer ends after the guest, and has not heard the acknowledgement of its FIN.
    both(&mut b, 7, seg(ACK, 1007, 602, b""));
    b.pass(LINGER_MS - 1);
    b.scan();
    assert_eq!(only(&b.p(of(7, seg(ACK, 1007, 602, b"")))), (1007, vec![], 602, ACK));
}

#[test]
fn a_fin_repeated_after_the_connection_was_forgotten_waits_for_the_secondarys() {
    let mut b = Bench::new();
    serve(&mut b, 7);
    b.pass(LINGER_MS);
    b.scan();
    assert_eq!(left(&b.p(of(7, seg(FIN | ACK, 1006, 601, b"")))), (0, false));
    assert_eq!(left(&b.s(of(7, seg(FIN | ACK, 1006, 601, b"")))), (1, false));
    assert_eq!(b.scan(), None);
}

#[test]
fn half_a_connection_that_is_in_use_is_not_forgotten() {
    let mut b = Bench::new();
    serve(&mut b, 7);
    // The guest has ended its direction; the peer sends on.
    for step in 1..20u32 {
        b.pass(LINGER_MS - 1);
        assert_eq!((b.scan(), b.engine.stats().connections), (None, 1), "{step}");
        let (lower, higher) = (601 + 100 * step, 601 + 100 * step + 50);
        b.p(of(7, seg(ACK, 1007, higher, b"")));
        assert_eq!(only(&b.s(of(7, seg(ACK, 1007, lower, b"")))).2, lower);
        assert_eq!(only(&b.s(of(7, seg(ACK, 1007, higher, b"")))).2, higher);
    }
}

#[test]
fn a_connection_that_begins_again_with_the_same_ports_is_not_forgotten() {
    let mut b = Bench::new();
    serve(&mut b, 7);
    b.pass(100);
    both(&mut b, 7, seg(SYN | ACK, 400_000, 7001, b""));
    both(&mut b, 7, seg(ACK, 400_001, 7001, b"new"));
    b.pass(10 * LINGER_MS);
    assert_eq!((b.scan(), b.engine.stats().connections), (None, 1));
    assert_eq!(left(&b.p(of(7, seg(ACK, 400_001, 7001, b"new")))), (1, false), "it is known to have been said");
    both(&mut b, 7, seg(FIN | ACK, 400_004, 7002, b""));
    b.pass(LINGER_MS);
    assert_eq!((b.scan(), b.engine.stats().connections), (None, 0));
}

#[test]
fn a_connection_whose_end_the_secondary_has_not_confirmed_stays() {
    let mut b = Bench::new();
    both(&mut b, 7, seg(SYN | ACK, 999, 500, b""));
    b.p(of(7, seg(FIN | ACK, 1000, 500, b"")));
    b.pass(LINGER_MS);
    assert_eq!(b.scan().unwrap().reason, Reason::Unanswered);
    assert_eq!(only(&b.flush()).3, FIN | ACK);
    // The checkpoint has released the FIN: from here on the connection lingers.
    b.pass(LINGER_MS - 1);
    b.p(of(7, seg(FIN | ACK, 1000, 500, b"")));
    b.pass(LINGER_MS);
    assert_eq!((b.scan(), b.engine.stats().connections), (None, 0));
}

#[test]
fn connections_that_ended_do_not_push_out_one_that_is_open() {
    let mut b = Bench::new();
    both(&mut b, 0, seg(SYN | ACK, 999, 500, b""));
    both(&mut b, 0, seg(ACK, 1000, 501, b"open"));
    for connection in 1..=2 * MAX_CONNECTIONS as u32 {
        b.now += 1000;
        serve(&mut b, connection);
    }
    let stats = b.engine.stats();
    assert_eq!((stats.connections, stats.forgotten), (1 + MAX_ENDED, 0));
    assert_eq!(left(&b.p(of(0, seg(ACK, 1000, 501, b"open")))), (1, false), "what was said may be repeated");
}

#[test]
fn a_checkpoint_looks_only_at_connections_with_new_packets() {
    let mut b = Bench::new();
    for connection in 0..500 {
        both(&mut b, connection, seg(SYN | ACK, 999, 500, b""));
    }
    assert_eq!(b.engine.flows.touched().count(), 500);
    b.flush();
    assert_eq!(b.engine.flows.touched().count(), 0);
    b.p(of(3, seg(ACK, 1000, 900, b"held")));
    b.s(of(4, seg(ACK, 1000, 900, b"ahead")));
    assert_eq!(b.engine.flows.touched().count(), 2);
    assert_eq!(only(&b.flush()), (1000, b"held".to_vec(), 900, ACK));
    let stats = b.engine.stats();
    assert_eq!((stats.connections, stats.held_packets, stats.ahead_packets), (500, 0, 0));
    // The others are as equal as they were: what one side acknowledges waits for the other.
    assert_eq!(left(&b.p(of(9, seg(ACK, 1000, 900, b"")))), (0, false));
    assert_eq!(only(&b.s(of(9, seg(ACK, 1000, 900, b"")))).2, 900);
}

#[test]
fn datagrams_that_were_answered_leave_nothing_behind() {
    let mut b = Bench::new();
    b.p(udp(b"one"));
    assert_eq!(b.engine.stats().connections, 1);
    assert_eq!(left(&b.s(udp(b"one"))), (1, false));
    assert_eq!(b.engine.stats().connections, 0);
    b.pass(20);
    assert_eq!(b.flush().frames.len(), 0);
}
