//! What a flush leaves of the old epoch: nothing that the secondary's old guest has said may count in the new one.

use super::connections::open;
use super::*;

#[test]
fn data_of_the_secondarys_old_guest_is_not_compared_with_the_new_epochs() {
    for old in [b"other", b"words"] {
        let mut b = Bench::new();
        open(&mut b);
        assert_eq!(left(&b.s(seg(ACK, 1000, 500, old).frame())), (0, false));
        assert_eq!(left(&b.flush()), (0, false));
        // Neither does it differ, nor does it confirm what the primary says now.
        assert_eq!(left(&b.p(seg(ACK, 1000, 500, b"words").frame())), (0, false), "{old:?}");
        assert_eq!(only(&b.s(seg(ACK, 1000, 500, b"words").frame())).1, b"words");
    }
}

#[test]
fn an_end_that_the_secondarys_old_guest_has_said_counts_no_more() {
    let mut b = Bench::new();
    open(&mut b);
    assert_eq!(left(&b.s(seg(FIN | ACK, 1000, 500, b"").frame())), (0, false));
    b.flush();
    assert_eq!(left(&b.p(seg(ACK, 1000, 500, b"more").frame())), (0, false), "the connection goes on");
    assert_eq!(only(&b.s(seg(ACK, 1000, 500, b"more").frame())).1, b"more");
    b.s(seg(FIN | ACK, 1004, 500, b"").frame());
    b.flush();
    assert_eq!(left(&b.p(seg(FIN | ACK, 1004, 500, b"").frame())), (0, false), "the new guest has not ended it");
    assert_eq!(only(&b.s(seg(FIN | ACK, 1004, 500, b"").frame())).3, FIN | ACK);
}

#[test]
fn an_abort_of_the_secondarys_old_guest_counts_no_more() {
    let mut b = Bench::new();
    open(&mut b);
    assert_eq!(left(&b.s(seg(RST | ACK, 1000, 500, b"").frame())), (0, false));
    b.flush();
    b.now += 10_000 * MS;
    assert_eq!(b.scan(), None, "nobody waits for its counterpart");
    assert_eq!(left(&b.p(seg(RST | ACK, 1000, 500, b"").frame())), (0, false));
    assert_eq!(only(&b.s(seg(RST | ACK, 1000, 500, b"").frame())).3, RST | ACK);
}

#[test]
fn a_connection_that_only_the_secondarys_old_guest_had_begun_is_forgotten() {
    let mut b = Bench::new();
    assert_eq!(left(&b.s(seg(SYN | ACK, 77, 500, b"").frame())), (0, false));
    assert_eq!(left(&b.s(seg(ACK, 1000, 500, b"old").frame())), (0, false));
    b.flush();
    assert_eq!(left(&b.p(seg(SYN | ACK, 999, 500, b"").frame())), (0, false), "the new guest has not answered");
    assert_eq!(left(&b.s(seg(SYN | ACK, 99, 500, b"").frame())), (1, false));
    assert_eq!(left(&b.p(seg(ACK, 1000, 500, b"new").frame())), (0, false));
    assert_eq!(only(&b.s(seg(ACK, 1000, 500, b"new").frame())).1, b"new");
}

#[test]
fn a_connection_that_differed_is_compared_again() {
    let mut b = Bench::new();
    open(&mut b);
    b.p(seg(ACK, 1000, 500, b"one").frame());
    assert_eq!(left(&b.s(seg(ACK, 1000, 500, b"two").frame())), (0, true));
    assert_eq!(only(&b.flush()).1, b"one");
    assert_eq!(left(&b.p(seg(ACK, 1003, 500, b"same").frame())), (0, false));
    assert_eq!(only(&b.s(seg(ACK, 1003, 500, b"same").frame())).1, b"same");
    b.p(seg(ACK, 1007, 500, b"three").frame());
    assert_eq!(left(&b.s(seg(ACK, 1007, 500, b"seven").frame())), (0, true), "and asks for the next checkpoint");
}
