use super::*;
use crate::packet::flags::{ACK, FIN, RST, SYN};
use crate::packet::testing::*;

struct Bench {
    rewriter: Rewriter,
}

impl Bench {
    fn new() -> Self {
        Self { rewriter: Rewriter::new() }
    }
    /// A segment to the guest: (seq, ack) as it arrives there.
    fn tx(&mut self, segment: Seg) -> (u32, u32) {
        let tcp = tcp_of(&self.tx_frame(segment));
        (tcp.seq, tcp.ack)
    }
    fn tx_frame(&mut self, segment: Seg) -> Frame {
        let mut frame = segment.inbound().frame();
        self.rewriter.process(&mut frame, Direction::ToGuest, 0);
        frame
    }
    /// A segment of the guest: (seq, ack) as it leaves.
    fn rx(&mut self, segment: Seg) -> (u32, u32) {
        let tcp = tcp_of(&self.rx_frame(segment));
        (tcp.seq, tcp.ack)
    }
    fn rx_frame(&mut self, segment: Seg) -> Frame {
        let mut frame = segment.frame();
        self.rewriter.process(&mut frame, Direction::FromGuest, 0);
        frame
    }
    /// The client opens a connection: the primary's first number is 5000, ours 9000.
    fn opened(v6: bool) -> Self {
        let mut b = Self::new();
        let s = |s: Seg| Seg { v6, ..s };
        assert_eq!(b.tx(s(seg(SYN, 100, 0, b""))), (100, 0));
        assert_eq!(b.rx(s(seg(SYN | ACK, 9000, 101, b"").ts(70_000, 1))), (9000, 101));
        assert_eq!(b.tx(s(seg(ACK, 101, 5001, b"").ts(2, 30_000))), (101, 9001));
        b
    }
}

fn timestamps(frame: &Frame) -> (u32, u32) {
    tcp_of(frame).options(frame).timestamp_values(frame).unwrap()
}

#[test]
fn a_connection_from_outside_is_translated_both_ways() {
    for v6 in [false, true] {
        let mut b = Bench::opened(v6);
        let s = |s: Seg| Seg { v6, ..s };
        assert_eq!(b.rx(s(seg(ACK, 9001, 101, b"hello"))), (5001, 101));
        assert_eq!(b.tx(s(seg(ACK, 101, 5006, b""))), (101, 9006));
        assert_eq!(b.tx(s(seg(RST, 101, 0, b""))), (101, 0));
        assert_eq!(b.rx(s(seg(RST | ACK, 9006, 101, b""))), (5006, 101));
        assert_eq!(b.rx(s(seg(RST | ACK, 0, 101, b""))), (0, 101));
    }
}

#[test]
fn after_a_checkpoint_numbers_pass_unchanged() {
    let mut b = Bench::opened(false);
    b.rewriter.checkpoint(&RewriterTable::default());
    assert_eq!(b.rx(seg(ACK, 5006, 101, b"x")), (5006, 101));
    assert_eq!(b.tx(seg(ACK, 101, 5007, b"")), (101, 5007));
    assert_eq!(b.tx(seg(FIN | ACK, 101, 5007, b"")), (101, 5007));
    assert_eq!(b.rx(seg(FIN | ACK, 5007, 102, b"")), (5007, 102));
    assert_eq!(b.tx(seg(ACK, 102, 5008, b"")), (102, 5008));
}

#[test]
fn a_connection_of_the_guest_is_translated_from_the_answer_on() {
    let mut b = Bench::new();
    assert_eq!(b.rx(seg(SYN, 7000, 0, b"").ts(500, 0)), (7000, 0));
    let frame = b.tx_frame(seg(SYN | ACK, 300, 6001, b"").ts(9, 420));
    assert_eq!((tcp_of(&frame).ack, timestamps(&frame)), (7001, (9, 500)));
    assert_eq!(b.rx(seg(ACK, 7001, 301, b"")), (6001, 301));
}

