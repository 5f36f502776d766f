//! The moments in which a pair could lose or spoil something, each forced: a host dies, hangs or goes wrong at a named step of a
//! checkpoint or a failover. Its link goes down before it is killed, so that nothing its kernel has buffered still gets out.
use lockstep_compat_tests::colo::{Death, LONG, Pair, Paste, Side};
use lockstep_compat_tests::deaths::{Blow, Moment, REACHED, Run, revocable_steps, steps};
use lockstep_compat_tests::machine::Machine;
use lockstep_compat_tests::monitor::{Event, Mark};
use lockstep_compat_tests::stage::Layout::TwoHosts;
use lockstep_compat_tests::stage::{Host, Stage, on_stage};
use lockstep_compat_tests::traffic::{self, Echo, Http, KeyValues, Pace};
use lockstep_migration::colo::Part;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(580);

fn running_pair(stage: &Stage) -> Pair<'_> {
    let pair = Pair::start_armed(stage, Paste::Lines);
    traffic::wait_for_guest(LONG).expect("the guest answers");
    pair
}

/// What the clients do all the while: an echo that loses no byte, and writes of which each that was acknowledged stays.
struct Clients {
    echo: Echo,
    writer: JoinHandle<KeyValues>,
}

impl Clients {
    fn start() -> Self {
        let pace = Pace::PingPong { size: 200, pause: Duration::from_millis(5) };
        let mut echo = Echo::start(1, pace).expect("a connection");
        let writer = std::thread::spawn(|| {
            let (mut http, mut pairs) = (Http::open().expect("a connection"), KeyValues::default());
            (0..150).for_each(|_| pairs.put_next(&mut http, 1500).expect("PUT"));
            pairs
        });
        echo.wait_for_progress(1000, LONG).expect("echo");
        Self { echo, writer }
    }

