//! A primary and a secondary with the filters of the documented procedure.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::checkpoint::NetTables;
use crate::colo::Intake;
use crate::filter::Action;
use crate::packet::flags::{ACK, SYN};
use crate::packet::testing::{seg, tcp_of, udp};
use crate::packet::{Frame, TcpView};
use crate::wire;

pub(super) struct Pair {
    pub p: Machine,
    pub s: Machine,
    pub checkpoints: Arc<AtomicUsize>,
}

impl Pair {
    pub async fn new() -> Self {
        let p = Machine::new().await;
        let s = Machine::new().await;
        p.chardev("socket,id=mirror0,host=127.0.0.1,port=0,server=on,wait=off").await;
        p.chardev("socket,id=compare1,host=127.0.0.1,port=0,server=on,wait=off").await;
        p.chardev("socket,id=compare0,host=127.0.0.1,port=0,server=on,wait=off").await;
        p.chardev(&format!("socket,id=compare0-0,host=127.0.0.1,port={}", p.port_of("compare0"))).await;
        p.chardev("socket,id=compare_out,host=127.0.0.1,port=0,server=on,wait=off").await;
        p.chardev(&format!("socket,id=compare_out0,host=127.0.0.1,port={}", p.port_of("compare_out"))).await;
        s.chardev(&format!("socket,id=red0,host=127.0.0.1,port={},reconnect-ms=1000", p.port_of("mirror0"))).await;
        s.chardev(&format!("socket,id=red1,host=127.0.0.1,port={},reconnect-ms=1000", p.port_of("compare1"))).await;
        for object in [
            json!({"qom-type": "filter-mirror", "id": "m0", "netdev": "hn0", "queue": "tx", "outdev": "mirror0"}),
            json!({"qom-type": "filter-redirector", "id": "redire0", "netdev": "hn0", "queue": "rx", "indev": "compare_out"}),
            json!({"qom-type": "filter-redirector", "id": "redire1", "netdev": "hn0", "queue": "rx", "outdev": "compare0"}),
            json!({"qom-type": "colo-compare", "id": "comp0", "primary_in": "compare0-0", "secondary_in": "compare1",
                "outdev": "compare_out0", "iothread": "iothread1"}),
        ] {
            p.object(object).unwrap();
        }
        for object in [
            json!({"qom-type": "filter-redirector", "id": "f1", "netdev": "hn0", "queue": "tx", "indev": "red0"}),
            json!({"qom-type": "filter-redirector", "id": "f2", "netdev": "hn0", "queue": "rx", "outdev": "red1"}),
            json!({"qom-type": "filter-rewriter", "id": "rew0", "netdev": "hn0", "queue": "all"}),
        ] {
            s.object(object).unwrap();
        }
        s.net.set_colo_secondary(true);
        let checkpoints = Arc::new(AtomicUsize::new(0));
        let count = checkpoints.clone();
        p.net.set_checkpoint_notifier(Some(Arc::new(move |divergence| {
            eprintln!("a checkpoint is asked for: {divergence:?}");
            count.fetch_add(1, Ordering::SeqCst);
        })));
        for id in ["mirror0", "compare1", "compare0", "compare_out"] {
            until(|| p.chardevs.query().iter().any(|c| c.label == id && c.filename.contains("<->"))).await;
        }
        for id in ["red0", "red1"] {
            until(|| s.chardevs.query().iter().any(|c| c.label == id && c.filename.contains("<->"))).await;
        }
        Self { p, s, checkpoints }
    }

    /// A packet of the client: both guests get it, by the mirror.
    pub async fn client(&self, frame: &Frame) -> TcpView {
        let before = (self.p.card.got.lock().len(), self.s.card.got.lock().len());
        self.p.wire.send(&frame.data).unwrap();
        self.p.wait_for_frames(before.0 + 1).await;
        self.s.wait_for_frames(before.1 + 1).await;
        let last = self.s.card.got.lock().last().unwrap().clone();
        tcp_of(&Frame::new(last))
    }

    /// A client, whose number is 100, opens a connection; the primary's guest begins at 5000, the secondary's at 9000.
    pub async fn accept(&self) {
        self.client(&seg(SYN, 100, 0, b"").inbound().frame()).await;
        self.p.peer.send(seg(SYN | ACK, 5000, 101, b"").frame().data);
        self.s.peer.send(seg(SYN | ACK, 9000, 101, b"").frame().data);
        assert_eq!(tcp_of(&Frame::new(self.p.next_on_wire().await)).seq, 5000);
    }

