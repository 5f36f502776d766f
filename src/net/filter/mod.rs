//! Filters on a backend: each sees the packets of one direction, or both, and lets them pass, changes or takes them.

mod buffer;
mod dump;
mod mirror;
mod redirector;
mod rewriter;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_qapi::schema::NetFilterDirection;
use lockstep_util::{Result, bail};

pub(crate) use buffer::Buffer;
pub(crate) use dump::Dump;
pub(crate) use mirror::Mirror;
pub(crate) use redirector::{Inlet, InputCommand, Redirector, inject};
pub(crate) use rewriter::RewriterFilter;

use crate::netdev::{Direction, Netdev};
use crate::packet::Frame;

/// What a filter does with packets.
#[derive(Debug)]
pub(crate) enum Action {
    Mirror(Mirror),
    Redirector(Redirector),
    Rewriter(RewriterFilter),
    Buffer(Buffer),
    Dump(Dump),
}

/// A filter in a chain. Its place and direction are fixed; whether it is on may change.
#[derive(Debug)]
pub(crate) struct FilterNode {
    pub id: String,
    pub direction: NetFilterDirection,
    on: AtomicBool,
    pub action: Action,
}

impl FilterNode {
    pub fn new(id: &str, direction: NetFilterDirection, on: bool, action: Action) -> Arc<Self> {
        Arc::new(Self { id: id.to_owned(), direction, on: AtomicBool::new(on), action })
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    pub fn set_on(&self, on: bool, netdev: &Arc<Netdev>) {
        self.on.store(on, Ordering::Release);
        if let Action::Buffer(buffer) = &self.action
            && !on
        {
            buffer.release(self, netdev);
        }
    }

    /// Whether a packet of this direction is shown to the filter.
    pub fn handles(&self, direction: Direction) -> bool {
        self.is_on() && self.faces(direction)
    }

    pub fn faces(&self, direction: Direction) -> bool {
        match self.direction {
            NetFilterDirection::All => true,
            NetFilterDirection::Rx => direction == Direction::Rx,
            NetFilterDirection::Tx => direction == Direction::Tx,
        }
    }

    /// Shows packets that came at once to the filter; what is left goes on.
    pub fn receive_all(&self, frames: &mut Vec<Frame>, direction: Direction) {
        match &self.action {
            Action::Mirror(mirror) => return mirror.copy_all(frames),
            Action::Redirector(redirector) => return redirector.redirect_all(frames),
            _ => {}
        }
        *frames = frames.drain(..).filter_map(|frame| self.receive(frame, direction)).collect();
    }

    /// Shows a packet to the filter; what comes back goes on.
    pub fn receive(&self, frame: Frame, direction: Direction) -> Option<Frame> {
        match &self.action {
            Action::Mirror(mirror) => {
                mirror.copy(&frame);
                Some(frame)
            }
            Action::Redirector(redirector) => redirector.redirect(frame),
            Action::Rewriter(rewriter) => Some(rewriter.rewrite(frame, direction)),
            Action::Buffer(buffer) => {
                buffer.keep(frame, direction);
                None
            }
            Action::Dump(dump) => {
                dump.write(&frame);
                Some(frame)
            }
        }
    }

    /// Whether it brings packets to the guest from elsewhere.
    pub fn injects_to_guest(&self) -> bool {
        matches!(&self.action, Action::Redirector(r) if r.has_input()) && self.faces(Direction::Tx)
    }

    /// The type's name.
    pub fn type_name(&self) -> &'static str {
        match &self.action {
            Action::Mirror(_) => "filter-mirror",
            Action::Redirector(_) => "filter-redirector",
            Action::Rewriter(_) => "filter-rewriter",
            Action::Buffer(_) => "filter-buffer",
            Action::Dump(_) => "filter-dump",
        }
    }
}

/// Where a filter goes among those of its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    Head,
    Tail,
    /// Next to another filter: before it, or behind it.
    Beside {
        id: String,
        before: bool,
    },
}

impl Position {
    pub fn parse(text: &str, before: bool) -> Result<Self> {
        match text {
            "head" => Ok(Self::Head),
            "tail" => Ok(Self::Tail),
            _ => match text.strip_prefix("id=") {
                Some(id) if !id.is_empty() => Ok(Self::Beside { id: id.to_owned(), before }),
                _ => bail!("Parameter 'position' expects 'head', 'tail' or 'id=<id>'"),
            },
        }
    }

    /// The index at which a filter is inserted into a chain.
    pub fn index(&self, chain: &[Arc<FilterNode>]) -> Option<usize> {
        match self {
            Self::Head => Some(0),
            Self::Tail => Some(chain.len()),
            Self::Beside { id, before } => {
                let at = chain.iter().position(|node| node.id == *id)?;
                Some(if *before { at } else { at + 1 })
            }
        }
    }
}

/// Reads `on` or `off`.
pub(crate) fn parse_status(text: &str) -> Result<bool> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => bail!("Invalid value for netfilter status, should be 'on' or 'off'"),
    }
}
