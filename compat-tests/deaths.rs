//! Random deaths: hosts of a pair die one after another, by any means and at any moment, and clients must not notice more than a pause.
//!
//! One seed is one course: who dies, how, and at which step or after how long. (What the clients were saying at that moment is not.)
use crate::colo::{Death, LONG, Pair, Paste};
use crate::machine::Machine;
use crate::stage::Stage;
use crate::traffic::{self, Echo, Http, KeyValues, Pace};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Steps of checkpoints at which a side may be stopped to die there.
const STEPS: [&str; 14] = [
    "primary-request",
    "primary-reply",
    "primary-stopped",
    "primary-send",
    "primary-received",
    "primary-released",
    "primary-loaded",
    "secondary-request",
    "secondary-stopped",
    "secondary-validated",
    "secondary-received",
    "secondary-ram-applied",
    "secondary-devices-applied",
    "secondary-applied",
];
/// The longest time that a pair lives.
const LIFE_MS: u64 = 2500;
/// How long one that came back may try to do harm.
const HAUNT: Duration = Duration::from_millis(700);
const BULK: u64 = 3 << 20;
const BREATH: Duration = Duration::from_millis(30);
const POLL: Duration = Duration::from_millis(2);
/// Where paused VMs leave their mark.
const MARKS: &str = "/mnt";

/// What a course of deaths has seen.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// Hosts that died.
    pub deaths: usize,
    /// Of these, at a named step.
    pub at_steps: usize,
    /// Acknowledged writes, all still there.
    pub puts: usize,
    /// Bytes of transfers, each checked.
    pub bulk_bytes: u64,
    /// Round trips on connections that lived through everything.
    pub echoes: usize,
    /// The longest that any of those connections waited.
    pub worst_wait: Duration,
}

/// Numbers that follow from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % end
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// A pair whose hosts die `deaths` times, with clients all the while. `tell` hears of each death before it happens.
///
/// # Errors
/// If a client lost its connection, an acknowledged write, or got a wrong byte.
///
/// # Panics
/// If a step of the procedure fails, or an image has errors at the end.
pub fn play(stage: &Stage, seed: u64, deaths: usize, mut tell: impl FnMut(&str)) -> io::Result<Course> {
    let mut dice = Dice::new(seed);
    let mut pair = Pair::start(stage, Paste::AtOnce);
    traffic::wait_for_guest(LONG)?;
    let clients = Clients::start(seed)?;
    let mut course = Course { deaths, ..Course::default() };
    let mut marks = [None, None];
    for number in 1..=deaths {
        pair.set_checkpoint_period(Duration::from_millis(dice.pick(&[50, 200, 1000])));
        let death = dice.pick(&Death::ALL);
        let primary_by_time = dice.below(2) == 0;
        let life = Duration::from_millis(dice.below(LIFE_MS));
        let paused = wait_for_mark(&marks, life);
        course.at_steps += usize::from(paused.is_some());
        // Marks: of the primary, of the secondary.
        let primary_dies = paused.map_or(primary_by_time, |side| side == 0);
        let place = paused.and_then(|side| marks[side].as_ref()).map_or("by time".into(), Mark::step);
        tell(&format!("death {number}: {} by {death:?}, {place}", if primary_dies { "primary" } else { "secondary" }));
        let survivor = usize::from(primary_dies);
        let sweeper = Sweeper::start(marks[survivor].clone());
        let lost = if primary_dies { pair.lose_primary_by(death) } else { pair.lose_secondary_by(death) };
        clients.check_alive()?;
        lay_to_rest(lost, death);
        drop(sweeper);
        clients.verify()?;
        clients.wait_for_echoes()?;
        if primary_dies {
            marks.swap(0, 1);
        }
        let mark = Mark::draw(&mut dice, number);
        pair.failpoints = mark.as_ref().map(Mark::failpoint).unwrap_or_default();
        // What is left of the survivor's own is not to stop the next pair's beginning.
        let sweeper = Sweeper::start(marks[0].clone());
        pair.resume();
        drop(sweeper);
        marks[1] = mark;
        clients.check_alive()?;
    }
    let sweepers = marks.map(Sweeper::start);
    clients.finish(&mut course)?;
    drop(sweepers);
    pair.end();
    Ok(course)
}

/// A VM that was only cut off or stood still comes back for a while, then it is made sure that it is dead.
fn lay_to_rest(mut lost: Machine, death: Death) {
    if death == Death::Hang {
        lost.thaw();
        std::thread::sleep(HAUNT);
    }
    lost.kill();
}

/// A step at which a VM stops and leaves a mark, so that it can die there.
#[derive(Clone, Debug)]
struct Mark {
    step: &'static str,
    nth: u64,
    path: PathBuf,
}

