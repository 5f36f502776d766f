//! Limits of a throttle group and the leaky buckets that hold requests to them, without time of their own.
//!
//! A bucket fills by what requests move and leaks at the average rate; a request waits while it is over its brim. The
//! brim is what a burst may use: a tenth of a second of the average, or `max` for `max-length` seconds.

use std::time::Duration;

use lockstep_util::{Result, bail};
use serde_json::{Map, Value};

/// Largest value of any limit.
const VALUE_MAX: u64 = 1_000_000_000_000_000;

/// The limits, by the names of `ThrottleLimits`: each is a rate, its burst and the burst's length.
const NAMES: [&str; 6] = ["bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write"];

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bucket {
    /// Units a second, 0 for no limit.
    rate: u64,
    /// Units a second in a burst, 0 for none.
    max: u64,
    /// Seconds of a burst.
    length: u64,
    level: f64,
    burst_level: f64,
}

impl Bucket {
    fn leak(&mut self, seconds: f64) {
        self.level = (self.level - self.rate as f64 * seconds).max(0.0);
        self.burst_level = (self.burst_level - self.max as f64 * seconds).max(0.0);
    }

    /// Seconds until the next request may go.
    fn wait(&self) -> f64 {
        if self.rate == 0 {
            return 0.0;
        }
        let rate = self.rate as f64;
        let (size, burst_size) = match self.max {
            0 => (rate / 10.0, 0.0),
            max => (max as f64 * self.length as f64, max as f64 / 10.0),
        };
        let mut wait = ((self.level - size) / rate).max(0.0);
        if self.length > 1 {
            wait = wait.max((self.burst_level - burst_size) / self.max as f64);
        }
        wait
    }

    fn fill(&mut self, units: f64) {
        if self.rate > 0 {
            self.level += units;
            self.burst_level += units;
        }
    }
}

/// The limits of a group and how far they are used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    buckets: [Bucket; 6],
    /// Bytes that count as one operation, 0: every request is one.
    iops_size: u64,
}

