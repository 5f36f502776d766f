//! The documented procedure, replayed.
use lockstep_compat_tests::colo::{LONG, Pair, Paste};
use lockstep_compat_tests::stage::Layout::{OneHost, TwoHosts};
use lockstep_compat_tests::stage::{Stage, on_stage};
use lockstep_compat_tests::traffic::{self, Echo, Http, KeyValues, Pace};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(400);

fn ping() -> Pace {
    Pace::PingPong { size: 100, pause: Duration::from_millis(5) }
}

/// A pair with the guest up and the short checkpoint period of step 5.
fn running_pair(stage: &Stage, paste: Paste) -> Pair<'_> {
    let mut pair = Pair::start(stage, paste);
    traffic::wait_for_guest(LONG).expect("the guest answers");
    pair.set_checkpoint_delay();
    pair
}

#[test]
fn steps_1_to_5_make_a_pair_that_serves_and_checkpoints() {
    on_stage(OneHost, LIMIT, |stage| {
        let mut pair = running_pair(stage, Paste::Lines);
        let mut echo = Echo::start(1, ping()).expect("a connection");
        pair.wait_for_checkpoints(3);
        echo.wait_for_progress(1000, LONG).expect("echo");
        let mut http = Http::open().expect("a connection");
        let mut pairs = KeyValues::default();
        (0..5).for_each(|_| pairs.put_next(&mut http, 1000).expect("PUT"));
        traffic::download(1 << 20, 1).expect("download");
        traffic::upload(1 << 20, 2).expect("upload");
        pairs.verify(&mut http).expect("acknowledged pairs");
        echo.finish().expect("no byte lost, doubled or wrong");
        pair.end();
    });
}

#[test]
fn the_primary_goes_on_after_the_secondary_dies_and_gets_a_new_one() {
    on_stage(OneHost, LIMIT, |stage| survives_the_secondary(stage, Paste::Lines));
}

#[test]
fn the_primary_goes_on_when_each_file_is_pasted_in_one_write() {
    on_stage(OneHost, LIMIT, |stage| survives_the_secondary(stage, Paste::AtOnce));
}

fn survives_the_secondary(stage: &Stage, paste: Paste) {
    let mut pair = running_pair(stage, paste);
    let mut echo = Echo::start(3, ping()).expect("a connection");
    pair.wait_for_checkpoints(1);
    pair.lose_secondary();
    echo.wait_for_progress(1000, LONG).expect("echo after the failover");
    pair.resume();
    pair.wait_for_checkpoints(1);
    echo.wait_for_progress(1000, LONG).expect("echo with the new secondary");
    echo.finish().expect("no byte lost, doubled or wrong");
    pair.end();
}

#[test]
fn the_secondary_takes_over_after_the_primary_dies_and_gets_a_new_partner() {
    on_stage(OneHost, LIMIT, |stage| survives_the_primary(stage, Paste::Lines));
}

#[test]
fn the_secondary_takes_over_when_each_file_is_pasted_in_one_write() {
    on_stage(OneHost, LIMIT, |stage| survives_the_primary(stage, Paste::AtOnce));
}

fn survives_the_primary(stage: &Stage, paste: Paste) {
    let mut pair = running_pair(stage, paste);
    let mut echo = Echo::start(4, ping()).expect("a connection");
    let mut http = Http::open().expect("a connection");
    let mut pairs = KeyValues::default();
    (0..5).for_each(|_| pairs.put_next(&mut http, 2000).expect("PUT"));
    pair.wait_for_checkpoints(1);
    (0..5).for_each(|_| pairs.put_next(&mut http, 2000).expect("PUT"));
    pair.lose_primary();
    echo.wait_for_progress(1000, LONG).expect("echo after the failover");
    pairs.verify(&mut http).expect("acknowledged pairs after the failover");
    pair.resume();
    pair.wait_for_checkpoints(1);
    echo.wait_for_progress(1000, LONG).expect("echo with the new secondary");
    pairs.verify(&mut http).expect("acknowledged pairs with the new secondary");
    echo.finish().expect("no byte lost, doubled or wrong");
    pair.end();
}

#[test]
fn roles_change_three_times_without_a_restart_of_the_survivor() {
    on_stage(OneHost, LIMIT, |stage| {
        let mut pair = running_pair(stage, Paste::Lines);
        let mut echo = Echo::start(5, ping()).expect("a connection");
        for _ in 0..3 {
            let mut http = Http::open().expect("a connection");
            let mut pairs = KeyValues::default();
            pairs.put_next(&mut http, 500).expect("PUT");
            pair.set_checkpoint_delay();
            pair.wait_for_checkpoints(1);
            pair.lose_primary();
            echo.wait_for_progress(1000, LONG).expect("echo after the failover");
            pairs.verify(&mut http).expect("acknowledged pairs");
            pair.resume();
        }
        pair.wait_for_checkpoints(1);
        echo.finish().expect("no byte lost, doubled or wrong");
        pair.end();
    });
}

#[test]
fn a_flooded_connection_lives_over_the_failover() {
    on_stage(OneHost, LIMIT, |stage| {
        let mut pair = running_pair(stage, Paste::Lines);
        let mut echo = Echo::start(6, Pace::Flood).expect("a connection");
        echo.wait_for_progress(100_000, LONG).expect("echo");
        pair.wait_for_checkpoints(1);
        pair.lose_primary();
        echo.wait_for_progress(100_000, LONG).expect("echo after the failover");
        echo.finish().expect("no byte lost, doubled or wrong");
        pair.end();
    });
}

#[test]
fn different_answers_force_a_checkpoint_and_equal_ones_do_not() {
    on_stage(OneHost, LIMIT, |stage| {
        let mut pair = Pair::start(stage, Paste::Lines);
        traffic::wait_for_guest(LONG).expect("the guest answers");
        // The period is still the default of 20 s: what comes sooner was asked for by a difference.
        let mut http = Http::open().expect("a connection");
        http.get("/").expect("an answer");
        let mark = pair.primary.monitor.mark();
        (0..20).for_each(|_| drop(http.get("/").expect("an answer")));
        let quiet = pair.primary.monitor.checkpoints_since(mark);
        assert!(quiet <= 1, "{quiet} checkpoints for equal answers");
        let mark = pair.primary.monitor.mark();
        let answers: Vec<String> = (0..3).map(|_| http.get("/random").expect("an answer").text()).collect();
        assert!(answers.iter().all(|answer| answer.len() == 33), "{answers:?}");
        pair.primary.monitor.events("RESUME", 3, mark, LONG).expect("a checkpoint for each difference");
        pair.set_checkpoint_delay();
        pair.end();
    });
}

#[test]
fn the_secondary_takes_over_when_the_primarys_host_vanishes_from_the_network() {
    on_stage(TwoHosts, LIMIT, |stage| survives_the_primary(stage, Paste::Lines));
}

#[test]
fn the_primary_goes_on_when_the_secondarys_host_vanishes_from_the_network() {
    on_stage(TwoHosts, LIMIT, |stage| survives_the_secondary(stage, Paste::Lines));
}
