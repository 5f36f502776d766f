//! Both sides of a pair in one process, joined by NBD: what each guest sees before and after checkpoints and failovers.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

use super::all::*;
use super::*;
use crate::commands::{drive_add_node, drive_del, x_blockdev_change};
use crate::export::server::{ListenAddress, ServerOptions};
use crate::export::{Exports, NbdExportOptions};
use crate::jobs::Jobs;
use crate::jobs::commands::{MirrorArgs, NewImageMode, drive_mirror};
use crate::jobs::mirror::SyncMode;
use crate::requests::RequestKind;
use crate::testing::{on_context, options};
use crate::*;

const SIZE: u64 = 4 << 20;

async fn create(path: &Path, size: u64) {
    let options = Options::from_pairs([("size", size.to_string())]);
    crate::image::create(&Graph::new(), path.to_str().unwrap(), "qcow2", options).await.unwrap();
}

async fn drive(graph: &Graph, id: &str, pairs: &[(&str, &str)], guest: bool) -> Rc<Backend> {
    let node = graph.open(None, options(pairs), OpenFlags::default()).await.unwrap();
    let backend = Backend::new(graph, Some(id)).unwrap();
    if guest {
        backend.set_perms(Perm::CONSISTENT_READ | Perm::WRITE, Perm::CONSISTENT_READ).unwrap();
    }
    backend.insert(&node).unwrap();
    backend
}

struct Side {
    graph: Graph,
    disk: Rc<Backend>,
    events: Rc<RefCell<Vec<(String, Value)>>>,
    dir: PathBuf,
}

impl Side {
    fn new_graph() -> (Graph, Rc<RefCell<Vec<(String, Value)>>>) {
        let graph = Graph::new();
        let events: Rc<RefCell<Vec<(String, Value)>>> = Rc::default();
        let sink = events.clone();
        graph.set_event_sink(Rc::new(move |name, data| sink.borrow_mut().push((name.to_owned(), data))));
        tokio::task::spawn_local(graph.clone().run_collector());
        (graph, events)
    }

    /// The drives of the documented secondary, waiting for its migration; the parent is exported.
    async fn secondary(dir: &Path) -> (Self, String) {
        let (graph, events) = Self::new_graph();
        let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        graph.set_opens_inactive(true);
        let parent = [("file.filename", &file("primary.qcow2")[..]), ("driver", "qcow2")];
        drive(&graph, "parent0", &parent, false).await;
        let childs = [
            ("driver", "replication"),
            ("mode", "secondary"),
            ("file.driver", "qcow2"),
            ("top-id", "colo-disk0"),
            ("file.file.filename", &file("active.qcow2")[..]),
            ("file.backing.driver", "qcow2"),
            ("file.backing.file.filename", &file("hidden.qcow2")[..]),
            ("file.backing.backing", "parent0"),
        ];
        drive(&graph, "childs0", &childs, false).await;
        let top = [("driver", "quorum"), ("read-pattern", "fifo"), ("vote-threshold", "1"), ("children.0", "childs0")];
        let disk = drive(&graph, "colo-disk0", &top, true).await;
        let exports = Exports::of(&graph);
        let address = ListenAddress::Inet { host: "127.0.0.1".into(), port: "0".into() };
        exports.server_start(&graph, ServerOptions::new(address)).await.unwrap();
        let export = NbdExportOptions { node: "parent0".into(), writable: true, ..NbdExportOptions::default() };
        exports.server_add(&graph, export).await.unwrap();
        let port = exports.server_address().unwrap().rsplit(':').next().unwrap().to_owned();
        (Self { graph, disk, events, dir: dir.to_owned() }, port)
    }

    async fn primary(dir: &Path, port: &str) -> Self {
        let (graph, events) = Self::new_graph();
        let top = [
            ("driver", "quorum"),
            ("read-pattern", "fifo"),
            ("vote-threshold", "1"),
            ("children.0.file.filename", dir.join("primary.qcow2").to_str().unwrap()),
            ("children.0.driver", "qcow2"),
        ]
        .map(|(k, v)| (k, v.to_owned()));
        let top: Vec<_> = top.iter().map(|(k, v)| (*k, &v[..])).collect();
        let disk = drive(&graph, "colo-disk0", &top, true).await;
        let side = Self { graph, disk, events, dir: dir.to_owned() };
        side.attach(port).await;
        side
    }

