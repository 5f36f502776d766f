//! What the monitor answers, beside what QEMU 10.0.2 answered to the same: member for member, and HMP line for line.
//!
//! The sessions are files in `tests/parity`: command lines, requests, and the answers that QEMU gave (facts of its
//! interface; values that vary are left out, see [`normalise`]). `LOCKSTEP_PARITY_RECORD` together with
//! `LOCKSTEP_COMPAT_QEMU=/` asks the QEMU that is installed and writes its answers into the files.
//!
//! | line | meaning |
//! |---|---|
//! | `# text` | a remark |
//! | `P: words` | starts machine `P`: words of the shell, or `step FILE` of the guide |
//! | `P-> {…}` | a request; `P-> hmp LINE` is a line of the human monitor |
//! | `<- {…}` | the answer: what is in `return`, or the whole `error` object |
//! | `\| text` | a line of a human monitor's answer |
//! | `ev {…}` | an event that came before the answer |
//! | `!! POINTER text` | QEMU has something else at this place of the answer, and why; or the line of text that begins so |
//! | `P wait EVENT [STATUS]` | waits for an event, with this status; those that came since the request before are told in order |
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_compat_tests::machine::Machine;
use lockstep_compat_tests::monitor::{Event, Mark, PROMPT};
use lockstep_compat_tests::procedure::Procedure;
use lockstep_compat_tests::stage::{Layout::OneHost, Stage, on_stage};
use serde_json::Value;

const RECORD: &str = "LOCKSTEP_PARITY_RECORD";
const LIMIT: Duration = Duration::from_secs(200);

macro_rules! sessions {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            on_stage(OneHost, LIMIT, |stage| run(stage, stringify!($name)));
        }
    )*};
}

sessions! {
    the_documented_pair
    a_plain_machine
    a_machine_without_defaults
    disks_and_jobs
    character_devices_and_networks
    screens_for_viewers
    wrong_uses
}

/// Plays a session; the file is compared with what came, or written anew.
fn run(stage: &Stage, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(format!("{name}.txt"));
    let script = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let record = std::env::var_os(RECORD).is_some();
    if stage.emulator.software_cpu {
        eprintln!("skipped {name}: what was recorded is of KVM");
        return;
    }
    assert!(!record || stage.emulator.is_qemu(), "only QEMU's answers are recorded");
    let mut player = Player { stage, machines: BTreeMap::new(), told: String::new(), wrong: vec![] };
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        let mut expected = vec![];
        while let Some(answer) = lines.next_if(|l| is_answer(l)) {
            expected.push(answer);
        }
        // Whoever waits for an event tells all that came since the request.
        let waits = lines.peek().is_some_and(|l| l.get(1..).is_some_and(|l| l.starts_with(" wait ")));
        player.step(line, &expected, waits);
    }
    if record {
        std::fs::write(&path, player.told).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        return;
    }
    assert!(player.wrong.is_empty(), "{} differences:\n{}", player.wrong.len(), player.wrong.join("\n"));
}

fn is_answer(line: &str) -> bool {
    ["<- ", "| ", "ev ", "!! "].iter().any(|p| line.starts_with(p)) || line == "|"
}

struct Player<'a> {
    stage: &'a Stage,
    machines: BTreeMap<char, (Machine, Mark)>,
    /// The session as it went.
    told: String,
    wrong: Vec<String>,
}

