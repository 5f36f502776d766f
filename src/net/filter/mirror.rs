//! `filter-mirror`: copies packets to a character device and lets them pass.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep_chardev::CharWriter;
use lockstep_util::report;
use parking_lot::Mutex;

use crate::packet::Frame;
use crate::wire;

/// Bytes that are sent at once: what a tap device gives in a row. The queue of a peer that does not read takes a piece or
/// refuses it as a whole.
const PIECE: usize = 96 << 10;

/// With so many bytes queued, sources that can wait should: a frame that neither guest has heard is repeated for both, one that
/// only the other guest misses keeps the pair apart until it is repeated.
const HIGH_WATER: usize = 256 << 10;
/// How long they wait for a peer that takes nothing. It may be frozen, and whoever goes on alone must not depend on it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A mirror.
#[derive(Debug)]
pub(crate) struct Mirror {
    out: CharWriter,
    vnet_support: bool,
    lost: AtomicU64,
    /// The fewest bytes that were queued since sources wait, and since when.
    full: Mutex<Option<(usize, Instant)>>,
}

impl Mirror {
    pub fn new(out: CharWriter, vnet_support: bool) -> Self {
        Self { out, vnet_support, lost: AtomicU64::new(0), full: Mutex::new(None) }
    }

    pub fn writer(&self) -> &CharWriter {
        &self.out
    }

    /// Whether more frames should come: not while the other side takes them, but slowly.
    pub fn has_room(&self) -> bool {
        let queued = self.out.queued();
        let mut full = self.full.lock();
        if queued < HIGH_WATER {
            *full = None;
            return true;
        }
        match &mut *full {
            Some((least, since)) if queued >= *least => since.elapsed() >= PATIENCE,
            other => {
                *other = Some((queued, Instant::now()));
                false
            }
        }
    }

    /// Frames that the other side did not get. It will miss them like frames lost on a cable.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub fn copy(&self, frame: &Frame) {
        self.copy_all(std::slice::from_ref(frame));
    }

    /// Copies frames that came at once, as one piece if they fit into one.
    pub fn copy_all(&self, frames: &[Frame]) {
        send_all(&self.out, frames, self.vnet_support, |lost, e| complain(&self.lost, lost, "filter mirror", &e));
    }
}

/// Sends frames, as one piece if they fit into one; tells how many are lost and why.
pub(super) fn send_all(out: &CharWriter, frames: &[Frame], vnet_support: bool, mut failed: impl FnMut(u64, io::Error)) {
    let mut rest = frames;
    while !rest.is_empty() {
        let mut bytes = 0;
        let more = |frame: &&Frame| {
            bytes += frame.data.len();
            bytes <= PIECE
        };
        let (piece, later) = rest.split_at(rest.iter().take_while(more).count().max(1));
        if let Err(e) = send(out, piece, vnet_support) {
            failed(piece.len() as u64, e);
        }
        rest = later;
    }
}

/// Sends frames as one piece.
fn send(out: &CharWriter, frames: &[Frame], vnet_support: bool) -> io::Result<()> {
    match frames {
        [] => Ok(()),
        [frame] => {
            let (head, n) = wire::header(frame, vnet_support);
            out.send(&[IoSlice::new(&head[..n]), IoSlice::new(&frame.data)])
        }
        _ => {
            let heads: Vec<_> = frames.iter().map(|frame| wire::header(frame, vnet_support)).collect();
            let mut slices = Vec::with_capacity(2 * frames.len());
            for ((head, n), frame) in heads.iter().zip(frames) {
                slices.push(IoSlice::new(&head[..*n]));
                slices.push(IoSlice::new(&frame.data));
            }
            out.send(&slices)
        }
    }
}

/// Says that `more` frames are lost: at the first, and at every power of two, since it may be a flood.
pub(super) fn complain(lost: &AtomicU64, more: u64, who: &str, error: &io::Error) {
    let before = lost.fetch_add(more, Ordering::Relaxed);
    if before.checked_ilog2() != (before + more).checked_ilog2() {
        let why = match error.kind() {
            io::ErrorKind::NotConnected => "Operation not permitted".to_owned(),
            io::ErrorKind::WouldBlock => "Resource temporarily unavailable".to_owned(),
            _ => lockstep_util::errno_text(error),
        };
        report::error(format_args!("{who} send failed({why})"));
    }
}
