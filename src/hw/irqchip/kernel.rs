//! Interrupt controllers that the host's kernel emulates: their state travels in the same sections as ours.

use std::sync::Arc;

use lockstep_util::Result;
use lockstep_vmstate::{Decoder, Encoder, LoadError, Prepared, SaveState, StateInfo, VmState};

use super::{MsiSink, ioapic::IoApicState, pic::PicState};
use crate::{core::IrqSink, timer::pit::PitState};

/// What an accelerator with interrupt controllers in the kernel provides (KVM with `KVM_CREATE_IRQCHIP` and `KVM_CREATE_PIT2`).
/// Its [`IrqSink`] takes GSI numbers.
pub trait KernelIrqChip: IrqSink + MsiSink {
    /// State of an 8259.
    ///
    /// # Errors
    /// Those of the kernel.
    fn pic(&self, slave: bool) -> Result<PicState>;
    /// Sets the state of an 8259.
    ///
    /// # Errors
    /// Those of the kernel.
    fn set_pic(&self, slave: bool, state: &PicState) -> Result<()>;
    /// State of the I/O APIC.
    ///
    /// # Errors
    /// Those of the kernel.
    fn ioapic(&self) -> Result<IoApicState>;
    /// Sets the state of the I/O APIC.
    ///
    /// # Errors
    /// Those of the kernel.
    fn set_ioapic(&self, state: &IoApicState) -> Result<()>;
    /// State of the 8254, its times in nanoseconds of the machine's virtual clock.
    ///
    /// # Errors
    /// Those of the kernel.
    fn pit(&self) -> Result<PitState>;
    /// Sets the state of the 8254, its times in nanoseconds of the machine's virtual clock.
    ///
    /// # Errors
    /// Those of the kernel.
    fn set_pit(&self, state: &PitState) -> Result<()>;
}

/// The section of an 8259 in the kernel.
pub struct KernelPic {
    /// The kernel's controllers.
    pub chip: Arc<dyn KernelIrqChip>,
    /// Which of the two.
    pub slave: bool,
}

/// The section of the I/O APIC in the kernel.
pub struct KernelIoApic {
    /// The kernel's controllers.
    pub chip: Arc<dyn KernelIrqChip>,
}

pub(crate) fn info_of<T: VmState>() -> StateInfo {
    StateInfo { name: T::NAME, version: T::VERSION, minimum: T::MINIMUM }
}

pub(crate) fn save_wire<T: VmState>(wire: &T, out: &mut Encoder) {
    wire.encode(out);
    out.describe(|| wire.description());
}

/// A commit cannot fail: what the kernel refuses is reported and the machine goes on with what it had.
pub(crate) fn committed(what: &str, result: Result<()>) {
    if let Err(e) = result {
        tracing::error!("the kernel refused the state of the {what}: {e}");
    }
}

impl SaveState for KernelPic {
    fn info(&self) -> StateInfo {
        info_of::<PicState>()
    }

    fn save(&self, out: &mut Encoder) -> Result<()> {
        save_wire(&self.chip.pic(self.slave)?, out);
        Ok(())
    }

    fn prepare(&self, input: &mut Decoder<'_>, version: u32) -> Result<Prepared, LoadError> {
        let wire = PicState::decode(input, version)?;
        wire.validate()?;
        let (chip, slave) = (self.chip.clone(), self.slave);
        Ok(Prepared::new(move || committed("8259", chip.set_pic(slave, &wire))))
    }
}

impl SaveState for KernelIoApic {
    fn info(&self) -> StateInfo {
        info_of::<IoApicState>()
    }

    fn save(&self, out: &mut Encoder) -> Result<()> {
        save_wire(&self.chip.ioapic()?, out);
        Ok(())
    }

    fn prepare(&self, input: &mut Decoder<'_>, version: u32) -> Result<Prepared, LoadError> {
        let wire = IoApicState::decode(input, version)?;
        wire.validate()?;
        let chip = self.chip.clone();
        Ok(Prepared::new(move || committed("I/O APIC", chip.set_ioapic(&wire))))
    }
}
