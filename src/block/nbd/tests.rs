//! The client and the server against each other and against QEMU's tools (where those are installed).

use lockstep_util::{YankInstance, YankRegistry};
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::export::server::{ListenAddress, ServerOptions};
use crate::export::{Exports, NbdExportOptions, RemoveMode};
use crate::testing::{graph_with_events, on_context, options};
use crate::*;

/// A graph with the raw file exported as `disk`; gives the server's port.
async fn serve(path: &Path, writable: bool) -> (Graph, String) {
    let (graph, _) = graph_with_events();
    let opts = options(&[("driver", "raw"), ("file.filename", path.to_str().unwrap()), ("node-name", "disk")]);
    graph.blockdev_add(opts).await.unwrap();
    let exports = Exports::of(&graph);
    let address = ListenAddress::Inet { host: "127.0.0.1".into(), port: "0".into() };
    exports.server_start(&graph, ServerOptions::new(address)).await.unwrap();
    let export = NbdExportOptions { node: "disk".into(), writable, ..NbdExportOptions::default() };
    exports.server_add(&graph, export).await.unwrap();
    let address = exports.server_address().unwrap();
    (graph, address.rsplit(':').next().unwrap().to_owned())
}

async fn connect(graph: &Graph, port: &str, export: &str) -> lockstep_util::Result<Rc<Node>> {
    let opts = options(&[("driver", "nbd"), ("host", "127.0.0.1"), ("port", port), ("export", export)]);
    graph.open(None, opts, OpenFlags::default()).await
}

fn image(size: u64) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    (dir, path)
}

#[test]
fn a_client_in_the_same_process_reads_writes_zeroes_and_sees_holes() {
    let (_dir, path) = image(8 << 20);
    on_context(async {
        let (server, port) = serve(&path, true).await;
        let graph = Graph::new();
        let node = connect(&graph, &port, "disk").await.unwrap();
        assert_eq!(node.len().unwrap(), 8 << 20);
        let data: Vec<u8> = (0..3_000_000u32).map(|i| i as u8 | 1).collect();
        node.write(123, &data, WriteFlags::empty()).await.unwrap();
        node.write_zeroes(1 << 20, 65536, WriteFlags::empty()).await.unwrap();
        node.flush().await.unwrap();
        let mut back = vec![1; data.len() + 1000];
        node.read(123, &mut back).await.unwrap();
        let hole = (1 << 20) - 123..(1 << 20) - 123 + 65536;
        for (i, (a, b)) in back.iter().zip(data.iter().chain(std::iter::repeat(&0))).enumerate() {
            assert_eq!(*a, if hole.contains(&i) { 0 } else { *b }, "at {i}");
        }
        let extent = node.block_status(4 << 20, 4 << 20, true).await.unwrap();
        assert!(extent.status.contains(Status::ZERO));
        assert_eq!(extent.len, 4 << 20);
        drop(node);
        graph.close_all().await;
        server.close_all().await;
    });
}

#[test]
fn many_requests_are_in_flight_at_once_and_dropping_some_leaves_the_rest_alone() {
    let (_dir, path) = image(64 << 20);
    on_context(async {
        let (_server, port) = serve(&path, true).await;
        let graph = Graph::new();
        let node = connect(&graph, &port, "disk").await.unwrap();
        let mut tasks = Vec::new();
        for i in 0..200u64 {
            let node = node.clone();
            tasks.push(tokio::task::spawn_local(async move {
                let data = vec![i as u8 + 1; 300_000];
                node.write(i * 300_000, &data, WriteFlags::empty()).await
            }));
        }
        tokio::task::yield_now().await;
        for task in tasks.iter().skip(1).step_by(3) {
            task.abort();
            tokio::task::yield_now().await;
        }
        for (i, task) in tasks.into_iter().enumerate() {
            match task.await {
                Ok(result) => result.unwrap(),
                Err(e) => assert!(e.is_cancelled() && i % 3 == 1),
            }
        }
        for i in (0..200u64).filter(|i| i % 3 != 1) {
            let mut buf = vec![0; 300_000];
            node.read(i * 300_000, &mut buf).await.unwrap();
            assert!(buf.iter().all(|b| *b == i as u8 + 1), "request {i}");
        }
    });
}