    async fn checkpoint(&self) {
        self.p.net.checkpoint_begins();
        self.s.net.checkpoint_begins();
        self.s.net.set_running(false);
        assert!(self.s.net.drain_outgoing(Duration::from_secs(5)).await);
        self.p.net.set_running(false);
        self.p.net.compare_end_epoch().await;
        assert!(self.p.net.drain_mirrors(Duration::from_secs(5)).await);
        let tables = serde_json::to_string(&self.p.net.export_tables()).unwrap();
        self.s.net.discard_incoming().await;
        self.p.net.compare_checkpoint_flush(false).await;
        self.p.net.mirror_again();
        self.p.net.set_running(true);
        self.s.net.filters_checkpoint(&serde_json::from_str(&tables).unwrap());
        self.s.net.set_running(true);
    }
}

#[test]
fn a_connection_is_answered_by_both_and_seen_once() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        pair.client(&seg(SYN, 100, 0, b"").inbound().frame()).await;
        p.peer.send(seg(SYN | ACK, 5000, 101, b"").frame().data);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(p.wire_is_quiet(), "nothing leaves before the secondary has answered");
        s.peer.send(seg(SYN | ACK, 9000, 101, b"").frame().data);
        assert_eq!(tcp_of(&Frame::new(p.next_on_wire().await)).seq, 5000);
        let arrived = pair.client(&seg(ACK, 101, 5001, b"GET").inbound().frame()).await;
        assert_eq!(arrived.ack, 9001, "the secondary hears its own numbers");
        s.peer.send(seg(ACK, 9001, 104, b"answer").frame().data);
        p.peer.send(seg(ACK, 5001, 104, b"answer").frame().data);
        let answer = Frame::new(p.next_on_wire().await);
        assert_eq!((tcp_of(&answer).seq, tcp_of(&answer).ack), (5001, 104));
        assert!(s.wire_is_quiet(), "the secondary says nothing by itself");
        assert_eq!(pair.checkpoints.load(Ordering::SeqCst), 0);
        let stats = p.net.compare_stats().await;
        assert_eq!(stats["comp0"].released, 2);
    });
}

#[test]
fn a_primary_that_has_lost_its_peer_says_nothing_until_the_comparison_is_taken_away() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        let there = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let probe = there.clone();
        p.net.identity_gate().set_probe(Some(Box::new(move || probe.load(Ordering::SeqCst))));
        for machine in [p, s] {
            machine.peer.send(udp(b"one").data);
        }
        p.next_on_wire().await;
        // Both have said it; but the process was frozen meanwhile, and replaced.
        there.store(false, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(1));
        for machine in [p, s] {
            machine.peer.send(udp(b"two").data);
        }
        until_released(p, 2).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(p.wire_is_quiet());
        p.peer.send(udp(b"three").data);
        p.net.remove_object("comp0").await.unwrap();
        let three = p.next_on_wire().await;
        assert!(three.windows(5).any(|w| w == b"three"), "what was held leaves with the comparison");
    });
}

#[test]
fn what_is_released_reaches_the_network_without_the_main_context() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        // The first ones may go as bytes, until both ends know of each other.
        for n in 0..3u8 {
            for machine in [p, s] {
                machine.peer.send(udp(&[n]).data);
            }
            assert_eq!(p.next_on_wire().await, udp(&[n]).data);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut buf = [0; 2000];
        for n in 0..100u8 {
            for machine in [p, s] {
                machine.peer.send(udp(&[n, n]).data);
            }
            // This thread is the main context, and stands still here.
            let length = p.wire.recv(&mut buf).expect("it came");
            assert_eq!(buf[..length], udp(&[n, n]).data);
        }
        // A redirector that is switched off takes what comes, and lets none of it on.
        p.net.filter("redire0").unwrap().set("status", &json!("off")).unwrap();
        for machine in [p, s] {
            machine.peer.send(udp(b"off").data);
        }
        until_released(p, 104).await;
        assert!(p.wire_is_quiet());
        p.net.filter("redire0").unwrap().set("status", &json!("on")).unwrap();
        for machine in [p, s] {
            machine.peer.send(udp(b"on").data);
        }
        assert_eq!(p.next_on_wire().await, udp(b"on").data);
        // One that is gone leaves frames where nobody reads them.
        p.net.remove_object("redire0").await.unwrap();
        for machine in [p, s] {
            machine.peer.send(udp(b"gone").data);
        }
        until_released(p, 106).await;
        assert!(p.wire_is_quiet());
    });
}

