//! Guests that say different things: the secondary's stands still while that lasts, the primary's output waits for checkpoints, and
//! nothing that the outside has seen is lost.
use lockstep_compat_tests::colo::{Death, LONG, Pair, Paste, Side};
use lockstep_compat_tests::deaths::REACHED;
use lockstep_compat_tests::stage::Layout::TwoHosts;
use lockstep_compat_tests::stage::{Stage, on_stage};
use lockstep_compat_tests::traffic::{self, Http, KeyValues};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(400);
const CLIENTS: usize = 3;

/// A pair whose clock asks for no checkpoint, with its guest up.
fn running_pair(stage: &Stage) -> Pair<'_> {
    let mut pair = Pair::start(stage, Paste::Lines);
    traffic::wait_for_guest(LONG).expect("the guest answers");
    pair.set_checkpoint_period(Duration::from_secs(3600));
    pair
}

/// Clients that ask for what differs between the guests, one request after another.
struct Differing {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Differing {
    fn start() -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |_| {
            let (stop, answers) = (stop.clone(), answers.clone());
            std::thread::spawn(move || {
                let mut http = Http::open()?;
                while !stop.load(SeqCst) {
                    http.get("/random")?;
                    answers.fetch_add(1, SeqCst);
                }
                Ok(())
            })
        };
        let threads = (0..CLIENTS).map(client).collect();
        Self { stop, answers, threads }
    }

    /// Answers a second, over a while.
    fn rate(&self) -> f64 {
        let (before, start) = (self.answers.load(SeqCst), Instant::now());
        std::thread::sleep(Duration::from_secs(2));
        (self.answers.load(SeqCst) - before) as f64 / start.elapsed().as_secs_f64()
    }

    fn finish(self) {
        self.stop.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().expect("no panic").expect("every answer"));
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_for_style(pair: &mut Pair<'_>, style: &str) {
    wait_for(style, || pair.figures()["style"] == style);
}

fn secondary_runs(pair: &mut Pair<'_>) -> bool {
    let secondary = pair.secondary.as_mut().expect("a secondary");
    secondary.monitor.command(r#"{"execute": "query-status"}"#)["running"] == true
}

fn counter(http: &mut Http) -> u64 {
    let page = http.get("/counter").expect("the counter page").text();
    page.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a counter")
}

#[test]
fn while_the_guests_differ_output_is_buffered_and_afterwards_compared_again() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        assert_eq!(pair.figures()["style"], "lockstep");
        let clients = Differing::start();
        pair.set_checkpoint_style("lockstep");
        let compared = clients.rate();
        pair.set_checkpoint_style("auto");
        wait_for_style(&mut pair, "buffered");
        let before = pair.figures();
        let buffered = clients.rate();
        let after = pair.figures();
        println!("answers a second: compared {compared:.0}, buffered {buffered:.0}");
        let asked = |figures: &serde_json::Value| figures["causes"]["output"].as_u64().expect("a count");
        assert!(asked(&after) > asked(&before), "{after:#}");
        clients.finish();
        // Nothing differs any more: the next trial lasts. The primary goes on before the secondary has applied the checkpoint.
        wait_for_style(&mut pair, "lockstep");
        wait_for("the secondary's guest", || secondary_runs(&mut pair));
        let mut http = Http::open().expect("a connection");
        (0..50).for_each(|_| drop(http.get("/").expect("an answer")));
        assert_eq!(pair.figures()["style"], "lockstep");
        pair.lose_primary();
        http.get("/").expect("an answer");
        pair.end();
    });
}

#[test]
fn with_buffered_output_nothing_that_was_seen_is_lost_whoever_dies() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let mut http = Http::open().expect("a connection");
        http.request("POST", "/dirty?pages_per_second=2000&pages=2000", &[]).expect("POST");
        let (mut seen, mut pairs) = (0, KeyValues::default());
        let deaths = [Death::Vanishing, Death::Hang, Death::Crash, Death::Partition];
        for (round, death) in deaths.into_iter().enumerate() {
            pair.set_checkpoint_style("buffered");
            assert!(!secondary_runs(&mut pair));
            let clients = Differing::start();
            for _ in 0..10 {
                pairs.put_next(&mut http, 700).expect("PUT");
                let now = counter(&mut http);
                assert!(now >= seen, "{now} after {seen}");
                seen = now;
            }
            let lost = if round == 2 { pair.lose_secondary_by(death) } else { pair.lose_primary_by(death) };
            let now = counter(&mut http);
            assert!(now >= seen, "{death:?}: {now} after the failover, {seen} before");
            seen = now;
            pairs.verify(&mut http).expect("acknowledged pairs");
            clients.finish();
            drop(lost);
            if round + 1 < deaths.len() {
                pair.resume();
            }
        }
        pair.end();
    });
}

