//! The queue before a card.
use std::cell::Cell;

use crate::packet::Frame;
use crate::queue::PacketQueue;

#[test]
fn order_is_kept_while_the_card_refuses_and_calls_back() {
    let queue = PacketQueue::default();
    let open = Cell::new(false);
    let got = std::cell::RefCell::new(Vec::new());
    let frame = |n: u8| Frame::new(vec![n]);
    let deliver = |f: &Frame| {
        got.borrow_mut().push(f.data[0]);
        // A card that answers at once.
        queue.pump(|| true, |_| panic!("delivered out of order"));
        true
    };
    queue.push(frame(1), || open.get(), deliver);
    queue.push(frame(2), || open.get(), deliver);
    assert!(got.borrow().is_empty());
    open.set(true);
    queue.push(frame(3), || open.get(), deliver);
    assert_eq!(*got.borrow(), [1, 2, 3]);
    assert_eq!(queue.clear(), 0);
}

#[test]
fn a_frame_that_is_forgotten_while_it_is_delivered_neither_comes_back_nor_counts_twice() {
    let queue = PacketQueue::default();
    for taken in [true, false] {
        queue.push(
            Frame::new(vec![0; 100]),
            || true,
            |_| {
                queue.clear();
                taken
            },
        );
        assert_eq!(queue.snapshot(), []);
    }
}
