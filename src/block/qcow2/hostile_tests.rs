//! Damaged and hostile images: whatever the bytes say, opening, reading, writing, checking and repairing end with a
//! result, without a panic and without endless work.

use super::check::{Fix, check};
use super::*;
use crate::{Backend, Graph, Options, Perm};
use lockstep_event::Context;
use proptest::prelude::*;
use std::path::Path;

fn base_image(version: &str, cluster_size: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    Context::new("test").unwrap().run(async {
        let graph = Graph::new();
        let options = Options::from_pairs([("size", "1M"), ("compat", version), ("cluster_size", cluster_size)]);
        crate::image::create(&graph, path.to_str().unwrap(), "qcow2", options).await.unwrap();
        let (backend, node) = open(&graph, &path, OpenFlags::default()).await.unwrap();
        node.write(0, &vec![1; 20_000], WriteFlags::empty()).await.unwrap();
        node.write(500_000, &vec![2; 1000], WriteFlags::empty()).await.unwrap();
        let cluster: u64 = cluster_size.parse().unwrap();
        node.write(600_000 / cluster * cluster, &vec![3; cluster as usize], WriteFlags::COMPRESSED).await.unwrap();
        drop((backend, node));
        graph.close_all().await;
    });
    std::fs::read(&path).unwrap()
}

async fn open(graph: &Graph, path: &Path, flags: OpenFlags) -> Result<(Rc<Backend>, Rc<Node>)> {
    let options = Options::from_pairs([("driver", "qcow2"), ("file.filename", path.to_str().unwrap())]);
    let node = graph.open(None, options, OpenFlags { unmap: true, ..flags }).await?;
    let backend = Backend::new(graph, None)?;
    let perm = if flags.read_only { Perm::CONSISTENT_READ } else { Perm::all() };
    backend.set_perms(perm, Perm::all())?;
    backend.insert(&node)?;
    Ok((backend, node))
}

/// Uses an image in every way; what fails may fail.
fn abuse(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    std::fs::write(&path, bytes).unwrap();
    Context::new("test").unwrap().run(async {
        let graph = Graph::new();
        for (read_only, checking) in [(true, false), (false, false), (false, true)] {
            let flags = OpenFlags { read_only, check: checking, no_backing: true, ..OpenFlags::default() };
            let Ok((backend, node)) = open(&graph, &path, flags).await else { continue };
            let Some(image) = node.driver_as::<Qcow2>() else { continue };
            let length = node.len().unwrap();
            let _ = check(image, Fix { leaks: checking, errors: checking }).await;
            let mut buf = vec![0; 40_000];
            for at in [0, 490_000, 590_000, length.saturating_sub(40_000)] {
                let _ = node.read(at, &mut buf).await;
                let _ = node.block_status(at, 1 << 20, true).await;
            }
            if !read_only {
                for at in [10_000, 500_500, 600_000, 900_000] {
                    if at + 30_000 <= length {
                        let _ = node.write(at, &buf[..30_000], WriteFlags::empty()).await;
                        let _ = node.discard(at, 8192).await;
                        let _ = node.write_zeroes(at, 8192, WriteFlags::MAY_UNMAP).await;
                    }
                }
                let _ = node.flush().await;
                if length < 1 << 30 {
                    let _ = node.truncate(length + 65536, true, Preallocation::Off).await;
                }
                let _ = node.make_empty().await;
                let _ = node.write(0, &buf[..512], WriteFlags::empty()).await;
            }
            drop((backend, node));
            graph.collect().await;
        }
        graph.close_all().await;
    });
}

/// Values that hurt: limits, flags, offsets of other tables.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        Just(COMPRESSED),
        Just(COPIED | ZERO),
        (0u64..64).prop_map(|n| n * 4096 | COPIED),
        (0u64..64).prop_map(|n| n * 4096),
        (0u64..64).prop_map(|n| n * 512 | COPIED),
        (0u64..8).prop_map(|n| COPIED | 1 << (48 + n)),
    ]
}

fn damage(mut bytes: Vec<u8>, changes: &[(usize, u64, u8)]) -> Vec<u8> {
    for (at, value, width) in changes {
        let value = value.to_be_bytes();
        let width = [1, 2, 4, 8][usize::from(*width) % 4];
        // Metadata fills the first clusters: aim there.
        let at = at % bytes.len().min(64 << 10) / width * width;
        bytes[at..at + width].copy_from_slice(&value[8 - width..]);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_damage_to_the_metadata_is_survived(
        changes in prop::collection::vec((any::<usize>(), word(), any::<u8>()), 1..6),
        header in prop::collection::vec((0usize..112, word(), any::<u8>()), 0..2),
        small: bool,
        v2: bool,
    ) {
        let version = if v2 { "0.10" } else { "1.1" };
        let bytes = base_image(version, if small { "512" } else { "4096" });
        let bytes = damage(damage(bytes, &changes), &header);
        abuse(&bytes);
    }
}

#[test]
fn a_refcount_table_that_leads_everywhere_to_one_full_block_ends_the_search() {
    let mut bytes = base_image("1.1", "512");
    let table = 512;
    let length = bytes.len() as u64;
    for entry in bytes[table..table + 512].chunks_exact_mut(8) {
        entry.copy_from_slice(&length.next_multiple_of(512).to_be_bytes());
    }
    bytes.resize(length.next_multiple_of(512) as usize, 0);
    bytes.extend_from_slice(&[0xff; 512]);
    abuse(&bytes);
}

#[test]
fn an_image_that_is_its_own_backing_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    let name = path.to_str().unwrap();
    Context::new("test").unwrap().run(async {
        let graph = Graph::new();
        let options = Options::from_pairs([("size", "1M"), ("backing_file", name), ("backing_fmt", "qcow2")]);
        crate::image::create(&graph, name, "qcow2", options).await.unwrap();
        let e = graph.open(Some(name), Options::new(), OpenFlags { read_only: true, ..OpenFlags::default() }).await;
        assert!(e.unwrap_err().message().ends_with("Backing chain is too long"));
        assert!(graph.nodes().is_empty());
        graph.close_all().await;
    });
}
