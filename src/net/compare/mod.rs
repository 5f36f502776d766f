//! The comparing of two guests' output, without any I/O: what the primary guest sent is held until the secondary guest
//! has produced the same, then released to the network.
//!
//! Release goes by **cumulative state**, not by pairing packets. For TCP (`tcp`), a payload byte leaves when the
//! secondary produced an equal byte for the same sequence number, however either side cut its segments, and an
//! acknowledgement never runs ahead of what the secondary acknowledged. Everything else is datagrams (`datagram`),
//! matched by content in any order. The promise: whatever the outside has seen is true on the survivor.
//!
//! Time is passed in (nanoseconds of any monotonic clock), output is collected in [`Output`]: the engine is
//! deterministic.

mod datagram;
mod flows;
mod fragment;
mod gate;
mod stats;
mod tcp;

pub use flows::MAX_CONNECTIONS;
pub use gate::IdentityGate;
pub use stats::{CompareStats, Protocol};

use std::collections::VecDeque;
use std::sync::Arc;

use crate::packet::{
    Frame, FrameView, IpView, Kind, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, TcpView, VlanTags,
};
use datagram::DatagramConn;
use flows::{Flow, Flows};
use fragment::{Datagram, Reassembler};

/// How often a flow is looked at that waits for something for longer than the patience (ns).
const VIGIL_NS: i64 = 100_000_000;
/// Frames kept back while this side may not speak for the VM.
const MAX_GATED: usize = 64;

/// Settings of a [`CompareEngine`]; all may change while it runs.
#[derive(Clone, Copy, Debug)]
pub struct CompareConfig {
    /// A packet that waits longer than this for its counterpart causes a checkpoint (ns).
    pub timeout_ns: i64,
    /// Packets queued for one connection before its socket is no longer read.
    pub max_queue: usize,
    /// Bytes queued on one side before its socket is no longer read.
    pub max_bytes: usize,
    /// How long to wait for a counterpart that may have been reordered or cut differently, once the secondary has said
    /// something else (ns).
    pub patience_ns: i64,
}

impl Default for CompareConfig {
    fn default() -> Self {
        Self { timeout_ns: 3_000_000_000, max_queue: 1024, max_bytes: 32 << 20, patience_ns: 5_000_000 }
    }
}

/// Why a checkpoint is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The secondary produced other bytes.
    ContentDiffers,
    /// One side ended or aborted a connection that the other goes on with.
    EndDiffers,
    /// A packet of one side found no counterpart in time.
    Unanswered,
    /// The secondary did not acknowledge in time what the primary acknowledged.
    AcknowledgementLags,
    /// No room for another connection.
    TooManyConnections,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::ContentDiffers, Self::EndDiffers, Self::Unanswered, Self::AcknowledgementLags, Self::TooManyConnections];

    /// The name in statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ContentDiffers => "content-differs",
            Self::EndDiffers => "end-differs",
            Self::Unanswered => "unanswered",
            Self::AcknowledgementLags => "acknowledgement-lags",
            Self::TooManyConnections => "too-many-connections",
        }
    }
}

/// A divergence that only a checkpoint heals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The protocol it was seen in.
    pub protocol: Protocol,
    /// What was seen.
    pub reason: Reason,
}

/// What the engine wants done.
#[derive(Debug, Default)]
pub struct Output {
    /// Frames for the network, in order.
    pub frames: Vec<Frame>,
    /// Set if a checkpoint is needed (the latest cause).
    pub checkpoint: Option<Divergence>,
}

/// Who talks to whom, from the guest's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    tags: VlanTags,
    v6: bool,
    proto: u8,
    src: [u8; 16],
    dst: [u8; 16],
    ports: [u8; 4],
}

/// What a flow holds in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    primary_packets: usize,
    primary_bytes: usize,
    secondary_packets: usize,
    secondary_bytes: usize,
}

/// What every flow needs from the engine while it works.
struct Context<'a> {
    now: i64,
    config: CompareConfig,
    out: &'a mut Output,
    stats: &'a mut CompareStats,
    order: &'a mut u64,
}

