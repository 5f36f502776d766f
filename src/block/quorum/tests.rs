//! The quorum driver against a model, and its run-time children.

use std::rc::Rc;

use proptest::prelude::*;
use serde_json::json;

use crate::commands::{drive_add_node, drive_del, x_blockdev_change};
use crate::testing::{Events, graph_with_events, on_context, options};
use crate::*;

async fn device(graph: &Graph, pairs: &[(&str, &str)]) -> lockstep_util::Result<Rc<Backend>> {
    let node = graph.open(None, options(pairs), OpenFlags::default()).await?;
    let backend = Backend::new(graph, Some("colo-disk0"))?;
    backend.set_perms(Perm::CONSISTENT_READ | Perm::WRITE, Perm::all())?;
    backend.insert(&node)?;
    Ok(backend)
}

#[test]
fn wrong_options_get_the_known_texts() {
    on_context(async {
        for (pairs, text) in [
            (&[("read-pattern", "fifo"), ("vote-threshold", "1")][..], "Number of provided children must be 1 or more"),
            (&[("vote-threshold", "2"), ("children.0.driver", "null-co")], "threshold may not exceed children count"),
            (
                &[("vote-threshold", "0"), ("children.0.driver", "null-co")],
                "Parameter 'vote-threshold' expects a value >= 1",
            ),
            (
                &[("vote-threshold", "1"), ("read-pattern", "zzz"), ("children.0.driver", "null-co")],
                "Please set read-pattern as fifo or quorum",
            ),
            (
                &[("vote-threshold", "1"), ("children.0", "nosuchnode")],
                "Cannot find device='nosuchnode' nor node-name='nosuchnode'",
            ),
            (
                &[("vote-threshold", "1"), ("blkverify", "on"), ("children.0.driver", "null-co")],
                "blkverify=on can only be set if there are exactly two files and vote-threshold is 2",
            ),
        ] {
            let mut opts = options(pairs);
            opts.set("driver", "quorum");
            let e = Graph::new().open(None, opts, OpenFlags::default()).await.unwrap_err();
            assert_eq!(e.message(), text);
        }
    });
}

#[test]
fn children_come_and_go_with_qemus_names_and_errors() {
    on_context(async {
        let (graph, _) = graph_with_events();
        let child = [
            ("driver", "quorum"),
            ("read-pattern", "fifo"),
            ("vote-threshold", "1"),
            ("children.0.driver", "null-co"),
            ("children.0.size", "64M"),
        ];
        let _disk = device(&graph, &child).await.unwrap();
        let null = options(&[("driver", "null-co"), ("node-name", "null0"), ("size", "64M")]);
        drive_add_node(&graph, null.clone()).await.unwrap();
        let text = |r: lockstep_util::Result<()>| r.unwrap_err().message().to_owned();
        let change = |parent, child, node| x_blockdev_change(&graph, parent, child, node);
        for (parent, child, node, expected) in [
            ("nope", None, Some("null0"), "Cannot find device='nope' nor node-name='nope'"),
            ("colo-disk0", None, Some("nope"), "Node 'nope' not found"),
            ("colo-disk0", None, None, "Either child or node must be specified"),
            ("colo-disk0", Some("children.1"), Some("null0"), "The parameters child and node are in conflict"),
            ("colo-disk0", Some("children.1"), None, "Node 'colo-disk0' does not have child 'children.1'"),
            (
                "colo-disk0",
                Some("children.0"),
                None,
                "The number of children cannot be lower than the vote threshold 1",
            ),
            ("null0", None, Some("null0"), "The node null0 does not support adding a child"),
        ] {
            assert_eq!(text(change(parent, child, node).await), expected);
        }
        assert_eq!(text(drive_add_node(&graph, null).await), "Duplicate nodes with node-name='null0'");
        change("colo-disk0", None, Some("null0")).await.unwrap();
        assert_eq!(text(drive_del(&graph, "null0").await), "Block device null0 is in use");
        // The highest number is free again once its child is gone.
        change("colo-disk0", Some("children.1"), None).await.unwrap();
        change("colo-disk0", None, Some("null0")).await.unwrap();
        change("colo-disk0", Some("children.1"), None).await.unwrap();
        drive_del(&graph, "null0").await.unwrap();
        let e = drive_del(&graph, "null0").await.unwrap_err();
        assert_eq!((e.class(), e.message()), (lockstep_util::ErrorClass::DeviceNotFound, "Device 'null0' not found"));
    });
}

