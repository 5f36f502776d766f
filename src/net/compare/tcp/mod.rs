//! One TCP connection (RFC 9293), seen from the guest's side only: what each guest has sent and acknowledged.
//!
//! The primary's numbers are the network's; the secondary's have been translated to them by its rewriter, except in a
//! SYN, whose sequence number nobody knows how to translate yet.

mod emit;
mod ends;
mod release;
mod secondary;
mod stream;

use std::collections::VecDeque;

pub(in crate::compare) use emit::fix_ipv4_checksum;
use emit::{Template, Told};
use ends::Ends;
use secondary::{Secondary, Syn};
use stream::Coverage;

use super::stats::Protocol;
use super::{Context, Load, Reason};
use crate::packet::{Frame, FrameView, IpView, Kind, TcpView, after, flags};

/// How long the primary's words wait before the peer is asked for an acknowledgement that the secondary may not have heard,
/// doubled each time (ns). It is what Linux waits at least before it repeats a segment: a secondary that has data under way asks by
/// itself then, but one that misses the last word of its handshake says nothing for a second (RFC 6298), and then only its SYN again.
const ASK_NS: i64 = 200_000_000;
/// The most such questions while the same words wait: the last comes before the time-out of 3 s.
const MAX_ASKED: u32 = 4;
/// How long a loss that the secondary has made known may go unrepaired before a checkpoint repairs it (ns). The peer has been told,
/// and sends again after one round trip, or when its retransmission timer runs out, which is 200 ms on Linux with the round trips of
/// most networks: so this leaves room for one try of each kind. A secondary that has not said that it misses anything is only slow, and has
/// the time-out; but one that asks for something again and again is not helped by waiting.
const REPAIR_NS: i64 = 500_000_000;

/// A segment of the primary that waits.
#[derive(Debug)]
struct Held {
    frame: Frame,
    ip: IpView,
    tcp: TcpView,
    since: i64,
    order: u64,
    /// The largest frame it may leave in, if it came in fragments.
    limit: Option<usize>,
}

impl Held {
    /// Whether `other` says the same (a retransmission).
    fn repeats(&self, other: &Held) -> bool {
        let same = |t: &TcpView| (t.seq, t.flags & BOUNDARY_OR_FIN, t.len());
        same(&self.tcp) == same(&other.tcp)
            && self.frame.data[self.tcp.payload..self.tcp.end] == other.frame.data[other.tcp.payload..other.tcp.end]
    }
}

/// A SYN begins, an RST ends an incarnation of the connection: what follows in the queue belongs to another.
const BOUNDARY: u8 = flags::SYN | flags::RST;
const BOUNDARY_OR_FIN: u8 = BOUNDARY | flags::FIN;

/// The sequence number behind a segment, FIN counted.
fn end_of(tcp: &TcpView) -> u32 {
    tcp.data_end().wrapping_add(u32::from(tcp.has(flags::FIN)))
}

/// What is to be done with a held segment.
enum Verdict {
    Release,
    /// It needs more of the secondary.
    Wait,
    /// Something before it in the stream has to leave first.
    Gap,
    Differs(Reason),
}

/// A connection.
#[derive(Debug, Default)]
pub(super) struct TcpConn {
    /// Segments with data or FIN of the incarnation that the primary is in.
    held: VecDeque<Held>,
    /// From the next SYN or RST on, everything.
    later: VecDeque<Held>,
    held_bytes: usize,
    /// The first sequence number that the network has not seen; everything before it has been released.
    released: Option<u32>,
    /// The initial sequence number of the incarnation that the primary is in.
    isn: Option<u32>,
    /// That SYN has not been released.
    syn_waits: bool,
    primary: Ends,
    secondary: Secondary,
    told: Told,
    template: Option<Template>,
    /// The newest pure acknowledgement that waits for the secondary.
    pending: Option<(Frame, TcpView)>,
    /// The primary's acknowledgement at some time, and that time, while the secondary has not acknowledged as much.
    ack_lag: Option<(u32, i64)>,
    /// The secondary has repeated its newest acknowledgement, as one that misses something does.
    secondary_insists: bool,
    /// Since when the secondary says that it misses something that the primary has.
    secondary_misses: Option<i64>,
    /// When something was released last.
    released_at: i64,
    /// How often the peer has been asked to repeat an acknowledgement while the same words wait.
    asked: u32,
    /// Since when the secondary repeats what the network has had, while the primary's next words wait.
    secondary_repeats: Option<i64>,
    /// An abort that was released: sequence and acknowledgement number.
    aborted: Option<(u32, u32)>,
    /// A FIN was released.
    finished: bool,
    /// The head of the queue is covered by the secondary to this point, since then.
    partial: Option<(u32, i64)>,
    diverged: bool,
}

