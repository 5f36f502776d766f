//! A port that a firmware writes text to (`isa-debugcon`, `-debugcon`).

use std::sync::Arc;

use lockstep_memory::{AccessRules, Region};

use super::CharSink;
use crate::core::{Board, Property, PropertyKind, io_handler};

/// Properties of `isa-debugcon`.
pub const PROPERTIES: &[Property] = &[
    Property::new("iobase", PropertyKind::U32, "233"),
    Property::unset("chardev", PropertyKind::Chardev),
    Property::new("readback", PropertyKind::U32, "233"),
];

/// The usual port.
pub const DEFAULT_PORT: u16 = 0xe9;

/// A debug console at a port. Reads give `readback`, by which firmware finds it.
pub fn add_debugcon(board: &Board, port: u16, readback: u32, sink: Arc<dyn CharSink>) -> Region {
    let handler =
        io_handler(AccessRules::bytes(1), move |_, _| readback.into(), move |_, _, value| sink.send(&[value as u8]));
    let region = Region::io("isa-debugcon", 1, handler);
    board.ports.add(port.into(), &region);
    region
}

#[cfg(test)]
mod tests {
    use lockstep_event::Clocks;
    use parking_lot::Mutex;

    use super::*;

    struct Collect(Mutex<Vec<u8>>);

    impl CharSink for Collect {
        fn send(&self, bytes: &[u8]) {
            self.0.lock().extend(bytes);
        }
    }

    #[test]
    fn text_goes_out_and_the_port_is_found() {
        let board = Board::new(Clocks::manual());
        let out = Arc::new(Collect(Mutex::default()));
        add_debugcon(&board, 0x402, 0xe9, out.clone());
        b"hi".iter().for_each(|&b| board.port_space.write_u8(0x402, b));
        assert_eq!((board.port_space.read_u8(0x402), &*out.0.lock()), (0xe9, &b"hi".to_vec()));
    }
}
