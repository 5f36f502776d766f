//! A host that dies after a failover, before or during the commit: at every single step, with any part of what was not flushed
//! lost, the images give the guest's disk.
//!
//! The images lie in memory files that log all writes and flushes. Afterwards every prefix of the log is turned into
//! what could be on the disks, and the chain is opened from that.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use lockstep_event::Context;
use proptest::prelude::*;

use super::all::*;
use super::*;
use crate::*;

const SIZE: u64 = 1 << 20;

#[derive(Clone)]
enum Op {
    Write(usize, u64, Vec<u8>),
    Truncate(usize, u64),
    Flush(usize),
}

#[derive(Default)]
struct Disks {
    now: HashMap<usize, Vec<u8>>,
    log: Vec<Op>,
    /// One that takes no write.
    full: Option<usize>,
}

thread_local! {
    static DISKS: RefCell<Disks> = RefCell::default();
}

static MEMORY: DriverDef = DriverDef {
    name: "memory",
    kind: DriverKind::Protocol,
    protocols: &[],
    needs_filename: false,
    supports_backing: false,
    probe: None,
    parse_filename: None,
    strong_options: &[],
    open: |cx| {
        Box::pin(
            async move { Ok(Box::new(Memory(cx.options.take_u64("disk")?.unwrap() as usize)) as Box<dyn BlockDriver>) },
        )
    },
};

struct Memory(usize);

impl BlockDriver for Memory {
    fn format_name(&self) -> &'static str {
        "memory"
    }

    fn length(&self) -> io::Result<u64> {
        Ok(DISKS.with_borrow(|d| d.now[&self.0].len() as u64))
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            DISKS.with_borrow(|d| {
                let disk = &d.now[&self.0];
                let start = (offset as usize).min(disk.len());
                let n = buf.len().min(disk.len() - start);
                buf[..n].copy_from_slice(&disk[start..start + n]);
                buf[n..].fill(0);
            });
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            if DISKS.with_borrow(|d| d.full == Some(self.0)) {
                return Err(errno(libc::ENOSPC));
            }
            DISKS.with_borrow_mut(|d| {
                write_at(d.now.get_mut(&self.0).unwrap(), offset, data);
                d.log.push(Op::Write(self.0, offset, data.to_vec()));
            });
            tokio::task::yield_now().await;
            if flags.contains(WriteFlags::FUA) {
                DISKS.with_borrow_mut(|d| d.log.push(Op::Flush(self.0)));
            }
            Ok(())
        })
    }

    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            tokio::task::yield_now().await;
            DISKS.with_borrow_mut(|d| d.log.push(Op::Flush(self.0)));
            Ok(())
        })
    }

    fn supports_fua(&self) -> bool {
        true
    }

    fn truncate<'a>(&'a self, len: u64, _: bool, _: Preallocation) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            DISKS.with_borrow_mut(|d| {
                d.now.get_mut(&self.0).unwrap().resize(len as usize, 0);
                d.log.push(Op::Truncate(self.0, len));
            });
            Ok(())
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn write_at(disk: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let end = offset as usize + data.len();
    if disk.len() < end {
        disk.resize(end, 0);
    }
    disk[offset as usize..end].copy_from_slice(data);
}

/// What can be on the disks after the first `len` operations: of what was not flushed, sectors picked by `seed` are lost.
fn after_crash(start: &HashMap<usize, Vec<u8>>, log: &[Op], seed: &mut u64) -> HashMap<usize, Vec<u8>> {
    let last_flush = |disk: usize| log.iter().rposition(|op| matches!(op, Op::Flush(d) if *d == disk)).unwrap_or(0);
    let mut disks = start.clone();
    for (at, op) in log.iter().enumerate() {
        match op {
            Op::Write(disk, offset, data) if at < last_flush(*disk) => {
                write_at(disks.get_mut(disk).unwrap(), *offset, data);
            }
            Op::Write(disk, offset, data) => {
                let mut offset = *offset;
                for sector in data.chunks(512) {
                    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    if *seed >> 62 != 0 {
                        write_at(disks.get_mut(disk).unwrap(), offset, sector);
                    }
                    offset += sector.len() as u64;
                }
            }
            Op::Truncate(disk, len) => disks.get_mut(disk).unwrap().resize(*len as usize, 0),
            Op::Flush(_) => {}
        }
    }
    disks
}

const PARENT: usize = 0;
const HIDDEN: usize = 1;
const ACTIVE: usize = 2;

/// A node `nameN` on each memory file.
async fn files(graph: &Graph) {
    for disk in [PARENT, HIDDEN, ACTIVE] {
        let options = Options::from_pairs([("disk", disk.to_string())]);
        let node = graph.build_node(&MEMORY, Some(&format!("m{disk}")), options, OpenFlags::default()).await.unwrap();
        graph.own(&node);
    }
}

async fn read_all(node: &Rc<Node>) -> Vec<u8> {
    let mut buf = vec![0; SIZE as usize];
    node.read(0, &mut buf).await.unwrap();
    buf
}

/// The guest's disk, opened from what a crash has left.
async fn reopened(disks: HashMap<usize, Vec<u8>>) -> Vec<u8> {
    let saved = DISKS.take();
    DISKS.with_borrow_mut(|d| d.now = disks);
    let graph = Graph::new();
    files(&graph).await;
    let chain = [
        ("driver", "qcow2"),
        ("file", "m2"),
        ("backing.driver", "qcow2"),
        ("backing.file", "m1"),
        ("backing.backing.driver", "qcow2"),
        ("backing.backing.file", "m0"),
    ];
    let node = graph.open(None, Options::from_pairs(chain), OpenFlags::default()).await.unwrap();
    let contents = read_all(&node).await;
    drop(node);
    graph.close_all().await;
    DISKS.set(saved);
    contents
}

