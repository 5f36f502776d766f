//! The rows of the table: where each one's values come from, and what it shall reach.
use crate::report::Report;
use crate::samples::Samples;
use crate::scenes::Scene;
use Aim::{AtMost, Share, Times, Within};
use Figure::{Beside, Best, Failover, Kilo, Median, P99, Value};

/// What a row shall reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// Nothing is said.
    None,
    /// The pair's value is at most this.
    AtMost(f64),
    /// It is at most this much more than alone.
    Within(f64),
    /// It is at least this share of the value alone.
    Share(f64),
    /// It is at most this many times the value alone.
    Times(f64),
}

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name in the JSON file.
    pub key: &'static str,
    /// Its name for people.
    pub name: &'static str,
    /// Unit of its values.
    pub unit: &'static str,
    /// Without COLO.
    pub alone: Option<f64>,
    /// The pair.
    pub pair: Option<f64>,
    /// A pair of QEMU 7.2.
    pub qemu: Option<f64>,
    /// What it shall reach.
    pub aim: Aim,
}

impl Row {
    /// The pair's value divided by the one it is compared with: alone, or else QEMU.
    pub fn ratio(&self) -> Option<f64> {
        let base = self.alone.or(self.qemu).filter(|base| *base > 0.0)?;
        Some(self.pair? / base)
    }

    /// Is the aim reached? Nothing where there is no aim or no value.
    pub fn reached(&self) -> Option<bool> {
        let pair = self.pair?;
        match self.aim {
            Aim::None => None,
            Aim::AtMost(limit) => Some(pair <= limit),
            Aim::Within(more) => Some(pair <= self.alone? + more),
            Aim::Share(share) => Some(pair >= self.alone? * share),
            Aim::Times(times) => Some(pair <= self.alone? * times),
        }
    }

    /// The aim in words.
    pub fn aim_text(&self) -> String {
        match self.aim {
            Aim::None => String::new(),
            Aim::AtMost(limit) => format!("<= {limit}"),
            Aim::Within(more) => format!("<= alone + {more}"),
            Aim::Share(share) => format!(">= {:.0} %", share * 100.0),
            Aim::Times(times) => format!("<= {times} x"),
        }
    }
}

/// The scenes that a row's three columns come from: alone, the pair, a pair of QEMU.
type Columns = [Option<Scene>; 3];

const BIOS: Columns = [None, Some(Scene::Bios), Some(Scene::BiosQemu)];
const PAIR: Columns = [None, Some(Scene::Pair), Some(Scene::PairQemu)];
const BOTH: Columns = [Some(Scene::Alone), Some(Scene::Pair), Some(Scene::PairQemu)];
const DEATH: Columns = [None, Some(Scene::Failover), Some(Scene::FailoverQemu)];