#[test]
fn errors_of_opening_have_qemus_words() {
    let (_dir, path) = image(1 << 20);
    on_context(async {
        let (_server, port) = serve(&path, false).await;
        let graph = Graph::new();
        let e = connect(&graph, &port, "nope").await.unwrap_err();
        assert_eq!(e.message(), "Requested export not available");
        assert_eq!(e.hint_text(), "server reported: export 'nope' not present\n");
        let e = connect(&graph, "1", "disk").await.unwrap_err();
        assert_eq!(e.message(), "Failed to connect to '127.0.0.1:1': Connection refused");
        for (pairs, text) in [
            (&[("driver", "nbd")][..], "NBD server address missing"),
            (&[("driver", "nbd"), ("path", "/x"), ("host", "y")], "path and host may not be used at the same time"),
            (
                &[("driver", "nbd"), ("server.type", "inet"), ("server.host", "127.0.0.1")],
                "Parameter 'port' is missing",
            ),
            (&[("driver", "nbd"), ("server.type", "foo")], "Parameter 'type' does not accept value 'foo'"),
            (
                &[("driver", "nbd"), ("server.type", "unix"), ("server.path", "/n"), ("host", "1")],
                "Cannot use 'server' and path/host/port at the same time",
            ),
            (
                &[("driver", "nbd"), ("host", "h"), ("reconnect-delay", "x")],
                "Parameter 'reconnect-delay' expects a number",
            ),
            (&[("driver", "nbd"), ("host", "h"), ("tls-creds", "x")], "No TLS credentials with id 'x'"),
            (&[("driver", "nbd"), ("path", "/nope")], "Failed to connect to '/nope': No such file or directory"),
        ] {
            let e = graph.open(None, options(pairs), OpenFlags::default()).await.unwrap_err();
            assert_eq!(e.message(), text);
        }
        // A server that only reads is refused by who wants to write, as in QEMU.
        let e = connect(&graph, &port, "disk").await.unwrap_err();
        assert_eq!(e.message(), "request on write denied without write permission");
    });
}

#[test]
fn server_commands_have_qemus_errors_and_events() {
    let (_dir, path) = image(1 << 20);
    on_context(async {
        let (graph, events) = graph_with_events();
        let exports = Exports::of(&graph);
        let text = |r: lockstep_util::Result<()>| r.unwrap_err().message().to_owned();
        let add = |node: &str| NbdExportOptions { node: node.into(), writable: true, ..NbdExportOptions::default() };
        let opts = options(&[("driver", "raw"), ("file.filename", path.to_str().unwrap()), ("node-name", "d2")]);
        graph.blockdev_add(opts).await.unwrap();
        assert_eq!(text(exports.server_add(&graph, add("d2")).await), "NBD server not running");
        assert_eq!(text(exports.server_stop(&graph).await), "NBD server not running");
        let address = ListenAddress::Inet { host: "127.0.0.1".into(), port: "0".into() };
        exports.server_start(&graph, ServerOptions::new(address.clone())).await.unwrap();
        let again = exports.server_start(&graph, ServerOptions::new(address)).await;
        assert_eq!(text(again), "NBD server already running");
        assert_eq!(
            text(exports.server_add(&graph, add("nope")).await),
            "Cannot find device='nope' nor node-name='nope'"
        );
        exports.server_add(&graph, add("d2")).await.unwrap();
        assert_eq!(text(exports.server_add(&graph, add("d2")).await), "Block export id 'd2' is already in use");
        let query = serde_json::json!([{"node-name": "d2", "shutting-down": false, "type": "nbd", "id": "d2"}]);
        assert_eq!(exports.query(), query);
        assert_eq!(text(exports.server_remove(&graph, "x", RemoveMode::Safe).await), "Export 'x' is not found");
        exports.server_remove(&graph, "d2", RemoveMode::Safe).await.unwrap();
        assert_eq!(*events.borrow(), [("BLOCK_EXPORT_DELETED".to_owned(), serde_json::json!({"id": "d2"}))]);
        exports.server_stop(&graph).await.unwrap();
    });
}

