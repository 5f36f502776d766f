//! The task of a colo-compare object, on its iothread: reads both sides, feeds the engine, sends what it releases.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use lockstep_chardev::{CharFrontend, CharStream, CharWriter, StreamEvent};
use lockstep_event::{Clock, Clocks};
use lockstep_util::report;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

use super::CheckpointNotifier;
use crate::compare::{CompareConfig, CompareEngine, CompareStats, IdentityGate, Output};
use crate::filter::Inlet;
use crate::packet::Frame;
use crate::wire::{self, FrameReader};

/// Bytes read at a time.
const READ_SIZE: usize = 256 << 10;
/// Reads of one side before the other gets its turn.
const READS_IN_A_ROW: usize = 4;
/// How long a flush waits for the primary's last frames, which are on their way inside this host.
const BARRIER_LIMIT: Duration = Duration::from_secs(1);
/// How long an object that ends waits for its output to be taken.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// Frames in one write.
const BATCH: usize = 256;

// The protocol with whoever manages checkpoints from outside (Xen).
const NOTIFY_CHECKPOINT: &[u8] = b"DO_CHECKPOINT";
const NOTIFY_INIT: &[u8] = b"COLO_USERSPACE_PROXY_INIT";
const NOTIFY_INIT_REPLY: &[u8] = b"COLO_COMPARE_GET_XEN_INIT";
const NOTIFY_FLUSH: &[u8] = b"COLO_CHECKPOINT";

pub(crate) struct Ends {
    pub primary: CharFrontend,
    pub secondary: CharFrontend,
    pub out: CharFrontend,
    pub notify: Option<CharFrontend>,
}

pub(crate) struct Settings {
    pub config: CompareConfig,
    pub scan_ms: u64,
    pub vnet: bool,
    pub gate: Arc<IdentityGate>,
    pub clocks: Clocks,
    pub notifier: Arc<RwLock<Option<CheckpointNotifier>>>,
}

pub(crate) enum Command {
    Configure { config: CompareConfig, scan_ms: u64 },
    EndEpoch(oneshot::Sender<()>),
    Flush { primary_bytes: Option<u64>, done: oneshot::Sender<()> },
    Stats(oneshot::Sender<CompareStats>),
    Stop(oneshot::Sender<()>),
}

/// One input.
struct Source {
    stream: CharStream,
    reader: FrameReader,
    broken: bool,
}

impl Source {
    fn new(frontend: CharFrontend, vnet: bool) -> Self {
        Self { stream: frontend.into_stream(), reader: FrameReader::new(vnet), broken: false }
    }

    /// Takes note of a connection that was made and not looked at yet, so that what has come on it is read.
    async fn catch_up(&mut self) {
        if self.stream.is_open() {
            return;
        }
        tokio::select! {
            biased;
            event = self.stream.event(false) => drop(self.note(event)),
            () = std::future::ready(()) => {}
        }
    }

    /// Reads once; false if nothing was there.
    fn read(&mut self, buf: &mut [u8], take: impl FnMut(Frame)) -> bool {
        if self.broken {
            return false;
        }
        let n = match self.stream.try_read(buf) {
            Ok(n) if n > 0 => n,
            _ => return false,
        };
        if self.reader.push(&buf[..n], take).is_err() {
            report::error("serious error: oversized packet received,connection terminated.");
            self.broken = true;
        }
        true
    }

    /// Takes note of an event other than `Readable`; false if there is no device any more.
    fn note(&mut self, event: StreamEvent) -> bool {
        match event {
            StreamEvent::Opened => {
                self.reader.reset();
                self.broken = false;
            }
            StreamEvent::Detached => return false,
            _ => {}
        }
        true
    }
}

struct Task {
    engine: CompareEngine,
    settings: Settings,
    out: CharWriter,
    notify_out: Option<CharWriter>,
    /// Released frames that the output has not taken.
    outgoing: VecDeque<Frame>,
    released: Output,
    lost: u64,
    /// Someone outside asked for a flush.
    flush_asked: bool,
    /// The secondary has said all of this epoch: what it says now is for the next.
    epoch_ended: bool,
}

