//! A peer and two guests, of which either loses what the other gets, by drawn schedules: nothing is told that is not true of both guests,
//! and everything arrives, soon. The peer does what Linux does: it believes in timestamps and in what it hears has come twice.

use std::collections::BTreeMap;

use super::*;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % u64::from(n)) as u32
    }
    fn percent(&mut self, n: u32) -> bool {
        self.below(100) < n
    }
}

/// Bytes of each segment; positions are counted in segments.
const SIZE: u32 = 100;
const TOTAL: u32 = 60;
/// Segments under way at most.
const UNDER_WAY: u32 = 20;
/// The first byte of the upload, of the download.
const UP: u32 = 0xffff_f000;
const DOWN: u32 = 0xffff_e000;
/// Retransmission timer, and how often a peer answers segments from before its window (ms), as on Linux.
const RTO: i64 = 200;
const ANSWERS: i64 = 500;
/// How long a card is deaf (ms): as long as it takes to send all that may be under way.
const SPELL: i64 = 15;

fn number(base: u32, segment: u32) -> u32 {
    base.wrapping_add(segment * SIZE)
}

fn segment(base: u32, number: u32) -> u32 {
    let bytes = number.wrapping_sub(base);
    assert!(bytes.is_multiple_of(SIZE) && bytes / SIZE <= TOTAL, "{number:#x}");
    bytes / SIZE
}

fn text(segment: u32) -> Vec<u8> {
    (0..SIZE).map(|i| (segment * 31 + i) as u8).collect()
}

/// What the peer says: data, an acknowledgement, the time.
#[derive(Clone, Copy)]
struct Word {
    data: Option<u32>,
    ack: u32,
    stamp: i64,
}

/// One direction's sender: what is acknowledged and sent, and when it is sent again.
#[derive(Clone, Default)]
struct Sender {
    acked: u32,
    sent: u32,
    again_at: i64,
    tries: u32,
}

impl Sender {
    fn progress(&mut self, ack: u32, now: i64) -> bool {
        let more = ack > self.acked;
        if more {
            (self.acked, self.sent, self.tries, self.again_at) = (ack, self.sent.max(ack), 0, now + RTO);
        }
        more
    }
    fn next(&mut self, now: i64) -> Option<u32> {
        let next = self.sent;
        (next < TOTAL && next < self.acked + UNDER_WAY).then(|| {
            if self.sent == self.acked {
                self.again_at = now + RTO;
            }
            self.sent += 1;
            next
        })
    }
    fn is_due(&mut self, now: i64) -> bool {
        let due = self.acked < self.sent && now >= self.again_at;
        if due {
            self.tries += 1;
            self.again_at = now + (RTO << self.tries.min(6));
        }
        due
    }
}

#[derive(Clone)]
struct Guest {
    got: Vec<u32>,
    next: u32,
    /// The segments that came last out of order, the newest first.
    recent: Vec<u32>,
    stamp: i64,
    out: Sender,
}

impl Guest {
    fn new() -> Self {
        Self { got: vec![0; TOTAL as usize], next: 0, recent: vec![], stamp: 0, out: Sender::default() }
    }

    fn has(&self, segment: u32) -> bool {
        self.got[segment as usize] > 0
    }

    fn hear(&mut self, word: Word, now: i64) -> Vec<Frame> {
        let mut blocks = vec![];
        if let Some(at) = word.data {
            if at <= self.next {
                self.stamp = self.stamp.max(word.stamp);
            }
            self.got[at as usize] += 1;
            if self.got[at as usize] > 1 {
                blocks.push((at, at + 1));
            }
            while self.next < TOTAL && self.has(self.next) {
                self.next += 1;
            }
            self.recent.retain(|&other| other != at);
            self.recent.insert(0, at);
            let next = self.next;
            self.recent.retain(|&other| other > next);
        }
        for &at in &self.recent {
            let left = (self.next..=at).rev().take_while(|&it| self.has(it)).last().unwrap();
            let right = (at..TOTAL).find(|&it| !self.has(it)).unwrap_or(TOTAL);
            if blocks.len() < 3 && !blocks.contains(&(left, right)) {
                blocks.push((left, right));
            }
        }
        self.out.progress(word.ack, now);
        let mut said = vec![];
        if word.data.is_some() {
            let blocks: Vec<_> = blocks.iter().map(|&(l, r)| (number(UP, l), number(UP, r))).collect();
            let seq = number(DOWN, self.out.sent);
            let ack = seg(ACK, seq, number(UP, self.next), b"").ts(now as u32, self.stamp as u32);
            said.push(if blocks.is_empty() { ack } else { ack.sack(&blocks) }.frame());
        }
        while let Some(at) = self.out.next(now) {
            said.push(self.data(at, now));
        }
        said
    }

