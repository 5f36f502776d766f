//! Translating the sequence numbers and timestamps of a guest whose connections the network knows by another guest's
//! numbers, without any I/O.
//!
//! While the secondary guest runs beside the primary, each picks its own initial sequence numbers (RFC 9293 section
//! 3.4.1) and timestamp offsets (RFC 7323 section 5.4). The network sees the primary's; this engine learns the difference
//! when a handshake completes, and from then on the secondary speaks and hears in the primary's numbers. After a failover
//! the connections live on by the same translation; if the survivor later protects itself again, its table travels with
//! the checkpoint to the new secondary, whose guest then is a copy with the same numbers inside.

mod unacknowledged;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use unacknowledged::Unacknowledged;

use crate::packet::{Fixup, Frame, FrameView, IpView, Kind, TcpView, after, be32, flags, later};

/// The most connections in the table.
pub const MAX_CONNECTIONS: usize = 16384;
/// After a failover, timestamps jump forward by this many ticks (16 s at the common tick of 1 ms): the peer may have seen
/// newer ones from the dead primary than the survivor's clock shows, and drops what is older.
const FAILOVER_TICKS: u32 = 1 << 14;
/// How far behind the handshake the first acknowledgement may stand, in bytes; a stale one is nearly always farther.
const HANDSHAKE_WINDOW: u32 = 1 << 20;
/// A closed connection may be forgotten after this time.
const LINGER_NS: i64 = 60_000_000_000;
/// The most unacknowledged output of all connections that is kept for a failover, in bytes.
const MAX_UNACKNOWLEDGED: usize = 16 << 20;
/// How often (in packets) closed connections are looked for.
const SWEEP: u32 = 4096;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the network to the guest.
    ToGuest,
    /// From the guest to the network.
    FromGuest,
}

/// A connection from the guest's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionKey {
    /// VLAN identifiers, outermost first; 0xffff where there is none.
    pub vlan: [u16; 2],
    /// IPv6, otherwise IPv4 (in the first four bytes of the addresses).
    pub v6: bool,
    /// The guest's address.
    pub guest: [u8; 16],
    /// The peer's address.
    pub peer: [u8; 16],
    /// The guest's port.
    pub guest_port: u16,
    /// The peer's port.
    pub peer_port: u16,
}

/// How the numbers of one connection are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Translation {
    /// The guest's sequence numbers minus the network's.
    pub sequence: u32,
    /// The guest's timestamps minus the network's.
    pub timestamp: u32,
    /// Timestamps that the network saw before this one (in its numbers) were made with another difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier_timestamps: Option<(u32, u32)>,
    /// The guest's SYN (sequence number, timestamp, the sequence number it expects) whose counterpart on the network is
    /// not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<OpenHandshake>,
}

/// A handshake of which the network's numbers are not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OpenHandshake {
    /// The guest's initial sequence number.
    pub isn: u32,
    /// The timestamp in its SYN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u32>,
    /// The peer's first sequence number behind its SYN, if the guest answered one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_next: Option<u32>,
}

/// The table of one rewriter, as it travels with a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewriterTable {
    /// Connections whose numbers differ.
    pub connections: Vec<(ConnectionKey, Translation)>,
}

#[derive(Debug, Default)]
struct Connection {
    translation: Translation,
    /// The guest's initial sequence number, to tell a repeated SYN from a new one.
    isn: Option<u32>,
    /// The latest of the timestamps that the peer echoed, in the network's numbers.
    echoed: Option<u32>,
    unacknowledged: Unacknowledged,
    fins: u8,
    reset: bool,
    used: i64,
}

impl Connection {
    fn is_plain(&self) -> bool {
        self.translation == Translation::default()
    }
    fn is_closed(&self) -> bool {
        self.reset || self.fins == 3
    }
}

/// The engine of one filter-rewriter.
#[derive(Debug, Default)]
pub struct Rewriter {
    connections: HashMap<ConnectionKey, Connection>,
    alone: bool,
    /// Bytes kept in all connections.
    kept: usize,
    since_sweep: u32,
    untracked: u64,
}

impl Rewriter {
    /// An engine for a guest that runs beside a primary.
    pub fn new() -> Self {
        Self::default()
    }

    /// Translates a packet in place. Whatever is not TCP stays as it is. `now` is in nanoseconds of any monotonic clock.
    pub fn process(&mut self, frame: &mut Frame, direction: Direction, now: i64) {
        let view = FrameView::parse(frame);
        let Kind::Ip(ip) = view.kind else { return };
        let Some(tcp) = TcpView::parse(frame, &ip) else { return };
        let key = key_of(&view, &ip, &tcp, direction);
        self.sweep(now);
        if !self.connections.contains_key(&key) && !self.admit(key, &tcp, direction, now) {
            return;
        }
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.used = now;
        let before = connection.unacknowledged.bytes();
        let room = MAX_UNACKNOWLEDGED - (self.kept - before);
        let ours = match direction {
            Direction::FromGuest => connection.guest_speaks(frame, &tcp, self.alone, room),
            Direction::ToGuest => {
                connection.guest_receives(frame, &tcp);
                true
            }
        };
        self.kept = self.kept - before + connection.unacknowledged.bytes();
        if !ours {
            self.connections.remove(&key);
        }
    }