#[test]
fn stopping_the_server_disconnects_clients_and_their_requests_fail_with_eio() {
    let (_dir, path) = image(1 << 20);
    on_context(async {
        let (server, port) = serve(&path, true).await;
        let graph = Graph::new();
        let node = connect(&graph, &port, "disk").await.unwrap();
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        Exports::of(&server).server_stop(&server).await.unwrap();
        let e = node.write(0, &[2; 512], WriteFlags::empty()).await.unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EIO));
        server.blockdev_del("disk").await.unwrap();
    });
}

#[test]
fn a_server_that_was_stopped_refuses_connections_at_once_and_its_port_is_free() {
    let (_dir, path) = image(1 << 20);
    on_context(async {
        let (graph, port) = serve(&path, true).await;
        let exports = Exports::of(&graph);
        exports.server_remove(&graph, "disk", RemoveMode::Safe).await.unwrap();
        exports.server_stop(&graph).await.unwrap();
        // Blocking, so that no task of the server's has run in between.
        let refused = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let address = ListenAddress::Inet { host: "127.0.0.1".into(), port };
        exports.server_start(&graph, ServerOptions::new(address)).await.unwrap();
        exports.server_stop(&graph).await.unwrap();
    });
}

#[test]
fn writes_wait_while_the_exported_node_is_drained() {
    let (_dir, path) = image(1 << 20);
    on_context(async {
        let (server, port) = serve(&path, true).await;
        let graph = Graph::new();
        let node = connect(&graph, &port, "disk").await.unwrap();
        let disk = server.find_node("disk").unwrap();
        let quiet = disk.drain().await;
        let write = tokio::task::spawn_local(async move { node.write(0, &[7; 512], WriteFlags::empty()).await });
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(!write.is_finished());
        assert_eq!(std::fs::read(&path).unwrap()[0], 0);
        drop(quiet);
        write.await.unwrap().unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[0], 7);
    });
}

/// A server that negotiates and then says nothing more.
fn frozen_server() -> (std::thread::JoinHandle<()>, u16, std::sync::mpsc::Sender<()>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let (mut s, _) = listener.accept().unwrap();
        s.write_all(&super::server_handshake::ServerHandshake::greeting()).unwrap();
        struct One;
        impl super::server_handshake::Directory for One {
            fn names(&self) -> Vec<String> {
                Vec::new()
            }
            fn find(&self, _: &str) -> Option<super::server_handshake::ExportInfo> {
                Some(super::server_handshake::ExportInfo {
                    size: 1 << 20,
                    flags: super::wire::TransmissionFlags::SEND_FLUSH,
                    description: None,
                    min_block: 1,
                    preferred_block: 4096,
                })
            }
        }
        let mut handshake = super::server_handshake::ServerHandshake::default();
        loop {
            let mut buf = vec![0; handshake.want()];
            s.read_exact(&mut buf).unwrap();
            let mut out = Vec::new();
            let step = handshake.advance(&buf, &One, &mut out).unwrap();
            s.write_all(&out).unwrap();
            if matches!(step, super::server_handshake::Step::Transmission(_)) {
                break;
            }
        }
        let _ = stopped.recv();
    });
    (thread, port, stop)
}