impl Mark {
    /// For the VM that the given death makes room for: two of three get one.
    fn draw(dice: &mut Dice, number: usize) -> Option<Self> {
        let (step, nth, wanted) = (dice.pick(&STEPS), 1 + dice.below(4), dice.below(3) != 0);
        wanted.then(|| Self { step, nth, path: PathBuf::from(format!("{MARKS}/mark-{number}")) })
    }

    fn failpoint(&self) -> String {
        format!("{}@{}=pause:{}", self.step, self.nth, self.path.display())
    }

    fn step(&self) -> String {
        format!("at {} {}", self.step, self.nth)
    }
}

/// Waits for a VM to leave its mark, at most so long; its place in `marks`.
fn wait_for_mark(marks: &[Option<Mark>; 2], limit: Duration) -> Option<usize> {
    let start = Instant::now();
    loop {
        let found = marks.iter().position(|mark| mark.as_ref().is_some_and(|mark| mark.path.exists()));
        if found.is_some() || start.elapsed() >= limit {
            return found;
        }
        std::thread::sleep(POLL);
    }
}

/// Lets a survivor go on that stops at its step while it takes over.
struct Sweeper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    fn start(mark: Option<Mark>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = mark.map(|mark| {
            std::thread::spawn(move || {
                while !told.load(Relaxed) {
                    let _ = std::fs::remove_file(&mark.path);
                    std::thread::sleep(POLL);
                }
            })
        });
        Self { stop, thread }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Clients that go on whatever happens: two connections with short messages, one that writes, transfers in both directions.
struct Clients {
    echoes: Mutex<Vec<Echo>>,
    pairs: Arc<Mutex<KeyValues>>,
    stop: Arc<AtomicBool>,
    bulk_bytes: Arc<AtomicU64>,
    threads: Mutex<Vec<JoinHandle<io::Result<()>>>>,
}

impl Clients {
    fn start(seed: u64) -> io::Result<Self> {
        let paces = [(60, 3), (5000, 25)];
        let echoes = paces.into_iter().enumerate().map(|(number, (size, pause))| {
            Echo::start(seed + number as u64, Pace::PingPong { size, pause: Duration::from_millis(pause) })
        });
        let echoes = echoes.collect::<io::Result<Vec<_>>>()?;
        let (stop, pairs) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(KeyValues::default())));
        let bulk_bytes = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        let (told, written) = (Arc::clone(&stop), Arc::clone(&pairs));
        threads.push(std::thread::spawn(move || {
            let mut http = Http::open()?;
            while !told.load(Relaxed) {
                written.lock().unwrap().put_next(&mut http, 600)?;
                std::thread::sleep(BREATH);
            }
            Ok(())
        }));
        for transfer in [traffic::upload, traffic::download] {
            let (told, total) = (Arc::clone(&stop), Arc::clone(&bulk_bytes));
            threads.push(std::thread::spawn(move || {
                for number in 0.. {
                    if told.load(Relaxed) {
                        break;
                    }
                    transfer(BULK, seed ^ number)?;
                    total.fetch_add(BULK, Relaxed);
                    std::thread::sleep(BREATH);
                }
                Ok(())
            }));
        }
        Ok(Self { echoes: Mutex::new(echoes), pairs, stop, bulk_bytes, threads: Mutex::new(threads) })
    }

    /// Has none of them met an error?
    fn check_alive(&self) -> io::Result<()> {
        let mut threads = self.threads.lock().unwrap();
        match threads.iter().position(JoinHandle::is_finished) {
            Some(ended) => threads.swap_remove(ended).join().expect("no panic"),
            None => Ok(()),
        }
    }

    /// Is every acknowledged write there?
    fn verify(&self) -> io::Result<()> {
        let pairs = self.pairs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pairs.verify_latest(&mut Http::open()?, 200)
    }

    fn wait_for_echoes(&self) -> io::Result<()> {
        self.echoes.lock().unwrap().iter_mut().try_for_each(|echo| echo.wait_for_progress(120, LONG))
    }

    fn finish(self, course: &mut Course) -> io::Result<()> {
        self.stop.store(true, Relaxed);
        for thread in self.threads.into_inner().unwrap() {
            thread.join().expect("no panic")?;
        }
        for echo in self.echoes.into_inner().unwrap() {
            let report = echo.finish()?;
            course.echoes += report.round_trips.len();
            course.worst_wait = course.worst_wait.max(report.worst_gap);
        }
        let pairs = self.pairs.lock().unwrap();
        pairs.verify(&mut Http::open()?)?;
        course.puts = pairs.acknowledged();
        course.bulk_bytes = self.bulk_bytes.load(Relaxed);
        Ok(())
    }
}
