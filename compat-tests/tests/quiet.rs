//! What both sides say alike forces no checkpoint, however it was cut into packets.
use lockstep_compat_tests::colo::{LONG, Pair, Paste};
use lockstep_compat_tests::machine::{MONITORS, Machine};
use lockstep_compat_tests::stage::Layout::OneHost;
use lockstep_compat_tests::stage::{Stage, on_stage};
use lockstep_compat_tests::traffic::{self, Echo, Http, Pace};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);

/// A pair whose guest is up and whose clock asks for no checkpoint.
fn pair_without_clock(stage: &Stage) -> Pair<'_> {
    let mut pair = Pair::start(stage, Paste::Lines);
    traffic::wait_for_guest(LONG).expect("the guest answers");
    pair.set_checkpoint_period(Duration::from_secs(3600));
    // The change makes a checkpoint; one that was under way is none of it.
    let start = Instant::now();
    while statistics(&mut pair.primary)["causes"]["parameter"] == 0 {
        assert!(start.elapsed() < LONG, "no checkpoint for the change");
        std::thread::sleep(Duration::from_millis(10));
    }
    pair
}

fn expect_no_checkpoint(what: &str, primary: &mut Machine, work: impl FnOnce()) {
    let before = statistics(primary);
    work();
    let after = statistics(primary);
    assert_eq!(before["checkpoints"], after["checkpoints"], "checkpoints forced by {what}: {before:#}\n{after:#}");
}

fn statistics(primary: &mut Machine) -> Value {
    primary.monitor.command(r#"{"execute": "query-colo-status"}"#)["statistics"].take()
}

#[test]
fn a_thousand_new_connections_force_no_checkpoint() {
    on_stage(OneHost, LIMIT, |stage| {
        let mut pair = pair_without_clock(stage);
        expect_no_checkpoint("connections one after another", &mut pair.primary, || {
            (0..800).for_each(|_| drop(Http::open().expect("a connection").get("/").expect("an answer")));
        });
        expect_no_checkpoint("connections of eight clients at once", &mut pair.primary, || {
            let client =
                || (0..25).for_each(|_| drop(Http::open().expect("a connection").get("/").expect("an answer")));
            let clients: Vec<_> = (0..8).map(|_| std::thread::spawn(client)).collect();
            clients.into_iter().for_each(|client| client.join().expect("every answer"));
        });
        pair.end();
    });
}

#[test]
fn transfers_in_both_directions_force_no_checkpoint() {
    on_stage(OneHost, LIMIT, |stage| {
        let mut pair = pair_without_clock(stage);
        expect_no_checkpoint("a download", &mut pair.primary, || _ = traffic::download(24 << 20, 1).expect("download"));
        expect_no_checkpoint("an upload", &mut pair.primary, || _ = traffic::upload(24 << 20, 2).expect("upload"));
        expect_no_checkpoint("both at once beside an echo", &mut pair.primary, || {
            let mut flood = Echo::start(3, Pace::Flood).expect("a connection");
            let download = std::thread::spawn(|| traffic::download(8 << 20, 4));
            let upload = std::thread::spawn(|| traffic::upload(8 << 20, 5));
            download.join().expect("no panic").expect("download");
            upload.join().expect("no panic").expect("upload");
            flood.wait_for_progress(100_000, LONG).expect("echo");
            flood.finish().expect("no byte lost, doubled or wrong");
        });
        pair.end();
    });
}

#[test]
fn the_view_sees_a_pair_and_a_survivor() {
    on_stage(OneHost, LIMIT, |stage| {
        let Some(view) = stage.emulator.program("colo-view") else {
            println!("skipped: colo-view is not built");
            return;
        };
        let sockets = tempfile::tempdir().expect("a folder");
        // SAFETY: no other thread of this process reads the environment yet.
        unsafe { std::env::set_var(MONITORS, sockets.path()) };
        let mut pair = pair_without_clock(stage);
        let look = || {
            let monitors = ["primary.qmp", "secondary1.qmp"].map(|name| sockets.path().join(name));
            let output =
                Command::new(&view).args(monitors).arg("--once").stdin(Stdio::null()).output().expect("colo-view");
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (in_lockstep, text) = look();
        assert!(in_lockstep, "{text}");
        let role =
            |text: &str, side: &str, role: &str| text.lines().any(|line| line.contains(side) && line.contains(role));
        assert!(role(&text, "primary.qmp", ": primary, ") && role(&text, "secondary1.qmp", ": secondary, "), "{text}");
        assert!(text.contains("parameter 1"), "{text}");
        pair.lose_primary();
        let (in_lockstep, text) = look();
        assert!(!in_lockstep && role(&text, "secondary1.qmp", "lock-step ended"), "{text}");
        pair.end();
    });
}
