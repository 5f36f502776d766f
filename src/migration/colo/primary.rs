//! The primary's side of a pair.

use super::style::Chooser;
use super::{CheckpointCause, CheckpointFigures, Failover, Message, Style, at, note_checkpoint, tell_exit};
use crate::core::Core;
use crate::hooks::{ColoExitReason, ColoMode, StopReason};
use crate::outgoing::Sender;
use crate::status::{Counters, Status};
use crate::stream::{Command, StreamWriter, mark};
use crate::worker::Worker;
use lockstep_util::{Result, bail};
use lockstep_vmstate::Encoder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use serde_json::{Map, Value};
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Whether the other side of a connection is still there, as far as this host knows.
fn is_open(channel: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(channel, PollFlags::RDHUP)];
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(_) => !fds[0].revents().intersects(gone),
        Err(_) => true,
    }
}

/// Goes on after the whole machine was sent: makes checkpoints until the pair comes apart, waits to be told that this side goes on
/// alone, and does.
pub(crate) async fn run(core: &Core, worker: &Worker<Sender>) -> Result<()> {
    core.colo.enter(ColoMode::Primary);
    let Err(e) = Pair::new(core, worker).checkpoints().await;
    // The other side need not find out by itself.
    core.yank.pull();
    if !core.colo.is_failover_asked() {
        // Nobody knows yet which side goes on.
        core.env.net.hold_identity(false, None);
        core.warn(&e);
        tell_exit(core, ColoMode::Primary, ColoExitReason::Error);
        core.colo.failover_asked().await;
    }
    failover(core, worker).await;
    Ok(())
}

async fn failover(core: &Core, worker: &Worker<Sender>) {
    core.colo.failover.set(Failover::Active);
    at(core, "primary-failover").await;
    // A guest that the user has stopped, before or during the broken checkpoint, stays so.
    let state = core.env.vm.run_state();
    let stopped = match state.as_str() {
        "colo" => core.colo.stopped_by_user.take(),
        _ => (!core.env.vm.is_running()).then_some(state),
    };
    if let Err(e) = core.env.vm.stop(StopReason::Colo).await {
        core.warn(&e);
    }
    core.stop_clock();
    at(core, "primary-failover-stopped").await;
    tell_exit(core, ColoMode::Primary, ColoExitReason::Request);
    at(core, "primary-failover-disks").await;
    if let Err(e) = core.env.disks.stop_all(true).await {
        core.warn(&e);
    }
    at(core, "primary-failover-net").await;
    core.env.net.hold_identity(true, None);
    at(core, "primary-failover-start").await;
    match stopped {
        Some(state) => core.env.vm.set_run_state(&state),
        None => core.env.vm.start().await,
    }
    at(core, "primary-failover-end").await;
    // The host takes its time for this, so the guest runs first. But the next migration may be asked for as soon as this one is seen to
    // be over, and logs by itself.
    let stop = |sender: &mut Sender| {
        sender.ram.stop_logging();
        Ok(())
    };
    let _ = worker.run(stop).await;
    core.set_status(Status::Completed);
    core.colo.leave();
}

struct Pair<'a> {
    core: &'a Core,
    worker: &'a Worker<Sender>,
    /// The secondary wants to know of connections.
    connections: bool,
    /// The secondary takes pages while the guest runs.
    ram_ahead: bool,
    /// The secondary may still be loading when this side runs again.
    early_run: bool,
    /// The secondary's guest may stand still between checkpoints.
    may_buffer: bool,
    chooser: Chooser,
}

/// Fewer dirty bytes than this wait for the checkpoint.
const AHEAD_WORTH: u64 = if cfg!(test) { 16 << 12 } else { 1 << 20 };
/// How often pages are sent ahead of a checkpoint that nobody has asked for yet, at most.
pub(super) const AHEAD_EVERY: Duration = Duration::from_millis(200);
/// How many passes are made ahead of a checkpoint that was asked for; each has to be half of the one before.
const AHEAD_PASSES: u32 = 3;

impl<'a> Pair<'a> {
    fn new(core: &'a Core, worker: &'a Worker<Sender>) -> Self {
        let chooser = Chooser::new(Instant::now());
        let (connections, ram_ahead, early_run, may_buffer) = (false, false, false, false);
        Self { core, worker, connections, ram_ahead, early_run, may_buffer, chooser }
    }

