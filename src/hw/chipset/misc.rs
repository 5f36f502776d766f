//! Ports that answer but do nothing here.

use lockstep_memory::{AccessRules, Region};

use crate::core::{Board, io_handler};

/// The POST code port 80h, and port F0h, which clears the FPU's busy line (there is none: CPUs report FPU errors by exception).
pub fn add_dummy_ports(board: &Board) {
    for (port, name) in [(0x80, "ioport80"), (0xf0, "ioportF0")] {
        let handler = io_handler(AccessRules::bytes(1), |_, _| 0xff, |_, _, _| ());
        board.ports.add(port, &Region::io(name, 1, handler));
    }
}
