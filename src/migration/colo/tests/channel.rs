//! The channel between the two: dead at any byte, wrong at any byte, and what either side makes of that.

use super::super::{CheckpointCause, Steps};
use super::{TestPair, in_context, told, until};
use crate::MigrateArguments;
use crate::hooks::VmControl;
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Carries bytes between the two sides until so many have gone from the primary.
fn proxy(listen: &Path, target: String, cut_after: u64) -> Arc<AtomicU64> {
    spoiling_proxy(listen, target, cut_after, None)
}

/// The same, with one byte changed.
fn spoiling_proxy(listen: &Path, target: String, cut_after: u64, spoil: Option<(u64, u8)>) -> Arc<AtomicU64> {
    let (listener, count) = (UnixListener::bind(listen).unwrap(), Arc::new(AtomicU64::new(0)));
    let counted = count.clone();
    std::thread::spawn(move || {
        let (mut primary, _) = listener.accept().unwrap();
        let mut secondary = UnixStream::connect(target).unwrap();
        let (mut back_from, mut back_to) = (secondary.try_clone().unwrap(), primary.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut back_from, &mut back_to);
            let _ = back_to.shutdown(Shutdown::Both);
        });
        let mut buf = [0; 65536];
        loop {
            let left = cut_after - counted.load(Ordering::SeqCst);
            let want = buf.len().min(left as usize);
            match primary.read(&mut buf[..want]) {
                Ok(n) if n > 0 => {
                    let start = counted.load(Ordering::SeqCst);
                    if let Some((at, flip)) = spoil.filter(|s| (start..start + n as u64).contains(&s.0)) {
                        buf[(at - start) as usize] ^= flip;
                    }
                    counted.fetch_add(n as u64, Ordering::SeqCst);
                    if secondary.write_all(&buf[..n]).is_err() {
                        break;
                    }
                }
                _ => break,
            }
        }
        let _ = primary.shutdown(Shutdown::Both);
        let _ = secondary.shutdown(Shutdown::Both);
    });
    count
}

#[test]
fn a_channel_that_dies_at_any_byte_of_a_checkpoint_leaves_a_whole_secondary() {
    // Where the second checkpoint lies in the stream.
    let range = Rc::new(Cell::new((0, 0)));
    let found = range.clone();
    in_context(async move {
        let pair = TestPair::new(Steps::default(), Steps::default());
        let count = proxy(Path::new(&pair.path("p")), pair.path("s"), u64::MAX);
        pair.connect_by(&format!("unix:{}", pair.path("p"))).await;
        pair.checkpoint(2).await;
        let from = count.load(Ordering::SeqCst);
        pair.checkpoint(3).await;
        found.set((from, count.load(Ordering::SeqCst)));
    });
    let (from, to) = range.get();
    assert!(to - from > 10_000, "{from} to {to}");
    // Every byte of the heads and the tail (devices), and a sample of the pages.
    let cuts = (from..from + 40)
        .chain((from + 40..to - 700).step_by(4001))
        .chain((to - 700..to).step_by(13))
        .chain(to - 20..to);
    for cut in cuts {
        in_context(async {
            let pair = TestPair::new(Steps::default(), Steps::default());
            proxy(Path::new(&pair.path("p")), pair.path("s"), cut);
            pair.connect_by(&format!("unix:{}", pair.path("p"))).await;
            pair.checkpoint(2).await;
            pair.epoch(3);
            let case = format!("byte {}", cut - from);
            until(&case, || told(&pair.secondary) && told(&pair.primary)).await;
            assert_eq!(pair.secondary.whole_epoch(), Ok(2), "{case}: nothing of an unfinished checkpoint shows");
            assert_eq!(pair.world.released.get(), 2, "{case}: nothing is released before it is received");
            pair.secondary_survives(&case).await;
        });
    }
}

#[test]
fn whatever_a_primary_says_a_failover_comes_out_of_it() {
    for n in 0..50_u64 {
        in_context(async {
            let pair = TestPair::new(Steps::default(), Steps::default());
            // The stream up to the pair's standing has about this length; what is hit differs from case to case.
            let at = 13_000 + n * n * 31 % 130_000;
            spoiling_proxy(Path::new(&pair.path("p")), pair.path("s"), u64::MAX, Some((at, 1 << (n % 8))));
            pair.secondary.migration.start_incoming(&format!("unix:{}", pair.path("s"))).unwrap();
            pair.primary.work(1);
            let uri = Some(format!("unix:{}", pair.path("p")));
            pair.primary.migration.migrate(&MigrateArguments { uri, ..MigrateArguments::default() }).unwrap();
            let (p, s) = (&pair.primary, &pair.secondary);
            let over = || pair.in_colo() || s.status() == "failed";
            until(&format!("case {n}: it stands or fell"), over).await;
            for epoch in 2..6 {
                pair.epoch(epoch);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            for machine in [s, p] {
                if machine.migration.colo_lost_heartbeat().is_ok() {
                    until(&format!("case {n}: it goes on alone"), || {
                        machine.status() == "completed" && machine.vm.is_running()
                    })
                    .await;
                }
            }
        });
    }
}

#[test]
fn a_secondary_notices_a_bad_device_before_it_says_received() {
    in_context(async {
        let pair = TestPair::after_a_checkpoint().await;
        // The device's own check refuses this one.
        pair.primary.work(3);
        *pair.primary.device.epoch.lock() = 1 << 40;
        pair.primary.migration.checkpoint_trigger().request(CheckpointCause::Command);
        until("both know that it fell apart", || told(&pair.secondary) && told(&pair.primary)).await;
        assert_eq!(pair.secondary.whole_epoch(), Ok(2));
        assert_eq!(pair.world.released.get(), 2);
        pair.secondary_survives("bad device").await;
    });
}

#[test]
fn connections_that_make_no_sense_are_noticed_before_the_secondary_says_received() {
    in_context(async {
        let pair = TestPair::after_a_checkpoint().await;
        *pair.primary.net.connections.borrow_mut() = Some("nonsense".into());
        pair.epoch(3);
        until("both know that it fell apart", || told(&pair.secondary) && told(&pair.primary)).await;
        assert_eq!((pair.secondary.whole_epoch(), pair.world.released.get()), (Ok(2), 2));
        pair.secondary_survives("nonsense").await;
    });
}

#[test]
fn a_lost_disk_write_ends_the_pair_before_the_next_checkpoint() {
    in_context(async {
        let pair = TestPair::after_a_checkpoint().await;
        pair.world.write_error.set(true);
        pair.epoch(3);
        until("both know that it fell apart", || told(&pair.secondary) && told(&pair.primary)).await;
        assert_eq!((pair.secondary.whole_epoch(), pair.world.released.get()), (Ok(2), 2));
        assert!(pair.primary.vm.is_running(), "it was not stopped for it");
        pair.primary_survives("lost write").await;
    });
}

#[test]
fn a_primary_notices_between_checkpoints_that_its_peer_died() {
    in_context(async {
        let pair = TestPair::new(Steps::default(), Steps::default());
        pair.connect().await;
        pair.secondary.migration.yank().pull();
        until("the primary tells", || pair.primary.vm.log.borrow().iter().any(|l| l == "COLO_EXIT error")).await;
        let status = pair.primary.migration.colo_status();
        assert_eq!(status, serde_json::json!({"mode": "primary", "last-mode": "none", "reason": "none"}));
        assert_eq!(pair.primary.status(), "colo", "QEMU too stays so until it is told");
        pair.primary_survives("peer died").await;
        assert_eq!(pair.primary.migration.colo_status()["last-mode"], "primary");
    });
}
