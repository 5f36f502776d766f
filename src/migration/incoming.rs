//! Receiving a machine.

use crate::channel::{Channel, Incoming, Yank};
use crate::colo;
use crate::core::Core;
use crate::hooks::AnnounceSchedule;
use crate::ram::RamReceiver;
use crate::reader::Reader;
use crate::status::Status;
use crate::stream::{Command, DeviceLoader, Frames, Item, SectionHeader, StreamParser};
use crate::worker::Worker;
use lockstep_memory::RamList;
use lockstep_util::{Result, bail};
use lockstep_vmstate::{Decoder, LoadError, Prepared, StateRegistry};
use serde_json::Value;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// The receiving thread's state.
pub(crate) struct Receiver {
    pub(crate) channel: Arc<Channel>,
    pub(crate) reader: Reader,
    pub(crate) parser: StreamParser,
    pub(crate) ram: RamReceiver,
    pub(crate) staged: Staged,
    /// Memory for the device state of a checkpoint.
    pub(crate) device_bytes: Vec<u8>,
    /// Bytes that the figures of checkpoints have counted.
    pub(crate) accounted: u64,
    list: RamList,
    /// `x-colo` is on here.
    may_colo: bool,
    colo: bool,
    /// The sender waits for a last word.
    return_path: bool,
}

/// Device state that was validated and waits for the rest.
pub(crate) struct Staged {
    states: StateRegistry,
    prepared: Vec<Prepared>,
    /// The sections of these, each of which comes once, so that a sender cannot make this grow for ever.
    loaded: HashSet<u32>,
    /// Nothing but RAM may come.
    pub(crate) ram_only: bool,
}

impl Staged {
    fn new(states: StateRegistry) -> Self {
        Self { states, prepared: Vec::new(), loaded: HashSet::new(), ram_only: false }
    }

    /// What has come, all of which is good.
    pub(crate) fn take(&mut self) -> Vec<Prepared> {
        self.loaded.clear();
        std::mem::take(&mut self.prepared)
    }
}

impl DeviceLoader for Staged {
    fn load(&mut self, section: &SectionHeader, input: &mut Decoder<'_>) -> Result<(), LoadError> {
        if self.ram_only {
            return Err(LoadError::invalid("Device state among the RAM of a checkpoint"));
        }
        let id = self.states.find(&section.name, section.instance).map(|entry| entry.id);
        if id.is_some_and(|id| self.loaded.contains(&id)) {
            let (name, instance) = (&section.name, section.instance);
            return Err(LoadError::Invalid(format!(
                "The state of instance {instance:#x} of device '{name}' came twice"
            )));
        }
        let prepared = self.states.prepare(&section.name, section.instance, section.version, input);
        let prepared = prepared.map_err(|e| match e {
            LoadError::Invalid(why) => LoadError::Invalid(format!(
                "error while loading state for instance {:#x} of device '{}': {why}",
                section.instance, section.name
            )),
            e => e,
        })?;
        self.prepared.push(prepared);
        self.loaded.extend(id);
        Ok(())
    }
}

/// A machine that has arrived.
pub(crate) struct Arrived {
    pub(crate) devices: Vec<Prepared>,
    /// It is to be a secondary.
    pub(crate) colo: bool,
    /// What the sender says of itself beyond the format.
    pub(crate) description: Option<Value>,
    /// When all of it was here, which is soon after the devices were saved.
    pub(crate) at: Instant,
}

/// Waits for the machine and brings it to life.
pub(crate) async fn run(core: Rc<Core>, end: Incoming, yank: Yank) {
    let result = receive(&core, end).await;
    core.yank.unregister();
    drop(yank);
    core.incoming.borrow_mut().address = None;
    let Err(e) = result else { return };
    {
        let mut incoming = core.incoming.borrow_mut();
        incoming.error = Some(e.to_string());
    }
    core.set_incoming_status(Status::Failed);
    let exit = core.incoming.borrow().exit_on_error;
    match exit {
        true => core.env.vm.incoming_failed(&e),
        false => core.warn(&e),
    }
}

async fn receive(core: &Rc<Core>, end: Incoming) -> Result<()> {
    let channel = match end {
        Incoming::Open(channel) => channel,
        Incoming::Listening(listener) => Worker::spawn("mig/dst/listen", ())?.run(move |()| listener.accept()).await?,
    };
    core.set_incoming_status(Status::Active);
    let worker = Worker::spawn("mig/dst/main", Receiver::new(core, channel))?;
    let result = take_in(core, &worker).await;
    // With the thread goes a secondary's copy of RAM, and the logging of the guest's writes.
    worker.end().await;
    result
}