    /// Makes checkpoints until something fails.
    async fn checkpoints(mut self) -> Result<Infallible> {
        let core = self.core;
        core.env.steps.at("primary-wait-ready").await?;
        // What the guest said before belongs to the state that was sent: nobody else could ever contradict it.
        core.env.net.drain_mirrors().await;
        core.env.net.release_held(Style::Lockstep).await;
        let (answer, fd, probe) = self
            .worker
            .run(|sender| {
                let answer = sender.expect_with_extension(Message::CheckpointReady)?;
                sender.accounted = sender.sent_so_far();
                Ok((answer, sender.channel.duplicate()?, sender.channel.duplicate()?))
            })
            .await?;
        core.env.net.hold_identity(true, Some(Box::new(move || is_open(&probe))));
        let features = answer.as_ref().and_then(|a| a["features"].as_array());
        let can = |what: &str| features.is_some_and(|f| f.iter().any(|f| f == what));
        (self.connections, self.ram_ahead) = (can("connections"), can("ram-ahead"));
        (self.early_run, self.may_buffer) = (can("early-run"), can("buffered") && can("early-run"));
        // SAFETY: an OwnedFd keeps its descriptor open, the same one, until it is dropped by the AsyncFd.
        let watch = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(std::io::Error::from)?;
        core.env.disks.start_all(ColoMode::Primary).await?;
        core.colo.trigger.rearm();
        core.env.vm.start().await;
        let mut last = Instant::now();
        loop {
            let cause = self.next_cause(last, &watch).await?;
            last = Instant::now();
            let wish = self.wish();
            let style = self.chooser.choose(last, wish);
            self.send_ahead().await?;
            self.checkpoint(cause, style).await?;
            self.chooser.made(last.elapsed(), cause.is_difference());
            if wish != self.wish() {
                // It was settled too early for what was asked for meanwhile.
                core.colo.trigger.parameter_changed();
            }
        }
    }

    /// How the guests have to go on after checkpoints, if that is not this side's choice.
    fn wish(&self) -> Option<Style> {
        match self.core.parameters.borrow().text("x-checkpoint-style") {
            _ if !self.may_buffer => Some(Style::Lockstep),
            "lockstep" => Some(Style::Lockstep),
            "buffered" => Some(Style::Buffered),
            _ => None,
        }
    }

    /// Lets the guest run again, if the user has not stopped it. Returns how long it stood.
    async fn go_on(&mut self, stopped: Instant) -> Duration {
        let vm = &self.core.env.vm;
        match self.core.colo.stopped_by_user.take() {
            Some(state) => vm.set_run_state(&state),
            None => vm.start().await,
        }
        let pause = stopped.elapsed();
        self.chooser.runs(Instant::now(), pause);
        pause
    }

    /// Waits until a checkpoint is due; fails when the peer is gone. Meanwhile pages are sent ahead, so that there are few left then.
    async fn next_cause(&self, last: Instant, watch: &AsyncFd<OwnedFd>) -> Result<CheckpointCause> {
        let delay = Duration::from_millis(self.core.parameters.borrow().number("x-checkpoint-delay"));
        let mut ahead = Instant::now() + AHEAD_EVERY;
        let due = self.chooser.trial().unwrap_or(last + delay).min(last + delay);
        let not_before = self.chooser.not_before();
        let requested = async {
            if let Some(at) = not_before.filter(|at| *at > Instant::now()) {
                tokio::time::sleep_until(at.into()).await;
            }
            self.core.colo.trigger.requested().await
        };
        tokio::pin!(requested);
        loop {
            tokio::select! {
                biased;
                () = self.core.colo.failover_asked() => bail!("The secondary was given up"),
                cause = &mut requested => return Ok(cause),
                e = peer_spoke(watch) => return e.map(|n: Infallible| match n {}),
                () = tokio::time::sleep_until(due.into()) => return Ok(CheckpointCause::Timer),
                () = tokio::time::sleep_until(ahead.into()), if self.ram_ahead => {
                    let began = Instant::now();
                    self.worker.run(Sender::send_ahead).await?;
                    // At most half of the time, so that a slow link is not kept busy with pages that change again.
                    ahead = Instant::now() + AHEAD_EVERY.max(began.elapsed());
                }
            }
        }
    }

    /// Sends most of what is dirty before the guest is stopped.
    async fn send_ahead(&self) -> Result<()> {
        let mut before = u64::MAX;
        for _ in 0..if self.ram_ahead { AHEAD_PASSES } else { 0 } {
            let sent = self.worker.run(Sender::send_ahead).await?;
            if sent == 0 || sent > before / 2 {
                break;
            }
            before = sent;
        }
        Ok(())
    }

