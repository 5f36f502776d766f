//! What the secondary's guest says in a connection: bytes to compare with, ends and aborts that wait for the primary's, and segments of an
//! incarnation that the primary has not begun.

use super::TcpConn;
use super::ends::Ends;
use super::stream::Stream;
use crate::compare::{Context, Reason};
use crate::packet::{Frame, TcpView, after, flags};
use std::collections::VecDeque;

/// Segments of the secondary kept for an incarnation of the connection that the primary has not begun.
const MAX_NEXT: usize = 64;
/// Aborts of the secondary that wait for the primary's.
const MAX_RESETS: u8 = 16;

/// What the secondary's SYN said.
#[derive(Debug)]
pub(super) struct Syn {
    pub seq: u32,
    pub payload: Vec<u8>,
}

/// The secondary's side of the connection.
#[derive(Debug, Default)]
pub(super) struct Secondary {
    pub ends: Ends,
    pub syn: Option<Syn>,
    pub stream: Stream,
    pub fin: Option<u32>,
    pub resets: u8,
    /// When the oldest of `fin` and `resets` came that has no counterpart yet.
    pub control_since: Option<i64>,
    /// Segments from its next SYN on, while the primary has not begun that incarnation.
    pub next: VecDeque<Frame>,
    pub next_since: i64,
}

impl TcpConn {
    pub(super) fn secondary_segment(&mut self, mut frame: Frame, tcp: TcpView, ctx: &mut Context<'_>) {
        let s = &mut self.secondary;
        let parked = !s.next.is_empty();
        if tcp.has(flags::SYN) && !tcp.has(flags::RST) {
            let known = s.syn.as_ref().map(|syn| syn.seq == tcp.seq);
            if parked || self.isn.is_none() || known == Some(false) {
                return self.park(frame, ctx);
            }
            if known.is_none() {
                s.syn = Some(Syn { seq: tcp.seq, payload: frame.data[tcp.payload..tcp.end].to_vec() });
            }
            s.ends.learn(&frame, &tcp);
            // It has not heard its SYN acknowledged, and the primary has.
            if known.is_some() && !self.held.is_empty() {
                self.secondary_repeats(ctx);
            }
            return;
        }
        if parked {
            return self.park(frame, ctx);
        }
        if tcp.has(flags::RST) {
            s.resets = (s.resets + 1).min(MAX_RESETS);
            if self.aborted.is_none() {
                s.control_since.get_or_insert(ctx.now);
            }
            return;
        }
        if self.isn.is_some() && s.syn.is_none() {
            // Late words of an incarnation that the primary has left.
            ctx.stats.secondary_ignored += 1;
            return;
        }
        let old = (s.ends.ack, s.ends.window);
        let advanced = s.ends.learn(&frame, &tcp);
        self.secondary_insists &= !advanced;
        if tcp.is_empty() && !tcp.has(flags::FIN) {
            let repeated = !advanced && old == (Some(tcp.ack), tcp.window) && tcp.options(&frame).sack.is_none();
            if repeated && self.primary.ack.is_some_and(|p| after(p, tcp.ack)) {
                // The secondary misses something that the primary has: its sign of loss has to reach the peer. One that names what
                // it has got is passed on with the names.
                self.secondary_insists = true;
                self.repeat_acknowledgement(ctx);
            }
            return;
        }
        if self.diverged {
            return;
        }
        if tcp.has(flags::FIN) {
            let fin = tcp.data_end();
            if self.released.is_none_or(|released| !after(released, fin)) {
                if s.fin.is_some_and(|other| other != fin) || s.stream.end().is_some_and(|end| after(end, fin)) {
                    self.diverge(Reason::EndDiffers, ctx);
                    return;
                }
                s.fin = Some(fin);
                s.control_since.get_or_insert(ctx.now);
            }
        }
        let s = &mut self.secondary;
        let anchor = self.released.or(s.stream.end()).unwrap_or(tcp.seq);
        if tcp.seq.wrapping_sub(anchor).wrapping_add(1 << 30) > 2 << 30 {
            ctx.stats.secondary_ignored += 1;
            return;
        }
        let skip = match self.released {
            Some(released) if after(released, tcp.seq) => released.wrapping_sub(tcp.seq) as usize,
            _ => 0,
        };
        if skip < tcp.len() {
            frame.data.truncate(tcp.end);
            let seq = tcp.seq.wrapping_add(skip as u32);
            let same = s.stream.insert(seq, frame.data, tcp.payload + skip, ctx.now);
            if !same {
                self.diverge(Reason::ContentDiffers, ctx);
            } else if s.fin.is_some_and(|fin| s.stream.end().is_some_and(|end| after(end, fin))) {
                self.diverge(Reason::EndDiffers, ctx);
            }
        } else if !tcp.is_empty() && !self.held.is_empty() && !self.finished {
            self.secondary_repeats(ctx);
        }
    }

    /// The secondary repeats what the network has had, while the primary goes on.
    pub(super) fn secondary_repeats(&mut self, ctx: &mut Context<'_>) {
        self.secondary_repeats.get_or_insert(ctx.now);
        self.ask_again(ctx);
    }

    pub(super) fn park(&mut self, frame: Frame, ctx: &mut Context<'_>) {
        let s = &mut self.secondary;
        if s.next.is_empty() {
            s.next_since = ctx.now;
        }
        if s.next.len() < MAX_NEXT {
            s.next.push_back(frame);
        } else {
            ctx.stats.secondary_ignored += 1;
        }
    }
}