#[test]
fn what_the_secondary_says_while_its_redirector_is_not_connected_is_counted_and_needs_no_checkpoint() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        pair.client(&seg(SYN, 100, 0, b"").inbound().frame()).await;
        p.peer.send(seg(SYN | ACK, 5000, 101, b"").frame().data);
        s.peer.send(seg(SYN | ACK, 9000, 101, b"").frame().data);
        p.next_on_wire().await;
        pair.client(&seg(ACK, 101, 5001, b"GET").inbound().frame()).await;
        let red1 = YankInstance::Chardev("red1".into());
        s.yank.yank(&[red1]).unwrap();
        until(|| p.chardevs.query().iter().any(|c| c.label == "compare1" && !c.filename.contains("<->"))).await;
        until(|| s.chardevs.query().iter().any(|c| c.label == "red1" && !c.filename.contains("<->"))).await;
        for _ in 0..2 {
            s.peer.send(seg(ACK, 9001, 104, b"answer").frame().data);
            p.peer.send(seg(ACK, 5001, 104, b"answer").frame().data);
        }
        assert_eq!(s.net.losses()["hn0/f2"], 2);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(p.wire_is_quiet(), "nobody has confirmed the answer");
        // It connects again, and the guest repeats what nobody has acknowledged.
        until(|| p.chardevs.query().iter().any(|c| c.label == "compare1" && c.filename.contains("<->"))).await;
        until(|| s.chardevs.query().iter().any(|c| c.label == "red1" && c.filename.contains("<->"))).await;
        s.peer.send(seg(ACK, 9001, 104, b"answer").frame().data);
        // Meanwhile the peer may have been asked to repeat what the secondary may not have heard.
        let answer = loop {
            let tcp = tcp_of(&Frame::new(p.next_on_wire().await));
            if !tcp.is_empty() {
                break tcp;
            }
        };
        assert_eq!((answer.seq, answer.ack), (5001, 104));
        assert!(p.wire_is_quiet(), "and it leaves once");
        assert_eq!(pair.checkpoints.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn released_frames_keep_their_order_while_the_redirector_comes_to_know_of_the_comparison() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        for round in 0..20u8 {
            p.net.remove_object("redire0").await.unwrap();
            // These wait as bytes in the loopback.
            for n in 0..20 {
                for machine in [p, s] {
                    machine.peer.send(udp(&[round, n]).data);
                }
            }
            until_released(p, u64::from(round) * 40 + 20).await;
            p.object(json!({"qom-type": "filter-redirector", "id": "redire0", "netdev": "hn0", "queue": "rx",
                "position": "id=m0", "indev": "compare_out"}))
                .unwrap();
            let (guests, sender) = ([p.peer.clone(), s.peer.clone()], tokio::task::spawn_blocking);
            let sent = sender(move || {
                for n in 20..40 {
                    guests.iter().for_each(|guest| guest.send(udp(&[round, n]).data));
                }
            });
            for n in 0..40 {
                assert_eq!(p.next_on_wire().await, udp(&[round, n]).data);
            }
            sent.await.unwrap();
        }
    });
}

/// Lets the comparison's thread stand still until the answer is dropped.
fn hold_iothread(machine: &Machine) -> std::sync::mpsc::Sender<()> {
    let ((stands, standing), (go_on, wait)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    machine.iothread.handle().post(move || {
        let _ = stands.send(());
        let _ = wait.recv();
    });
    standing.recv().unwrap();
    go_on
}

/// Whether the comparison has made its offer to the redirector.
async fn until_handed_over_directly(machine: &Machine) {
    let filter = machine.net.filter("redire1").unwrap();
    let Action::Redirector(redirector) = &filter.node.action else { panic!("it is one") };
    until(|| redirector.writer().unwrap().direct::<Intake>().is_some()).await;
}

#[test]
fn what_the_secondary_has_said_before_leaves_from_the_thread_of_the_primarys_guest() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        until_handed_over_directly(p).await;
        s.peer.send_all((0..50u8).map(|n| udp(&[n]).data).collect());
        until_said(p, 50).await;
        let held = hold_iothread(p);
        let mut buf = [0; 2000];
        for n in 0..50u8 {
            p.peer.send(udp(&[n]).data);
            let length = p.wire.recv(&mut buf).expect("it came");
            assert_eq!(buf[..length], udp(&[n]).data);
        }
        drop(held);
        assert_eq!(p.net.compare_stats().await["comp0"].released, 50);
    });
}

