//! Figures of checkpoints.

use super::{CheckpointCause, Style};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// How many pauses are kept for the median and the 99th percentile.
const KEPT: usize = 1024;

/// The protocols in which two sides may differ, by the names of their figures.
const PROTOCOLS: [&str; 4] = ["tcp", "udp", "icmp", "other"];

/// What one checkpoint was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointFigures {
    /// Which one of the pair it was, from 1.
    pub number: u64,
    /// Why it was made; the secondary does not know.
    pub cause: Option<CheckpointCause>,
    /// The protocol in which the two sides differed, if that was the cause.
    pub protocol: Option<&'static str>,
    /// How long the guest stood still.
    pub pause: Duration,
    /// Bytes that were sent or received for it, with what went ahead.
    pub bytes: u64,
    /// Pages that were sent or copied for it, with what went ahead.
    pub pages: u64,
}

impl CheckpointFigures {
    /// The members of the event, the pause in microseconds.
    pub(crate) fn to_json(&self) -> Value {
        let mut data = json!({
            "number": self.number, "pause": micros(self.pause), "bytes": self.bytes, "pages": self.pages,
        });
        if let Some(cause) = self.cause {
            data["cause"] = cause.as_str().into();
        }
        if let Some(protocol) = self.protocol {
            data["protocol"] = protocol.into();
        }
        data
    }
}

/// Figures of the checkpoints of one pair.
#[derive(Clone, Debug, Default)]
pub struct CheckpointStatistics {
    /// How many were made.
    pub count: u64,
    /// How many for each cause, in the order of [`CheckpointCause::ALL`].
    pub causes: [u64; CheckpointCause::ALL.len()],
    /// How many because of a difference, by protocol.
    protocols: [u64; PROTOCOLS.len()],
    /// Bytes of all of them (of the primary, sent; of the secondary, received).
    pub bytes: u64,
    /// Pages of all of them (of the primary, sent; of the secondary, copied).
    pub pages: u64,
    /// The last one.
    pub last: CheckpointFigures,
    /// The longest pause.
    pub longest_pause: Duration,
    /// All pauses together.
    pub total_pause: Duration,
    /// How the secondary keeps up.
    pub style: Style,
    /// How often that has changed.
    pub switches: u64,
    /// How long output was buffered, up to when that last began or ended.
    buffered: Duration,
    buffered_since: Option<Instant>,
    recent: Vec<Duration>,
}

impl CheckpointStatistics {
    /// Takes one into account, and numbers it.
    pub(super) fn note(&mut self, mut figures: CheckpointFigures) {
        if let Some(cause) = figures.cause {
            self.causes[cause as usize] += 1;
        }
        if let Some(at) = PROTOCOLS.iter().position(|p| Some(*p) == figures.protocol) {
            self.protocols[at] += 1;
        }
        if self.recent.len() < KEPT {
            self.recent.push(figures.pause);
        } else {
            self.recent[(self.count % KEPT as u64) as usize] = figures.pause;
        }
        self.count += 1;
        self.bytes += figures.bytes;
        self.pages += figures.pages;
        self.longest_pause = self.longest_pause.max(figures.pause);
        self.total_pause += figures.pause;
        figures.number = self.count;
        self.last = figures;
    }

    /// The checkpoint at hand is made, and how the guests go on is known.
    pub(super) fn go_on_in(&mut self, style: Style, now: Instant) {
        if style == std::mem::replace(&mut self.style, style) {
            return;
        }
        self.switches += 1;
        self.buffered = self.buffered_time(now);
        self.buffered_since = (style == Style::Buffered).then_some(now);
    }

    /// How long output was buffered, altogether.
    fn buffered_time(&self, now: Instant) -> Duration {
        self.buffered + self.buffered_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The pause that `percent` of the last thousand did not exceed.
    pub fn pause_percentile(&self, percent: usize) -> Duration {
        let mut recent = self.recent.clone();
        recent.sort_unstable();
        let rank = (recent.len() * percent).div_ceil(100).max(1);
        recent.get(rank - 1).copied().unwrap_or_default()
    }

    /// The figures as an object (the members of `COLOStatistics` that are about checkpoints); pauses in microseconds.
    pub fn to_json(&self) -> Value {
        let causes = CheckpointCause::ALL.iter().zip(self.causes);
        let causes: Map<_, _> = causes.map(|(c, n)| (c.as_str().to_owned(), n.into())).collect();
        let protocols = PROTOCOLS.iter().zip(self.protocols);
        let protocols: Map<_, _> = protocols.map(|(p, n)| ((*p).to_owned(), n.into())).collect();
        json!({
            "checkpoints": self.count, "causes": causes, "protocols": protocols,
            "bytes": self.bytes, "pages": self.pages, "last-bytes": self.last.bytes, "last-pages": self.last.pages,
            "style": self.style.as_str(), "switches": self.switches,
            "buffered-time": self.buffered_time(Instant::now()).as_millis() as u64,
            "pause": {
                "last": micros(self.last.pause), "median": micros(self.pause_percentile(50)),
                "p99": micros(self.pause_percentile(99)), "max": micros(self.longest_pause),
                "total": micros(self.total_pause),
            },
        })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_last_thousand_pauses() {
        let mut statistics = CheckpointStatistics::default();
        assert_eq!(statistics.pause_percentile(99), Duration::ZERO);
        let pause = |us| CheckpointFigures { pause: Duration::from_micros(us), ..CheckpointFigures::default() };
        for us in [500_000].into_iter().chain(1..=KEPT as u64) {
            statistics.note(pause(us));
        }
        let shown = &statistics.to_json()["pause"];
        assert_eq!(*shown, json!({"last": 1024, "median": 512, "p99": 1014, "max": 500_000, "total": 1_024_800}));
    }

    #[test]
    fn checkpoints_are_counted_by_cause_and_by_the_protocol_that_differed() {
        let mut statistics = CheckpointStatistics::default();
        let mut note = |cause, protocol| {
            statistics.note(CheckpointFigures { cause: Some(cause), protocol, ..CheckpointFigures::default() });
        };
        note(CheckpointCause::Timer, None);
        note(CheckpointCause::Mismatch, Some("tcp"));
        note(CheckpointCause::Timeout, Some("udp"));
        let shown = statistics.to_json();
        let causes =
            json!({"timer": 1, "mismatch": 1, "timeout": 1, "full": 0, "parameter": 0, "command": 0, "output": 0});
        assert_eq!((&shown["causes"], statistics.last.number), (&causes, 3));
        assert_eq!(shown["protocols"], json!({"tcp": 1, "udp": 1, "icmp": 0, "other": 0}));
        let event = statistics.last.to_json();
        assert_eq!((&event["cause"], &event["protocol"]), (&json!("timeout"), &json!("udp")));
    }
}
