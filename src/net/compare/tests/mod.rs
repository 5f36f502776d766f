use super::*;
use crate::packet::flags::{ACK, FIN, PSH, RST, SYN};
use crate::packet::testing::*;

mod cases;
mod connections;
mod ended;
mod flush;
mod losses;
mod lossy;
mod random;

const MS: i64 = 1_000_000;

/// An engine with a clock, and what came out of it.
struct Bench {
    engine: CompareEngine,
    now: i64,
    gate: Arc<IdentityGate>,
}

impl Bench {
    fn new() -> Self {
        let gate = Arc::new(IdentityGate::default());
        Self { engine: CompareEngine::new(CompareConfig::default(), gate.clone()), now: 0, gate }
    }

    fn p(&mut self, frame: Frame) -> Output {
        let mut out = Output::default();
        self.engine.primary(frame, self.now, &mut out);
        out
    }

    fn s(&mut self, frame: Frame) -> Output {
        let mut out = Output::default();
        self.engine.secondary(frame, self.now, &mut out);
        out
    }

    fn flush(&mut self) -> Output {
        let mut out = Output::default();
        self.engine.flush(self.now, &mut out);
        out
    }

    /// Lets time pass, with the engine's timers served.
    fn pass(&mut self, ms: i64) -> Output {
        let mut out = Output::default();
        let end = self.now + ms * MS;
        while let Some(at) = self.engine.next_deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.engine.tick(self.now, &mut out);
        }
        self.now = end;
        out
    }

    fn scan(&mut self) -> Option<Divergence> {
        let mut out = Output::default();
        self.engine.scan(self.now, &mut out);
        out.checkpoint
    }
}

/// How many frames left, and whether a checkpoint is wanted.
fn left(out: &Output) -> (usize, bool) {
    (out.frames.len(), out.checkpoint.is_some())
}

/// (seq, payload, ack, flags) of the only frame.
fn only(out: &Output) -> (u32, Vec<u8>, u32, u8) {
    assert_eq!(out.frames.len(), 1, "{out:?}");
    let tcp = tcp_of(&out.frames[0]);
    (tcp.seq, out.frames[0].data[tcp.payload..tcp.end].to_vec(), tcp.ack, tcp.flags)
}
