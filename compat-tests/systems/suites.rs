//! Public test suites (`compat-tests/suites`) on the software CPU, beside the host's processor and other emulators.
use crate::Options;
use crate::console::Console;
use lockstep_compat_tests::image::make_overlay;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The longest that one test may take, its own limit included.
const TEST: Duration = Duration::from_secs(600);
const BOOT: Duration = Duration::from_secs(400);
/// What runs the suites on this machine, in the tree that `scripts/suites-image` made.
const ON_THE_HOST: &str = "mount -t proc proc \"$0/proc\" && mount --rbind /dev \"$0/dev\" && mount --rbind /sys \"$0/sys\" && \
     mount -t tmpfs tmp \"$0/tmp\" && exec chroot \"$0\" env HOME=/root LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
     /suites/run \"$@\"";

/// How each test went, and how many seconds it took.
type Verdicts = BTreeMap<(String, String), (String, f64)>;

/// Runs the chosen suites here and in a guest on each program, and says where verdicts are not the host's.
///
/// # Panics
/// If a guest does not come to its end, or a test that the host passes fails on the first program.
pub fn run(options: &Options) {
    let tree = options.folder.join("suites").canonicalize().expect("the tree of scripts/suites-image");
    let chosen: Vec<&str> = options.suites.split(',').filter(|name| !name.is_empty()).collect();
    println!("\nPublic test suites, in Debian's tree on the host");
    let host = on_the_host(&tree, &chosen);
    let mut failed = false;
    for &smp in &options.smp {
        let mut columns = vec![("host", host.clone())];
        for program in &options.programs {
            columns.push((program, in_a_guest(options, &tree, program, smp)));
        }
        println!("\nTests passed, of all (others), and their seconds, -smp {smp}:\n{}", table(&columns));
        let worse = differences(&columns);
        print!("{worse}");
        failed |= columns[1].1.iter().any(|(test, (verdict, _))| is_failure(verdict) && passes(&host, test));
    }
    assert!(!failed, "tests that the host's processor passes fail");
}

fn passes(verdicts: &Verdicts, test: &(String, String)) -> bool {
    verdicts.get(test).is_some_and(|(verdict, _)| verdict == "pass")
}

fn is_failure(verdict: &str) -> bool {
    !matches!(verdict, "pass" | "skip")
}

/// `@ SUITE NAME VERDICT SECONDS`.
fn note(verdicts: &mut Verdicts, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    if let ["@", suite, name, verdict, seconds] = words[..] {
        let seconds = seconds.parse().unwrap_or(0.0);
        verdicts.insert((suite.into(), name.into()), (verdict.into(), seconds));
        if is_failure(verdict) {
            println!("  {suite} {name}: {verdict} after {seconds} s");
        }
    }
}

fn on_the_host(tree: &Path, chosen: &[&str]) -> Verdicts {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "sh", "-c", ON_THE_HOST]).arg(tree).args(chosen);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("unshare");
    let mut verdicts = Verdicts::new();
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    lines.map_while(Result::ok).for_each(|line| note(&mut verdicts, &line));
    let status = child.wait().expect("our child");
    assert!(status.success() && !verdicts.is_empty(), "the suites do not run here: {status}");
    verdicts
}

fn in_a_guest(options: &Options, tree: &Path, program: &str, smp: u32) -> Verdicts {
    println!("\nThe same in a guest on {program}, -smp {smp}");
    let disk = Path::new("/mnt/suites.qcow2");
    let base = options.folder.join("suites.qcow2").canonicalize().expect("the image of scripts/suites-image");
    make_overlay(&base, disk);
    let (kernel, initrd) = (tree.join("vmlinuz"), tree.join("initrd.img"));
    let machine = format!(
        "-nodefaults -vga none -display none -m 1024 -smp {smp} -accel tcg -cpu max -no-reboot -drive if=ide,file={},format=qcow2",
        disk.display()
    );
    let (kernel, initrd) = (kernel.to_string_lossy(), initrd.to_string_lossy());
    let line = format!("root=/dev/sda rw init=/suites/init console=ttyS0,115200 quiet suites={}", options.suites);
    let mut console = Console::start(program, &machine, &["-kernel", &kernel, "-initrd", &initrd, "-append", &line]);
    let mut verdicts = Verdicts::new();
    let mut limit = BOOT;
    loop {
        // Whatever the kernel says about a test may stand before it on the same line.
        console.expect("@ ", limit);
        limit = TEST;
        let words = console.expect("\n", TEST);
        if words.trim() == "end" {
            break;
        }
        note(&mut verdicts, &format!("@ {words}"));
    }
    assert!(console.end(BOOT).success(), "{program} did not end well");
    verdicts
}

fn table(columns: &[(&str, Verdicts)]) -> String {
    let mut suites: Vec<&str> = columns[0].1.keys().map(|(suite, _)| suite.as_str()).collect();
    suites.dedup();
    let mut text = format!("{:<12}", "");
    for (name, _) in columns {
        let name = name.rsplit('/').next().unwrap_or(name);
        text += &format!("{name:>30}");
    }
    for suite in suites {
        text += &format!("\n{suite:<12}");
        for (_, verdicts) in columns {
            let of_suite: Vec<_> =
                verdicts.iter().filter(|((own, _), _)| own == suite).map(|(_, value)| value).collect();
            let count = |wanted: &str| of_suite.iter().filter(|(verdict, _)| verdict == wanted).count();
            let seconds: f64 = of_suite.iter().map(|(_, seconds)| seconds).sum();
            let cell = format!("{} of {}, {} skipped {seconds:.0} s", count("pass"), of_suite.len(), count("skip"));
            text += &format!("{cell:>30}");
        }
    }
    text
}

/// Tests whose verdicts are not all the same.
fn differences(columns: &[(&str, Verdicts)]) -> String {
    let mut text = String::new();
    for (test, (first, _)) in &columns[0].1 {
        let of = |verdicts: &Verdicts| verdicts.get(test).map_or("-".to_string(), |(verdict, _)| verdict.clone());
        let all: Vec<String> = columns.iter().map(|(_, verdicts)| of(verdicts)).collect();
        if all.iter().any(|verdict| verdict != first) || is_failure(first) {
            text += &format!("  {} {}: {}\n", test.0, test.1, all.join(" | "));
        }
    }
    text
}