#[test]
fn what_the_primary_says_first_waits_for_the_secondary_wherever_it_was_handed_over() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        for round in 0..20u8 {
            until_handed_over_directly(p).await;
            let held = hold_iothread(p);
            p.peer.send_all((0..30u8).map(|n| udp(&[round, n]).data).collect());
            assert!(p.wire_is_quiet());
            s.peer.send_all((0..30u8).map(|n| udp(&[round, n]).data).collect());
            drop(held);
            for n in 0..30 {
                assert_eq!(p.next_on_wire().await, udp(&[round, n]).data);
            }
        }
    });
}

#[test]
fn what_finds_no_room_in_the_comparison_waits_before_it_in_its_order() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        p.net.compare("comp0").unwrap().set("max_queue_size", &json!(4)).unwrap();
        until_handed_over_directly(p).await;
        for n in 0..100u8 {
            p.peer.send(udp(&[n]).data);
        }
        for n in 0..100u8 {
            s.peer.send(udp(&[n]).data);
            assert_eq!(p.next_on_wire().await, udp(&[n]).data);
        }
        assert_eq!(p.net.losses().values().sum::<u64>(), 0);
        until_handed_over_directly(p).await;
    });
}

#[test]
fn what_was_handed_over_before_the_stop_leaves_with_the_checkpoint() {
    run(|| async {
        let pair = Pair::new().await;
        let p = &pair.p;
        until_handed_over_directly(p).await;
        let held = hold_iothread(p);
        p.peer.send(udp(b"held").data);
        drop(held);
        pair.checkpoint().await;
        assert_eq!(p.next_on_wire().await, udp(b"held").data);
    });
}

async fn until_said(machine: &Machine, count: u64) {
    for _ in 0..5000 {
        if machine.net.compare_stats().await["comp0"].secondary_frames >= count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{count} packets of the secondary did not come");
}

async fn until_released(machine: &Machine, count: u64) {
    for _ in 0..1000 {
        if machine.net.compare_stats().await["comp0"].released >= count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{count} packets were not released");
}

#[test]
fn a_frame_of_the_new_epoch_waits_until_the_secondarys_filters_know_of_it() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        pair.accept().await;
        let arrived = pair.client(&seg(ACK, 101, 5001, b"").inbound().frame()).await;
        assert_eq!(arrived.ack, 9001, "the secondary's guest has numbers of its own");
        let before = s.card.got.lock().len();
        s.net.set_running(false);
        s.net.discard_incoming().await;
        // The primary runs, the secondary has not loaded the checkpoint yet.
        p.wire.send(&seg(ACK, 101, 5001, b"GET").inbound().frame().data).unwrap();
        p.wait_for_frames(3).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        s.net.filters_checkpoint(&NetTables::default());
        s.net.set_running(true);
        s.wait_for_frames(before + 1).await;
        let arrived = tcp_of(&Frame::new(s.card.got.lock().last().unwrap().clone()));
        assert_eq!(arrived.ack, 5001, "and has the primary's now");
    });
}

#[test]
fn a_different_answer_asks_for_a_checkpoint_which_releases_the_primarys() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        p.peer.send(udp(b"random 1").data);
        s.peer.send(udp(b"random 2").data);
        until(|| pair.checkpoints.load(Ordering::SeqCst) > 0).await;
        assert!(p.wire_is_quiet());
        // Words of the old epoch that are still on their way count for nothing.
        s.peer.send(udp(b"stale").data);
        p.peer.send(udp(b"held").data);
        pair.checkpoint().await;
        assert_eq!(p.next_on_wire().await, udp(b"random 1").data);
        assert_eq!(p.next_on_wire().await, udp(b"held").data);
        s.peer.send(udp(b"next").data);
        p.peer.send(udp(b"stale").data);
        p.peer.send(udp(b"next").data);
        assert_eq!(p.next_on_wire().await, udp(b"next").data);
        assert!(p.wire_is_quiet());
    });
}

