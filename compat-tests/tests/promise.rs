//! The promise of COLO: what the outside has seen is true on the survivor.
use lockstep_compat_tests::colo::{LONG, Pair, Paste};
use lockstep_compat_tests::image::same_contents;
use lockstep_compat_tests::stage::Layout::{OneHost, TwoHosts};
use lockstep_compat_tests::stage::{Stage, on_stage};
use lockstep_compat_tests::traffic::{self, Echo, Http, KeyValues, Pace};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(400);

fn running_pair(stage: &Stage) -> Pair<'_> {
    let mut pair = Pair::start(stage, Paste::Lines);
    traffic::wait_for_guest(LONG).expect("the guest answers");
    pair.set_checkpoint_delay();
    pair
}

fn counter(http: &mut Http) -> u64 {
    let page = http.get("/counter").expect("the counter page").text();
    let word = page.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    word.unwrap_or_else(|| panic!("no counter in {page:?}"))
}

#[test]
fn a_counter_that_the_client_has_read_never_runs_backwards() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let mut http = Http::open().expect("a connection");
        http.request("POST", "/dirty?pages_per_second=2000&pages=2000", &[]).expect("POST");
        let mut seen = 0;
        for _ in 0..10 {
            let now = counter(&mut http);
            assert!(now >= seen, "{now} after {seen}");
            seen = now;
        }
        pair.lose_primary();
        let now = counter(&mut http);
        assert!(now >= seen, "{now} after the failover, {seen} before");
        pair.end();
    });
}

#[test]
fn thirty_two_connections_live_over_the_failover() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let pace = Pace::PingPong { size: 200, pause: Duration::from_millis(50) };
        let mut echoes: Vec<Echo> = (0..32).map(|seed| Echo::start(seed, pace).expect("a connection")).collect();
        echoes.iter_mut().for_each(|echo| echo.wait_for_progress(200, LONG).expect("echo"));
        pair.lose_primary();
        echoes.iter_mut().for_each(|echo| echo.wait_for_progress(400, LONG).expect("echo after the failover"));
        echoes.into_iter().for_each(|echo| drop(echo.finish().expect("no byte lost, doubled or wrong")));
        pair.end();
    });
}

#[test]
fn transfers_in_both_directions_live_over_the_failover() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        // Long enough to be under way when the primary dies, whatever the speed: they end by their size.
        let download = std::thread::spawn(|| traffic::download(40 << 20, 8));
        let upload = std::thread::spawn(|| traffic::upload(40 << 20, 9));
        pair.wait_for_checkpoints(1);
        pair.lose_primary();
        download.join().expect("no panic").expect("every byte of the download");
        upload.join().expect("no panic").expect("every byte of the upload");
        pair.end();
    });
}

#[test]
fn writes_acknowledged_until_the_last_moment_are_there_afterwards() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let writer = std::thread::spawn(|| {
            let (mut http, mut pairs) = (Http::open().expect("a connection"), KeyValues::default());
            (0..200).for_each(|_| pairs.put_next(&mut http, 700).expect("PUT"));
            pairs
        });
        pair.wait_for_checkpoints(1);
        pair.lose_primary();
        let pairs = writer.join().expect("no panic");
        pairs.verify(&mut Http::open().expect("a connection")).expect("acknowledged pairs");
        pair.end();
    });
}

#[test]
fn the_secondarys_disk_equals_the_primarys_once_writes_have_stopped() {
    on_stage(OneHost, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let mut http = Http::open().expect("a connection");
        let mut pairs = KeyValues::default();
        (0..20).for_each(|_| pairs.put_next(&mut http, 5000).expect("PUT"));
        pair.wait_for_checkpoints(1);
        let images = stage.hosts.clone().map(|host| Path::new(&host.place.folder).join("primary.qcow2"));
        pair.end();
        assert!(same_contents(&images[0], &images[1]).expect("readable images"));
    });
}
