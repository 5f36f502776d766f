//! The queue before a card under a scheduler that tries what threads may do (shuttle): the same source, on a lock of the model.

#[path = "queue.rs"]
#[allow(dead_code, clippy::duplicate_mod)]
mod queue;

mod sync {
    //! Shuttle's lock, spelt as parking_lot's.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn lock(&self) -> shuttle::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

use crate::packet::Frame;
use queue::PacketQueue;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

const SCHEDULES: usize = 3000;

/// A card that may be full; its thread makes room and says so.
#[derive(Default)]
struct Card {
    queue: PacketQueue,
    full: AtomicBool,
    got: Mutex<Vec<u8>>,
}

impl Card {
    fn push(&self, number: u8) {
        self.queue.push(Frame::new(vec![number]), || self.ready(), |frame| self.take(frame));
    }

    fn ready(&self) -> bool {
        !self.full.load(Ordering::SeqCst)
    }

    /// Each frame fills the card.
    fn take(&self, frame: &Frame) -> bool {
        if self.full.swap(true, Ordering::SeqCst) {
            return false;
        }
        self.got.lock().unwrap().push(frame.data[0]);
        true
    }

    fn make_room(&self) {
        self.full.store(false, Ordering::SeqCst);
        self.queue.pump(|| self.ready(), |frame| self.take(frame));
    }
}

#[test]
fn every_frame_arrives_once_and_in_order_in_any_schedule() {
    shuttle::check_random(
        || {
            let card = Arc::new(Card::default());
            let sender = {
                let card = card.clone();
                thread::spawn(move || (1..=3).for_each(|number| card.push(number)))
            };
            // A vCPU that empties its card. Nobody calls again once the last frame is there: none may be left behind.
            while card.got.lock().unwrap().len() < 3 {
                card.make_room();
                thread::yield_now();
            }
            sender.join().unwrap();
            assert_eq!(*card.got.lock().unwrap(), [1, 2, 3]);
        },
        SCHEDULES,
    );
}

#[test]
fn room_made_while_a_frame_is_refused_is_not_overlooked_in_any_schedule() {
    shuttle::check_random(
        || {
            let card = Arc::new(Card::default());
            card.full.store(true, Ordering::SeqCst);
            let sender = {
                let card = card.clone();
                thread::spawn(move || card.push(1))
            };
            card.make_room();
            sender.join().unwrap();
            assert_eq!(*card.got.lock().unwrap(), [1]);
        },
        SCHEDULES,
    );
}

#[test]
fn nothing_of_an_old_epoch_stays_in_any_schedule() {
    shuttle::check_random(
        || {
            let card = Arc::new(Card::default());
            card.full.store(true, Ordering::SeqCst);
            card.push(1);
            let vcpu = {
                let card = card.clone();
                thread::spawn(move || card.queue.pump(|| card.ready(), |frame| card.take(frame)))
            };
            card.queue.clear();
            vcpu.join().unwrap();
            assert_eq!(card.queue.snapshot(), []);
        },
        SCHEDULES,
    );
}
