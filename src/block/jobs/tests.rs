//! Mirror and backup as a monitor sees them: events, results, what is on the target in the end.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};

use super::backup::{BackupArgs, blockdev_backup, drive_backup};
use super::commands::{MirrorArgs, NewImageMode, blockdev_mirror, drive_mirror};
use super::mirror::SyncMode;
use super::*;
use crate::commands;
use crate::export::server::{ListenAddress, ServerOptions};
use crate::export::{Exports, NbdExportOptions};
use crate::testing::{on_context, options};
use crate::*;

#[derive(Clone, Default)]
struct Events(Rc<RefCell<Vec<(String, Value)>>>);

impl Events {
    /// Events in brief: status changes by their status, others by their name.
    fn brief(&self) -> Vec<String> {
        let name = |(name, data): &(String, Value)| match data["status"].as_str() {
            Some(status) => status.to_owned(),
            None => name.clone(),
        };
        self.0.borrow().iter().map(name).collect()
    }

    fn last(&self, wanted: &str) -> Value {
        self.0.borrow().iter().rev().find(|(name, _)| name == wanted).map(|(_, data)| data.clone()).unwrap_or_default()
    }

    async fn wait_for(&self, wanted: &str) {
        tokio::time::timeout(Duration::from_secs(20), async {
            while !self.brief().iter().any(|n| n == wanted) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no {wanted} in {:?}", self.brief()));
    }
}

struct Pair {
    graph: Graph,
    events: Events,
    _dir: tempfile::TempDir,
    source: std::path::PathBuf,
    target: std::path::PathBuf,
}

/// A device `disk0` with a quorum of one raw image, and a second image beside it.
async fn pair(size: u64, target_size: u64) -> Pair {
    let graph = Graph::new();
    let events = Events::default();
    let sink = events.clone();
    graph.set_event_sink(Rc::new(move |name, data| sink.0.borrow_mut().push((name.to_owned(), data))));
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    std::fs::File::create(&source).unwrap().set_len(size).unwrap();
    std::fs::File::create(&target).unwrap().set_len(target_size).unwrap();
    let opts = options(&[
        ("driver", "quorum"),
        ("read-pattern", "fifo"),
        ("vote-threshold", "1"),
        ("children.0.driver", "raw"),
        ("children.0.file.filename", source.to_str().unwrap()),
    ]);
    let node = graph.open(None, opts, OpenFlags::default()).await.unwrap();
    let backend = Backend::new(&graph, Some("disk0")).unwrap();
    backend.set_perms(Perm::CONSISTENT_READ | Perm::WRITE, Perm::all()).unwrap();
    backend.insert(&node).unwrap();
    Pair { graph, events, _dir: dir, source, target }
}

fn resync(sync: SyncMode) -> MirrorArgs {
    let mut args = MirrorArgs::new("disk0", sync);
    args.common.job_id = Some("resync".into());
    args
}

#[test]
fn a_mirror_becomes_ready_follows_writes_and_a_soft_cancel_completes_it() {
    on_context(async {
        let p = pair(20 << 20, 20 << 20).await;
        let disk = p.graph.find_backend("disk0").unwrap();
        disk.write(1 << 20, &vec![3; 5 << 20], WriteFlags::empty()).await.unwrap();
        let target = p.target.to_str().unwrap();
        drive_mirror(&p.graph, resync(SyncMode::Full), target, Some("raw"), NewImageMode::Existing, None)
            .await
            .unwrap();
        p.events.wait_for("BLOCK_JOB_READY").await;
        assert_eq!(
            p.events.last("BLOCK_JOB_READY"),
            json!({"device": "resync", "len": 20 << 20, "offset": 20 << 20, "speed": 0, "type": "mirror"})
        );
        let again = drive_mirror(&p.graph, resync(SyncMode::Full), target, Some("raw"), NewImageMode::Existing, None);
        assert_eq!(again.await.unwrap_err().message(), "Need a root block node");
        let jobs = Jobs::of(&p.graph);
        assert_eq!(
            jobs.query_jobs(),
            json!([{"id": "resync", "type": "mirror", "status": "ready",
                "current-progress": 20 << 20, "total-progress": 20 << 20}])
        );
        disk.write(123, &[9; 70_000], WriteFlags::empty()).await.unwrap();
        disk.write_zeroes(2 << 20, 1 << 20, WriteFlags::empty()).await.unwrap();
        // A machine that stops drains everything: the job stands by for that time.
        drop(p.graph.drain_all().await);
        p.events.wait_for("standby").await;
        jobs.block_job_cancel("resync", false).unwrap();
        jobs.settle().await;
        assert_eq!(
            p.events.brief(),
            [
                "created",
                "running",
                "ready",
                "BLOCK_JOB_READY",
                "standby",
                "ready",
                "waiting",
                "pending",
                "BLOCK_JOB_COMPLETED",
                "concluded",
                "null"
            ]
        );
        assert_eq!(p.events.last("BLOCK_JOB_COMPLETED").get("error"), None);
        disk.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        disk.flush().await.unwrap();
        let (a, b) = (std::fs::read(&p.source).unwrap(), std::fs::read(&p.target).unwrap());
        assert!(a[512..] == b[512..] && b[0] == 0, "equal at the end of the job, and on its own since");
        let gone = jobs.block_job_cancel("resync", false).unwrap_err();
        assert_eq!(gone.message(), "Block job 'resync' not found");
        assert_eq!(gone.class(), lockstep_util::ErrorClass::DeviceNotActive);
    });
}

#[test]
fn a_target_of_another_size_ends_the_job_with_an_error() {
    on_context(async {
        let p = pair(2 << 20, 1 << 20).await;
        let target = p.target.to_str().unwrap();
        drive_mirror(&p.graph, resync(SyncMode::Full), target, Some("raw"), NewImageMode::Existing, None)
            .await
            .unwrap();
        p.events.wait_for("null").await;
        assert_eq!(p.events.brief(), ["created", "running", "aborting", "BLOCK_JOB_COMPLETED", "concluded", "null"]);
        assert_eq!(
            p.events.last("BLOCK_JOB_COMPLETED"),
            json!({"device": "resync", "len": 0, "offset": 0, "speed": 0, "type": "mirror",
                "error": "Source and target image have different sizes"})
        );
    });
}

#[test]
fn a_cancel_before_ready_is_a_cancel() {
    on_context(async {
        let p = pair(64 << 20, 64 << 20).await;
        let disk = p.graph.find_backend("disk0").unwrap();
        disk.write(0, &vec![3; 32 << 20], WriteFlags::empty()).await.unwrap();
        let mut args = resync(SyncMode::Full);
        args.common.speed = 1 << 20;
        let target = p.target.to_str().unwrap();
        drive_mirror(&p.graph, args, target, Some("raw"), NewImageMode::Existing, None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let jobs = Jobs::of(&p.graph);
        assert_eq!(
            jobs.job_complete("resync").unwrap_err().message(),
            "Job 'resync' in state 'running' cannot accept command verb 'complete'"
        );
        jobs.block_job_pause("resync").unwrap();
        p.events.wait_for("paused").await;
        assert_eq!(
            jobs.block_job_cancel("resync", false).unwrap_err().message(),
            "The block job for device 'resync' is currently paused"
        );
        jobs.block_job_resume("resync").unwrap();
        jobs.block_job_cancel("resync", false).unwrap();
        p.events.wait_for("null").await;
        let tail = ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"];
        assert_eq!(p.events.brief()[p.events.brief().len() - 4..], tail);
    });
}

#[test]
fn completing_a_mirror_moves_the_device_to_the_copy() {
    on_context(async {
        let p = pair(2 << 20, 2 << 20).await;
        let disk = p.graph.find_backend("disk0").unwrap();
        disk.write(0, &[5; 4096], WriteFlags::empty()).await.unwrap();
        let opts = options(&[("driver", "raw"), ("node-name", "copy"), ("file.filename", p.target.to_str().unwrap())]);
        p.graph.blockdev_add(opts).await.unwrap();
        blockdev_mirror(&p.graph, resync(SyncMode::Full), "copy").await.unwrap();
        p.events.wait_for("BLOCK_JOB_READY").await;
        Jobs::of(&p.graph).block_job_complete("resync").unwrap();
        p.events.wait_for("null").await;
        assert_eq!(disk.node().unwrap().name(), "copy");
        let mut buf = [0; 4096];
        disk.read(0, &mut buf).await.unwrap();
        assert_eq!(buf, [5; 4096]);
    });
}

#[test]
fn only_new_writes_are_copied_with_sync_none() {
    on_context(async {
        let p = pair(2 << 20, 2 << 20).await;
        let disk = p.graph.find_backend("disk0").unwrap();
        disk.write(0, &[5; 65536], WriteFlags::empty()).await.unwrap();
        let target = p.target.to_str().unwrap();
        drive_mirror(&p.graph, resync(SyncMode::None), target, Some("raw"), NewImageMode::Existing, None)
            .await
            .unwrap();
        p.events.wait_for("BLOCK_JOB_READY").await;
        disk.write(1 << 20, &[6; 65536], WriteFlags::empty()).await.unwrap();
        Jobs::of(&p.graph).block_job_cancel("resync", false).unwrap();
        p.events.wait_for("null").await;
        let copy = std::fs::read(&p.target).unwrap();
        assert!(copy[0] == 0 && copy[1 << 20] == 6);
    });
}

#[test]
fn a_mostly_empty_disk_is_mirrored_to_a_dirty_target_quickly_and_completely() {
    on_context(async {
        let p = pair(10 << 30, 10 << 30).await;
        let disk = p.graph.find_backend("disk0").unwrap();
        for i in 0..20 {
            disk.write(i * 500_000_000 + 512, &[i as u8 + 1; 8192], WriteFlags::empty()).await.unwrap();
        }
        {
            use std::os::unix::fs::FileExt;
            let file = std::fs::OpenOptions::new().write(true).open(&p.target).unwrap();
            file.write_all_at(&[0xee; 100_000], 7 << 30).unwrap();
        }
        let started = std::time::Instant::now();
        let target = p.target.to_str().unwrap();
        drive_mirror(&p.graph, resync(SyncMode::Full), target, Some("raw"), NewImageMode::Existing, None)
            .await
            .unwrap();
        p.events.wait_for("BLOCK_JOB_READY").await;
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        Jobs::of(&p.graph).block_job_cancel("resync", false).unwrap();
        p.events.wait_for("null").await;
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::open(&p.target).unwrap();
        let mut buf = vec![1; 100_000];
        file.read_exact_at(&mut buf, 7 << 30).unwrap();
        assert!(buf.iter().all(|b| *b == 0));
        for i in 0..20u64 {
            file.read_exact_at(&mut buf[..8192], i * 500_000_000 + 512).unwrap();
            assert!(buf[..8192].iter().all(|b| *b == i as u8 + 1));
        }
    });
}

#[test]
fn the_pasted_resync_runs_without_a_pause_against_an_export_that_takes_one_client() {
    on_context(async {
        let p = pair(4 << 20, 4 << 20).await;
        let other = Graph::new();
        let opts =
            options(&[("driver", "raw"), ("node-name", "parent0"), ("file.filename", p.target.to_str().unwrap())]);
        other.blockdev_add(opts).await.unwrap();
        let exports = Exports::of(&other);
        let mut server = ServerOptions::new(ListenAddress::Inet { host: "127.0.0.1".into(), port: "0".into() });
        server.max_connections = 1;
        exports.server_start(&other, server).await.unwrap();
        let export = NbdExportOptions { node: "parent0".into(), writable: true, ..NbdExportOptions::default() };
        exports.server_add(&other, export).await.unwrap();
        let address = exports.server_address().unwrap();
        let port = address.rsplit(':').next().unwrap();

        let disk = p.graph.find_backend("disk0").unwrap();
        disk.write(0, &vec![4; 1 << 20], WriteFlags::empty()).await.unwrap();
        let uri = format!("nbd://127.0.0.1:{port}/parent0");
        drive_mirror(&p.graph, resync(SyncMode::Full), &uri, Some("raw"), NewImageMode::Existing, None).await.unwrap();
        p.events.wait_for("BLOCK_JOB_READY").await;
        disk.write(2 << 20, &[8; 512], WriteFlags::empty()).await.unwrap();
        drop(p.graph.drain_all().await);
        Jobs::of(&p.graph).block_job_cancel("resync", false).unwrap();
        let opts = options(&[
            ("driver", "replication"),
            ("mode", "primary"),
            ("file.driver", "nbd"),
            ("file.host", "127.0.0.1"),
            ("file.port", port),
            ("file.export", "parent0"),
            ("node-name", "replication0"),
        ]);
        commands::drive_add_node(&p.graph, opts).await.unwrap();
        commands::x_blockdev_change(&p.graph, "disk0", None, Some("replication0")).await.unwrap();
        assert_eq!(p.events.brief().last().map(String::as_str), Some("null"));
        crate::replication::all::replication_start_all(&p.graph, crate::replication::ReplicationMode::Primary)
            .await
            .unwrap();
        disk.write(3 << 20, &[7; 512], WriteFlags::empty()).await.unwrap();
        disk.flush().await.unwrap();
        drop(p.graph.drain_all().await);
        let (a, b) = (std::fs::read(&p.source).unwrap(), std::fs::read(&p.target).unwrap());
        assert!(a == b);
    });
}

#[test]
fn a_backup_holds_the_disk_as_it_was_at_its_start() {
    on_context(async {
        let p = pair(16 << 20, 16 << 20).await;
        let disk = p.graph.find_backend("disk0").unwrap();
        let old: Vec<u8> = (0..16u32 << 20).map(|i| (i >> 12) as u8 | 1).collect();
        disk.write(0, &old, WriteFlags::empty()).await.unwrap();
        let mut args = BackupArgs::new("disk0", SyncMode::Full);
        args.common.job_id = Some("b".into());
        args.common.speed = 64 << 20;
        drive_backup(&p.graph, args, p.target.to_str().unwrap(), Some("raw"), NewImageMode::Existing).await.unwrap();
        let mut state = 12345u64;
        for _ in 0..50 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let offset = (state >> 33) % ((16 << 20) - 70_000);
            disk.write(offset, &[0; 70_000], WriteFlags::empty()).await.unwrap();
        }
        p.events.wait_for("null").await;
        assert_eq!(p.events.last("BLOCK_JOB_COMPLETED").get("error"), None);
        assert!(std::fs::read(&p.target).unwrap() == old);
        assert!(std::fs::read(&p.source).unwrap() != old);
    });
}

#[test]
fn a_backup_without_sync_copies_only_what_is_overwritten() {
    on_context(async {
        let p = pair(2 << 20, 2 << 20).await;
        let disk = p.graph.find_backend("disk0").unwrap();
        disk.write(0, &vec![1; 2 << 20], WriteFlags::empty()).await.unwrap();
        let opts = options(&[("driver", "raw"), ("node-name", "copy"), ("file.filename", p.target.to_str().unwrap())]);
        p.graph.blockdev_add(opts).await.unwrap();
        let mut args = BackupArgs::new("disk0", SyncMode::None);
        args.common.job_id = Some("b".into());
        blockdev_backup(&p.graph, args, "copy").await.unwrap();
        disk.write(70_000, &[2; 10], WriteFlags::empty()).await.unwrap();
        Jobs::of(&p.graph).block_job_cancel("b", false).unwrap();
        p.events.wait_for("BLOCK_JOB_CANCELLED").await;
        let copy = std::fs::read(&p.target).unwrap();
        assert!(copy[..65536].iter().all(|b| *b == 0));
        assert!(copy[65536..131072].iter().all(|b| *b == 1));
        assert!(copy[131072..].iter().all(|b| *b == 0));
    });
}

#[test]
fn with_write_blocking_a_write_ends_when_the_target_has_it() {
    on_context(async {
        let p = pair(8 << 20, 8 << 20).await;
        let disk = p.graph.find_backend("disk0").unwrap();
        disk.write(0, &vec![1; 4 << 20], WriteFlags::empty()).await.unwrap();
        let mut args = resync(SyncMode::Full);
        args.write_blocking = true;
        let target = p.target.to_str().unwrap();
        drive_mirror(&p.graph, args, target, Some("raw"), NewImageMode::Existing, None).await.unwrap();
        for i in 0..40u64 {
            disk.write(i * 150_001, &vec![i as u8 | 0x80; 100_000], WriteFlags::empty()).await.unwrap();
        }
        p.events.wait_for("BLOCK_JOB_READY").await;
        assert_eq!(Jobs::of(&p.graph).query_block_jobs()[0]["actively-synced"], true);
        for i in 0..40u64 {
            disk.write(i * 77_777, &[i as u8 + 1; 5000], WriteFlags::empty()).await.unwrap();
            let (a, b) = (std::fs::read(&p.source).unwrap(), std::fs::read(&p.target).unwrap());
            assert!(a == b, "after write {i}");
        }
        Jobs::of(&p.graph).block_job_cancel("resync", false).unwrap();
        p.events.wait_for("null").await;
    });
}
