//! `-p`: how far a command is, on one line.

use std::io::Write;

/// A progress line; prints nothing unless wanted.
pub struct Progress {
    wanted: bool,
    total: u64,
    done: u64,
    shown: f64,
}

impl Progress {
    /// For `total` bytes of work.
    pub fn new(wanted: bool, total: u64) -> Self {
        let progress = Self { wanted, total, done: 0, shown: 0.0 };
        progress.show(0.0);
        progress
    }

    /// So many more are done.
    pub fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        let percent =
            if self.total == 0 { 100.0 } else { (self.done.min(self.total) as f64 / self.total as f64) * 100.0 };
        if percent - self.shown >= 1.0 {
            self.shown = percent;
            self.show(percent);
        }
    }

    /// All is done.
    pub fn finish(&self) {
        self.show(100.0);
        if self.wanted {
            println!();
        }
    }

    fn show(&self, percent: f64) {
        if self.wanted {
            print!("    ({percent:.2}/100%)\r");
            // A reader that has gone shows itself at the next message.
            let _ = std::io::stdout().flush();
        }
    }
}
