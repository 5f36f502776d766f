//! The 8254 interval timer, here or in the host's kernel.

mod regs;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use lockstep_event::{Clock, Clocks, Timer};
use lockstep_util::Result;
use lockstep_vmstate::{Decoder, Encoder, LoadError, Prepared, SaveState, Snapshot, StateInfo, VmState};
use parking_lot::Mutex;

pub use regs::{PIT_HZ, PitRegs};
pub use vmstate::{PitChannelState, PitState};

use crate::{
    core::{Board, IrqLine, byte_registers},
    irqchip::KernelIrqChip,
};

/// What the speaker port sees of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Its gate.
    pub gate: bool,
    /// Its output.
    pub output: bool,
    /// The count it was loaded with, 1 to 65536.
    pub count: u32,
}

/// An 8254, wherever it is.
pub trait PitBackend: Send + Sync {
    /// Sets the gate of a channel.
    fn set_gate(&self, channel: usize, level: bool);
    /// What a channel does now.
    fn channel(&self, channel: usize) -> ChannelInfo;
    /// Disconnects channel 0 from its interrupt (the HPET replaces it), or connects it.
    fn disable_irq(&self, disabled: bool);
    /// Resets it.
    fn reset(&self);
}

/// An 8254 in this process.
pub struct Pit {
    regs: Mutex<PitRegs>,
    clocks: Clocks,
    irq: IrqLine,
    timer: Timer,
}

impl Pit {
    /// An 8254 at its usual ports whose channel 0 drives `irq`.
    pub fn new(board: &Board, irq: IrqLine) -> Arc<Self> {
        let clocks = board.clocks.clone();
        let now = clocks.now_ns(Clock::Virtual);
        let pit = Arc::new_cyclic(|this: &std::sync::Weak<Self>| {
            let this = this.clone();
            let timer = clocks.timer(Clock::Virtual, move || {
                if let Some(pit) = this.upgrade() {
                    pit.expired();
                }
            });
            Self { regs: Mutex::new(PitRegs::new(now)), clocks: clocks.clone(), irq, timer }
        });
        let ports = byte_registers(
            "pit",
            4,
            &pit,
            |p: &Self, offset| p.with(|r, now| r.read(offset as usize, now)),
            |p: &Self, offset, value| p.with(|r, now| r.write(offset as usize, value, now)),
        );
        board.ports.add(0x40, &ports);
        pit
    }

    fn with<T>(&self, f: impl FnOnce(&mut PitRegs, i64) -> T) -> T {
        let mut regs = self.regs.lock();
        let now = self.clocks.now_ns(Clock::Virtual);
        let result = f(&mut regs, now);
        if regs.take_reload() {
            self.drive(&mut regs, now);
        }
        result
    }

    /// Channel 0 has reached its next change.
    fn expired(&self) {
        let mut regs = self.regs.lock();
        let Some(at) = regs.next_change() else { return };
        self.drive(&mut regs, at);
    }

    /// Sets the interrupt as it is at a time, and waits for the next change.
    fn drive(&self, regs: &mut PitRegs, at: i64) {
        if regs.irq_disabled() {
            return;
        }
        self.irq.set(regs.advance(at));
        self.arm(regs);
    }

    fn arm(&self, regs: &PitRegs) {
        match regs.next_change() {
            Some(next) => self.timer.arm(next),
            None => self.timer.cancel(),
        }
    }
}

impl PitBackend for Pit {
    fn set_gate(&self, channel: usize, level: bool) {
        self.with(|r, now| r.set_gate(channel, level, now));
    }

    fn channel(&self, channel: usize) -> ChannelInfo {
        self.with(|r, now| r.info(channel, now))
    }

    fn disable_irq(&self, disabled: bool) {
        let mut regs = self.regs.lock();
        regs.set_irq_disabled(disabled);
        if disabled {
            // Its line is another's now.
            self.irq.set(false);
            self.timer.cancel();
        } else {
            self.drive(&mut regs, self.clocks.now_ns(Clock::Virtual));
        }
    }

    fn reset(&self) {
        let mut regs = self.regs.lock();
        let now = self.clocks.now_ns(Clock::Virtual);
        *regs = PitRegs::new(now);
        regs.advance(now);
        self.arm(&regs);
    }
}

impl Snapshot for Pit {
    type Wire = PitState;

    fn snapshot(&self) -> PitState {
        self.regs.lock().save()
    }

    fn validate(&self, wire: &PitState) -> Result<(), LoadError> {
        wire.validate()
    }

    fn restore(&self, wire: PitState) {
        let mut regs = self.regs.lock();
        regs.load(&wire);
        if regs.irq_disabled() {
            self.timer.cancel();
        } else {
            self.arm(&regs);
        }
    }
}

/// The 8254 in the host's kernel, as the speaker port and the migration stream see it.
#[derive(Clone)]
pub struct KernelPit {
    chip: Arc<dyn KernelIrqChip>,
    clocks: Clocks,
}

impl KernelPit {
    /// The 8254 of `chip`.
    pub fn new(board: &Board, chip: Arc<dyn KernelIrqChip>) -> Self {
        Self { chip, clocks: board.clocks.clone() }
    }

    fn change(&self, f: impl FnOnce(&mut PitRegs, i64)) {
        let changed = self.chip.pit().and_then(|state| {
            let now = self.clocks.now_ns(Clock::Virtual);
            let mut regs = PitRegs::new(now);
            regs.load(&state);
            f(&mut regs, now);
            self.chip.set_pit(&regs.save())
        });
        if let Err(e) = changed {
            tracing::error!("cannot change the kernel's 8254: {e}");
        }
    }
}

impl PitBackend for KernelPit {
    fn set_gate(&self, channel: usize, level: bool) {
        self.change(|r, now| r.set_gate(channel, level, now));
    }

    fn channel(&self, channel: usize) -> ChannelInfo {
        let now = self.clocks.now_ns(Clock::Virtual);
        let mut regs = PitRegs::new(now);
        match self.chip.pit() {
            Ok(state) => regs.load(&state),
            Err(e) => tracing::error!("cannot read the kernel's 8254: {e}"),
        }
        regs.info(channel, now)
    }

    fn disable_irq(&self, disabled: bool) {
        self.change(|r, _| r.set_irq_disabled(disabled));
    }

    fn reset(&self) {
        self.change(|r, now| *r = PitRegs::new(now));
    }
}

impl SaveState for KernelPit {
    fn info(&self) -> StateInfo {
        StateInfo { name: PitState::NAME, version: PitState::VERSION, minimum: PitState::MINIMUM }
    }

    fn save(&self, out: &mut Encoder) -> Result<()> {
        let now = self.clocks.now_ns(Clock::Virtual);
        let mut regs = PitRegs::new(now);
        regs.load(&self.chip.pit()?);
        // The kernel does not say when the output changes next, which a receiver with a timer of its own must know.
        regs.advance(now);
        let wire = regs.save();
        wire.encode(out);
        out.describe(|| wire.description());
        Ok(())
    }

    fn prepare(&self, input: &mut Decoder<'_>, version: u32) -> Result<Prepared, LoadError> {
        let wire = PitState::decode(input, version)?;
        wire.validate()?;
        let chip = self.chip.clone();
        Ok(Prepared::new(move || {
            if let Err(e) = chip.set_pit(&wire) {
                tracing::error!("the kernel refused the state of the 8254: {e}");
            }
        }))
    }
}
