//! What is known of a migration: its status and figures, as `query-migrate` and `info migrate` show them.

use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// QEMU's `MigrationStatus`, those of them that can be here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// None was asked for yet.
    #[default]
    None,
    /// It is being set up.
    Setup,
    /// It is being cancelled.
    Cancelling,
    /// It was cancelled.
    Cancelled,
    /// RAM is travelling.
    Active,
    /// The guest has stopped and somebody has to say `migrate-continue`.
    PreSwitchover,
    /// The last RAM and device state are travelling.
    Device,
    /// A pair runs in lockstep.
    Colo,
    /// It is over, and was good.
    Completed,
    /// It is over, and was not.
    Failed,
}

impl Status {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Active => "active",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::Colo => "colo",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// Whether an outgoing migration of this status is still going on.
    pub fn is_running(self) -> bool {
        !matches!(self, Self::None | Self::Cancelled | Self::Completed | Self::Failed)
    }
}

/// Counters that the sending thread moves and anybody reads.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes written to the channel.
    pub transferred: AtomicU64,
    /// Of these, bytes written while the guest was stopped.
    pub downtime_bytes: AtomicU64,
    /// Pages sent as zero.
    pub zero_pages: AtomicU64,
    /// Pages sent as they are.
    pub normal_pages: AtomicU64,
    /// How often the dirty log was read.
    pub syncs: AtomicU64,
    /// Bytes of pages that are still to be sent.
    pub remaining: AtomicU64,
    /// Pages dirtied in a second.
    pub dirty_rate: AtomicU64,
    /// Pages sent in a second.
    pub pages_per_second: AtomicU64,
    /// Bytes of guest RAM.
    pub total: AtomicU64,
    /// How long the guest is expected to stop, in milliseconds.
    pub expected_downtime: AtomicU64,
    /// Speed of the last stretch, in bits a second.
    pub bits_per_second: AtomicU64,
}

impl Counters {
    /// Adds to a counter.
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets a counter.
    pub(crate) fn set(counter: &AtomicU64, n: u64) {
        counter.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    pub(crate) fn clear(&self) {
        for counter in [
            &self.transferred,
            &self.downtime_bytes,
            &self.zero_pages,
            &self.normal_pages,
            &self.syncs,
            &self.remaining,
            &self.dirty_rate,
            &self.pages_per_second,
            &self.total,
            &self.expected_downtime,
            &self.bits_per_second,
        ] {
            Self::set(counter, 0);
        }
    }
}

/// The figures at one moment.
#[derive(Clone, Debug, Default)]
pub struct MigrationInfo {
    /// The status.
    pub status: Status,
    /// Why it failed.
    pub error: Option<String>,
    /// Where the receiving end listens.
    pub socket_address: Option<Value>,
    /// Milliseconds since it began, or that it took.
    pub total_time: u64,
    /// Milliseconds that setting up took.
    pub setup_time: u64,
    /// Milliseconds that the guest stood still, once that is known.
    pub downtime: Option<u64>,
    /// Whether RAM's figures are shown.
    pub ram: bool,
    /// RAM's figures: those of [`Counters`], in order of `query-migrate`.
    pub(crate) figures: Figures,
}

/// A reading of the counters.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    transferred: u64,
    downtime_bytes: u64,
    zero: u64,
    normal: u64,
    syncs: u64,
    remaining: u64,
    dirty_rate: u64,
    pages_per_second: u64,
    total: u64,
    expected_downtime: u64,
    mbps: f64,
}

impl From<&Counters> for Figures {
    fn from(c: &Counters) -> Self {
        let get = Counters::get;
        Self {
            transferred: get(&c.transferred),
            downtime_bytes: get(&c.downtime_bytes),
            zero: get(&c.zero_pages),
            normal: get(&c.normal_pages),
            syncs: get(&c.syncs),
            remaining: get(&c.remaining),
            dirty_rate: get(&c.dirty_rate),
            pages_per_second: get(&c.pages_per_second),
            total: get(&c.total),
            expected_downtime: get(&c.expected_downtime),
            mbps: get(&c.bits_per_second) as f64 / 1e6,
        }
    }
}

