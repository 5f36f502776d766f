//! Where frames are compared: the engine and what it releases, for one thread at a time. The comparison's own thread brings the
//! secondary's frames and the clock; the primary's come from whichever thread has them, if it is one of this process.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use lockstep_chardev::CharWriter;
use lockstep_event::{Clock, Clocks};
use lockstep_util::report;
use parking_lot::RwLock;
use tokio::sync::Notify;

use super::{CheckpointNotifier, Need};
use crate::compare::{CompareConfig, CompareEngine, IdentityGate, Output};
use crate::filter::Inlet;
use crate::handover::{Handover, Worker};
use crate::packet::Frame;
use crate::wire;

/// Frames in one write.
const BATCH: usize = 256;
/// Asks whoever manages checkpoints from outside (Xen) for one.
const NOTIFY_CHECKPOINT: &[u8] = b"DO_CHECKPOINT";

/// How the desk is set up.
pub(crate) struct Settings {
    pub config: CompareConfig,
    pub scan_ms: u64,
    pub vnet: bool,
    pub gate: Arc<IdentityGate>,
    pub clocks: Clocks,
    pub notifier: Arc<RwLock<Option<CheckpointNotifier>>>,
}

/// The engine, and where its output goes.
pub(super) struct Desk {
    pub engine: CompareEngine,
    pub settings: Settings,
    out: CharWriter,
    notify_out: Option<CharWriter>,
    /// Released frames that the output has not taken.
    outgoing: VecDeque<Frame>,
    pub released: Output,
    lost: u64,
    /// The outlook has changed, by another thread than the comparison's own.
    news: Arc<Notify>,
    /// What is held asks for a checkpoint; and it has asked.
    buffered: bool,
    asked: bool,
}

/// What the comparison's thread goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// The output takes what is released.
    pub free: bool,
    pub primary_has_room: bool,
    pub secondary_has_room: bool,
    /// When the engine wants to be called, by [`Desk::now`].
    pub deadline: Option<i64>,
}

impl Outlook {
    /// Whether there is something to do earlier than was said before.
    fn is_news_after(&self, before: &Self) -> bool {
        let sooner = self.deadline.is_some_and(|at| before.deadline.is_none_or(|old| at < old));
        sooner || (self.secondary_has_room && !before.secondary_has_room) || self.free != before.free
    }
}

impl Desk {
    pub fn new(settings: Settings, out: CharWriter, notify_out: Option<CharWriter>, news: Arc<Notify>) -> Self {
        Self {
            engine: CompareEngine::new(settings.config, settings.gate.clone()),
            settings,
            out,
            notify_out,
            outgoing: VecDeque::new(),
            released: Output::default(),
            lost: 0,
            news,
            buffered: false,
            asked: false,
        }
    }

    pub fn now(&self) -> i64 {
        self.settings.clocks.now_ns(Clock::Realtime)
    }

    pub fn outlook(&self) -> Outlook {
        Outlook {
            free: self.outgoing.is_empty(),
            primary_has_room: self.engine.primary_has_room(),
            secondary_has_room: self.engine.secondary_has_room(),
            deadline: self.engine.next_deadline(),
        }
    }

    /// Frames of the primary's guest.
    pub fn primary(&mut self, frames: &mut Vec<Frame>) {
        self.take_primary(frames);
        self.deliver();
    }

    /// The same, before a flush: what it releases leaves with that.
    pub fn take_primary(&mut self, frames: &mut Vec<Frame>) {
        let now = self.now();
        frames.drain(..).for_each(|frame| self.engine.primary(frame, now, &mut self.released));
    }

    /// Frames of the secondary's guest.
    pub fn secondary(&mut self, frames: &mut Vec<Frame>) {
        let now = self.now();
        frames.drain(..).for_each(|frame| self.engine.secondary(frame, now, &mut self.released));
        self.deliver();
    }

    /// Does what is due, and sends what waits for the output.
    pub fn tick(&mut self) {
        self.engine.tick(self.now(), &mut self.released);
        self.deliver();
    }

    /// Looks for packets that wait for too long.
    pub fn scan(&mut self) {
        self.engine.scan(self.now(), &mut self.released);
        self.deliver();
    }

    /// Whether the secondary's guest stands from the next flush on, so that whatever is held asks for a checkpoint.
    pub fn set_buffered(&mut self, buffered: bool) {
        self.buffered = buffered;
    }

    /// Both guests are equal: releases what is held.
    pub fn flush(&mut self) {
        self.released.checkpoint = None;
        self.engine.flush(self.now(), &mut self.released);
        self.asked = false;
        self.deliver();
    }

    fn ask(&self, need: Need) {
        match &self.notify_out {
            Some(out) => notify_send(out, NOTIFY_CHECKPOINT),
            None => {
                let notifier = self.settings.notifier.read().clone();
                if let Some(notifier) = notifier {
                    notifier(need);
                }
            }
        }
    }

    /// Whether all that was released has been taken by the output's peer.
    pub fn is_all_gone(&self) -> bool {
        self.outgoing.is_empty() && self.out.queued() == 0
    }

    /// Sends what the engine released and asks for the checkpoint that it wants.
    pub fn deliver(&mut self) {
        if let Some(divergence) = self.released.checkpoint.take() {
            self.ask(Need::Divergence(divergence));
        }
        if self.buffered && !self.asked && self.engine.waits() {
            self.asked = true;
            self.ask(Need::Output);
        }
        if self.released.frames.is_empty() && self.outgoing.is_empty() {
            return;
        }
        let inlet = if self.outgoing.is_empty() { self.out.direct::<Inlet>() } else { None };
        if let Some(inlet) = inlet.filter(|inlet| inlet.suits(self.settings.vnet)) {
            inlet.take(std::mem::take(&mut self.released.frames));
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
}

impl Worker for Desk {
    type Item = Frame;

    fn work(&mut self, frames: &mut Vec<Frame>) {
        let before = self.outlook();
        self.primary(frames);
        if self.outlook().is_news_after(&before) {
            self.news.notify_one();
        }
    }

    fn has_room(&self) -> bool {
        self.outgoing.is_empty() && self.engine.primary_has_room()
    }
}

/// Where a redirector of this process hands over what the primary's guest sends, from its own thread: bytes, and a thread that
/// turns them into frames again, would only cost time. Offered on the comparison's input device.
pub(crate) struct Intake {
    pub(super) desk: Handover<Desk>,
    vnet: bool,
}

impl Intake {
    pub(super) fn new(desk: Desk) -> Self {
        Self { vnet: desk.settings.vnet, desk: Handover::new(desk) }
    }

    /// Whether frames mean the same at both ends of the device.
    pub fn suits(&self, vnet_support: bool) -> bool {
        self.vnet == vnet_support
    }

    /// Takes frames, in their order; false, and they stay where they are, while there is no room or once the comparison ends.
    pub fn take(&self, frames: &mut Vec<Frame>) -> bool {
        self.desk.bring(frames)
    }
}

/// A message for whoever manages checkpoints from outside.
pub(super) fn notify_send(out: &CharWriter, text: &[u8]) {
    let frame = Frame::new(text.to_vec());
    let (head, n) = wire::header(&frame, false);
    if let Err(e) = out.send(&[IoSlice::new(&head[..n]), IoSlice::new(text)]) {
        tracing::warn!("colo-compare: notification: {e}");
    }
}
