//! The pair of 8259A interrupt controllers of a PC.

mod regs;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use lockstep_memory::Region;
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub use regs::Chip;
pub use vmstate::PicState;

use crate::core::{Board, IrqLine, IrqSink, IrqTap, byte_registers};

/// The master's input that the slave's output is wired to.
const CASCADE: u8 = 2;

/// Master (interrupts 0 to 7) and slave (8 to 15).
pub struct PicPair {
    chips: Mutex<[Chip; 2]>,
    output: IrqLine,
    tap: IrqTap,
}

impl PicPair {
    /// The pair at its usual ports, with `output` the master's INT pin.
    pub fn new(board: &Board, output: IrqLine) -> Arc<Self> {
        let pair =
            Arc::new(Self { chips: Mutex::new([Chip::new(true), Chip::new(false)]), output, tap: IrqTap::default() });
        for (at, base) in [0x20, 0xa0].into_iter().enumerate() {
            let registers = byte_registers(
                "pic",
                2,
                &pair,
                move |p: &Self, offset| p.with(|c| c[at].read(offset & 1 != 0)),
                move |p: &Self, offset, value| p.with(|c| c[at].write(offset & 1 != 0, value)),
            );
            board.ports.add(base, &registers);
        }
        board.ports.add(0x4d0, &Self::elcr_port(&pair, 0, 0xf8));
        board.ports.add(0x4d1, &Self::elcr_port(&pair, 1, 0xde));
        pair
    }

    /// Which inputs may be level triggered: not the timer, keyboard, cascade, clock and FPU.
    fn elcr_port(pair: &Arc<Self>, at: usize, mask: u8) -> Region {
        byte_registers(
            "elcr",
            1,
            pair,
            move |p: &Self, _| p.with(|c| c[at].elcr()),
            move |p: &Self, _, value| p.with(|c| c[at].set_elcr(value & mask)),
        )
    }

    /// Does something to the chips and has the pins follow.
    fn with<T>(&self, f: impl FnOnce(&mut [Chip; 2]) -> T) -> T {
        let mut chips = self.chips.lock();
        let result = f(&mut chips);
        let slave_int = chips[1].pending().is_some();
        chips[0].set_input(CASCADE, slave_int);
        self.drive(&chips);
        result
    }

    fn drive(&self, chips: &[Chip; 2]) {
        let level = chips[0].pending().is_some();
        if !self.tap.takes(0, level) {
            self.output.set(level);
        }
    }

    /// Has `tell` called for each change of the master's INT pin, which no longer reaches the CPU. False if that is so already.
    pub fn intercept_output(&self, tell: Arc<dyn Fn(u32, bool) + Send + Sync>) -> bool {
        self.tap.open(tell)
    }

    /// The CPU acknowledges an interrupt: the vector, spurious (input 7) when nothing is pending.
    pub fn acknowledge(&self) -> u8 {
        self.with(|chips| {
            let Some(input) = chips[0].pending() else {
                return chips[0].vector(7);
            };
            let vector = if input == CASCADE {
                let slave_input = chips[1].pending();
                slave_input.into_iter().for_each(|i| chips[1].acknowledge(i));
                chips[1].vector(slave_input.unwrap_or(7))
            } else {
                chips[0].vector(input)
            };
            chips[0].acknowledge(input);
            vector
        })
    }

    /// Whether the master's INT pin is high.
    pub fn output(&self) -> bool {
        self.chips.lock()[0].pending().is_some()
    }

    /// Resets both.
    pub fn reset(&self) {
        self.with(|chips| chips.iter_mut().for_each(Chip::reset));
    }

    /// What `info pic` prints.
    pub fn describe(&self) -> String {
        let chips = self.chips.lock();
        format!("{}{}", chips[1].describe("pic1"), chips[0].describe("pic0"))
    }

    /// What `info pic` shows of chips that the kernel has: master and slave.
    pub fn describe_states(states: [&PicState; 2]) -> String {
        let describe = |state: &PicState, name| {
            let mut chip = Chip::new(name == "pic0");
            chip.load(state);
            chip.describe(name)
        };
        format!("{}{}", describe(states[1], "pic1"), describe(states[0], "pic0"))
    }

    /// One of the two as a section.
    pub fn section(self: &Arc<Self>, slave: bool) -> Arc<PicSection> {
        Arc::new(PicSection { pair: self.clone(), at: slave.into() })
    }
}

impl IrqSink for PicPair {
    fn set_irq(&self, n: u32, level: bool) {
        if n < 16 {
            self.with(|chips| chips[n as usize / 8].set_input(n as u8 & 7, level));
        }
    }
}

/// The section `i8259` of one of the pair.
pub struct PicSection {
    pair: Arc<PicPair>,
    at: usize,
}

impl Snapshot for PicSection {
    type Wire = PicState;

    fn snapshot(&self) -> PicState {
        self.pair.chips.lock()[self.at].save()
    }

    fn validate(&self, wire: &PicState) -> Result<(), LoadError> {
        wire.validate()
    }

    fn restore(&self, wire: PicState) {
        // The other chip is loaded as well: the cascade is brought in line when both are.
        let mut chips = self.pair.chips.lock();
        chips[self.at].load(&wire);
        self.pair.drive(&chips);
    }
}
