//! A qcow2 image with changed bytes: opened, read, written, checked, repaired.
//!
//! The input is a list of changes to one of two good images: where (two bytes), how many (one byte), the bytes.
#![no_main]
use libfuzzer_sys::fuzz_target;
use lockstep_block::qcow2::Qcow2;
use lockstep_block::qcow2::check::{Fix, check};
use lockstep_block::{Backend, Graph, Node, OpenFlags, Options, Perm, WriteFlags};
use lockstep_event::Context;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::OnceLock;

struct Base {
    folder: tempfile::TempDir,
    images: [Vec<u8>; 2],
}

static BASE: OnceLock<Base> = OnceLock::new();

fn base() -> &'static Base {
    BASE.get_or_init(|| {
        let folder = tempfile::tempdir_in(if Path::new("/dev/shm").exists() { "/dev/shm" } else { "/tmp" }).unwrap();
        let images =
            [("0.10", "512"), ("1.1", "4096")].map(|(version, cluster)| image(folder.path(), version, cluster));
        Base { folder, images }
    })
}

fn image(folder: &Path, version: &str, cluster: &str) -> Vec<u8> {
    let path = folder.join("base.qcow2");
    Context::new("fuzz").unwrap().run(async {
        let graph = Graph::new();
        let options = Options::from_pairs([("size", "256k"), ("compat", version), ("cluster_size", cluster)]);
        lockstep_block::image::create(&graph, path.to_str().unwrap(), "qcow2", options).await.unwrap();
        let (backend, node) = open(&graph, &path, OpenFlags::default()).await.unwrap();
        node.write(0, &[1; 5000], WriteFlags::empty()).await.unwrap();
        node.write(100_000, &[2; 1000], WriteFlags::empty()).await.unwrap();
        let cluster: u64 = cluster.parse().unwrap();
        let at = 200_000 / cluster * cluster;
        node.write(at, &vec![3; cluster as usize], WriteFlags::COMPRESSED).await.unwrap();
        drop((backend, node));
        graph.close_all().await;
    });
    std::fs::read(path).unwrap()
}

async fn open(graph: &Graph, path: &Path, flags: OpenFlags) -> Option<(Rc<Backend>, Rc<Node>)> {
    let options = Options::from_pairs([("driver", "qcow2"), ("file.filename", path.to_str()?)]);
    let node = graph.open(None, options, OpenFlags { unmap: true, no_backing: true, ..flags }).await.ok()?;
    let backend = Backend::new(graph, None).ok()?;
    backend.set_perms(Perm::all(), Perm::all()).ok()?;
    backend.insert(&node).ok()?;
    Some((backend, node))
}

fuzz_target!(|data: &[u8]| {
    let Some((first, mut rest)) = data.split_first() else { return };
    let base = base();
    let mut bytes = base.images[usize::from(first & 1)].clone();
    while let [high, low, count, tail @ ..] = rest {
        let (new, later) = tail.split_at(tail.len().min(usize::from(*count & 31)));
        rest = later;
        let at = usize::from(*high) << 8 | usize::from(*low);
        for (byte, new) in bytes.iter_mut().skip(at).zip(new) {
            *byte = *new;
        }
    }
    let path: PathBuf = base.folder.path().join("image.qcow2");
    std::fs::write(&path, &bytes).unwrap();
    Context::new("fuzz").unwrap().run(async {
        let graph = Graph::new();
        let flags = OpenFlags { check: first & 2 != 0, ..OpenFlags::default() };
        if let Some((backend, node)) = open(&graph, &path, flags).await {
            let mut buffer = vec![0; 8000];
            let length = node.len().unwrap_or(0);
            if let Some(image) = node.driver_as::<Qcow2>() {
                let _ = check(image, Fix { leaks: first & 4 != 0, errors: first & 8 != 0 }).await;
            }
            for at in [0, 98_000, 198_000, length.saturating_sub(8000)] {
                let _ = node.read(at, &mut buffer).await;
                let _ = node.block_status(at, 1 << 18, true).await;
                let _ = node.write(at, &buffer[..3000], WriteFlags::empty()).await;
                let _ = node.discard(at, 4096).await;
                let _ = node.write_zeroes(at, 4096, WriteFlags::MAY_UNMAP).await;
            }
            let _ = node.flush().await;
            let _ = node.make_empty().await;
            drop((backend, node));
        }
        graph.close_all().await;
    });
});
