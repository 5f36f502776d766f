//! The documented procedure with Debian as guest.
use crate::Options;
use lockstep_compat_tests::colo::{LONG, Pair, Paste};
use lockstep_compat_tests::stage::Stage;
use lockstep_compat_tests::traffic::{self, Echo, Http, KeyValues, Pace};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const BOOT: Duration = Duration::from_secs(1500);

/// A shell on the guest over ssh, which counts whatever happens around it.
struct Shell {
    client: Child,
    lines: Receiver<u64>,
    next: u64,
}

impl Shell {
    fn start(options: &Options) -> Self {
        // ssh takes a key only if nobody else can read it.
        let key = "/mnt/key";
        std::fs::copy(options.folder.join("key"), key).expect("the key of scripts/debian-image");
        Command::new("chmod").args(["600", key]).status().expect("chmod");
        let mut client = Command::new("ssh")
            .args([
                "-i",
                key,
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "LogLevel=ERROR",
            ])
            .args(["root@192.168.77.2", "exec sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ssh");
        let output = client.stdout.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(output)
                .lines()
                .map_while(Result::ok)
                .filter_map(|line| line.parse().ok())
                .try_for_each(|n| sender.send(n))
        });
        Self { client, lines, next: 0 }
    }

    /// Has the guest's shell say the next `count` numbers, each after the one before.
    fn count(&mut self, count: u64) {
        for _ in 0..count {
            let keys = self.client.stdin.as_mut().expect("piped");
            writeln!(keys, "echo {}", self.next).and_then(|()| keys.flush()).expect("the ssh session lives");
            let said = self.lines.recv_timeout(LONG).expect("the ssh session lives");
            assert_eq!(said, self.next, "what the shell says");
            self.next += 1;
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// Steps 1 to 9, with connections that live through all of it.
///
/// # Panics
/// If a step fails or a connection is lost.
pub fn play(stage: &Stage, options: &Options) {
    let begin = Instant::now();
    let say = |text: &str| println!("  {:>6.1} s  {text}", begin.elapsed().as_secs_f64());
    println!("\nThe documented procedure, with Debian");
    let image = options.folder.join("debian.qcow2");
    let mut pair = Pair::start_with(stage, Paste::Lines, |disk| std::fs::copy(image, disk).map(drop));
    say("the pair runs (steps 1 to 4)");
    traffic::wait_for_guest(BOOT).expect("Debian answers");
    say("Debian answers");
    pair.set_checkpoint_delay();
    let mut shell = Shell::start(options);
    shell.count(5);
    say("an ssh session is open (step 5)");
    let mut echo = Echo::start(7, Pace::PingPong { size: 100, pause: Duration::from_millis(5) }).expect("a connection");
    let mut http = Http::open().expect("a connection");
    let mut pairs = KeyValues::default();
    (0..5).for_each(|_| pairs.put_next(&mut http, 2000).expect("PUT"));
    pair.wait_for_checkpoints(2);
    say("two checkpoints under traffic");

    let mut after = |pair: &mut Pair<'_>, what: &str| {
        let start = Instant::now();
        echo.wait_for_progress(1000, LONG).expect("echo");
        let first = start.elapsed();
        pairs.verify(&mut http).expect("acknowledged pairs");
        (0..5).for_each(|_| pairs.put_next(&mut http, 2000).expect("PUT"));
        shell.count(5);
        let status = pair.primary.monitor.command(r#"{"execute": "query-colo-status"}"#);
        say(&format!("{what}: echo after {} ms, writes there, ssh lives ({})", first.as_millis(), status["mode"]));
    };
    pair.lose_secondary();
    after(&mut pair, "the secondary is dead (step 6)");
    pair.resume();
    pair.wait_for_checkpoints(1);
    after(&mut pair, "a new secondary (step 8)");
    pair.lose_primary();
    after(&mut pair, "the primary is dead (step 7)");
    pair.resume();
    pair.wait_for_checkpoints(1);
    after(&mut pair, "a new secondary (step 9)");
    echo.finish().expect("no byte lost, doubled or wrong");
    pair.end();
    say("both images are clean");
}
