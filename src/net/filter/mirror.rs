//! `filter-mirror`: copies packets to a character device and lets them pass.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_chardev::CharWriter;
use lockstep_util::report;

use crate::packet::Frame;
use crate::wire;

/// A mirror.
#[derive(Debug)]
pub(crate) struct Mirror {
    out: CharWriter,
    vnet_support: bool,
    lost: AtomicU64,
}

impl Mirror {
    pub fn new(out: CharWriter, vnet_support: bool) -> Self {
        Self { out, vnet_support, lost: AtomicU64::new(0) }
    }

    pub fn writer(&self) -> &CharWriter {
        &self.out
    }

    /// Frames that the other side did not get. It will miss them like frames lost on a cable.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub fn copy(&self, frame: &Frame) {
        if let Err(e) = send(&self.out, frame, self.vnet_support) {
            complain(&self.lost, "filter mirror", &e);
        }
    }
}

/// Sends a frame as one piece.
pub(super) fn send(out: &CharWriter, frame: &Frame, vnet_support: bool) -> io::Result<()> {
    if frame.data.is_empty() {
        return Ok(());
    }
    let (head, n) = wire::header(frame, vnet_support);
    out.send(&[IoSlice::new(&head[..n]), IoSlice::new(&frame.data)])
}

/// Says that frames are lost: at the first, and at every power of two, since it may be a flood.
pub(super) fn complain(lost: &AtomicU64, who: &str, error: &io::Error) {
    let count = lost.fetch_add(1, Ordering::Relaxed) + 1;
    if count.is_power_of_two() {
        let why = match error.kind() {
            io::ErrorKind::NotConnected => "Operation not permitted".to_owned(),
            io::ErrorKind::WouldBlock => "Resource temporarily unavailable".to_owned(),
            _ => lockstep_util::errno_text(error),
        };
        report::error(format_args!("{who} send failed({why})"));
    }
}