/// What a row tells of its scenes.
enum Figure {
    /// The median of a measure.
    Median(&'static str),
    /// Its 99th percentile.
    P99(&'static str),
    /// Its best sample.
    Best(&'static str),
    /// A single value.
    Value(&'static str),
    /// The same in thousands.
    Kilo(&'static str),
    /// A single value; alone it is another one, the second.
    Beside(&'static str, &'static str),
    /// The median of the failovers in which this side died.
    Failover(&'static str, fn(&crate::failover::Failover) -> f64),
}

/// How a row is made: columns, figure, key, name, unit and aim.
pub struct Spec(Columns, Figure, &'static str, &'static str, &'static str, Aim);

impl Spec {
    /// The row with a report's values.
    pub fn fill(&self, report: &Report) -> Row {
        let Self(columns, figure, key, name, unit, aim) = self;
        let [alone, pair, qemu] = columns.map(|scene| figure.of(report, scene?));
        Row { key, name, unit, alone, pair, qemu, aim: *aim }
    }
}

impl Figure {
    fn of(&self, report: &Report, scene: Scene) -> Option<f64> {
        let samples = |key| report.samples(scene, key);
        match *self {
            Self::Median(key) => samples(key).and_then(Samples::median),
            Self::P99(key) => samples(key).and_then(Samples::p99),
            Self::Best(key) => samples(key).and_then(Samples::best),
            Self::Value(key) => report.value(scene, key),
            Self::Kilo(key) => report.value(scene, key).map(|value| value / 1000.0),
            Self::Beside(key, alone) => report.value(scene, if scene == Scene::Alone { alone } else { key }),
            Self::Failover(died, pick) => report.failovers(scene, died, pick).median(),
        }
    }
}

const NO_AIM: Aim = Aim::None;
const P99_NAME: &str = "  99th percentile";
const BYTES_NAME: &str = "  bytes";
const FROM_STEP_NAME: &str = "  from the step's first line";
const OPEN_NAME: &str = "  on an open TCP connection";

/// All rows in their order.
#[rustfmt::skip]
pub const TABLE: &[Spec] = &[
    Spec(BIOS, Median("pause.bios"), "pause.bios.median", "pause, 16-bit guest, median", "ms", AtMost(3.0)),
    Spec(BIOS, P99("pause.bios"), "pause.bios.p99", P99_NAME, "ms", NO_AIM),
    Spec(BIOS, Kilo("bytes.bios"), "bytes.bios", BYTES_NAME, "kB", NO_AIM),
    Spec(PAIR, Median("pause.idle"), "pause.idle.median", "pause, idle guest, median", "ms", AtMost(3.0)),
    Spec(PAIR, P99("pause.idle"), "pause.idle.p99", P99_NAME, "ms", NO_AIM),
    Spec(PAIR, Kilo("bytes.idle"), "bytes.idle", BYTES_NAME, "kB", NO_AIM),
    Spec(PAIR, Median("pause.1000"), "pause.1000.median", "pause, 1,000 pages, median", "ms", NO_AIM),
    Spec(PAIR, P99("pause.1000"), "pause.1000.p99", P99_NAME, "ms", NO_AIM),
    Spec(PAIR, Kilo("bytes.1000"), "bytes.1000", BYTES_NAME, "kB", NO_AIM),
    Spec(PAIR, Median("pause.10000"), "pause.10000.median", "pause, 10,000 pages, median", "ms", NO_AIM),
    Spec(PAIR, P99("pause.10000"), "pause.10000.p99", P99_NAME, "ms", NO_AIM),
    Spec(PAIR, Kilo("bytes.10000"), "bytes.10000", BYTES_NAME, "kB", NO_AIM),
    Spec(PAIR, Median("pause.again"), "pause.again.median", "pause, idle after serving, median", "ms", AtMost(3.0)),
    Spec(PAIR, P99("pause.again"), "pause.again.p99", P99_NAME, "ms", NO_AIM),
    Spec(PAIR, Kilo("bytes.again"), "bytes.again", BYTES_NAME, "kB", NO_AIM),
    Spec(BOTH, Median("echo"), "echo.median", "echo round trip, median", "ms", Within(0.1)),
    Spec(BOTH, P99("echo"), "echo.p99", P99_NAME, "ms", NO_AIM),
    Spec(BOTH, Best("upload"), "upload", "upload", "MB/s", Share(0.8)),
    Spec(BOTH, Best("download"), "download", "download", "MB/s", Share(0.8)),
    Spec(BOTH, Best("connections"), "connections", "new HTTP connections", "1/s", Share(0.6)),
    Spec(BOTH, Best("connections.8"), "connections.8", "  by 8 clients", "1/s", Share(0.6)),
    Spec(BOTH, Median("put"), "put.median", "PUT of 1 kB, median", "ms", Times(1.5)),
    Spec(BOTH, P99("put"), "put.p99", P99_NAME, "ms", NO_AIM),
    Spec(BOTH, Median("diverging"), "diverging.median", "diverging answer, median", "ms", AtMost(8.0)),
    Spec(BOTH, P99("diverging"), "diverging.p99", P99_NAME, "ms", NO_AIM),
    Spec(PAIR, Median("diverging.lockstep.1"), "diverging.lockstep.1", "all the time, lock-stepping, median", "ms", NO_AIM),
    Spec(PAIR, Value("diverging.lockstep.4"), "diverging.lockstep.4", "  by 4 clients", "1/s", NO_AIM),
    Spec(PAIR, Median("diverging.buffered.1"), "diverging.buffered.1", "all the time, output buffered, median", "ms", NO_AIM),
    Spec(PAIR, Value("diverging.buffered.4"), "diverging.buffered.4", "  by 4 clients", "1/s", NO_AIM),
    Spec(DEATH, Failover("primary", |f| f.answer), "failover.secondary", "failover to secondary, next answer", "ms", AtMost(20.0)),
    Spec(DEATH, Failover("primary", |f| f.answer_from_step), "failover.secondary.step", FROM_STEP_NAME, "ms", NO_AIM),
    Spec(DEATH, Failover("primary", |f| f.tcp), "failover.secondary.tcp", OPEN_NAME, "ms", NO_AIM),
    Spec(DEATH, Failover("secondary", |f| f.answer), "failover.primary", "failover to primary, next answer", "ms", AtMost(20.0)),
    Spec(DEATH, Failover("secondary", |f| f.answer_from_step), "failover.primary.step", FROM_STEP_NAME, "ms", NO_AIM),
    Spec(DEATH, Failover("secondary", |f| f.tcp), "failover.primary.tcp", OPEN_NAME, "ms", NO_AIM),
    Spec(BOTH, Value("memory"), "memory.primary", "memory of the primary", "MiB", NO_AIM),
    Spec(BOTH, Beside("memory.secondary", "memory"), "memory.secondary", "memory of the secondary", "MiB", NO_AIM),
    Spec(BIOS, Value("memory"), "memory.bios.primary", "  primary, 16-bit guest", "MiB", NO_AIM),
    Spec(BIOS, Value("memory.secondary"), "memory.bios.secondary", "  secondary, 16-bit guest", "MiB", NO_AIM),
    Spec(PAIR, Value("checkpoints.per.second"), "checkpoints", "checkpoints while serving", "1/s", NO_AIM),
];