impl Player<'_> {
    fn step(&mut self, line: &str, expected: &[&str], waits: bool) {
        let _ = writeln!(self.told, "{line}");
        let Some(who) = line.chars().next().filter(char::is_ascii_uppercase) else { return };
        let rest = &line[1..];
        let answers = if let Some(words) = rest.strip_prefix(": ") {
            self.start(who, words);
            return;
        } else if let Some(request) = rest.strip_prefix("-> ") {
            self.ask(who, request, waits)
        } else if let Some(event) = rest.strip_prefix(" wait ") {
            self.wait(who, event)
        } else {
            panic!("not a line of a session: {line}");
        };
        let excused: Vec<&str> = expected.iter().filter_map(|l| l.strip_prefix("!! ")).collect();
        let given = |lines: &[String]| -> Vec<String> { lines.iter().filter_map(|l| excuse(l, &excused)).collect() };
        let wanted: Vec<String> = expected.iter().filter(|l| !l.starts_with("!! ")).map(|l| (*l).to_owned()).collect();
        if given(&answers) != given(&wanted) {
            self.wrong.push(format!("{line}\n{}", difference(&given(&wanted), &given(&answers))));
        }
        for text in answers.iter().map(String::as_str).chain(expected.iter().copied().filter(|l| l.starts_with("!! ")))
        {
            let _ = writeln!(self.told, "{}", text.trim_end());
        }
    }

    fn start(&mut self, who: char, words: &str) {
        let host = &self.stage.hosts[usize::from(who == 'S')];
        let lines = match words.strip_prefix("step ") {
            Some(file) => Procedure::read().block(file).to_owned(),
            None => format!("cd {} && {words}", host.place.folder),
        };
        if let (Some(file), 'P') = (words.strip_prefix("step "), who) {
            // The images that the procedure expects to be there.
            for host in &self.stage.hosts {
                let image = PathBuf::from(&host.place.folder).join("primary.qcow2");
                let made = std::process::Command::new("qemu-img")
                    .args(["create", "-q", "-f", "qcow2"])
                    .arg(&image)
                    .arg("10G")
                    .status();
                assert!(made.is_ok_and(|s| s.success()), "{file}: no image");
            }
        }
        let machine = Machine::start(host, &who.to_string(), &lines);
        let mark = machine.monitor.mark();
        self.machines.insert(who, (machine, mark));
    }

    fn ask(&mut self, who: char, request: &str, waits: bool) -> Vec<String> {
        let (machine, mark) = self.machines.get_mut(&who).expect("a machine that was started");
        machine.monitor.greeting(Duration::from_secs(60)).expect("a greeting");
        let hmp = request.strip_prefix("hmp ");
        let text = match hmp {
            Some(line) => {
                let line = serde_json::json!(line);
                format!("{{\"execute\":\"human-monitor-command\",\"arguments\":{{\"command-line\":{line}}}}}\n")
            }
            None => format!("{request}\n"),
        };
        machine.monitor.paste(&text).expect("it reads");
        let mut reply = machine.monitor.reply(request, PROMPT).expect("an answer");
        let mut lines = if waits { vec![] } else { events(machine, mark) };
        match (reply.get("error").is_some(), hmp, reply["return"].as_str()) {
            (false, Some(_), Some(text)) => {
                let lines_of = text.trim_end_matches("\r\n").split("\r\n");
                let mut text: Vec<_> =
                    lines_of.map(|l| format!("| {}", normalised_text(l)).trim_end().to_owned()).collect();
                // QEMU lists them as they lie in a hash table.
                if hmp == Some("info chardev") {
                    text.sort();
                }
                lines.extend(text);
            }
            (error, ..) => {
                let mut answer = if error { reply["error"].take() } else { reply["return"].take() };
                normalise(&mut answer, "");
                sort_members(&mut answer);
                lines.push(format!("<- {}", if error { serde_json::json!({"error": answer}) } else { answer }));
            }
        }
        lines
    }

    fn wait(&mut self, who: char, event: &str) -> Vec<String> {
        let (machine, mark) = self.machines.get_mut(&who).expect("a machine that was started");
        let (name, status) = event.split_once(' ').map_or((event, None), |(name, status)| (name, Some(status)));
        let wanted = |e: &Event| e.name == name && status.is_none_or(|s| e.data["status"] == s);
        let end = Instant::now() + PROMPT;
        while !machine.monitor.events_since(*mark).iter().any(wanted) {
            assert!(Instant::now() < end, "{event} does not come");
            std::thread::sleep(Duration::from_millis(2));
        }
        events(machine, mark)
    }
}

/// The events that came since.
fn events(machine: &Machine, mark: &mut Mark) -> Vec<String> {
    let new = machine.monitor.events_since(*mark);
    *mark = machine.monitor.mark();
    let told = |event: &Event| {
        let mut value = serde_json::json!({"event": event.name, "data": event.data});
        normalise(&mut value, "");
        sort_members(&mut value);
        format!("ev {value}")
    };
    new.iter().map(told).collect()
}

/// A line without what is excused; `None` if all of it is.
fn excuse(line: &str, excused: &[&str]) -> Option<String> {
    if let Some(text) = line.strip_prefix("| ") {
        return (!excused.iter().any(|e| text.trim_start().starts_with(e.split("  ").next().unwrap_or(e))))
            .then(|| line.to_owned());
    }
    let (kind, json) = line.split_at_checked(3)?;
    let Ok(mut value) = serde_json::from_str::<Value>(json) else { return Some(line.to_owned()) };
    for pointer in excused.iter().filter_map(|e| e.split(' ').next()) {
        remove(&mut value, pointer);
    }
    sort_members(&mut value);
    Some(format!("{kind}{value}"))
}

/// Members of an object have no order: whether `serde_json` keeps the one they came in depends on what else is built.
fn sort_members(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(sort_members),
        Value::Object(map) => {
            map.values_mut().for_each(sort_members);
            *map = std::mem::take(map).into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
        }
        _ => {}
    }
}