impl TcpConn {
    /// A segment that the primary guest sent; `limit` is the largest frame it may leave in, if it came in fragments.
    pub fn primary(&mut self, frame: Frame, ip: IpView, tcp: TcpView, limit: Option<usize>, ctx: &mut Context<'_>) {
        let held = Held { frame, ip, tcp, since: ctx.now, order: ctx.next_order(), limit };
        if tcp.flags & BOUNDARY == 0 && self.later.is_empty() {
            self.ordinary(held, ctx);
        } else {
            self.boundary(held, ctx);
        }
        self.settle(ctx);
    }

    /// A segment that the secondary guest sent.
    pub fn secondary(&mut self, frame: Frame, tcp: TcpView, ctx: &mut Context<'_>) {
        self.secondary_segment(frame, tcp, ctx);
        self.settle(ctx);
    }

    /// Called some time after [`TcpConn::wants_patience`].
    pub fn patience_over(&mut self, ctx: &mut Context<'_>) {
        let limit = ctx.now - ctx.config.patience_ns;
        if !self.diverged
            && self.secondary.resets > 0
            && self.head().is_some_and(|h| h.since <= limit && !h.tcp.has(flags::RST))
        {
            self.diverge(Reason::EndDiffers, ctx);
        }
        // The secondary may keep the rest back until this much is acknowledged (Nagle's algorithm): let it go.
        if let Some((covered, since)) = self.partial
            && since <= limit
            && !self.diverged
        {
            self.release_front(covered, ctx);
        }
        self.settle(ctx);
    }

    /// Whether something may have to happen though no packet comes.
    pub fn wants_patience(&self) -> bool {
        let aborted = self.secondary.resets > 0 && self.head().is_some_and(|h| !h.tcp.has(flags::RST));
        !self.diverged && (aborted || self.partial.is_some())
    }

    /// Whether it has to be looked at now and then, by [`TcpConn::keep_vigil`].
    pub fn wants_vigil(&self) -> bool {
        !self.diverged && (self.may_ask() || self.unrepaired_since().is_some())
    }

    /// Has an acknowledgement repeated that the secondary may have lost, and asks for a checkpoint if a loss is not repaired.
    pub fn keep_vigil(&mut self, ctx: &mut Context<'_>) {
        if let Some(head) = self.held.front().filter(|_| self.may_ask())
            && head.since.max(self.released_at) + (ASK_NS << self.asked) <= ctx.now
        {
            self.asked += 1;
            self.ask_again(ctx);
        }
        let limit = ctx.now - REPAIR_NS.min(ctx.config.timeout_ns);
        if let Some((_, reason)) = self.unrepaired_since().filter(|&(since, _)| since <= limit && !self.diverged) {
            ctx.diverged(Protocol::Tcp, reason);
            // The peer may still be quicker; if not, it is asked for again.
            self.ack_lag = self.ack_lag.map(|(goal, _)| (goal, ctx.now));
            self.secondary_repeats = self.secondary_repeats.map(|_| ctx.now);
        }
    }

    /// Whether the peer may be asked to repeat an acknowledgement.
    fn may_ask(&self) -> bool {
        let known = self.released.is_some() && self.told.ack.is_some() && !self.syn_waits;
        known && !self.held.is_empty() && !self.finished && self.asked < MAX_ASKED
    }

