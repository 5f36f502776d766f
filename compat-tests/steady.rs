//! A pair that serves for a long time, and nobody dies: what it holds of its hosts must not grow.
use crate::colo::{LONG, Pair, Paste, Side};
use crate::memory::{self, Holdings};
use crate::repeat::Repeated;
use crate::stage::Stage;
use crate::traffic::{self, Echo, Http, Pace};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How often it is looked at. The first third of the looks is the time in which caches and the guest's own memory fill.
const LOOKS: u32 = 30;
const BULK: u64 = 3 << 20;
const KEYS: u64 = 64;
/// Resident memory that may come and go, in MiB: buffers of what is under way.
const BREATH_MIB: f64 = 8.0;
/// Descriptors and threads that may come and go: connections and requests to files that are under way.
const BREATH_COUNT: usize = 8;
const SIDES: [Side; 2] = [Side::Primary, Side::Secondary];

/// One look at both sides.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Since the beginning.
    pub after: Duration,
    /// Checkpoints until then.
    pub checkpoints: u64,
    /// Connections that clients opened until then.
    pub connections: u64,
    /// Of the primary, of the secondary.
    pub held: [Holdings; 2],
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.after.as_secs();
        write!(f, "{seconds:>6} s  {:>7} checkpoints  {:>9} connections", self.checkpoints, self.connections)?;
        for (side, held) in SIDES.iter().zip(self.held) {
            let Holdings { resident, files, threads } = held;
            write!(f, "  {} {resident:.0} MiB, {files} files, {threads} threads", side.as_str())?;
        }
        Ok(())
    }
}

/// A pair serves for `time`, with a checkpoint every 100 ms: connections that live all the time and others that come and go, writes,
/// transfers in both directions, and from time to time an answer that differs. `tell` hears of each look.
///
/// # Errors
/// If a client lost its connection or got something wrong, or a side holds more and more.
///
/// # Panics
/// If a step of the procedure fails, or an image has errors at the end.
pub fn serve(stage: &Stage, time: Duration, seed: u64, mut tell: impl FnMut(&Look)) -> io::Result<()> {
    let mut pair = Pair::start(stage, Paste::AtOnce);
    traffic::wait_for_guest(LONG)?;
    pair.set_checkpoint_period(Duration::from_millis(100));
    let opened = Arc::new(AtomicU64::new(0));
    let mut clients = clients(seed, &opened)?;
    let paces = [(60, 3), (5000, 25)].map(|(size, pause)| (size, Duration::from_millis(pause)));
    let mut echoes = Vec::new();
    for (size, pause) in paces {
        echoes.push(Echo::start(seed ^ size as u64, Pace::PingPong { size, pause })?);
    }
    let (begin, mut looks) = (Instant::now(), Vec::new());
    for number in 1..=LOOKS {
        std::thread::sleep((time * number / LOOKS).saturating_sub(begin.elapsed()));
        clients.check_alive()?;
        let look = look(&mut pair, begin.elapsed(), opened.load(Relaxed))?;
        tell(&look);
        looks.push(look);
    }
    echoes.iter_mut().try_for_each(|echo| echo.wait_for_progress(120, LONG))?;
    clients.finish()?;
    echoes.into_iter().try_for_each(|echo| echo.finish().map(drop))?;
    pair.end();
    judge(&looks).map_err(io::Error::other)
}

fn clients(seed: u64, opened: &Arc<AtomicU64>) -> io::Result<Repeated> {
    let mut clients = Repeated::default();
    let short = Duration::from_millis(30);
    let mut http = Http::open()?;
    clients.start(3 * short, move |number| {
        let (key, value) = (format!("/kv/steady-{}", number % KEYS), format!("{seed} {number}").into_bytes());
        let put = http.request("PUT", &key, &value)?;
        if put.status != 200 || http.get(&key)?.body != value {
            return Err(io::Error::other(format!("{key}: status {}, or not what was written", put.status)));
        }
        Ok(())
    });
    for transfer in [traffic::upload, traffic::download] {
        clients.start(short, move |number| transfer(BULK, seed ^ number).map(drop));
    }
    let opened = Arc::clone(opened);
    clients.start(Duration::from_millis(1), move |_| {
        Http::open()?.get("/")?;
        opened.fetch_add(1, Relaxed);
        Ok(())
    });
    let mut http = Http::open()?;
    clients.start(Duration::from_secs(1), move |_| http.get("/random").map(drop));
    Ok(clients)
}

fn look(pair: &mut Pair<'_>, after: Duration, connections: u64) -> io::Result<Look> {
    let gone = || io::Error::other("an emulator is gone");
    let held = [&pair.primary, pair.secondary()].map(memory::holdings);
    let checkpoints = pair.figures()["checkpoints"].as_u64().unwrap_or(0);
    Ok(Look { after, checkpoints, connections, held: [held[0].ok_or_else(gone)?, held[1].ok_or_else(gone)?] })
}

/// Whether the last third of the looks holds no more than the one before.
fn judge(looks: &[Look]) -> Result<(), String> {
    let third = looks.len() / 3;
    let (before, last) = (&looks[third..2 * third], &looks[2 * third..]);
    for (at, side) in SIDES.iter().enumerate() {
        let most = |part: &[Look]| {
            part.iter().map(|look| look.held[at]).fold([0.0, 0.0, 0.0], |most: [f64; 3], held| {
                let held = [held.resident, held.files as f64, held.threads as f64];
                std::array::from_fn(|n| most[n].max(held[n]))
            })
        };
        let room = [BREATH_MIB, BREATH_COUNT as f64, BREATH_COUNT as f64];
        for (n, what) in ["MiB", "files", "threads"].iter().enumerate() {
            let (before, last) = (most(before)[n], most(last)[n]);
            if last > before + room[n] {
                return Err(format!("the {} holds more and more: {before:.0}, then {last:.0} {what}", side.as_str()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(held: impl Fn(u32) -> Holdings) -> Vec<Look> {
        let look = |number: u32| Look {
            after: Duration::from_secs(number.into()),
            checkpoints: 0,
            connections: 0,
            held: [Holdings { resident: 100.0, files: 40, threads: 9 }, held(number)],
        };
        (0..LOOKS).map(look).collect()
    }

    #[test]
    fn what_fills_at_the_beginning_or_comes_and_goes_is_no_growth() {
        let held = |number: u32| Holdings {
            resident: 100.0 + f64::from(number.min(10)) * 50.0 + f64::from(number % 7),
            files: 40 + number as usize % 5,
            threads: 9,
        };
        judge(&looks(held)).unwrap();
    }

    #[test]
    fn each_thing_that_a_side_holds_more_and_more_of_is_told() {
        let level = Holdings { resident: 100.0, files: 40, threads: 9 };
        let memory = judge(&looks(|number| Holdings { resident: 100.0 + f64::from(number), ..level }));
        assert_eq!(memory.unwrap_err(), "the secondary holds more and more: 119, then 129 MiB");
        let files = judge(&looks(|number| Holdings { files: number as usize, ..level }));
        assert_eq!(files.unwrap_err(), "the secondary holds more and more: 19, then 29 files");
        let threads = judge(&looks(|number| Holdings { threads: number as usize, ..level }));
        assert_eq!(threads.unwrap_err(), "the secondary holds more and more: 19, then 29 threads");
    }
}