/// Takes out what a pointer leads to; `*` means all elements.
fn remove(value: &mut Value, pointer: &str) {
    let Some(rest) = pointer.strip_prefix('/') else { return };
    let (first, rest) = rest.split_once('/').map_or((rest, String::new()), |(f, r)| (f, format!("/{r}")));
    match value {
        Value::Array(list) if first == "*" => list.iter_mut().for_each(|v| remove(v, &rest)),
        Value::Object(map) if rest.is_empty() => drop(map.remove(first)),
        Value::Object(map) => {
            if let Some(v) = map.get_mut(first) {
                remove(v, &rest);
            }
        }
        Value::Array(list) => {
            if let Some(v) = first.parse::<usize>().ok().and_then(|i| list.get_mut(i)) {
                remove(v, &rest);
            }
        }
        _ => {}
    }
}

/// Members whose values differ from run to run, or from host to host.
const VARYING: [&str; 8] =
    ["thread-id", "actual-size", "package", "seconds", "microseconds", "fd", "offset-time", "setup-time"];

/// Leaves out what varies: generated names, numbers of processes and ports, times, sizes on the host's disk; and brings
/// lists that have no order into one.
fn normalise(value: &mut Value, key: &str) {
    match value {
        _ if VARYING.contains(&key) => *value = "*".into(),
        Value::String(text) => *text = normalised_text(text),
        Value::Array(list) => {
            // Regions and lines are no objects of their own here.
            let inner = ["child<memory-region>", "child<irq>", "child<System>"];
            list.retain(|v| !inner.iter().any(|t| v["type"] == *t));
            list.iter_mut().for_each(|v| normalise(v, ""));
            let unordered = ["label", "option"].iter().any(|m| list.first().is_some_and(|v| v.get(m).is_some()))
                || list.first().is_some_and(|v| v.get("type").is_some() && v.get("name").is_some());
            if unordered {
                list.sort_by_key(|v| {
                    let name = ["label", "option", "name"].into_iter().find_map(|m| v[m].as_str());
                    name.unwrap_or_default().to_owned()
                });
            }
        }
        Value::Object(map) => map.iter_mut().for_each(|(k, v)| normalise(v, k)),
        _ => {}
    }
}

/// Replaces the digits after each of these by a star.
const NUMBERED: [&str; 5] = ["#block", "/dev/pts/", " <-> 127.0.0.1:", "thread_id=", "fd="];

fn normalised_text(text: &str) -> String {
    let mut text = text.to_owned();
    for prefix in NUMBERED {
        let mut parts = text.split(prefix);
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
            let star = if rest.len() < part.len() { "*" } else { "" };
            let _ = write!(out, "{prefix}{star}{rest}");
        }
        text = out;
    }
    // The near end of a connection that was made from here.
    match text.split_once(" <-> ") {
        Some((near, far)) if !near.contains("server=on") => {
            let near = near.trim_end_matches(|c: char| c.is_ascii_digit());
            format!("{near}* <-> {far}")
        }
        _ => text,
    }
}

/// Lines that only one side has; of a long answer what differs in it.
fn difference(wanted: &[String], given: &[String]) -> String {
    let mut out = String::new();
    for (mark, one, other) in [("QEMU", wanted, given), ("here", given, wanted)] {
        for line in one.iter().filter(|l| !other.contains(l)) {
            let counterpart = other.iter().find(|o| o.starts_with("<- ") && !one.contains(o));
            match (line.strip_prefix("<- "), counterpart.and_then(|o| o.strip_prefix("<- "))) {
                (Some(a), Some(b)) if mark == "QEMU" => {
                    if let (Ok(a), Ok(b)) = (serde_json::from_str(a), serde_json::from_str(b)) {
                        members(&a, &b, "", &mut out);
                    }
                }
                (Some(_), Some(_)) => {}
                _ => {
                    let _ = writeln!(out, "  {mark}: {line}");
                }
            }
        }
    }
    if out.is_empty() && wanted.len() != given.len() {
        return format!("  QEMU: {wanted:?}\n  here: {given:?}\n");
    }
    if out.is_empty() { "  the order of lines differs\n".into() } else { out }
}

fn members(a: &Value, b: &Value, path: &str, out: &mut String) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: std::collections::BTreeSet<_> = x.keys().chain(y.keys()).collect();
            for key in keys {
                let (p, q) = (x.get(key).unwrap_or(&Value::Null), y.get(key).unwrap_or(&Value::Null));
                members(p, q, &format!("{path}/{key}"), out);
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().for_each(|(i, (p, q))| members(p, q, &format!("{path}/{i}"), out));
        }
        _ if a == b => {}
        _ => {
            let _ = writeln!(out, "  {path}: QEMU {a}, here {b}");
        }
    }
}
