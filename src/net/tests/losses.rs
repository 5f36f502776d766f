//! What the secondary's card alone loses, with real TCP stacks: the network repairs it, soon and without a checkpoint.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::stacks::{Cable, Loses, be_greeted, connect, download, echo, upload, with_losses};
use crate::compare::CompareStats;
use crate::packet::{Frame, FrameView, Kind, TcpView, flags};

/// A stall of one retransmission after another would take far longer, one repair takes a retransmission's time-out at most
/// (1 s for the first segments of a connection, RFC 6298).
const SOON: Duration = Duration::from_millis(2500);
/// How much is transferred.
const LENGTH: u64 = 1_000_000;

/// What the peer says to the guest, as the card sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Syn,
    /// Data, from this byte of the stream on.
    Data(u32),
    Fin,
    /// An acknowledgement without anything else, of so many bytes.
    Ack(u32),
}

/// Loses what `lost` says when it is said first.
fn once(mut lost: impl FnMut(Said) -> bool + Send + 'static) -> Loses {
    let mut heard = HashSet::new();
    let mut begins: HashMap<u16, (u32, Option<u32>)> = HashMap::new();
    Box::new(move |frame| {
        let frame = Frame::new(frame.to_vec());
        let Kind::Ip(ip) = FrameView::parse(&frame).kind else { return false };
        let Some(tcp) = TcpView::parse(&frame, &ip) else { return false };
        let (begin, guests) = begins.entry(tcp.src_port).or_default();
        let said = if tcp.has(flags::SYN) {
            (*begin, *guests) = (tcp.seq.wrapping_add(1), None);
            Said::Syn
        } else if !tcp.is_empty() {
            Said::Data(tcp.seq.wrapping_sub(*begin))
        } else if tcp.has(flags::FIN) {
            Said::Fin
        } else {
            Said::Ack(tcp.ack.wrapping_sub(*guests.get_or_insert(tcp.ack)))
        };
        let acknowledged = if matches!(said, Said::Ack(_)) { tcp.ack } else { 0 };
        heard.insert((tcp.src_port, tcp.seq, tcp.len(), acknowledged)) && lost(said)
    })
}

/// Runs `client` with these losses; `None` where it cannot run.
fn repaired(
    name: &str,
    lost: impl FnMut(Said) -> bool + Send + 'static,
    client: impl FnOnce() + Send + 'static,
) -> Option<CompareStats> {
    let (tx, rx) = mpsc::channel();
    let stats = with_losses(Cable::default(), once(lost), move || {
        let start = Instant::now();
        client();
        tx.send(start.elapsed()).unwrap();
    })?;
    let took = rx.recv().unwrap();
    eprintln!("{name}: {took:?}, {} frames of the comparison's own", stats.synthesised);
    assert!(took < SOON, "{name}: {took:?}, {stats:#?}");
    Some(stats)
}

/// Whether one of the stretches has this byte.
fn within(stretches: &'static [(u32, u32)]) -> impl FnMut(Said) -> bool + Send {
    move |said| matches!(said, Said::Data(at) if stretches.iter().any(|&(from, to)| (from..to).contains(&at)))
}

#[test]
fn the_first_segments_of_an_upload() {
    repaired("first", within(&[(9, 14_000)]), || upload(false, LENGTH));
}

#[test]
fn a_stretch_in_the_middle_of_an_upload() {
    repaired("middle", within(&[(500_000, 550_000)]), || upload(false, LENGTH));
}

#[test]
fn many_stretches_of_an_upload() {
    let lost = |said| matches!(said, Said::Data(at) if at > 100_000 && at / 3000 % 5 == 0);
    repaired("many", lost, || upload(false, LENGTH));
}

#[test]
fn the_last_segments_of_an_upload() {
    repaired("last", within(&[(LENGTH as u32 - 20_000, u32::MAX)]), || upload(false, LENGTH));
}

#[test]
fn the_last_segment_of_an_upload() {
    repaired("very last", within(&[(LENGTH as u32 - 500, u32::MAX)]), || upload(false, LENGTH));
}

#[test]
fn words_of_a_conversation() {
    let lost = |said| matches!(said, Said::Data(at) if at % 2 == 0);
    repaired("words", lost, || echo(false, 5));
}

#[test]
fn a_while_of_a_download_without_acknowledgements() {
    let mut until = None;
    let lost = move |said| {
        let now = Instant::now();
        matches!(said, Said::Ack(at) if at > 100_000 && now < *until.get_or_insert(now + Duration::from_millis(30)))
    };
    repaired("acknowledgements", lost, || download(false, LENGTH));
}

#[test]
fn every_second_acknowledgement_of_a_download() {
    let lost = |said| matches!(said, Said::Ack(at) if at / 1000 % 2 == 1);
    repaired("every second", lost, || download(false, LENGTH));
}

#[test]
fn the_syn() {
    repaired("SYN", |said| said == Said::Syn, || echo(false, 3));
}

#[test]
fn the_last_word_of_the_handshake() {
    repaired("handshake", |said| said == Said::Ack(0), || echo(false, 3));
}

#[test]
fn the_last_word_of_the_handshake_where_the_guest_speaks_first() {
    repaired("greeting", |said| said == Said::Ack(0), || drop(be_greeted()));
}

#[test]
fn the_fin() {
    repaired(
        "FIN",
        |said| said == Said::Fin,
        || {
            let mut stream = connect(false);
            stream.write_all(b"E\0\0\0\0\0\0\0\0hello").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"hello");
        },
    );
}