#[test]
fn buffered_output_asks_once_for_the_flush_that_lets_it_go() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        pair.accept().await;
        let asked = || pair.checkpoints.load(Ordering::SeqCst);
        s.net.set_running(false);
        p.net.compare_checkpoint_flush(true).await;
        assert_eq!(asked(), 0, "nothing waits");
        // A segment, and a pure acknowledgement of another epoch.
        for (epoch, frame) in [seg(ACK, 5001, 101, b"answer"), seg(ACK, 5007, 110, b"")].into_iter().enumerate() {
            p.peer.send(frame.frame().data);
            until(|| asked() == epoch + 1).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert_eq!(asked(), epoch + 1, "it asks once");
            assert!(p.wire_is_quiet());
            p.net.compare_checkpoint_flush(true).await;
            p.next_on_wire().await;
        }
        while !p.wire_is_quiet() {
            p.next_on_wire().await;
        }
        p.net.compare_checkpoint_flush(false).await;
        p.peer.send(seg(ACK, 5007, 110, b"compared").frame().data);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!((asked(), p.wire_is_quiet()), (2, true), "it waits for the secondary's word again");
    });
}

#[test]
fn what_is_mirrored_to_a_guest_that_stands_does_not_hold_up_the_primary() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        s.net.set_running(false);
        let queue = |m: &Machine| m.net.inner.netdevs.borrow()["hn0"].shared.queued_frames().len();
        // More than a queue takes before nobody reads for it any more.
        for count in 1..=600 {
            p.wire.send(&plain("for a guest that stands")).unwrap();
            p.wait_for_frames(count).await;
        }
        assert!(p.net.drain_mirrors(Duration::from_secs(5)).await);
        until(|| queue(s) == 600).await;
    });
}

#[test]
fn what_the_secondary_says_in_the_new_epoch_before_the_release_is_not_lost() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        p.peer.send(udp(b"held").data);
        s.peer.send(udp(b"stale").data);
        assert!(s.net.drain_outgoing(Duration::from_secs(5)).await);
        p.net.compare_end_epoch().await;
        // The secondary is quick: it has applied the checkpoint and speaks before the primary has released anything.
        s.peer.send(udp(b"new").data);
        assert!(s.net.drain_outgoing(Duration::from_secs(5)).await);
        p.net.compare_checkpoint_flush(false).await;
        assert_eq!(p.next_on_wire().await, udp(b"held").data);
        p.peer.send(udp(b"new").data);
        assert_eq!(p.next_on_wire().await, udp(b"new").data);
        assert_eq!(p.net.compare_stats().await["comp0"].ahead_packets, 0);
    });
}

#[test]
fn a_secondary_that_never_stops_talking_holds_neither_a_checkpoint_nor_a_failover_up() {
    run(|| async {
        let p = Machine::new().await;
        for id in ["compare1", "compare0", "compare_out"] {
            p.chardev(&format!("socket,id={id},host=127.0.0.1,port=0,server=on,wait=off")).await;
        }
        p.object(
            json!({"qom-type": "colo-compare", "id": "comp0", "primary_in": "compare0", "secondary_in": "compare1",
            "outdev": "compare_out", "iothread": "iothread1"}),
        )
        .unwrap();
        let port = p.port_of("compare1");
        let word = udp(b"without an end");
        let mut words = wire::header(&word, false).0[..4].to_vec();
        words.extend(&word.data);
        let words = words.repeat(40_000);
        let talker = std::thread::spawn(move || {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            while std::io::Write::write_all(&mut stream, &words).is_ok() {}
        });
        until(|| p.chardevs.query().iter().any(|c| c.label == "compare1" && c.filename.contains("<->"))).await;
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, p.net.compare_end_epoch()).await.expect("the epoch ends");
        tokio::time::timeout(limit, p.net.compare_checkpoint_flush(false)).await.expect("the flush is done");
        let figures = tokio::time::timeout(limit, p.net.compare_stats()).await.expect("figures");
        assert!(figures["comp0"].ahead_bytes < 64 << 20, "{figures:?}");
        tokio::time::timeout(limit, p.net.remove_object("comp0")).await.expect("the comparison goes").unwrap();
        p.chardevs.remove("compare1").unwrap();
        talker.join().unwrap();
    });
}

