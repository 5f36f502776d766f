//! Images made, written, emptied, resized and checked; against a plain model and, where it is installed, the reference
//! tools.

use super::check::{Fix, check};
use super::*;
use crate::testing::on_context;
use crate::{Backend, Graph, Options, Perm};
use std::path::Path;
use std::process::Command;

struct Image {
    graph: Graph,
    backend: Rc<Backend>,
}

async fn open(graph: &Graph, path: &Path) -> Image {
    let options =
        Options::from_pairs([("driver", "qcow2"), ("file.filename", path.to_str().unwrap()), ("discard", "unmap")]);
    let node = graph.open(None, options, OpenFlags::default()).await.unwrap();
    let backend = Backend::new(graph, None).unwrap();
    backend.set_perms(Perm::all(), Perm::all()).unwrap();
    backend.insert(&node).unwrap();
    Image { graph: graph.clone(), backend }
}

impl Image {
    fn node(&self) -> Rc<Node> {
        self.backend.node().unwrap()
    }

    async fn close(self) {
        drop(self.backend);
        self.graph.collect().await;
    }

    async fn check_clean(&self) {
        let node = self.node();
        // What was freed is counted free only after a flush.
        node.flush().await.unwrap();
        let image = node.driver_as::<Qcow2>().unwrap();
        let result = check(image, Fix::default()).await.unwrap();
        assert_eq!((result.corruptions, result.leaks, result.check_errors), (0, 0, 0), "{:?}", result.messages);
    }
}

async fn create(graph: &Graph, path: &Path, pairs: &[(&str, &str)]) {
    let options = Options::from_pairs(pairs.iter().copied());
    crate::image::create(graph, path.to_str().unwrap(), "qcow2", options).await.unwrap();
}

/// Runs a reference tool; `None` if it is not installed.
fn tool(name: &str, args: &[&str]) -> Option<(bool, String)> {
    let out = Command::new(name).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    Some((out.status.success(), text))
}

fn reference_check(path: &Path) {
    if let Some((ok, text)) = tool("qemu-img", &["check", path.to_str().unwrap()]) {
        assert!(ok, "{text}");
    }
}

/// A small deterministic generator.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
}

const LAYOUTS: &[&[(&str, &str)]] = &[
    &[("cluster_size", "512"), ("size", "3M")],
    &[("cluster_size", "4k"), ("size", "8M"), ("refcount_bits", "1")],
    &[("cluster_size", "65536"), ("size", "20M")],
    &[("cluster_size", "2M"), ("size", "64M"), ("refcount_bits", "64")],
    &[("cluster_size", "64k"), ("size", "20M"), ("compat", "0.10")],
    &[("cluster_size", "64k"), ("size", "20M"), ("lazy_refcounts", "on")],
    &[("cluster_size", "16k"), ("size", "8M"), ("extended_l2", "on")],
    &[("cluster_size", "512"), ("size", "3M"), ("refcount_bits", "64")],
];

#[test]
fn random_writes_zeroes_and_discards_read_back_in_every_layout() {
    for (n, layout) in LAYOUTS.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.qcow2");
        let mut model: Vec<u8> = Vec::new();
        on_context(async {
            let graph = Graph::new();
            create(&graph, &path, layout).await;
            let mut image = open(&graph, &path).await;
            model.resize(image.node().len().unwrap() as usize, 0);
            let mut random = Random(0x9e37_79b9 + n as u64);
            for step in 0..300 {
                let offset = random.next(model.len() as u64);
                let len = (random.next(200_000) + 1).min(model.len() as u64 - offset);
                let range = offset as usize..(offset + len) as usize;
                let node = image.node();
                match random.next(11) {
                    10 => {
                        // A whole cluster compressed, where nothing is yet.
                        let size = node.driver().unwrap().format_info().cluster_size;
                        let at = offset / size * size;
                        let n = size.min(model.len() as u64 - at);
                        let data = vec![random.next(255) as u8 + 1; n as usize];
                        if node.write(at, &data, WriteFlags::COMPRESSED).await.is_ok() {
                            model[at as usize..(at + n) as usize].copy_from_slice(&data);
                        }
                    }
                    0..=4 => {
                        let data = vec![random.next(255) as u8 + 1; len as usize];
                        node.write(offset, &data, WriteFlags::empty()).await.unwrap();
                        model[range].copy_from_slice(&data);
                    }
                    5 => {
                        node.write_zeroes(offset, len, WriteFlags::MAY_UNMAP).await.unwrap();
                        model[range].fill(0);
                    }
                    6 => {
                        node.write_zeroes(offset, len, WriteFlags::empty()).await.unwrap();
                        model[range].fill(0);
                    }
                    7 => {
                        // Whole clusters read as zeroes afterwards, parts of clusters are left alone.
                        let size = node.driver().unwrap().format_info().cluster_size;
                        let end = offset + len;
                        let first = offset.next_multiple_of(size);
                        let last = if end == model.len() as u64 { end } else { end - end % size };
                        if first < last {
                            node.discard(offset, len).await.unwrap();
                            model[first as usize..last as usize].fill(0);
                        }
                    }
                    8 => node.flush().await.unwrap(),
                    _ => {
                        let mut buf = vec![0; len as usize];
                        node.read(offset, &mut buf).await.unwrap();
                        assert!(buf == model[range], "layout {n}, step {step}, offset {offset}, length {len}");
                    }
                }
                if step % 100 == 99 {
                    drop(node);
                    image.close().await;
                    image = open(&graph, &path).await;
                    image.check_clean().await;
                }
            }
            let mut all = vec![0; model.len()];
            image.node().read(0, &mut all).await.unwrap();
            assert!(all == model, "layout {n}");
            image.close().await;
        });
        reference_check(&path);
        let raw = dir.path().join("a.raw");
        std::fs::write(&raw, &model).unwrap();
        let (a, b) = (path.to_str().unwrap(), raw.to_str().unwrap());
        if let Some((ok, text)) = tool("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", a, b]) {
            assert!(ok, "layout {n}: {text}");
        }
    }
}