    async fn checkpoint(&mut self, cause: CheckpointCause, style: Style) -> Result<()> {
        let core = self.core;
        let (vm, net, disks) = (&core.env.vm, &core.env.net, &core.env.disks);
        core.env.steps.at("primary-request").await?;
        net.checkpoint_begins();
        // A write that the secondary did not get would be missing from its disk for ever.
        disks.error()?;
        let ask = |sender: &mut Sender| {
            sender.say(Message::CheckpointRequest);
            sender.flush()?;
            sender.expect(Message::CheckpointReply)
        };
        self.worker.run(ask).await?;
        core.env.steps.at("primary-reply").await?;

        let by_user = (!vm.is_running()).then(|| vm.run_state());
        core.colo.stopped_by_user.replace(by_user);
        let stopped = Instant::now();
        vm.stop(StopReason::Colo).await?;
        core.env.steps.at("primary-stopped").await?;
        // The guest's last writes were on their way until now.
        disks.error()?;
        disks.checkpoint_all().await?;
        net.drain_mirrors().await;
        net.remirror_undelivered();
        let mut extension = Map::new();
        if let Some(connections) = net.export_connections().filter(|_| self.connections) {
            extension.insert("connections".into(), connections);
        }
        if style == Style::Buffered {
            extension.insert("buffered".into(), true.into());
        }
        core.env.steps.at("primary-send").await?;
        let sent = self.worker.run(move |sender| sender.send_checkpoint(extension)).await?;

        core.env.steps.at("primary-received").await?;
        // What was asked for until now is settled by this checkpoint; what is asked for from now on is not.
        let protocol = core.colo.trigger.protocol(cause);
        core.colo.trigger.rearm();
        let loaded = self.worker.run(|s| s.expect(Message::VmstateLoaded));
        net.release_held(style).await;
        core.env.steps.at("primary-released").await?;
        // Whatever the guest says now is held until the secondary, in the new epoch, has said it too, or has the next checkpoint.
        let mut pause = None;
        if self.early_run {
            pause = Some(self.go_on(stopped).await);
        }
        loaded.await?;
        core.env.steps.at("primary-loaded").await?;
        let pause = match pause {
            Some(pause) => pause,
            None => self.go_on(stopped).await,
        };
        let figures =
            CheckpointFigures { number: 0, cause: Some(cause), protocol, pause, bytes: sent.bytes, pages: sent.pages };
        core.colo.statistics.borrow_mut().go_on_in(style, Instant::now());
        note_checkpoint(core, ColoMode::Primary, figures);
        Ok(())
    }
}

/// Waits for anything from a peer that has nothing to say; that is its end, or a mistake.
async fn peer_spoke(watch: &AsyncFd<OwnedFd>) -> Result<Infallible> {
    loop {
        let mut ready = watch.readable().await?;
        match rustix::net::recv(watch.get_ref(), &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Err(crate::reader::io_error().prepend("Can't receive COLO message: ")),
            Ok(_) => bail!("Unexpected COLO message between checkpoints"),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => ready.clear_ready(),
            Err(e) => return Err(std::io::Error::from(e).into()),
        }
    }
}

/// What a checkpoint was, with what was sent ahead of it.
struct Sent {
    bytes: u64,
    pages: u64,
}

impl Sender {
    /// Sends what is dirty while the guest runs, if it is worth it. Returns how many bytes were dirty, or 0 if they stay.
    fn send_ahead(&mut self) -> Result<u64> {
        self.ram.sync();
        let dirty = self.ram.dirty_bytes();
        if dirty < AHEAD_WORTH {
            return Ok(0);
        }
        self.say_ram_ahead();
        self.send_ram(mark::PART)?;
        StreamWriter::new(&mut self.out, self.frames).eof();
        self.flush()?;
        Ok(dirty)
    }

    /// Sends RAM and devices and waits until the secondary has them. All that fits goes out in one write.
    fn send_checkpoint(&mut self, extension: Map<String, Value>) -> Result<Sent> {
        // Before RAM, for a device's last word may be a write to RAM.
        let mut devices = Encoder::with_buffer(std::mem::take(&mut self.devices));
        let mut writer = StreamWriter::new(&mut devices, self.frames);
        let saved = writer.devices(&self.states);
        writer.eof();
        self.devices = devices.into_bytes();
        saved?;

        if !extension.is_empty() {
            self.say_extension(&extension.into());
        }
        self.say(Message::VmstateSend);
        if self.frames.switchover_start {
            StreamWriter::new(&mut self.out, self.frames).command(Command::SwitchoverStart);
        }
        self.last_ram()?;
        StreamWriter::new(&mut self.out, self.frames).eof();
        self.say(Message::VmstateSize);
        self.out.put_u64(self.devices.len() as u64);
        self.out.put_bytes(&self.devices);
        self.flush()?;
        self.expect(Message::VmstateReceived)?;
        let now = self.sent_so_far();
        let before = std::mem::replace(&mut self.accounted, now);
        Ok(Sent { bytes: self.accounted.0 - before.0, pages: self.accounted.1 - before.1 })
    }

    /// Bytes and pages since the migration began.
    fn sent_so_far(&self) -> (u64, u64) {
        let get = Counters::get;
        (get(&self.counters.transferred), get(&self.counters.zero_pages) + get(&self.counters.normal_pages))
    }
}
