//! The end of an epoch in the comparison: what belongs to the old one and what to the new. The comparison runs on the test's own thread,
//! so that it has seen what the test lets it see.

use std::io::IoSlice;
use std::pin::pin;

use lockstep_chardev::{CharFrontend, CharStream, StreamEvent};

use super::*;
use crate::packet::testing::udp;

struct Comparison {
    m: Machine,
    primary: CharFrontend,
    secondary: CharFrontend,
    out: CharStream,
    /// What came out and was not looked at.
    came: Vec<u8>,
}

fn framed(data: &[u8]) -> Vec<u8> {
    [&(data.len() as u32).to_be_bytes()[..], data].concat()
}

impl Comparison {
    async fn new() -> Self {
        let m = Machine::new().await;
        for id in ["pin", "sin", "out"] {
            m.chardev(&format!("socket,id={id},host=127.0.0.1,port=0,server=on,wait=off")).await;
            m.chardev(&format!("socket,id={id}-peer,host=127.0.0.1,port={}", m.port_of(id))).await;
            until(|| m.chardevs.query().iter().any(|c| c.label == id && c.filename.contains("<->"))).await;
        }
        let options: ObjectOptions = from_json(json!({"qom-type": "colo-compare", "id": "c0", "primary_in": "pin",
            "secondary_in": "sin", "outdev": "out", "iothread": "here"}))
        .unwrap();
        let context = Context::current().unwrap();
        let here =
            || IoThreadRef { context: context.clone(), path: "/objects/here".into(), keep: std::rc::Rc::new(()) };
        m.net.add_object(&options, &|_| Some(here())).unwrap();
        let attach = |id: &str| m.chardevs.attach(id).unwrap();
        let [primary, secondary] = ["pin-peer", "sin-peer"].map(attach);
        let out = attach("out-peer").into_stream();
        let mut this = Self { m, primary, secondary, out, came: Vec::new() };
        // From here on it knows of all its connections.
        this.primary(b"hello");
        this.secondary(&framed(&udp(b"hello").data));
        assert_eq!(this.next().await, udp(b"hello").data);
        this
    }

    fn primary(&self, text: &[u8]) {
        assert!(self.primary.write(&framed(&udp(text).data)));
    }

    fn secondary(&self, bytes: &[u8]) {
        assert!(self.secondary.write(bytes));
    }

    /// What comes out next.
    async fn next(&mut self) -> Vec<u8> {
        let all = async {
            let mut buf = [0; 65536];
            loop {
                if let Some((head, rest)) = self.came.split_at_checked(4) {
                    let len = u32::from_be_bytes(head.try_into().unwrap()) as usize;
                    if rest.len() >= len {
                        let frame = rest[..len].to_vec();
                        self.came.drain(..4 + len);
                        return frame;
                    }
                }
                if self.out.event(true).await == StreamEvent::Readable
                    && let Ok(n) = self.out.try_read(&mut buf)
                {
                    self.came.extend_from_slice(&buf[..n]);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("something comes out")
    }

    async fn flush(&self) {
        self.m.net.compare_checkpoint_flush(false).await;
    }

    /// Waits until it has seen so many packets of both, and gives how many it holds.
    async fn held_after(&self, primary: u64, secondary: u64) -> usize {
        for _ in 0..5000 {
            let stats = self.m.net.compare_stats().await["c0"].clone();
            if (stats.primary_frames, stats.secondary_frames) == (primary, secondary) {
                return stats.held_packets;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("they do not come");
    }
}

#[test]
fn a_flush_waits_for_the_primarys_last_words_and_releases_them_in_their_order() {
    run(|| async {
        let mut c = Comparison::new().await;
        c.primary(b"one");
        let two = framed(&udp(b"two").data).len() as u64;
        let want = c.m.chardevs.accepted_bytes("pin-peer").unwrap() + two;
        let compare = c.m.net.compare("c0").unwrap();
        {
            let mut flush = pin!(compare.flush(Some(want), false));
            for _ in 0..100 {
                let done = std::future::poll_fn(|cx| std::task::Poll::Ready(flush.as_mut().poll(cx).is_ready())).await;
                assert!(!done, "the second is on its way");
                tokio::task::yield_now().await;
            }
            c.primary(b"two");
            flush.await;
        }
        assert_eq!((c.next().await, c.next().await), (udp(b"one").data, udp(b"two").data));
        c.primary(b"three");
        assert_eq!(c.held_after(4, 1).await, 1, "this one is of the new epoch");
    });
}

#[test]
fn a_flush_takes_all_that_the_primarys_device_had_taken_before() {
    run(|| async {
        let mut c = Comparison::new().await;
        let writer = c.primary.writer();
        // More than the host's socket takes: the rest is in the device's queue.
        let frame = |n: u32| [&udp(&n.to_be_bytes()).data[..], &[0; 1400]].concat();
        let send = |n: u32| writer.send(&[IoSlice::new(&framed(&frame(n)))]).is_ok();
        let sent = (0..).take_while(|n| send(*n)).count() as u32;
        assert!(writer.queued() > 0, "{sent} are all gone");
        c.primary.start_output();
        let net = c.m.net.clone();
        let flush = tokio::task::spawn_local(async move { net.compare_checkpoint_flush(false).await });
        for n in 0..sent {
            assert_eq!(c.next().await, frame(n));
        }
        flush.await.unwrap();
    });
}

#[test]
fn a_flush_forgets_what_the_secondary_had_said_and_was_not_read_to_the_middle_of_a_word() {
    run(|| async {
        let mut c = Comparison::new().await;
        let word = framed(&udp(b"word").data);
        // Nobody has read this when the flush begins.
        c.secondary(&[&word[..], &word[..20]].concat());
        c.flush().await;
        c.primary(b"word");
        assert_eq!(c.held_after(2, 1).await, 1, "the old guest's word confirms nothing");
        // The rest of the old word, and a new one.
        c.secondary(&word[20..]);
        c.secondary(&framed(&udp(b"next").data));
        c.primary(b"next");
        assert_eq!(c.next().await, udp(b"next").data);
        assert_eq!(c.held_after(3, 2).await, 1, "the first one is still held");
    });
}
