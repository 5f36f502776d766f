//! Sending a machine away: RAM while the guest runs, again what it wrote meanwhile, then the guest stops for the rest.

use crate::channel::{Channel, Opening, Yank};
use crate::colo;
use crate::core::{Core, LiveParameters};
use crate::hooks::StopReason;
use crate::ram::RamSender;
use crate::reader::Reader;
use crate::status::{Counters, Status};
use crate::stream::{Command, Frames, RAM_VERSION, StreamWriter, mark};
use crate::worker::Worker;
use lockstep_util::{Result, bail, err};
use lockstep_vmstate::{Encoder, Entry, StateRegistry};
use serde_json::Value;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much is gathered before it is written to the channel, in bytes.
const BATCH: usize = 512 << 10;
/// The stretch over which bandwidth is limited and measured.
const STRETCH: Duration = Duration::from_millis(100);

/// The sending thread's state.
pub(crate) struct Sender {
    pub(crate) channel: Arc<Channel>,
    pub(crate) reader: Reader,
    pub(crate) ram: RamSender,
    pub(crate) out: Encoder,
    pub(crate) counters: Arc<Counters>,
    pub(crate) frames: Frames,
    pub(crate) section: Entry,
    pub(crate) states: StateRegistry,
    /// Memory for the device state of a checkpoint.
    pub(crate) devices: Vec<u8>,
    /// Bytes and pages that the figures of checkpoints have counted.
    pub(crate) accounted: (u64, u64),
    machine: String,
    live: Arc<LiveParameters>,
    rate: Rate,
}

/// Runs a migration to its end, whatever that is.
pub(crate) async fn run(core: Rc<Core>, opening: Opening, yank: Yank) {
    let result = migrate(&core, opening).await;
    core.yank.unregister();
    drop(yank);
    let status = core.outgoing.borrow().status;
    match result {
        Ok(()) => {}
        Err(_) if status == Status::Cancelling => core.set_status(Status::Cancelled),
        Err(e) => {
            core.outgoing.borrow_mut().error = Some(e.to_string());
            core.set_status(Status::Failed);
            core.warn(&e);
        }
    }
}

async fn migrate(core: &Rc<Core>, opening: Opening) -> Result<()> {
    let channel = match opening {
        Opening::Done(channel) => channel,
        Opening::Connect(connect) => Worker::spawn("live_migration", ())?.run(move |()| connect.connect()).await?,
    };
    let colo = core.capabilities.get().is_on("x-colo");
    if colo && !channel.is_socket() {
        bail!("COLO needs a channel that carries both ways");
    }
    let worker = Worker::spawn("live_migration", Sender::new(core, channel)?)?;
    let result = send(core, &worker, colo).await;
    // With the thread ends the logging of the guest's writes: the next migration must not begin before.
    worker.end().await;
    result
}

async fn send(core: &Rc<Core>, worker: &Worker<Sender>, colo: bool) -> Result<()> {
    core.env.steps.at("precopy-setup").await?;
    worker.run(move |sender| sender.setup(colo)).await?;
    core.outgoing.borrow_mut().setup_ms = elapsed_ms(core);
    core.tell_pass();
    core.advance(Status::Active)?;
    loop {
        core.env.steps.at("precopy-iterate").await?;
        let running = core.env.vm.is_running();
        let pass = worker.run(move |sender| sender.iterate(running)).await?;
        if pass.synced {
            core.tell_pass();
        }
        if pass.converged {
            break;
        }
    }
    let was_running = core.env.vm.is_running();
    let old_state = core.env.vm.run_state();
    // A pair may still be cancelled when the whole machine was sent: a secondary does not go on alone without being told.
    let switched = switch_over(core, worker, colo).await;
    match switched.and_then(|()| if colo { core.advance(Status::Colo) } else { Ok(()) }) {
        Ok(()) if colo => colo::primary::run(core, worker).await,
        Ok(()) => {
            let finish = |sender: &mut Sender| {
                sender.ram.stop_logging();
                Ok(sender.channel.finish()?)
            };
            worker.run(finish).await.inspect_err(|_| {
                // The receiver may have all it needs: the images are not taken back.
                core.env.vm.set_run_state("paused");
            })?;
            core.stop_clock();
            core.env.vm.set_run_state("postmigrate");
            core.set_status(Status::Completed);
            Ok(())
        }
        Err(e) => {
            take_back(core, was_running, &old_state).await;
            Err(e)
        }
    }
}