/// What the guest's clocks show, and when they were read, as nearly as the answer's way lets know.
struct Clocks {
    read: Instant,
    /// The time stamp counter.
    counter: f64,
    /// Other clocks: name, time in seconds, and after how long it begins anew.
    shown: Vec<(&'static str, f64, f64)>,
}

impl Clocks {
    fn ask(http: &mut Http) -> (Duration, Self) {
        let asked = Instant::now();
        let page = http.get("/clock").expect("the clock page").text();
        let took = asked.elapsed();
        let number = |name: &str| {
            let line = page.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<f64>().ok()
        };
        let (counter, ticks) = number("tsc").zip(number("acpi")).expect("clocks");
        // 24 bits.
        let acpi = ("virtual clock", ticks / 3_579_545.0, f64::from(1 << 24) / 3_579_545.0);
        let kvm = number("kvmclock").map(|time| ("kvmclock", time / 1e9, f64::MAX));
        (took, Self { read: asked + took / 2, counter, shown: [Some(acpi), kvm].into_iter().flatten().collect() })
    }

    fn read(http: &mut Http) -> Self {
        let answers = (0..5).map(|_| Self::ask(http));
        answers.min_by_key(|(took, _)| *took).expect("answers").1
    }

    /// Ticks of the counter in a second. What the guest has measured at its start is wrong if others had the processor then.
    fn rate(&self, then: &Self) -> f64 {
        (self.counter - then.counter) / self.read.duration_since(then.read).as_secs_f64()
    }

    /// By how many seconds each is late since then.
    fn lags(&self, then: &Self, rate: f64) -> Vec<(&'static str, f64)> {
        assert_eq!(self.shown.len(), then.shown.len(), "no clock comes or goes");
        let passed = self.read.duration_since(then.read).as_secs_f64();
        let counter = ("time stamp counter", passed - (self.counter - then.counter) / rate);
        let pairs = self.shown.iter().zip(&then.shown);
        let others = pairs.map(|(now, then)| (now.0, nearest(passed - (now.1 - then.1), now.2)));
        std::iter::once(counter).chain(others).collect()
    }
}

/// A difference between readings of a clock that begins anew after a period.
fn nearest(difference: f64, period: f64) -> f64 {
    difference - (difference / period).round() * period
}

/// Time for which the secondary is held in the last checkpoint that it takes over from. While the whole machine stands, for a
/// checkpoint or a failover, only the time stamp counter of KVM goes on, so that the other clocks may be late by that.
const HELD: Duration = Duration::from_secs(2);

#[test]
fn the_survivors_clocks_go_on_from_where_the_primarys_were() {
    on_stage(TwoHosts, LIMIT, |stage| {
        for style in ["lockstep", "buffered"] {
            let mut pair = Pair::start_armed(stage, Paste::Lines);
            traffic::wait_for_guest(LONG).expect("the guest answers");
            pair.set_checkpoint_period(Duration::from_secs(3600));
            let mut http = Http::open().expect("a connection");
            let first = Clocks::read(&mut http);
            std::thread::sleep(Duration::from_secs(1));
            pair.set_checkpoint_style(style);
            let before = Clocks::read(&mut http);
            // What the two guests said is not the same: let the checkpoints for that pass.
            std::thread::sleep(Duration::from_millis(300));
            pair.arm(Side::Secondary, &format!("secondary-received=pause:{REACHED}"));
            let done = pair.figures()["checkpoints"].as_u64();
            pair.set_checkpoint_period(Duration::from_secs(3600));
            wait_for("the checkpoint", || Path::new(REACHED).exists());
            // The primary's guest runs on, the secondary's does not yet.
            std::thread::sleep(HELD);
            pair.arm(Side::Secondary, "");
            std::fs::remove_file(REACHED).expect("the failpoint's file");
            wait_for("its end", || pair.figures()["checkpoints"].as_u64() != done);
            std::thread::sleep(Duration::from_millis(300));
            pair.lose_primary();
            let after = Clocks::read(&mut http);
            let lags = after.lags(&before, before.rate(&first));
            lags.iter()
                .for_each(|(clock, lag)| println!("{style}: the survivor's {clock} is {:.1} ms late", lag * 1000.0));
            assert!(lags.iter().all(|(_, lag)| lag.abs() < HELD.as_secs_f64() / 2.0), "{style}: {lags:?}");
            pair.end();
        }
    });
}
