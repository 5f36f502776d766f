//! Power loss: everything sent to the file is recorded; the file is then put together as a crash could have left it (any
//! part of what was not flushed, torn at sectors, in any order), opened and checked. Whatever a guest's flush had
//! covered must be there, the image must be consistent, and only leaks are forgiven.

use super::check::{Fix, check};
use super::*;
use crate::{Backend, Graph, OpenContext, Options, Perm};
use lockstep_event::Context;
use std::collections::HashMap;

const SECTOR: usize = 512;

/// What reached the file, and what the guest was told, in one order.
#[derive(Clone, Debug)]
enum Event {
    Write(u64, Vec<u8>),
    /// A flush has ended that began when there were so many events.
    Flush(usize),
    Truncate(u64),
    /// The guest begins to give sectors from..to the value.
    Guest(u64, u64, u16),
    /// The image is being emptied: sectors may read as zero from now on.
    Empty,
    /// The guest's flush has ended.
    GuestFlush,
}

#[derive(Default)]
struct Disk {
    bytes: Vec<u8>,
    log: Vec<Event>,
}

impl Disk {
    fn put(&mut self, offset: u64, data: &[u8]) {
        let end = offset as usize + data.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset as usize..end].copy_from_slice(data);
    }
}

thread_local! {
    static DISK: RefCell<Rc<RefCell<Disk>>> = RefCell::default();
}

static RECORDER: DriverDef = DriverDef {
    name: "recorder",
    kind: DriverKind::Protocol,
    protocols: &[],
    needs_filename: false,
    supports_backing: false,
    probe: None,
    parse_filename: None,
    strong_options: &[],
    open: |_: &mut OpenContext| {
        Box::pin(async {
            let disk = DISK.with(|d| d.borrow().clone());
            Ok(Box::new(Recorder(disk)) as Box<dyn BlockDriver>)
        })
    },
};

struct Recorder(Rc<RefCell<Disk>>);

impl BlockDriver for Recorder {
    fn format_name(&self) -> &'static str {
        "recorder"
    }

    fn length(&self) -> io::Result<u64> {
        Ok((self.0.borrow().bytes.len() as u64).next_multiple_of(SECTOR as u64))
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let disk = self.0.borrow();
            for (i, b) in buf.iter_mut().enumerate() {
                *b = disk.bytes.get(offset as usize + i).copied().unwrap_or(0);
            }
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], _flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let mut disk = self.0.borrow_mut();
            disk.put(offset, data);
            disk.log.push(Event::Write(offset, data.to_vec()));
            Ok(())
        })
    }

    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            let begin = self.0.borrow().log.len();
            // Others go on meanwhile; what they write is not covered.
            tokio::task::yield_now().await;
            self.0.borrow_mut().log.push(Event::Flush(begin));
            Ok(())
        })
    }

    fn truncate<'a>(&'a self, len: u64, _exact: bool, _p: Preallocation) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut disk = self.0.borrow_mut();
            disk.bytes.resize(len as usize, 0);
            disk.log.push(Event::Truncate(len));
            Ok(())
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
}

fn use_disk(bytes: Vec<u8>) -> Rc<RefCell<Disk>> {
    let disk = Rc::new(RefCell::new(Disk { bytes, log: Vec::new() }));
    DISK.with(|d| *d.borrow_mut() = disk.clone());
    disk
}

struct Open {
    graph: Graph,
    backend: Rc<Backend>,
    node: Rc<Node>,
}

async fn open_recorded() -> Result<Open> {
    let graph = Graph::new();
    let file = graph
        .build_node(&RECORDER, Some("file0"), Options::new(), OpenFlags { unmap: true, ..OpenFlags::default() })
        .await?;
    let options = Options::from_pairs([("driver", "qcow2"), ("file", "file0"), ("discard", "unmap")]);
    let node = graph.open(None, options, OpenFlags::default()).await?;
    drop(file);
    let backend = Backend::new(&graph, None)?;
    backend.set_perms(Perm::all(), Perm::all())?;
    backend.insert(&node)?;
    Ok(Open { graph, backend, node })
}