#[test]
fn a_failing_child_is_reported_and_the_rest_carries_on() {
    on_context(async {
        let (graph, events) = graph_with_events();
        let disk = device(
            &graph,
            &[
                ("driver", "quorum"),
                ("read-pattern", "fifo"),
                ("vote-threshold", "1"),
                ("children.0.driver", "replication"),
                ("children.0.mode", "primary"),
                ("children.0.node-name", "dead"),
                ("children.0.file.driver", "null-co"),
                ("children.0.file.size", "1M"),
                ("children.1.driver", "null-co"),
                ("children.1.read-zeroes", "on"),
                ("children.1.size", "1M"),
            ],
        )
        .await
        .unwrap();
        let mut buf = [1; 512];
        disk.read(512, &mut buf).await.unwrap();
        disk.write(1024, &[0; 1024], WriteFlags::empty()).await.unwrap();
        let bad = |kind: &str, sector: u64, count: u64| {
            let data = json!({"type": kind, "error": "Input/output error", "node-name": "dead",
                "sector-num": sector, "sectors-count": count});
            ("QUORUM_REPORT_BAD".to_owned(), data)
        };
        assert_eq!(*events.borrow(), [bad("read", 1, 1), bad("write", 2, 2)]);
    });
}

/// Files as children, some of them corrupted behind the quorum's back.
fn voting_read(threshold: usize, contents: &[u8], rewrite: bool) -> (Result<u8, i32>, Vec<u8>, Events) {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..contents.len()).map(|i| dir.path().join(i.to_string())).collect();
    for (path, byte) in paths.iter().zip(contents) {
        std::fs::write(path, vec![*byte; 1024]).unwrap();
    }
    let (graph, events) = graph_with_events();
    let result = on_context(async {
        let mut opts = options(&[("driver", "quorum"), ("rewrite-corrupted", if rewrite { "on" } else { "off" })]);
        opts.set("vote-threshold", threshold.to_string());
        for (i, path) in paths.iter().enumerate() {
            opts.set(format!("children.{i}.driver"), "raw");
            opts.set(format!("children.{i}.file.filename"), path.to_str().unwrap());
        }
        let node = graph.open(None, opts, OpenFlags::default()).await.unwrap();
        let mut buf = [0; 512];
        let result = node.read(512, &mut buf).await.map(|()| buf[511]).map_err(|e| e.raw_os_error().unwrap());
        drop(node);
        graph.close_all().await;
        result
    });
    let after = paths.iter().map(|p| std::fs::read(p).unwrap()[1023]).collect();
    (result, after, events)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn voting_reads_agree_with_the_model(
        contents in prop::collection::vec(1u8..4, 1..5), threshold in 1usize..5, rewrite: bool,
    ) {
        prop_assume!(threshold <= contents.len());
        let (result, after, events) = voting_read(threshold, &contents, rewrite);
        let count = |c: u8| contents.iter().filter(|x| **x == c).count();
        let most = contents.iter().map(|c| count(*c)).max().unwrap();
        if most >= threshold {
            let winner = *contents.iter().find(|c| count(**c) == most).unwrap();
            prop_assert_eq!(result, Ok(winner));
            let losers = contents.iter().filter(|c| **c != winner).count();
            prop_assert_eq!(events.borrow().iter().filter(|e| e.0 == "QUORUM_REPORT_BAD").count(), losers);
            let want = if rewrite { vec![winner; contents.len()] } else { contents.clone() };
            prop_assert_eq!(after, want);
        } else {
            prop_assert_eq!(result, Err(libc::EIO));
            prop_assert_eq!(events.borrow().iter().filter(|e| e.0 == "QUORUM_FAILURE").count(), 1);
            prop_assert_eq!(after, contents);
        }
    }
}
