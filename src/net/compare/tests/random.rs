//! Two guests that run the same service at their own pace: whatever they cut, repeat, delay or acknowledge, nothing leaves
//! that is not true on both, everything leaves in the end, and no checkpoint is needed.

use super::*;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % u64::from(n)) as u32
    }
}

/// One guest: how much it has sent and acknowledged.
struct Guest {
    sent: u32,
    acked: u32,
    clock: u32,
    fin: bool,
}

impl Guest {
    fn speak(&mut self, rng: &mut Rng, base: u32, text: &[u8], upload: u32) -> Option<Frame> {
        self.clock += rng.below(3);
        if rng.below(3) == 0 {
            self.acked = (self.acked + rng.below(3000)).min(upload);
        }
        let total = text.len() as u32;
        let ack = 0xffff_f000u32.wrapping_add(self.acked);
        let at = |n: u32| base.wrapping_add(n);
        let ts = |s: Seg| s.ts(self.clock, 1).frame();
        match rng.below(10) {
            // Something sent before, again.
            0 if self.sent > 0 => {
                let from = rng.below(self.sent);
                let to = (from + 1 + rng.below(1448)).min(self.sent);
                Some(ts(seg(ACK, at(from), ack, &text[from as usize..to as usize])))
            }
            1 => Some(ts(seg(ACK, at(self.sent), ack, b""))),
            _ if self.sent < total => {
                let from = self.sent;
                self.sent = (from + 1 + rng.below(1448)).min(total);
                self.fin = self.sent == total;
                let flags = if self.fin { ACK | FIN } else { ACK };
                Some(ts(seg(flags, at(from), ack, &text[from as usize..self.sent as usize])))
            }
            _ if self.acked < upload => {
                self.acked = upload;
                Some(ts(seg(ACK, at(self.sent + 1), 0xffff_f000u32.wrapping_add(upload), b"")))
            }
            _ => None,
        }
    }
    fn done(&self, total: u32, upload: u32) -> bool {
        self.sent == total && self.acked == upload
    }
}

#[test]
fn equal_services_at_different_paces_never_need_a_checkpoint() {
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let mut b = Bench::new();
        let text: Vec<u8> = (0..20_000 + seed as u32).map(|i| (i * 7 + i / 251) as u8).collect();
        let (total, upload) = (text.len() as u32, 30_000);
        let base = 0xffff_e000u32; // wraps on the way
        let isn = base.wrapping_sub(1);
        let mut out = b.p(seg(SYN | ACK, isn, 0xffff_f000, b"").scale(7).ts(1, 1).frame());
        out.frames.extend(b.s(seg(SYN | ACK, 4242, 0xffff_f000, b"").scale(7).ts(1, 1).frame()).frames);
        assert_eq!(out.frames.len(), 1);
        let new = || Guest { sent: 0, acked: 0, clock: 1, fin: false };
        let (mut p, mut s) = (new(), new());
        let (mut seen, mut ack_seen, mut fin_seen, mut tsval) = (0u32, 0u32, false, 0);
        let mut steps = 0;
        while !(p.done(total, upload) && s.done(total, upload) && fin_seen && ack_seen == upload) {
            steps += 1;
            assert!(steps < 100_000, "seed {seed}: stuck at {seen} of {total}, ack {ack_seen}, fin {fin_seen}");
            b.now += MS / 4;
            let lead = rng.below(100) < 20 + (seed as u32 % 7) * 10;
            let out = if lead {
                match p.speak(&mut rng, base, &text, upload) {
                    Some(frame) => b.p(frame),
                    None => b.pass(1),
                }
            } else {
                match s.speak(&mut rng, base, &text, upload) {
                    Some(frame) => b.s(frame),
                    None => b.pass(1),
                }
            };
            assert_eq!(out.checkpoint, None, "seed {seed}");
            for frame in &out.frames {
                let tcp = tcp_of(frame);
                let from = tcp.seq.wrapping_sub(base);
                let payload = &frame.data[tcp.payload..tcp.end];
                if !payload.is_empty() {
                    let to = from + payload.len() as u32;
                    assert!(to <= p.sent.min(s.sent), "seed {seed}: released what one has not sent");
                    assert!(from <= seen, "seed {seed}: a hole");
                    assert_eq!(payload, &text[from as usize..to as usize]);
                    seen = seen.max(to);
                }
                if tcp.has(FIN) {
                    assert!(p.fin && s.fin);
                    fin_seen = true;
                }
                let ack = tcp.ack.wrapping_sub(0xffff_f000);
                assert!(ack <= p.acked.min(s.acked), "seed {seed}: acknowledged what one has not");
                ack_seen = ack_seen.max(ack);
                let (value, _) = tcp.options(frame).timestamp_values(frame).unwrap();
                assert!(value >= tsval);
                tsval = value;
            }
        }
        assert_eq!(seen, total);
        let stats = b.engine.stats();
        assert_eq!((stats.held_packets, stats.held_bytes), (0, 0), "seed {seed}");
        b.now += 10_000 * MS;
        assert_eq!(b.scan(), None, "seed {seed}: {stats:?}");
    }
}