#[test]
fn a_refused_connection_of_the_guest_is_refused() {
    let mut b = Bench::new();
    b.rx(seg(SYN, 7000, 0, b""));
    assert_eq!(b.tx(seg(RST | ACK, 0, 6001, b"")), (0, 7001));
}

#[test]
fn simultaneous_open() {
    let mut b = Bench::new();
    b.rx(seg(SYN, 7000, 0, b""));
    assert_eq!(b.tx(seg(SYN, 300, 0, b"")), (300, 0));
    assert_eq!(b.rx(seg(SYN | ACK, 7000, 301, b"")), (7000, 301));
    assert_eq!(b.tx(seg(SYN | ACK, 300, 6001, b"")), (300, 7001));
    assert_eq!(b.rx(seg(ACK, 7001, 301, b"")), (6001, 301));
}

#[test]
fn selective_acknowledgements_and_timestamps_are_translated() {
    let mut b = Bench::opened(false);
    let frame = b.tx_frame(seg(ACK, 101, 5001, b"").sack(&[(6000, 7000), (8000, 9000)]).ts(3, 30_010));
    let options = tcp_of(&frame).options(&frame);
    let sack = options.sack.unwrap();
    let edges: Vec<u32> = (0..4).map(|i| be32(&frame.data, sack.at + 4 * i).unwrap()).collect();
    assert_eq!(edges, [10_000, 11_000, 12_000, 13_000]);
    assert_eq!(timestamps(&frame), (3, 70_010));
    assert_eq!(timestamps(&b.rx_frame(seg(ACK, 9001, 101, b"").ts(70_020, 3))), (30_020, 3));
}

#[test]
fn numbers_wrap() {
    let mut b = Bench::new();
    b.rx(seg(SYN | ACK, 0xffff_ffff, 101, b""));
    assert_eq!(b.tx(seg(ACK, 101, 0x8000_0000, b"")), (101, 0));
    assert_eq!(b.rx(seg(ACK, 0, 101, b"")), (0x8000_0000, 101));
}

#[test]
fn a_stale_acknowledgement_does_not_complete_a_handshake() {
    let mut b = Bench::new();
    b.rx(seg(SYN | ACK, 9000, 101, b""));
    assert_eq!(b.tx(seg(ACK, 77_000_000, 123, b"")), (77_000_000, 123));
    assert_eq!(b.tx(seg(ACK, 101, 5001, b"")), (101, 9001));
}

#[test]
fn ports_used_again_start_anew() {
    let mut b = Bench::opened(false);
    b.tx(seg(SYN, 70_000, 0, b""));
    // The old connection answers a SYN inside its window with its own numbers.
    assert_eq!(b.rx(seg(ACK, 9001, 101, b"")), (5001, 101));
    b.rx(seg(SYN | ACK, 400, 70_001, b""));
    assert_eq!(b.tx(seg(ACK, 70_001, 801, b"")), (70_001, 401));
}

#[test]
fn a_repeated_syn_ack_changes_nothing() {
    let mut b = Bench::opened(false);
    assert_eq!(b.rx(seg(SYN | ACK, 9000, 101, b"")), (9000, 101));
    assert_eq!(b.rx(seg(ACK, 9001, 101, b"")), (5001, 101));
}

#[test]
fn after_a_failover_known_connections_live_and_new_ones_are_left_alone() {
    let mut b = Bench::opened(false);
    b.rewriter.failover();
    assert_eq!(b.rx(seg(ACK, 9001, 101, b"x")), (5001, 101));
    assert_eq!(b.rx(seg(SYN | ACK, 9000, 101, b"")), (5000, 101));
    let new = |s: Seg| s.port(7);
    b.tx(new(seg(SYN, 1, 0, b"")));
    assert_eq!(b.rx(new(seg(SYN | ACK, 40, 2, b""))), (40, 2));
    assert_eq!(b.tx(new(seg(ACK, 2, 41, b""))), (2, 41));
    assert_eq!(b.rewriter.len(), 1);
    // The same ports again: nobody else's numbers matter.
    assert_eq!(b.rx(seg(SYN | ACK, 77, 900, b"")), (77, 900));
    assert_eq!(b.tx(seg(ACK, 900, 78, b"")), (900, 78));
}

