//! Clients that do not keep to the protocol: whatever they send, the server goes on and others are served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use lockstep_event::Context;
use proptest::prelude::*;

use super::server::{ListenAddress, ServerOptions};
use super::{Exports, NbdExportOptions};
use crate::nbd::client_handshake::{ClientHandshake, Step};
use crate::nbd::wire::{self, Command, CommandFlags, Request};
use crate::*;

/// Runs `clients` on a thread of its own against a server in this one.
fn against_server<T: Send + 'static>(clients: impl FnOnce(String) -> T + Send + 'static) -> T {
    Context::new("test").unwrap().run(async {
        let graph = Graph::new();
        let opts =
            Options::from_pairs([("driver", "null-co"), ("read-zeroes", "on"), ("size", "64M"), ("node-name", "disk")]);
        graph.blockdev_add(opts).await.unwrap();
        let exports = Exports::of(&graph);
        let mut options = ServerOptions::new(ListenAddress::Inet { host: "127.0.0.1".into(), port: "0".into() });
        options.handshake_max_seconds = 1;
        exports.server_start(&graph, options).await.unwrap();
        let export = NbdExportOptions { node: "disk".into(), writable: true, ..NbdExportOptions::default() };
        exports.server_add(&graph, export).await.unwrap();
        let address = exports.server_address().unwrap();
        let result = tokio::task::spawn_blocking(move || clients(address)).await.unwrap();
        exports.server_stop(&graph).await.unwrap();
        graph.blockdev_del("disk").await.unwrap();
        result
    })
}

fn connect(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut handshake = ClientHandshake::new("disk");
    loop {
        let mut buf = vec![0; handshake.want()];
        stream.read_exact(&mut buf).unwrap();
        let mut out = Vec::new();
        let step = handshake.advance(&buf, &mut out).unwrap();
        stream.write_all(&out).unwrap();
        if let Step::Done(_) = step {
            return stream;
        }
    }
}

fn request(command: Command, flags: u16, offset: u64, len: u32) -> [u8; Request::SIZE] {
    Request { flags: CommandFlags::from_bits_retain(flags), command, cookie: 7, offset, len }.encode()
}

/// The error number that a request is answered with, 0 for success.
fn answer(stream: &mut TcpStream, message: &[u8]) -> u32 {
    stream.write_all(message).unwrap();
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    let word = |b: &[u8]| u32::from_be_bytes(b.try_into().unwrap());
    if word(&head[..4]) == wire::SIMPLE_REPLY_MAGIC {
        return word(&head[4..8]);
    }
    let mut len = [0; 4];
    stream.read_exact(&mut len).unwrap();
    let mut body = vec![0; word(&len) as usize];
    stream.read_exact(&mut body).unwrap();
    if head[6] & 0x80 != 0 { word(&body[..4]) } else { 0 }
}

#[test]
fn requests_out_of_range_or_with_unknown_flags_are_refused_one_by_one() {
    against_server(|address| {
        let mut s = connect(&address);
        let size = 64 << 20;
        for (message, want) in [
            (request(Command::Read, 0, size, 512), 22),
            (request(Command::Read, 0, u64::MAX, 512), 22),
            (request(Command::Read, 0, 0, wire::MAX_PAYLOAD + 1), 22),
            (request(Command::Read, 0, 0, 0), 22),
            (request(Command::Read, 0x8000, 0, 512), 22),
            (request(Command::WriteZeroes, 0, size - 512, 1024), 28),
            (request(Command::Trim, 0, size, 1), 22),
            (request(Command::BlockStatus, 0, 0, 0), 22),
            (request(Command::Unknown(99), 0, 0, 0), 22),
            (request(Command::Flush, 0, 5, 5), 0),
            (request(Command::BlockStatus, 8, 0, 1 << 20), 0),
            (request(Command::Read, 4, size - 512, 512), 0),
        ] {
            assert_eq!(answer(&mut s, &message), want, "{message:?}");
        }
        // A write beyond the end: its payload is taken, the framing stays.
        let mut message = request(Command::Write, 0, size, 512).to_vec();
        message.extend_from_slice(&[0; 512]);
        assert_eq!(answer(&mut s, &message), 28);
        assert_eq!(answer(&mut s, &request(Command::Flush, 0, 0, 0)), 0);
    });
}

#[test]
fn a_payload_too_long_or_a_wrong_magic_number_ends_the_connection() {
    against_server(|address| {
        for message in [request(Command::Write, 0, 0, u32::MAX), [0x55; Request::SIZE]] {
            let mut s = connect(&address);
            s.write_all(&message).unwrap();
            assert!(matches!(s.read(&mut [0; 1]), Ok(0) | Err(_)));
        }
    });
}

#[test]
fn a_client_that_never_reads_is_held_back_and_others_are_served() {
    against_server(|address| {
        let mut lazy = connect(&address);
        for _ in 0..200 {
            lazy.write_all(&request(Command::Read, 4, 0, 1 << 20)).unwrap();
        }
        let mut other = connect(&address);
        assert_eq!(answer(&mut other, &request(Command::Read, 4, 0, 1 << 20)), 0);
        // What was held back comes when it is asked for.
        let mut left = 200u64 * ((1 << 20) + 28);
        let mut buf = vec![0; 1 << 20];
        while left > 0 {
            let n = lazy.read(&mut buf).unwrap() as u64;
            assert!(n > 0 && n <= left);
            left -= n;
        }
    });
}

#[test]
fn a_client_that_does_not_negotiate_in_time_is_dropped() {
    against_server(|address| {
        let mut s = TcpStream::connect(address).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut all = Vec::new();
        s.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 18, "the greeting, and the end");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_a_client_sends_the_server_serves_the_next(
        frames in prop::collection::vec((0u16..12, any::<u16>(), any::<u64>(), any::<u32>(), 0usize..600), 1..30),
    ) {
        against_server(move |address| {
            let mut s = connect(&address);
            s.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            s.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            for (command, flags, offset, len, payload) in frames {
                let message = request(Command::from_wire(command), flags & 0x1f, offset >> (offset % 64), len >> (len % 32));
                if s.write_all(&message).is_err() || s.write_all(&vec![0x25; payload]).is_err() {
                    break;
                }
            }
            drop(s);
            let mut other = connect(&address);
            assert_eq!(answer(&mut other, &request(Command::Read, 4, 0, 512)), 0);
        });
    }
}
