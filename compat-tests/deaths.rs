//! Hosts of a pair die one after another, and clients must not notice more than a pause: at named steps, one by one, or at random.
//!
//! One seed is one course of random deaths: who dies, how, and at which step or after how long. (What the clients were saying at that
//! moment is not.)
use crate::colo::{Death, LONG, Pair, Paste, Side};
use crate::machine::Machine;
use crate::repeat::Repeated;
use crate::stage::Stage;
use crate::traffic::{self, Echo, Http, KeyValues, Pace};
use lockstep_migration::colo::{Part, STEPS, Step};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The longest time that a pair lives that dies by the clock.
const LIFE_MS: u64 = 1500;
/// How long one that came back may try to do harm.
const HAUNT: Duration = Duration::from_millis(500);
const BULK: u64 = 3 << 20;
const BREATH: Duration = Duration::from_millis(30);
const POLL: Duration = Duration::from_millis(2);
/// How often a checkpoint is asked for while a step of one is waited for.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// The file by which a failpoint tells that its step is reached.
pub const REACHED: &str = "/mnt/vms/reached";
/// Tells a side that the other one is gone.
pub const ALONE: &str = r#"{"execute": "x-colo-lost-heartbeat"}"#;

/// What a course of deaths has seen.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// How often each side died, by step: `the secondary at primary-send`, `the primary by the clock`.
    pub deaths: BTreeMap<String, u64>,
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

/// When a host dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// After so long.
    Clock(Duration),
    /// When a side stands at a step of a checkpoint, for the `nth` time from now.
    Checkpoint {
        /// The step.
        step: &'static Step,
        /// Which time.
        nth: u64,
    },
    /// When the victim, which was told that it is alone while the other one lives, stands at a step of its failover.
    Failover(&'static Step),
}

/// A death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blow {
    /// Who dies.
    pub victim: Side,
    /// How.
    pub by: Death,
    /// When.
    pub moment: Moment,
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} ", self.victim.as_str())?;
        match self.moment {
            Moment::Clock(_) => f.write_str("by the clock"),
            Moment::Checkpoint { step, .. } | Moment::Failover(step) => write!(f, "at {}", step.name),
        }
    }
}

/// The steps of a part of a pair's life, of both sides.
pub fn steps(part: Part) -> impl Iterator<Item = &'static Step> {
    STEPS.iter().filter(move |step| step.part == part)
}

/// Steps of a failover at which the other side can still go on: once the survivor may speak to the network, nobody else may.
pub fn revocable_steps() -> impl Iterator<Item = &'static Step> {
    let last = |side: Side| match side {
        Side::Primary => "primary-failover-start",
        Side::Secondary => "secondary-failover-net",
    };
    [Side::Primary, Side::Secondary].into_iter().flat_map(move |side| {
        let end = steps(Part::Failover).position(|step| step.name == last(side)).map_or(0, |at| at + 1);
        steps(Part::Failover).take(end).filter(move |step| step.side == side)
    })
}

impl Blow {
    /// One of all.
    fn random(dice: &mut Dice) -> Self {
        let victim = dice.pick(&[Side::Primary, Side::Secondary]);
        let by = dice.pick(&Death::ALL);
        let any = |dice: &mut Dice, steps: Vec<&'static Step>| dice.pick(&steps);
        match dice.below(10) {
            0..2 => Self { victim, by, moment: Moment::Clock(Duration::from_millis(dice.below(LIFE_MS))) },
            2..8 => {
                let step = any(dice, steps(Part::Checkpoint).collect());
                Self { victim, by, moment: Moment::Checkpoint { step, nth: 1 + dice.below(3) } }
            }
            // Whoever was told to go on alone and comes back would do so.
            _ => {
                let step = any(dice, revocable_steps().collect());
                let by = dice.pick(&[Death::Crash, Death::Vanishing]);
                Self { victim: step.side, by, moment: Moment::Failover(step) }
            }
        }
    }
}

/// A pair with clients, whose hosts die.
pub struct Run<'a> {
    pair: Pair<'a>,
    clients: Clients,
    course: Course,
    style: &'static str,
}

impl<'a> Run<'a> {
    /// Starts both.
    ///
    /// # Errors
    /// If the guest does not answer.
    ///
    /// # Panics
    /// If a step of the procedure fails.
    pub fn start(stage: &'a Stage, paste: Paste, seed: u64) -> io::Result<Self> {
        let pair = Pair::start_armed(stage, paste);
        traffic::wait_for_guest(LONG)?;
        Ok(Self { pair, clients: Clients::start(seed)?, course: Course::default(), style: "auto" })
    }

    /// Whether the secondary's guest runs alongside, from now on, in this pair and all after it.
    ///
    /// # Panics
    /// If it cannot be set.
    pub fn set_checkpoint_style(&mut self, style: &'static str) {
        self.style = style;
        self.pair.set_checkpoint_style(style);
    }

    /// The time between checkpoints, from now on.
    ///
    /// # Panics
    /// If it cannot be set.
    pub fn set_checkpoint_period(&mut self, period: Duration) {
        self.pair.set_checkpoint_period(period);
    }

