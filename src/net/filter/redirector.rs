//! `filter-redirector`: sends packets to a character device instead of on their way, and brings packets from one in.

use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use lockstep_chardev::{CharStream, CharWriter, StreamEvent};
use lockstep_util::report;

use super::mirror::{complain, send_all};
use super::{Action, FilterNode};
use crate::colo::Intake;
use crate::netdev::{Direction, Netdev};
use crate::packet::Frame;
use crate::wire::FrameReader;

/// Bytes read at a time.
const READ_SIZE: usize = 64 << 10;
/// The most bytes that are brought in at a failover: what may wait in the sockets of both hosts, and a queue between them.
const MAX_LAST: usize = 16 << 20;
/// How often a full queue to the card is looked at again.
const ROOM_PAUSE: Duration = Duration::from_millis(1);

/// A redirector.
#[derive(Debug)]
pub(crate) struct Redirector {
    out: Option<CharWriter>,
    has_input: bool,
    pub vnet_support: bool,
    lost: AtomicU64,
    /// The comparison behind the output was taken away.
    passing: AtomicBool,
}

impl Redirector {
    pub fn new(out: Option<CharWriter>, has_input: bool, vnet_support: bool) -> Self {
        Self { out, has_input, vnet_support, lost: AtomicU64::new(0), passing: AtomicBool::new(false) }
    }

    pub fn has_input(&self) -> bool {
        self.has_input
    }

    pub fn writer(&self) -> Option<&CharWriter> {
        self.out.as_ref()
    }

    /// Frames that the other side did not get.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether frames pass, because whoever compared them was taken away and nobody reads them any more. Redirected they
    /// would be lost, and their connections stand still for a retransmission time.
    pub fn set_passing(&self, passing: bool) {
        self.passing.store(passing, Ordering::Release);
    }

    pub fn redirect(&self, frame: Frame) -> Option<Frame> {
        let mut frames = vec![frame];
        self.redirect_all(&mut frames);
        frames.pop()
    }

    /// Redirects frames that came at once; what is left goes on.
    pub fn redirect_all(&self, frames: &mut Vec<Frame>) {
        let Some(out) = &self.out else { return };
        if frames.is_empty() || self.passing.load(Ordering::Acquire) {
            return;
        }
        let intake = out.direct::<Intake>().filter(|intake| intake.suits(self.vnet_support));
        if intake.is_some_and(|intake| intake.take(frames)) {
            return;
        }
        // What cannot be sent is lost: it must never go on, where nobody has compared it.
        send_all(out, frames, self.vnet_support, |lost, e| complain(&self.lost, lost, "filter redirector", &e));
        frames.clear();
    }
}

/// Where a comparison in this process puts what it releases, from its own thread: bytes, and a thread that turns them into
/// frames again, would only cost time. Offered on the redirector's input device.
pub(crate) struct Inlet {
    node: Weak<FilterNode>,
    netdev: Arc<Netdev>,
    vnet_support: bool,
}

impl Inlet {
    /// Whether frames mean the same at both ends of the device.
    pub fn suits(&self, vnet_support: bool) -> bool {
        self.vnet_support == vnet_support
    }

    /// Sends frames on their way to the network, behind the redirector.
    pub fn take(&self, frames: Vec<Frame>) {
        if let Some(node) = self.node.upgrade().filter(|node| node.is_on()) {
            self.netdev.pass_all_on(frames, Direction::Rx, &node);
        }
    }
}

/// The input side of a redirector, with its state between reads.
pub(crate) struct Input {
    stream: CharStream,
    reader: FrameReader,
    node: Weak<FilterNode>,
    netdev: Arc<Netdev>,
    broken: bool,
    /// What comes is of the next epoch: the filters behind this one do not know it yet.
    held: bool,
    /// The sender waits for the acknowledgement of what it has sent.
    eager: bool,
    buf: Vec<u8>,
}

/// What to do with an input, from outside its task.
pub(crate) enum InputCommand {
    /// A checkpoint begins, and the sender will wait until its frames are acknowledged: TCP does so at once until the release,
    /// instead of with what goes the other way, or later.
    Acknowledge,
    /// Read what has come and forget it, with what waits for the card; what comes later stays where it is.
    Discard(tokio::sync::oneshot::Sender<usize>),
    /// Go on reading.
    Release,
    /// A failover: bring in what has come, though the filter is off by now, and go on reading.
    BringLast,
    /// Read what has come, bring it in, and end.
    Finish(tokio::sync::oneshot::Sender<()>),
}

