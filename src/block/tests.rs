//! The graph as its users see it: opening, errors, permissions, drain.

use crate::testing::{on_context, options};
use crate::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Waker};

fn temp_image(bytes: &[u8]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, bytes).unwrap();
    let name = path.to_str().unwrap().to_owned();
    (dir, name)
}

fn open_error(pairs: &[(&str, &str)]) -> String {
    on_context(async {
        let graph = Graph::new();
        graph.open(None, options(pairs), OpenFlags::default()).await.unwrap_err().message().to_owned()
    })
}

#[test]
fn wrong_options_get_the_known_texts() {
    let (_dir, name) = temp_image(&[0; 512]);
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("driver", "nosuch")], "Unknown driver 'nosuch'"),
        (
            &[("driver", "file"), ("filename", &name), ("x", "1")],
            "Block protocol 'file' doesn't support the option 'x'",
        ),
        (
            &[("driver", "raw"), ("file.driver", "null-co"), ("x.y", "1")],
            "Block format 'raw' does not support the option 'x.y'",
        ),
        (&[("driver", "raw"), ("file", "nosuch")], "Cannot find device='nosuch' nor node-name='nosuch'"),
        (
            &[("driver", "raw"), ("file.filename", "/nosuch/disk")],
            "Could not open '/nosuch/disk': No such file or directory",
        ),
        (&[("driver", "file")], "The 'file' block driver requires a file name"),
        (&[("driver", "null-co"), ("size", "x")], "Parameter 'size' expects a non-negative number below 2^64"),
        (&[("driver", "null-co"), ("node-name", "0x")], "Invalid node-name: '0x'"),
        (&[], "Must specify either driver or file"),
    ];
    for (pairs, text) in cases {
        assert_eq!(&open_error(pairs), text, "{pairs:?}");
    }
}

#[test]
fn raw_on_file_reads_what_was_written_and_zeroes_beyond_the_end() {
    let (_dir, name) = temp_image(&[7; 4096]);
    on_context(async {
        let graph = Graph::new();
        let node = graph
            .open(None, options(&[("driver", "raw"), ("file.filename", &name)]), OpenFlags::default())
            .await
            .unwrap();
        node.write(1000, &[1, 2, 3], WriteFlags::empty()).await.unwrap();
        let mut buf = [9; 8];
        node.read(4090, &mut buf).await.unwrap();
        assert_eq!(buf, [7, 7, 7, 7, 7, 7, 0, 0]);
        node.read(999, &mut buf[..5]).await.unwrap();
        assert_eq!(buf[..5], [7, 1, 2, 3, 7]);
        node.flush().await.unwrap();
        drop(node);
        graph.close_all().await;
    });
    assert_eq!(std::fs::read(&name).unwrap()[1000..1003], [1, 2, 3]);
}

#[test]
fn a_guessed_raw_image_cannot_be_made_to_look_like_another_format_only_by_block_0() {
    let (_dir, name) = temp_image(&[0; 4096]);
    on_context(async {
        let graph = Graph::new();
        let node = graph.open(Some(&name), Options::new(), OpenFlags::default()).await.unwrap();
        assert_eq!(node.def().name, "raw");
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
    });
}

#[test]
fn a_second_writer_of_the_same_file_is_refused_by_the_image_lock() {
    let (_dir, name) = temp_image(&[0; 4096]);
    on_context(async {
        let graph = Graph::new();
        let o = [("driver", "raw"), ("file.filename", name.as_str())];
        let first = graph.open(None, options(&o), OpenFlags::default()).await.unwrap();
        let backend = Backend::new(&graph, Some("d0")).unwrap();
        backend.set_perms(Perm::CONSISTENT_READ | Perm::WRITE, Perm::CONSISTENT_READ).unwrap();
        backend.insert(&first).unwrap();
        let second = graph.open(None, options(&o), OpenFlags::default()).await.unwrap();
        let other = Backend::new(&graph, None).unwrap();
        other.set_perms(Perm::CONSISTENT_READ | Perm::WRITE, Perm::CONSISTENT_READ).unwrap();
        let e = other.insert(&second).unwrap_err();
        assert_eq!(e.message(), "Failed to get \"write\" lock");
        assert_eq!(e.hint_text(), format!("Is another process using the image [{name}]?\n"));
        backend.remove_medium();
        other.insert(&second).unwrap();
    });
}

#[test]
fn users_who_do_not_share_what_another_needs_conflict() {
    on_context(async {
        let graph = Graph::new();
        let node = graph
            .open(None, options(&[("driver", "null-co"), ("node-name", "n0")]), OpenFlags::default())
            .await
            .unwrap();
        let a = Backend::new(&graph, Some("colo-disk0")).unwrap();
        a.set_perms(Perm::CONSISTENT_READ | Perm::WRITE, Perm::CONSISTENT_READ).unwrap();
        a.insert(&node).unwrap();
        let b = Backend::new(&graph, None).unwrap();
        b.set_perms(Perm::WRITE, Perm::all()).unwrap();
        assert_eq!(
            b.insert(&node).unwrap_err().message(),
            "Permission conflict on node 'n0': permissions 'write' are both required by an unnamed block device (uses \
             node 'n0' as 'root' child) and unshared by block device 'colo-disk0' (uses node 'n0' as 'root' child)."
        );
        assert_eq!(node.parent_edges().len(), 1);
    });
}