#[test]
fn parallel_writes_to_the_same_clusters_leave_one_cluster_each() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    on_context(async {
        let graph = Graph::new();
        create(&graph, &path, &[("size", "10M")]).await;
        let image = open(&graph, &path).await;
        let mut tasks = Vec::new();
        for i in 0..640u64 {
            let node = image.node();
            tasks.push(tokio::task::spawn_local(async move {
                node.write(i * 1024, &[(i % 251) as u8; 1024], WriteFlags::empty()).await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let mut all = vec![0; 640 * 1024];
        image.node().read(0, &mut all).await.unwrap();
        assert!(all.chunks(1024).enumerate().all(|(i, c)| c.iter().all(|b| *b == (i % 251) as u8)));
        let node = image.node();
        let qcow2 = node.driver_as::<Qcow2>().unwrap();
        let result = check(qcow2, Fix::default()).await.unwrap();
        assert_eq!(result.allocated_clusters, 10);
        drop(node);
        image.close().await;
    });
    reference_check(&path);
}

#[test]
fn requests_dropped_at_any_await_leave_a_consistent_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    on_context(async {
        let graph = Graph::new();
        create(&graph, &path, &[("size", "10M"), ("cluster_size", "4k")]).await;
        let image = open(&graph, &path).await;
        for polls in 0..40u32 {
            let node = image.node();
            let at = u64::from(polls) * 100_000;
            let mut write = Box::pin(async move { node.write(at, &[7; 30_000], WriteFlags::empty()).await });
            for _ in 0..polls {
                let done = std::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx).is_ready())).await;
                if done {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        // The ranges are free again, and the image works.
        let node = image.node();
        for polls in 0..40u64 {
            node.write(polls * 100_000, &[9; 30_000], WriteFlags::empty()).await.unwrap();
        }
        drop(node);
        image.close().await;
        let image = open(&graph, &path).await;
        image.check_clean().await;
        image.close().await;
    });
}

#[test]
fn make_empty_shows_the_backing_file_again_and_reuses_the_space() {
    let dir = tempfile::tempdir().unwrap();
    let (base, path) = (dir.path().join("base.raw"), dir.path().join("a.qcow2"));
    std::fs::write(&base, vec![0x5a; 8 << 20]).unwrap();
    on_context(async {
        let graph = Graph::new();
        let base = base.to_str().unwrap();
        create(&graph, &path, &[("size", "8M"), ("backing_file", base), ("backing_fmt", "raw")]).await;
        let image = open(&graph, &path).await;
        let mut longest = 0;
        for round in 0..50u8 {
            let node = image.node();
            for i in 0..20u64 {
                node.write(i * 300_000, &[round; 5000], WriteFlags::empty()).await.unwrap();
            }
            let mut buf = [0; 5001];
            node.read(300_000, &mut buf).await.unwrap();
            assert!(buf[..5000].iter().all(|b| *b == round) && buf[5000] == 0x5a);
            if round % 3 == 0 {
                node.flush().await.unwrap();
            }
            node.make_empty().await.unwrap();
            node.read(300_000, &mut buf).await.unwrap();
            assert_eq!(buf, [0x5a; 5001]);
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            longest = longest.max(std::fs::metadata(&path).unwrap().len());
        }
        assert!(longest < 40 << 20, "{longest}");
        image.node().flush().await.unwrap();
        image.check_clean().await;
        image.close().await;
    });
    reference_check(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4 * 65536);
}

#[test]
fn resizing_keeps_what_is_inside_and_shows_zeroes_outside() {
    for layout in [&[("cluster_size", "512"), ("size", "1M")], &[("cluster_size", "65536"), ("size", "1M")]] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.qcow2");
        on_context(async {
            let graph = Graph::new();
            create(&graph, &path, layout).await;
            let image = open(&graph, &path).await;
            let node = image.node();
            node.write(0, &vec![1; 1 << 20], WriteFlags::empty()).await.unwrap();
            node.truncate(700_416, true, Preallocation::Off).await.unwrap();
            node.truncate(300 << 20, true, Preallocation::Off).await.unwrap();
            let mut buf = vec![9; 1 << 20];
            node.read(0, &mut buf).await.unwrap();
            assert!(buf[..700_416].iter().all(|b| *b == 1));
            assert!(buf[700_416..].iter().all(|b| *b == 0));
            assert_eq!(
                node.truncate(100, true, Preallocation::Off).await.unwrap_err().message(),
                "The new size must be a multiple of 512"
            );
            drop(node);
            image.check_clean().await;
            image.close().await;
        });
        reference_check(&path);
    }
}

#[test]
fn preallocated_images_are_whole_and_read_as_zeroes() {
    for mode in ["metadata", "falloc", "full"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.qcow2");
        on_context(async {
            let graph = Graph::new();
            create(&graph, &path, &[("size", "5M"), ("preallocation", mode)]).await;
            let image = open(&graph, &path).await;
            let node = image.node();
            let mut buf = vec![9; 5 << 20];
            node.read(0, &mut buf).await.unwrap();
            assert!(buf.iter().all(|b| *b == 0));
            let qcow2 = node.driver_as::<Qcow2>().unwrap();
            let result = check(qcow2, Fix::default()).await.unwrap();
            assert_eq!((result.allocated_clusters, result.corruptions, result.leaks), (80, 0, 0), "{mode}");
            drop(node);
            image.close().await;
        });
        reference_check(&path);
    }
}

#[test]
fn an_image_that_was_not_closed_is_repaired_at_its_next_opening_if_it_has_lazy_refcounts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    let copy = dir.path().join("b.qcow2");
    on_context(async {
        let graph = Graph::new();
        create(&graph, &path, &[("size", "5M"), ("lazy_refcounts", "on")]).await;
        let image = open(&graph, &path).await;
        image.node().write(0, &vec![3; 200_000], WriteFlags::empty()).await.unwrap();
        image.node().flush().await.unwrap();
        // As a crash would leave it.
        std::fs::copy(&path, &copy).unwrap();
        image.close().await;
        let image = open(&graph, &copy).await;
        image.check_clean().await;
        let mut buf = vec![0; 200_000];
        image.node().read(0, &mut buf).await.unwrap();
        assert!(buf.iter().all(|b| *b == 3));
        image.close().await;
    });
    reference_check(&copy);
}

