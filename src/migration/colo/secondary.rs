//! The secondary's side of a pair.

use super::message::{Request, say};
use super::{CheckpointFigures, FEATURES, Failover, Message, Style, at, note_checkpoint, start_behind, tell_exit};
use crate::channel::Channel;
use crate::core::Core;
use crate::hooks::{ColoExitReason, ColoMode, StopReason};
use crate::incoming::{Arrived, Receiver, announce};
use crate::status::Status;
use crate::stream::Item;
use crate::worker::Worker;
use lockstep_util::{Result, bail};
use lockstep_vmstate::Prepared;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

/// The most that the devices of a checkpoint may take, in bytes.
const MAX_DEVICES: u64 = 64 << 20;

/// Goes on after the whole machine has arrived: takes checkpoints over until the pair comes apart, waits to be told that this side goes
/// on alone, and does.
pub(crate) async fn run(core: &Core, worker: &Worker<Receiver>, arrived: Arrived) -> Result<()> {
    core.colo.enter(ColoMode::Secondary);
    core.incoming.borrow_mut().waiting = false;
    let ahead = arrived.description.as_ref().and_then(|d| d["lockstep-colo"]["features"].as_array());
    let primary_runs_early = ahead.is_some_and(|features| features.iter().any(|f| f == "early-run"));
    let Err(e) = Pair { core, worker, primary_runs_early }.checkpoints(arrived).await;
    // The other side need not find out by itself.
    core.yank.pull();
    if !core.colo.is_failover_asked() {
        core.warn(&e);
        tell_exit(core, ColoMode::Secondary, ColoExitReason::Error);
        core.colo.failover_asked().await;
    }
    failover(core, worker).await;
    Ok(())
}

async fn failover(core: &Core, worker: &Worker<Receiver>) {
    core.colo.failover.set(Failover::Active);
    at(core, "secondary-failover").await;
    if let Err(e) = core.env.vm.stop(StopReason::Colo).await {
        core.warn(&e);
    }
    at(core, "secondary-failover-stopped").await;
    // The primary counts on a checkpoint that this side has said to have. Without it the machine is of two epochs.
    let whole = Pair { core, worker, primary_runs_early: false }.apply().await;
    at(core, "secondary-failover-applied").await;
    tell_exit(core, ColoMode::Secondary, ColoExitReason::Request);
    at(core, "secondary-failover-disks").await;
    if let Err(e) = core.env.disks.stop_all(true).await {
        core.warn(&e);
    }
    core.env.disks.gate_peer_writes(false);
    at(core, "secondary-failover-net").await;
    core.env.net.notify_failover();
    match whole {
        Ok(_) => {
            at(core, "secondary-failover-announce").await;
            announce(core);
            at(core, "secondary-failover-start").await;
            start_behind(core).await;
            at(core, "secondary-failover-end").await;
        }
        Err(e) => {
            core.warn(&e.prepend("The last checkpoint cannot be taken over, the guest stays stopped: "));
            core.env.vm.set_run_state("internal-error");
        }
    }
    // The host takes its time for this, so the guest runs first. But a migration may be asked for as soon as this one is seen to be
    // over, and logs by itself.
    let stop = |receiver: &mut Receiver| {
        receiver.ram.end_checkpoints();
        Ok(())
    };
    let _ = worker.run(stop).await;
    core.set_incoming_status(Status::Completed);
    core.colo.leave();
}

struct Pair<'a> {
    core: &'a Core,
    worker: &'a Worker<Receiver>,
    /// The primary does not wait until this side has loaded a checkpoint.
    primary_runs_early: bool,
}

/// A checkpoint that is whole and good, and has touched nothing; but for its RAM, which waits on the migration's thread.
pub(super) struct Checkpoint {
    devices: Vec<Prepared>,
    extension: Option<Value>,
    /// What came since the one before.
    bytes: u64,
    channel: Arc<Channel>,
    /// When it began to arrive, which is soon after the devices were saved.
    at: Instant,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({} devices)", self.devices.len())
    }
}

