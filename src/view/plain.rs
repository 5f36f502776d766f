//! The pair as text without a terminal: a summary, and a line for each thing that happens.
use crate::model::{CAUSES, Event, Model, Pause, Side};
use std::fmt::Write;

/// Everything known now.
pub fn summary(model: &Model) -> String {
    let mut text = String::new();
    for side in &model.sides {
        let _ = writeln!(text, "{}: {}", side.address, state(side));
        for (name, value) in figures(side) {
            let _ = writeln!(text, "  {name:<12} {value}");
        }
    }
    let verdict = if model.is_in_lockstep() { "in lock-step" } else { "not in lock-step" };
    text + verdict + "\n"
}

/// A side in a few words.
pub fn state(side: &Side) -> String {
    if let Some(trouble) = &side.trouble {
        return format!("no monitor ({trouble})");
    }
    let role = match side.role.as_str() {
        "" | "none" if matches!(side.reason.as_str(), "" | "none") => "alone".into(),
        "" | "none" => format!("alone (lock-step ended: {})", side.reason),
        role => role.to_string(),
    };
    format!("{role}, {}", if side.status.is_empty() { "?" } else { &side.status })
}

/// The figures of a side: name and value.
pub fn figures(side: &Side) -> Vec<(&'static str, String)> {
    let mut figures = Vec::new();
    let Some(checkpoints) = side.count("/checkpoints") else { return figures };
    figures.push(("checkpoints", checkpoints.to_string()));
    if side.role == "primary" {
        figures.push(("causes", counts(&side.statistics["causes"])));
        figures.push(("differences", counts(&side.statistics["divergences"])));
    }
    if let Some(style) = side.statistics["style"].as_str() {
        let (count, time) = (side.count("/switches").unwrap_or(0), side.count("/buffered-time").unwrap_or(0));
        let buffered = if count == 0 { String::new() } else { format!(", buffered for {:.1} s", time as f64 / 1000.0) };
        figures.push(("style", format!("{style}{buffered}")));
    }
    let pause = |name: &str| {
        side.count(&format!("/pause/{name}"))
            .map_or_else(|| "-".into(), |micro| format!("{:.1}", micro as f64 / 1000.0))
    };
    let pauses = ["last", "median", "p99", "max"].map(pause);
    let [last, median, p99, max] = pauses;
    figures.push(("pause", format!("{last} ms, median {median}, p99 {p99}, max {max}")));
    let count = |path: &str| side.count(path).unwrap_or(0);
    figures.push(("last one", format!("{}, {} pages", bytes(count("/last-bytes")), count("/last-pages"))));
    figures.push(("all", format!("{}, {} pages", bytes(count("/bytes")), count("/pages"))));
    if side.role == "primary" {
        figures.push(("held", format!("{} packets, {}", count("/held-packets"), bytes(count("/held-bytes")))));
    }
    figures.push(("lost frames", count("/lost-frames").to_string()));
    figures
}

/// A line for an event.
pub fn event(model: &Model, event: &Event) -> String {
    let address = model.sides.get(event.side).map_or("", |side| &side.address);
    format!("{} {address} {}", clock(event.at), event.text)
}

/// A line for a checkpoint.
pub fn pause(pause: &Pause) -> String {
    format!("{} checkpoint {:.2} ms {}", clock(pause.at), pause.length, pause.cause.as_deref().unwrap_or("?"))
}

/// Time of day (UTC) with milliseconds.
pub fn clock(at: f64) -> String {
    let milli = (at.max(0.0) * 1000.0) as u64;
    let second = milli / 1000;
    format!("{:02}:{:02}:{:02}.{:03}", second / 3600 % 24, second / 60 % 60, second % 60, milli % 1000)
}

/// Bytes for people: B, kB, MB or GB (powers of 1000).
pub fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        c if c >= 1e9 => format!("{:.2} GB", c / 1e9),
        c if c >= 1e6 => format!("{:.1} MB", c / 1e6),
        c if c >= 1e3 => format!("{:.1} kB", c / 1e3),
        c => format!("{c} B"),
    }
}

/// The counts that are not zero, in the order of [`CAUSES`] where they are causes.
fn counts(all: &serde_json::Value) -> String {
    let Some(all) = all.as_object() else { return "-".into() };
    let rank = |name: &str| CAUSES.iter().position(|cause| *cause == name).unwrap_or(CAUSES.len());
    let mut seen: Vec<(&str, u64)> =
        all.iter().filter_map(|(name, count)| Some((name.as_str(), count.as_u64()?))).collect();
    seen.retain(|(_, count)| *count != 0);
    seen.sort_by_key(|(name, _)| (rank(name), *name));
    if seen.is_empty() {
        return "none".into();
    }
    seen.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}