    /// Since when the secondary misses something that it has asked for.
    fn unrepaired_since(&self) -> Option<(i64, Reason)> {
        let lag = self.ack_lag.zip(self.secondary_misses);
        let lag = lag.map(|((_, since), known)| (since.max(known), Reason::AcknowledgementLags));
        lag.or(self.secondary_repeats.map(|since| (since, Reason::Unanswered)))
    }

    /// Since when the secondary's acknowledgement stays behind what the primary's was then.
    pub fn ack_lag_since(&self) -> Option<i64> {
        self.ack_lag.map(|(_, since)| since)
    }

    /// Whether the network waits for something that the primary has said: a segment, an acknowledgement, or room.
    pub fn waits(&self) -> bool {
        let opens = || self.told.opens(self.primary.right);
        self.head().is_some() || self.ack_lag.is_some() || opens()
    }

    /// When the oldest packet without counterpart came.
    pub fn oldest(&self) -> Option<i64> {
        let s = &self.secondary;
        let next = (!s.next.is_empty()).then_some(s.next_since);
        [self.head().map(|h| h.since), s.stream.oldest(), s.control_since, next].into_iter().flatten().min()
    }

    /// What is queued.
    pub fn load(&self) -> Load {
        Load {
            primary_packets: self.held.len() + self.later.len(),
            primary_bytes: self.held_bytes,
            secondary_packets: self.secondary.stream.pieces() + self.secondary.next.len(),
            secondary_bytes: self.secondary.stream.bytes(),
        }
    }

    /// Whether the guest has aborted the connection.
    pub fn is_aborted(&self) -> bool {
        self.aborted.is_some()
    }

    /// Whether the network has heard the last of this connection from the guest, by a FIN or an abort, and nothing waits.
    /// What may come still are repetitions, and acknowledgements of a peer that has not ended its direction.
    pub fn has_ended(&self) -> bool {
        let waits = self.head().is_some() || self.ack_lag.is_some() || self.pending.is_some();
        let unpaired = !self.secondary.next.is_empty() || self.secondary.control_since.is_some();
        (self.finished || self.aborted.is_some()) && !waits && !unpaired && self.secondary.stream.bytes() == 0
    }

    /// A checkpoint: the secondary is a copy of the primary now. Everything held goes to `ordered` with its place in the
    /// order of arrival.
    pub fn flush(&mut self, ordered: &mut Vec<(u64, Frame)>, ctx: &mut Context<'_>) {
        self.diverged = false;
        self.partial = None;
        let mut last = 0;
        loop {
            self.become_copy();
            while let Some(held) = self.held.pop_front() {
                last = held.order;
                self.release(held, ctx);
                ordered.extend(ctx.out.frames.drain(..).map(|frame| (last, frame)));
            }
            let Some(held) = self.later.pop_front() else { break };
            last = held.order;
            self.begin(&held, ctx);
            self.become_copy();
            self.release(held, ctx);
            self.readmit(ctx);
            ordered.extend(ctx.out.frames.drain(..).map(|frame| (last, frame)));
        }
        self.become_copy();
        self.tell_acknowledgement(ctx);
        ordered.extend(ctx.out.frames.drain(..).map(|frame| (last.max(1), frame)));
        self.forget_lags();
        self.held_bytes = 0;
    }

    fn forget_lags(&mut self) {
        (self.ack_lag, self.secondary_misses, self.secondary_repeats) = (None, None, None);
        (self.secondary_insists, self.asked) = (false, 0);
    }

    fn become_copy(&mut self) {
        let s = &mut self.secondary;
        s.ends = self.primary;
        s.stream.clear();
        s.next.clear();
        (s.fin, s.resets, s.control_since) = (None, 0, None);
        s.syn = self.isn.map(|seq| Syn { seq, payload: Vec::new() });
    }

    fn head(&self) -> Option<&Held> {
        self.held.front().or(self.later.front())
    }

