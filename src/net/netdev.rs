//! The data path of one network backend: its filters in order, the card on one side, the host on the other. Every thread
//! may send; nothing here waits.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::compare::IdentityGate;
use crate::filter::{Action, FilterNode};
use crate::packet::Frame;
use crate::queue::PacketQueue;
use crate::unheard::Unheard;

/// The shortest Ethernet frame without its checksum.
const MIN_FRAME: usize = 60;

/// Which way a packet goes, from the backend's point of view (as filters name it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The backend transmits: from the network to the guest.
    Tx,
    /// The backend receives: from the guest to the network.
    Rx,
}

/// What a network card does with frames.
pub trait NicReceiver: Send + Sync {
    /// Whether it takes a frame now. After false, it calls [`crate::NetPeer::flush_queued`] when it does.
    fn can_receive(&self) -> bool;
    /// Takes a frame; false keeps it in the queue until [`crate::NetPeer::flush_queued`].
    fn receive(&self, frame: &[u8]) -> bool;
    /// The cable was plugged in or pulled.
    fn set_link(&self, up: bool);
    /// What the card lets through, for `query-rx-filter`, if it can say.
    fn rx_filter(&self) -> Option<lockstep_qapi::schema::RxFilterInfo> {
        None
    }
}

/// Where frames leave to the host.
pub(crate) trait HostSink: Send + Sync {
    /// Sends a frame, or loses it as a cable would.
    fn send(&self, frame: &Frame);
}

/// What all backends of a machine share.
#[derive(Debug)]
pub(crate) struct World {
    /// Whether the machine runs: cards get no frames while it does not.
    pub running: watch::Sender<bool>,
    /// This machine is a COLO secondary: it neither hears nor says anything on the network by itself.
    pub secondary: AtomicBool,
    /// Whether this side may speak for the VM.
    pub gate: Arc<IdentityGate>,
}

/// One backend.
pub(crate) struct Netdev {
    pub id: String,
    pub world: Arc<World>,
    chain: RwLock<Arc<Vec<Arc<FilterNode>>>>,
    nic: RwLock<Option<Weak<dyn NicReceiver>>>,
    sink: RwLock<Option<Arc<dyn HostSink>>>,
    incoming: PacketQueue,
    /// The text of `info network`.
    pub info: Mutex<String>,
    pub link_down: AtomicBool,
    /// Frames that a COLO secondary, or a primary without a pair, kept off the wire; or that the former did not hear.
    pub silenced: AtomicU64,
    unheard: Mutex<Unheard>,
}

impl Netdev {
    pub fn new(id: &str, world: Arc<World>) -> Arc<Self> {
        Arc::new(Self {
            id: id.to_owned(),
            world,
            chain: RwLock::default(),
            nic: RwLock::default(),
            sink: RwLock::default(),
            incoming: PacketQueue::default(),
            info: Mutex::default(),
            link_down: AtomicBool::new(false),
            silenced: AtomicU64::new(0),
            unheard: Mutex::default(),
        })
    }

    pub fn set_nic(&self, nic: Option<Weak<dyn NicReceiver>>) {
        *self.nic.write() = nic;
        self.flush_queued();
    }

    pub fn set_sink(&self, sink: Option<Arc<dyn HostSink>>) {
        *self.sink.write() = sink;
    }

    pub fn chain(&self) -> Arc<Vec<Arc<FilterNode>>> {
        self.chain.read().clone()
    }

    pub fn set_chain(&self, chain: Vec<Arc<FilterNode>>) {
        *self.chain.write() = Arc::new(chain);
    }

    /// Sends a frame through the filters, from the end that `direction` starts at.
    pub fn enter(self: &Arc<Self>, frame: Frame, direction: Direction) {
        let chain = self.chain();
        self.walk(frame, direction, &chain, 0);
    }

    /// Sends frames that came at once through the filters. Each filter sees them in their order, as if one had followed the
    /// other, but may send them as one piece.
    pub fn enter_all(self: &Arc<Self>, frames: Vec<Frame>, direction: Direction) {
        let chain = self.chain();
        self.walk_all(frames, direction, &chain, 0);
    }

    fn walk_all(
        self: &Arc<Self>,
        mut frames: Vec<Frame>,
        direction: Direction,
        chain: &[Arc<FilterNode>],
        skip: usize,
    ) {
        let show = |node: &Arc<FilterNode>| {
            if node.handles(direction) && !frames.is_empty() {
                node.receive_all(&mut frames, direction);
            }
        };
        match direction {
            Direction::Tx => chain.iter().skip(skip).for_each(show),
            Direction::Rx => chain.iter().rev().skip(skip).for_each(show),
        }
        for frame in frames {
            match direction {
                Direction::Tx => self.to_nic(frame),
                Direction::Rx => self.to_host(&frame),
            }
        }
    }

    /// A frame from the backend's host side. A COLO secondary hears the network by the mirror alone.
    pub fn from_host(self: &Arc<Self>, data: Vec<u8>, vnet_len: usize) {
        let frame = Frame::with_vnet(padded(data, vnet_len), vnet_len);
        if self.is_silent() {
            self.silenced.fetch_add(1, Ordering::Relaxed);
            self.unheard.lock().push(frame);
            return;
        }
        self.enter(frame, Direction::Tx);
    }