async fn take_in(core: &Rc<Core>, worker: &Worker<Receiver>) -> Result<()> {
    core.env.global_state.forget();
    let arrived = worker.run(Receiver::load).await?;
    core.env.steps.at("incoming-loaded").await?;
    if arrived.colo {
        return colo::secondary::run(core, worker, arrived).await;
    }
    arrived.devices.into_iter().for_each(Prepared::commit);
    let target = core.env.global_state.received().unwrap_or_else(|| "running".to_owned());
    let live = matches!(target.as_str(), "running" | "suspended");
    if live || !core.capabilities.get().is_on("late-block-activate") {
        core.env.vm.activate_disks().await?;
    }
    announce(core);
    core.incoming.borrow_mut().waiting = false;
    match (live, core.env.vm.autostart()) {
        (true, true) => core.env.vm.start().await,
        (true, false) => core.env.vm.set_run_state("paused"),
        (false, _) => core.env.vm.set_run_state(&target),
    }
    core.set_incoming_status(Status::Completed);
    Ok(())
}

/// Tells the network where the guest is now.
pub(crate) fn announce(core: &Core) {
    let parameters = core.parameters.borrow();
    core.env.vm.announce(AnnounceSchedule {
        initial: parameters.number("announce-initial"),
        max: parameters.number("announce-max"),
        rounds: parameters.number("announce-rounds"),
        step: parameters.number("announce-step"),
    });
}

impl Receiver {
    fn new(core: &Core, channel: Arc<Channel>) -> Self {
        let may_colo = core.capabilities.get().is_on("x-colo");
        Self::with(channel, &core.env.machine, core.env.frames, &core.env.ram, &core.env.states, may_colo)
    }

    pub(crate) fn with(
        channel: Arc<Channel>,
        machine: &str,
        frames: Frames,
        list: &RamList,
        states: &StateRegistry,
        may_colo: bool,
    ) -> Self {
        let ram = RamReceiver::new(list);
        Self {
            reader: Reader::new(channel.clone()),
            channel,
            parser: StreamParser::new(machine, ram.table().clone(), frames),
            ram,
            staged: Staged::new(states.clone()),
            device_bytes: Vec::new(),
            accounted: 0,
            list: list.clone(),
            may_colo,
            colo: false,
            return_path: false,
        }
    }

    /// Takes a whole stream in.
    pub(crate) fn load(&mut self) -> Result<Arrived> {
        self.read_stream()?;
        if self.return_path && !self.colo {
            return_path_message(&self.channel, SHUT, 0)?;
        }
        let description = match self.parser.take_description() {
            // A primary's connections stand there: without them a failover would reset them.
            Err(e) if self.colo => return Err(e),
            description => description.ok().flatten(),
        };
        Ok(Arrived { devices: self.staged.take(), colo: self.colo, description, at: Instant::now() })
    }

    /// Takes sections in until the stream (or the part of it that the parser was told of) is over.
    pub(crate) fn read_stream(&mut self) -> Result<()> {
        while !self.parser.is_done() {
            let mut used = 0;
            let input = self.reader.available();
            while !self.parser.is_done() {
                let Some((len, item)) = self.parser.next(&input[used..], &mut self.staged)? else { break };
                used += len;
                match item {
                    Item::Ram(record) => self.ram.take(&record)?,
                    Item::Command(Command::EnableColo) => {
                        if !self.may_colo {
                            bail!("ENABLE_COLO command come in migration stream, but x-colo capability is not set");
                        }
                        if !std::mem::replace(&mut self.colo, true) {
                            self.ram.enable_cache(&self.list)?;
                        }
                    }
                    Item::Command(Command::OpenReturnPath) => self.return_path = true,
                    Item::Command(Command::Ping(value)) => return_path_message(&self.channel, PONG, value)?,
                    Item::Command(Command::Other(number)) => {
                        bail!("Postcopy command {number:#x} received, but postcopy is not enabled")
                    }
                    _ => {}
                }
            }
            self.reader.consume(used);
            if !self.parser.is_done() {
                self.reader.fill()?;
            }
        }
        Ok(())
    }
}

/// Types of messages on the return path.
const SHUT: u16 = 1;
const PONG: u16 = 2;

/// A type and a length in two bytes each, and a value.
fn return_path_message(channel: &Channel, kind: u16, value: u32) -> Result<()> {
    let mut message = [0; 8];
    message[..2].copy_from_slice(&kind.to_be_bytes());
    message[2..4].copy_from_slice(&4_u16.to_be_bytes());
    message[4..].copy_from_slice(&value.to_be_bytes());
    Ok(channel.write_all(&[&message])?)
}
