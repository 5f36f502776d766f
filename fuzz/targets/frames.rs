//! What two guests and a network say: frames on a socket, the comparison, the translation of sequence numbers.
//!
//! The input is a list of steps: a byte that says who speaks (or that time passes, or a checkpoint comes), a length, a frame.
#![no_main]
use libfuzzer_sys::fuzz_target;
use lockstep_net::compare::{CompareConfig, CompareEngine, Output};
use lockstep_net::packet::Frame;
use lockstep_net::rewriter::{Direction, Rewriter, RewriterTable};
use lockstep_net::wire::FrameReader;

/// Ethernet, IPv4 and TCP headers that steps start from, so that few bytes make a frame that is looked into.
const BASE: [u8; 54] = [
    0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 0, 0x45, 0, 0, 80, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0,
    2, 10, 0, 0, 1, 0, 80, 0x1f, 0x90, 0, 0, 0, 100, 0, 0, 0, 200, 0x50, 0x10, 0x20, 0, 0, 0, 0, 0,
];

fuzz_target!(|data: &[u8]| {
    let mut reader = FrameReader::new(data.first().is_some_and(|byte| byte & 1 != 0));
    let _ = reader.push(data, |_| ());
    if let Ok(table) = serde_json::from_slice::<RewriterTable>(data) {
        Rewriter::new().checkpoint(&table);
    }
    let mut engine =
        CompareEngine::new(CompareConfig { max_bytes: 1 << 20, ..CompareConfig::default() }, Default::default());
    let (mut rewriter, mut out, mut now) = (Rewriter::new(), Output::default(), 0);
    let mut rest = data;
    while let [kind, length, tail @ ..] = rest {
        let (bytes, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = tail;
        let frame = || {
            if kind & 0x80 != 0 {
                return Frame::with_vnet(bytes.to_vec(), usize::from(kind >> 4 & 3) * 5);
            }
            // The first bytes go over places of the base that matter, the others are payload.
            let mut frame = BASE.to_vec();
            for (at, byte) in [12, 13, 14, 17, 20, 21, 23, 35, 40, 41, 44, 45, 46, 47].into_iter().zip(bytes) {
                frame[at] ^= byte;
            }
            frame.extend_from_slice(bytes.get(14..).unwrap_or_default());
            Frame::new(frame)
        };
        match kind & 7 {
            0 | 1 => engine.primary(frame(), now, &mut out),
            2 | 3 => engine.secondary(frame(), now, &mut out),
            4 => rewriter.process(&mut frame(), Direction::ToGuest, now),
            5 => rewriter.process(&mut frame(), Direction::FromGuest, now),
            6 => {
                now += i64::from(*length) << 24;
                engine.tick(now, &mut out);
                engine.scan(now, &mut out);
            }
            _ => {
                let table = rewriter.table(now);
                rewriter.failover();
                rewriter.checkpoint(&table);
                engine.flush(now, &mut out);
            }
        }
        out.frames.clear();
    }
});
