//! Datagrams: a packet of the primary leaves when the secondary has sent an equal one, in whatever order.

use std::collections::VecDeque;

use super::fragment::Datagram;
use super::stats::Protocol;
use super::{Context, Load, Reason};
use crate::packet::Frame;

#[derive(Debug)]
struct Held {
    datagram: Datagram,
    since: i64,
    order: u64,
    /// The secondary has answered something that the primary sent later.
    skipped: bool,
}

/// The packets between one pair of addresses and ports.
#[derive(Debug)]
pub(super) struct DatagramConn {
    pub protocol: Protocol,
    held: VecDeque<Held>,
    ahead: VecDeque<Held>,
    diverged: bool,
}

impl DatagramConn {
    pub fn new(protocol: Protocol) -> Self {
        Self { protocol, held: VecDeque::new(), ahead: VecDeque::new(), diverged: false }
    }

    pub fn primary(&mut self, datagram: Datagram, ctx: &mut Context<'_>) {
        let whole = self.protocol == Protocol::Other;
        let matched = self.ahead.iter().position(|s| s.datagram.compared(whole) == datagram.compared(whole));
        if let Some(index) = matched.filter(|_| !self.diverged) {
            self.ahead.remove(index);
            self.mark_skipped(self.held.len());
            datagram.frames.into_iter().for_each(|frame| ctx.release(frame));
            return;
        }
        let order = ctx.next_order();
        self.held.push_back(Held { datagram, since: ctx.now, order, skipped: false });
    }

    pub fn secondary(&mut self, datagram: Datagram, ctx: &mut Context<'_>) {
        if self.diverged {
            return;
        }
        let whole = self.protocol == Protocol::Other;
        let matched = self.held.iter().position(|p| p.datagram.compared(whole) == datagram.compared(whole));
        if let Some(held) = matched.and_then(|index| {
            self.mark_skipped(index);
            self.held.remove(index)
        }) {
            held.datagram.frames.into_iter().for_each(|frame| ctx.release(frame));
            return;
        }
        let order = ctx.next_order();
        self.ahead.push_back(Held { datagram, since: ctx.now, order, skipped: false });
    }

    /// A difference counts once the secondary has said something else for long enough that reordering cannot explain it.
    pub fn patience_over(&mut self, ctx: &mut Context<'_>) {
        if self.diverged {
            return;
        }
        let limit = ctx.now - ctx.config.patience_ns;
        let other = self.ahead.iter().any(|s| s.since <= limit);
        if self.held.iter().any(|p| p.since <= limit && (other || p.skipped)) {
            self.diverged = true;
            self.ahead.clear();
            ctx.diverged(self.protocol, Reason::ContentDiffers);
        }
    }

    pub fn wants_patience(&self) -> bool {
        !self.diverged && (self.held.iter().any(|p| p.skipped) || !(self.held.is_empty() || self.ahead.is_empty()))
    }

    /// Whether there is nothing to remember: each packet has found its counterpart.
    pub fn is_settled(&self) -> bool {
        !self.diverged && self.held.is_empty() && self.ahead.is_empty()
    }

    pub fn flush(&mut self, ordered: &mut Vec<(u64, Frame)>, ctx: &mut Context<'_>) {
        for held in self.held.drain(..) {
            ctx.stats.released += held.datagram.frames.len() as u64;
            ordered.extend(held.datagram.frames.into_iter().map(|frame| (held.order, frame)));
        }
        self.ahead.clear();
        self.diverged = false;
    }

    pub fn oldest(&self) -> Option<i64> {
        let first = |queue: &VecDeque<Held>| queue.front().map(|h| h.since);
        first(&self.held).into_iter().chain(first(&self.ahead)).min()
    }

    pub fn load(&self) -> Load {
        let bytes = |queue: &VecDeque<Held>| queue.iter().map(|h| h.datagram.bytes()).sum();
        Load {
            primary_packets: self.held.len(),
            primary_bytes: bytes(&self.held),
            secondary_packets: self.ahead.len(),
            secondary_bytes: bytes(&self.ahead),
        }
    }

    fn mark_skipped(&mut self, before: usize) {
        self.held.iter_mut().take(before).for_each(|p| p.skipped = true);
    }
}