/// Stops the guest and sends the rest.
async fn switch_over(core: &Rc<Core>, worker: &Worker<Sender>, colo: bool) -> Result<()> {
    let stopped = Instant::now();
    core.env.global_state.store(&core.env.vm.run_state());
    let reason = if colo { StopReason::Colo } else { StopReason::Migration };
    core.env.vm.stop(reason).await?;
    if core.capabilities.get().is_on("pause-before-switchover") {
        core.advance(Status::PreSwitchover)?;
        core.go_on.notified().await;
    }
    core.advance(Status::Device)?;
    core.env.steps.at("precopy-device").await?;
    if !colo {
        core.env.vm.inactivate_disks().await?;
    }
    let extra = if colo { colo::advertisement(core) } else { None };
    worker.run(move |sender| sender.finish(extra)).await?;
    core.tell_pass();
    let mut side = core.outgoing.borrow_mut();
    side.downtime_ms = Some(stopped.elapsed().as_millis() as u64);
    Ok(())
}

/// The receiver does not have the guest: it goes on here as it was.
async fn take_back(core: &Rc<Core>, was_running: bool, old_state: &str) {
    if let Err(e) = core.env.vm.activate_disks().await {
        core.warn(&e);
        core.env.vm.set_run_state("paused");
        return;
    }
    match was_running {
        true => core.env.vm.start().await,
        false => core.env.vm.set_run_state(old_state),
    }
}

fn elapsed_ms(core: &Core) -> u64 {
    core.outgoing.borrow().started.map_or(0, |s| s.elapsed().as_millis() as u64)
}

/// What a round of sending came to.
pub(crate) struct Pass {
    /// The dirty log was read.
    synced: bool,
    /// What is left fits into the permitted downtime.
    converged: bool,
}

impl Sender {
    fn new(core: &Core, channel: Arc<Channel>) -> Result<Self> {
        let ram = RamSender::start(&core.env.ram)?;
        Counters::set(&core.counters.total, ram.table().total());
        Counters::set(&core.counters.remaining, ram.dirty_bytes());
        Ok(Self {
            reader: Reader::new(channel.clone()),
            channel,
            ram,
            out: Encoder::new(),
            counters: core.counters.clone(),
            frames: core.env.frames,
            section: core.ram_section()?,
            states: core.env.states.clone(),
            devices: Vec::new(),
            accounted: (0, 0),
            machine: core.env.machine.clone(),
            live: core.live.clone(),
            rate: Rate::new(),
        })
    }