    fn check(mut self) {
        self.echo.wait_for_progress(2000, LONG).expect("echo afterwards");
        let pairs = self.writer.join().expect("no panic");
        pairs.verify(&mut Http::open().expect("a connection")).expect("acknowledged pairs");
        self.echo.finish().expect("no byte lost, doubled or wrong");
    }
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Asks for checkpoints until a failpoint holds one of the sides.
fn wait_for_step(pair: &mut Pair<'_>, step: &str) {
    let start = Instant::now();
    while !Path::new(REACHED).exists() {
        assert!(start.elapsed() < LONG, "waited too long: {step}");
        pair.set_checkpoint_delay();
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Frames that a VM has put on its host's network.
fn spoken(host: &Host) -> u64 {
    let output = host.command("ip").args(["-s", "-j", "link"]).output().expect("ip");
    let links: Vec<Value> = serde_json::from_slice(&output.stdout).expect("a list of links");
    let taps = links.iter().filter(|link| link["ifname"].as_str().is_some_and(|name| name.starts_with("tap")));
    taps.filter_map(|tap| tap["stats64"]["rx"]["packets"].as_u64()).sum()
}

/// The survivor of a primary that is alive: what this one does from now on shows nowhere.
fn expect_harmless(pair: &mut Pair<'_>, host: &Host, before: u64) {
    let exports = pair.primary.monitor.command(r#"{"execute": "query-block-exports"}"#);
    assert_eq!(exports, json!([]), "nobody else can write to the disk");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(spoken(host), before, "the old primary has spoken");
}

/// Lets hosts die one after another, each time in a pair that the survivor of the last one has found anew.
fn die(stage: &Stage, style: &'static str, blows: impl IntoIterator<Item = Blow>) {
    let mut run = Run::start(stage, Paste::Lines, 1).expect("the guest answers");
    run.set_checkpoint_style(style);
    let mut blows = blows.into_iter().peekable();
    while let Some(blow) = blows.next() {
        eprintln!("{blow}");
        run.strike(&blow).unwrap_or_else(|error| panic!("when there died {blow}: {error}"));
        if blows.peek().is_some() {
            run.resume().unwrap_or_else(|error| panic!("after there died {blow}: {error}"));
        }
    }
    let course = run.finish().expect("no byte lost, doubled or wrong");
    assert!(course.puts > 0 && course.bulk_bytes > 0 && course.echoes > 0, "{course:?}");
}

/// Whoever of the two is at a step, either may die then.
fn at_any_step_of_a_checkpoint(victim: Side) -> impl Iterator<Item = Blow> {
    let moments = steps(Part::Checkpoint).map(|step| Moment::Checkpoint { step, nth: 2 });
    moments.map(move |moment| Blow { victim, by: Death::Vanishing, moment })
}

#[test]
fn the_primary_may_die_at_any_step_of_a_checkpoint_on_either_side() {
    on_stage(TwoHosts, LIMIT, |stage| die(stage, "lockstep", at_any_step_of_a_checkpoint(Side::Primary)));
}

#[test]
fn the_secondary_may_die_at_any_step_of_a_checkpoint_on_either_side() {
    on_stage(TwoHosts, LIMIT, |stage| die(stage, "lockstep", at_any_step_of_a_checkpoint(Side::Secondary)));
}

#[test]
fn with_buffered_output_the_primary_may_die_at_any_step_of_a_checkpoint_on_either_side() {
    on_stage(TwoHosts, LIMIT, |stage| die(stage, "buffered", at_any_step_of_a_checkpoint(Side::Primary)));
}

#[test]
fn with_buffered_output_the_secondary_may_die_at_any_step_of_a_checkpoint_on_either_side() {
    on_stage(TwoHosts, LIMIT, |stage| die(stage, "buffered", at_any_step_of_a_checkpoint(Side::Secondary)));
}

#[test]
fn whoever_was_told_to_go_on_alone_may_die_before_it_speaks_and_the_other_goes_on() {
    on_stage(TwoHosts, LIMIT, |stage| {
        die(
            stage,
            "auto",
            revocable_steps().map(|step| Blow {
                victim: step.side,
                by: Death::Vanishing,
                moment: Moment::Failover(step),
            }),
        );
    });
}

#[test]
fn an_old_primary_that_was_frozen_and_wakes_up_neither_writes_nor_speaks() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let clients = Clients::start();
        pair.set_checkpoint_delay();
        pair.wait_for_checkpoints(1);
        // Clients go on, so that requests wait in its tap device when it wakes up.
        pair.primary.freeze();
        let host = stage.hosts[0].clone();
        std::thread::sleep(Duration::from_millis(300));
        let old = pair.take_over();
        let before = spoken(&host);
        old.thaw();
        old.monitor.event("COLO_EXIT", Mark::START, LONG).expect("it learns that it is alone");
        expect_harmless(&mut pair, &host, before);
        clients.check();
        drop(old);
        pair.end();
    });
}

#[test]
fn an_old_primary_that_was_frozen_at_any_step_of_a_checkpoint_neither_writes_nor_speaks() {
    on_stage(TwoHosts, LIMIT, |stage| {
        for step in ["primary-stopped", "primary-received", "primary-loaded"] {
            eprintln!("{step}");
            let mut pair = running_pair(stage);
            let clients = Clients::start();
            pair.arm(Side::Primary, &format!("{step}@2=pause:{REACHED},{step}@2=freeze"));
            wait_for_step(&mut pair, step);
            std::fs::remove_file(REACHED).expect("the failpoint's file");
            let host = stage.hosts[0].clone();
            std::thread::sleep(Duration::from_millis(300));
            let old = pair.take_over();
            let before = spoken(&host);
            old.thaw();
            expect_harmless(&mut pair, &host, before);
            clients.check();
            drop(old);
            pair.end();
        }
    });
}

#[test]
fn a_primary_whose_link_comes_back_after_it_was_replaced_neither_writes_nor_speaks() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let clients = Clients::start();
        pair.set_checkpoint_delay();
        pair.wait_for_checkpoints(1);
        let host = stage.hosts[0].clone();
        stage.cut(&host);
        let old = pair.take_over();
        stage.mend(&host);
        // What it says until the news has reached it repeats what was said before the link went down.
        old.monitor.event("COLO_EXIT", Mark::START, LONG).expect("it learns that it was replaced");
        let before = spoken(&host);
        expect_harmless(&mut pair, &host, before);
        clients.check();
        drop(old);
        pair.end();
    });
}

#[test]
fn a_frozen_secondary_holds_nothing_up() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let clients = Clients::start();
        pair.set_checkpoint_delay();
        pair.wait_for_checkpoints(1);
        pair.secondary().freeze();
        std::thread::sleep(Duration::from_secs(3));
        let start = Instant::now();
        pair.primary.monitor.command(r#"{"execute": "query-colo-status"}"#);
        pair.primary.monitor.command(r#"{"execute": "query-migrate"}"#);
        let old = pair.leave_secondary();
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "the failover took {took:?}");
        clients.check();
        drop(old);
        pair.end();
    });
}

/// The frames that a VM has lost at a place, as its figures tell.
fn losses(machine: &mut Machine, place: &str) -> u64 {
    let status = machine.monitor.command(r#"{"execute": "query-colo-status"}"#);
    let places = status["statistics"]["losses"].as_array().expect("a list of places").clone();
    let frames = places.iter().filter(|entry| entry["place"] == place).filter_map(|entry| entry["frames"].as_u64());
    frames.sum()
}

#[test]
fn what_the_secondary_says_into_a_broken_connection_is_said_again() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let clients = Clients::start();
        pair.set_checkpoint_period(Duration::from_secs(3600));
        for _ in 0..3 {
            let secondary = pair.secondary.as_mut().expect("a secondary");
            secondary
                .monitor
                .command(r#"{"execute": "yank", "arguments": {"instances": [{"type": "chardev", "id": "red1"}]}}"#);
            // It connects again after a second.
            std::thread::sleep(Duration::from_millis(1500));
        }
        let secondary = pair.secondary.as_mut().expect("a secondary");
        assert!(losses(secondary, "hn0/f2") > 0, "something was said meanwhile");
        // What was acknowledged to the clients is true on the secondary.
        pair.lose_primary();
        clients.check();
        pair.end();
    });
}