pub(crate) async fn run(ends: Ends, settings: Settings, mut commands: mpsc::UnboundedReceiver<Command>) {
    let vnet = settings.vnet;
    let mut primary = Source::new(ends.primary, vnet);
    let mut secondary = Source::new(ends.secondary, vnet);
    let mut out = ends.out.into_output();
    let mut notify = ends.notify.map(|frontend| Source::new(frontend, false));
    let mut task = Task {
        engine: CompareEngine::new(settings.config, settings.gate.clone()),
        out: out.writer(),
        notify_out: notify.as_ref().map(|source| source.stream.writer()),
        settings,
        outgoing: VecDeque::new(),
        released: Output::default(),
        lost: 0,
        flush_asked: false,
        epoch_ended: false,
    };
    let mut buf = vec![0; READ_SIZE];
    let mut next_scan = tokio::time::Instant::now() + task.scan_period();
    loop {
        let free = task.outgoing.is_empty();
        let want_primary = free && !primary.broken && task.engine.primary_has_room();
        let want_secondary = free && !secondary.broken && !task.epoch_ended && task.engine.secondary_has_room();
        let patience = task.engine.next_deadline().map(|at| {
            let left = (at - task.now()).max(0);
            Duration::from_nanos(left as u64)
        });
        let out_writer = task.out.clone();
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(Command::Configure { config, scan_ms }) => {
                    task.engine.set_config(config);
                    task.settings.scan_ms = scan_ms;
                    next_scan = tokio::time::Instant::now() + task.scan_period();
                }
                Some(Command::EndEpoch(done)) => {
                    secondary.catch_up().await;
                    let now = task.now();
                    let (engine, released) = (&mut task.engine, &mut task.released);
                    while !task.epoch_ended && secondary.read(&mut buf, |frame| engine.secondary(frame, now, released)) {}
                    task.epoch_ended = true;
                    let _ = done.send(());
                }
                Some(Command::Flush { primary_bytes, done }) => {
                    task.flush(&mut primary, &mut secondary, primary_bytes, &mut buf).await;
                    let _ = done.send(());
                }
                Some(Command::Stats(done)) => {
                    let _ = done.send(task.engine.stats());
                }
                Some(Command::Stop(done)) => {
                    task.stop(&mut primary, &mut buf).await;
                    drop((primary, secondary, out, notify));
                    let _ = done.send(());
                    return;
                }
                None => return,
            },
            event = secondary.stream.event(want_secondary) => match event {
                StreamEvent::Readable => {
                    for _ in 0..READS_IN_A_ROW {
                        let now = task.now();
                        let (engine, released) = (&mut task.engine, &mut task.released);
                        if !secondary.read(&mut buf, |frame| engine.secondary(frame, now, released)) {
                            // The sender waits for our acknowledgement before a checkpoint.
                            secondary.stream.acknowledge_now();
                            break;
                        }
                    }
                }
                event => if !secondary.note(event) { return },
            },
            event = primary.stream.event(want_primary) => match event {
                StreamEvent::Readable => {
                    for _ in 0..READS_IN_A_ROW {
                        let now = task.now();
                        let (engine, released) = (&mut task.engine, &mut task.released);
                        if !primary.read(&mut buf, |frame| engine.primary(frame, now, released)) {
                            break;
                        }
                    }
                }
                event => if !primary.note(event) { return },
            },
            event = out.event(false) => if event == StreamEvent::Detached { return },
            () = out_writer.progress(), if !free => {}
            event = notify_event(&mut notify) => match event {
                StreamEvent::Readable => task.notified(notify.as_mut(), &mut buf),
                event => if notify.as_mut().is_some_and(|source| !source.note(event)) { return },
            },
            () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => {
                let now = task.now();
                task.engine.tick(now, &mut task.released);
            }
            () = tokio::time::sleep_until(next_scan) => {
                next_scan = tokio::time::Instant::now() + task.scan_period();
                let now = task.now();
                task.engine.scan(now, &mut task.released);
            }
        }
        if std::mem::take(&mut task.flush_asked) {
            task.flush(&mut primary, &mut secondary, None, &mut buf).await;
        }
        task.deliver();
    }
}

async fn notify_event(notify: &mut Option<Source>) -> StreamEvent {
    match notify {
        Some(source) => {
            let want = !source.broken;
            source.stream.event(want).await
        }
        None => std::future::pending().await,
    }
}

impl Task {
    fn now(&self) -> i64 {
        self.settings.clocks.now_ns(Clock::Realtime)
    }

    fn scan_period(&self) -> Duration {
        Duration::from_millis(self.settings.scan_ms)
    }