    /// Writes what was gathered.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let len = self.out.len();
        self.channel.write_all(&[self.out.bytes()])?;
        self.out.clear();
        Counters::add(&self.counters.transferred, len as u64);
        Ok(())
    }

    fn writer(&mut self) -> StreamWriter<'_> {
        StreamWriter::new(&mut self.out, self.frames)
    }

    fn setup(&mut self, colo: bool) -> Result<()> {
        let (section, machine) = (self.section.clone(), self.machine.clone());
        let mut writer = self.writer();
        writer.header(&machine);
        if colo {
            writer.command(Command::EnableColo);
        }
        writer.begin(mark::START, &section, RAM_VERSION);
        self.ram.setup(self.out.buffer_mut());
        self.writer().footer(section.id);
        self.ram.sync();
        Counters::add(&self.counters.syncs, 1);
        self.flush().map_err(|e| e.prepend("ram_save_setup failed: "))
    }

    /// Sends dirty pages for a stretch.
    fn iterate(&mut self, guest_runs: bool) -> Result<Pass> {
        let id = self.section.id;
        let until = Instant::now() + STRETCH;
        loop {
            self.writer().part(mark::PART, id);
            self.ram.begin_part();
            let done = self.ram.encode(self.out.buffer_mut(), BATCH, &self.counters)?;
            self.ram.end_part(self.out.buffer_mut());
            self.writer().footer(id);
            let len = self.out.len() as u64;
            self.flush()?;
            self.rate.sent(len, Counters::get(&self.live.max_bandwidth), &self.channel)?;
            let left = self.ram.dirty_bytes();
            Counters::set(&self.counters.remaining, left);
            if done || left <= self.permitted() {
                return self.next_pass(guest_runs);
            }
            if Instant::now() >= until {
                return Ok(Pass { synced: false, converged: false });
            }
        }
    }

    fn next_pass(&mut self, guest_runs: bool) -> Result<Pass> {
        if !guest_runs {
            return Ok(Pass { synced: false, converged: true });
        }
        let since = self.rate.last_sync.replace(Instant::now()).map(|at| at.elapsed());
        let fresh = self.ram.sync();
        Counters::add(&self.counters.syncs, 1);
        if let Some(seconds) = since.map(|s| s.as_secs_f64()).filter(|s| *s > 0.001) {
            Counters::set(&self.counters.dirty_rate, (fresh as f64 / seconds) as u64);
        }
        let left = self.ram.dirty_bytes();
        Counters::set(&self.counters.remaining, left);
        let bandwidth = self.rate.bytes_per_second();
        Counters::set(&self.counters.bits_per_second, bandwidth * 8);
        Counters::set(&self.counters.pages_per_second, bandwidth / 4096);
        Counters::set(&self.counters.expected_downtime, left * 1000 / bandwidth.max(1));
        Ok(Pass { synced: true, converged: left <= self.permitted() })
    }

    /// How many bytes can be sent in the permitted downtime.
    fn permitted(&self) -> u64 {
        let bandwidth = match Counters::get(&self.live.switchover_bandwidth) {
            0 => self.rate.bytes_per_second(),
            given => given,
        };
        bandwidth.saturating_mul(Counters::get(&self.live.downtime_limit)) / 1000
    }

    /// Sends all that is left of RAM as the section's last part.
    pub(crate) fn last_ram(&mut self) -> Result<()> {
        self.ram.sync();
        Counters::add(&self.counters.syncs, 1);
        self.send_ram(mark::END)?;
        Counters::set(&self.counters.remaining, 0);
        Ok(())
    }

    /// Sends all pages known to be dirty as a part of the section; the last of it, less than a batch, is gathered and not yet written.
    pub(crate) fn send_ram(&mut self, mark: u8) -> Result<()> {
        let id = self.section.id;
        self.writer().part(mark, id);
        self.ram.begin_part();
        while !self.ram.encode(self.out.buffer_mut(), BATCH, &self.counters)? {
            self.flush()?;
        }
        self.ram.end_part(self.out.buffer_mut());
        self.writer().footer(id);
        Ok(())
    }

    /// The guest stands still: the rest of RAM, the devices, the end.
    fn finish(&mut self, extra: Option<Value>) -> Result<()> {
        let before = Counters::get(&self.counters.transferred);
        if self.frames.switchover_start {
            self.writer().command(Command::SwitchoverStart);
        }
        self.last_ram()?;
        self.flush()?;
        let mut devices = if self.frames.description { Encoder::describing() } else { Encoder::new() };
        let mut writer = StreamWriter::new(&mut devices, self.frames);
        let descriptions = writer.devices(&self.states)?;
        writer.eof();
        writer.description(&self.machine, descriptions, extra);
        std::mem::swap(&mut self.out, &mut devices);
        self.flush()?;
        // The describing one is not wanted any more.
        self.out = devices;
        self.out.clear();
        let after = Counters::get(&self.counters.transferred);
        Counters::set(&self.counters.downtime_bytes, after - before);
        Counters::set(&self.counters.bits_per_second, self.rate.bytes_per_second() * 8);
        Ok(())
    }
}

/// Limits and measures the bandwidth.
struct Rate {
    started: Instant,
    sent: u64,
    /// Bytes a second over the last whole stretch.
    measured: u64,
    total: u64,
    since: Instant,
    last_sync: Option<Instant>,
}

impl Rate {
    fn new() -> Self {
        let now = Instant::now();
        Self { started: now, sent: 0, measured: 0, total: 0, since: now, last_sync: None }
    }

    fn bytes_per_second(&self) -> u64 {
        match self.measured {
            0 => (self.total as f64 / self.since.elapsed().as_secs_f64().max(1e-6)) as u64,
            measured => measured,
        }
    }

    /// Notes that so many bytes were sent, and waits if that was more than may be.
    fn sent(&mut self, len: u64, limit: u64, channel: &Channel) -> Result<()> {
        self.sent += len;
        self.total += len;
        let share = (limit as f64 * STRETCH.as_secs_f64()) as u64;
        if limit != 0 && self.sent >= share.max(1) {
            // What goes over the share of one stretch is taken from the next ones.
            let over = Duration::from_secs_f64(self.sent as f64 / limit as f64);
            let deadline = self.started + over.min(Duration::from_secs(3600));
            while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
                if channel.yank().is_pulled() {
                    return Err(err!("Migration was cancelled"));
                }
                std::thread::sleep(left.min(Duration::from_millis(50)));
            }
        }
        let elapsed = self.started.elapsed();
        if elapsed >= STRETCH {
            self.measured = (self.sent as f64 / elapsed.as_secs_f64()) as u64;
            (self.started, self.sent) = (Instant::now(), 0);
        }
        Ok(())
    }
}
