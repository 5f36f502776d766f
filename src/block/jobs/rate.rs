//! The speed limit of a job: so many bytes in each slice of time.

use std::time::{Duration, Instant};

const SLICE: Duration = Duration::from_millis(100);

/// Says how long to wait after so many bytes.
#[derive(Debug)]
pub struct RateLimit {
    speed: u64,
    slice_start: Option<Instant>,
    /// Bytes dispatched in the current slice.
    dispatched: u64,
}

impl RateLimit {
    /// `speed` in bytes a second, 0 for no limit.
    pub fn new(speed: u64) -> Self {
        Self { speed, slice_start: None, dispatched: 0 }
    }

    /// Bytes a second, 0 for no limit.
    pub fn speed(&self) -> u64 {
        self.speed
    }

    /// Changes the limit from now on.
    pub fn set_speed(&mut self, speed: u64) {
        *self = Self::new(speed);
    }

    /// Accounts bytes; the answer is how long to wait before the next ones.
    pub fn account(&mut self, bytes: u64) -> Option<Duration> {
        self.account_at(bytes, Instant::now())
    }

    fn account_at(&mut self, bytes: u64, now: Instant) -> Option<Duration> {
        if self.speed == 0 {
            return None;
        }
        let quota = (self.speed as u128 * SLICE.as_millis() / 1000).max(1);
        let start = *self.slice_start.get_or_insert(now);
        let spent = SLICE.mul_f64((self.dispatched as f64 / quota as f64).ceil());
        if now >= start + spent.max(SLICE) {
            self.slice_start = Some(now);
            self.dispatched = 0;
        }
        self.dispatched += bytes;
        let start = self.slice_start.unwrap_or(now);
        let slices = self.dispatched as f64 / quota as f64;
        let due = start + SLICE.mul_f64(slices.floor().min(1e9));
        (due > now).then(|| due - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_run_average_is_the_speed() {
        let mut limit = RateLimit::new(10 << 20);
        let start = Instant::now();
        let mut now = start;
        for _ in 0..100 {
            if let Some(wait) = limit.account_at(1 << 20, now) {
                now += wait;
            }
        }
        let seconds = (now - start).as_secs_f64();
        assert!((9.0..11.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn no_limit_never_waits() {
        assert_eq!(RateLimit::new(0).account(u64::MAX), None);
    }
}