impl MigrationInfo {
    /// What `query-migrate` returns.
    pub fn to_json(&self) -> Value {
        let mut out = json!({});
        if self.status != Status::None {
            out["status"] = self.status.as_str().into();
        }
        if let Some(error) = &self.error {
            out["error-desc"] = error.as_str().into();
        }
        if let Some(address) = &self.socket_address {
            out["socket-address"] = json!([address]);
        }
        if self.ram {
            let f = &self.figures;
            out["total-time"] = self.total_time.into();
            out["setup-time"] = self.setup_time.into();
            match self.downtime {
                Some(downtime) => out["downtime"] = downtime.into(),
                None => out["expected-downtime"] = f.expected_downtime.into(),
            }
            out["ram"] = json!({
                "transferred": f.transferred, "remaining": f.remaining, "total": f.total, "duplicate": f.zero,
                "normal": f.normal, "normal-bytes": f.normal * 4096, "dirty-pages-rate": f.dirty_rate, "mbps": f.mbps,
                "dirty-sync-count": f.syncs, "postcopy-requests": 0, "page-size": 4096, "multifd-bytes": 0,
                "pages-per-second": f.pages_per_second, "precopy-bytes": f.transferred - f.downtime_bytes.min(f.transferred),
                "downtime-bytes": f.downtime_bytes, "postcopy-bytes": 0, "dirty-sync-missed-zero-copy": 0,
            });
        }
        out
    }

    /// What `info migrate` prints.
    pub fn to_text(&self) -> String {
        let mut out = String::from(
            "globals:\r\nstore-global-state: on\r\nonly-migratable: off\r\nsend-configuration: on\r\nsend-section-footer: on\r\n\
             send-switchover-start: on\r\nclear-bitmap-shift: 18\r\n",
        );
        if self.status != Status::None {
            let why = self.error.as_ref().map(|e| format!(" ({e})")).unwrap_or_default();
            let _ = write!(out, "Migration status: {}{why}\r\n", self.status.as_str());
            let _ = write!(out, "total time: {} ms\r\n", if self.ram { self.total_time } else { 0 });
        }
        if self.ram {
            self.ram_text(&mut out);
        }
        if let Some(address) = &self.socket_address {
            let text = |key: &str| address[key].as_str().unwrap_or_default().to_owned();
            let shown = match address["type"].as_str() {
                Some("inet") => format!("tcp:{}:{}", text("host"), text("port")),
                _ => format!("unix:{}", text("path")),
            };
            let _ = write!(out, "socket address: [\r\n\t{shown}\r\n]\r\n");
        }
        out
    }

    fn ram_text(&self, out: &mut String) {
        let f = &self.figures;
        let mut line = |text: String| {
            out.push_str(&text);
            out.push_str("\r\n");
        };
        match self.downtime {
            Some(downtime) => line(format!("downtime: {downtime} ms")),
            None => line(format!("expected downtime: {} ms", f.expected_downtime)),
        }
        line(format!("setup: {} ms", self.setup_time));
        line(format!("transferred ram: {} kbytes", f.transferred >> 10));
        line(format!("throughput: {:.2} mbps", f.mbps));
        line(format!("remaining ram: {} kbytes", f.remaining >> 10));
        line(format!("total ram: {} kbytes", f.total >> 10));
        line(format!("duplicate: {} pages", f.zero));
        line(format!("normal: {} pages", f.normal));
        line(format!("normal bytes: {} kbytes", f.normal * 4));
        line(format!("dirty sync count: {}", f.syncs));
        line("page size: 4 kbytes".to_owned());
        line("multifd bytes: 0 kbytes".to_owned());
        line(format!("pages-per-second: {}", f.pages_per_second));
        if f.dirty_rate != 0 {
            line(format!("dirty pages rate: {} pages", f.dirty_rate));
        }
        let precopy = f.transferred.saturating_sub(f.downtime_bytes);
        if precopy != 0 {
            line(format!("precopy ram: {} kbytes", precopy >> 10));
        }
        if f.downtime_bytes != 0 {
            line(format!("downtime ram: {} kbytes", f.downtime_bytes >> 10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_any_migration_there_is_nothing_to_show() {
        assert_eq!(MigrationInfo::default().to_json(), json!({}));
        assert!(MigrationInfo::default().to_text().ends_with("clear-bitmap-shift: 18\r\n"));
    }

    #[test]
    fn a_failure_shows_its_reason() {
        let info = MigrationInfo { status: Status::Failed, error: Some("No".into()), ..MigrationInfo::default() };
        assert_eq!(info.to_json(), json!({"status": "failed", "error-desc": "No"}));
        assert!(info.to_text().ends_with("Migration status: failed (No)\r\ntotal time: 0 ms\r\n"));
    }

    #[test]
    fn a_listening_end_shows_its_address() {
        let address = json!({"type": "inet", "host": "0.0.0.0", "port": "9998", "ipv4": true});
        let info = MigrationInfo { status: Status::Setup, socket_address: Some(address), ..MigrationInfo::default() };
        let text = "Migration status: setup\r\ntotal time: 0 ms\r\nsocket address: [\r\n\ttcp:0.0.0.0:9998\r\n]\r\n";
        assert!(info.to_text().ends_with(text));
    }
}
