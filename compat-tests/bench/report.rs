//! The table and the JSON file.
use crate::samples::Samples;
use crate::scenes::{Scene, SceneResult};
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::time::{Duration, SystemTime};

/// Everything that was measured.
pub struct Report {
    /// Results by scene.
    pub scenes: Vec<(Scene, SceneResult)>,
    quick: bool,
    started: SystemTime,
    took: Duration,
    load: [f64; 2],
}

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

    fn aim_text(&self) -> String {
        match self.aim {
            Aim::None => String::new(),
            Aim::AtMost(limit) => format!("<= {limit}"),
            Aim::Within(more) => format!("<= alone + {more}"),
            Aim::Share(share) => format!(">= {:.0} %", share * 100.0),
            Aim::Times(times) => format!("<= {times} x"),
        }
    }
}

impl Report {
    /// An empty report; its time runs.
    pub fn begin(quick: bool) -> Self {
        Self { scenes: Vec::new(), quick, started: SystemTime::now(), took: Duration::ZERO, load: [load_average(); 2] }
    }

    /// The last scene is over.
    pub fn finish(&mut self) {
        self.took = self.started.elapsed().unwrap_or_default();
        self.load[1] = load_average();
    }

    /// Values of a measure in a scene.
    pub fn samples(&self, scene: Scene, key: &str) -> Option<&Samples> {
        self.scene(scene)?.samples.get(key)
    }

    /// Failovers in which this side died: `pick` of each.
    pub fn failovers(&self, died: &str, pick: fn(&crate::failover::Failover) -> f64) -> Samples {
        let scene = self.scene(Scene::Failover).map(|scene| scene.failovers.as_slice()).unwrap_or_default();
        Samples(scene.iter().filter(|failover| failover.died == died).map(pick).collect())
    }

    fn scene(&self, scene: Scene) -> Option<&SceneResult> {
        self.scenes.iter().find(|(played, _)| *played == scene).map(|(_, result)| result)
    }

    fn value(&self, scene: Scene, key: &str) -> Option<f64> {
        self.scene(scene)?.values.get(key).copied()
    }

    /// All rows for which there is a value.
    pub fn rows(&self) -> Vec<Row> {
        use Scene::{Alone, Bios, BiosQemu, Pair};
        let row = |key, name, unit, aim| Row { key, name, unit, alone: None, pair: None, qemu: None, aim };
        let median = |scene, key: &str| self.samples(scene, key).and_then(Samples::median);
        let p99 = |scene, key: &str| self.samples(scene, key).and_then(Samples::p99);
        let best = |scene, key: &str| self.samples(scene, key).and_then(Samples::best);
        let kilo = |scene, key: &str| self.value(scene, key).map(|bytes| bytes / 1000.0);
        let mut rows = vec![
            Row {
                pair: median(Bios, "pause.bios"),
                qemu: median(BiosQemu, "pause.bios"),
                ..row("pause.bios.median", "pause, 16-bit guest, median", "ms", Aim::AtMost(3.0))
            },
            Row {
                pair: p99(Bios, "pause.bios"),
                qemu: p99(BiosQemu, "pause.bios"),
                ..row("pause.bios.p99", "  99th percentile", "ms", Aim::None)
            },
            Row {
                pair: kilo(Bios, "bytes.bios"),
                qemu: kilo(BiosQemu, "bytes.bios"),
                ..row("bytes.bios", "  bytes", "kB", Aim::None)
            },
        ];
        let pauses = [
            (
                "pause.idle",
                "pause, idle guest, median",
                "pause.idle.median",
                "pause.idle.p99",
                "bytes.idle",
                Aim::AtMost(3.0),
            ),
            (
                "pause.1000",
                "pause, 1,000 pages, median",
                "pause.1000.median",
                "pause.1000.p99",
                "bytes.1000",
                Aim::None,
            ),
            (
                "pause.10000",
                "pause, 10,000 pages, median",
                "pause.10000.median",
                "pause.10000.p99",
                "bytes.10000",
                Aim::None,
            ),
            (
                "pause.again",
                "pause, idle after serving, median",
                "pause.again.median",
                "pause.again.p99",
                "bytes.again",
                Aim::AtMost(3.0),
            ),
        ];
        for (samples, name, key, key99, bytes, aim) in pauses {
            rows.push(Row { pair: median(Pair, samples), ..row(key, name, "ms", aim) });
            rows.push(Row { pair: p99(Pair, samples), ..row(key99, "  99th percentile", "ms", Aim::None) });
            rows.push(Row { pair: kilo(Pair, bytes), ..row(bytes, "  bytes", "kB", Aim::None) });
        }
        let both = |of: &dyn Fn(Scene) -> Option<f64>, key, name, unit, aim| Row {
            alone: of(Alone),
            pair: of(Pair),
            ..row(key, name, unit, aim)
        };
        rows.push(both(
            &|scene| median(scene, "echo"),
            "echo.median",
            "echo round trip, median",
            "ms",
            Aim::Within(0.1),
        ));
        rows.push(both(&|scene| p99(scene, "echo"), "echo.p99", "  99th percentile", "ms", Aim::None));
        rows.push(both(&|scene| best(scene, "upload"), "upload", "upload", "MB/s", Aim::Share(0.8)));
        rows.push(both(&|scene| best(scene, "download"), "download", "download", "MB/s", Aim::Share(0.8)));
        rows.push(both(
            &|scene| best(scene, "connections"),
            "connections",
            "new HTTP connections",
            "1/s",
            Aim::Share(0.6),
        ));
        rows.push(both(
            &|scene| best(scene, "connections.8"),
            "connections.8",
            "  by 8 clients",
            "1/s",
            Aim::Share(0.6),
        ));
        rows.push(both(&|scene| median(scene, "put"), "put.median", "PUT of 1 kB, median", "ms", Aim::Times(1.5)));
        rows.push(both(&|scene| p99(scene, "put"), "put.p99", "  99th percentile", "ms", Aim::None));
        rows.push(both(
            &|scene| median(scene, "diverging"),
            "diverging.median",
            "diverging answer, median",
            "ms",
            Aim::AtMost(8.0),
        ));
        rows.push(both(&|scene| p99(scene, "diverging"), "diverging.p99", "  99th percentile", "ms", Aim::None));
        for (died, key, key_step, key_tcp, name) in [
            (
                "primary",
                "failover.secondary",
                "failover.secondary.step",
                "failover.secondary.tcp",
                "failover to secondary, next answer",
            ),
            (
                "secondary",
                "failover.primary",
                "failover.primary.step",
                "failover.primary.tcp",
                "failover to primary, next answer",
            ),
        ] {
            rows.push(Row {
                pair: self.failovers(died, |f| f.answer).median(),
                ..row(key, name, "ms", Aim::AtMost(20.0))
            });
            let from_step = self.failovers(died, |f| f.answer_from_step).median();
            rows.push(Row { pair: from_step, ..row(key_step, "  from the step's first line", "ms", Aim::None) });
            let tcp = self.failovers(died, |f| f.tcp).median();
            rows.push(Row { pair: tcp, ..row(key_tcp, "  on an open TCP connection", "ms", Aim::None) });
        }
        rows.push(both(
            &|scene| self.value(scene, "memory"),
            "memory.primary",
            "memory of the primary",
            "MiB",
            Aim::None,
        ));
        let secondary = self.value(Pair, "memory.secondary");
        let alone = self.value(Alone, "memory");
        rows.push(Row {
            alone,
            pair: secondary,
            ..row("memory.secondary", "memory of the secondary", "MiB", Aim::None)
        });
        for (key, name, value) in [
            ("memory.bios.primary", "  primary, 16-bit guest", "memory"),
            ("memory.bios.secondary", "  secondary, 16-bit guest", "memory.secondary"),
        ] {
            rows.push(Row {
                pair: self.value(Bios, value),
                qemu: self.value(BiosQemu, value),
                ..row(key, name, "MiB", Aim::None)
            });
        }
        rows.push(Row {
            pair: self.value(Pair, "checkpoints.per.second"),
            ..row("checkpoints", "checkpoints while serving", "1/s", Aim::None)
        });
        rows.retain(|row| row.alone.or(row.pair).or(row.qemu).is_some());
        rows
    }

