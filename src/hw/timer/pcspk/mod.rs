//! Port 61h: the gate of the 8254's channel 2, the speaker, and the refresh toggle. There is no sound behind it.

use std::sync::Arc;

use lockstep_vmstate::{Snapshot, VmState};
use parking_lot::Mutex;

use super::pit::PitBackend;
use crate::core::{Board, byte_registers};

/// The section `pcspk`.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "pcspk", version = 1)]
pub struct SpeakerState {
    /// Whether channel 2 reaches the speaker.
    pub data_on: u8,
    /// The refresh toggle.
    pub dummy_refresh_clock: u8,
}

/// The speaker port.
pub struct Speaker {
    state: Mutex<SpeakerState>,
    pit: Arc<dyn PitBackend>,
}

impl Speaker {
    /// The port, watching `pit`.
    pub fn new(board: &Board, pit: Arc<dyn PitBackend>) -> Arc<Self> {
        let speaker = Arc::new(Self { state: Mutex::default(), pit });
        let port = byte_registers("pcspk", 1, &speaker, |s: &Self, _| s.read(), |s: &Self, _, v| s.write(v));
        board.ports.add(0x61, &port);
        speaker
    }

    fn read(&self) -> u8 {
        let channel = self.pit.channel(2);
        let mut state = self.state.lock();
        // The refresh request toggles every 15 us: guests only wait for it to change.
        state.dummy_refresh_clock ^= 0x10;
        u8::from(channel.gate) | state.data_on << 1 | state.dummy_refresh_clock | u8::from(channel.output) << 5
    }

    fn write(&self, value: u8) {
        self.state.lock().data_on = value >> 1 & 1;
        self.pit.set_gate(2, value & 1 != 0);
    }
}

impl Snapshot for Speaker {
    type Wire = SpeakerState;

    fn snapshot(&self) -> SpeakerState {
        self.state.lock().clone()
    }

    fn restore(&self, wire: SpeakerState) {
        *self.state.lock() =
            SpeakerState { data_on: wire.data_on & 1, dummy_refresh_clock: wire.dummy_refresh_clock & 0x10 };
    }
}

#[cfg(test)]
mod tests {
    use lockstep_event::Clocks;
    use lockstep_vmstate::vmstate_roundtrip;

    use super::*;
    use crate::{core::IrqLine, timer::pit::Pit};

    fn setup() -> (Board, Arc<Speaker>) {
        let board = Board::new(Clocks::manual());
        let pit = Pit::new(&board, IrqLine::unconnected());
        let speaker = Speaker::new(&board, pit);
        (board, speaker)
    }

    #[test]
    fn it_shows_channel_2_and_a_toggle() {
        let (board, _) = setup();
        let ports = &board.port_space;
        ports.write_u8(0x61, 0x03);
        assert_eq!((ports.read_u8(0x61), ports.read_u8(0x61)), (0x33, 0x23));
        ports.write_u8(0x43, 0xb0);
        ports.write_u8(0x42, 0x10);
        ports.write_u8(0x42, 0x00);
        assert_eq!(ports.read_u8(0x61) & 0x20, 0);
        board.clocks.advance_virtual_to(20_000);
        assert_eq!(ports.read_u8(0x61) & 0x20, 0x20);
    }

    vmstate_roundtrip!(
        state_survives_the_wire,
        || {
            let (board, speaker) = setup();
            board.port_space.write_u8(0x61, 2);
            speaker
        },
        || setup().1
    );
}
