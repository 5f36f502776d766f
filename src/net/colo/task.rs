//! The task of a colo-compare object, on its iothread: reads both sides and brings what it has read to the desk.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use lockstep_chardev::{CharFrontend, CharStream, CharWriter, StreamEvent};
use lockstep_util::report;
use tokio::sync::{Notify, mpsc, oneshot};

use super::desk::{Desk, Intake, Settings, notify_send};
use crate::compare::{CompareConfig, CompareStats};
use crate::packet::Frame;
use crate::wire::FrameReader;

/// Bytes read at a time.
const READ_SIZE: usize = 256 << 10;
/// Reads of one side before the other gets its turn.
const READS_IN_A_ROW: usize = 4;
/// How long a flush waits for the primary's last frames, which are on their way inside this host.
const BARRIER_LIMIT: Duration = Duration::from_secs(1);
/// How long an object that ends waits for its output to be taken.
const STOP_LIMIT: Duration = Duration::from_secs(2);

// The protocol with whoever manages checkpoints from outside (Xen).
const NOTIFY_INIT: &[u8] = b"COLO_USERSPACE_PROXY_INIT";
const NOTIFY_INIT_REPLY: &[u8] = b"COLO_COMPARE_GET_XEN_INIT";
const NOTIFY_FLUSH: &[u8] = b"COLO_CHECKPOINT";

pub(crate) struct Ends {
    pub primary: CharFrontend,
    pub secondary: CharFrontend,
    pub out: CharFrontend,
    pub notify: Option<CharFrontend>,
}

pub(crate) enum Command {
    /// A checkpoint begins: what the secondary says is acknowledged at once, until the flush.
    Acknowledge,
    Configure {
        config: CompareConfig,
        scan_ms: u64,
    },
    EndEpoch(oneshot::Sender<()>),
    Flush {
        primary_bytes: Option<u64>,
        buffered: bool,
        done: oneshot::Sender<()>,
    },
    Stats(oneshot::Sender<CompareStats>),
    Stop(oneshot::Sender<()>),
}

/// One input.
struct Source {
    stream: CharStream,
    reader: FrameReader,
    broken: bool,
    buf: Vec<u8>,
    /// What was read last.
    frames: Vec<Frame>,
}

