//! Figures of checkpoints.

use super::CheckpointCause;
use serde_json::{Value, json};
use std::time::Duration;

/// How many pauses are kept for the median.
const KEPT: usize = 1024;

/// Figures of the checkpoints of one pair.
#[derive(Clone, Debug, Default)]
pub struct CheckpointStatistics {
    /// How many were made.
    pub count: u64,
    /// How many for each cause, in the order of [`CheckpointCause::ALL`].
    pub causes: [u64; 5],
    /// Bytes of all of them (of the primary, sent; of the secondary, of device state).
    pub bytes: u64,
    /// Pages of all of them (of the primary, sent; of the secondary, copied).
    pub pages: u64,
    /// How long the guest stood still for the last one.
    pub last_pause: Duration,
    /// The longest.
    pub longest_pause: Duration,
    /// All together.
    pub total_pause: Duration,
    recent: Vec<Duration>,
}

impl CheckpointStatistics {
    pub(super) fn note(&mut self, cause: Option<CheckpointCause>, pause: Duration, bytes: u64, pages: u64) {
        if let Some(cause) = cause {
            self.causes[cause as usize] += 1;
        }
        if self.recent.len() < KEPT {
            self.recent.push(pause);
        } else {
            self.recent[(self.count % KEPT as u64) as usize] = pause;
        }
        self.count += 1;
        self.bytes += bytes;
        self.pages += pages;
        self.last_pause = pause;
        self.longest_pause = self.longest_pause.max(pause);
        self.total_pause += pause;
    }

    /// The median of the last thousand pauses.
    pub fn median_pause(&self) -> Duration {
        let mut recent = self.recent.clone();
        recent.sort_unstable();
        recent.get(recent.len() / 2).copied().unwrap_or_default()
    }

    /// The figures as an object; pauses in microseconds.
    pub fn to_json(&self) -> Value {
        let causes = CheckpointCause::ALL.iter().zip(self.causes);
        let causes: serde_json::Map<_, _> = causes.map(|(c, n)| (c.as_str().to_owned(), n.into())).collect();
        json!({
            "checkpoints": self.count, "causes": causes, "bytes": self.bytes, "pages": self.pages,
            "last-pause-us": self.last_pause.as_micros() as u64, "longest-pause-us": self.longest_pause.as_micros() as u64,
            "median-pause-us": self.median_pause().as_micros() as u64, "total-pause-us": self.total_pause.as_micros() as u64,
        })
    }
}
