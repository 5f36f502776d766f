//! How long clients wait when a host dies.
use crate::scenes;
use lockstep_compat_tests::colo::{LONG, Pair, Paste};
use lockstep_compat_tests::monitor::Monitor;
use lockstep_compat_tests::stage::Stage;
use lockstep_compat_tests::traffic::{self, ECHO_PORT, Echo, GUEST, Pace};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const COMMAND: &str = "x-colo-lost-heartbeat";
/// Time between two questions.
const STEP: Duration = Duration::from_millis(1);
/// What is kept of answers around the failover.
const AROUND: Duration = Duration::from_millis(800);

/// One failover; times in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failover {
    /// `primary` or `secondary`: who died.
    pub died: String,
    /// From the failover command to the next answer to a datagram; one is sent each millisecond.
    pub answer: f64,
    /// From the first line of the guide's step to that answer.
    pub answer_from_step: f64,
    /// From the failover command to the next answer on a TCP connection, whose client repeats by its own clock.
    pub tcp: f64,
    /// When answers came, relative to the command.
    pub answers: Vec<f64>,
}

/// Kills secondaries and primaries in turn, `count` of each; each gets a successor. `keep` gets each failover.
pub fn measure(stage: &Stage, count: usize, mut keep: impl FnMut(Failover) -> io::Result<()>) -> io::Result<()> {
    let mut pair = Pair::start_with(stage, Paste::Lines, scenes::make_image);
    traffic::wait_for_guest(scenes::boot_time())?;
    pair.set_checkpoint_delay();
    let mut echo = Echo::start(1, Pace::PingPong { size: 64, pause: STEP })?;
    for number in 0..2 * count {
        pair.wait_for_checkpoints(1);
        // Anywhere in the epoch.
        std::thread::sleep(Duration::from_millis(137 * number as u64 % 2000));
        echo.wait_for_progress(64, LONG)?;
        let probe = Probe::start()?;
        std::thread::sleep(AROUND);
        let (died, first) =
            if number % 2 == 0 { ("secondary", "x-blockdev-change") } else { ("primary", "nbd-server-stop") };
        match died {
            "primary" => pair.lose_primary(),
            _ => pair.lose_secondary(),
        }
        let (first, command) = (sent(&pair.primary.monitor, first)?, sent(&pair.primary.monitor, COMMAND)?);
        std::thread::sleep(AROUND);
        echo.wait_for_progress(64, LONG)?;
        let answers = probe.finish()?;
        let after = |times: &mut dyn Iterator<Item = Instant>| {
            let next = times.filter(|at| *at >= command).min();
            next.map(|at| (at - command, at - first)).ok_or_else(|| io::Error::other("no answer after the failover"))
        };
        let (answer, from_step) = after(&mut answers.iter().copied())?;
        let (tcp, _) = after(&mut echo.round_trips().into_iter().map(|(at, _)| at))?;
        let near = answers.into_iter().filter(|at| *at + AROUND > command);
        keep(Failover {
            died: died.into(),
            answer: ms(answer),
            answer_from_step: ms(from_step),
            tcp: ms(tcp),
            answers: near
                .map(|at| ms(at.saturating_duration_since(command)) - ms(command.saturating_duration_since(at)))
                .collect(),
        })?;
        pair.resume();
    }
    echo.finish()?;
    pair.end();
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn sent(monitor: &Monitor, text: &str) -> io::Result<Instant> {
    monitor.sent_at(text).ok_or_else(|| io::Error::other(format!("{text} was not sent")))
}

/// Sends a datagram to the guest each millisecond and notes when answers come.
struct Probe {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Instant>>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Probe {
    fn start() -> io::Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(SocketAddr::from((GUEST, ECHO_PORT)))?;
        socket.set_read_timeout(Some(STEP * 20))?;
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (out, told) = (socket.try_clone()?, Arc::clone(&stop));
        let sender = std::thread::spawn(move || {
            let mut number: u64 = 0;
            while !told.load(Relaxed) {
                number += 1;
                // While nobody knows where the guest is there is nowhere to send to.
                let _ = out.send(&number.to_le_bytes());
                std::thread::sleep(STEP);
            }
            Ok(())
        });
        let (told, sink) = (Arc::clone(&stop), Arc::clone(&answers));
        let receiver = std::thread::spawn(move || {
            let mut part = [0; 64];
            while !told.load(Relaxed) {
                if socket.recv(&mut part).is_ok() {
                    sink.lock().unwrap().push(Instant::now());
                }
            }
            Ok(())
        });
        Ok(Self { stop, answers, threads: vec![sender, receiver] })
    }

    fn finish(self) -> io::Result<Vec<Instant>> {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))?;
        Ok(std::mem::take(&mut *self.answers.lock().unwrap()))
    }
}