    /// The table as text.
    pub fn table(&self) -> String {
        let mut text = format!("{}\n\n", self.heading());
        let _ = writeln!(
            text,
            "{:<36} {:>9} {:>9} {:>9} {:>8}  {:<5} aim",
            "", "alone", "pair", "QEMU 7.2", "ratio", "unit"
        );
        for row in self.rows() {
            let cell = |value: Option<f64>| value.map_or_else(|| "-".into(), number);
            let ratio = row.ratio().map_or_else(|| "-".into(), |ratio| format!("{:.1} %", ratio * 100.0));
            let verdict = match row.reached() {
                None => "",
                Some(true) => "  reached",
                Some(false) => "  missed",
            };
            let line = format!(
                "{:<36} {:>9} {:>9} {:>9} {:>8}  {:<5} {}{verdict}",
                row.name,
                cell(row.alone),
                cell(row.pair),
                cell(row.qemu),
                ratio,
                row.unit,
                row.aim_text()
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text + "\nratio: pair to alone, or pair to QEMU where nothing was measured alone. Rates are the best of five.\n"
    }

    fn heading(&self) -> String {
        let quick = if self.quick { ", quick run" } else { "" };
        format!(
            "{} cores, Linux {}, load {:.1} at the start and {:.1} at the end{quick}; {:.0} s",
            cores(),
            kernel(),
            self.load[0],
            self.load[1],
            self.took.as_secs_f64()
        )
    }

    /// Everything, for programs.
    pub fn to_json(&self) -> Value {
        let rows = self.rows().into_iter().map(|row| {
            json!({
                "key": row.key, "name": row.name.trim(), "unit": row.unit, "alone": row.alone, "pair": row.pair, "qemu": row.qemu,
                "ratio": row.ratio(), "aim": row.aim_text(), "reached": row.reached(),
            })
        });
        let scenes = self.scenes.iter().map(|(scene, result)| (scene.name().to_string(), json!(result)));
        json!({
            "started": self.started.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            "seconds": self.took.as_secs(), "quick": self.quick, "cores": cores(), "kernel": kernel(), "load": self.load,
            "rows": rows.collect::<Vec<_>>(), "scenes": scenes.collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into()
}

fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default()
}