#[test]
fn frames_that_the_primarys_card_has_not_taken_are_mirrored_again() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        p.card.busy.store(true, Ordering::SeqCst);
        s.card.busy.store(true, Ordering::SeqCst);
        p.wire.send(&plain("waiting")).unwrap();
        until(|| p.net.inner.netdevs.borrow()["hn0"].shared.queued_frames().len() == 1).await;
        until(|| s.net.inner.netdevs.borrow()["hn0"].shared.queued_frames().len() == 1).await;
        pair.checkpoint().await;
        p.card.busy.store(false, Ordering::SeqCst);
        s.card.busy.store(false, Ordering::SeqCst);
        p.peer.flush_queued();
        s.peer.flush_queued();
        until(|| {
            s.peer.flush_queued();
            s.card.got.lock().len() == 1
        })
        .await;
        assert_eq!(*p.card.got.lock(), [plain("waiting")]);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(*s.card.got.lock(), [plain("waiting")]);
    });
}

#[test]
fn the_secondary_hears_the_mirror_alone_until_it_takes_over() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        s.wire.send(&plain("from its own tap")).unwrap();
        p.wire.send(&plain("mirrored")).unwrap();
        s.wait_for_frames(1).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(*s.card.got.lock(), [plain("mirrored")]);
        s.net.filters_failover();
        s.wire.send(&plain("from its own tap")).unwrap();
        s.wait_for_frames(2).await;
        s.peer.send(plain("alone"));
        assert_eq!(s.next_on_wire().await, plain("alone"));
        s.net.self_announce(AnnounceParameters::default());
        assert_eq!(s.next_on_wire().await[12..14], [0x80, 0x35]);
    });
}

#[test]
fn a_failover_says_again_what_died_with_the_primary_and_hears_what_came_since() {
    run(|| async {
        let pair = Pair::new().await;
        let s = &pair.s;
        pair.accept().await;
        pair.client(&seg(ACK, 101, 5001, b"GET").inbound().frame()).await;
        // The primary dies before it has answered. The client asks for something else in the meantime.
        s.peer.send(seg(ACK, 9001, 104, b"answer").frame().data);
        s.wire.send(&seg(ACK, 104, 5001, b"PUT").inbound().frame().data).unwrap();
        let silenced = || s.net.inner.netdevs.borrow()["hn0"].shared.silenced.load(Ordering::SeqCst);
        until(|| silenced() == 1).await;
        s.net.filters_failover();
        let answer = Frame::new(s.next_on_wire().await);
        assert_eq!((tcp_of(&answer).seq, tcp_of(&answer).ack), (5001, 104));
        s.wait_for_frames(3).await;
        let request = tcp_of(&Frame::new(s.card.got.lock()[2].clone()));
        assert_eq!((request.seq, request.ack), (104, 9001));
    });
}

#[test]
fn removing_the_objects_lets_everything_out_that_was_held() {
    run(|| async {
        let pair = Pair::new().await;
        let p = &pair.p;
        for i in 0..20u8 {
            p.peer.send(udp(&[i]).data);
        }
        // As the procedure has it: compare first, its output reaches the wire through redire0.
        for id in ["comp0", "m0", "redire0", "redire1"] {
            p.net.remove_object(id).await.unwrap();
        }
        for i in 0..20u8 {
            assert_eq!(p.next_on_wire().await, udp(&[i]).data);
        }
        p.peer.send(plain("direct"));
        assert_eq!(p.next_on_wire().await, plain("direct"));
    });
}

#[test]
fn what_the_guest_says_between_the_removal_of_the_comparison_and_of_its_redirector_is_not_lost() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        p.net.remove_object("comp0").await.unwrap();
        p.peer.send(udp(b"in between").data);
        assert_eq!(p.next_on_wire().await, udp(b"in between").data);
        // With a new comparison behind it the redirector redirects again.
        p.object(
            json!({"qom-type": "colo-compare", "id": "comp0", "primary_in": "compare0-0", "secondary_in": "compare1",
            "outdev": "compare_out0", "iothread": "iothread1"}),
        )
        .unwrap();
        p.peer.send(udp(b"compared").data);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(p.wire_is_quiet());
        s.peer.send(udp(b"compared").data);
        assert_eq!(p.next_on_wire().await, udp(b"compared").data);
    });
}

