//! Guests that say different things: the secondary's stands still while that lasts, the primary's output waits for checkpoints, and
//! nothing that the outside has seen is lost.
use lockstep_compat_tests::colo::{Death, LONG, Pair, Paste};
use lockstep_compat_tests::stage::Layout::TwoHosts;
use lockstep_compat_tests::stage::{Stage, on_stage};
use lockstep_compat_tests::traffic::{self, Http, KeyValues};
use std::io;
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

fn wait_for_style(pair: &mut Pair<'_>, style: &str) {
    let start = Instant::now();
    while pair.figures()["style"] != style {
        assert!(start.elapsed() < LONG, "waited too long for {style}: {:#}", pair.figures());
        std::thread::sleep(Duration::from_millis(5));
    }
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
        // Nothing differs any more: the next trial lasts.
        wait_for_style(&mut pair, "lockstep");
        assert!(secondary_runs(&mut pair));
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

/// The guest's time stamp counter, in seconds, and when it was read, as nearly as the answer's way lets know.
fn guest_time(http: &mut Http) -> (f64, Instant) {
    let read = |http: &mut Http| {
        let asked = Instant::now();
        let page = http.get("/clock").expect("the clock page").text();
        let numbers: Vec<f64> = page.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [tsc, khz] = numbers[..] else { panic!("no clock in {page:?}") };
        let took = asked.elapsed();
        (took, (tsc / khz / 1000.0, asked + took / 2))
    };
    let answers = (0..20).map(|_| read(http));
    answers.min_by_key(|(took, _)| *took).expect("answers").1
}

#[test]
fn the_survivors_clock_goes_on_from_where_the_primarys_was() {
    on_stage(TwoHosts, LIMIT, |stage| {
        for style in ["lockstep", "buffered"] {
            let mut pair = running_pair(stage);
            let mut http = Http::open().expect("a connection");
            pair.set_checkpoint_style(style);
            // Many pages: the secondary needs its time for them.
            for _ in 0..3 {
                http.request("POST", "/dirty?once=10000", &[]).expect("POST");
                pair.set_checkpoint_period(Duration::from_secs(3600));
            }
            let (before, at) = guest_time(&mut http);
            std::thread::sleep(Duration::from_millis(300));
            pair.lose_primary();
            let (after, then) = guest_time(&mut http);
            let lag = then.duration_since(at).as_secs_f64() - (after - before);
            println!("{style}: the survivor's clock is {:.2} ms late", lag * 1000.0);
            assert!(lag.abs() < 0.1, "{style}: it is {lag} s late");
            pair.end();
        }
    });
}