    /// The guest has become a copy of the primary: its connections have the numbers of the primary's guest, so its table
    /// replaces ours (an empty one if the primary translates nothing). It has no more than [`MAX_CONNECTIONS`]; others would be
    /// left out.
    pub fn checkpoint(&mut self, table: &RewriterTable) {
        self.alone = false;
        self.connections.clear();
        self.kept = 0;
        for (key, translation) in table.connections.iter().take(MAX_CONNECTIONS) {
            let isn = translation.open.map(|open| open.isn);
            self.connections.insert(*key, Connection { translation: *translation, isn, ..Connection::default() });
        }
    }

    /// The guest goes on alone: connections that are known keep their translation, new ones need none. What its peers have
    /// not acknowledged comes back, as it is to be said again at once: the words may have died with the primary.
    pub fn failover(&mut self) -> Vec<Frame> {
        let mut again = Vec::new();
        if std::mem::replace(&mut self.alone, true) {
            return again;
        }
        for connection in self.connections.values_mut() {
            connection.outlive_timestamps();
            connection.speak_again(&mut again);
        }
        self.kept = 0;
        self.connections.retain(|_, c| !c.is_plain());
        again
    }

    /// The connections whose numbers inside the guest differ from the network's, without those that closed long before `now`.
    pub fn table(&mut self, now: i64) -> RewriterTable {
        self.forget_closed(now);
        let differing = self.connections.iter().filter(|(_, c)| !c.is_plain());
        RewriterTable { connections: differing.map(|(key, c)| (*key, c.translation)).collect() }
    }

    /// Connections in the table.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Connections that found no room; the next checkpoint heals them.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Makes an entry if this packet needs one.
    fn admit(&mut self, key: ConnectionKey, tcp: &TcpView, direction: Direction, now: i64) -> bool {
        if self.alone || tcp.has(flags::RST) {
            return false;
        }
        let opens = tcp.has(flags::SYN) && direction == Direction::FromGuest;
        if !opens && !tcp.has(flags::ACK) {
            return false;
        }
        if self.connections.len() >= MAX_CONNECTIONS && !self.make_room() {
            self.untracked += 1;
            return false;
        }
        self.connections.insert(key, Connection { used: now, ..Connection::default() });
        true
    }

    fn make_room(&mut self) -> bool {
        let mut ages: Vec<i64> =
            self.connections.values().filter(|c| c.is_plain() || c.is_closed()).map(|c| c.used).collect();
        if ages.is_empty() {
            return false;
        }
        let middle = ages.len() / 2;
        let median = *ages.select_nth_unstable(middle).1;
        self.connections.retain(|_, c| !(c.is_plain() || c.is_closed()) || c.used > median);
        self.count_kept();
        self.connections.len() < MAX_CONNECTIONS
    }

    fn sweep(&mut self, now: i64) {
        self.since_sweep += 1;
        if self.since_sweep >= SWEEP {
            self.forget_closed(now);
        }
    }

    fn forget_closed(&mut self, now: i64) {
        self.since_sweep = 0;
        self.connections.retain(|_, c| !c.is_closed() || now - c.used < LINGER_NS);
        self.count_kept();
    }

    fn count_kept(&mut self) {
        self.kept = self.connections.values().map(|c| c.unacknowledged.bytes()).sum();
    }
}

impl Connection {
    /// The guest sends a packet; false if the connection is no concern of ours any more.
    fn guest_speaks(&mut self, frame: &mut Frame, tcp: &TcpView, alone: bool, room: usize) -> bool {
        if tcp.has(flags::SYN) && !tcp.has(flags::RST) {
            let again = self.isn == Some(tcp.seq);
            if alone && !again {
                // Nobody else's numbers matter for a connection that begins now.
                return false;
            }
            if !again {
                self.begin(frame, tcp);
            }
        }
        if !alone {
            self.unacknowledged.sent(frame, tcp, room);
        }
        // Beside a primary it is the primary's SYN that leaves; ours only says that we answered.
        if alone || !tcp.has(flags::SYN) || tcp.has(flags::RST) {
            self.translate_from_guest(frame, tcp);
        }
        true
    }

    /// After a failover the peer may have seen newer timestamps from the dead primary than the survivor's clock shows.
    fn outlive_timestamps(&mut self) {
        let Some(echoed) = self.echoed else { return };
        let translation = &mut self.translation;
        translation.earlier_timestamps = Some((echoed.wrapping_add(FAILOVER_TICKS / 2), translation.timestamp));
        translation.timestamp = translation.timestamp.wrapping_sub(FAILOVER_TICKS);
    }