fn fill(sectors: u64, value: u16) -> Vec<u8> {
    value.to_le_bytes().repeat(SECTOR / 2 * sectors as usize)
}

/// A guest at work; returns the first bytes of the disk and what happened after.
fn record(layout: &create::CreateOptions, seed: u64, steps: u64) -> (Vec<u8>, Vec<Event>) {
    let disk = use_disk(Vec::new());
    Context::new("test").unwrap().run(async {
        let graph = Graph::new();
        let file = graph.build_node(&RECORDER, None, Options::new(), OpenFlags::default()).await.unwrap();
        create::format(&file, layout).await.unwrap();
        drop(file);
        graph.close_all().await;
        disk.borrow_mut().log.clear();
        let start = disk.borrow().bytes.clone();

        let image = open_recorded().await.unwrap();
        let sectors = layout.size / SECTOR as u64;
        let mut random = Random(seed);
        for step in 1..=steps {
            let at = random.next(sectors);
            let n = (random.next(64) + 1).min(sectors - at);
            let (offset, len) = (at * SECTOR as u64, n * SECTOR as u64);
            let node = &image.node;
            let note = |e: Event| disk.borrow_mut().log.push(e);
            match random.next(20) {
                0..=11 => {
                    let value = (step % 65535 + 1) as u16;
                    note(Event::Guest(at, at + n, value));
                    node.write(offset, &fill(n, value), WriteFlags::empty()).await.unwrap();
                }
                12..=13 => {
                    note(Event::Guest(at, at + n, 0));
                    node.write_zeroes(offset, len, WriteFlags::MAY_UNMAP).await.unwrap();
                }
                14 => {
                    let size = 1 << layout.cluster_size.trailing_zeros();
                    let (first, last) = (offset.next_multiple_of(size), (offset + len) / size * size);
                    if first < last {
                        note(Event::Guest(first / SECTOR as u64, last / SECTOR as u64, 0));
                        node.discard(first, last - first).await.unwrap();
                    }
                }
                15..=17 => {
                    node.flush().await.unwrap();
                    note(Event::GuestFlush);
                }
                18 => {
                    note(Event::Empty);
                    node.make_empty().await.unwrap();
                }
                // What runs in the background gets its turn.
                _ => {
                    for _ in 0..5 {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        let Open { graph, backend, node } = image;
        drop((backend, node));
        graph.close_all().await;
        let log = std::mem::take(&mut disk.borrow_mut().log);
        (start, log)
    })
}

/// The disk after a crash behind the first `events` events.
fn crash(start: &[u8], events: &[Event], random: &mut Random) -> Vec<u8> {
    let mut disk = Disk { bytes: start.to_vec(), log: Vec::new() };
    let covered = |e: &Event| if let Event::Flush(begin) = e { *begin } else { 0 };
    let stable = events.iter().map(covered).max().unwrap_or(0);
    let apply = |disk: &mut Disk, e: &Event| match e {
        Event::Write(offset, data) => disk.put(*offset, data),
        Event::Truncate(len) => disk.bytes.resize(*len as usize, 0),
        _ => {}
    };
    for e in &events[..stable] {
        apply(&mut disk, e);
    }
    // Of the rest any part may have made it. A later write of the same sector may be there without the earlier one.
    let keep = random.next(4);
    for e in &events[stable..] {
        match e {
            Event::Write(offset, data) => {
                let mut at = 0;
                while at < data.len() {
                    let n = (SECTOR - (*offset as usize + at) % SECTOR).min(data.len() - at);
                    if random.next(4) < keep + u64::from(keep == 0 && random.next(20) == 0) {
                        disk.put(offset + at as u64, &data[at..at + n]);
                    }
                    at += n;
                }
            }
            Event::Truncate(_) if random.next(2) == 0 => apply(&mut disk, e),
            _ => {}
        }
    }
    disk.bytes
}

/// For each sector the values it may have.
fn possible(events: &[Event], sectors: u64) -> HashMap<u64, Vec<u16>> {
    let mut values: HashMap<u64, Vec<u16>> = (0..sectors).map(|s| (s, vec![0])).collect();
    for e in events {
        match e {
            Event::Guest(from, to, value) => {
                for s in *from..*to {
                    values.get_mut(&s).unwrap().push(*value);
                }
            }
            Event::Empty => values.values_mut().for_each(|v| v.push(0)),
            Event::GuestFlush => values.values_mut().for_each(|v| *v = vec![*v.last().unwrap()]),
            _ => {}
        }
    }
    values
}

fn survive(bytes: Vec<u8>, allowed: &HashMap<u64, Vec<u16>>, what: &str) {
    use_disk(bytes);
    Context::new("test").unwrap().run(async {
        let image = open_recorded().await.unwrap_or_else(|e| panic!("{what}: {e}"));
        let qcow2 = image.node.driver_as::<Qcow2>().unwrap();
        let result = check(qcow2, Fix::default()).await.unwrap();
        assert_eq!((result.corruptions, result.check_errors), (0, 0), "{what}: {:?}", result.messages);
        let mut content = vec![0; image.node.len().unwrap() as usize];
        image.node.read(0, &mut content).await.unwrap();
        for (s, sector) in content.chunks(SECTOR).enumerate() {
            let value = u16::from_le_bytes([sector[0], sector[1]]);
            assert!(sector == fill(1, value), "{what}: sector {s} is torn");
            let allowed = &allowed[&(s as u64)];
            assert!(allowed.contains(&value), "{what}: sector {s} is {value}, not one of {allowed:?}");
        }
        let fixed = check(qcow2, Fix { leaks: true, errors: false }).await.unwrap();
        assert_eq!((fixed.corruptions, fixed.leaks), (0, 0), "{what}");
        let Open { graph, backend, node } = image;
        drop((backend, node));
        graph.close_all().await;
    });
}

fn run(layout: create::CreateOptions, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let (start, events) = record(&layout, 0x1234_5678_9abc_def1 ^ (seed << 32), 120);
        let mut random = Random(0xfeed_beef + seed);
        for _ in 0..30 {
            let at = random.next(events.len() as u64 + 1) as usize;
            let bytes = crash(&start, &events[..at], &mut random);
            let allowed = possible(&events[..at], layout.size / SECTOR as u64);
            survive(bytes, &allowed, &format!("seed {seed}, after {at} of {} events", events.len()));
        }
    }
}

fn layout(size: u64, cluster_size: u64, refcount_bits: u64) -> create::CreateOptions {
    create::CreateOptions { size, cluster_size, refcount_bits, ..create::CreateOptions::default() }
}

#[test]
fn a_crash_loses_nothing_that_was_flushed_with_small_clusters() {
    run(layout(256 << 10, 512, 16), 0..12);
}

#[test]
fn a_crash_loses_nothing_that_was_flushed_while_the_refcount_table_grows() {
    // A refcount block describes 64 clusters, and a table cluster 64 blocks: 2 MiB of clusters fill the first table.
    run(layout(4 << 20, 512, 64), 20..24);
}

#[test]
fn a_crash_loses_nothing_that_was_flushed_with_usual_clusters() {
    run(layout(2 << 20, 65536, 16), 40..46);
}

#[test]
fn a_crash_loses_nothing_that_was_flushed_with_lazy_refcounts() {
    run(create::CreateOptions { lazy_refcounts: true, ..layout(256 << 10, 4096, 16) }, 60..66);
}

#[test]
fn a_crash_loses_nothing_that_was_flushed_with_subclusters() {
    run(create::CreateOptions { extended_l2: true, ..layout(1 << 20, 16384, 16) }, 80..86);
}
