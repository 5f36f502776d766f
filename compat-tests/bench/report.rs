//! The table and the JSON file.
use crate::costs::{CLIENT, Usage};
use crate::rows::{Aim, Row, TABLE};
use crate::samples::Samples;
use crate::scenes::{Scene, SceneResult};
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::time::{Duration, SystemTime};

/// Workloads whose cost is told, and what one operation of each is.
const COSTS: &[(&str, &str)] = &[
    ("echo", "echo round trip"),
    ("upload", "upload of 1 MB"),
    ("download", "download of 1 MB"),
    ("connections", "connection"),
    ("connections.8", "  by 8 clients"),
    ("put", "PUT of 1 kB"),
];
/// Threads by the beginning of their names, and what they are called.
const COST_THREADS: &[(&str, &str)] = &[
    ("primary", "primary"),
    ("primary main", "  main"),
    ("primary vcpu", "  vCPU"),
    ("primary iothread", "  comparison"),
    ("secondary", "secondary"),
    ("secondary main", "  main"),
    ("secondary vcpu", "  vCPU"),
    (CLIENT, "client"),
];

/// Everything that was measured.
pub struct Report {
    /// Results by scene.
    pub scenes: Vec<(Scene, SceneResult)>,
    /// What did not come to its end, and why.
    pub failed: Vec<String>,
    guest: Option<String>,
    quick: bool,
    started: SystemTime,
    took: Duration,
    load: [f64; 2],
}

impl Report {
    /// An empty report; its time runs.
    pub fn begin(quick: bool, guest: Option<String>) -> Self {
        let (scenes, failed) = (Vec::new(), Vec::new());
        Self {
            scenes,
            failed,
            guest,
            quick,
            started: SystemTime::now(),
            took: Duration::ZERO,
            load: [load_average(); 2],
        }
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

    /// Failovers of a scene in which this side died: `pick` of each.
    pub fn failovers(&self, scene: Scene, died: &str, pick: fn(&crate::failover::Failover) -> f64) -> Samples {
        let scene = self.scene(scene).map(|scene| scene.failovers.as_slice()).unwrap_or_default();
        Samples(scene.iter().filter(|failover| failover.died == died).map(pick).collect())
    }

    fn scene(&self, scene: Scene) -> Option<&SceneResult> {
        self.scenes.iter().find(|(played, _)| *played == scene).map(|(_, result)| result)
    }

    /// A single value of a scene.
    pub fn value(&self, scene: Scene, key: &str) -> Option<f64> {
        self.scene(scene)?.values.get(key).copied()
    }

    /// All rows for which there is a value.
    pub fn rows(&self) -> Vec<Row> {
        let rows = TABLE.iter().map(|spec| spec.fill(self)).map(|row| match self.guest {
            // What the rows shall reach is said of our own guest on KVM.
            Some(_) => Row { aim: Aim::None, ..row },
            None => row,
        });
        rows.filter(|row| row.alone.or(row.pair).or(row.qemu).is_some()).collect()
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
        text +=
            "\nratio: pair to alone, or pair to QEMU where nothing was measured alone. Rates are the best of five.\n";
        self.failed.iter().for_each(|failure| text += &format!("Ended early: {failure}\n"));
        text + &self.costs()
    }

    /// The cost of one operation as text.
    fn costs(&self) -> String {
        let mut text = format!("\n{:<44} {:>7} {:>7}", "microseconds of processor and wake-ups", "alone", "");
        text += &format!(" {:>7} {:>7}\n", "pair", "");
        for (key, name) in COSTS {
            let cost = |scene| self.scene(scene).and_then(|result| result.costs.get(*key));
            let costs = [cost(Scene::Alone), cost(Scene::Pair)];
            for (place, (prefix, label)) in COST_THREADS.iter().enumerate() {
                let usages = costs.map(|cost| cost?.each(prefix));
                if usages == [None, None] {
                    continue;
                }
                let name = if place == 0 { *name } else { "" };
                let _ = write!(text, "{name:<22} {label:<21}");
                for usage in usages {
                    let cell = |pick: fn(&Usage) -> f64| usage.map_or_else(|| "-".into(), |usage| number(pick(&usage)));
                    let _ = write!(text, " {:>7} {:>7}", cell(|usage| usage.micros), cell(|usage| usage.wakes));
                }
                text.push('\n');
            }
        }
        text
    }

    fn heading(&self) -> String {
        let quick = if self.quick { ", quick run" } else { "" };
        let guest = self.guest.as_ref().map_or_else(String::new, |guest| format!(", guest: {guest} on -accel tcg"));
        format!(
            "{} cores, Linux {}, load {:.1} at the start and {:.1} at the end{guest}{quick}; {:.0} s",
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
            "seconds": self.took.as_secs(), "quick": self.quick, "guest": self.guest, "failed": self.failed, "cores": cores(), "kernel": kernel(), "load": self.load,
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