    /// Sends what the engine released and asks for the checkpoint that it wants.
    fn deliver(&mut self) {
        if let Some(divergence) = self.released.checkpoint.take() {
            match &self.notify_out {
                Some(out) => notify_send(out, NOTIFY_CHECKPOINT),
                None => {
                    let notifier = self.settings.notifier.read().clone();
                    if let Some(notifier) = notifier {
                        notifier(divergence);
                    }
                }
            }
        }
        if self.released.frames.is_empty() && self.outgoing.is_empty() {
            return;
        }
        let inlet = if self.outgoing.is_empty() { self.out.direct::<Inlet>() } else { None };
        if let Some(inlet) = inlet.filter(|inlet| inlet.suits(self.settings.vnet)) {
            self.released.frames.drain(..).for_each(|frame| inlet.take(frame));
            return;
        }
        self.outgoing.extend(self.released.frames.drain(..));
        while !self.outgoing.is_empty() {
            let count = self.outgoing.len().min(BATCH);
            let heads: Vec<_> = self.outgoing.iter().take(count).map(|f| wire::header(f, self.settings.vnet)).collect();
            let mut slices = Vec::with_capacity(2 * count);
            for ((head, n), frame) in heads.iter().zip(&self.outgoing) {
                slices.push(IoSlice::new(&head[..*n]));
                slices.push(IoSlice::new(&frame.data));
            }
            match self.out.send(&slices) {
                Ok(()) => {}
                // Nothing more is read until the output takes this.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.lost += count as u64;
                    if self.lost == count as u64 {
                        report::error("colo-compare: the output is not connected, released packets are lost");
                    }
                }
            }
            self.outgoing.drain(..count);
        }
    }

    /// See [`super::ColoCompare::flush`].
    async fn flush(
        &mut self,
        primary: &mut Source,
        secondary: &mut Source,
        primary_bytes: Option<u64>,
        buf: &mut [u8],
    ) {
        // The secondary's old words are about a guest that no longer exists. Its new ones may have come already.
        if !std::mem::take(&mut self.epoch_ended) {
            while secondary.read(buf, |_| ()) {}
            secondary.reader.discard_partial();
        }
        // What the primary had sent before it stopped belongs to the old epoch, wherever it is.
        primary.catch_up().await;
        let limit = tokio::time::Instant::now() + BARRIER_LIMIT;
        loop {
            let now = self.now();
            let (engine, released) = (&mut self.engine, &mut self.released);
            while primary.read(buf, |frame| engine.primary(frame, now, released)) {}
            let there = primary_bytes.is_none_or(|want| primary.stream.received() >= want);
            if there || !primary.stream.is_open() || tokio::time::Instant::now() >= limit {
                break;
            }
            if tokio::time::timeout_at(limit, primary.stream.event(true)).await == Ok(StreamEvent::Detached) {
                break;
            }
        }
        let now = self.now();
        self.released.checkpoint = None;
        self.engine.flush(now, &mut self.released);
        self.deliver();
    }

    /// Lets everything go that is held, and waits until it has gone.
    async fn stop(&mut self, primary: &mut Source, buf: &mut [u8]) {
        primary.catch_up().await;
        let now = self.now();
        let (engine, released) = (&mut self.engine, &mut self.released);
        while primary.read(buf, |frame| engine.primary(frame, now, released)) {}
        self.engine.flush(now, &mut self.released);
        self.released.checkpoint = None;
        let all_gone = async {
            self.deliver();
            while !self.outgoing.is_empty() || self.out.queued() > 0 {
                self.out.progress().await;
                self.deliver();
            }
        };
        let _ = tokio::time::timeout(STOP_LIMIT, all_gone).await;
    }

    fn notified(&mut self, notify: Option<&mut Source>, buf: &mut [u8]) {
        let (Some(source), Some(out)) = (notify, self.notify_out.clone()) else { return };
        let mut flush = false;
        source.read(buf, |frame| match &frame.data[..] {
            NOTIFY_INIT => notify_send(&out, NOTIFY_INIT_REPLY),
            NOTIFY_FLUSH => flush = true,
            _ => report::error("COLO compare got unsupported instruction"),
        });
        self.flush_asked |= flush;
    }
}

fn notify_send(out: &CharWriter, text: &[u8]) {
    let frame = Frame::new(text.to_vec());
    let (head, n) = wire::header(&frame, false);
    if let Err(e) = out.send(&[IoSlice::new(&head[..n]), IoSlice::new(text)]) {
        tracing::warn!("colo-compare: notification: {e}");
    }
}