    /// After either side has spoken: releases what may leave.
    fn settle(&mut self, ctx: &mut Context<'_>) {
        self.pump(ctx);
        self.tell_acknowledgement(ctx);
        let lags = |goal: u32| self.secondary.ends.ack.is_none_or(|s| after(goal, s));
        if !self.ack_lag.is_some_and(|(goal, _)| lags(goal)) {
            let comparable = self.secondary.ends.ack.is_some() || self.pending.is_some();
            self.ack_lag = self.primary.ack.filter(|&p| comparable && lags(p)).map(|p| (p, ctx.now));
        }
        let misses = self.secondary_insists || !self.secondary.ends.named.is_empty();
        self.secondary_misses = self.ack_lag.filter(|_| misses).and(self.secondary_misses.or(Some(ctx.now)));
    }

    /// A segment inside an incarnation.
    fn ordinary(&mut self, mut held: Held, ctx: &mut Context<'_>) {
        let tcp = held.tcp;
        // The abort was not of this connection (an answer to a stray segment), which goes on.
        self.aborted = None;
        let advanced = self.primary.learn(&held.frame, &tcp);
        match &mut self.template {
            Some(template) => template.update(&held.frame, &held.ip, &tcp),
            None => self.template = Some(Template::new(&held.frame, &held.ip, &tcp)),
        }
        if tcp.is_empty() && !tcp.has(flags::FIN) {
            let Some(known) = self.secondary.ends.ack else {
                self.pending = Some((held.frame, tcp));
                return;
            };
            // What it acknowledges is not true on both sides yet, and what is has been told: sent now, it would look
            // like a sign of loss.
            if after(tcp.ack, known) && advanced && self.told.ack.is_some_and(|told| !after(known, told)) {
                ctx.stats.merged += 1;
                self.pending = Some((held.frame, tcp));
                return;
            }
            self.pending = None;
            return self.release_acknowledgement(held.frame, tcp, ctx);
        }
        if self.released.is_some_and(|released| !after(end_of(&tcp), released)) {
            return self.emit(held, ctx);
        }
        if self.held.iter().any(|h| h.repeats(&held)) {
            ctx.stats.coalesced += 1;
            return;
        }
        held.frame.data.shrink_to(tcp.end);
        self.held_bytes += held.frame.data.len();
        self.held.push_back(held);
    }

    /// A SYN or RST, or anything behind one that waits.
    fn boundary(&mut self, held: Held, ctx: &mut Context<'_>) {
        let tcp = held.tcp;
        if self.later.is_empty() {
            if tcp.has(flags::SYN) && self.isn == Some(tcp.seq) && !tcp.has(flags::RST) {
                self.primary.learn(&held.frame, &tcp);
                return self.emit(held, ctx);
            }
            if tcp.has(flags::RST) && self.aborted == Some((tcp.seq, tcp.ack)) {
                return self.emit(held, ctx);
            }
        }
        if self.later.iter().any(|h| h.repeats(&held) && h.tcp.ack == tcp.ack) {
            ctx.stats.coalesced += 1;
            return;
        }
        self.held_bytes += held.frame.data.len();
        self.later.push_back(held);
    }

    fn pump(&mut self, ctx: &mut Context<'_>) {
        loop {
            self.pump_held(ctx);
            if self.diverged || !self.held.is_empty() {
                return;
            }
            let Some(held) = self.later.pop_front() else { return };
            self.begin(&held, ctx);
            match self.judge_boundary(&held) {
                Verdict::Release => {
                    self.held_bytes -= held.frame.data.len();
                    self.release(held, ctx);
                    self.readmit(ctx);
                }
                Verdict::Differs(reason) => {
                    self.later.push_front(held);
                    return self.diverge(reason, ctx);
                }
                Verdict::Wait | Verdict::Gap => {
                    self.later.push_front(held);
                    return;
                }
            }
        }
    }

    fn pump_held(&mut self, ctx: &mut Context<'_>) {
        let mut index = 0;
        while index < self.held.len() && !self.diverged {
            match self.judge(index, ctx.now) {
                Verdict::Release => {
                    let Some(held) = self.held.remove(index) else { return };
                    self.held_bytes -= held.frame.data.len();
                    self.partial = None;
                    self.release(held, ctx);
                    index = 0;
                }
                Verdict::Gap => index += 1,
                Verdict::Wait if index > 0 => index += 1,
                Verdict::Wait => return,
                Verdict::Differs(reason) => return self.diverge(reason, ctx),
            }
        }
    }

