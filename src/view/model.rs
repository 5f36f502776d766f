//! What is known about the pair.
use crate::monitor::Update;
use serde_json::Value;
use std::collections::VecDeque;

/// Pauses that are remembered.
const PAUSES: usize = 4096;
/// Events that are remembered.
const EVENTS: usize = 200;
/// Causes in the order in which they are shown.
pub const CAUSES: [&str; 7] = ["timer", "mismatch", "timeout", "full", "parameter", "command", "output"];

/// Both sides and what happened.
#[derive(Debug)]
pub struct Model {
    /// The VMs, in the order of the command line.
    pub sides: [Side; 2],
    /// Checkpoints of whoever was primary, oldest first.
    pub pauses: VecDeque<Pause>,
    /// Events of both, oldest first.
    pub events: VecDeque<Event>,
}

/// One VM.
#[derive(Debug)]
pub struct Side {
    /// Where its monitor is, as on the command line.
    pub address: String,
    /// Why there is no connection, if there is none.
    pub trouble: Option<String>,
    /// Its run state (`running`, `colo`, ...); empty until known.
    pub status: String,
    /// `primary`, `secondary` or `none`; empty until known.
    pub role: String,
    /// Why lock-step ended, if it did.
    pub reason: String,
    /// The latest `statistics`, or null: QEMU has none.
    pub statistics: Value,
    stopped_at: Option<f64>,
    /// Has it announced checkpoints itself? Then stops are not counted as well.
    announces: bool,
}

/// A guest that stood still for a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Pause {
    /// When it was over, in seconds since 1970.
    pub at: f64,
    /// How long, in milliseconds.
    pub length: f64,
    /// Why, once that is known.
    pub cause: Option<String>,
}

/// Something that a VM announced.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When, in seconds since 1970.
    pub at: f64,
    /// Which VM, by its place on the command line.
    pub side: usize,
    /// What.
    pub text: String,
}

impl Side {
    fn new(address: &str) -> Self {
        Self {
            address: address.into(),
            trouble: Some("connecting".into()),
            status: String::new(),
            role: String::new(),
            reason: String::new(),
            statistics: Value::Null,
            stopped_at: None,
            announces: false,
        }
    }

    /// A count of the statistics; `path` as in `/pause/last`.
    pub fn count(&self, path: &str) -> Option<u64> {
        self.statistics.pointer(path)?.as_u64()
    }

    /// Is it part of a pair?
    pub fn is_in_lockstep(&self) -> bool {
        self.trouble.is_none() && matches!(self.role.as_str(), "primary" | "secondary")
    }
}

impl Model {
    /// Nothing is known yet of two VMs.
    pub fn new(addresses: [&str; 2]) -> Self {
        Self { sides: addresses.map(Side::new), pauses: VecDeque::new(), events: VecDeque::new() }
    }

    /// Do both VMs say that they are in lock-step, one as primary and one as secondary?
    pub fn is_in_lockstep(&self) -> bool {
        self.sides.iter().all(Side::is_in_lockstep) && self.sides[0].role != self.sides[1].role
    }

    /// The side that is primary, if one is.
    pub fn primary(&self) -> Option<&Side> {
        self.sides.iter().find(|side| side.role == "primary")
    }

    /// How many checkpoints had this cause, as far as any side tells.
    pub fn count_of(&self, cause: &str) -> u64 {
        let path = format!("/causes/{cause}");
        self.sides.iter().filter_map(|side| side.count(&path)).max().unwrap_or(0)
    }

    /// Takes in what a monitor said. `side` is 0 or 1.
    pub fn apply(&mut self, side: usize, update: Update) {
        let Some(state) = self.sides.get_mut(side) else { return };
        match update {
            Update::Connected => state.trouble = None,
            Update::Lost { at, why } => {
                let text = format!("no monitor: {why}");
                (state.role, state.status, state.stopped_at) = (String::new(), String::new(), None);
                // A VM that is away for long is away once, whatever stands in the way of the next try.
                if state.trouble.replace(why).is_none() {
                    self.remember(Event { at, side, text });
                }
            }
            Update::Status(value) => state.status = word(&value["status"]),
            Update::Colo(value) => self.colo(side, &value),
            Update::Event { at, name, data } => self.event(side, at, &name, &data),
        }
    }