    /// Frames from the backend's host side that came at once.
    pub fn all_from_host(self: &Arc<Self>, batch: &mut Vec<Vec<u8>>) {
        if batch.len() < 2 || self.is_silent() {
            batch.drain(..).for_each(|data| self.from_host(data, 0));
            return;
        }
        self.enter_all(batch.drain(..).map(|data| Frame::new(padded(data, 0))).collect(), Direction::Tx);
    }

    /// The secondary has taken over: its guest hears what came while it was silent.
    pub fn hear_late(self: &Arc<Self>) {
        let frames = self.unheard.lock().take();
        for frame in frames {
            self.enter(frame, Direction::Tx);
        }
    }

    /// There was a checkpoint: the primary has heard what came before.
    pub fn forget_unheard(&self) {
        self.unheard.lock().clear();
    }

    /// Sends a frame on behind the filter `after`.
    pub fn pass_on(self: &Arc<Self>, frame: Frame, direction: Direction, after: &FilterNode) {
        let chain = self.chain();
        if let Some(skip) = behind(after, &chain, direction) {
            self.walk(frame, direction, &chain, skip);
        }
    }

    /// Sends frames that came at once on behind the filter `after`.
    pub fn pass_all_on(self: &Arc<Self>, frames: Vec<Frame>, direction: Direction, after: &FilterNode) {
        let chain = self.chain();
        if let Some(skip) = behind(after, &chain, direction) {
            self.walk_all(frames, direction, &chain, skip);
        }
    }

    fn walk(self: &Arc<Self>, mut frame: Frame, direction: Direction, chain: &[Arc<FilterNode>], skip: usize) {
        for step in skip..chain.len() {
            let node = match direction {
                Direction::Tx => &chain[step],
                Direction::Rx => &chain[chain.len() - 1 - step],
            };
            if !node.handles(direction) {
                continue;
            }
            match node.receive(frame, direction) {
                Some(passed) => frame = passed,
                None => return,
            }
        }
        match direction {
            Direction::Tx => self.to_nic(frame),
            Direction::Rx => self.to_host(&frame),
        }
    }

    fn to_nic(&self, frame: Frame) {
        if self.link_down.load(Ordering::Relaxed) {
            return;
        }
        let Some(nic) = self.nic.read().as_ref().and_then(Weak::upgrade) else { return };
        let ready = || *self.world.running.borrow() && nic.can_receive();
        self.incoming.push(frame, ready, |frame| nic.receive(&frame.data[frame.vnet_len..]));
    }

    /// Delivers what waits for the card.
    pub fn flush_queued(&self) {
        let Some(nic) = self.nic.read().as_ref().and_then(Weak::upgrade) else { return };
        let ready = || *self.world.running.borrow() && nic.can_receive();
        self.incoming.pump(ready, |frame| nic.receive(&frame.data[frame.vnet_len..]));
    }

    fn to_host(&self, frame: &Frame) {
        if self.is_silent() || !self.world.gate.may_speak() {
            self.silenced.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.to_host_always(frame);
    }

    /// Past the filters and the secondary's silence.
    pub fn to_host_always(&self, frame: &Frame) {
        if self.link_down.load(Ordering::Relaxed) {
            return;
        }
        let sink = self.sink.read().clone();
        if let Some(sink) = sink {
            sink.send(frame);
        }
    }

    /// Whether a COLO secondary keeps this backend off the wire: one whose guest gets its packets from a mirror.
    pub fn is_silent(&self) -> bool {
        self.world.secondary.load(Ordering::Acquire) && self.chain.read().iter().any(|node| node.injects_to_guest())
    }

    /// Whether this is a secondary's backend whose guest does not run. What finds no room in its queue is lost then.
    pub fn stands(&self) -> bool {
        self.is_silent() && !*self.world.running.borrow()
    }

    /// Whether more frames for the card may be read from where they come from: the card takes them, and so do the mirrors.
    pub fn has_room(&self) -> bool {
        let takes = |node: &Arc<FilterNode>| match &node.action {
            Action::Mirror(mirror) => !node.handles(Direction::Tx) || mirror.has_room(),
            _ => true,
        };
        self.incoming.has_room() && self.chain.read().iter().all(takes)
    }

    /// Forgets frames that the card has not taken; how many there were.
    pub fn discard_queued(&self) -> usize {
        self.incoming.clear()
    }

    /// Copies of the frames that the card has not taken.
    pub fn queued_frames(&self) -> Vec<Frame> {
        self.incoming.snapshot()
    }

    /// Frames lost because the card did not take them for long.
    pub fn dropped(&self) -> u64 {
        self.incoming.dropped()
    }
}

/// How many filters a frame behind `after` has passed already.
fn behind(after: &FilterNode, chain: &[Arc<FilterNode>], direction: Direction) -> Option<usize> {
    let index = chain.iter().position(|node| node.id == after.id)?;
    Some(match direction {
        Direction::Tx => index + 1,
        Direction::Rx => chain.len() - index,
    })
}

fn padded(mut data: Vec<u8>, vnet_len: usize) -> Vec<u8> {
    if data.len() < MIN_FRAME + vnet_len {
        data.resize(MIN_FRAME + vnet_len, 0);
    }
    data
}

impl std::fmt::Debug for Netdev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netdev").field("id", &self.id).finish_non_exhaustive()
    }
}