impl Context<'_> {
    fn diverged(&mut self, protocol: Protocol, reason: Reason) {
        self.stats.count_divergence(protocol, reason);
        self.out.checkpoint = Some(Divergence { protocol, reason });
    }

    fn next_order(&mut self) -> u64 {
        *self.order += 1;
        *self.order
    }

    fn release(&mut self, frame: Frame) {
        self.stats.released += 1;
        self.out.frames.push(frame);
    }
}

/// The comparing engine of one colo-compare object.
#[derive(Debug)]
pub struct CompareEngine {
    config: CompareConfig,
    flows: Flows,
    gate: Arc<IdentityGate>,
    gated: VecDeque<Frame>,
    primary_fragments: Reassembler,
    secondary_fragments: Reassembler,
    total: Load,
    over: [usize; 2],
    waiting: VecDeque<(i64, Key)>,
    vigils: VecDeque<(i64, Key)>,
    stats: CompareStats,
    order: u64,
}

impl CompareEngine {
    /// A new engine. `gate` tells whether this side may speak for the VM.
    pub fn new(config: CompareConfig, gate: Arc<IdentityGate>) -> Self {
        Self {
            config,
            flows: Flows::default(),
            gate,
            gated: VecDeque::new(),
            primary_fragments: Reassembler::default(),
            secondary_fragments: Reassembler::default(),
            total: Load::default(),
            over: [0; 2],
            waiting: VecDeque::new(),
            vigils: VecDeque::new(),
            stats: CompareStats::default(),
            order: 0,
        }
    }

    /// The settings.
    pub fn config(&self) -> CompareConfig {
        self.config
    }

    /// Changes the settings.
    pub fn set_config(&mut self, config: CompareConfig) {
        self.config = config;
        let limit = config.max_queue;
        self.over = [0; 2];
        for entry in self.flows.all() {
            self.over[0] += usize::from(entry.load.primary_packets > limit);
            self.over[1] += usize::from(entry.load.secondary_packets > limit);
        }
    }

    /// A frame that the primary guest sent.
    pub fn primary(&mut self, frame: Frame, now: i64, out: &mut Output) {
        self.stats.primary_frames += 1;
        let view = FrameView::parse(&frame);
        let ip = match view.kind {
            Kind::Ip(ip) if !view.is_neighbour_discovery(&frame) => ip,
            // Not compared: it tells who has which address, or nothing that we understand.
            _ => return self.pass_uncompared(frame, out),
        };
        if ip.fragment.is_some() {
            if let Some(datagram) = self.primary_fragments.push(frame, view.tags, ip, now) {
                self.primary_datagram(datagram, now, out);
            }
            return;
        }
        match TcpView::parse(&frame, &ip) {
            Some(tcp) if tcp.src_port | tcp.dst_port != 0 => {
                let key = key_of(view.tags, &ip, &frame.data[ip.l4..ip.end]);
                self.with_flow(key, now, out, true, |flow, ctx| {
                    if let Flow::Tcp(conn) = flow {
                        conn.primary(frame, ip, tcp, None, ctx);
                    }
                });
            }
            _ => self.primary_datagram(Datagram::whole(frame, view.tags, ip), now, out),
        }
    }

    /// A frame that the secondary guest sent; it never leaves.
    pub fn secondary(&mut self, frame: Frame, now: i64, out: &mut Output) {
        self.stats.secondary_frames += 1;
        let view = FrameView::parse(&frame);
        let ip = match view.kind {
            Kind::Ip(ip) if !view.is_neighbour_discovery(&frame) => ip,
            _ => {
                self.stats.secondary_ignored += 1;
                return;
            }
        };
        if ip.fragment.is_some() {
            if let Some(datagram) = self.secondary_fragments.push(frame, view.tags, ip, now) {
                self.secondary_datagram(datagram, now, out);
            }
            return;
        }
        match TcpView::parse(&frame, &ip) {
            Some(tcp) if tcp.src_port | tcp.dst_port != 0 => {
                let key = key_of(view.tags, &ip, &frame.data[ip.l4..ip.end]);
                self.with_flow(key, now, out, false, |flow, ctx| {
                    if let Flow::Tcp(conn) = flow {
                        conn.secondary(frame, tcp, ctx);
                    }
                });
            }
            _ => self.secondary_datagram(Datagram::whole(frame, view.tags, ip), now, out),
        }
    }

