//! What a guest has acknowledged, selectively too, and offered.

use crate::packet::{Frame, SackBlocks, TcpView, after, earlier, flags, later};

/// Blocks that are remembered: two segments' full.
const MOST_NAMED: usize = 8;

/// Stretches of the peer's stream, the newest first: left and right edges.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Blocks {
    edges: [(u32, u32); MOST_NAMED],
    count: usize,
}

impl Blocks {
    /// Remembers a block as the newest, in place of those that it contains, or of the oldest.
    pub fn add(&mut self, block: (u32, u32)) {
        let outer = self.iter().find(|&other| contains(other, block)).unwrap_or(block);
        self.retain(|other| !contains(outer, other));
        self.count = (self.count + 1).min(MOST_NAMED);
        self.edges[..self.count].rotate_right(1);
        self.edges[0] = outer;
    }

    /// Forgets what lies before `ack`: it is acknowledged, and the numbers come again after 4 GB.
    pub fn forget_before(&mut self, ack: u32) {
        self.retain(|(_, right)| after(right, ack));
    }

    fn retain(&mut self, keep: impl Fn((u32, u32)) -> bool) {
        let mut kept = 0;
        for index in 0..self.count {
            if keep(self.edges[index]) {
                self.edges[kept] = self.edges[index];
                kept += 1;
            }
        }
        self.count = kept;
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + use<'_> {
        self.edges[..self.count].iter().copied()
    }

    /// Whether one of them contains all of `block`.
    pub fn contain(&self, block: (u32, u32)) -> bool {
        self.iter().any(|outer| contains(outer, block))
    }
}

fn contains(outer: (u32, u32), inner: (u32, u32)) -> bool {
    !after(outer.0, inner.0) && !after(inner.1, outer.1)
}

/// What one guest has acknowledged and offered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    /// The highest acknowledgement.
    pub ack: Option<u32>,
    /// The highest window edge, if the scale is known.
    pub right: Option<u32>,
    /// The window scale, known from a SYN|ACK.
    pub scale: Option<u8>,
    /// The newest window field.
    pub window: u16,
    /// The timestamp of the peer's that came with the highest acknowledgement (TSecr, RFC 7323).
    pub echo: Option<u32>,
    /// What it has named by selective acknowledgement (RFC 2018), behind the highest acknowledgement.
    pub named: Blocks,
    /// What it says that it has had twice (RFC 2883).
    pub twice: Option<(u32, u32)>,
}

impl Ends {
    /// Takes in what a segment acknowledges; true if it acknowledges more than before.
    pub fn learn(&mut self, frame: &Frame, tcp: &TcpView) -> bool {
        let options = tcp.options(frame);
        if tcp.has(flags::SYN | flags::ACK) {
            // The server names a scale only if the client did: then it holds for the connection.
            self.scale = Some(options.window_scale.unwrap_or(0));
        }
        if !tcp.has(flags::ACK) || tcp.has(flags::RST) {
            return false;
        }
        let advanced = self.ack.is_none_or(|old| after(tcp.ack, old));
        if advanced || self.ack == Some(tcp.ack) {
            self.window = tcp.window;
            self.echo = options.timestamp_values(frame).map(|(_, echo)| echo).or(self.echo);
        }
        let ack = self.ack.map_or(tcp.ack, |old| later(old, tcp.ack));
        self.ack = Some(ack);
        if let Some(sack) = options.sack {
            self.learn_names(frame, tcp.ack, sack);
        }
        self.named.forget_before(ack);
        if let Some(scale) = self.scale {
            let scale = if tcp.has(flags::SYN) { 0 } else { scale };
            let edge = tcp.ack.wrapping_add(u32::from(tcp.window) << scale);
            self.right = Some(self.right.map_or(edge, |old| later(old, edge)));
        }
        advanced
    }

    fn learn_names(&mut self, frame: &Frame, ack: u32, sack: SackBlocks) {
        if let Some(twice) = duplicate_of(sack, frame, ack) {
            self.twice = Some(twice);
        }
        // The newest stands first.
        for index in (0..sack.count).rev() {
            let block = sack.edges(frame).nth(index).filter(|&(left, right)| after(right, left) && after(right, ack));
            block.into_iter().for_each(|block| self.named.add(block));
        }
    }

    /// The largest part of a block that the guest is known to have.
    pub fn part_of(&self, (left, right): (u32, u32)) -> Option<(u32, u32)> {
        let acknowledged = self.ack.map(|ack| (left, earlier(right, ack)));
        let named = self.named.iter().map(|(l, r)| (later(left, l), earlier(right, r)));
        let parts = acknowledged.into_iter().chain(named).filter(|&(l, r)| after(r, l));
        parts.max_by_key(|(l, r)| r.wrapping_sub(*l))
    }
}

/// What a selective acknowledgement says that has come twice (RFC 2883 section 4): a first block that is acknowledged, or is part of
/// the second.
pub(super) fn duplicate_of(sack: SackBlocks, frame: &Frame, ack: u32) -> Option<(u32, u32)> {
    let mut edges = sack.edges(frame);
    let first = edges.next()?;
    (!after(first.1, ack) || edges.next().is_some_and(|second| contains(second, first))).then_some(first)
}