/// Brings packets from a character device in behind the filter, on the main context, until told to finish.
pub(crate) async fn inject(
    stream: CharStream,
    node: &Arc<FilterNode>,
    netdev: Arc<Netdev>,
    mut commands: tokio::sync::mpsc::UnboundedReceiver<InputCommand>,
) {
    let Action::Redirector(redirector) = &node.action else { return };
    let mut input = Input {
        stream,
        reader: FrameReader::new(redirector.vnet_support),
        node: Arc::downgrade(node),
        netdev,
        broken: false,
        held: false,
        eager: false,
        buf: vec![0; READ_SIZE],
    };
    let to_guest = node.faces(Direction::Tx);
    // Frames for the card wait where they are while it takes none.
    let inlet: Option<Arc<dyn Any + Send + Sync>> = (!to_guest).then(|| {
        let vnet_support = redirector.vnet_support;
        Arc::new(Inlet { node: input.node.clone(), netdev: input.netdev.clone(), vnet_support }) as _
    });
    loop {
        if let Some(inlet) = inlet.as_ref().filter(|_| !input.broken && input.reader.is_between_frames()) {
            input.stream.offer_direct(inlet);
        }
        // Only what is for the card has to wait for it; but while a secondary's guest stands still the primary's must not wait for it.
        let want = !input.broken && !input.held && (!to_guest || input.netdev.has_room() || input.netdev.stands());
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(InputCommand::Discard(done)) => {
                    let count = input.discard();
                    input.held = true;
                    let _ = done.send(count);
                }
                Some(InputCommand::Release) => (input.held, input.eager) = (false, false),
                Some(InputCommand::BringLast) => {
                    (input.held, input.eager) = (false, false);
                    input.bring_last();
                }
                Some(InputCommand::Acknowledge) => {
                    input.eager = true;
                    input.stream.acknowledge_now();
                }
                Some(InputCommand::Finish(done)) => {
                    while input.read_some() > 0 {}
                    let _ = done.send(());
                    return;
                }
                None => return,
            },
            event = input.stream.event(want) => match event {
                StreamEvent::Readable => {
                    // More is there only if there was no room for it.
                    if input.read_some() == input.buf.len() {
                        tokio::task::yield_now().await;
                    }
                }
                StreamEvent::Opened => {
                    input.reader.reset();
                    input.broken = false;
                }
                StreamEvent::Closed | StreamEvent::Break => {}
                StreamEvent::Detached => return,
            },
            () = tokio::time::sleep(ROOM_PAUSE), if !want && !input.broken && !input.held => {}
        }
    }
}

impl Input {
    /// Reads once; how much, 0 if nothing was there. Without the filter's being on, what was read is lost.
    fn read_some(&mut self) -> usize {
        let is_on = self.node.upgrade().is_some_and(|node| node.is_on());
        self.read_if(is_on)
    }

    /// Brings in what has come so far. A sender that never ends is not listened to for longer.
    fn bring_last(&mut self) {
        let mut left = MAX_LAST;
        while left > 0 {
            match self.read_if(true) {
                0 => return,
                n => left = left.saturating_sub(n),
            }
        }
    }

    /// Reads once, and brings in what it is if `is_on`; how much, 0 if nothing was there.
    fn read_if(&mut self, is_on: bool) -> usize {
        if self.broken {
            return 0;
        }
        let n = match self.stream.try_read(&mut self.buf) {
            Ok(n) if n > 0 => n,
            _ => return 0,
        };
        if self.eager {
            self.stream.acknowledge_now();
        }
        let Some(node) = self.node.upgrade() else { return 0 };
        let mut frames = Vec::new();
        if self.reader.push(&self.buf[..n], |frame| frames.push(frame)).is_err() {
            report::error("serious error: oversized packet received,connection terminated.");
            self.broken = true;
        }
        if frames.is_empty() || !is_on {
            return n;
        }
        let netdev = &self.netdev;
        match (node.faces(Direction::Rx), node.faces(Direction::Tx)) {
            (true, true) => {
                netdev.pass_all_on(frames.clone(), Direction::Rx, &node);
                netdev.pass_all_on(frames, Direction::Tx, &node);
            }
            (true, false) => netdev.pass_all_on(frames, Direction::Rx, &node),
            _ => netdev.pass_all_on(frames, Direction::Tx, &node),
        }
        n
    }

    fn discard(&mut self) -> usize {
        let mut count = self.netdev.discard_queued();
        loop {
            match self.stream.try_read(&mut self.buf) {
                Ok(n) if n > 0 => {
                    if self.reader.push(&self.buf[..n], |_| count += 1).is_err() {
                        self.broken = true;
                        return count;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                _ => break,
            }
        }
        self.reader.discard_partial();
        count
    }
}