    /// Adds what the peer has not acknowledged to `again`, translated.
    fn speak_again(&mut self, again: &mut Vec<Frame>) {
        for mut frame in self.unacknowledged.take() {
            if let Kind::Ip(ip) = FrameView::parse(&frame).kind
                && let Some(tcp) = TcpView::parse(&frame, &ip)
            {
                self.translate_from_guest(&mut frame, &tcp);
                again.push(frame);
            }
        }
    }

    /// The guest sends a SYN that it has not sent before.
    fn begin(&mut self, frame: &Frame, tcp: &TcpView) {
        *self = Self { isn: Some(tcp.seq), used: self.used, ..Self::default() };
        // With data in a SYN the answer does not tell the initial number: it may acknowledge the data or not.
        if tcp.is_empty() {
            self.translation.open = Some(OpenHandshake {
                isn: tcp.seq,
                timestamp: tcp.options(frame).timestamp_values(frame).map(|(value, _)| value),
                peer_next: tcp.has(flags::ACK).then_some(tcp.ack),
            });
        }
    }

    fn translate_from_guest(&mut self, frame: &mut Frame, tcp: &TcpView) {
        if tcp.has(flags::SYN) && !tcp.has(flags::RST) && self.translation.open.is_some() {
            // The network's numbers are not known yet, if there are any.
            return;
        }
        let translation = &self.translation;
        let mut fix = Fixup::new(tcp.at);
        // An abort of something that has no connection carries sequence number zero, which is nobody's.
        if translation.sequence != 0 && !(tcp.has(flags::RST) && tcp.seq == 0) {
            fix.set_u32(frame, tcp.at + 4, tcp.seq.wrapping_sub(translation.sequence));
        }
        if translation.timestamp != 0
            && let Some(at) = tcp.options(frame).timestamps
            && let Some(value) = be32(&frame.data, at)
        {
            fix.set_u32(frame, at, value.wrapping_sub(translation.timestamp));
        }
        fix.finish(frame);
        self.fins |= u8::from(tcp.has(flags::FIN));
        self.reset |= tcp.has(flags::RST);
    }

    fn guest_receives(&mut self, frame: &mut Frame, tcp: &TcpView) {
        self.fins |= u8::from(tcp.has(flags::FIN)) << 1;
        if !tcp.has(flags::ACK) {
            self.reset |= tcp.has(flags::RST);
            return;
        }
        let options = tcp.options(frame);
        let echo = options.timestamp_values(frame).map(|(_, echo)| echo);
        self.complete_handshake(tcp, echo);
        self.reset |= tcp.has(flags::RST);
        self.unacknowledged.acknowledged(tcp.ack.wrapping_add(self.translation.sequence));
        if let Some(echo) = echo {
            self.echoed = Some(self.echoed.map_or(echo, |old| later(old, echo)));
        }
        let translation = &self.translation;
        let mut fix = Fixup::new(tcp.at);
        if translation.sequence != 0 {
            fix.set_u32(frame, tcp.at + 8, tcp.ack.wrapping_add(translation.sequence));
            if let Some(sack) = options.sack {
                for edge in 0..sack.count * 2 {
                    let at = sack.at + edge * 4;
                    if let Some(value) = be32(&frame.data, at) {
                        fix.set_u32(frame, at, value.wrapping_add(translation.sequence));
                    }
                }
            }
        }
        if let (Some(at), Some(echo)) = (options.timestamps, echo) {
            let difference = match translation.earlier_timestamps {
                Some((until, difference)) if after(until, echo) => difference,
                _ => translation.timestamp,
            };
            if difference != 0 {
                fix.set_u32(frame, at + 4, echo.wrapping_add(difference));
            }
        }
        fix.finish(frame);
    }

    /// The first acknowledgement of the guest's SYN names the network's numbers.
    fn complete_handshake(&mut self, tcp: &TcpView, echo: Option<u32>) {
        let Some(open) = self.translation.open else { return };
        if open.peer_next.is_some_and(|next| !tcp.has(flags::SYN) && tcp.seq.wrapping_sub(next) > HANDSHAKE_WINDOW) {
            return;
        }
        self.translation.open = None;
        self.translation.sequence = open.isn.wrapping_add(1).wrapping_sub(tcp.ack);
        if let (Some(own), Some(echo)) = (open.timestamp, echo) {
            self.translation.timestamp = own.wrapping_sub(echo);
        }
    }
}

fn key_of(view: &FrameView, ip: &IpView, tcp: &TcpView, direction: Direction) -> ConnectionKey {
    let mut vlan = [0xffff; 2];
    let count = usize::from(view.tags.count);
    vlan[..count].copy_from_slice(&view.tags.ids[..count]);
    match direction {
        Direction::FromGuest => ConnectionKey {
            vlan,
            v6: ip.v6,
            guest: ip.src,
            peer: ip.dst,
            guest_port: tcp.src_port,
            peer_port: tcp.dst_port,
        },
        Direction::ToGuest => ConnectionKey {
            vlan,
            v6: ip.v6,
            guest: ip.dst,
            peer: ip.src,
            guest_port: tcp.dst_port,
            peer_port: tcp.src_port,
        },
    }
}

#[cfg(test)]
mod tests;