/// Loads the devices, which were saved at `at`.
fn load_devices(core: &Core, devices: Vec<Prepared>, at: Instant) {
    core.env.vm.loads_state_of(Some(at));
    devices.into_iter().for_each(Prepared::commit);
    core.env.vm.loads_state_of(None);
}

impl Checkpoint {
    /// Loads its devices, with no regard to time.
    pub(super) fn commit(self) {
        self.devices.into_iter().for_each(Prepared::commit);
    }

    /// How the guests go on after it.
    fn style(&self) -> Style {
        let buffered = self.extension.as_ref().is_some_and(|e| e["buffered"] == true);
        if buffered { Style::Buffered } else { Style::Lockstep }
    }
}

impl Pair<'_> {
    /// Takes checkpoints over until something fails.
    async fn checkpoints(&self, arrived: Arrived) -> Result<Infallible> {
        let core = self.core;
        // Logging begins first: what the devices themselves write to RAM must not outlive the next checkpoint.
        let begin = |r: &mut Receiver| {
            r.accounted = r.reader.received();
            r.ram.begin_checkpoints()
        };
        self.worker.run(begin).await?;
        load_devices(core, arrived.devices, arrived.at);
        core.env.vm.activate_disks().await?;
        core.env.steps.at("secondary-start").await?;
        core.env.disks.start_all(ColoMode::Secondary).await?;
        core.set_incoming_status(Status::Colo);
        let offer = arrived.description.as_ref().map(|d| &d["lockstep-colo"]).filter(|o| o.is_object());
        if let Some(connections) = offer.and_then(|o| o.get("connections")) {
            core.env.net.import_connections(connections)?;
        }
        let answer = offer.map(|_| json!({"features": FEATURES}));
        // What was mirrored while the machine was on its way here is in its state.
        core.env.net.discard_incoming().await;
        core.env.net.notify_checkpoint();
        core.env.vm.start().await;
        let ready = move |r: &mut Receiver| match answer {
            Some(answer) => r.say_with_extension(&answer, Message::CheckpointReady),
            None => r.say(Message::CheckpointReady),
        };
        self.worker.run(ready).await?;
        loop {
            core.env.steps.at("secondary-wait-request").await?;
            self.worker.run(Receiver::wait_for_checkpoint).await?;
            self.checkpoint().await?;
        }
    }

    async fn checkpoint(&self) -> Result<()> {
        let core = self.core;
        let (vm, net, disks) = (&core.env.vm, &core.env.net, &core.env.disks);
        core.env.steps.at("secondary-request").await?;
        net.checkpoint_begins();
        let stopped = Instant::now();
        vm.stop(StopReason::Colo).await?;
        net.drain_outgoing().await;
        core.env.steps.at("secondary-stopped").await?;
        let checkpoint = self
            .worker
            .run(|r| {
                r.say(Message::CheckpointReply)?;
                r.receive_checkpoint()
            })
            .await?;
        // From "received" on the primary counts on this side, so whatever can be refused is refused before.
        if let Some(connections) = checkpoint.extension.as_ref().and_then(|e| e.get("connections")) {
            net.import_connections(connections)?;
        }
        disks.error()?;
        self.still_together()?;
        net.discard_incoming().await;
        core.env.steps.at("secondary-validated").await?;
        disks.gate_peer_writes(true);
        // Straight from here: a change of threads would be part of the primary's pause. A word always finds room on the channel.
        say(&checkpoint.channel, Message::VmstateReceived)?;
        core.colo.behind.set(self.primary_runs_early.then(Instant::now));

        // A failover that is asked for from here on waits until the checkpoint is applied.
        let (bytes, style) = (checkpoint.bytes, checkpoint.style());
        core.colo.unapplied.replace(Some(checkpoint));
        core.env.steps.at("secondary-received").await?;
        let pages = self.apply().await?;
        core.env.steps.at("secondary-applied").await?;
        self.still_together()?;
        let say = self.worker.run(|r| r.say(Message::VmstateLoaded));
        match style {
            Style::Lockstep => tokio::join!(start_behind(core), say).1?,
            // It runs when a checkpoint says so, or when it is alone.
            Style::Buffered => say.await?,
        }
        core.colo.statistics.borrow_mut().go_on_in(style, Instant::now());
        let figures = CheckpointFigures { pause: stopped.elapsed(), bytes, pages, ..CheckpointFigures::default() };
        note_checkpoint(core, ColoMode::Secondary, figures);
        Ok(())
    }

    /// Makes the machine what the last checkpoint says, if that is still to be done. What fails can be tried again. Returns the number
    /// of pages.
    async fn apply(&self) -> Result<u64> {
        let core = self.core;
        let (net, disks) = (&core.env.net, &core.env.disks);
        if core.colo.unapplied.borrow().is_none() {
            return Ok(0);
        }
        // RAM on its thread, the disks meanwhile; devices when they can see both.
        let (pages, disks_done) = tokio::join!(self.worker.run(|r| r.ram.apply_checkpoint()), disks.checkpoint_all());
        let pages = pages?;
        disks_done?;
        core.env.steps.at("secondary-ram-applied").await?;
        disks.gate_peer_writes(false);
        let Some(checkpoint) = core.colo.unapplied.take() else { return Ok(pages) };
        load_devices(core, checkpoint.devices, checkpoint.at);
        net.notify_checkpoint();
        core.env.steps.at("secondary-devices-applied").await?;
        Ok(pages)
    }

    fn still_together(&self) -> Result<()> {
        if self.core.colo.is_failover_asked() {
            bail!("The primary was given up");
        }
        Ok(())
    }
}

