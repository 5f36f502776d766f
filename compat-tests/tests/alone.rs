//! The survivor dies too, while it takes over or merges its overlays: nobody is left to go on, and whoever starts the VM from the images
//! finds what was acknowledged.
use lockstep_compat_tests::colo::{Death, LONG, Pair, Paste, Side};
use lockstep_compat_tests::deaths::{ALONE, REACHED};
use lockstep_compat_tests::image::check_image_but_leaks;
use lockstep_compat_tests::machine::Machine;
use lockstep_compat_tests::monitor::Mark;
use lockstep_compat_tests::procedure::{Procedure, restart_at};
use lockstep_compat_tests::stage::Layout::TwoHosts;
use lockstep_compat_tests::stage::{Host, Stage, on_stage};
use lockstep_compat_tests::traffic::{self, Http, KeyValues};
use lockstep_migration::colo::{Part, steps_of};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(580);
const VALUE: usize = 100_000;
/// So many are more than one stretch of a merge, which has at most 4 MiB.
const MORE_THAN_A_STRETCH: usize = 60;

/// Writes pairs until its connection ends.
struct Writer {
    stream: TcpStream,
    acknowledged: Arc<AtomicUsize>,
    thread: JoinHandle<KeyValues>,
}

impl Writer {
    fn start() -> Self {
        let mut http = Http::open().expect("a connection");
        let stream = http.stream().try_clone().expect("a descriptor");
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let count = acknowledged.clone();
        let thread = std::thread::spawn(move || {
            let mut pairs = KeyValues::default();
            while pairs.put_next(&mut http, VALUE).is_ok() {
                count.store(pairs.acknowledged(), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(3));
            }
            pairs
        });
        Self { stream, acknowledged, thread }
    }

    fn wait_for(&self, more: usize) {
        let (start, enough) = (Instant::now(), self.acknowledged.load(Ordering::SeqCst) + more);
        while self.acknowledged.load(Ordering::SeqCst) < enough {
            assert!(start.elapsed() < LONG && !self.thread.is_finished(), "not enough was written");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What it has written, when nobody answers any more.
    fn finish(self) -> KeyValues {
        let _ = self.stream.shutdown(Shutdown::Both);
        let pairs = self.thread.join().expect("no panic");
        assert!(pairs.acknowledged() > 20, "only {} writes were acknowledged", pairs.acknowledged());
        pairs
    }
}

/// One side dies; the other one is told so and dies itself at a step of its failover. Returns both hosts, the primary's first, and what
/// was acknowledged.
fn both_die(stage: &Stage, last: Side, failpoint: &str) -> ([Host; 2], KeyValues) {
    let _ = std::fs::remove_file(REACHED);
    let mut pair = Pair::start_armed(stage, Paste::AtOnce);
    traffic::wait_for_guest(LONG).expect("the guest answers");
    let writer = Writer::start();
    writer.wait_for(5);
    // What is written since the last checkpoint is in the secondary's overlays alone, or in its memory.
    pair.set_checkpoint_delay();
    pair.wait_for_checkpoints(1);
    writer.wait_for(MORE_THAN_A_STRETCH);
    let first = if last == Side::Primary { Side::Secondary } else { Side::Primary };
    pair.strike(first, Death::Vanishing);
    pair.arm(last, failpoint);
    pair.side(last).monitor.command(ALONE);
    let start = Instant::now();
    while !Path::new(REACHED).exists() {
        assert!(start.elapsed() < LONG, "waited too long for {failpoint}");
        std::thread::sleep(Duration::from_millis(2));
    }
    // If its guest runs by now, it goes on serving.
    std::thread::sleep(Duration::from_millis(300));
    let hosts = pair.lose_both();
    for host in &hosts {
        let folder = Path::new(&host.place.folder);
        // Who dies may have begun to allocate a cluster.
        check_image_but_leaks(&folder.join("primary.qcow2"));
        // Overlays are flushed when they are taken over.
        let overlays = ["secondary-active.qcow2", "secondary-hidden.qcow2"].map(|image| folder.join(image));
        overlays.iter().filter(|image| image.exists()).for_each(|image| check_image_but_leaks(image));
    }
    (hosts, writer.finish())
}

/// A VM on the images of a host, with its guest up.
fn restart(stage: &Stage, host: &Host, lines: &str) -> Machine {
    stage.mend(host);
    let mut machine = Machine::start(host, "restarted", &restart_at(lines, &host.place));
    machine.monitor.greeting(LONG).expect("a greeting");
    let setup = Procedure::read().block("7-restart-a.jsonl").lines().next().expect("a line").to_string();
    machine.monitor.lines(&setup, LONG);
    traffic::wait_for_guest(LONG).expect("the guest answers");
    machine
}

/// The lines of the guide for a whole chain, for `primary.qcow2` alone.
fn without_overlays(lines: &str) -> String {
    let at = lines.find("   -drive").expect("a drive");
    format!("{}   -drive if=ide,id=colo-disk0,driver=qcow2,file.filename=$imagefolder/primary.qcow2\n", &lines[..at])
}

fn expect_all(pairs: &KeyValues, place: &str) {
    let checked = Http::open().and_then(|mut http| pairs.verify(&mut http));
    checked.unwrap_or_else(|error| panic!("{place}: {error}"));
}

fn end(stage: &Stage, host: &Host, mut machine: Machine) {
    stage.cut(host);
    machine.kill();
    check_image_but_leaks(&Path::new(&host.place.folder).join("primary.qcow2"));
}

/// The steps before which the overlays need not be durable: until then the dead primary's image is the disk.
const OVERLAYS_IN_MEMORY: [&str; 6] = [
    "secondary-failover",
    "secondary-failover-stopped",
    "secondary-failover-applied",
    "secondary-failover-disks",
    "secondary-failover-revoked",
    "secondary-failover-drained",
];

#[test]
fn a_primary_that_dies_at_any_step_of_its_failover_leaves_every_acknowledged_write() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let lines = Procedure::read().block("7-restart.sh").to_string();
        for step in steps_of(Side::Primary, Part::Failover) {
            eprintln!("{step}");
            let ([primary, _], pairs) = both_die(stage, Side::Primary, &format!("{step}=pause:{REACHED}"));
            let machine = restart(stage, &primary, &without_overlays(&lines));
            expect_all(&pairs, step);
            end(stage, &primary, machine);
        }
    });
}