#[test]
fn a_mirror_that_is_full_keeps_the_pair_together() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let clients = Clients::start();
        pair.set_checkpoint_period(Duration::from_secs(3600));
        // Nobody listens on this port: the guest has nothing to say to it. More comes than sockets and queues hold.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for round in 0..3 {
            pair.secondary().freeze();
            let thawed = Instant::now() + Duration::from_millis(700);
            while Instant::now() < thawed {
                let _ = socket.send_to(&[round; 1400], SocketAddr::from((traffic::GUEST, 9)));
            }
            pair.secondary().thaw();
            std::thread::sleep(Duration::from_millis(300));
        }
        let status = pair.primary.monitor.command(r#"{"execute": "query-colo-status"}"#);
        assert_eq!(status["mode"], "primary", "{status}");
        println!("frames that the mirror lost: {}", losses(&mut pair.primary, "hn0/m0"));
        pair.lose_primary();
        clients.check();
        pair.end();
    });
}

#[test]
fn a_disk_write_that_the_secondary_does_not_get_ends_the_pair_before_the_next_checkpoint() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let mut http = Http::open().expect("a connection");
        http.get("/").expect("an answer");
        let secondary = pair.secondary.as_mut().expect("a secondary");
        secondary.monitor.command(r#"{"execute": "nbd-server-stop"}"#);
        let mark = pair.primary.monitor.mark();
        let writer = std::thread::spawn(move || {
            let mut pairs = KeyValues::default();
            pairs.put_next(&mut http, 1000).expect("PUT");
            pairs
        });
        let count = |pair: &mut Pair<'_>| {
            pair.primary.monitor.command(r#"{"execute": "query-colo-status"}"#)["statistics"]["checkpoints"].clone()
        };
        let made = count(&mut pair);
        // The write is under way before the checkpoint is asked for.
        std::thread::sleep(Duration::from_millis(500));
        pair.set_checkpoint_delay();
        let exit = pair.primary.monitor.event("COLO_EXIT", mark, LONG).expect("the pair ends");
        assert_eq!(exit.data["reason"], "error");
        assert_eq!(count(&mut pair), made, "no checkpoint was made of a stale disk");
        pair.lose_secondary();
        let pairs = writer.join().expect("no panic");
        pairs.verify(&mut Http::open().expect("a connection")).expect("the write");
        pair.end();
    });
}

#[test]
fn figures_and_events_tell_of_checkpoints_and_their_causes() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let mut pair = running_pair(stage);
        let on = r#"{"execute": "migrate-set-parameters", "arguments": {"x-checkpoint-events": true}}"#;
        let mark = pair.primary.monitor.mark();
        pair.primary.monitor.command(on);
        pair.secondary.as_mut().expect("a secondary").monitor.command(on);
        let mut http = Http::open().expect("a connection");
        http.get("/random").expect("an answer");
        let event = pair.primary.monitor.event("X_COLO_CHECKPOINT", mark, LONG).expect("an event");
        assert_eq!((&event.data["cause"], &event.data["protocol"]), (&json!("mismatch"), &json!("tcp")));
        pair.set_checkpoint_delay();
        let by_parameter = |event: &Event| event.name == "X_COLO_CHECKPOINT" && event.data["cause"] == "parameter";
        wait_for("the checkpoint for the parameter", || {
            pair.primary.monitor.events_since(mark).iter().any(by_parameter)
        });
        pair.secondary().monitor.event("X_COLO_CHECKPOINT", Mark::START, LONG).expect("an event");
        for query in ["query-colo-status", "query-migrate"] {
            let answer = pair.primary.monitor.command(&format!(r#"{{"execute": "{query}"}}"#));
            let figures = if query == "query-migrate" { &answer["colo"] } else { &answer["statistics"] };
            assert!(figures["causes"]["mismatch"].as_u64() >= Some(1), "{answer}");
            assert!(figures["causes"]["parameter"].as_u64() >= Some(1), "{answer}");
            assert!(figures["pause"]["median"].as_u64() > Some(0), "{answer}");
            assert!(figures["compare"][0]["released"].as_u64() > Some(0), "{answer}");
            assert_eq!(figures["compare"][0]["id"], "comp0", "{answer}");
        }
        pair.end();
    });
}