    async fn attach(&self, port: &str) {
        let opts = options(&[
            ("driver", "replication"),
            ("mode", "primary"),
            ("file.driver", "nbd"),
            ("file.host", "127.0.0.1"),
            ("file.port", port),
            ("file.export", "parent0"),
            ("node-name", "replication0"),
        ]);
        drive_add_node(&self.graph, opts).await.unwrap();
        x_blockdev_change(&self.graph, "colo-disk0", None, Some("replication0")).await.unwrap();
    }

    async fn write(&self, offset: u64, len: usize, byte: u8) {
        self.disk.write(offset, &vec![byte; len], WriteFlags::empty()).await.unwrap();
    }

    async fn contents(&self) -> Vec<u8> {
        let mut buf = vec![0; SIZE as usize];
        self.disk.read(0, &mut buf).await.unwrap();
        buf
    }

    async fn byte(&self, offset: u64) -> u8 {
        let mut buf = [0; 1];
        self.disk.read(offset, &mut buf).await.unwrap();
        buf[0]
    }

    /// The commit of a failover has ended.
    async fn committed(&self) {
        self.committed_beside(0).await;
    }

    /// The same with more nodes in the graph than those of the disk.
    async fn committed_beside(&self, others: usize) {
        tokio::time::timeout(Duration::from_secs(30), async {
            while replication_is_committing(&self.graph) || self.graph.nodes().len() > 4 + others {
                // Two graphs on one thread share one signal; each would miss some.
                self.graph.collect().await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .unwrap();
    }
}

struct Pair {
    p: Side,
    s: Side,
    _dirs: [tempfile::TempDir; 2],
}

/// A pair in lock-step.
async fn pair() -> Pair {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    create(&dirs[0].path().join("primary.qcow2"), SIZE).await;
    create(&dirs[1].path().join("primary.qcow2"), SIZE).await;
    create(&dirs[1].path().join("active.qcow2"), SIZE).await;
    create(&dirs[1].path().join("hidden.qcow2"), SIZE).await;
    let (s, port) = Side::secondary(dirs[1].path()).await;
    let p = Side::primary(dirs[0].path(), &port).await;
    s.graph.activate_all().await.unwrap();
    replication_start_all(&s.graph, ReplicationMode::Secondary).await.unwrap();
    replication_start_all(&p.graph, ReplicationMode::Primary).await.unwrap();
    Pair { p, s, _dirs: dirs }
}

impl Pair {
    async fn checkpoint(&self) {
        // The primary's machine stops: everything has arrived.
        drop(self.p.graph.drain_all().await);
        replication_get_error_all(&self.p.graph).unwrap();
        replication_do_checkpoint_all(&self.p.graph).await.unwrap();
        replication_get_error_all(&self.s.graph).unwrap();
        replication_do_checkpoint_all(&self.s.graph).await.unwrap();
    }
}

#[test]
fn the_primarys_writes_are_seen_and_the_secondarys_forgotten_at_a_checkpoint() {
    on_context(async {
        let pair = pair().await;
        pair.p.write(0, 65536, 0xaa).await;
        pair.p.write(200_000, 5000, 0xab).await;
        assert_eq!((pair.s.byte(0).await, pair.s.byte(200_001).await), (0, 0));
        pair.s.write(131_072, 65536, 0xbb).await;
        assert_eq!(pair.s.byte(131_072).await, 0xbb);
        pair.checkpoint().await;
        assert_eq!([pair.s.byte(0).await, pair.s.byte(204_999).await, pair.s.byte(131_072).await], [0xaa, 0xab, 0]);
        // Again, over the same places.
        pair.p.write(0, 512, 0xac).await;
        assert_eq!(pair.s.byte(0).await, 0xaa);
        pair.checkpoint().await;
        assert_eq!((pair.s.byte(0).await, pair.s.byte(512).await), (0xac, 0xaa));
    });
}

#[test]
fn a_failover_keeps_the_secondarys_writes_and_undoes_the_primarys_since_the_checkpoint() {
    on_context(async {
        let pair = pair().await;
        pair.p.write(0, 65536, 0xaa).await;
        pair.checkpoint().await;
        pair.p.write(0, 4096, 0xcc).await;
        pair.p.write(300_000, 100, 0xcc).await;
        pair.s.write(500_000, 1000, 0xdd).await;
        replication_stop_all(&pair.s.graph, true).await.unwrap();
        // The user has forgotten nbd-server-stop: the old primary is cut off all the same.
        assert_eq!(pair.s.events.borrow()[0].0, "BLOCK_EXPORT_DELETED");
        pair.p.write(1 << 20, 512, 0xee).await;
        drop(pair.p.graph.drain_all().await);
        assert_eq!(
            replication_get_error_all(&pair.p.graph).unwrap_err().message(),
            "I/O error occurred",
            "the primary knows that its write was not copied"
        );
        let bytes = [pair.s.byte(0).await, pair.s.byte(300_000).await, pair.s.byte(500_000).await];
        assert_eq!(bytes, [0xaa, 0, 0xdd]);
        pair.s.write(700_000, 512, 0xde).await;
        pair.s.committed().await;
        let mut names: Vec<_> = pair.s.graph.nodes().iter().map(|n| n.def().name).collect();
        names.sort_unstable();
        assert_eq!(names, ["file", "qcow2", "quorum", "replication"], "both overlays have left the graph");
        let bytes = [pair.s.byte(0).await, pair.s.byte(300_000).await, pair.s.byte(500_000).await];
        assert_eq!(bytes, [0xaa, 0, 0xdd]);
        assert_eq!((pair.s.byte(700_000).await, pair.s.byte(1 << 20).await), (0xde, 0));
        // Its lock-step is over: what migration tells all nodes later does not touch it.
        replication_start_all(&pair.s.graph, ReplicationMode::Primary).await.unwrap();
        replication_do_checkpoint_all(&pair.s.graph).await.unwrap();
        replication_stop_all(&pair.s.graph, true).await.unwrap();
        assert_eq!(pair.s.byte(700_000).await, 0xde);
        let exports = Exports::of(&pair.s.graph);
        exports.server_stop(&pair.s.graph).await.unwrap();
    });
}

#[test]
fn each_step_of_a_takeover_is_told_in_its_place() {
    on_context(async {
        let pair = pair().await;
        pair.s.write(0, 512, 1).await;
        pair.s.write(1 << 20, 512, 2).await;
        let told: Rc<RefCell<Vec<(&str, usize)>>> = Rc::default();
        let (diary, graph) = (told.clone(), pair.s.graph.downgrade());
        TakeoverSteps::of(&pair.s.graph).tell(Rc::new(move |step| {
            diary.borrow_mut().push((step, graph.upgrade().map_or(0, |graph| graph.nodes().len())));
            Box::pin(async {})
        }));
        replication_stop_all(&pair.s.graph, true).await.unwrap();
        let names = || told.borrow().iter().map(|(step, _)| *step).collect::<Vec<_>>();
        let failover = ["secondary-failover-revoked", "secondary-failover-drained", "secondary-failover-flushed"];
        assert_eq!(names(), failover);
        pair.s.committed().await;
        assert_eq!(names()[3..], ["secondary-merge", "secondary-merge", "secondary-merged"]);
        let before = told.borrow().iter().map(|(_, nodes)| *nodes).max().unwrap();
        assert_eq!(told.borrow().last().unwrap().1, before, "the overlays are still there at the last step");
        assert!(pair.s.graph.nodes().len() < before);
        let exports = Exports::of(&pair.s.graph);
        exports.server_stop(&pair.s.graph).await.unwrap();
    });
}

#[test]
fn neither_a_checkpoint_nor_a_takeover_goes_on_before_a_write_that_is_under_way_has_ended() {
    on_context(async {
        let pair = pair().await;
        let told: Rc<RefCell<Vec<&str>>> = Rc::default();
        let diary = told.clone();
        TakeoverSteps::of(&pair.s.graph).tell(Rc::new(move |step| {
            diary.borrow_mut().push(step);
            Box::pin(async {})
        }));
        let disk = pair.s.graph.find_backend("parent0").unwrap().node().unwrap();
        for failover in [false, true] {
            pair.s.write(0, 512, 9).await;
            // The write has begun, and has to wait in the middle.
            let in_its_way = disk.lock_range(1 << 20, 512).await;
            let mut write = std::pin::pin!(disk.write(1 << 20, &[1; 512], WriteFlags::empty()));
            assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            let graph = pair.s.graph.clone();
            let done = tokio::task::spawn_local(async move {
                match failover {
                    true => replication_stop_all(&graph, true).await.unwrap(),
                    false => replication_do_checkpoint_all(&graph).await.unwrap(),
                }
            });
            for _ in 0..200 {
                tokio::task::yield_now().await;
                assert!(!done.is_finished() && !told.borrow().contains(&"secondary-failover-drained"));
            }
            drop(in_its_way);
            write.await.unwrap();
            done.await.unwrap();
        }
        assert!(told.borrow().contains(&"secondary-failover-drained"));
        pair.s.committed().await;
        assert_eq!(pair.s.byte(0).await, 9);
        let exports = Exports::of(&pair.s.graph);
        exports.server_stop(&pair.s.graph).await.unwrap();
    });
}

#[test]
fn the_primary_goes_on_alone_as_documented_and_resyncs_to_the_survivor() {
    on_context(async {
        let pair = pair().await;
        pair.p.write(0, 512, 1).await;
        // The secondary dies.
        Exports::of(&pair.s.graph).server_stop(&pair.s.graph).await.unwrap();
        pair.p.write(0, 512, 2).await;
        drop(pair.p.graph.drain_all().await);
        pair.p.disk.flush().await.unwrap();
        let flush = pair.p.events.borrow().iter().find(|e| e.1["type"] == "flush").map(|e| e.1.clone()).unwrap();
        assert_eq!((&flush["node-name"], &flush["error"]), (&"replication0".into(), &"Input/output error".into()));
        x_blockdev_change(&pair.p.graph, "colo-disk0", Some("children.1"), None).await.unwrap();
        drive_del(&pair.p.graph, "replication0").await.unwrap();
        replication_stop_all(&pair.p.graph, true).await.unwrap();
        pair.p.write(512, 512, 3).await;
        assert_eq!((pair.p.byte(0).await, pair.p.byte(512).await), (2, 3));
    });
}

#[test]
fn nodes_that_cannot_take_part_say_why() {
    on_context(async {
        let graph = Graph::new();
        for (pairs, text) in [
            (&[][..], "Missing the option mode"),
            (&[("mode", "bogus")], "The option mode's value should be primary or secondary"),
            (&[("mode", "primary"), ("top-id", "x")], "The primary side does not support option top-id"),
            (&[("mode", "secondary")], "Missing the option top-id"),
        ] {
            let mut opts = options(pairs);
            opts.set("driver", "replication");
            opts.set("file.driver", "null-co");
            let e = graph.open(None, opts, OpenFlags::default()).await.unwrap_err();
            assert_eq!(e.message(), text);
        }
        let text = |r: lockstep_util::Result<()>| r.unwrap_err().message().to_owned();
        let opts = options(&[("driver", "replication"), ("mode", "primary"), ("file.driver", "null-co")]);
        let node = graph.open(None, opts, OpenFlags::default()).await.unwrap();
        assert_eq!(text(replication_do_checkpoint_all(&graph).await), "Block replication is not running");
        assert_eq!(text(replication_stop_all(&graph, false).await), "Block replication is not running");
        assert_eq!(
            text(replication_start_all(&graph, ReplicationMode::Secondary).await),
            "The parameter mode's value is invalid, needs 0, but got 1"
        );
        assert_eq!(node.read(0, &mut [0; 512]).await.unwrap_err().raw_os_error(), Some(libc::EIO));
        replication_start_all(&graph, ReplicationMode::Primary).await.unwrap();
        let again = replication_start_all(&graph, ReplicationMode::Primary).await;
        assert_eq!(text(again), "Block replication is running or done");
        assert_eq!(node.read(0, &mut [0; 512]).await.unwrap_err().raw_os_error(), Some(libc::EIO));
    });
}

#[test]
fn overlays_of_another_length_are_refused() {
    on_context(async {
        let dir = tempfile::tempdir().unwrap();
        create(&dir.path().join("primary.qcow2"), SIZE).await;
        create(&dir.path().join("active.qcow2"), SIZE).await;
        create(&dir.path().join("hidden.qcow2"), SIZE * 2).await;
        let (s, _) = Side::secondary(dir.path()).await;
        s.graph.activate_all().await.unwrap();
        let e = replication_start_all(&s.graph, ReplicationMode::Secondary).await.unwrap_err();
        assert_eq!(e.message(), "Active disk, hidden disk, secondary disk's length are not the same");
    });
}

#[test]
fn writes_of_a_primary_that_already_runs_wait_behind_the_gate_until_the_overlays_are_empty() {
    on_context(async {
        let pair = pair().await;
        pair.p.write(0, 512, 1).await;
        drop(pair.p.graph.drain_all().await);
        let gate = NbdWriteGate::close(&pair.s.graph);
        gate.quiet().await;
        pair.p.write(0, 512, 2).await;
        let graph = pair.p.graph.clone();
        let arrived = tokio::task::spawn_local(async move { drop(graph.drain_all().await) });
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(!arrived.is_finished());
        replication_do_checkpoint_all(&pair.s.graph).await.unwrap();
        drop(gate);
        arrived.await.unwrap();
        assert_eq!(pair.s.byte(0).await, 1, "the checkpoint has the old epoch's write and not the new one's");
        pair.checkpoint().await;
        assert_eq!(pair.s.byte(0).await, 2);
    });
}

#[test]
fn the_secondarys_reads_never_see_a_write_of_the_primary_half_way() {
    on_context(async {
        let pair = pair().await;
        pair.p.write(0, 1 << 20, 1).await;
        pair.checkpoint().await;
        let disk = pair.p.disk.clone();
        let writer = tokio::task::spawn_local(async move {
            for round in 2..40u8 {
                for i in 0..4 {
                    let offset = i * 262_144 + u64::from(round) * 512;
                    disk.write(offset, &[round; 100_000], WriteFlags::empty()).await.unwrap();
                }
            }
        });
        let mut round = 0u64;
        while !writer.is_finished() {
            let mut buf = vec![0; 1 << 20];
            pair.s.disk.read(0, &mut buf).await.unwrap();
            assert!(buf.iter().all(|b| *b == 1 || *b == 9), "round {round}");
            // Partial writes of the guest copy the rest of their cluster from below.
            pair.s.write((round * 77_777) % ((1 << 20) - 512), 512, 9).await;
            round += 1;
        }
        assert!(round > 3);
    });
}

#[test]
fn what_a_request_of_the_secondary_looks_at_stays_as_it_is_until_the_request_is_done() {
    on_context(async {
        let pair = pair().await;
        pair.p.write(0, 65536, 1).await;
        pair.checkpoint().await;
        let disk = pair.s.graph.find_backend("parent0").unwrap().node().unwrap();
        let waits = |offset| disk.requests.is_contended(RequestKind::Write, offset, 512);
        // The request has to wait in the middle.
        let active = pair.s.graph.find_backend("childs0").unwrap().node().unwrap().child("file").unwrap().node();
        let in_its_way = active.lock_range(4096, 512).await;
        let mut buf = [0; 512];
        {
            let mut read = std::pin::pin!(pair.s.disk.read(4096, &mut buf));
            assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            assert!(waits(4096) && !waits(1 << 20), "a write of the primary there");
            drop(in_its_way);
            read.await.unwrap();
        }
        assert!(!waits(4096));
        let in_its_way = active.lock_range(4096, 512).await;
        let mut write = std::pin::pin!(pair.s.disk.write(4096, &[9; 512], WriteFlags::empty()));
        assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(waits(60_000), "the rest of the cluster is copied from there");
        drop(in_its_way);
        write.await.unwrap();
        assert!(!waits(60_000));
    });
}

#[test]
fn a_peer_that_is_given_up_can_neither_write_nor_hold_a_request() {
    on_context(async {
        let pair = pair().await;
        pair.p.write(0, 512, 1).await;
        pair.checkpoint().await;
        // Secondary: the primary's connection is cut at once, before the failover itself.
        replication_peer_lost(&pair.s.graph);
        pair.p.write(0, 512, 2).await;
        drop(pair.p.graph.drain_all().await);
        assert!(replication_get_error_all(&pair.p.graph).is_err());
        replication_stop_all(&pair.s.graph, true).await.unwrap();
        pair.s.committed().await;
        assert_eq!(pair.s.byte(0).await, 1);
        assert_eq!(pair.s.events.borrow().iter().filter(|e| e.0 == "BLOCK_EXPORT_DELETED").count(), 1);
        // Primary: nothing is sent any more.
        replication_peer_lost(&pair.p.graph);
        pair.p.write(0, 512, 3).await;
        assert_eq!(pair.p.byte(0).await, 3);
    });
}

#[test]
fn what_is_written_after_the_secondary_was_given_up_does_not_reach_it() {
    on_context(async {
        let pair = pair().await;
        replication_peer_lost(&pair.p.graph);
        pair.p.write(0, 512, 3).await;
        drop(pair.p.graph.drain_all().await);
        assert!(replication_get_error_all(&pair.p.graph).is_err());
        replication_do_checkpoint_all(&pair.s.graph).await.unwrap();
        assert_eq!((pair.p.byte(0).await, pair.s.byte(0).await), (3, 0));
    });
}

#[test]
fn a_write_that_waits_behind_the_gate_dies_with_its_writer_and_holds_no_failover_up() {
    on_context(async {
        let pair = pair().await;
        let gate = NbdWriteGate::close(&pair.s.graph);
        pair.p.write(0, 512, 2).await;
        // It has arrived, and waits.
        tokio::time::sleep(Duration::from_millis(50)).await;
        replication_peer_lost(&pair.s.graph);
        let failover = replication_stop_all(&pair.s.graph, true);
        tokio::time::timeout(Duration::from_secs(20), failover).await.expect("it comes to its end").unwrap();
        drop(gate);
        pair.s.committed().await;
        assert_eq!(pair.s.byte(0).await, 0);
    });
}

#[test]
fn the_survivor_becomes_primary_of_a_new_secondary_and_that_one_survives_it_in_turn() {
    on_context(async {
        let pair = pair().await;
        pair.p.write(0, 70_000, 1).await;
        pair.checkpoint().await;
        pair.s.write(200_000, 1000, 2).await;
        // The primary dies; the secondary takes over as documented.
        Exports::of(&pair.s.graph).server_stop(&pair.s.graph).await.unwrap();
        replication_stop_all(&pair.s.graph, true).await.unwrap();
        // A new secondary, with whatever old image it had; the resync does not wait for the commit.
        let dir = tempfile::tempdir().unwrap();
        for name in ["primary.qcow2", "active.qcow2", "hidden.qcow2"] {
            create(&dir.path().join(name), SIZE).await;
        }
        let (next, port) = Side::secondary(dir.path()).await;
        let stale = next.graph.find_backend("parent0").unwrap();
        stale.set_perms(Perm::WRITE, Perm::all()).unwrap();
        let mut args = MirrorArgs::new("colo-disk0", SyncMode::Full);
        args.common.job_id = Some("resync".into());
        let uri = format!("nbd://127.0.0.1:{port}/parent0");
        drive_mirror(&pair.s.graph, args, &uri, Some("raw"), NewImageMode::Existing, None).await.unwrap();
        let jobs = Jobs::of(&pair.s.graph);
        let job = jobs.job("resync").unwrap();
        tokio::time::timeout(Duration::from_secs(20), async {
            while !job.is_ready() {
                pair.s.write(300_000, 512, 3).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .unwrap();
        drop(job);
        pair.s.committed_beside(2).await;
        drop(pair.s.graph.drain_all().await);
        jobs.block_job_cancel("resync", false).unwrap();
        pair.s.attach(&port).await;
        let names: Vec<_> = pair.s.disk.node().unwrap().child_edges().iter().map(|c| c.name().to_owned()).collect();
        assert_eq!(names, ["children.0", "children.1"]);
        next.graph.activate_all().await.unwrap();
        replication_start_all(&next.graph, ReplicationMode::Secondary).await.unwrap();
        replication_start_all(&pair.s.graph, ReplicationMode::Primary).await.unwrap();
        assert!(next.contents().await == pair.s.contents().await);
        pair.s.write(1 << 20, 100_000, 4).await;
        assert_eq!(next.byte(1 << 20).await, 0);
        drop(pair.s.graph.drain_all().await);
        replication_do_checkpoint_all(&pair.s.graph).await.unwrap();
        replication_do_checkpoint_all(&next.graph).await.unwrap();
        assert!(next.contents().await == pair.s.contents().await);
        replication_stop_all(&next.graph, true).await.unwrap();
        next.committed().await;
        let bytes = [next.byte(0).await, next.byte(200_000).await, next.byte(300_000).await, next.byte(1 << 20).await];
        assert_eq!(bytes, [1, 2, 3, 4]);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Primary(u64, usize, u8),
    Secondary(u64, usize, u8),
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    let place = (0..SIZE - 300_000, prop_oneof![1usize..2000, 1usize..300_000], any::<u8>());
    prop_oneof![
        4 => place.clone().prop_map(|(o, l, b)| Step::Primary(o, l, b)),
        4 => place.prop_map(|(o, l, b)| Step::Secondary(o, l, b)),
        1 => Just(Step::Checkpoint),
    ]
}

fn fill(disk: &mut [u8], offset: u64, len: usize, byte: u8) {
    disk[offset as usize..offset as usize + len].fill(byte);
}

/// Opens the chain of a secondary that crashed, as its guest would see it.
async fn reopened(dir: &Path) -> Vec<u8> {
    let graph = Graph::new();
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (active, hidden, parent) = (file("active.qcow2"), file("hidden.qcow2"), file("primary.qcow2"));
    let chain = [
        ("driver", "qcow2"),
        ("file.filename", &active[..]),
        ("backing.driver", "qcow2"),
        ("backing.file.filename", &hidden[..]),
        ("backing.backing.driver", "qcow2"),
        ("backing.backing.file.filename", &parent[..]),
    ];
    let node = graph.open(None, options(&chain), OpenFlags::default()).await.unwrap();
    let mut buf = vec![0; SIZE as usize];
    node.read(0, &mut buf).await.unwrap();
    drop(node);
    graph.close_all().await;
    buf
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, max_shrink_iters: 20, ..ProptestConfig::default() })]
    #[test]
    fn any_history_gives_each_side_the_disk_of_the_model(steps in prop::collection::vec(step(), 1..25)) {
        on_context(async {
            let pair = pair().await;
            let size = SIZE as usize;
            let (mut primary, mut base, mut secondary) = (vec![0; size], vec![0; size], vec![0; size]);
            for step in &steps {
                match *step {
                    Step::Primary(o, l, b) => {
                        pair.p.write(o, l, b).await;
                        fill(&mut primary, o, l, b);
                    }
                    Step::Secondary(o, l, b) => {
                        pair.s.write(o, l, b).await;
                        fill(&mut secondary, o, l, b);
                    }
                    Step::Checkpoint => {
                        pair.checkpoint().await;
                        base.clone_from(&primary);
                        secondary.clone_from(&base);
                    }
                }
            }
            assert!(pair.p.contents().await == primary);
            assert!(pair.s.contents().await == secondary);
            // Failover, and a crash at some moments of the commit: the files alone give the guest's disk.
            replication_stop_all(&pair.s.graph, true).await.unwrap();
            pair.s.disk.flush().await.unwrap();
            let crash = tempfile::tempdir().unwrap();
            for _ in 0..5 {
                if !replication_is_committing(&pair.s.graph) {
                    break;
                }
                for name in ["primary.qcow2", "active.qcow2", "hidden.qcow2"] {
                    std::fs::copy(pair.s.dir.join(name), crash.path().join(name)).unwrap();
                }
                assert!(reopened(crash.path()).await == secondary, "after a crash during the commit");
                tokio::task::yield_now().await;
            }
            pair.s.committed().await;
            assert!(pair.s.contents().await == secondary);
        });
    }
}

#[test]
fn the_guest_waits_for_its_own_disk_only_and_overlapping_writes_keep_their_order() {
    on_context(async {
        let pair = pair().await;
        let gate = NbdWriteGate::close(&pair.s.graph);
        for i in 0..50u8 {
            pair.p.write(u64::from(i % 3) * 700, 1000, i).await;
        }
        pair.p.disk.flush().await.unwrap();
        drop(gate);
        pair.checkpoint().await;
        assert!(pair.s.contents().await == pair.p.contents().await);
    });
}

#[test]
fn a_secondary_that_takes_nothing_holds_the_guest_when_the_queue_is_full_until_it_is_given_up() {
    on_context(async {
        let pair = pair().await;
        let _gate = NbdWriteGate::close(&pair.s.graph);
        let disk = pair.p.disk.clone();
        let writes = tokio::task::spawn_local(async move {
            for i in 0..16u64 {
                disk.write(i % 4 << 20, &vec![1; 1 << 20], WriteFlags::empty()).await.unwrap();
            }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!writes.is_finished());
        replication_peer_lost(&pair.p.graph);
        writes.await.unwrap();
        drop(pair.p.graph.drain_all().await);
        assert!(replication_get_error_all(&pair.p.graph).is_err());
        assert!(pair.p.contents().await.iter().all(|b| *b == 1));
    });
}
