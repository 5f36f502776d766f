//! Whole migrations between machines of fakes.

use crate::MigrateArguments;
use crate::colo::Steps;
use crate::fake::{FakeMachine, FakeWorld};
use crate::hooks::VmControl;
use lockstep_event::Context;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

fn to(uri: impl Into<String>) -> MigrateArguments {
    MigrateArguments { uri: Some(uri.into()), ..MigrateArguments::default() }
}

/// Waits until `done`; a test that waits too long fails.
async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..5000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("waited too long: {what}");
}

fn in_context<F: Future<Output = ()>>(test: F) {
    Context::new("main").unwrap().run(test);
}

#[test]
fn a_machine_moves_whole_over_every_kind_of_channel() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (listen, connect) in [
        (format!("unix:{}", path("s")), format!("unix:{}", path("s"))),
        ("tcp:127.0.0.1:0".to_owned(), "tcp:127.0.0.1:PORT".to_owned()),
    ] {
        in_context(async {
            let world = Rc::new(FakeWorld::default());
            let (source, target) =
                (FakeMachine::running(&world, Steps::default()), FakeMachine::new(&world, Steps::default()));
            source.work(3);
            source.migration.set_capabilities([("events", true)]).unwrap();
            target.migration.start_incoming(&listen).unwrap();
            assert!(target.migration.is_waiting_for_guest());
            let e = target.migration.migrate(&to("tcp:127.0.0.1:1")).unwrap_err();
            assert_eq!(e.message(), "Guest is waiting for an incoming migration");
            let info = target.migration.info().to_json();
            assert_eq!(info["status"], "setup");
            let port = info["socket-address"][0]["port"].as_str().unwrap_or("").to_owned();
            source.migration.migrate(&to(connect.replace("PORT", &port))).unwrap();
            source.migration.wait().await;
            until("the target is complete", || target.status() == "completed").await;
            assert_eq!(source.status(), "completed");
            assert_eq!(source.contents(), target.contents());
            assert_eq!(target.whole_epoch(), Ok(3));
            assert_eq!((source.vm.run_state(), target.vm.run_state()), ("postmigrate".into(), "running".into()));
            assert!(!source.vm.disks_active.get() && target.vm.disks_active.get());
            assert_eq!(target.vm.announced.get().map(|a| (a.initial, a.rounds)), Some((50, 5)));
            let log = source.vm.take_log();
            let statuses: Vec<_> = log.iter().filter(|l| !l.starts_with("MIGRATION_PASS")).cloned().collect();
            assert_eq!(
                statuses,
                ["MIGRATION setup", "MIGRATION active", "STOP", "MIGRATION device", "MIGRATION completed"]
            );
            let info = source.migration.info().to_json();
            assert_eq!(info["ram"]["total"], 204 * 4096);
            assert_eq!(info["ram"]["remaining"], 0);
            assert!(info["downtime"].is_u64() && info["ram"]["transferred"].as_u64() > Some(0));
            let e = source.migration.migrate(&to("tcp:127.0.0.1:1")).unwrap_err();
            assert_eq!(e.message(), "Can't migrate the vm that was paused due to previous migration");
        });
    }
}

#[test]
fn a_file_holds_a_machine_that_another_process_reads_later() {
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("file:{},offset=512", dir.path().join("f").display());
    in_context(async {
        let world = Rc::new(FakeWorld::default());
        let (source, target) =
            (FakeMachine::running(&world, Steps::default()), FakeMachine::new(&world, Steps::default()));
        source.work(9);
        source.migration.migrate(&to(&uri)).unwrap();
        source.migration.wait().await;
        target.vm.autostart.set(false);
        target.migration.expect_incoming();
        target.migration.migrate_incoming(Some(&uri), None, None).unwrap();
        until("the target is complete", || target.status() == "completed").await;
        assert_eq!(target.whole_epoch(), Ok(9));
        assert_eq!(target.vm.run_state(), "paused", "-S");
        let e = target.migration.migrate_incoming(Some(&uri), None, None).unwrap_err();
        assert_eq!(e.message(), "The incoming migration has already been started");
    });
}

#[test]
fn a_guest_that_stood_still_stands_still_at_the_target() {
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("unix:{}", dir.path().join("s").display());
    in_context(async {
        let world = Rc::new(FakeWorld::default());
        let (source, target) =
            (FakeMachine::running(&world, Steps::default()), FakeMachine::new(&world, Steps::default()));
        source.vm.stop(crate::hooks::StopReason::Colo).await.unwrap();
        source.vm.set_run_state("paused");
        target.migration.start_incoming(&uri).unwrap();
        source.migration.migrate(&to(&uri)).unwrap();
        until("the target is complete", || target.status() == "completed").await;
        assert_eq!(target.vm.run_state(), "paused");
    });
}

