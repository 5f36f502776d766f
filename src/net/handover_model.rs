//! The handing over of work under a scheduler that tries what threads may do (shuttle): the same source, on locks of the model.

#[path = "handover.rs"]
#[allow(dead_code, clippy::duplicate_mod)]
mod handover;

mod sync {
    //! Shuttle's lock, spelt as parking_lot's.
    pub use shuttle::sync::MutexGuard as Guard;

    #[derive(Debug, Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> Guard<'_, T> {
            self.0.lock().unwrap()
        }

        pub fn try_lock(&self) -> Option<Guard<'_, T>> {
            self.0.try_lock().ok()
        }
    }
}

use handover::{Handover, Worker};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

const SCHEDULES: usize = 3000;

/// Notes what it deals with; takes no more once it has so many.
struct Notes {
    seen: Seen,
    most: usize,
}

/// To be looked at without the worker: whoever asks that for something does what was left.
type Seen = Arc<Mutex<Vec<u8>>>;

impl Worker for Notes {
    type Item = u8;

    fn work(&mut self, items: &mut Vec<u8>) {
        // Other threads run meanwhile.
        thread::yield_now();
        self.seen.lock().unwrap().append(items);
    }

    fn has_room(&self) -> bool {
        self.seen.lock().unwrap().len() < self.most
    }
}

fn notes(most: usize) -> (Arc<Handover<Notes>>, Seen) {
    let seen = Seen::default();
    (Arc::new(Handover::new(Notes { seen: seen.clone(), most })), seen)
}

#[test]
fn all_that_is_brought_is_dealt_with_in_order_without_anybody_else_in_any_schedule() {
    shuttle::check_random(
        || {
            let (place, seen) = notes(usize::MAX);
            let bringers = [1u8, 11].map(|first| {
                let place = place.clone();
                thread::spawn(move || (first..first + 3).for_each(|item| assert!(place.bring(&mut vec![item]))))
            });
            // Whoever does other work meanwhile keeps nobody's work from being done.
            place.with(|_| thread::yield_now());
            bringers.into_iter().for_each(|bringer| bringer.join().unwrap());
            let seen = seen.lock().unwrap();
            let of =
                |first: u8| seen.iter().copied().filter(|item| (first..first + 3).contains(item)).collect::<Vec<_>>();
            assert_eq!((of(1), of(11)), (vec![1, 2, 3], vec![11, 12, 13]));
        },
        SCHEDULES,
    );
}

#[test]
fn other_work_follows_what_was_brought_before_it_in_any_schedule() {
    shuttle::check_random(
        || {
            let (place, seen) = notes(usize::MAX);
            let other = {
                let place = place.clone();
                thread::spawn(move || place.with(|_| thread::yield_now()))
            };
            assert!(place.bring(&mut vec![1, 2]));
            place.with(|_| assert_eq!(*seen.lock().unwrap(), [1, 2]));
            other.join().unwrap();
        },
        SCHEDULES,
    );
}

#[test]
fn what_is_refused_stays_with_its_bringer_and_nothing_is_lost_in_any_schedule() {
    shuttle::check_random(
        || {
            let (place, seen) = notes(2);
            let bringer = {
                let place = place.clone();
                thread::spawn(move || (1..=4u8).filter(|item| !place.bring(&mut vec![*item])).collect::<Vec<_>>())
            };
            place.close();
            let refused = bringer.join().unwrap();
            let seen = seen.lock().unwrap().clone();
            assert_eq!([seen, refused].concat(), [1, 2, 3, 4]);
        },
        SCHEDULES,
    );
}