    fn data(&self, at: u32, now: i64) -> Frame {
        let ack = number(UP, self.next);
        seg(ACK, number(DOWN, at), ack, &text(at)).ts(now as u32, self.stamp as u32).frame()
    }
}

struct Peer {
    out: Sender,
    sacked: Vec<bool>,
    said_at: Vec<i64>,
    /// Since when it sends everything again from the first hole on, and up to where.
    lost: Option<(i64, u32)>,
    got: Vec<bool>,
    next: u32,
    answered: i64,
}

impl Peer {
    /// What it hears; segments to send again, and whether it answers.
    fn hear(&mut self, frame: &Frame, now: i64) -> (Vec<u32>, bool) {
        let tcp = tcp_of(frame);
        let options = tcp.options(frame);
        let ack = segment(UP, tcp.ack);
        let echo = i64::from(options.timestamp_values(frame).unwrap().1);
        let mut needless = false;
        let more = self.out.progress(ack, now);
        for (left, right) in options.sack.into_iter().flat_map(|sack| sack.edges(frame)) {
            let (left, right) = (segment(UP, left), segment(UP, right));
            needless |= right <= ack;
            (left..right).for_each(|at| self.sacked[at as usize] = true);
        }
        if let Some((since, until)) = self.lost {
            // It was not lost after all, so neither is the rest.
            needless |= more && echo < since;
            if needless || ack >= until {
                self.lost = None;
            }
        }
        let named = (ack..self.out.sent).rfind(|&at| self.sacked[at as usize]).unwrap_or(ack);
        let until = named.max(self.lost.filter(|_| more).map_or(0, |(_, until)| until));
        let old = |at: u32| now - self.said_at[at as usize] >= 10;
        let again: Vec<u32> = (ack..until).filter(|&at| !self.sacked[at as usize] && old(at)).take(10).collect();
        again.iter().for_each(|&at| self.said_at[at as usize] = now);
        let mut answers = false;
        if !tcp.is_empty() {
            self.got[segment(DOWN, tcp.seq) as usize] = true;
            answers = true;
        } else if tcp.seq == number(DOWN, self.next).wrapping_sub(1) && now - self.answered >= ANSWERS {
            (answers, self.answered) = (true, now);
        }
        while self.next < TOTAL && self.got[self.next as usize] {
            self.next += 1;
        }
        (again, answers)
    }
}

enum Event {
    Hears { secondary: bool, word: Word },
    Says { secondary: bool, frame: Frame },
    Leaves(Frame),
}

struct World {
    rng: Rng,
    /// How much is lost: on the cable, before the primary's card, before the secondary's (percent).
    losses: [u32; 3],
    /// How often the secondary's card goes deaf (percent of the milliseconds), and until when it is.
    spells: (u32, i64),
    bench: Bench,
    guests: [Guest; 2],
    peer: Peer,
    events: BTreeMap<(i64, u64), Event>,
    count: u64,
    /// Nothing overtakes on its way: when the last came by each.
    last: [i64; 4],
    now: i64,
    checkpoints: u32,
}

