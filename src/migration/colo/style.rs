//! Whether the secondary's guest runs alongside, as the primary decides.
//!
//! Lock-stepping pays while both guests say the same. Where differences force one checkpoint after the other, everything that the
//! primary says waits for a checkpoint anyway, and a second guest only costs: then the secondary's stands still, and the primary's
//! output is *buffered* until the checkpoint that follows it was received (Remus, NSDI 2008). Whether the guests agree again can only
//! be found out by letting both run, so that is tried after a while; the while doubles as long as they do not.

use std::time::{Duration, Instant};

/// How the secondary keeps up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Its guest runs alongside, and both outputs are compared.
    #[default]
    Lockstep,
    /// Its guest stands still; what the primary's says waits for the next checkpoint.
    Buffered,
}

impl Style {
    /// The name in figures and in the parameter.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lockstep => "lockstep",
            Self::Buffered => "buffered",
        }
    }
}

/// The stretch over which checkpoints are weighed.
const STRETCH: Duration = Duration::from_secs(1);
/// The first such stretch when lock-stepping is tried again.
const TRIAL: Duration = Duration::from_millis(250);
/// How long output is buffered before lock-stepping is tried again, at first and at most.
const STAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(64));
/// Guests that differ again so soon after lock-stepping was tried have not calmed down.
const CALM: Duration = Duration::from_secs(10);
/// After a pause so long the guest runs for as long, or for the longest gap, before output may ask for the next checkpoint. Shorter ones
/// need no gap: the guest runs while the secondary applies, and whoever waits for an answer would wait longer.
const LONG_PAUSE: Duration = Duration::from_millis(3);
const LONGEST_GAP: Duration = Duration::from_millis(25);

/// What the primary's choice rests on.
#[derive(Debug)]
pub(super) struct Chooser {
    style: Style,
    /// When the stretch at hand began, and how long it is.
    stretch: (Instant, Duration),
    /// How much of it went into checkpoints that differences forced.
    forced: Duration,
    /// When lock-stepping was last begun again.
    returned: Option<Instant>,
    /// Buffered: until when; and how long that is.
    until: Instant,
    stay: Duration,
    /// Output asks for no checkpoint before.
    not_before: Instant,
}

impl Chooser {
    pub fn new(now: Instant) -> Self {
        Self {
            style: Style::Lockstep,
            stretch: (now, STRETCH),
            forced: Duration::ZERO,
            returned: None,
            until: now,
            stay: STAY.0,
            not_before: now,
        }
    }

    /// The style from the last checkpoint on.
    #[cfg(test)]
    pub fn style(&self) -> Style {
        self.style
    }

    /// The style from the checkpoint on that begins now; `wish` settles it if there is one.
    pub fn choose(&mut self, now: Instant, wish: Option<Style>) -> Style {
        match (self.style, wish) {
            (_, Some(Style::Buffered)) => (self.style, self.until) = (Style::Buffered, now + STAY.0),
            (Style::Buffered, Some(Style::Lockstep)) => self.lockstep(now),
            (Style::Lockstep, Some(Style::Lockstep)) => {}
            (Style::Buffered, None) if now >= self.until => self.lockstep(now),
            (Style::Lockstep, None) => {
                let (since, length) = self.stretch;
                let passed = now.saturating_duration_since(since);
                if passed >= length {
                    if self.forced * 2 >= passed {
                        self.buffer(now);
                    }
                    self.begin_stretch(now, STRETCH);
                }
            }
            (Style::Buffered, None) => {}
        }
        self.style
    }

    /// The guest runs again, after a pause.
    pub fn runs(&mut self, now: Instant, pause: Duration) {
        self.not_before = if pause < LONG_PAUSE { now } else { now + pause.min(LONGEST_GAP) };
    }

    /// A checkpoint was made in this time; `forced` says whether a difference was its cause.
    pub fn made(&mut self, took: Duration, forced: bool) {
        if forced {
            self.forced += took;
        }
    }

    /// When lock-stepping is tried again, if output is buffered.
    pub fn trial(&self) -> Option<Instant> {
        (self.style == Style::Buffered).then_some(self.until)
    }

    /// From when on buffered output may ask for a checkpoint.
    pub fn not_before(&self) -> Option<Instant> {
        (self.style == Style::Buffered).then_some(self.not_before)
    }

    fn buffer(&mut self, now: Instant) {
        let soon = self.returned.is_some_and(|at| now.saturating_duration_since(at) < CALM);
        self.stay = if soon { (self.stay * 2).min(STAY.1) } else { STAY.0 };
        self.until = now + self.stay;
        self.style = Style::Buffered;
    }

