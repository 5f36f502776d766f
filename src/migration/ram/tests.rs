//! RAM from one list to another.

use super::*;
use crate::status::Counters;
use crate::stream::{PAGE, RamDecoder};
use lockstep_memory::RamList;
use lockstep_vmstate::Decoder;

fn machine() -> RamList {
    let list = RamList::new();
    list.allocate("pc.ram", 130 * PAGE as u64).unwrap();
    list.allocate("vga.vram", 3 * PAGE as u64).unwrap();
    list
}

fn contents(list: &RamList) -> Vec<Vec<u8>> {
    let read = |b: &lockstep_memory::RamBlock| {
        let mut all = vec![0; b.size() as usize];
        b.read(0, &mut all).unwrap();
        all
    };
    list.blocks().iter().map(read).collect()
}

fn poke(list: &RamList, block: &str, page: u64, byte: u8) {
    list.find(block).unwrap().write(page * PAGE as u64 + 7, &[byte]).unwrap();
}

/// Sends all that is dirty; returns the records' bytes.
fn send(sender: &mut RamSender) -> Vec<u8> {
    let (mut out, counters) = (Vec::new(), Counters::default());
    sender.sync();
    sender.begin_part();
    while !sender.encode(&mut out, usize::MAX, &counters).unwrap() {}
    sender.end_part(&mut out);
    out
}

fn receive(receiver: &mut RamReceiver, bytes: &[u8]) {
    let mut decoder = RamDecoder::new(receiver.table().clone());
    let mut input = Decoder::partial(bytes);
    while input.remaining() > 0 {
        let record = decoder.next(&mut input).unwrap().unwrap();
        receiver.take(&record).unwrap();
    }
}

#[test]
fn the_first_pass_sends_every_page_and_the_next_only_what_changed() {
    let (from, to) = (machine(), machine());
    (0..130).step_by(3).for_each(|page| poke(&from, "pc.ram", page, 1));
    poke(&to, "pc.ram", 1, 9);
    let mut sender = RamSender::start(&from).unwrap();
    assert_eq!(sender.dirty_bytes(), 133 * PAGE as u64);
    let mut receiver = RamReceiver::new(&to);
    receive(&mut receiver, &send(&mut sender));
    assert_eq!(contents(&from), contents(&to));

    poke(&from, "vga.vram", 2, 5);
    poke(&from, "pc.ram", 129, 6);
    let bytes = send(&mut sender);
    assert!(bytes.len() < 3 * PAGE, "{}", bytes.len());
    receive(&mut receiver, &bytes);
    assert_eq!(contents(&from), contents(&to));
    assert_eq!(sender.dirty_bytes(), 0);
}

#[test]
fn a_limit_cuts_the_pages_into_parts_and_none_is_lost() {
    let (from, to) = (machine(), machine());
    (0..130).for_each(|page| poke(&from, "pc.ram", page, page as u8 + 1));
    let (mut sender, mut receiver) = (RamSender::start(&from).unwrap(), RamReceiver::new(&to));
    let counters = Counters::default();
    let mut parts = 0;
    loop {
        let mut out = Vec::new();
        sender.begin_part();
        let done = sender.encode(&mut out, 20_000, &counters).unwrap();
        sender.end_part(&mut out);
        receive(&mut receiver, &out);
        parts += 1;
        if done {
            break;
        }
    }
    assert!(parts > 20);
    assert_eq!(contents(&from), contents(&to));
    let count = |c| Counters::get(c);
    assert_eq!((count(&counters.normal_pages), count(&counters.zero_pages)), (130, 3));
}

#[test]
fn a_checkpoint_reaches_the_guest_only_when_it_is_applied() {
    let (from, to) = (machine(), machine());
    let (mut sender, mut receiver) = (RamSender::start(&from).unwrap(), RamReceiver::new(&to));
    receiver.enable_cache(&to).unwrap();
    receive(&mut receiver, &send(&mut sender));
    receiver.begin_checkpoints().unwrap();

    poke(&from, "pc.ram", 5, 1);
    poke(&from, "pc.ram", 6, 2);
    poke(&to, "pc.ram", 6, 77);
    poke(&to, "pc.ram", 100, 88);
    let before = contents(&to);
    receive(&mut receiver, &send(&mut sender));
    assert_eq!(contents(&to), before, "nothing may touch the guest while a checkpoint arrives");
    assert_eq!(receiver.apply_checkpoint().unwrap(), 3, "pages 5 and 6 came, 6 and 100 were written here");
    assert_eq!(contents(&from), contents(&to));
    assert_eq!(receiver.apply_checkpoint().unwrap(), 0, "applying is not itself a change");
}

#[test]
fn many_pages_are_all_copied_whoever_copies_them() {
    let (from, to) = (RamList::new(), RamList::new());
    for list in [&from, &to] {
        list.allocate("pc.ram", 9000 * PAGE as u64).unwrap();
        list.allocate("vga.vram", 70 * PAGE as u64).unwrap();
    }
    let mut sender = RamSender::start(&from).unwrap();
    let mut receiver = RamReceiver::new(&to);
    receiver.enable_cache(&to).unwrap();
    receive(&mut receiver, &send(&mut sender));
    receiver.begin_checkpoints().unwrap();
    // Single pages, long runs, everything; and what the guest itself wrote is undone.
    for (step, byte) in [(2, 1), (1, 2), (7, 3)] {
        (0..9000).step_by(step).for_each(|page| poke(&from, "pc.ram", page, byte));
        (0..70).step_by(step).for_each(|page| poke(&from, "vga.vram", page, byte));
        (0..9000).step_by(11).for_each(|page| poke(&to, "pc.ram", page, 77));
        receive(&mut receiver, &send(&mut sender));
        assert!(receiver.apply_checkpoint().unwrap() >= 9070 / step as u64);
        assert_eq!(contents(&from), contents(&to));
    }
}