    fn colo(&mut self, side: usize, value: &Value) {
        let state = &mut self.sides[side];
        (state.role, state.reason) = (word(&value["mode"]), word(&value["reason"]));
        let before = std::mem::replace(&mut state.statistics, value["statistics"].clone());
        if state.role == "primary" && before.is_object() {
            let more = |cause: &str| {
                let count = |all: &Value| all["causes"][cause].as_u64().unwrap_or(0);
                count(&state.statistics).saturating_sub(count(&before)).min(PAUSES as u64)
            };
            let causes = CAUSES.into_iter().flat_map(|cause| (0..more(cause)).map(move |_| cause));
            let unknown = self.pauses.iter_mut().filter(|pause| pause.cause.is_none());
            unknown.zip(causes).for_each(|(pause, cause)| pause.cause = Some(cause.into()));
        }
    }

    fn event(&mut self, side: usize, at: f64, name: &str, data: &Value) {
        let state = &mut self.sides[side];
        match name {
            "STOP" => state.stopped_at = Some(at),
            "RESUME" => {
                // Before the first answer nobody knows yet who is primary.
                if let (Some(stopped), "primary", false) =
                    (state.stopped_at.take(), state.role.as_str(), state.announces)
                {
                    self.pause(Pause { at, length: (at - stopped).max(0.0) * 1000.0, cause: None });
                }
            }
            "X_COLO_CHECKPOINT" => {
                state.announces = true;
                if data["mode"] == "primary" {
                    let length = data["pause"].as_u64().unwrap_or(0) as f64 / 1000.0;
                    let cause = data["cause"].as_str().map(clean);
                    self.pause(Pause { at, length, cause });
                }
            }
            _ => {
                let details = if data.is_null() { String::new() } else { format!(" {data}") };
                self.remember(Event { at, side, text: clean(&format!("{name}{details}")) });
            }
        }
    }

    fn pause(&mut self, pause: Pause) {
        if self.pauses.len() == PAUSES {
            self.pauses.pop_front();
        }
        self.pauses.push_back(pause);
    }

    fn remember(&mut self, event: Event) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

fn word(value: &Value) -> String {
    clean(value.as_str().unwrap_or_default())
}

/// What a monitor says goes to a terminal: no control characters, no endless lines.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn model() -> Model {
        let mut model = Model::new(["a", "b"]);
        for (side, role) in ["primary", "secondary"].into_iter().enumerate() {
            model.apply(side, Update::Connected);
            model.apply(
                side,
                Update::Colo(json!({"mode": role, "statistics": {"causes": {"timer": 3, "mismatch": 1}}})),
            );
        }
        model
    }

    fn event(at: f64, name: &str) -> Update {
        Update::Event { at, name: name.into(), data: Value::Null }
    }

    #[test]
    fn a_pause_is_from_stop_to_resume_on_the_primary_alone() {
        let mut model = model();
        assert!(model.is_in_lockstep());
        for side in [1, 0] {
            model.apply(side, event(10.0, "STOP"));
            model.apply(side, event(10.0 + 0.004, "RESUME"));
        }
        assert_eq!(model.pauses.len(), 1);
        assert!((model.pauses[0].length - 4.0).abs() < 0.001 && model.pauses[0].cause.is_none());
    }

    #[test]
    fn the_counter_that_grew_tells_why() {
        let mut model = model();
        for at in [1.0, 2.0] {
            model.apply(0, event(at, "STOP"));
            model.apply(0, event(at, "RESUME"));
        }
        model.apply(0, Update::Colo(json!({"mode": "primary", "statistics": {"causes": {"timer": 4, "mismatch": 2}}})));
        let causes: Vec<_> = model.pauses.iter().map(|pause| pause.cause.as_deref()).collect();
        assert_eq!(causes, [Some("timer"), Some("mismatch")]);
    }

    #[test]
    fn announced_checkpoints_are_not_counted_twice() {
        let mut model = model();
        let data = json!({"mode": "primary", "pause": 2500, "cause": "full"});
        for at in [1.0, 2.0] {
            model.apply(0, Update::Event { at, name: "X_COLO_CHECKPOINT".into(), data: data.clone() });
            model.apply(0, event(at, "STOP"));
            model.apply(0, event(at, "RESUME"));
        }
        assert_eq!(model.pauses.len(), 2);
        assert_eq!(model.pauses[1], Pause { at: 2.0, length: 2.5, cause: Some("full".into()) });
    }

    #[test]
    fn a_vm_that_is_gone_is_in_no_lockstep() {
        let mut model = model();
        for at in [1.0, 2.0] {
            model.apply(0, Update::Lost { at, why: "closed".into() });
        }
        assert!(!model.is_in_lockstep() && model.primary().is_none());
        assert_eq!(model.events.len(), 1);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut model = model();
        model.apply(1, event(1.0, "\u{1b}[2J"));
        assert_eq!(model.events[0].text, "?[2J");
    }
}