/// The secondary dies at each of these steps of its failover; whose images have what was acknowledged depends on how far it got.
fn secondary_dies_at(steps: impl Iterator<Item = &'static str>) {
    on_stage(TwoHosts, LIMIT, |stage| {
        let lines = Procedure::read().block("7-restart.sh").to_string();
        for step in steps {
            eprintln!("{step}");
            let ([primary, secondary], pairs) = both_die(stage, Side::Secondary, &format!("{step}=pause:{REACHED}"));
            if step != "secondary-failover-end" {
                let machine = restart(stage, &primary, &without_overlays(&lines));
                expect_all(&pairs, &format!("{step}: the primary's image"));
                end(stage, &primary, machine);
            }
            if !OVERLAYS_IN_MEMORY.contains(&step) {
                let machine = restart(stage, &secondary, &lines);
                expect_all(&pairs, &format!("{step}: the secondary's images"));
                end(stage, &secondary, machine);
            }
        }
    });
}

fn steps_of_the_secondary(durable: bool) -> impl Iterator<Item = &'static str> {
    steps_of(Side::Secondary, Part::Failover).filter(move |step| OVERLAYS_IN_MEMORY.contains(step) != durable)
}

#[test]
fn a_secondary_that_dies_before_its_overlays_are_durable_leaves_every_acknowledged_write_with_the_primary() {
    secondary_dies_at(steps_of_the_secondary(false));
}

#[test]
fn a_secondary_that_dies_once_its_overlays_are_durable_leaves_every_acknowledged_write() {
    secondary_dies_at(steps_of_the_secondary(true));
}

#[test]
fn a_crash_in_the_middle_of_the_merge_loses_nothing_and_the_merge_is_done_again() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let procedure = Procedure::read();
        let lines = procedure.block("7-restart.sh").to_string();
        for place in ["secondary-merge@1", "secondary-merge@2"] {
            eprintln!("{place}");
            let ([_, host], pairs) = both_die(stage, Side::Secondary, &format!("{place}=pause:{REACHED}"));
            let mut machine = restart(stage, &host, &lines);
            expect_all(&pairs, place);
            let commit = procedure.block("7-restart-a.jsonl").lines().nth(1).expect("a line").to_string();
            machine.monitor.lines(&commit, LONG);
            machine.monitor.event("BLOCK_JOB_READY", Mark::START, LONG).expect("the job is ready");
            machine.monitor.lines(procedure.block("7-restart-b.jsonl"), LONG);
            machine.monitor.event("BLOCK_JOB_COMPLETED", Mark::START, LONG).expect("the job is done");
            expect_all(&pairs, &format!("{place}, merged again"));
            end(stage, &host, machine);
            let machine = restart(stage, &host, &without_overlays(&lines));
            expect_all(&pairs, &format!("{place}, without the overlays"));
            end(stage, &host, machine);
        }
    });
}
