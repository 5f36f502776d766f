//! System control port A (92h): the A20 gate and fast reset (Intel 290550-002, section 2.5.6).

use std::sync::Arc;

use lockstep_vmstate::{Snapshot, VmState};
use parking_lot::Mutex;

use crate::core::{Board, IrqLine, MachineRequest, ResetCause, byte_registers};

const FAST_RESET: u8 = 1;
const A20: u8 = 2;

/// The port.
pub struct Port92 {
    value: Mutex<u8>,
    a20: IrqLine,
}

impl Port92 {
    /// The port, which drives the A20 gate.
    pub fn new(board: &Board, a20: IrqLine) -> Arc<Self> {
        let port = Arc::new(Self { value: Mutex::new(0), a20 });
        let requests = board.requests.clone();
        let region = byte_registers(
            "port92",
            1,
            &port,
            |p: &Self, _| *p.value.lock(),
            move |p: &Self, _, value| {
                let mut old = p.value.lock();
                let resets = value & FAST_RESET != 0 && *old & FAST_RESET == 0;
                *old = value;
                p.a20.set(value & A20 != 0);
                if resets {
                    requests.request(MachineRequest::Reset(ResetCause::GuestReset));
                }
            },
        );
        board.ports.add(0x92, &region);
        port
    }

    /// Resets it.
    pub fn reset(&self) {
        *self.value.lock() &= !FAST_RESET;
    }
}

/// The section `port92`.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "port92", version = 1)]
#[allow(missing_docs)]
pub struct Port92State {
    pub outport: u8,
}

impl Snapshot for Port92 {
    type Wire = Port92State;

    fn snapshot(&self) -> Port92State {
        Port92State { outport: *self.value.lock() }
    }

    fn restore(&self, wire: Port92State) {
        *self.value.lock() = wire.outport;
    }
}

#[cfg(test)]
mod tests {
    use lockstep_event::Clocks;
    use lockstep_vmstate::vmstate_roundtrip;

    use super::*;

    #[test]
    fn only_a_rising_bit_0_resets() {
        let board = Board::new(Clocks::manual());
        let resets = Arc::new(Mutex::new(0));
        let count = resets.clone();
        board.requests.set_receiver(move |_| *count.lock() += 1);
        let port = Port92::new(&board, IrqLine::unconnected());
        board.port_space.write_u8(0x92, 3);
        board.port_space.write_u8(0x92, 3);
        assert_eq!((*resets.lock(), board.port_space.read_u8(0x92)), (1, 3));
        port.reset();
        assert_eq!(board.port_space.read_u8(0x92), 2);
    }

    vmstate_roundtrip!(
        state_survives_the_wire,
        || {
            let board = Board::new(Clocks::manual());
            let port = Port92::new(&board, IrqLine::unconnected());
            board.port_space.write_u8(0x92, 2);
            port
        },
        || Port92::new(&Board::new(Clocks::manual()), IrqLine::unconnected())
    );
}