    /// A host dies, the other one goes on alone, and the clients look at what they have.
    ///
    /// # Errors
    /// If a client lost its connection, an acknowledged write, or got a wrong byte.
    ///
    /// # Panics
    /// If a step of the procedure fails, or the victim never comes to its step.
    pub fn strike(&mut self, blow: &Blow) -> io::Result<()> {
        let _name = Name(blow);
        match blow.moment {
            Moment::Clock(life) => std::thread::sleep(life),
            Moment::Checkpoint { step, nth } => {
                self.pair.arm(step.side, &format!("{}@{nth}=pause:{REACHED}", step.name));
                self.wait_for_step(step, |pair| pair.set_checkpoint_delay());
            }
            Moment::Failover(step) => {
                self.pair.arm(step.side, &format!("{}=pause:{REACHED}", step.name));
                self.pair.side(step.side).monitor.command(ALONE);
                self.wait_for_step(step, |_| ());
            }
        }
        self.pair.strike(blow.victim, blow.by);
        let survivor = match blow.victim {
            Side::Primary => Side::Secondary,
            Side::Secondary => Side::Primary,
        };
        self.pair.arm(survivor, "");
        let _ = std::fs::remove_file(REACHED);
        let lost = match blow.victim {
            Side::Primary => self.pair.take_over(),
            Side::Secondary => self.pair.leave_secondary(),
        };
        *self.course.deaths.entry(blow.to_string()).or_default() += 1;
        self.clients.others.check_alive()?;
        lay_to_rest(lost, blow.by);
        self.clients.verify()?;
        self.clients.wait_for_echoes()
    }

    /// A new secondary takes the dead one's place.
    ///
    /// # Errors
    /// If a client lost its connection.
    ///
    /// # Panics
    /// If a step of the procedure fails.
    pub fn resume(&mut self) -> io::Result<()> {
        self.pair.resume();
        self.pair.set_checkpoint_style(self.style);
        self.clients.others.check_alive()
    }

    /// The clients have a last look, the images too.
    ///
    /// # Errors
    /// If a client lost its connection, an acknowledged write, or got a wrong byte.
    ///
    /// # Panics
    /// If an image has errors.
    pub fn finish(mut self) -> io::Result<Course> {
        self.clients.finish(&mut self.course)?;
        self.pair.end();
        Ok(self.course)
    }

    fn wait_for_step(&mut self, step: &Step, ask: impl Fn(&mut Pair<'_>)) {
        let (start, mut asked) = (Instant::now(), Instant::now());
        while !Path::new(REACHED).exists() {
            assert!(start.elapsed() < LONG, "waited too long for {}", step.name);
            if asked.elapsed() > ASK_EVERY {
                ask(&mut self.pair);
                asked = Instant::now();
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Names a death if something panics meanwhile.
struct Name<'a>(&'a Blow);

impl Drop for Name<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("when there died {} ({:?})", self.0, self.0.by);
        }
    }
}

/// A pair whose hosts die `deaths` times at random, with clients all the while. `tell` hears of each death before it happens.
///
/// # Errors
/// If a client lost its connection, an acknowledged write, or got a wrong byte.
///
/// # Panics
/// If a step of the procedure fails, or an image has errors at the end.
pub fn play(stage: &Stage, seed: u64, deaths: usize, mut tell: impl FnMut(&str)) -> io::Result<Course> {
    let mut dice = Dice::new(seed);
    let mut run = Run::start(stage, Paste::AtOnce, seed)?;
    for number in 1..=deaths {
        run.set_checkpoint_period(Duration::from_millis(dice.pick(&[50, 200, 1000])));
        run.set_checkpoint_style(dice.pick(&["auto", "lockstep", "buffered"]));
        let blow = Blow::random(&mut dice);
        tell(&format!("death {number}: {blow} ({:?})", blow.by));
        run.strike(&blow)?;
        if number < deaths {
            run.resume()?;
        }
    }
    run.finish()
}

/// A VM that was only cut off or stood still comes back for a while, then it is made sure that it is dead.
fn lay_to_rest(mut lost: Machine, death: Death) {
    if death == Death::Hang {
        lost.thaw();
        std::thread::sleep(HAUNT);
    }
    lost.kill();
}

/// Clients that go on whatever happens: two connections with short messages, one that writes, transfers in both directions.
struct Clients {
    echoes: Mutex<Vec<Echo>>,
    pairs: Arc<Mutex<KeyValues>>,
    bulk_bytes: Arc<AtomicU64>,
    others: Repeated,
}

impl Clients {
    fn start(seed: u64) -> io::Result<Self> {
        let paces = [(60, 3), (5000, 25)];
        let echoes = paces.into_iter().enumerate().map(|(number, (size, pause))| {
            Echo::start(seed + number as u64, Pace::PingPong { size, pause: Duration::from_millis(pause) })
        });
        let echoes = echoes.collect::<io::Result<Vec<_>>>()?;
        let (pairs, bulk_bytes) = (Arc::new(Mutex::new(KeyValues::default())), Arc::new(AtomicU64::new(0)));
        let (mut others, written) = (Repeated::default(), Arc::clone(&pairs));
        let mut http = Http::open()?;
        others.start(BREATH, move |_| written.lock().unwrap().put_next(&mut http, 600));
        for transfer in [traffic::upload, traffic::download] {
            let total = Arc::clone(&bulk_bytes);
            others.start(BREATH, move |number| {
                transfer(BULK, seed ^ number)?;
                total.fetch_add(BULK, Relaxed);
                Ok(())
            });
        }
        Ok(Self { echoes: Mutex::new(echoes), pairs, bulk_bytes, others })
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
        self.others.finish()?;
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
