//! What the network gets to see of a connection: segments as they may be sent, and acknowledgements of what both guests have.

use super::emit::{Template, back_piece, finish, front_piece, right_edge};
use super::ends::Blocks;
use super::{Held, TcpConn, end_of};
use crate::compare::Context;
use crate::packet::{Frame, IpView, TcpView, after, earlier, flags, later};

/// The blocks of a selective acknowledgement that always fit: those that the peer must have been told.
const NEWEST: usize = 3;

impl TcpConn {
    /// The network gets to see a held segment.
    pub(super) fn release(&mut self, held: Held, ctx: &mut Context<'_>) {
        let (tcp, s) = (held.tcp, &mut self.secondary);
        if tcp.has(flags::RST) {
            self.aborted = Some((tcp.seq, tcp.ack));
            s.resets = s.resets.saturating_sub(1);
            s.stream.clear();
            (s.fin, s.control_since) = (None, None);
        } else {
            let end = end_of(&tcp);
            let released = self.released.map_or(end, |old| later(old, end));
            self.released = Some(released);
            (self.released_at, self.asked, self.secondary_repeats) = (ctx.now, 0, None);
            self.finished |= tcp.has(flags::FIN);
            s.stream.trim(released);
            if tcp.has(flags::SYN) {
                self.syn_waits = false;
            }
            if s.fin.is_some_and(|fin| after(released, fin)) {
                s.fin = None;
                if s.resets == 0 {
                    s.control_since = None;
                }
            }
        }
        self.emit(held, ctx);
    }

    /// Lets the head of the queue leave as far as `covered`; the rest stays.
    pub(super) fn release_front(&mut self, covered: u32, ctx: &mut Context<'_>) {
        self.partial = None;
        let Some(held) = self.held.front_mut() else { return };
        let keep = covered.wrapping_sub(held.tcp.data_seq()) as usize;
        let front = front_piece(&held.frame, &held.ip, &held.tcp, keep);
        let (Some(front), Some(back)) = (front, back_piece(&held.frame, &held.ip, &held.tcp, keep)) else { return };
        self.held_bytes = self.held_bytes - held.frame.data.len() + back.0.data.len();
        (held.frame, held.tcp) = back;
        let (ip, since, order, limit) = (held.ip, held.since, held.order, held.limit);
        held.ip.end = held.tcp.end;
        ctx.stats.split += 1;
        let front = Held { ip: IpView { end: front.1.end, ..ip }, frame: front.0, tcp: front.1, since, order, limit };
        self.release(front, ctx);
    }

    /// Sends a segment as it may be sent now.
    pub(super) fn emit(&mut self, mut held: Held, ctx: &mut Context<'_>) {
        while let Some(limit) = held.limit.filter(|&limit| held.frame.data.len() > limit) {
            let keep = limit.saturating_sub(held.tcp.payload).max(8);
            let pieces = front_piece(&held.frame, &held.ip, &held.tcp, keep).zip(back_piece(
                &held.frame,
                &held.ip,
                &held.tcp,
                keep,
            ));
            let Some((mut front, back)) = pieces else { break };
            ctx.stats.split += 1;
            self.finish_and_send(&mut front.0, &front.1, None, ctx);
            ctx.release(front.0);
            (held.frame, held.tcp) = back;
            held.ip.end = held.tcp.end;
        }
        self.finish_and_send(&mut held.frame, &held.tcp, None, ctx);
        ctx.release(held.frame);
    }

    pub(super) fn release_acknowledgement(&mut self, mut frame: Frame, tcp: TcpView, ctx: &mut Context<'_>) {
        // The network has not seen what the guest sent before it.
        let seq = self.released.filter(|&released| after(tcp.seq, released));
        self.finish_and_send(&mut frame, &tcp, seq, ctx);
        ctx.release(frame);
    }

    pub(super) fn finish_and_send(
        &mut self,
        frame: &mut Frame,
        tcp: &TcpView,
        seq: Option<u32>,
        ctx: &mut Context<'_>,
    ) {
        let changed = finish(frame, tcp, &self.primary, &self.secondary.ends, &mut self.told, seq);
        ctx.stats.clamped += u64::from(changed.clamped);
    }

    /// Tells the network that both sides have acknowledged more, or have more room, if nothing has carried it.
    pub(super) fn tell_acknowledgement(&mut self, ctx: &mut Context<'_>) {
        let (Some(p), Some(s)) = (self.primary.ack, self.secondary.ends.ack) else { return };
        if self.syn_waits || self.aborted.is_some() || (self.told.ack.is_none() && self.pending.is_none()) {
            return;
        }
        let both = if after(p, s) { s } else { p };
        let acknowledges_more = self.told.ack.is_none_or(|told| after(both, told));
        let names = self.named_by_both(both);
        let names_more = names.iter().take(NEWEST).any(|block| !self.told.named.contain(block));
        if !acknowledges_more && !names_more && !self.told.opens(right_edge(&self.primary, &self.secondary.ends)) {
            return;
        }
        match self.pending.take() {
            Some((frame, tcp)) if !names_more => self.release_acknowledgement(frame, tcp, ctx),
            _ => self.repeat_acknowledgement(ctx),
        }
    }

    /// What both guests have got behind `both`, up to which they have acknowledged everything, the newest first: what one of them
    /// misses, the peer has to send again, and the rest it has not.
    pub(super) fn named_by_both(&self, both: u32) -> Blocks {
        let mut names = Blocks::default();
        let (p, s) = (&self.primary, &self.secondary.ends);
        let (named, other) = if s.ack == Some(both) { (&s.named, p) } else { (&p.named, s) };
        if !named.is_empty() {
            let parts: Vec<_> = named.iter().filter_map(|block| other.part_of(block)).collect();
            parts.into_iter().rev().filter(|block| after(block.0, both)).for_each(|block| names.add(block));
        }
        names
    }

    /// Sends a pure acknowledgement of our own making.
    pub(super) fn repeat_acknowledgement(&mut self, ctx: &mut Context<'_>) {
        if self.told.ack.is_none() || self.syn_waits {
            return;
        }
        let unsent = self.released.or(self.held.front().map(|h| h.tcp.seq));
        if let Some(seq) = unsent.or(self.template.as_ref().map(Template::seq)) {
            self.acknowledge_from(seq, ctx);
        }
    }

    /// The peer's acknowledgement may have been lost on its way to the secondary alone. Nobody would ever say it again, since what
    /// the primary says next is held. So the peer is asked to: it answers at once to a segment from before its window, as a
    /// keep-alive is (RFC 9293 section 3.8.4).
    pub(super) fn ask_again(&mut self, ctx: &mut Context<'_>) {
        if let Some(released) = self.released.filter(|_| self.told.ack.is_some() && !self.syn_waits) {
            self.acknowledge_from(released.wrapping_sub(1), ctx);
        }
    }

    /// Sends a pure acknowledgement with this sequence number.
    pub(super) fn acknowledge_from(&mut self, seq: u32, ctx: &mut Context<'_>) {
        let both = self.primary.ack.zip(self.secondary.ends.ack).map(|(p, s)| earlier(p, s));
        let names = both.map_or(Blocks::default(), |both| self.named_by_both(both));
        let made = self.template.as_ref().and_then(|t| t.acknowledgement(seq, &self.primary, &self.told, &names));
        let Some((frame, tcp)) = made else { return };
        ctx.stats.synthesised += 1;
        self.release_acknowledgement(frame, tcp, ctx);
    }
}