#[test]
fn a_handshake_cut_by_the_failover_is_completed() {
    let mut b = Bench::new();
    b.tx(seg(SYN, 100, 0, b""));
    b.rx(seg(SYN | ACK, 9000, 101, b""));
    b.rewriter.failover();
    assert_eq!(b.rx(seg(SYN | ACK, 9000, 101, b"")), (9000, 101));
    assert_eq!(b.tx(seg(ACK, 101, 5001, b"")), (101, 9001));
    assert_eq!(b.rx(seg(ACK, 9001, 101, b"")), (5001, 101));
}

#[test]
fn timestamps_do_not_run_backwards_over_a_failover() {
    let mut b = Bench::opened(false);
    // The peer has seen 30100 from the primary; our clock is behind it.
    b.tx_frame(seg(ACK, 101, 5001, b"").ts(5, 30_100));
    b.rewriter.failover();
    let (value, _) = timestamps(&b.rx_frame(seg(ACK, 9001, 101, b"x").ts(70_050, 5)));
    assert!(value > 30_100, "{value}");
    // Echoes of the primary's timestamps and of ours are both understood.
    assert_eq!(timestamps(&b.tx_frame(seg(ACK, 101, 5001, b"").ts(6, 30_100))).1, 70_100);
    assert_eq!(timestamps(&b.tx_frame(seg(ACK, 101, 5002, b"").ts(6, value))).1, 70_050);
}

#[test]
fn a_connection_older_than_the_checkpoint_keeps_its_timestamps_in_order_too() {
    let mut b = Bench::new();
    b.tx_frame(seg(ACK, 101, 5001, b"").ts(5, 30_100));
    b.rewriter.failover();
    assert!(timestamps(&b.rx_frame(seg(ACK, 5001, 101, b"x").ts(30_050, 5))).0 > 30_100);
}

#[test]
fn a_connection_lives_on_through_two_role_swaps() {
    // The first survivor translates; its table goes to its new secondary.
    let mut first = Bench::opened(false);
    first.tx_frame(seg(ACK, 101, 5001, b"").ts(5, 30_100));
    first.rewriter.failover();
    let json = serde_json::to_string(&first.rewriter.table(0)).unwrap();
    let mut second = Bench::new();
    second.rewriter.checkpoint(&serde_json::from_str(&json).unwrap());
    // The second guest is a copy of the first: the same numbers inside, the same outside.
    for segment in [seg(ACK, 9001, 101, b"x").ts(70_200, 5), seg(FIN | ACK, 9002, 101, b"").ts(70_300, 5)] {
        assert_eq!(first.rx_frame(segment.clone()), second.rx_frame(segment));
    }
    let segment = seg(ACK, 101, 5002, b"").ts(6, 30_100);
    assert_eq!(first.tx_frame(segment.clone()), second.tx_frame(segment));
    second.rewriter.failover();
    assert_eq!(second.rx(seg(ACK, 9002, 101, b"y")), (5002, 101));
    assert_eq!(second.rewriter.table(0).connections.len(), 1);
}

#[test]
fn a_connection_that_closed_long_ago_does_not_travel_with_checkpoints() {
    let mut b = Bench::opened(false);
    b.rewriter.failover();
    b.rx(seg(FIN | ACK, 9001, 101, b""));
    assert_eq!(b.rewriter.table(2 * LINGER_NS).connections.len(), 1, "its peer may go on");
    b.tx(seg(FIN | ACK, 101, 5002, b""));
    assert_eq!(b.rewriter.table(LINGER_NS - 1).connections.len(), 1);
    assert_eq!(b.rewriter.table(LINGER_NS).connections.len(), 0);
    assert!(b.rewriter.is_empty());
}