impl World {
    fn new(seed: u64, losses: [u32; 3], spells: u32) -> Self {
        let mut bench = Bench::new();
        let isn = DOWN.wrapping_sub(1);
        bench.p(seg(SYN | ACK, isn, UP, b"").scale(7).ts(0, 0).frame());
        bench.s(seg(SYN | ACK, 4242, UP, b"").scale(7).ts(0, 0).frame());
        let many = TOTAL as usize;
        Self {
            rng: Rng(seed),
            losses,
            spells: (spells, 0),
            bench,
            guests: [Guest::new(), Guest::new()],
            peer: Peer {
                out: Sender::default(),
                sacked: vec![false; many],
                said_at: vec![0; many],
                lost: None,
                got: vec![false; many],
                next: 0,
                answered: -ANSWERS,
            },
            events: BTreeMap::new(),
            count: 0,
            last: [0; 4],
            now: 0,
            checkpoints: 0,
        }
    }

    fn later(&mut self, way: usize, event: Event) {
        let at = (self.now + 1 + i64::from(self.rng.below(4))).max(self.last[way]);
        self.last[way] = at;
        self.count += 1;
        self.events.insert((at, self.count), event);
    }

    fn peer_says(&mut self, data: Option<u32>) {
        let word = Word { data, ack: self.peer.next, stamp: self.now };
        if self.rng.percent(self.losses[0]) {
            return;
        }
        for secondary in [false, true] {
            let deaf = secondary && self.now < self.spells.1;
            if !self.rng.percent(self.losses[1 + usize::from(secondary)]) && !deaf {
                self.later(usize::from(secondary), Event::Hears { secondary, word });
            }
        }
    }

    fn guest_says(&mut self, secondary: bool, frames: Vec<Frame>) {
        for frame in frames {
            self.later(2 + usize::from(secondary), Event::Says { secondary, frame });
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Hears { secondary, word } => {
                let frames = self.guests[usize::from(secondary)].hear(word, self.now);
                self.guest_says(secondary, frames);
            }
            Event::Says { secondary, frame } => {
                let out = if secondary { self.bench.s(frame) } else { self.bench.p(frame) };
                self.came_out(out);
            }
            Event::Leaves(frame) => {
                let (again, answers) = self.peer.hear(&frame, self.now);
                if answers {
                    self.peer_says(None);
                }
                again.into_iter().for_each(|at| self.peer_says(Some(at)));
            }
        }
    }

    /// Everything that leaves is true of both guests.
    fn came_out(&mut self, out: Output) {
        for frame in out.frames {
            let tcp = tcp_of(&frame);
            let options = tcp.options(&frame);
            let ack = segment(UP, tcp.ack);
            for guest in &self.guests {
                assert!(ack <= guest.next, "acknowledged what one has not");
                for (left, right) in options.sack.into_iter().flat_map(|sack| sack.edges(&frame)) {
                    let times = if segment(UP, right) <= ack { 2 } else { 1 };
                    for at in segment(UP, left)..segment(UP, right) {
                        assert!(guest.got[at as usize] >= times, "named what one has not {times} times: {at}, {ack}");
                    }
                }
            }
            let echo = i64::from(options.timestamp_values(&frame).unwrap().1);
            assert!(echo <= self.now && self.guests.iter().any(|guest| echo <= guest.stamp), "an echo of nothing");
            if !tcp.is_empty() {
                let at = segment(DOWN, tcp.seq);
                assert!(self.guests.iter().all(|guest| at < guest.out.sent), "released what one has not sent");
                assert_eq!(frame.data[tcp.payload..tcp.end], text(at));
            }
            if !self.rng.percent(self.losses[0]) {
                let at = self.now + 1;
                self.count += 1;
                self.events.insert((at, self.count), Event::Leaves(frame));
            }
        }
        if let Some(divergence) = out.checkpoint {
            assert!(
                matches!(divergence.reason, Reason::AcknowledgementLags | Reason::Unanswered),
                "the guests do not differ: {divergence:?}"
            );
            self.checkpoints += 1;
            self.guests[1] = self.guests[0].clone();
            // What was under way to or from the secondary is of a guest that is no more; what the primary had said is compared.
            let under_way = std::mem::take(&mut self.events);
            for (at, event) in under_way {
                match event {
                    Event::Says { secondary: true, .. } | Event::Hears { secondary: true, .. } => {}
                    Event::Says { frame, .. } => {
                        let out = self.bench.p(frame);
                        assert_eq!(out.checkpoint, None);
                        self.came_out(out);
                    }
                    event => drop(self.events.insert(at, event)),
                }
            }
            let out = self.bench.flush();
            self.came_out(out);
        }
    }

