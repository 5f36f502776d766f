//! Both halves of NBD's negotiation, and the words of its transmission.
#![no_main]
use libfuzzer_sys::fuzz_target;
use lockstep_block::nbd::client_handshake::{self, ClientHandshake};
use lockstep_block::nbd::server_handshake::{self, Directory, ExportInfo, ServerHandshake};
use lockstep_block::nbd::wire::{ReplyHeader, Request, TransmissionFlags};

struct Exports;

impl Directory for Exports {
    fn names(&self) -> Vec<String> {
        vec!["parent0".into(), String::new()]
    }
    fn find(&self, name: &str) -> Option<ExportInfo> {
        let info = ExportInfo {
            size: 1 << 30,
            flags: TransmissionFlags::empty(),
            description: None,
            min_block: 1,
            preferred_block: 4096,
        };
        matches!(name, "" | "parent0").then_some(info)
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, mut rest)) = data.split_first() else { return };
    let mut out = Vec::new();
    match first % 3 {
        0 => {
            let mut client = ClientHandshake::new("parent0");
            while rest.len() >= client.want() {
                let (now, later) = rest.split_at(client.want());
                rest = later;
                match client.advance(now, &mut out) {
                    Ok(client_handshake::Step::More) => {}
                    _ => break,
                }
            }
        }
        1 => {
            let mut server = ServerHandshake::default();
            while rest.len() >= server.want() {
                let (now, later) = rest.split_at(server.want());
                rest = later;
                match server.advance(now, &Exports, &mut out) {
                    Ok(server_handshake::Step::More) => {}
                    _ => break,
                }
            }
        }
        _ => {
            if let Some(head) = rest.first_chunk() {
                if let Ok(request) = Request::decode(head) {
                    assert_eq!(Request::decode(&request.encode()).unwrap().encode(), request.encode());
                }
            }
            if let Ok(header) = ReplyHeader::decode(rest) {
                header.encode(&mut out);
            }
        }
    }
    assert!(out.len() <= 64 * data.len() + 1024, "an answer far longer than the question");
});
