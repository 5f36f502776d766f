//! What the engine counts, for `query-colo-status`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Reason;

/// The protocols that divergences are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// Everything else.
    Other,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Icmp, Self::Other];

    /// The name in statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Other => "other",
        }
    }
}

/// Counters since the engine was made, and the depth of its queues now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CompareStats {
    /// Frames of the primary guest.
    pub primary_frames: u64,
    /// Frames of the secondary guest.
    pub secondary_frames: u64,
    /// Compared frames that left.
    pub released: u64,
    /// Frames that left uncompared (ARP, neighbour discovery, unknown protocols).
    pub passed: u64,
    /// Frames of the secondary that nothing is compared with.
    pub secondary_ignored: u64,
    /// Segments whose acknowledgement was lowered to the secondary's.
    pub clamped: u64,
    /// Pure acknowledgements that say nothing new yet and were merged into a later one.
    pub merged: u64,
    /// Pure acknowledgements made when the secondary caught up, or has not heard what its peer acknowledged.
    pub synthesised: u64,
    /// Retransmissions of segments that are still held, merged with them.
    pub coalesced: u64,
    /// Segments that left in pieces.
    pub split: u64,
    /// Checkpoints that released everything.
    pub flushes: u64,
    /// Connections forgotten for lack of room.
    pub forgotten: u64,
    /// Uncompared frames lost while this side may not speak.
    pub gate_dropped: u64,
    /// Divergences by protocol.
    pub divergences: BTreeMap<&'static str, u64>,
    /// Divergences by reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Connections tracked now.
    pub connections: usize,
    /// Packets held now.
    pub held_packets: usize,
    /// Bytes held now.
    pub held_bytes: usize,
    /// The most packets ever held.
    pub held_packets_max: usize,
    /// Packets of the secondary that wait for the primary now.
    pub ahead_packets: usize,
    /// Bytes of the secondary that wait for the primary now.
    pub ahead_bytes: usize,
}

impl CompareStats {
    pub(super) fn count_divergence(&mut self, protocol: Protocol, reason: Reason) {
        *self.divergences.entry(protocol.as_str()).or_default() += 1;
        *self.reasons.entry(reason.as_str()).or_default() += 1;
    }
}