#[test]
fn a_full_table_forgets_connections_that_need_no_translation_first() {
    let mut b = Bench::opened(false);
    for i in 0..MAX_CONNECTIONS as u32 + 100 {
        let mut s = seg(ACK, 1, 1, b"").port(5000 + (i % 60000) as u16 % 60000);
        s.sport = 1 + (i / 60000) as u16;
        b.tx(s);
    }
    assert!(b.rewriter.len() <= MAX_CONNECTIONS);
    assert_eq!(b.rewriter.untracked(), 0);
    assert_eq!(b.rx(seg(ACK, 9001, 101, b"x")), (5001, 101));
}

#[test]
fn what_is_not_tcp_stays() {
    let mut b = Bench::new();
    let mut frame = udp(b"abc");
    b.rewriter.process(&mut frame, Direction::FromGuest, 0);
    assert_eq!(frame, udp(b"abc"));
    assert!(b.rewriter.is_empty());
}

fn said_again(b: &mut Bench) -> Vec<(u32, u32, usize)> {
    let frames = b.rewriter.failover();
    frames.iter().map(tcp_of).map(|tcp| (tcp.seq, tcp.ack, tcp.end - tcp.payload)).collect()
}

#[test]
fn what_the_peer_has_not_acknowledged_is_said_again_at_a_failover_in_the_networks_numbers() {
    let mut b = Bench::opened(false);
    b.rx(seg(ACK, 9001, 101, b"one"));
    b.rx(seg(ACK, 9004, 101, b"two"));
    b.rx(seg(ACK, 9004, 101, b"two"));
    b.rx(seg(ACK | FIN, 9007, 101, b"three"));
    b.tx(seg(ACK, 101, 5004, b""));
    assert_eq!(said_again(&mut b), [(5004, 101, 3), (5007, 101, 5)]);
    assert_eq!(b.rewriter.kept, 0);
    b.rx(seg(ACK, 9004, 101, b"two"));
    assert_eq!(b.rewriter.kept, 0, "nothing is kept by a guest that is alone");
}

#[test]
fn an_acknowledgement_that_may_have_been_lost_is_given_again() {
    let mut b = Bench::opened(false);
    b.rx(seg(ACK, 9001, 150, b""));
    b.rx(seg(ACK, 9001, 200, b""));
    assert_eq!(said_again(&mut b), [(5001, 200, 0)]);
}

#[test]
fn a_handshake_that_the_primary_never_answered_is_answered_at_the_failover() {
    let mut b = Bench::new();
    b.tx(seg(SYN, 100, 0, b""));
    b.rx(seg(SYN | ACK, 9000, 101, b""));
    assert_eq!(said_again(&mut b), [(9000, 101, 0)]);
    assert_eq!(b.tx(seg(ACK, 101, 9001, b"GET")), (101, 9001));
    assert_eq!(b.rx(seg(ACK, 9001, 104, b"answer")), (9001, 104));
}

#[test]
fn words_of_an_epoch_that_a_checkpoint_ended_are_not_said_again() {
    let mut b = Bench::opened(false);
    b.rx(seg(ACK, 9001, 101, b"not the primary's"));
    b.rewriter.checkpoint(&RewriterTable::default());
    assert_eq!((said_again(&mut b), b.rewriter.kept), (vec![], 0));
}

#[test]
fn what_is_kept_is_bounded_and_begins_where_the_peer_stands() {
    let mut b = Bench::opened(false);
    for n in 0..100 {
        b.rx(seg(ACK, 9001 + n * 1000, 101, &[0; 1000]));
    }
    assert!(b.rewriter.kept <= 64 << 10);
    let again = said_again(&mut b);
    assert_eq!(again[0], (5001, 101, 1000));
    assert!(again.len() > 50 && again.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1000));
}

#[test]
fn said_again_timestamps_do_not_run_backwards() {
    let mut b = Bench::opened(false);
    b.tx_frame(seg(ACK, 101, 5001, b"GET").ts(3, 30_500));
    b.rx(seg(ACK, 9001, 104, b"answer").ts(70_400, 3));
    let frames = b.rewriter.failover();
    assert!(timestamps(&frames[0]).0 > 30_500);
}