impl Receiver {
    /// Waits until a checkpoint begins; pages that come ahead of it are put by.
    pub(super) fn wait_for_checkpoint(&mut self) -> Result<()> {
        while self.expect_request()? == Request::RamAhead {
            self.receive_ram()?;
        }
        Ok(())
    }

    /// Takes RAM in, into the copy.
    fn receive_ram(&mut self) -> Result<()> {
        self.parser.resume();
        self.staged.ram_only = true;
        self.read_stream()?;
        self.staged.ram_only = false;
        Ok(())
    }

    /// Takes a checkpoint in, RAM into the copy, devices into memory, and validates all of it.
    pub(super) fn receive_checkpoint(&mut self) -> Result<Checkpoint> {
        let extension = self.expect(Message::VmstateSend)?;
        let at = Instant::now();
        self.receive_ram()?;
        self.expect(Message::VmstateSize)?;
        let size = u64::from_be_bytes(self.reader.take_array()?);
        if size > MAX_DEVICES {
            bail!("The device state of a checkpoint is too long");
        }
        let mut bytes = std::mem::take(&mut self.device_bytes);
        self.reader.take_into(size as usize, &mut bytes)?;
        let validated = self.prepare_devices(&bytes);
        self.device_bytes = bytes;
        validated?;
        let devices = self.staged.take();
        let received = self.reader.received();
        let bytes = received - std::mem::replace(&mut self.accounted, received);
        Ok(Checkpoint { devices, extension, bytes, channel: self.channel.clone(), at })
    }

    fn prepare_devices(&mut self, bytes: &[u8]) -> Result<()> {
        self.parser.resume();
        let mut used = 0;
        while !self.parser.is_done() {
            match self.parser.next(&bytes[used..], &mut self.staged)? {
                Some((_, Item::Ram(_) | Item::Command(_))) => bail!("RAM among the device state of a checkpoint"),
                Some((len, _)) => used += len,
                None => bail!("The device state of a checkpoint ends early"),
            }
        }
        if used != bytes.len() {
            bail!("The device state of a checkpoint has a tail");
        }
        Ok(())
    }
}