#[derive(Clone, Debug)]
struct Write {
    secondary: bool,
    offset: u64,
    len: usize,
    byte: u8,
}

fn write() -> impl Strategy<Value = Write> {
    (any::<bool>(), 0..SIZE - 200_000, prop_oneof![1usize..5000, 1usize..200_000], 1u8..)
        .prop_map(|(secondary, offset, len, byte)| Write { secondary, offset, len, byte })
}

/// A secondary in lock-step.
struct Secondary {
    graph: Graph,
    /// What the primary writes to.
    parent: Rc<Backend>,
    /// What the guest sees.
    disk: Rc<Backend>,
    /// The images at first.
    start: HashMap<usize, Vec<u8>>,
}

async fn secondary() -> Secondary {
    DISKS.set(Disks::default());
    DISKS.with_borrow_mut(|d| d.now = [PARENT, HIDDEN, ACTIVE].map(|n| (n, Vec::new())).into());
    let graph = Graph::new();
    files(&graph).await;
    for disk in [PARENT, HIDDEN, ACTIVE] {
        let node = graph.find_node(&format!("m{disk}")).unwrap();
        let create = crate::qcow2::create::CreateOptions { size: SIZE, ..Default::default() };
        crate::qcow2::create::format(&node, &create).await.unwrap();
    }
    DISKS.with_borrow_mut(|d| d.log.clear());
    let start = DISKS.with_borrow(|d| d.now.clone());
    let drive = async |id: &str, pairs: &[(&str, &str)]| {
        let node = graph.open(None, Options::from_pairs(pairs.iter().copied()), OpenFlags::default()).await.unwrap();
        let backend = Backend::new(&graph, Some(id)).unwrap();
        backend.insert(&node).unwrap();
        backend
    };
    let parent = drive("parent0", &[("driver", "qcow2"), ("file", "m0")]).await;
    parent.set_perms(Perm::WRITE, Perm::all()).unwrap();
    let disk = drive(
        "colo-disk0",
        &[
            ("driver", "replication"),
            ("mode", "secondary"),
            ("top-id", "colo-disk0"),
            ("file.driver", "qcow2"),
            ("file.file", "m2"),
            ("file.backing.driver", "qcow2"),
            ("file.backing.file", "m1"),
            ("file.backing.backing", "parent0"),
        ],
    )
    .await;
    disk.set_perms(Perm::CONSISTENT_READ | Perm::WRITE, Perm::all()).unwrap();
    replication_start_all(&graph, ReplicationMode::Secondary).await.unwrap();
    Secondary { graph, parent, disk, start }
}

async fn scenario(before: Vec<Write>, since: Vec<Write>, mut seed: u64) {
    let Secondary { graph, parent, disk, start } = secondary().await;
    let mut model = vec![0; SIZE as usize];
    for (checkpoint, writes) in [(true, before), (false, since)] {
        let mut primary = model.clone();
        for w in writes {
            let data = vec![w.byte; w.len];
            let range = w.offset as usize..w.offset as usize + w.len;
            if w.secondary {
                disk.write(w.offset, &data, WriteFlags::empty()).await.unwrap();
                model[range].fill(w.byte);
            } else {
                parent.write(w.offset, &data, WriteFlags::empty()).await.unwrap();
                primary[range].fill(w.byte);
            }
        }
        if checkpoint {
            replication_do_checkpoint_all(&graph).await.unwrap();
            model = primary;
        }
    }
    // Both guests have asked for their writes to last, and were told so.
    parent.flush().await.unwrap();
    disk.flush().await.unwrap();
    replication_stop_all(&graph, true).await.unwrap();
    let from = DISKS.with_borrow(|d| d.log.len());
    while replication_is_committing(&graph) {
        tokio::task::yield_now().await;
    }
    disk.flush().await.unwrap();
    assert!(read_all(&disk.node().unwrap()).await == model, "after the commit");
    let log = DISKS.with_borrow(|d| d.log.clone());
    for len in from..=log.len() {
        let disks = after_crash(&start, &log[..len], &mut seed);
        assert!(reopened(disks).await == model, "after a crash behind step {len} of {}", log.len());
    }
    disk.remove_medium();
    parent.remove_medium();
    graph.close_all().await;
}

#[test]
fn a_write_of_the_primary_whose_old_contents_cannot_be_kept_fails_and_ends_the_pair() {
    Context::new("test").unwrap().run(async {
        let Secondary { graph, parent, disk, .. } = secondary().await;
        parent.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        replication_do_checkpoint_all(&graph).await.unwrap();
        DISKS.with_borrow_mut(|d| d.full = Some(HIDDEN));
        let e = parent.write(0, &[2; 512], WriteFlags::empty()).await.unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(replication_get_error_all(&graph).unwrap_err().message(), "I/O error occurred");
        let mut seen = [0; 512];
        disk.read(0, &mut seen).await.unwrap();
        assert_eq!(seen, [1; 512], "the secondary's view is still that of the checkpoint");
        assert!(replication_do_checkpoint_all(&graph).await.is_err());
        DISKS.with_borrow_mut(|d| d.full = None);
        disk.remove_medium();
        parent.remove_medium();
        graph.close_all().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48, failure_persistence: None, max_shrink_iters: 30, ..ProptestConfig::default()
    })]
    #[test]
    fn a_crash_from_the_failover_to_the_end_of_the_commit_loses_nothing(
        before in prop::collection::vec(write(), 0..12), since in prop::collection::vec(write(), 1..20), seed: u64,
    ) {
        Context::new("test").unwrap().run(scenario(before, since, seed));
    }
}