#[test]
fn a_frozen_server_is_cut_off_by_a_yank_from_another_thread() {
    let (thread, port, stop) = frozen_server();
    on_context(async {
        let graph = Graph::new();
        let opts =
            options(&[("driver", "nbd"), ("host", "127.0.0.1"), ("port", &port.to_string()), ("node-name", "far")]);
        let node = graph.open(None, opts, OpenFlags::default()).await.unwrap();
        let registry = (*graph.extension::<YankRegistry>()).clone();
        let far = [YankInstance::BlockNode("far".into())];
        assert_eq!(registry.instances(), far);
        let yanker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            registry.yank(&far).unwrap();
        });
        let e = node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EIO));
        yanker.join().unwrap();
        drop(node);
        graph.close_all().await;
        assert!(graph.extension::<YankRegistry>().instances().is_empty());
    });
    stop.send(()).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_frozen_server_does_not_hold_a_drain_for_ever() {
    let (thread, port, stop) = frozen_server();
    on_context(async {
        let graph = Graph::new();
        let opts = options(&[("driver", "nbd"), ("host", "127.0.0.1"), ("port", &port.to_string())]);
        let node = graph.open(None, opts, OpenFlags::default()).await.unwrap();
        let write = tokio::task::spawn_local({
            let node = node.clone();
            async move { node.write(0, &[1; 512], WriteFlags::empty()).await }
        });
        tokio::task::yield_now().await;
        let drained = tokio::time::timeout(Duration::from_secs(30), graph.drain_all()).await;
        drop(drained.expect("the drain comes to its end"));
        assert_eq!(write.await.unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
        drop(node);
        graph.close_all().await;
    });
    stop.send(()).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_frozen_child_does_not_hold_its_removal_from_a_quorum() {
    let (thread, port, stop) = frozen_server();
    on_context(async {
        let (graph, events) = graph_with_events();
        let opts = options(&[
            ("driver", "quorum"),
            ("vote-threshold", "1"),
            ("read-pattern", "fifo"),
            ("children.0.driver", "null-co"),
            ("children.0.size", "1M"),
            ("node-name", "top"),
        ]);
        let top = graph.blockdev_add(opts).await.unwrap();
        let port = port.to_string();
        let opts = options(&[("driver", "nbd"), ("host", "127.0.0.1"), ("port", &port), ("node-name", "far")]);
        let far = graph.open(None, opts, OpenFlags::default()).await.unwrap();
        top.driver().unwrap().add_child(&graph, &top, far).await.unwrap();
        let write = tokio::task::spawn_local({
            let top = top.clone();
            async move { top.write(0, &[1; 512], WriteFlags::empty()).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!write.is_finished());
        let started = Instant::now();
        let child = top.child("children.1").unwrap();
        top.driver().unwrap().del_child(&graph, &top, &child).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(2));
        write.await.unwrap().unwrap();
        assert_eq!(events.borrow()[0].0, "QUORUM_REPORT_BAD");
        assert_eq!(events.borrow()[0].1["node-name"], "far");
        drop(child);
        graph.collect().await;
        assert!(graph.find_node("far").is_none());
    });
    stop.send(()).unwrap();
    thread.join().unwrap();
}

fn installed(tool: &str) -> bool {
    Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success())
}

async fn run_tool(tool: &str, args: &[&str]) -> (bool, String) {
    let (tool, args) = (tool.to_owned(), args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
    tokio::task::spawn_blocking(move || {
        let out = Command::new(tool).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.success(), text)
    })
    .await
    .unwrap()
}

#[test]
fn qemu_tools_read_write_and_map_our_export() {
    if !installed("qemu-io") || !installed("qemu-img") {
        return;
    }
    let (_dir, path) = image(4 << 20);
    on_context(async {
        let (_server, port) = serve(&path, true).await;
        let uri = format!("nbd://127.0.0.1:{port}/disk");
        let (ok, text) = run_tool(
            "qemu-io",
            &[
                "-f",
                "raw",
                "-c",
                "write -P 7 64k 1M",
                "-c",
                "write -z -u 128k 64k",
                "-c",
                "flush",
                "-c",
                "read -P 7 64k 64k",
                "-c",
                "read -P 0 128k 64k",
                "-c",
                "discard 512k 64k",
                "-c",
                "read -P 0 2M 2M",
                &uri,
            ],
        )
        .await;
        assert!(ok && !text.contains("rror") && !text.contains("verification failed"), "{text}");
        let (ok, text) = run_tool("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).await;
        assert!(ok, "{text}");
        let map: Value = serde_json::from_str(&text).unwrap();
        assert!(map.as_array().unwrap().iter().any(|e| e["start"] == 0 && e["zero"] == true), "{text}");
        let (ok, text) = run_tool("qemu-img", &["info", &format!("nbd://127.0.0.1:{port}/nope")]).await;
        assert!(!ok && text.contains("export 'nope' not present"), "{text}");
    });
}

#[test]
fn our_client_works_with_qemu_nbd() {
    if !installed("qemu-nbd") {
        return;
    }
    let (dir, path) = image(4 << 20);
    let socket = dir.path().join("s");
    let mut server = Command::new("qemu-nbd")
        .args(["-t", "-f", "raw", "-x", "disk", "-e", "2", "-k"])
        .arg(&socket)
        .arg(&path)
        .spawn()
        .unwrap();
    on_context(async {
        let graph = Graph::new();
        let uri = format!("nbd+unix:///disk?socket={}", socket.display());
        let opts = options(&[("driver", "raw"), ("file.driver", "nbd"), ("file.open-timeout", "5")]);
        let mut opts = opts;
        opts.set("file.path", socket.to_str().unwrap());
        opts.set("file.export", "disk");
        let node = graph.open(None, opts, OpenFlags::default()).await.unwrap();
        assert_eq!(node.plain_filename().as_deref(), Some(&uri[..]));
        node.write(65536, &[9; 100_000], WriteFlags::FUA).await.unwrap();
        node.write_zeroes(70_000, 10_000, WriteFlags::empty()).await.unwrap();
        node.flush().await.unwrap();
        let mut buf = vec![0; 200_000];
        node.read(60_000, &mut buf).await.unwrap();
        for (i, b) in buf.iter().enumerate() {
            let at = i + 60_000;
            let want = if (65536..165_536).contains(&at) && !(70_000..80_000).contains(&at) { 9 } else { 0 };
            assert_eq!(*b, want, "at {at}");
        }
        let (extent, _) = node.block_status_above(None, 1 << 20, 3 << 20).await.unwrap();
        assert!(extent.status.contains(Status::ZERO));
        let again = graph.open(Some(&uri), options(&[("driver", "raw")]), OpenFlags::default()).await.unwrap();
        assert_eq!(again.len().unwrap(), 4 << 20);
        drop((node, again));
        graph.close_all().await;
    });
    server.kill().unwrap();
    server.wait().unwrap();
}

/// Figures, not a verdict: `cargo test --release -p lockstep-block nbd_figures -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn nbd_figures() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    let (port_to, port_from) = std::sync::mpsc::channel();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let server = std::thread::spawn(move || {
        on_context(async move {
            let (_graph, port) = serve(&path, true).await;
            port_to.send(port).unwrap();
            let _ = (&mut stopped).await;
        })
    });
    let port = port_from.recv().unwrap();
    on_context(async {
        let graph = Graph::new();
        let node = connect(&graph, &port, "disk").await.unwrap();
        for (what, len, depth, read) in [
            ("write 1M x16", 1 << 20, 16, false),
            ("read 1M x16", 1 << 20, 16, true),
            ("write 4K x1", 4096, 1, false),
            ("write 4K x32", 4096, 32, false),
            ("read 4K x1", 4096, 1, true),
        ] {
            let started = Instant::now();
            let count = Rc::new(std::cell::Cell::new(0u64));
            let tasks: Vec<_> = (0..depth)
                .map(|_| {
                    let (node, count) = (node.clone(), count.clone());
                    tokio::task::spawn_local(async move {
                        let mut buf = vec![0x5a; len as usize];
                        while started.elapsed() < Duration::from_secs(1) {
                            let offset = count.replace(count.get() + 1) * len % (1 << 30);
                            if read {
                                node.read(offset, &mut buf).await.unwrap();
                            } else {
                                node.write(offset, &buf, WriteFlags::empty()).await.unwrap();
                            }
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let seconds = started.elapsed().as_secs_f64();
            let n = count.get() as f64;
            println!("{what}: {:.0} MB/s, {:.0} requests/s", n * len as f64 / seconds / 1e6, n / seconds);
        }
    });
    stop.send(()).unwrap();
    server.join().unwrap();
}
