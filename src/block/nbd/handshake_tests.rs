//! Both halves of the negotiation against each other, and each against bytes from anywhere.

use proptest::prelude::*;

use super::client_handshake::{self, ClientHandshake, Negotiated};
use super::server_handshake::{self, Directory, ExportInfo, MAX_OPTION, Selected, ServerHandshake};
use super::wire::{self, TransmissionFlags, option, reply};

struct OneExport;

impl Directory for OneExport {
    fn names(&self) -> Vec<String> {
        vec!["parent0".into()]
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        (name == "parent0").then(|| ExportInfo {
            size: 10 << 30,
            flags: TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA,
            description: None,
            min_block: 1,
            preferred_block: 4096,
        })
    }
}

/// Lets both talk until one ends.
fn talk(export: &str) -> (lockstep_util::Result<Negotiated>, Option<Selected>) {
    let (mut client, mut server) = (ClientHandshake::new(export), ServerHandshake::default());
    let (mut to_client, mut to_server) = (ServerHandshake::greeting(), Vec::new());
    let mut selected = None;
    loop {
        if to_client.len() >= client.want() {
            let bytes: Vec<u8> = to_client.drain(..client.want()).collect();
            match client.advance(&bytes, &mut to_server) {
                Ok(client_handshake::Step::More) => {}
                Ok(client_handshake::Step::Done(n)) => return (Ok(n), selected),
                Err(e) => return (Err(e), selected),
            }
        } else {
            assert!(to_server.len() >= server.want(), "both sides wait");
            let bytes: Vec<u8> = to_server.drain(..server.want()).collect();
            match server.advance(&bytes, &OneExport, &mut to_client).unwrap() {
                server_handshake::Step::Transmission(s) => selected = Some(s),
                server_handshake::Step::More => {}
                server_handshake::Step::Closed => panic!("server closed"),
            }
        }
    }
}

#[test]
fn client_and_server_agree_on_size_structured_replies_and_allocation() {
    let (negotiated, selected) = talk("parent0");
    let n = negotiated.unwrap();
    assert_eq!((n.size, n.structured, n.allocation_context, n.max_block), (10 << 30, true, Some(0), 32 << 20));
    assert!(n.flags.contains(TransmissionFlags::SEND_DF | TransmissionFlags::HAS_FLAGS));
    assert_eq!(selected, Some(Selected { export: "parent0".into(), structured: true, allocation_context: Some(0) }));
}

#[test]
fn a_missing_export_is_reported_in_qemus_words() {
    let e = talk("nope").0.unwrap_err();
    assert_eq!(e.message(), "Requested export not available");
    assert_eq!(e.hint_text(), "server reported: export 'nope' not present\n");
}

fn ask(server: &mut ServerHandshake, number: u32, payload: &[u8]) -> Vec<u8> {
    let mut input = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    input.extend_from_slice(&number.to_be_bytes());
    input.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    input.extend_from_slice(payload);
    let mut out = Vec::new();
    while !input.is_empty() {
        let bytes: Vec<u8> = input.drain(..server.want()).collect();
        server.advance(&bytes, &OneExport, &mut out).unwrap();
    }
    out
}

fn kind(out: &[u8]) -> u32 {
    u32::from_be_bytes(out[12..16].try_into().unwrap())
}

#[test]
fn options_out_of_place_are_refused_and_the_negotiation_goes_on() {
    let mut server = ServerHandshake::default();
    server.advance(&3u32.to_be_bytes(), &OneExport, &mut Vec::new()).unwrap();
    let huge = vec![0; MAX_OPTION as usize * 3 + 5];
    for (number, payload, want) in [
        (option::STARTTLS, &[][..], reply::ERR_POLICY),
        (option::SET_META_CONTEXT, &[], reply::ERR_INVALID),
        (option::STRUCTURED_REPLY, &[1], reply::ERR_INVALID),
        (option::STRUCTURED_REPLY, &[], reply::ACK),
        (option::STRUCTURED_REPLY, &[], reply::ERR_INVALID),
        (option::GO, &[0, 0, 0, 1], reply::ERR_INVALID),
        (option::LIST, &huge, reply::ERR_TOO_BIG),
        (11, &[], reply::ERR_UNSUP),
        (option::LIST, &[], reply::SERVER),
    ] {
        assert_eq!(kind(&ask(&mut server, number, payload)), want, "option {number}");
    }
}

proptest! {
    #[test]
    fn hostile_clients_get_bounded_answers(bytes in prop::collection::vec(any::<u8>(), 0..4096), magic: bool) {
        let mut server = ServerHandshake::default();
        let mut out = Vec::new();
        let mut input = 3u32.to_be_bytes().to_vec();
        if magic {
            input.extend_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
            input.extend_from_slice(&[0, 0, 0]);
        }
        input.extend_from_slice(&bytes);
        let mut rest = &input[..];
        while rest.len() >= server.want() {
            prop_assert!(server.want() <= MAX_OPTION as usize && server.want() > 0);
            let (head, tail) = rest.split_at(server.want());
            rest = tail;
            match server.advance(head, &OneExport, &mut out) {
                Ok(server_handshake::Step::More) => {}
                _ => break,
            }
        }
        prop_assert!(out.len() < 64 * 1024);
    }

    #[test]
    fn hostile_servers_are_refused_without_panic(
        replies in prop::collection::vec((1u32..12, any::<u32>(), prop::collection::vec(any::<u8>(), 0..64)), 0..20),
    ) {
        let mut client = ClientHandshake::new("x");
        let mut input = ServerHandshake::greeting();
        for (option, kind, payload) in replies {
            input.extend_from_slice(&wire::OPTION_REPLY_MAGIC.to_be_bytes());
            input.extend_from_slice(&option.to_be_bytes());
            input.extend_from_slice(&(kind & 0x8000_000f).to_be_bytes());
            input.extend_from_slice(&(payload.len() as u32).to_be_bytes());
            input.extend_from_slice(&payload);
        }
        let mut rest = &input[..];
        let mut out = Vec::new();
        while rest.len() >= client.want() {
            let (head, tail) = rest.split_at(client.want());
            rest = tail;
            match client.advance(head, &mut out) {
                Ok(client_handshake::Step::More) => {}
                _ => break,
            }
        }
    }
}