#[test]
fn images_of_the_reference_tool_are_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    let name = path.to_str().unwrap();
    for args in
        [&["-o", "compat=1.1"][..], &["-o", "compat=0.10"], &["-o", "extended_l2=on"], &["-o", "compression_type=zstd"]]
    {
        let mut create: Vec<&str> = vec!["create", "-q", "-f", "qcow2"];
        create.extend(args);
        create.extend([name, "16M"]);
        let Some((ok, text)) = tool("qemu-img", &create) else { return };
        assert!(ok, "{text}");
        let script =
            ["-f", "qcow2", "-c", "write -P 17 0 100k", "-c", "write -c -P 18 1M 64k", "-c", "write -z 2M 64k", name];
        let Some((ok, text)) = tool("qemu-io", &script) else { return };
        assert!(ok, "{text}");
        on_context(async {
            let graph = Graph::new();
            let image = open(&graph, &path).await;
            image.check_clean().await;
            let node = image.node();
            let mut buf = vec![0; 100 << 10];
            node.read(0, &mut buf).await.unwrap();
            assert!(buf.iter().all(|b| *b == 17), "{args:?}");
            node.read(1 << 20, &mut buf).await.unwrap();
            assert!(buf[..65536].iter().all(|b| *b == 18) && buf[65536..].iter().all(|b| *b == 0), "{args:?}");
            // Into the compressed cluster, and over the edge of the first data.
            node.write((1 << 20) + 1000, &[19; 1000], WriteFlags::empty()).await.unwrap();
            node.write(100 << 10, &[20; 4096], WriteFlags::empty()).await.unwrap();
            drop(node);
            image.check_clean().await;
            image.close().await;
        });
        reference_check(&path);
        let script = [
            "-f",
            "qcow2",
            "-c",
            "read -P 17 0 100k",
            "-c",
            "read -P 20 100k 4k",
            "-c",
            "read -P 18 1M 1000",
            "-c",
            "read -P 19 1049576 1000",
            "-c",
            "read -P 18 1050576 63536",
            name,
        ];
        let (ok, text) = tool("qemu-io", &script).unwrap();
        assert!(ok && !text.contains("failed"), "{args:?}: {text}");
    }
}
