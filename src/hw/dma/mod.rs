//! The two 8237A DMA controllers of the ISA bus, with their page registers. Nothing on this machine's ISA bus transfers by DMA (the floppy
//! drive has no medium), so the registers are all there is.

mod regs;
mod vmstate;

use std::sync::Arc;

use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub use regs::DmaRegs;
pub use vmstate::{DmaChannelState, DmaState};

use crate::core::{Board, byte_registers};

/// A controller: where its ports are.
#[derive(Clone, Copy, Debug)]
pub struct DmaConfig {
    /// First port of the channels' registers.
    pub base: u16,
    /// First port of the page registers.
    pub page_base: u16,
    /// 1 for the controller of 16-bit channels, whose ports are two apart.
    pub shift: u8,
}

/// The first controller (channels 0 to 3), and the second (4 to 7).
pub const CONTROLLERS: [DmaConfig; 2] =
    [DmaConfig { base: 0x00, page_base: 0x80, shift: 0 }, DmaConfig { base: 0xc0, page_base: 0x88, shift: 1 }];

/// Which channel a page register is for, by its distance from the base.
const PAGES: [(u16, usize); 4] = [(1, 2), (2, 3), (3, 1), (7, 0)];

/// A controller.
pub struct Dma {
    regs: Mutex<DmaRegs>,
}

impl Dma {
    /// A controller at its ports.
    pub fn new(board: &Board, config: DmaConfig) -> Arc<Self> {
        let dma = Arc::new(Self { regs: Mutex::new(DmaRegs::new(config.shift)) });
        let shift = u32::from(config.shift);
        let channels = byte_registers(
            "dma-chan",
            8 << shift,
            &dma,
            move |d: &Self, at| d.regs.lock().read_channel((at >> shift) as usize),
            move |d: &Self, at, value| d.regs.lock().write_channel((at >> shift) as usize, value),
        );
        board.ports.add(config.base.into(), &channels);
        let control = byte_registers(
            "dma-cont",
            8 << shift,
            &dma,
            move |d: &Self, at| d.regs.lock().read_control((at >> shift) as u8),
            move |d: &Self, at, value| d.regs.lock().write_control((at >> shift) as u8, value),
        );
        board.ports.add(u64::from(config.base) + (8 << shift), &control);
        for (at, channel) in PAGES {
            let page = byte_registers(
                "dma-page",
                1,
                &dma,
                move |d: &Self, _| d.regs.lock().page(channel),
                move |d: &Self, _, value| d.regs.lock().set_page(channel, value),
            );
            board.ports.add((config.page_base + at).into(), &page);
        }
        dma
    }

    /// Resets it.
    pub fn reset(&self) {
        self.regs.lock().master_clear();
    }
}

impl Snapshot for Dma {
    type Wire = DmaState;

    fn snapshot(&self) -> DmaState {
        self.regs.lock().save()
    }

    fn validate(&self, wire: &DmaState) -> Result<(), LoadError> {
        self.regs.lock().validate(wire)
    }

    fn restore(&self, wire: DmaState) {
        self.regs.lock().load(&wire);
    }
}

#[cfg(test)]
mod tests {
    use lockstep_event::Clocks;
    use lockstep_vmstate::vmstate_roundtrip;

    use super::*;

    fn setup() -> (Board, [Arc<Dma>; 2]) {
        let board = Board::new(Clocks::manual());
        let dma = CONTROLLERS.map(|c| Dma::new(&board, c));
        (board, dma)
    }

    #[test]
    fn addresses_and_counts_take_two_bytes_each() {
        let (board, _) = setup();
        let ports = &board.port_space;
        ports.write_u8(0x0c, 0);
        [0x34, 0x12].iter().for_each(|&b| ports.write_u8(0x04, b));
        [0xff, 0x01].iter().for_each(|&b| ports.write_u8(0x05, b));
        ports.write_u8(0x81, 0x5a);
        assert_eq!([ports.read_u8(4), ports.read_u8(4), ports.read_u8(5), ports.read_u8(5)], [0x34, 0x12, 0xff, 0x01]);
        assert_eq!((ports.read_u8(0x81), ports.read_u8(0x80)), (0x5a, 0xff));
        ports.write_u8(0xd8, 0);
        [0x34, 0x12].iter().for_each(|&b| ports.write_u8(0xc4, b));
        assert_eq!([ports.read_u8(0xc4), ports.read_u8(0xc4)], [0x34, 0x12], "channel 5");
    }

    #[test]
    fn masks_are_set_one_by_one_and_all_at_once() {
        let (board, _) = setup();
        let ports = &board.port_space;
        ports.write_u8(0x0d, 0);
        assert_eq!(ports.read_u8(0x0f), 0xff);
        ports.write_u8(0x0e, 0);
        ports.write_u8(0x0a, 6);
        assert_eq!(ports.read_u8(0x0f), 4);
        ports.write_u8(0xde, 9);
        assert_eq!((ports.read_u8(0xde), ports.read_u8(0xd0)), (9, 0));
    }

    vmstate_roundtrip!(
        state_survives_the_wire,
        || {
            let (board, [_, second]) = setup();
            board.port_space.write_u8(0xc4, 1);
            board.port_space.write_u8(0xd6, 0xc0);
            board.port_space.write_u8(0x8b, 7);
            second
        },
        || setup().1[1].clone()
    );
}