    /// Does what is due at `now`: see [`CompareEngine::next_deadline`].
    pub fn tick(&mut self, now: i64, out: &mut Output) {
        while self.waiting.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.waiting.pop_front() else { break };
            if let Some(entry) = self.flows.get_mut(&key) {
                entry.armed = false;
                self.run_flow(key, now, out, false, |flow, ctx| match flow {
                    Flow::Tcp(conn) => conn.patience_over(ctx),
                    Flow::Datagram(conn) => conn.patience_over(ctx),
                });
            }
        }
        while self.vigils.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.vigils.pop_front() else { break };
            if let Some(entry) = self.flows.get_mut(&key) {
                entry.watched = false;
                self.run_flow(key, now, out, false, |flow, ctx| {
                    if let Flow::Tcp(conn) = flow {
                        conn.keep_vigil(ctx);
                    }
                });
            }
        }
        self.release_gated(out);
    }

    /// When [`CompareEngine::tick`] should be called next, if it has anything to wait for.
    pub fn next_deadline(&self) -> Option<i64> {
        self.waiting.front().into_iter().chain(self.vigils.front()).map(|(at, _)| *at).min()
    }

    /// Asks for a checkpoint if any packet waits longer than the time-out. To be called periodically.
    pub fn scan(&mut self, now: i64, out: &mut Output) {
        let limit = now - self.config.timeout_ns;
        let stale = |since: Option<i64>| since.is_some_and(|t| t <= limit);
        let mut found = None;
        for entry in self.flows.touched() {
            let seen = match &entry.flow {
                Flow::Tcp(conn) if stale(conn.ack_lag_since()) => {
                    Some(Divergence { protocol: Protocol::Tcp, reason: Reason::AcknowledgementLags })
                }
                Flow::Tcp(conn) if stale(conn.oldest()) => {
                    Some(Divergence { protocol: Protocol::Tcp, reason: Reason::Unanswered })
                }
                Flow::Datagram(conn) if stale(conn.oldest()) => {
                    Some(Divergence { protocol: conn.protocol, reason: Reason::Unanswered })
                }
                _ => None,
            };
            found = found.or(seen);
        }
        for fragments in [&self.primary_fragments, &self.secondary_fragments] {
            if stale(fragments.oldest()) {
                found = found.or(Some(Divergence { protocol: Protocol::Other, reason: Reason::Unanswered }));
            }
        }
        if let Some(divergence) = found {
            self.stats.count_divergence(divergence.protocol, divergence.reason);
            out.checkpoint = Some(divergence);
        }
        self.flows.forget_ended(now);
        self.release_gated(out);
    }

    /// Whether anything waits for the secondary's word or a checkpoint.
    pub fn waits(&self) -> bool {
        self.flows.touched().any(|entry| match &entry.flow {
            Flow::Tcp(conn) => conn.waits(),
            Flow::Datagram(_) => entry.load.primary_packets > 0,
        })
    }

    /// The secondary guest has become a copy of the primary (all of a checkpoint has arrived there): releases everything
    /// held, in the order in which it came, forgets what the secondary had said, and takes the primary's
    /// acknowledgements as the secondary's.
    pub fn flush(&mut self, now: i64, out: &mut Output) {
        self.stats.flushes += 1;
        let mut collected = Output::default();
        let mut ordered: Vec<(u64, Frame)> = Vec::new();
        let mut ctx =
            Context { now, config: self.config, out: &mut collected, stats: &mut self.stats, order: &mut self.order };
        self.flows.untouch(|flow| match flow {
            Flow::Tcp(conn) => conn.flush(&mut ordered, &mut ctx),
            Flow::Datagram(conn) => conn.flush(&mut ordered, &mut ctx),
        });
        ordered.sort_by_key(|(order, _)| *order);
        out.frames.extend(ordered.into_iter().map(|(_, frame)| frame));
        let fragments = self.primary_fragments.take();
        self.stats.released += fragments.len() as u64;
        out.frames.extend(fragments);
        self.secondary_fragments.take();
        self.waiting.clear();
        self.vigils.clear();
        self.total = Load::default();
        self.over = [0; 2];
    }

    /// Whether the primary's socket should be read: false while a queue is full (back-pressure).
    pub fn primary_has_room(&self) -> bool {
        self.over[0] == 0
            && self.flows.len() <= MAX_CONNECTIONS
            && self.total.primary_bytes + self.primary_fragments.bytes() < self.config.max_bytes
    }

    /// Whether the secondary's socket should be read.
    pub fn secondary_has_room(&self) -> bool {
        self.over[1] == 0 && self.total.secondary_bytes < self.config.max_bytes
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> CompareStats {
        CompareStats {
            connections: self.flows.len(),
            held_packets: self.total.primary_packets,
            held_bytes: self.total.primary_bytes,
            ahead_packets: self.total.secondary_packets,
            ahead_bytes: self.total.secondary_bytes,
            ..self.stats.clone()
        }
    }

    fn primary_datagram(&mut self, datagram: Datagram, now: i64, out: &mut Output) {
        // A fragmented segment is compared like any other, and leaves in pieces of the size it came in.
        if let Some((frame, ip, tcp)) = datagram.as_tcp() {
            let key = key_of(datagram.tags, &ip, &frame.data[ip.l4..ip.end]);
            let limit = datagram.frames.iter().map(|f| f.data.len()).max();
            return self.with_flow(key, now, out, true, |flow, ctx| {
                if let Flow::Tcp(conn) = flow {
                    conn.primary(frame, ip, tcp, limit, ctx);
                }
            });
        }
        let key = datagram_key(&datagram);
        self.with_flow(key, now, out, true, |flow, ctx| {
            if let Flow::Datagram(conn) = flow {
                conn.primary(datagram, ctx);
            }
        });
    }

    fn secondary_datagram(&mut self, datagram: Datagram, now: i64, out: &mut Output) {
        if let Some((frame, ip, tcp)) = datagram.as_tcp() {
            let key = key_of(datagram.tags, &ip, &frame.data[ip.l4..ip.end]);
            return self.with_flow(key, now, out, false, |flow, ctx| {
                if let Flow::Tcp(conn) = flow {
                    conn.secondary(frame, tcp, ctx);
                }
            });
        }
        let key = datagram_key(&datagram);
        self.with_flow(key, now, out, false, |flow, ctx| {
            if let Flow::Datagram(conn) = flow {
                conn.secondary(datagram, ctx);
            }
        });
    }

    fn pass_uncompared(&mut self, frame: Frame, out: &mut Output) {
        if self.gate.is_open() {
            self.release_gated(out);
            self.stats.passed += 1;
            out.frames.push(frame);
            return;
        }
        if self.gated.len() == MAX_GATED {
            self.gated.pop_front();
            self.stats.gate_dropped += 1;
        }
        self.gated.push_back(frame);
    }

    fn release_gated(&mut self, out: &mut Output) {
        if !self.gated.is_empty() && self.gate.is_open() {
            self.stats.passed += self.gated.len() as u64;
            out.frames.extend(self.gated.drain(..));
        }
    }

    fn with_flow(
        &mut self,
        key: Key,
        now: i64,
        out: &mut Output,
        primary: bool,
        f: impl FnOnce(&mut Flow, &mut Context<'_>),
    ) {
        if !self.flows.contains(&key) {
            if self.flows.len() >= MAX_CONNECTIONS {
                self.stats.forgotten += self.flows.make_room(now) as u64;
            }
            if self.flows.len() >= MAX_CONNECTIONS {
                // All of them wait for something: a checkpoint frees them. The primary's socket is not read until then;
                // what had been read is kept, and the secondary's word is not needed for a checkpoint.
                self.stats.count_divergence(Protocol::Other, Reason::TooManyConnections);
                out.checkpoint = Some(Divergence { protocol: Protocol::Other, reason: Reason::TooManyConnections });
                if !primary {
                    self.stats.secondary_ignored += 1;
                    return;
                }
            }
            let flow = if key.proto == PROTO_TCP && key.ports != [0; 4] {
                Flow::Tcp(Box::default())
            } else {
                Flow::Datagram(DatagramConn::new(protocol_of(key.proto)))
            };
            self.flows.insert(key, flow, now);
        }
        self.run_flow(key, now, out, true, f);
    }

    /// Works on a flow; `spoken` if a packet came on it.
    fn run_flow(
        &mut self,
        key: Key,
        now: i64,
        out: &mut Output,
        spoken: bool,
        f: impl FnOnce(&mut Flow, &mut Context<'_>),
    ) {
        let Some(entry) = self.flows.get_mut(&key) else { return };
        if spoken {
            entry.used = now;
        }
        let mut ctx = Context { now, config: self.config, out, stats: &mut self.stats, order: &mut self.order };
        f(&mut entry.flow, &mut ctx);
        let (load, wants_patience, wants_vigil) = match &entry.flow {
            Flow::Tcp(conn) => (conn.load(), conn.wants_patience(), conn.wants_vigil()),
            Flow::Datagram(conn) => (conn.load(), conn.wants_patience(), false),
        };
        let old = std::mem::replace(&mut entry.load, load);
        if wants_patience && !entry.armed {
            entry.armed = true;
            self.waiting.push_back((now + self.config.patience_ns, key));
        }
        if wants_vigil && !entry.watched {
            entry.watched = true;
            self.vigils.push_back((now + VIGIL_NS, key));
        }
        let total = &mut self.total;
        total.primary_packets = total.primary_packets - old.primary_packets + load.primary_packets;
        total.primary_bytes = total.primary_bytes - old.primary_bytes + load.primary_bytes;
        total.secondary_packets = total.secondary_packets - old.secondary_packets + load.secondary_packets;
        total.secondary_bytes = total.secondary_bytes - old.secondary_bytes + load.secondary_bytes;
        let limit = self.config.max_queue;
        for (over, old, new) in
            [(0, old.primary_packets, load.primary_packets), (1, old.secondary_packets, load.secondary_packets)]
        {
            self.over[over] -= usize::from(old > limit);
            self.over[over] += usize::from(new > limit);
        }
        self.stats.held_packets_max = self.stats.held_packets_max.max(self.total.primary_packets);
        self.flows.settle(key, now);
    }
}

fn protocol_of(proto: u8) -> Protocol {
    match proto {
        PROTO_TCP => Protocol::Tcp,
        PROTO_UDP => Protocol::Udp,
        PROTO_ICMP | PROTO_ICMPV6 => Protocol::Icmp,
        _ => Protocol::Other,
    }
}

/// The key of a packet with this payload. TCP, UDP, DCCP, ESP, SCTP and UDP-Lite start with what tells flows apart.
fn key_of(tags: VlanTags, ip: &IpView, l4: &[u8]) -> Key {
    let at = match ip.proto {
        PROTO_TCP | PROTO_UDP | 33 | 50 | 132 | 136 => 0,
        51 => 4,
        _ => usize::MAX - 4,
    };
    let ports = l4.get(at..at + 4).and_then(|p| p.try_into().ok()).unwrap_or([0; 4]);
    Key { tags, v6: ip.v6, proto: ip.proto, src: ip.src, dst: ip.dst, ports }
}

/// Segments that cannot be read as TCP go with the datagrams: ports zero tells them apart.
fn datagram_key(datagram: &Datagram) -> Key {
    let mut key = key_of(datagram.tags, &datagram.ip, datagram.payload());
    if key.proto == PROTO_TCP {
        key.ports = [0; 4];
    }
    key
}

#[cfg(test)]
mod tests;