impl Limits {
    /// From members named as in `ThrottleLimits`; `prefix` stands before each name.
    pub fn from_members(members: &Map<String, Value>, prefix: &str) -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            let Some(value) = members.get(&format!("{prefix}{name}")) else { return Ok(None) };
            match value.as_u64() {
                Some(n) if n <= VALUE_MAX => Ok(Some(n)),
                _ => bail!("bps/iops/max values must be within [0, {VALUE_MAX}]"),
            }
        };
        let mut limits = Self::default();
        for (bucket, name) in limits.buckets.iter_mut().zip(NAMES) {
            bucket.rate = number(name)?.unwrap_or(0);
            bucket.max = number(&format!("{name}-max"))?.unwrap_or(0);
            bucket.length = number(&format!("{name}-max-length"))?.unwrap_or(1);
        }
        limits.iops_size = number("iops-size")?.unwrap_or(0);
        limits.check()?;
        Ok(limits)
    }

    fn check(&self) -> Result<()> {
        let b = &self.buckets;
        let both = |total: usize| b[total].rate > 0 && (b[total + 1].rate > 0 || b[total + 2].rate > 0);
        let both_max = |total: usize| b[total].max > 0 && (b[total + 1].max > 0 || b[total + 2].max > 0);
        if both(0) || both(3) || both_max(0) || both_max(3) {
            bail!("bps/iops/max total values and read/write values cannot be used at the same time");
        }
        if self.iops_size > 0 && b[3..].iter().all(|b| b.rate == 0) {
            bail!("iops size requires an iops value to be set");
        }
        for b in b {
            if b.length == 0 {
                bail!("the burst length cannot be 0");
            }
            if b.length > 1 && b.max == 0 {
                bail!("burst length set without burst rate");
            }
            if b.max > 0 && b.length > VALUE_MAX / b.max {
                bail!("burst length too high for this burst rate");
            }
            if b.max > 0 && b.rate == 0 {
                bail!("bps_max/iops_max require corresponding bps/iops values");
            }
            if b.max > 0 && b.max < b.rate {
                bail!("bps_max/iops_max must not be lower than bps/iops");
            }
        }
        Ok(())
    }

    /// The limits as members of `ThrottleLimits`.
    pub fn to_members(&self) -> Map<String, Value> {
        let mut members = Map::new();
        for (bucket, name) in self.buckets.iter().zip(NAMES) {
            members.insert(name.to_owned(), bucket.rate.into());
            members.insert(format!("{name}-max"), bucket.max.into());
            members.insert(format!("{name}-max-length"), bucket.length.into());
        }
        members.insert("iops-size".to_owned(), self.iops_size.into());
        members
    }

    /// The buckets that a request uses.
    fn used(is_write: bool) -> [usize; 4] {
        let own = if is_write { 2 } else { 1 };
        [0, own, 3, 3 + own]
    }

    /// Time goes on.
    pub fn leak(&mut self, time: Duration) {
        self.buckets.iter_mut().for_each(|b| b.leak(time.as_secs_f64()));
    }

    /// How long the next read or write has to wait.
    pub fn wait(&self, is_write: bool) -> Duration {
        let wait = Self::used(is_write).iter().map(|i| self.buckets[*i].wait()).fold(0.0, f64::max);
        Duration::from_secs_f64(wait.min(1e6))
    }

    /// A request of that many bytes goes.
    pub fn account(&mut self, is_write: bool, bytes: u64) {
        let operations = match self.iops_size {
            0 => 1.0,
            size => (bytes as f64 / size as f64).max(1.0),
        };
        for i in Self::used(is_write) {
            self.buckets[i].fill(if i < 3 { bytes as f64 } else { operations });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn limits(value: Value) -> Result<Limits> {
        Limits::from_members(value.as_object().unwrap(), "")
    }

    /// Seconds for so many requests one behind the other.
    fn seconds(limits: &mut Limits, requests: u32, bytes: u64) -> f64 {
        let mut total = Duration::ZERO;
        for _ in 0..requests {
            let wait = limits.wait(true);
            limits.leak(wait);
            total += wait;
            limits.account(true, bytes);
        }
        total.as_secs_f64()
    }

    #[test]
    fn the_average_holds_and_other_directions_are_free() {
        let mut l = limits(json!({"bps-write": 1 << 20})).unwrap();
        let took = seconds(&mut l, 100, 1 << 16);
        assert!((5.5..6.5).contains(&took), "{took}");
        assert_eq!(l.wait(false), Duration::ZERO);
        let mut l = limits(json!({"iops-total": 100, "iops-size": 4096})).unwrap();
        let took = seconds(&mut l, 50, 8192);
        assert!((0.8..1.1).contains(&took), "{took}");
    }

    #[test]
    fn a_burst_goes_faster_for_its_length() {
        let mut l = limits(json!({"iops-total": 10, "iops-total-max": 100, "iops-total-max-length": 2})).unwrap();
        let took = seconds(&mut l, 200, 512);
        assert!(took < 2.1, "{took}");
        let took = seconds(&mut l, 50, 512);
        assert!(took > 2.5, "{took}");
    }

    #[test]
    fn limits_that_contradict_each_other_are_refused() {
        for (value, text) in [
            (
                json!({"bps-total": 1, "bps-read": 1}),
                "bps/iops/max total values and read/write values cannot be used at the same time",
            ),
            (json!({"iops-size": 1}), "iops size requires an iops value to be set"),
            (json!({"bps-total-max": 1}), "bps_max/iops_max require corresponding bps/iops values"),
            (json!({"bps-total": 1, "bps-total-max-length": 0}), "the burst length cannot be 0"),
            (json!({"bps-total": 1, "bps-total-max-length": 2}), "burst length set without burst rate"),
            (json!({"bps-total": -1}), "bps/iops/max values must be within [0, 1000000000000000]"),
        ] {
            assert_eq!(limits(value).unwrap_err().message(), text);
        }
    }
}