    /// Looks at the held segment at `index`.
    fn judge(&mut self, index: usize, now: i64) -> Verdict {
        let held = &self.held[index];
        let (tcp, s) = (&held.tcp, &self.secondary);
        let released = *self.released.get_or_insert(tcp.data_seq());
        if after(tcp.data_seq(), released) {
            return Verdict::Gap;
        }
        let end = tcp.data_end();
        // A repeated front has left before: only the rest is compared.
        let skip = (released.wrapping_sub(tcp.data_seq()) as usize).min(tcp.len());
        let start = tcp.data_seq().wrapping_add(skip as u32);
        let wanted = &held.frame.data[tcp.payload + skip..tcp.end];
        let (covered, full) = match s.stream.covers(start, wanted) {
            Coverage::Differs => return Verdict::Differs(Reason::ContentDiffers),
            Coverage::Full => (end, true),
            Coverage::Partial(n) => (start.wrapping_add(n as u32), false),
        };
        if s.fin.is_some_and(|fin| after(end, fin)) {
            return Verdict::Differs(Reason::EndDiffers);
        }
        let fin = tcp.has(flags::FIN);
        if fin && full && s.stream.end().is_some_and(|last| after(last, end)) {
            return Verdict::Differs(Reason::EndDiffers);
        }
        if full && (!fin || s.fin == Some(end)) {
            return Verdict::Release;
        }
        if index == 0 {
            self.partial = match self.partial {
                _ if covered == start => None,
                Some((at, since)) if at == covered => Some((at, since)),
                _ => Some((covered, now)),
            };
        }
        Verdict::Wait
    }

    fn judge_boundary(&self, held: &Held) -> Verdict {
        let s = &self.secondary;
        if held.tcp.has(flags::RST) {
            return if s.resets > 0 { Verdict::Release } else { Verdict::Wait };
        }
        match &s.syn {
            None => Verdict::Wait,
            Some(syn) if syn.payload == held.frame.data[held.tcp.payload..held.tcp.end] => Verdict::Release,
            Some(_) => Verdict::Differs(Reason::ContentDiffers),
        }
    }

    /// Enters the incarnation that a SYN begins, once.
    fn begin(&mut self, held: &Held, ctx: &mut Context<'_>) {
        let tcp = &held.tcp;
        if tcp.has(flags::RST) || (self.isn == Some(tcp.seq) && (self.syn_waits || self.released.is_some())) {
            return;
        }
        let next = std::mem::take(&mut self.secondary.next);
        self.secondary = Secondary::default();
        self.primary = Ends::default();
        self.primary.learn(&held.frame, tcp);
        self.told = Told::default();
        self.template = Some(Template::new(&held.frame, &held.ip, tcp));
        (self.isn, self.syn_waits) = (Some(tcp.seq), true);
        (self.released, self.pending, self.aborted, self.partial) = (None, None, None, None);
        self.finished = false;
        self.forget_lags();
        for frame in next {
            if let Some(tcp) = reparse(&frame) {
                self.secondary_segment(frame, tcp, ctx);
            }
        }
    }

    /// Segments behind a boundary that has been released are inside an incarnation now.
    fn readmit(&mut self, ctx: &mut Context<'_>) {
        while self.later.front().is_some_and(|h| h.tcp.flags & BOUNDARY == 0) {
            let Some(held) = self.later.pop_front() else { return };
            self.held_bytes -= held.frame.data.len();
            self.ordinary(held, ctx);
        }
    }

    fn diverge(&mut self, reason: Reason, ctx: &mut Context<'_>) {
        self.diverged = true;
        self.partial = None;
        self.secondary.stream.clear();
        ctx.diverged(Protocol::Tcp, reason);
    }
}

fn reparse(frame: &Frame) -> Option<TcpView> {
    match FrameView::parse(frame).kind {
        Kind::Ip(ip) => TcpView::parse(frame, &ip),
        _ => None,
    }
}
