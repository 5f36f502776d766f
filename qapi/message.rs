//! Events on the wire, and the limit on how often some are sent.

use crate::schema::event_by_name;
use crate::wire::{Arguments, EventType, Map};
use lockstep_util::Result;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An event with its time.
#[derive(Clone, Debug, PartialEq)]
pub struct EventMessage {
    name: &'static str,
    data: Map,
    time: Duration,
}

impl EventMessage {
    /// An event that happens now.
    pub fn now<E: EventType>(data: &E::Data) -> Self {
        Self::at::<E>(data, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// An event that happened at `time`, since the epoch.
    pub fn at<E: EventType>(data: &E::Data, time: Duration) -> Self {
        Self { name: E::DEF.name, data: data.to_members(), time }
    }

    /// An event that happens now, by its name on the wire; `None` if it is no event that the schema knows.
    pub fn named(name: &str, data: Map) -> Option<Self> {
        let name = event_by_name(name)?.name;
        Some(Self { name, data, time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() })
    }

    /// From the wire, for clients; `None` if it is no event that the schema knows.
    pub fn from_value(value: &Value) -> Option<Self> {
        let name = event_by_name(value.get("event")?.as_str()?)?.name;
        let stamp = value.get("timestamp")?;
        let seconds = stamp.get("seconds")?.as_u64()?;
        let micros = stamp.get("microseconds")?.as_u64().filter(|&m| m < 1_000_000)?;
        let data = value.get("data").and_then(Value::as_object).cloned().unwrap_or_default();
        Some(Self { name, data, time: Duration::from_secs(seconds) + Duration::from_micros(micros) })
    }

    /// The event's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What the event carries.
    pub fn data(&self) -> &Map {
        &self.data
    }

    /// What the event carries, if it is an `E`.
    pub fn decode<E: EventType>(&self) -> Option<Result<E::Data>> {
        (self.name == E::DEF.name).then(|| E::Data::from_members(self.data.clone()))
    }

    /// The event on the wire; `data` is left out for events that never have any.
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "timestamp": {"seconds": self.time.as_secs(), "microseconds": self.time.subsec_micros()},
            "event": self.name,
        });
        if event_by_name(self.name).is_some_and(|e| e.arg.is_some()) {
            value["data"] = Value::Object(self.data.clone());
        }
        value
    }
}

/// Events that a guest could send without end, the member that tells one source from another, and the pause.
const LIMITED: &[(&str, Option<&str>, Duration)] = &[
    ("BALLOON_CHANGE", None, Duration::from_secs(1)),
    ("BLOCK_IO_ERROR", Some("qom-path"), Duration::from_secs(1)),
    ("MEMORY_DEVICE_SIZE_CHANGE", Some("qom-path"), Duration::from_secs(1)),
    ("QUORUM_FAILURE", None, Duration::from_secs(1)),
    ("QUORUM_REPORT_BAD", Some("node-name"), Duration::from_secs(1)),
    ("RTC_CHANGE", None, Duration::from_secs(1)),
    ("VSERPORT_CHANGE", Some("id"), Duration::from_secs(1)),
    ("WATCHDOG", None, Duration::from_secs(1)),
];

/// Limits the rate of some events: the first goes out at once, of those that follow within the pause only the last, at
/// the pause's end. Time is any steady clock; the owner arms a timer for [`EventThrottle::deadline`].
#[derive(Debug, Default)]
pub struct EventThrottle {
    waiting: HashMap<(&'static str, String), Pending>,
}

#[derive(Debug)]
struct Pending {
    until: Duration,
    pause: Duration,
    event: Option<EventMessage>,
}

impl EventThrottle {
    /// Returns the event if it may go out at the time `now`, else keeps it.
    pub fn offer(&mut self, event: EventMessage, now: Duration) -> Option<EventMessage> {
        let Some((name, key, pause)) = LIMITED.iter().find(|(name, ..)| *name == event.name) else {
            return Some(event);
        };
        let source = key.and_then(|k| event.data.get(k)?.as_str()).unwrap_or_default().to_owned();
        match self.waiting.get_mut(&(*name, source.clone())) {
            Some(pending) => {
                pending.event = Some(event);
                None
            }
            None => {
                self.waiting.insert((name, source), Pending { until: now + *pause, pause: *pause, event: None });
                Some(event)
            }
        }
    }

    /// Returns the events whose pause has ended at the time `now`, oldest deadline first.
    pub fn due(&mut self, now: Duration) -> Vec<EventMessage> {
        let mut due: Vec<_> =
            self.waiting.iter().filter(|(_, p)| p.until <= now).map(|(k, p)| (p.until, k.clone())).collect();
        due.sort();
        let mut events = Vec::new();
        for (_, key) in due {
            let Some(pending) = self.waiting.get_mut(&key) else { continue };
            match pending.event.take() {
                Some(event) => {
                    pending.until = now + pending.pause;
                    events.push(event);
                }
                None => {
                    self.waiting.remove(&key);
                }
            }
        }
        events
    }

    /// When [`EventThrottle::due`] should be called next.
    pub fn deadline(&self) -> Option<Duration> {
        self.waiting.values().map(|p| p.until).min()
    }
}

#[cfg(test)]
#[path = "tests/message.rs"]
mod tests;