#[test]
fn settings_change_while_it_runs() {
    run(|| async {
        let pair = Pair::new().await;
        let compare = pair.p.net.compare("comp0").unwrap();
        let get = |name| compare.get(name).unwrap();
        assert_eq!(
            (get("compare_timeout"), get("expired_scan_cycle"), get("max_queue_size")),
            (json!(3000), json!(1000), json!(1024))
        );
        assert_eq!((get("iothread"), get("notify_dev")), (json!("/objects/iothread1"), json!("")));
        for name in ["compare_timeout", "expired_scan_cycle", "max_queue_size"] {
            let e = compare.set(name, &json!(0)).unwrap_err();
            assert_eq!(e.message(), format!("Property 'colo-compare.{name}' requires a positive value"));
        }
        compare.set("compare_timeout", &json!(20)).unwrap();
        compare.set("expired_scan_cycle", &json!(10)).unwrap();
        pair.p.peer.send(udp(b"lonely").data);
        until(|| pair.checkpoints.load(Ordering::SeqCst) > 1).await;
    });
}

#[test]
fn checkpoints_can_be_managed_from_outside() {
    run(|| async {
        let m = Machine::new().await;
        for id in ["pin", "sin", "out", "nd"] {
            m.chardev(&format!("socket,id={id},host=127.0.0.1,port=0,server=on,wait=off")).await;
            m.chardev(&format!("socket,id={id}-peer,host=127.0.0.1,port={}", m.port_of(id))).await;
        }
        m.object(json!({"qom-type": "colo-compare", "id": "c0", "primary_in": "pin", "secondary_in": "sin",
            "outdev": "out", "notify_dev": "nd", "iothread": "iothread1"}))
            .unwrap();
        let framed = |data: &[u8]| [&(data.len() as u32).to_be_bytes()[..], data].concat();
        let attach = |id: &str| m.chardevs.attach(id).unwrap();
        let mut notify = attach("nd-peer").into_stream();
        let mut out = attach("out-peer").into_stream();
        let writer = notify.writer();
        let say = |text: &[u8]| writer.send(&[std::io::IoSlice::new(&framed(text))]).unwrap();
        say(b"COLO_USERSPACE_PROXY_INIT");
        assert_eq!(read(&mut notify).await, framed(b"COLO_COMPARE_GET_XEN_INIT"));
        assert!(attach("pin-peer").write(&framed(&udp(b"one").data)));
        assert!(attach("sin-peer").write(&framed(&udp(b"two").data)));
        assert_eq!(read(&mut notify).await, framed(b"DO_CHECKPOINT"));
        say(b"COLO_CHECKPOINT");
        assert_eq!(read(&mut out).await, framed(&udp(b"one").data));
    });
}

async fn read(stream: &mut lockstep_chardev::CharStream) -> Vec<u8> {
    let mut buf = [0; 4096];
    loop {
        if stream.event(true).await == lockstep_chardev::StreamEvent::Readable
            && let Ok(n) = stream.try_read(&mut buf)
            && n > 0
        {
            return buf[..n].to_vec();
        }
    }
}

#[test]
fn frames_of_the_new_epoch_that_wait_for_the_secondarys_filters_reach_its_guest_at_a_failover() {
    run(|| async {
        let pair = Pair::new().await;
        let (p, s) = (&pair.p, &pair.s);
        s.net.set_running(false);
        s.net.discard_incoming().await;
        for n in 1..=3u8 {
            p.wire.send(&plain(&format!("mirrored {n}"))).unwrap();
            p.wait_for_frames(n.into()).await;
        }
        assert!(p.net.drain_mirrors(Duration::from_secs(5)).await);
        s.net.filters_failover();
        s.net.set_running(true);
        s.wait_for_frames(3).await;
        assert_eq!(*s.card.got.lock(), [1, 2, 3].map(|n| plain(&format!("mirrored {n}"))));
        // Nobody mirrors for it any more: what comes from there later is not for its guest.
        p.wire.send(&plain("late")).unwrap();
        p.wait_for_frames(4).await;
        assert!(p.net.drain_mirrors(Duration::from_secs(5)).await);
        s.wire.send(&plain("from its own tap")).unwrap();
        s.wait_for_frames(4).await;
        assert_eq!(s.card.got.lock()[3], plain("from its own tap"));
    });
}