    fn lockstep(&mut self, now: Instant) {
        self.returned = Some(now);
        self.style = Style::Lockstep;
        self.begin_stretch(now, TRIAL);
    }

    fn begin_stretch(&mut self, now: Instant, length: Duration) {
        (self.stretch, self.forced) = ((now, length), Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Lets forced checkpoints of `took` begin every `every` for `length`. Returns when buffering began, if it did.
    fn differ(
        chooser: &mut Chooser,
        now: &mut Instant,
        took: Duration,
        every: Duration,
        length: Duration,
    ) -> Option<Duration> {
        let start = *now;
        while now.duration_since(start) < length {
            if chooser.choose(*now, None) == Style::Buffered {
                return Some(now.duration_since(start));
            }
            chooser.made(took, true);
            *now += every;
        }
        None
    }

    #[test]
    fn output_is_buffered_when_differences_take_half_of_the_time() {
        let mut now = Instant::now();
        let mut chooser = Chooser::new(now);
        assert_eq!(differ(&mut chooser, &mut now, 2 * MS, 5 * MS, 20 * STRETCH), None, "40 %");
        let began = differ(&mut chooser, &mut now, 3 * MS, 5 * MS, 20 * STRETCH).expect("60 %");
        assert!(began <= 2 * STRETCH, "{began:?}");
        assert_eq!(chooser.style(), Style::Buffered);
    }

    #[test]
    fn a_burst_after_silence_is_weighed_from_its_beginning() {
        let mut now = Instant::now();
        let mut chooser = Chooser::new(now);
        now += Duration::from_secs(3600);
        assert_eq!(differ(&mut chooser, &mut now, 4 * MS, 5 * MS, STRETCH), None);
        assert!(differ(&mut chooser, &mut now, 4 * MS, 5 * MS, STRETCH).is_some());
    }

    #[test]
    fn checkpoints_that_the_clock_asks_for_buffer_nothing() {
        let mut now = Instant::now();
        let mut chooser = Chooser::new(now);
        for _ in 0..10_000 {
            assert_eq!(chooser.choose(now, None), Style::Lockstep);
            chooser.made(4 * MS, false);
            now += 5 * MS;
        }
    }

    #[test]
    fn lock_stepping_is_tried_again_ever_later_while_the_guests_differ() {
        let mut now = Instant::now();
        let mut chooser = Chooser::new(now);
        let mut stays = Vec::new();
        for _ in 0..7 {
            differ(&mut chooser, &mut now, 4 * MS, 5 * MS, 2 * STRETCH).expect("they differ");
            let trial = chooser.trial().expect("it will be tried");
            stays.push(trial.duration_since(now).as_secs());
            assert_eq!(chooser.choose(trial - MS, None), Style::Buffered);
            now = trial;
            assert_eq!(chooser.choose(now, None), Style::Lockstep);
            assert_eq!(chooser.trial(), None);
        }
        assert_eq!(stays, [2, 4, 8, 16, 32, 64, 64]);
        // A trial is shorter than a stretch.
        let began = differ(&mut chooser, &mut now, 4 * MS, 5 * MS, STRETCH).expect("they differ");
        assert!(began <= TRIAL + 5 * MS, "{began:?}");
        // They calm down: the next time begins from the start.
        now = chooser.trial().expect("it will be tried");
        assert_eq!(differ(&mut chooser, &mut now, MS, 5 * MS, 2 * CALM), None);
        differ(&mut chooser, &mut now, 4 * MS, 5 * MS, 3 * STRETCH).expect("they differ again");
        assert_eq!(chooser.trial().map(|at| at.duration_since(now)), Some(STAY.0));
    }

    #[test]
    fn a_wish_settles_it() {
        let now = Instant::now();
        let mut chooser = Chooser::new(now);
        assert_eq!(chooser.choose(now, Some(Style::Buffered)), Style::Buffered);
        let later = now + Duration::from_secs(1000);
        assert_eq!(chooser.choose(later, Some(Style::Buffered)), Style::Buffered);
        assert_eq!(chooser.choose(later, Some(Style::Lockstep)), Style::Lockstep);
        chooser.made(900 * MS, true);
        assert_eq!(chooser.choose(later + STRETCH, Some(Style::Lockstep)), Style::Lockstep);
    }

    #[test]
    fn after_a_long_pause_the_guest_runs_for_a_while() {
        let now = Instant::now();
        let mut chooser = Chooser::new(now);
        assert_eq!(chooser.not_before(), None);
        chooser.choose(now, Some(Style::Buffered));
        for (pause, gap) in [(MS / 2, Duration::ZERO), (7 * MS, 7 * MS), (90 * MS, 25 * MS)] {
            chooser.runs(now, pause);
            assert_eq!(chooser.not_before(), Some(now + gap));
        }
    }
}
