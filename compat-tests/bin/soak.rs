//! `soak deaths [--count N] [--seed N]`: random deaths, in courses of some deaths each, until one fails or all are over.
//! `soak steady [--minutes N] [--seed N]`: nobody dies, and a pair must not hold more and more of its hosts.
//!
//! Each course runs in namespaces of its own, in a process of its own; what that says is passed on, but for its last line, the tally.
use lockstep_compat_tests::deaths::play;
use lockstep_compat_tests::machine;
use lockstep_compat_tests::stage::{self, Layout, Stage};
use lockstep_compat_tests::steady::serve;
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const USAGE: &str = "usage: soak deaths [--count N] [--seed N]
       soak steady [--minutes N] [--seed N]
  deaths       hosts of a pair die at random
  --count N    how many (default 1000)
  steady       nobody dies, a pair serves; what it holds of its hosts must not grow
  --minutes N  how long (default 60)
  --seed N     seed of the first course; a course that failed is played again by its seed (default: of the clock)";
/// Deaths of one course.
const COURSE: usize = 50;
const LIMIT: Duration = Duration::from_secs(1200);
/// Begins a course's tally: how often each side died, by step.
const TALLY: &str = "tally ";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(options) = Options::parse(&words) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match (options.soak, stage::is_inside()) {
        (Soak::Deaths { count }, false) => courses(count, options.seed),
        (Soak::Deaths { count }, true) => course(count, options.seed),
        (Soak::Steady { minutes }, false) => pass_on(minutes, options.seed),
        (Soak::Steady { minutes }, true) => steady(minutes, options.seed),
    }
}

#[derive(Clone, Copy)]
enum Soak {
    Deaths { count: usize },
    Steady { minutes: u64 },
}

struct Options {
    soak: Soak,
    seed: u64,
}

impl Options {
    fn parse(words: &[String]) -> Option<Self> {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
        let mut words = words.iter().map(String::as_str);
        let soak = match words.next()? {
            "deaths" => Soak::Deaths { count: 1000 },
            "steady" => Soak::Steady { minutes: 60 },
            _ => return None,
        };
        let mut options = Self { soak, seed };
        while let Some(word) = words.next() {
            match (word, &mut options.soak) {
                ("--count", Soak::Deaths { count }) => *count = words.next()?.parse().ok()?,
                ("--minutes", Soak::Steady { minutes }) => *minutes = words.next()?.parse().ok().filter(|n| *n > 0)?,
                ("--seed", _) => options.seed = words.next()?.parse().ok()?,
                _ => return None,
            }
        }
        Some(options)
    }
}

/// Has the pair serve in namespaces of its own.
fn pass_on(minutes: u64, seed: u64) -> ExitCode {
    let arguments = ["steady", "--minutes", &minutes.to_string(), "--seed", &seed.to_string()];
    match stage::command_inside(&arguments).and_then(|mut command| command.status()) {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

fn steady(minutes: u64, seed: u64) -> ExitCode {
    let time = Duration::from_secs(60 * minutes);
    stage::watch_over(time + LIMIT);
    machine::keep_errors();
    let served = Stage::set_up(Layout::TwoHosts).and_then(|stage| serve(&stage, time, seed, |look| println!("{look}")));
    match served {
        Ok(()) => {
            println!("{minutes} minutes: no client saw anything wrong, and neither side held more and more");
            ExitCode::SUCCESS
        }
        Err(error) => {
            machine::print_kept();
            println!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

fn courses(all: usize, mut seed: u64) -> ExitCode {
    let (begin, mut left, mut failed) = (Instant::now(), all, Vec::new());
    let mut tally = BTreeMap::new();
    while left > 0 {
        let count = left.min(COURSE);
        match run_course(count, seed, &mut tally) {
            Ok(true) => {}
            Ok(false) => {
                println!("FAILED: play it again with --count {count} --seed {seed}");
                failed.push(seed);
            }
            Err(error) => {
                eprintln!("soak: {error}");
                return ExitCode::FAILURE;
            }
        }
        (left, seed) = (left - count, seed.wrapping_add(1));
    }
    println!("Deaths in courses that went well:");
    tally.iter().for_each(|(place, count)| println!("{count:>6}  {place}"));
    println!(
        "{all} deaths in {:.0} min, {} courses failed {failed:?}",
        begin.elapsed().as_secs_f64() / 60.0,
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Did it go well?
fn run_course(count: usize, seed: u64, tally: &mut BTreeMap<String, u64>) -> io::Result<bool> {
    let arguments = ["deaths", "--count", &count.to_string(), "--seed", &seed.to_string()];
    let mut process = stage::command_inside(&arguments)?.stdout(Stdio::piped()).spawn()?;
    for line in BufReader::new(process.stdout.take().expect("piped")).lines() {
        let line = line?;
        match line.strip_prefix(TALLY).map(serde_json::from_str::<BTreeMap<String, u64>>) {
            Some(Ok(deaths)) => deaths.into_iter().for_each(|(place, count)| *tally.entry(place).or_default() += count),
            _ => println!("{line}"),
        }
    }
    Ok(process.wait()?.success())
}

fn course(count: usize, seed: u64) -> ExitCode {
    stage::watch_over(LIMIT);
    machine::keep_errors();
    println!("course {seed}");
    let begin = Instant::now();
    let stage = match Stage::set_up(Layout::TwoHosts) {
        Ok(stage) => stage,
        Err(error) => {
            eprintln!("soak: {error}");
            return ExitCode::FAILURE;
        }
    };
    let tell = |text: &str| println!("  {:>6.1} s  {text}", begin.elapsed().as_secs_f64());
    match play(&stage, seed, count, tell) {
        Ok(course) => {
            let steps =
                course.deaths.iter().filter(|(place, _)| place.contains(" at ")).map(|(_, count)| count).sum::<u64>();
            println!(
                "  {:>6.1} s  {} deaths, {steps} at a step: {} writes all there, {} MB right to the byte, {} round trips on connections \
                 never reset, the longest wait {:.1} s; images clean",
                begin.elapsed().as_secs_f64(),
                course.deaths.values().sum::<u64>(),
                course.puts,
                course.bulk_bytes / 1_000_000,
                course.echoes,
                course.worst_wait.as_secs_f64()
            );
            println!("{TALLY}{}", serde_json::to_string(&course.deaths).expect("numbers by name"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            machine::print_kept();
            println!("  {:>6.1} s  A CLIENT FAILED: {error}", begin.elapsed().as_secs_f64());
            ExitCode::FAILURE
        }
    }
}
