//! `filter-rewriter`: the engine of [`crate::rewriter`] in a chain.

use lockstep_event::{Clock, Clocks};
use parking_lot::Mutex;

use crate::netdev::Direction;
use crate::packet::Frame;
use crate::rewriter::{self, Rewriter, RewriterTable};

/// A rewriter.
pub(crate) struct RewriterFilter {
    engine: Mutex<Rewriter>,
    clocks: Clocks,
}

impl RewriterFilter {
    pub fn new(clocks: Clocks) -> Self {
        Self { engine: Mutex::default(), clocks }
    }

    pub fn rewrite(&self, mut frame: Frame, direction: Direction) -> Frame {
        let direction = match direction {
            Direction::Tx => rewriter::Direction::ToGuest,
            Direction::Rx => rewriter::Direction::FromGuest,
        };
        self.engine.lock().process(&mut frame, direction, self.clocks.now_ns(Clock::Realtime));
        frame
    }

    pub fn checkpoint(&self, table: &RewriterTable) {
        self.engine.lock().checkpoint(table);
    }

    /// See [`Rewriter::failover`].
    pub fn failover(&self) -> Vec<Frame> {
        self.engine.lock().failover()
    }

    pub fn table(&self) -> RewriterTable {
        self.engine.lock().table(self.clocks.now_ns(Clock::Realtime))
    }
}

impl std::fmt::Debug for RewriterFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RewriterFilter").field("connections", &self.engine.lock().len()).finish()
    }
}