#[test]
fn a_drained_backend_holds_requests_until_the_guard_drops() {
    on_context(async {
        let graph = Graph::new();
        let node =
            graph.open(None, options(&[("driver", "null-co"), ("size", "1M")]), OpenFlags::default()).await.unwrap();
        let backend = Backend::new(&graph, Some("d0")).unwrap();
        backend.set_perms(Perm::all(), Perm::all()).unwrap();
        backend.insert(&node).unwrap();
        let handle = backend.handle();
        assert_eq!(handle.len(), 1 << 20);
        let guard = node.drain().await;
        let (tx, mut rx) = tokio::sync::oneshot::channel();
        let op = BlockOp::Read { offset: 0, len: 512 };
        std::thread::spawn(move || handle.submit(op, Box::new(move |r| drop(tx.send(r.map(|d| d.len()))))))
            .join()
            .unwrap();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(rx.try_recv().is_err(), "the node is quiesced");
        drop(guard);
        assert_eq!(rx.await.unwrap().unwrap(), 512);
    });
}

#[test]
fn requests_beyond_the_end_or_without_a_medium_fail() {
    on_context(async {
        let graph = Graph::new();
        let node =
            graph.open(None, options(&[("driver", "null-co"), ("size", "4096")]), OpenFlags::default()).await.unwrap();
        let backend = Backend::new(&graph, None).unwrap();
        assert_eq!(backend.read(0, &mut [0; 1]).await.unwrap_err().raw_os_error(), Some(libc::ENOMEDIUM));
        backend.insert(&node).unwrap();
        assert_eq!(backend.read(4095, &mut [0; 2]).await.unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(backend.read(4095, &mut [0; 1]).await.is_ok());
    });
}

#[test]
fn write_hooks_see_a_write_before_and_after() {
    struct Log(RefCell<Vec<(u64, u64, &'static str)>>);
    impl WriteHook for Log {
        fn before_write<'a>(&'a self, offset: u64, len: u64) -> Option<LocalBoxFuture<'a, std::io::Result<()>>> {
            self.0.borrow_mut().push((offset, len, "before"));
            None
        }
        fn after_write(&self, offset: u64, len: u64, ok: bool) {
            assert!(ok);
            self.0.borrow_mut().push((offset, len, "after"));
        }
    }
    on_context(async {
        let graph = Graph::new();
        let node = graph.open(None, options(&[("driver", "null-co")]), OpenFlags::default()).await.unwrap();
        let log = Rc::new(Log(RefCell::default()));
        let weak: std::rc::Weak<Log> = Rc::downgrade(&log);
        node.add_write_hook(weak);
        node.write(512, &[1; 512], WriteFlags::empty()).await.unwrap();
        assert_eq!(*log.0.borrow(), [(512, 512, "before"), (512, 512, "after")]);
    });
}

#[test]
fn nodes_without_users_are_closed_and_their_names_free_again() {
    on_context(async {
        let graph = Graph::new();
        let o =
            options(&[("driver", "raw"), ("node-name", "top"), ("file.driver", "null-co"), ("file.node-name", "low")]);
        graph.blockdev_add(o.clone()).await.unwrap();
        assert_eq!(graph.nodes().len(), 2);
        assert_eq!(graph.blockdev_add(o.clone()).await.unwrap_err().message(), "Duplicate nodes with node-name='low'");
        assert_eq!(graph.nodes().len(), 2);
        graph.blockdev_del("top").await.unwrap();
        assert_eq!(graph.nodes().len(), 0);
        graph.blockdev_add(o).await.unwrap();
        assert_eq!(graph.blockdev_del("low").await.unwrap_err().message(), "Node low is not owned by the monitor");
    });
}

#[test]
fn an_inactive_image_takes_no_writes_until_it_is_activated() {
    on_context(async {
        let graph = Graph::new();
        graph.set_opens_inactive(true);
        let node = graph.open(None, options(&[("driver", "null-co")]), OpenFlags::default()).await.unwrap();
        let backend = Backend::new(&graph, Some("d0")).unwrap();
        backend.set_perms(Perm::CONSISTENT_READ | Perm::WRITE, Perm::CONSISTENT_READ).unwrap();
        backend.insert(&node).unwrap();
        let e = backend.write(0, &[0; 512], WriteFlags::empty()).await.unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EPERM));
        graph.activate_all().await.unwrap();
        backend.write(0, &[0; 512], WriteFlags::empty()).await.unwrap();
        assert_eq!(perm::cumulative(&node).0, Perm::CONSISTENT_READ | Perm::WRITE);
    });
}

#[test]
fn a_drain_waits_for_what_is_under_way() {
    on_context(async {
        let graph = Graph::new();
        let node = graph.open(None, options(&[("driver", "null-co"), ("size", "1M")]), OpenFlags::default());
        let node = node.await.unwrap();
        let step = || Context::from_waker(Waker::noop());
        for whole_graph in [false, true] {
            // The write has begun, and waits in the middle.
            let in_its_way = node.lock_range(0, 512).await;
            let mut write = std::pin::pin!(node.write(0, &[1; 512], WriteFlags::empty()));
            assert!(write.as_mut().poll(&mut step()).is_pending());
            let mut drain = std::pin::pin!(async {
                match whole_graph {
                    true => graph.drain_all().await,
                    false => node.drain().await,
                }
            });
            for _ in 0..10 {
                assert!(drain.as_mut().poll(&mut step()).is_pending(), "the write is under way");
                tokio::task::yield_now().await;
            }
            drop(in_its_way);
            write.await.unwrap();
            drop(drain.await);
        }
    });
}