#[test]
fn a_connection_that_fails_is_told_by_the_query() {
    in_context(async {
        let source = FakeMachine::running(&Rc::default(), Steps::default());
        source.migration.migrate(&to("tcp:127.0.0.1:1")).unwrap();
        source.migration.wait().await;
        let info = source.migration.info().to_json();
        let want = serde_json::json!({"status": "failed", "error-desc": "Failed to connect to '127.0.0.1:1': Connection refused"});
        assert_eq!(info, want);
        assert_eq!(source.vm.run_state(), "running");
        let e = source.migration.migrate(&MigrateArguments::default()).unwrap_err();
        assert_eq!(e.message(), "need either 'uri' or 'channels' argument");
        assert!(!source.migration.yank().is_registered());
    });
}

#[test]
fn a_cancelled_migration_leaves_the_guest_running_here() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    in_context(async {
        // Nobody reads: the socket fills up.
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let source = FakeMachine::running(&Rc::default(), Steps::default());
        (0..200).for_each(|page| source.ram.blocks()[0].write(page * 4096, &[1]).unwrap());
        source.migration.migrate(&to(format!("unix:{}", path.display()))).unwrap();
        until("it is active", || source.status() == "active").await;
        assert!(source.migration.yank().is_registered());
        let e = source.migration.set_capabilities([("events", true)]).unwrap_err();
        assert_eq!(e.message(), "There's a migration process in progress");
        source.migration.cancel();
        source.migration.wait().await;
        assert_eq!(source.status(), "cancelled");
        assert!(source.vm.is_running());
    });
}

/// Cancels an outgoing migration at the moment that this is noted for the `nth` time.
fn cancel_at(source: &FakeMachine, note: &'static str, nth: usize) {
    let (migration, seen) = (source.migration.clone(), Cell::new(0));
    *source.vm.at_note.borrow_mut() = Some(Box::new(move |what| {
        if what == note {
            seen.set(seen.get() + 1);
            if seen.get() == nth {
                migration.cancel();
            }
        }
    }));
}

#[test]
fn a_migration_is_cancelled_whatever_goes_on_at_that_moment() {
    let dir = tempfile::tempdir().unwrap();
    // The first pass is told before the migration is active.
    for (note, capability) in [("MIGRATION_PASS", "events"), ("STOP", "events"), ("STOP", "pause-before-switchover")] {
        in_context(async {
            let path = dir.path().join(format!("{note}-{capability}"));
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            std::thread::spawn(move || {
                let (mut peer, _) = listener.accept().unwrap();
                std::io::copy(&mut peer, &mut std::io::sink())
            });
            let source = FakeMachine::running(&Rc::default(), Steps::default());
            source.migration.set_capabilities([("events", true), (capability, true)]).unwrap();
            cancel_at(&source, note, 1);
            source.migration.migrate(&to(format!("unix:{}", path.display()))).unwrap();
            until("it is over", || !["setup", "active", "cancelling"].contains(&&*source.status())).await;
            assert_eq!(source.status(), "cancelled", "at {note}, {capability}");
            assert!(source.vm.is_running(), "at {note}, {capability}");
        });
    }
}

#[test]
fn a_pair_that_is_cancelled_before_it_stands_comes_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("unix:{}", dir.path().join("s").display());
    in_context(async {
        let world = Rc::new(FakeWorld::default());
        let (source, target) =
            (FakeMachine::running(&world, Steps::default()), FakeMachine::new(&world, Steps::default()));
        source.work(1);
        for machine in [&source, &target] {
            machine.migration.set_capabilities([("x-colo", true), ("events", true)]).unwrap();
        }
        // The last pass is told when the whole machine was sent.
        let (migration, at_device) = (source.migration.clone(), Cell::new(false));
        *source.vm.at_note.borrow_mut() = Some(Box::new(move |what| match what {
            "MIGRATION device" => at_device.set(true),
            "MIGRATION_PASS" if at_device.take() => migration.cancel(),
            _ => {}
        }));
        target.migration.start_incoming(&uri).unwrap();
        source.migration.migrate(&to(&uri)).unwrap();
        until("it is over", || ["cancelled", "colo"].contains(&&*source.status())).await;
        assert_eq!(source.status(), "cancelled");
        assert!(source.vm.is_running());
        assert_eq!(source.migration.colo_status()["mode"], "none");
    });
}

#[test]
fn a_pause_before_the_switchover_ends_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("file:{}", dir.path().join("f").display());
    in_context(async {
        let source = FakeMachine::running(&Rc::default(), Steps::default());
        source.migration.set_capabilities([("pause-before-switchover", true)]).unwrap();
        source.migration.migrate(&to(&uri)).unwrap();
        until("it pauses", || source.status() == "pre-switchover").await;
        let e = source.migration.go_on("device").unwrap_err();
        assert_eq!(e.message(), "Migration not in expected state: pre-switchover");
        source.migration.go_on("pre-switchover").unwrap();
        source.migration.wait().await;
        assert_eq!(source.status(), "completed");
    });
}

#[test]
fn a_stream_that_is_none_ends_a_receiver() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, b"not a machine at all").unwrap();
    in_context(async {
        let target = FakeMachine::new(&Rc::default(), Steps::default());
        target.migration.start_incoming(&format!("file:{}", path.display())).unwrap();
        until("it failed", || target.status() == "failed").await;
        assert_eq!(target.vm.take_log(), ["EXIT Not a migration stream"]);
    });
}
