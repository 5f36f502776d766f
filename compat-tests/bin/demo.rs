//! The demonstration behind `scripts/demo`: a pair of VMs, a client, a dead primary, and what the client saw of it.
use lockstep_compat_tests::colo::{LONG, Pair, Paste};
use lockstep_compat_tests::emulator::Emulator;
use lockstep_compat_tests::machine::{self, Machine};
use lockstep_compat_tests::monitor::Mark;
use lockstep_compat_tests::stage::{self, Layout, Stage};
use lockstep_compat_tests::timeline::{Note, draw};
use lockstep_compat_tests::traffic::{self, Echo, Http, KeyValues, Pace};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);
const SCENE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    if stage::is_inside() {
        return match play() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                machine::print_kept();
                eprintln!("\nThe demonstration failed: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let emulator = match Emulator::find() {
        Ok(emulator) => emulator,
        Err(missing) => {
            eprintln!("demo: {missing}");
            return ExitCode::FAILURE;
        }
    };
    println!("Lockstep: two VMs in lockstep; one dies, its clients go on.\nThe guest runs on {}.\n", emulator.engine);
    match stage::run_again_inside(&[]) {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: no networks of its own here ({error}); run it as root");
            ExitCode::FAILURE
        }
    }
}

/// A writer of key-value pairs on a connection of its own, until told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<KeyValues>>,
}

impl Writer {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut http, mut pairs) = (Http::open()?, KeyValues::default());
            while !told.load(Relaxed) {
                pairs.put_next(&mut http, 1000)?;
                std::thread::sleep(Duration::from_millis(100));
            }
            pairs.verify(&mut http)?;
            Ok(pairs)
        });
        Self { stop, thread }
    }

    fn finish(self) -> io::Result<KeyValues> {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("no panic")
    }
}

struct Story {
    notes: Vec<Note>,
}

impl Story {
    fn note(&mut self, text: &str) {
        self.note_at(Instant::now(), text);
    }

    fn note_at(&mut self, at: Instant, text: &str) {
        self.notes.push(Note { at, text: text.into() });
    }

    /// Turns the STOP and RESUME events of a monitor into notes on checkpoints.
    fn checkpoints(&mut self, machine: &Machine, mark: Mark) -> usize {
        let events = machine.monitor.events_since(mark);
        let mut count = 0;
        for pair in events.windows(2).filter(|pair| pair[0].name == "STOP" && pair[1].name == "RESUME") {
            let pause = pair[1].at - pair[0].at;
            self.note_at(pair[1].at, &format!("checkpoint ({} ms)", pause.as_millis()));
            count += 1;
        }
        count
    }
}

fn play() -> io::Result<()> {
    stage::watch_over(LIMIT);
    machine::keep_errors();
    let stage = Stage::set_up(Layout::OneHost)?;
    say("Two VMs of 512 MB and 10 GiB disk, by the lines of docs/colo.md (1-primary.sh to 4-primary-setup.jsonl)");
    let begin = Instant::now();
    let mut pair = Pair::start(&stage, Paste::AtOnce);
    say(&format!("The pair runs after {:.1} s; its guest boots, on both sides", begin.elapsed().as_secs_f64()));
    waiting("the BIOS takes most of it", || traffic::wait_for_guest(LONG))?;
    say(&format!("The guest answers after {:.1} s", begin.elapsed().as_secs_f64()));
    pair.set_checkpoint_delay();

    let mut story = Story { notes: Vec::new() };
    let primary_mark = pair.primary.monitor.mark();
    let start = Instant::now();
    let mut echo = Echo::start(1, Pace::PingPong { size: 256, pause: Duration::from_millis(5) })?;
    let writer = Writer::start();
    story.note("client connects");
    std::thread::sleep(SCENE);
    let checkpoints = story.checkpoints(&pair.primary, primary_mark);

    say("Killing the primary, promoting the secondary (7-secondary-failover.jsonl)");
    story.note("PRIMARY KILLED");
    let killed = Instant::now();
    pair.lose_primary();
    story.note("secondary promoted");
    echo.wait_for_progress(256, LONG)?;
    let outage = killed.elapsed();
    std::thread::sleep(SCENE);

    say("Starting a new secondary and replicating to it (9-secondary-resume-a.jsonl, -b.jsonl)");
    story.note("new secondary: copying the disk");
    let resumed_mark = pair.primary.monitor.mark();
    pair.resume();
    story.note("in lockstep again");
    std::thread::sleep(SCENE);
    let checkpoints = checkpoints + story.checkpoints(&pair.primary, resumed_mark);

    let pairs = writer.finish()?;
    let report = echo.finish()?;
    println!(
        "\nWhat the client saw, on one connection opened before the crash:\n\n{}",
        draw(start, &report.round_trips, &story.notes)
    );
    println!("{} messages of 256 bytes: none lost, none doubled, none wrong.", report.round_trips.len());
    println!("{} writes acknowledged by the key-value store: all there.", pairs.acknowledged());
    println!(
        "{checkpoints} checkpoints; first answer {} ms after the primary was killed (a client's TCP repeats after 200 ms what got lost).",
        outage.as_millis()
    );
    pair.end();
    println!("Both disk images are clean (qemu-img check).");
    Ok(())
}

/// Shows on a terminal that time passes while `work` is done.
fn waiting<T>(what: &str, work: impl FnOnce() -> T) -> T {
    if !io::stdout().is_terminal() {
        return work();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let begin = Instant::now();
            while !done.load(Relaxed) {
                print!("\r    {:>3} s, {what} ", begin.elapsed().as_secs());
                let _ = io::stdout().flush();
                std::thread::sleep(Duration::from_millis(200));
            }
            print!("\r{:60}\r", "");
        });
        let result = work();
        done.store(true, Relaxed);
        result
    })
}

fn say(text: &str) {
    println!("  * {text}");
}