    fn step(&mut self) {
        self.now += 1;
        if self.now >= self.spells.1 && self.rng.percent(self.spells.0) {
            self.spells.1 = self.now + SPELL;
        }
        let out = self.bench.pass(1);
        self.came_out(out);
        while let Some(first) = self.events.first_entry().filter(|first| first.key().0 <= self.now) {
            let event = first.remove();
            self.happen(event);
        }
        for secondary in [false, true] {
            let (now, guest) = (self.now, &mut self.guests[usize::from(secondary)]);
            let mut frames = guest.hear(Word { data: None, ack: guest.out.acked, stamp: 0 }, now);
            if guest.out.is_due(now) {
                frames.push(guest.data(guest.out.acked, now));
            }
            self.guest_says(secondary, frames);
        }
        while let Some(at) = self.peer.out.next(self.now) {
            self.peer.said_at[at as usize] = self.now;
            self.peer_says(Some(at));
        }
        if self.peer.out.is_due(self.now) {
            let at = (self.peer.out.acked..TOTAL).find(|&at| !self.peer.sacked[at as usize]).unwrap_or(TOTAL - 1);
            self.peer.lost = Some((self.now, self.peer.out.sent));
            self.peer.said_at[at as usize] = self.now;
            self.peer_says(Some(at));
        }
    }

    fn is_done(&self) -> bool {
        self.peer.out.acked == TOTAL && self.peer.next == TOTAL
    }
}

/// Runs both transfers with these losses from many seeds; the longest and the average time (ms), and how many checkpoints.
fn transfers(losses: [u32; 3], spells: u32) -> (i64, i64, u32) {
    const SEEDS: u64 = 60;
    let (mut longest, mut sum, mut checkpoints) = (0, 0, 0);
    for seed in 0..SEEDS {
        let mut world = World::new(seed, losses, spells);
        while !world.is_done() {
            world.step();
            let (up, down) = (world.peer.out.acked, world.peer.next);
            assert!(
                world.now < 60_000,
                "seed {seed}: {up} up, {down} down of {TOTAL}: {:#?}",
                world.bench.engine.stats()
            );
        }
        longest = longest.max(world.now);
        sum += world.now;
        checkpoints += world.checkpoints;
    }
    eprintln!("{losses:?}, {spells}: {} ms, at most {longest}, {checkpoints} checkpoints", sum / SEEDS as i64);
    (longest, sum / SEEDS as i64, checkpoints)
}

#[test]
fn without_losses_nothing_is_needed() {
    let (longest, _, checkpoints) = transfers([0, 0, 0], 0);
    assert!(longest < 100 && checkpoints == 0);
}

#[test]
fn what_either_guest_loses_is_repaired() {
    for losses in [[0, 0, 3], [0, 3, 0], [0, 5, 5], [0, 10, 10], [3, 3, 3]] {
        let (longest, average, checkpoints) = transfers(losses, 0);
        assert!(longest < 2500 && average < 1000, "{losses:?}");
        // Some are lost several times in a row.
        assert!(checkpoints <= losses[2], "{losses:?}: {checkpoints} checkpoints in 60 runs");
    }
}

#[test]
fn a_secondary_that_hears_little_is_no_worse_than_a_primary_that_does() {
    let (_, primary, _) = transfers([0, 20, 0], 0);
    let (longest, secondary, checkpoints) = transfers([0, 0, 20], 0);
    assert!(longest < 2500 && secondary < 2 * primary, "{secondary}, {primary}");
    assert!(checkpoints < 20, "{checkpoints} checkpoints in 60 runs");
}

#[test]
fn a_secondary_that_is_deaf_for_a_while_holds_nobody_up_for_long() {
    for (losses, spells) in [([0, 0, 0], 2), ([0, 0, 3], 2)] {
        let (longest, average, _) = transfers(losses, spells);
        assert!(longest < 2500 && average < 1000, "{spells}");
    }
}