impl Source {
    fn new(frontend: CharFrontend, vnet: bool) -> Self {
        Self {
            stream: frontend.into_stream(),
            reader: FrameReader::new(vnet),
            broken: false,
            buf: vec![0; READ_SIZE],
            frames: Vec::new(),
        }
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

    /// Reads once into `frames`; how many bytes, 0 if nothing was there.
    fn read(&mut self) -> usize {
        if self.broken {
            return 0;
        }
        let n = match self.stream.try_read(&mut self.buf) {
            Ok(n) if n > 0 => n,
            _ => return 0,
        };
        let frames = &mut self.frames;
        if self.reader.push(&self.buf[..n], |frame| frames.push(frame)).is_err() {
            report::error("serious error: oversized packet received,connection terminated.");
            self.broken = true;
        }
        n
    }

    /// Whether all that was read was whole frames, and nothing keeps more from being read.
    fn is_between_frames(&self) -> bool {
        !self.broken && self.reader.is_between_frames()
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

/// Both sides, and the desk between them.
struct Task {
    primary: Source,
    secondary: Source,
    intake: Arc<Intake>,
    notify_out: Option<CharWriter>,
    out: CharWriter,
    /// Someone outside asked for a flush.
    flush_asked: bool,
    /// The secondary has said all of this epoch: what it says now is for the next.
    epoch_ended: bool,
    /// The secondary will wait until what it has said is acknowledged.
    eager: bool,
}

pub(crate) async fn run(ends: Ends, settings: Settings, mut commands: mpsc::UnboundedReceiver<Command>) {
    let (vnet, mut scan_ms) = (settings.vnet, settings.scan_ms);
    let mut out = ends.out.into_output();
    let mut notify = ends.notify.map(|frontend| Source::new(frontend, false));
    let notify_out = notify.as_ref().map(|source| source.stream.writer());
    let news = Arc::new(Notify::new());
    let desk = Desk::new(settings, out.writer(), notify_out.clone(), news.clone());
    let mut task = Task {
        primary: Source::new(ends.primary, vnet),
        secondary: Source::new(ends.secondary, vnet),
        intake: Arc::new(Intake::new(desk)),
        notify_out,
        out: out.writer(),
        flush_asked: false,
        epoch_ended: false,
        eager: false,
    };
    let intake: Arc<dyn Any + Send + Sync> = task.intake.clone();
    let next = |scan_ms: u64| tokio::time::Instant::now() + Duration::from_millis(scan_ms);
    let mut next_scan = next(scan_ms);
    loop {
        let (outlook, now) = task.desk(|desk| (desk.outlook(), desk.now()));
        let want_primary = outlook.free && !task.primary.broken && outlook.primary_has_room;
        let want_secondary = outlook.free && !task.secondary.broken && !task.epoch_ended && outlook.secondary_has_room;
        let patience = outlook.deadline.map(|at| Duration::from_nanos((at - now).max(0) as u64));
        if want_primary && task.primary.is_between_frames() {
            task.primary.stream.offer_direct(&intake);
        }
        let out_writer = task.out.clone();
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(Command::Configure { config, scan_ms: new }) => {
                    task.desk(|desk| desk.engine.set_config(config));
                    scan_ms = new;
                    next_scan = next(scan_ms);
                }
                Some(Command::Acknowledge) => {
                    task.eager = true;
                    task.secondary.stream.acknowledge_now();
                }
                Some(Command::EndEpoch(done)) => {
                    task.end_epoch().await;
                    let _ = done.send(());
                }
                Some(Command::Flush { primary_bytes, buffered, done }) => {
                    task.desk(|desk| desk.set_buffered(buffered));
                    task.flush(primary_bytes).await;
                    let _ = done.send(());
                }
                Some(Command::Stats(done)) => {
                    let _ = done.send(task.desk(|desk| desk.engine.stats()));
                }
                Some(Command::Stop(done)) => {
                    task.stop().await;
                    drop((task, out, notify));
                    let _ = done.send(());
                    return;
                }
                None => return,
            },
            event = task.secondary.stream.event(want_secondary) => match event {
                StreamEvent::Readable => {
                    for _ in 0..READS_IN_A_ROW {
                        // More is there only if there was no room for it.
                        if task.read_secondary() < READ_SIZE {
                            break;
                        }
                    }
                }
                event => if !task.secondary.note(event) { return },
            },
            event = task.primary.stream.event(want_primary) => match event {
                StreamEvent::Readable => {
                    for _ in 0..READS_IN_A_ROW {
                        if task.read_primary(Desk::primary) < READ_SIZE {
                            break;
                        }
                    }
                }
                event => if !task.primary.note(event) { return },
            },
            event = out.event(false) => if event == StreamEvent::Detached { return },
            () = out_writer.progress(), if !outlook.free => task.desk(Desk::deliver),
            event = notify_event(&mut notify) => match event {
                StreamEvent::Readable => task.notified(notify.as_mut()),
                event => if notify.as_mut().is_some_and(|source| !source.note(event)) { return },
            },
            () = news.notified() => {}
            () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => task.desk(Desk::tick),
            () = tokio::time::sleep_until(next_scan) => {
                next_scan = next(scan_ms);
                task.desk(Desk::scan);
            }
        }
        if std::mem::take(&mut task.flush_asked) {
            task.flush(None).await;
        }
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

impl Drop for Task {
    fn drop(&mut self) {
        self.intake.desk.close();
    }
}

impl Task {
    /// Does something at the desk, after what other threads have brought there.
    fn desk<R>(&self, f: impl FnOnce(&mut Desk) -> R) -> R {
        self.intake.desk.with(f)
    }

    /// Brings what the secondary has said; how many bytes were there.
    fn read_secondary(&mut self) -> usize {
        let count = self.secondary.read();
        if count > 0 && self.eager {
            self.secondary.stream.acknowledge_now();
        }
        if !self.secondary.frames.is_empty() {
            let frames = &mut self.secondary.frames;
            self.intake.desk.with(|desk| desk.secondary(frames));
        }
        count
    }

    /// Brings what the primary has sent as bytes; how many were there. What was handed over directly came before it.
    fn read_primary(&mut self, bring: fn(&mut Desk, &mut Vec<Frame>)) -> usize {
        let count = self.primary.read();
        if !self.primary.frames.is_empty() {
            let frames = &mut self.primary.frames;
            self.intake.desk.with(|desk| bring(desk, frames));
        }
        count
    }

    /// See [`super::ColoCompare::end_epoch`].
    async fn end_epoch(&mut self) {
        self.secondary.catch_up().await;
        if std::mem::replace(&mut self.epoch_ended, true) {
            return;
        }
        // A secondary that has stopped comes to an end. One that goes on talking is not waited for, and not kept in memory.
        let limit = tokio::time::Instant::now() + BARRIER_LIMIT;
        let is_early = || tokio::time::Instant::now() < limit;
        while is_early() && self.desk(|desk| desk.outlook().secondary_has_room) && self.read_secondary() > 0 {}
        self.forget_secondary(limit);
    }

    /// Reads away what the secondary has said.
    fn forget_secondary(&mut self, limit: tokio::time::Instant) {
        while self.secondary.read() > 0 && tokio::time::Instant::now() < limit {
            self.secondary.frames.clear();
        }
        self.secondary.frames.clear();
    }

    /// See [`super::ColoCompare::flush`].
    async fn flush(&mut self, primary_bytes: Option<u64>) {
        self.eager = false;
        // The secondary's old words are about a guest that no longer exists. Its new ones may have come already.
        if !std::mem::take(&mut self.epoch_ended) {
            self.forget_secondary(tokio::time::Instant::now() + BARRIER_LIMIT);
            self.secondary.reader.discard_partial();
        }
        // What the primary had sent before it stopped belongs to the old epoch, wherever it is.
        self.primary.catch_up().await;
        let limit = tokio::time::Instant::now() + BARRIER_LIMIT;
        loop {
            while self.read_primary(Desk::take_primary) > 0 {}
            let stream = &mut self.primary.stream;
            let there = primary_bytes.is_none_or(|want| stream.received() >= want);
            if there || !stream.is_open() || tokio::time::Instant::now() >= limit {
                break;
            }
            if tokio::time::timeout_at(limit, stream.event(true)).await == Ok(StreamEvent::Detached) {
                break;
            }
        }
        self.desk(Desk::flush);
    }

    /// Lets everything go that is held, and waits until it has gone.
    async fn stop(&mut self) {
        self.intake.desk.close();
        self.primary.catch_up().await;
        while self.read_primary(Desk::take_primary) > 0 {}
        self.desk(Desk::flush);
        let all_gone = async {
            while !self.desk(|desk| desk.is_all_gone()) {
                self.out.progress().await;
                self.desk(Desk::deliver);
            }
        };
        let _ = tokio::time::timeout(STOP_LIMIT, all_gone).await;
    }

    fn notified(&mut self, notify: Option<&mut Source>) {
        let (Some(source), Some(out)) = (notify, &self.notify_out) else { return };
        source.read();
        for frame in source.frames.drain(..) {
            match &frame.data[..] {
                NOTIFY_INIT => notify_send(out, NOTIFY_INIT_REPLY),
                NOTIFY_FLUSH => self.flush_asked = true,
                _ => report::error("COLO compare got unsupported instruction"),
            }
        }
    }
}
