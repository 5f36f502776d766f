//! How long the primary's guest stands still for a checkpoint, and what goes over the wire for it.
use crate::samples::Samples;
use lockstep_compat_tests::colo::{LONG, Pair};
use lockstep_compat_tests::monitor::Event;
use lockstep_compat_tests::stage::Host;
use lockstep_compat_tests::traffic::Http;
use serde::{Deserialize, Serialize};
use std::io;
use std::process::Stdio;
use std::time::Duration;

/// Port of the checkpoint channel.
const CHANNEL: &str = ":9998";
/// Time between checkpoints when they are counted by the clock.
const PERIOD: Duration = Duration::from_millis(100);
/// So long that no checkpoint comes by itself.
const NEVER: Duration = Duration::from_secs(3600);
/// From the last dirtied page to the checkpoint: in use, pages are dirtied over the whole epoch.
const SETTLE: Duration = Duration::from_millis(50);

/// Pauses of some checkpoints in milliseconds, and bytes of each at the mean.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pauses {
    /// From STOP to RESUME on the primary's monitor, by the events' own time.
    pub pauses: Samples,
    /// Bytes sent on the checkpoint channel, for one checkpoint.
    pub bytes: Option<f64>,
}

/// Checkpoints of a guest that does nothing, ten a second.
pub fn idle(pair: &mut Pair<'_>, count: usize) -> io::Result<Pauses> {
    pair.set_checkpoint_period(NEVER);
    let (before, mark) = (bytes_sent(pair.primary_host())?, pair.primary.monitor.mark());
    pair.set_checkpoint_period(PERIOD);
    pair.primary.monitor.events("RESUME", count, mark, LONG * 4).map_err(io::Error::other)?;
    pair.set_checkpoint_period(NEVER);
    std::thread::sleep(Duration::from_millis(300));
    let pauses = pauses(&pair.primary.monitor.events_since(mark));
    let bytes = per_checkpoint(before, bytes_sent(pair.primary_host())?, pauses.0.len());
    Ok(Pauses { pauses, bytes })
}

/// Checkpoints that each find `pages` pages dirtied since the last one.
pub fn dirtied(pair: &mut Pair<'_>, pages: u32, count: usize) -> io::Result<Pauses> {
    pair.set_checkpoint_period(NEVER);
    let mut http = Http::open()?;
    let mut result = Pauses::default();
    let mut bytes = (0.0, 0);
    for number in 0..count {
        let answer = http.request("POST", &format!("/dirty?once={pages}"), &[])?;
        if answer.status != 200 {
            return Err(io::Error::other(format!("POST /dirty: status {}", answer.status)));
        }
        std::thread::sleep(SETTLE);
        let (before, mark) = (bytes_sent(pair.primary_host())?, pair.primary.monitor.mark());
        pair.set_checkpoint_period(NEVER + Duration::from_millis(number as u64 % 2));
        pair.primary.monitor.event("RESUME", mark, LONG).map_err(io::Error::other)?;
        let seen = pauses(&pair.primary.monitor.events_since(mark));
        // The first one also carries what starting the loop has cost.
        if number > 0 {
            result.pauses.0.extend(seen.0);
            if let Some(one) = per_checkpoint(before, bytes_sent(pair.primary_host())?, 1) {
                bytes = (bytes.0 + one, bytes.1 + 1);
            }
        }
    }
    result.bytes = (bytes.1 != 0).then(|| bytes.0 / f64::from(bytes.1));
    Ok(result)
}

/// From each STOP to the RESUME after it.
fn pauses(events: &[Event]) -> Samples {
    let pairs = events.windows(2).filter(|pair| pair[0].name == "STOP" && pair[1].name == "RESUME");
    pairs.map(|pair| pair[1].emitted.saturating_sub(pair[0].emitted)).collect()
}

fn per_checkpoint(before: Option<u64>, after: Option<u64>, count: usize) -> Option<f64> {
    (count != 0).then_some(after?.checked_sub(before?)? as f64 / count as f64)
}

/// Bytes that the kernel has sent on the checkpoint channel, where `ss` can tell.
fn bytes_sent(host: &Host) -> io::Result<Option<u64>> {
    let mut ss = host.command("ss");
    let output = ss.args(["-tinH", "state", "established", "dport", "=", CHANNEL]).stdin(Stdio::null()).output();
    let Ok(output) = output else { return Ok(None) };
    let text = String::from_utf8_lossy(&output.stdout);
    let counts = text.split_whitespace().filter_map(|word| word.strip_prefix("bytes_sent:")?.parse::<u64>().ok());
    Ok(counts.reduce(|one, other| one + other))
}
